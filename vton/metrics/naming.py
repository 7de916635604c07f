"""What the name of somebody's prediction says: which person, and which garment.

Methods name their outputs in many ways:

    00006_00                  the person (CatVTON, IDM-VTON, LaDI-VTON, DCI-VTON)
    00006_00_08015_00         person and garment (StableVITON, HR-VITON, VTON-IQA's output sets)
    00006_00__08015_00        the same, as this project writes it
    048392_0_049114_1_catdm   with the method behind it (VTON-IQA's examples)
    upper___00006_00___08015_00   with the kind of garment before it (GP-VTON)

None of them says where an id ends, so names are read against the names that are there: the person
is the first run of words that names a target, the longest of those that begin there, and the
garment is looked for in what is left. Words are what underscores separate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class Named(NamedTuple):
    """What a name says. A part is "" where it does not say it."""

    person: str  # the target's full name, with its folder of categories if it has one
    garment: str  # an id, without a folder


class Names:
    """The pictures that names may mean: by their own name, or by that without a category's folder.

    A bare name in several categories means none of them.
    """

    def __init__(self, full_names: Iterable[str]):
        self._of: dict[str, str] = {}
        twice = set()
        for full in full_names:
            bare = full.rpartition("/")[2]
            if bare in self._of:
                twice.add(bare)
            self._of[bare] = full
        self.ambiguous = {bare: full for bare, full in self._of.items() if bare in twice}
        for bare in twice:
            del self._of[bare]

    def find(self, bare: str, category: str = "") -> str:
        """The full name, "" if there is none; with a category only one of that category."""
        full = self._of.get(bare, "")
        if full and category and "/" in full and not full.startswith(f"{category}/"):
            return ""
        return full


def read_name(name: str, targets: Mapping[str, object], of_targets: Names) -> Named:
    """Person and garment in a prediction's name, which may have a category's folder before it.

    A target of the whole name is the person, whatever else could be read into it.
    """
    if name in targets:
        return Named(name, "")
    category, _, stem = name.rpartition("/")
    whole = of_targets.find(stem, category)
    if whole:
        return Named(whole, "")
    for start, end, run in _runs(stem):
        person = f"{category}/{run}" if f"{category}/{run}" in targets else ""
        person = person or of_targets.find(run, category)
        if person:
            left = [stem[:start].strip("_"), stem[end:].strip("_")]
            return Named(person, "_".join(filter(None, left)))
    return Named("", "")


def garment_in(words: str, garments: Names, category: str = "") -> str:
    """The full name of the garment that words name, the longest of the first run; "" for none."""
    for _, _, run in _runs(words):
        found = garments.find(run, category)
        if found:
            return found
    return ""


def other_garment(person: str, words: str) -> str:
    """The id in the words that is formed like the person's and is of somebody else; "" for none.

    048392_0 and 048392_1 are DressCode's person and garment of one id: the last word of an id with
    several does not count.
    """
    own = person.rpartition("/")[2]
    if not any(character.isdigit() for character in own):
        return ""  # a word like "result" is formed like any other
    form = _form(own)
    for _, _, run in _runs(words):
        if _form(run) == form:
            return "" if _number(run) == _number(own) else run
    return ""


def _runs(name: str) -> Iterator[tuple[int, int, str]]:
    """Runs of words with their places: those that begin first before others, long before short."""
    words = [match.span() for match in re.finditer(r"[^_]+", name)]
    for first in range(len(words)):
        for last in range(len(words) - 1, first - 1, -1):
            start, end = words[first][0], words[last][1]
            yield start, end, name[start:end]


def _form(name: str) -> str:
    return re.sub(r"\d", "0", name)


def _number(name: str) -> str:
    """An id without its last word, if it has several."""
    return name.rpartition("_")[0] or name
