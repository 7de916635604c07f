"""Captions of person and garment from one short annotation per garment, as IDM-VTON builds them.

VITON-HD's come from IDM-VTON's tag files (sleeve length, neckline and item, in this order; null
tags are left out), DressCode's from IDM-VTON's `dc_caption.txt`. A garment without annotation gets
the configured fallback: 158 of VITON-HD's 2,032 test garments have none.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import NamedTuple

from vton.data.sample import DataError
from vton.data.shards import ShardError, Source

TAGS = ("sleeveLength", "neckLine", "item")


class Templates(NamedTuple):
    """Sentences around an annotation, which stands where {} is."""

    person: str = "model is wearing {}"
    garment: str = "a photo of {}"

    def captions(self, annotation: str) -> dict[str, str]:
        """The caption fields of a sample."""
        filled = (template.replace("{}", annotation) for template in self)
        return dict(zip(("person_caption", "garment_caption"), filled, strict=True))


def read_tags(path: Source) -> dict[str, str]:
    """Annotation by file stem from a tag file of VITON-HD. Raises DataError that names file and
    entry.
    """
    advice = "Restore the file, or remove it to caption by data.caption_fallback."
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["data"]
        if not isinstance(entries, list):
            raise TypeError("`data` is not a list")
    except ShardError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"viton_hd: caption tags are not readable ({path}): {type(error).__name__}: {error}. Expected an object "
            f"with a list `data` of entries with `file_name` and `tag_info`. {advice}"
        ) from None
    found = {}
    for number, entry in enumerate(entries, start=1):
        try:
            stem = PurePosixPath(entry["file_name"]).stem
            tags = {tag["tag_name"]: tag["tag_category"] for tag in entry["tag_info"]}
            words = " ".join(tags[name] for name in TAGS if tags.get(name))
        except KeyError as error:
            raise DataError(
                f"viton_hd: entry {number} of {path} has no {error}. {advice}"
            ) from None
        except TypeError as error:
            raise DataError(
                f"viton_hd: entry {number} of {path} has another structure ({error}). {advice}"
            ) from None
        if words:
            found[stem] = words
    return found


def read_lines(path: Source) -> dict[str, str]:
    """Annotation by file stem from a `dc_caption.txt`: a file name, a blank and the caption on each
    line.

    Blank lines do not count. Raises DataError that names file and line.
    """
    advice = "Restore the file, or remove it to caption by data.caption_fallback."
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except ShardError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(
            f"dresscode: captions are not readable ({path}): {error}. {advice}"
        ) from None
    found = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) == 1:
            raise DataError(
                f"dresscode: line {number} of {path} has no caption after {words[0]!r}. {advice}"
            )
        if words:
            found[PurePosixPath(words[0]).stem] = " ".join(words[1:])
    return found
