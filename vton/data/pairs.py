"""Pairs of a person and a garment: reading their lists, choosing some, exchanging garments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vton.data.images import SUFFIXES
from vton.data.sample import Category, DataError, joined_id
from vton.data.shards import ShardError
from vton.data.source import Source, case_differs

AFTER_SUFFIX = re.compile(
    "|".join(rf"(?<={re.escape(suffix)})\s+" for suffix in SUFFIXES), re.IGNORECASE
)


@dataclass(frozen=True)
class Pair:
    """One line of a pair list. Paired order: person and garment have the same name.

    person, garment: names in file names. Data sets that number each category by itself set
    `per_category`: then the ids, which are unique in the data set, begin with the category.
    """

    person: str
    garment: str
    category: Category
    per_category: bool = False

    @property
    def person_id(self) -> str:
        return f"{self.category}/{self.person}" if self.per_category else self.person

    @property
    def garment_id(self) -> str:
        return f"{self.category}/{self.garment}" if self.per_category else self.garment

    @property
    def id(self) -> str:
        """The pair's name in file names and tables, as TryOnSample.pair_id."""
        return joined_id(self.person_id, self.garment_id)


def read_pair_list(path: Source, dataset: str) -> list[tuple[str, ...]]:
    """The columns of a pair list, two or three per line.

    Columns are separated by tabs if the line has any, so that names may hold blanks; otherwise by
    runs of blanks. Blank lines do not count. Picture suffixes are dropped: some lists name .png
    files where the photographs are .jpg. Raises DataError for a missing or empty file, a line with
    another number of columns, a name that was cut at a blank, or one that leads out of the data
    set's folder.
    """
    advice = "Restore the list from the archive."
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        problem = case_differs(path)
        if problem:
            raise DataError(f"{dataset}: {problem}") from None
        raise DataError(f"{dataset}: pair list is missing ({path}). {advice}") from None
    except ShardError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(
            f"{dataset}: pair list is not readable ({path}): {error}. {advice}"
        ) from None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        columns = columns_of(line)
        if not columns:
            continue
        where = f"{dataset}: line {number} of {path}"
        if len(columns) not in (2, 3):
            hint = " If names hold blanks, separate columns by tabs." if len(columns) > 3 else ""
            raise DataError(
                f"{where} has {len(columns)} columns, expected person, garment and perhaps a "
                f"category: {line.strip()[:80]!r}. {advice}{hint}"
            )
        person, garment, *category = columns
        if category and category[0].lower().endswith(SUFFIXES) and "\t" not in line.strip():
            raise DataError(
                f"{where} has a picture in the third column ({category[0]}): names hold blanks; "
                "separate columns by tabs."
            )
        rows.append((_id(person, where), _id(garment, where), *category))
    if not rows:
        raise DataError(f"{dataset}: pair list is empty ({path}). {advice}")
    return rows


def columns_of(line: str) -> list[str]:
    """The columns of a line: separated by tabs, so that names may hold blanks; without a tab, by
    blanks.

    A list may mix both, as in "a.jpg b.jpg\\t0": a picture's name then ends at its suffix.

    >>> columns_of("my photo.jpg\\tshirt.jpg")
    ['my photo.jpg', 'shirt.jpg']
    """
    if "\t" not in line.strip():
        return line.split()
    columns = [column.strip() for column in line.split("\t") if column.strip()]
    words = []
    for column in columns:
        words += AFTER_SUFFIX.split(column)
    pictures = [word for word in words if word.lower().endswith(SUFFIXES)]
    return words if len(pictures) == 2 and len(words) == 3 else columns


def _id(name: str, where: str) -> str:
    """A name in a pair list without its picture suffix.

    Raises DataError unless it is a plain file name.
    """
    stem = name[: name.rindex(".")] if name.lower().endswith(SUFFIXES) else name
    if stem in ("", ".", "..") or any(character in stem for character in "/\\\0:"):
        raise DataError(
            f"{where} names {name!r}; ids are plain file names inside the data set's folders. "
            "Write the names without the folders before them."
        )
    return stem


def require_unique_ids(pairs: Sequence[Pair], dataset: str) -> None:
    """Raise DataError if different pairs have the same id, as a__b with c and a with b__c have."""
    by_id: dict[str, Pair] = {}
    for pair in pairs:
        other = by_id.setdefault(pair.id, pair)
        if other != pair:
            raise DataError(
                f"{dataset}: {other.person} with {other.garment} and {pair.person} with "
                f"{pair.garment} would both be called {pair.id}. Rename one of the files."
            )


def limited(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """`limit` pairs, all for 0, spread evenly over the list so that every category stays in."""
    if not limit or limit >= len(pairs):
        return list(pairs)
    return [pairs[place * len(pairs) // limit] for place in range(limit)]


def exchanged(pairs: Sequence[Pair]) -> list[Pair]:
    """For every pair the next one of its category, in a cycle, that has another garment.

    Raises DataError for a category with a single pair or a single garment.
    """
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        places.setdefault(pair.category, []).append(place)
    others = list(pairs)
    for category, group in places.items():
        if len(group) == 1:
            raise DataError(
                f"{category} has a single pair, so garments cannot be exchanged; use "
                "eval.shuffled=false."
            )
        following = group[1:] + group[:1]
        changes = []  # whether the following pair has another garment
        for place, other in zip(group, following, strict=True):
            changes.append(pairs[place].garment != pairs[other].garment)
        if not any(changes):
            raise DataError(
                f"all pairs of {category} have the garment {pairs[group[0]].garment}, so garments "
                "cannot be exchanged; use eval.shuffled=false."
            )
        # Backwards from a change: a pair whose follower has its own garment gets the follower's.
        last = changes.index(True)
        for step in range(len(group)):
            index = (last - step) % len(group)
            place, other = group[index], following[index]
            others[place] = pairs[other] if changes[index] else others[other]
    return others
