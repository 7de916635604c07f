"""Captions of person and garment from one short annotation per garment, as IDM-VTON builds them.

VITON-HD's come from IDM-VTON's tag files (sleeve length, neckline and item, in this order; null tags are left out),
DressCode's from IDM-VTON's `dc_caption.txt`. A garment without annotation gets the configured fallback: 158 of
VITON-HD's 2,032 test garments have none.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vton.data.sample import DataError

TAGS = ("sleeveLength", "neckLine", "item")


class Templates(NamedTuple):
    """Sentences around an annotation, which stands where {} is."""

    person: str = "model is wearing {}"
    garment: str = "a photo of {}"

    def captions(self, annotation: str) -> dict[str, str]:
        """The caption fields of a sample."""
        filled = (template.replace("{}", annotation) for template in self)
        return dict(zip(("person_caption", "garment_caption"), filled, strict=True))


def read_tags(path: Path) -> dict[str, str]:
    """Annotation by file stem from a tag file of VITON-HD. Raises DataError when it has another structure."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["data"]
        found = {}
        for entry in entries:
            tags = {tag["tag_name"]: tag["tag_category"] for tag in entry["tag_info"]}
            words = " ".join(tags[name] for name in TAGS if tags.get(name))
            if words:
                found[PurePosixPath(entry["file_name"]).stem] = words
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"viton_hd: caption tags are not readable ({path}): {type(error).__name__}: {error}. Expected an object "
            "with a list `data` of entries with `file_name` and `tag_info`; remove the file to caption by fallback."
        ) from None


def read_lines(path: Path) -> dict[str, str]:
    """Annotation by file stem from a `dc_caption.txt`: a file name, a blank and the caption on each line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"dresscode: captions are not readable ({path}): {error}. Remove the file to caption by fallback."
        ) from None
    found = {}
    for line in lines:
        name, _, words = line.strip().partition(" ")
        if words.strip():
            found[PurePosixPath(name).stem] = " ".join(words.split())
    return found
