"""Captions of person and garment from one short annotation per garment, as IDM-VTON builds them.

VITON-HD's annotations come from IDM-VTON's tag files (sleeve length, neckline and item, in this
order; null tags are left out), DressCode's from IDM-VTON's `dc_caption.txt`. Without these,
Mobile-VTON's descriptions (`image_descriptions.txt`, `dc_descriptions.txt`) and PromptDresser's
answers of a language model (`test_gpt4o.json`) are read. A garment without annotation gets the
configured fallback: 158 of VITON-HD's 2,032 test garments have none.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import NamedTuple

from vton.data.images import SUFFIXES
from vton.data.sample import DataError
from vton.data.shards import ShardError
from vton.data.source import Source, composed

CAPTION_TAGS = ("sleeveLength", "neckLine", "item")
ANSWERS = ("sleeve", "neckline", "material", "category")  # ends of keys, in the annotation's order
_ADVICE = "Restore the file, or remove it to caption by data.caption_fallback."


class Templates(NamedTuple):
    """Sentences around an annotation, which takes the place of {}."""

    person: str = "model is wearing {}"
    garment: str = "a photo of {}"

    def captions(self, annotation: str) -> dict[str, str]:
        """The caption fields of a sample."""
        return {
            "person_caption": self.person.replace("{}", annotation),
            "garment_caption": self.garment.replace("{}", annotation),
        }


DEFAULT_TEMPLATES = Templates()


def read(path: Source, dataset: str) -> dict[str, str]:
    """Annotation by file stem from a caption file of any known form. Raises DataError."""
    if path.suffix != ".json":
        return read_lines(path, dataset)
    if path.name.endswith("_gpt4o.json"):
        return read_answers(path, dataset)
    return read_tags(path)


def read_answers(path: Source, dataset: str) -> dict[str, str]:
    """Annotation by file stem from PromptDresser's JSON of a language model's answers.

    An entry is text, or holds `clothing`, an object of which category, material, neckline and
    sleeve are taken. Raises DataError that names file and entry.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(entries, dict):
            raise TypeError("not an object of entries by file name")
    except ShardError:
        raise
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{dataset}: captions are not readable ({path}): {type(error).__name__}: {error}. "
            f"{_ADVICE}"
        ) from None
    annotations = {}
    for name, entry in entries.items():
        clothing = entry.get("clothing") if isinstance(entry, dict) else entry
        words = [clothing] if isinstance(clothing, str) else None
        if isinstance(clothing, dict):
            words = [
                clothing[key]
                for key in sorted(clothing, key=_place_in_answer)
                if _place_in_answer(key) < len(ANSWERS)
            ]
        if words is None or not all(isinstance(word, str) for word in words):
            raise DataError(
                f"{dataset}: entry {name!r} of {path} has neither text nor an object `clothing` of "
                f"texts. {_ADVICE}"
            )
        annotation = " ".join(word.strip() for word in words if word.strip())
        if annotation:
            annotations[composed(PurePosixPath(name).stem)] = annotation
    return annotations


def _place_in_answer(key: str) -> int:
    """Where a property of the garment stands in its annotation; behind all for others."""
    for place, ending in enumerate(ANSWERS):
        if key.endswith(ending):
            return place
    return len(ANSWERS)


def read_tags(path: Source) -> dict[str, str]:
    """Annotation by file stem from a tag file of VITON-HD.

    Raises DataError that names file and entry.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))["data"]
        if not isinstance(entries, list):
            raise TypeError("`data` is not a list")
    except ShardError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"viton_hd: caption tags are not readable ({path}): {type(error).__name__}: {error}. "
            "Expected an object with a list `data` of entries with `file_name` and `tag_info`. "
            f"{_ADVICE}"
        ) from None
    annotations = {}
    for number, entry in enumerate(entries, start=1):
        try:
            stem, words = _read_entry(entry)
        except KeyError as error:
            raise DataError(
                f"viton_hd: entry {number} of {path} has no {error}. {_ADVICE}"
            ) from None
        except TypeError as error:
            raise DataError(
                f"viton_hd: entry {number} of {path} has another structure ({error}). {_ADVICE}"
            ) from None
        if words:
            annotations[stem] = words
    return annotations


def _read_entry(entry: dict) -> tuple[str, str]:
    """File stem and annotation of one garment; "" where it has none of the tags."""
    stem = composed(PurePosixPath(entry["file_name"]).stem)
    tags = {tag["tag_name"]: tag["tag_category"] for tag in entry["tag_info"]}
    words = [tags[name] for name in CAPTION_TAGS if tags.get(name)]
    return stem, " ".join(words)


def read_lines(path: Source, dataset: str = "dresscode") -> dict[str, str]:
    """Annotation by file stem from a `dc_caption.txt` or a list of descriptions.

    Each line has a file name, a blank or a colon and a blank, and the caption; behind a name that
    holds blanks a tab. Blank lines do not count. Raises DataError that names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except ShardError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(
            f"{dataset}: captions are not readable ({path}): {error}. {_ADVICE}"
        ) from None
    annotations = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        name, *caption = words
        before, tab, behind = line.partition("\t")
        if tab and before.strip().lower().endswith(SUFFIXES):
            name, caption = before.strip(), behind.split()
        if not caption:
            raise DataError(
                f"{dataset}: line {number} of {path} has no caption after {name!r}. {_ADVICE}"
            )
        stem = composed(PurePosixPath(name.removesuffix(":")).stem)
        annotations[stem] = " ".join(caption)
    return annotations
