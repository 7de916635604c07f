"""Which photographs are prepared as a data set, under which ids, and who tries on what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vton.config import MaskRule
from vton.data.sample import CATEGORIES, Category
from vton.data.source import case_differs
from vton.errors import UserError
from vton.photos.errors import shown
from vton.photos.framing import Layout
from vton.photos.person import SIZE, Choice
from vton.photos.reading import SUFFIXES

LONGEST_ID = 100  # characters: layouts add to it, and disks take 255 bytes


@dataclass(frozen=True)
class Item:
    """One photograph, as what it is used."""

    kind: str  # "person" or "garment"
    path: Path
    id: str
    category: Category

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.category}-{self.id}"


@dataclass(frozen=True)
class Settings:
    """What decides the files besides the photographs and the networks."""

    layout: Layout
    size: tuple[int, int] = SIZE  # height, width
    choice: Choice = "only"
    rule: MaskRule = "safe"


@dataclass
class Plan:
    """Which photographs to prepare, and who tries on what."""

    items: list[Item]
    pairs: list[tuple[str, str, Category]]  # ids of person and garment
    captions: dict[tuple[str, Category], str]  # of some garments
    settings: Settings
    listed: bool  # whether somebody has chosen the pairs
    unread: list[Path] = field(default_factory=list)  # files and folders beside the pictures


def plan(
    photos: Path,
    *,
    pairs: Path | None = None,
    captions: Path | None = None,
    category: Category = "upper_body",
    layout: Layout | None = None,
    **settings,
) -> Plan:
    """What to do with a folder of photographs.

    photos: a folder with `persons/` and `garments/`, which may have a folder for each category.
    pairs: a list of person, garment and perhaps category, in words or as 0, 1 or 2; names of files
    in these folders. Without it every garment of a category is tried on by one of the persons, and
    every person tries on one at least. captions: lines of a garment's file name and its caption.
    Raises UserError.
    """
    persons = _pictures(photos / "persons")
    garments = _by_category(photos / "garments", category)
    if pairs is not None:
        chosen = _read_pairs(pairs, persons, garments, category)
    else:
        chosen = pair_in_turn(persons, garments)
    ids = _ids([*persons, *(path for paths in garments.values() for path in paths)])

    items: dict[Item, None] = {}  # in the order of the pairs, each once
    listed = []
    for person, garment, of_pair in dict.fromkeys(chosen):
        items[Item("person", person, ids[person], of_pair)] = None
        items[Item("garment", garment, ids[garment], of_pair)] = None
        listed.append((ids[person], ids[garment], of_pair))

    tops_only = all(of_pair == "upper_body" for _, _, of_pair in listed)
    if layout is None:
        layout = "viton_hd" if tops_only else "dresscode"
    elif layout == "viton_hd" and not tops_only:
        raise UserError("VITON-HD's layout holds tops only; use --layout dresscode.")
    return Plan(
        items=list(items),
        pairs=listed,
        captions=_read_captions(captions, garments, ids) if captions else {},
        settings=Settings(layout, **settings),
        listed=pairs is not None,
        unread=_unread(photos, persons, garments),
    )


def _unread(photos: Path, persons: list[Path], garments: dict[Category, list[Path]]) -> list[Path]:
    """Files and folders beside the pictures that were found."""
    folders = [persons[0].parent, *(own[0].parent for own in garments.values())]
    unread = [path for folder in folders for path in _others(folder)]
    above = photos / "garments"  # of the categories' folders
    if above not in folders:
        unread += [path for path in _others(above) if path not in folders]
    return unread


def _pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, by name. Raises UserError where there are none."""
    if not folder.is_dir():
        problem = case_differs(folder)
        if problem:
            raise UserError(f"{folder} is no folder: {problem}")
        raise UserError(
            f"{folder} is no folder. Photos go into two folders, persons/ and garments/."
        )
    files = sorted(path for path in folder.iterdir() if _is_picture(path))
    if not files:
        others = "".join(f" {shown(path.name)} is none." for path in _others(folder)[:1])
        raise UserError(f"{folder} holds no picture ({', '.join(SUFFIXES)}).{others}")
    return files


def _is_picture(path: Path) -> bool:
    """By its name. Hidden files are what macOS and editors put beside pictures; a link that leads
    nowhere is reported later, as a picture that cannot be read.
    """
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and (path.is_file() or path.is_symlink())


def _others(folder: Path) -> list[Path]:
    """Files and folders of a folder that may be meant as pictures, and are not read as such."""
    others = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in others if not _is_picture(path))


def _by_category(folder: Path, category: Category) -> dict[Category, list[Path]]:
    """Garments by category: those of its folders, else all in the one given."""
    found = {name: folder / name for name in CATEGORIES if (folder / name).is_dir()}
    for name in CATEGORIES:
        problem = case_differs(folder / name)
        if folder.is_dir() and problem:
            raise UserError(f"{folder}: {problem}")
    if not found:
        return {category: _pictures(folder)}
    loose = [path.name for path in folder.iterdir() if _is_picture(path)]
    if loose:
        raise UserError(
            f"{folder} has folders of categories and {len(loose)} pictures beside them, such as "
            f"{loose[0]}. Move these into a folder."
        )
    return {name: _pictures(path) for name, path in found.items()}


def pair_in_turn(persons: list, garments: dict[Category, list]) -> list[tuple]:
    """Pairs such that every person and every garment of a category is in one at least."""
    pairs = []
    for category, own in garments.items():
        for turn in range(max(len(persons), len(own))):
            pairs.append((persons[turn % len(persons)], own[turn % len(own)], category))
    return pairs


def _read_pairs(
    path: Path, persons: list[Path], garments: dict[Category, list[Path]], category: Category
) -> list[tuple[Path, Path, Category]]:
    """The pairs of a list. Raises UserError that names the line."""
    pairs = []
    for number, words in _lines(path):
        where = f"line {number} of {path}"
        if len(words) not in (2, 3):
            raise UserError(
                f"{where} has {len(words)} words, expected person, garment, category. Put tabs "
                "between them if names hold spaces."
            )
        person = _one(words[0], persons, f"{where}: persons/")
        given = words[2] if len(words) == 3 else None
        if given is not None and given in ("0", "1", "2"):
            given = CATEGORIES[int(given)]
        if given is not None and given not in CATEGORIES:
            raise UserError(f"{where}: {given} is no category: {', '.join(CATEGORIES)}.")
        folders = [name for name, own in garments.items() if words[1] in _names(own)]
        of_pair = given or (folders[0] if folders else category)
        own = garments.get(of_pair) or next(iter(garments.values()))
        pairs.append((person, _one(words[1], own, f"{where}: garments/"), of_pair))
    if not pairs:
        raise UserError(f"{path} lists no pair.")
    return pairs


def _read_captions(
    path: Path, garments: dict[Category, list[Path]], ids: dict[Path, str]
) -> dict[tuple[str, Category], str]:
    captions = {}
    for number, words in _lines(path):
        if len(words) < 2:
            raise UserError(f"line {number} of {path} has no caption after {words[0]}.")
        found = False
        for category, own in garments.items():
            if words[0] in _names(own):
                garment = _one(words[0], own, f"line {number} of {path}: garments/")
                captions[ids[garment], category] = " ".join(words[1:])
                found = True
        if not found:
            raise UserError(f"line {number} of {path}: garments/ has no {words[0]}.")
    return captions


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The words of every line that has some, with its number. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    lines = enumerate(text.splitlines(), start=1)
    return [(number, _words(line)) for number, line in lines if line.strip()]


def _words(line: str) -> list[str]:
    """What stands between tabs, which keeps spaces in names; without a tab, between spaces."""
    return [word.strip() for word in line.split("\t")] if "\t" in line.strip() else line.split()


def _names(paths: Sequence[Path]) -> set[str]:
    return {name for path in paths for name in (path.name, path.stem)}


def _one(name: str, paths: Sequence[Path], where: str) -> Path:
    """The file of a name with or without suffix. Raises UserError."""
    exact = [path for path in paths if path.name == name]
    found = exact or [path for path in paths if path.stem == name]
    if len(found) == 1:
        return found[0]
    problem = "has no" if not found else f"has {len(found)} files named"
    raise UserError(f"{where} {problem} {name}.")


def _ids(paths: Sequence[Path]) -> dict[Path, str]:
    """An id of each file: its name in letters, digits, - and _, and never the same twice, on disks
    that ignore case neither.

    The same id would say that the person wears that garment.
    """
    ids: dict[Path, str] = {}
    taken: set[str] = set()
    count: Counter[str] = Counter()
    for path in paths:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-")[:LONGEST_ID] or "photo"
        id_ = plain
        while id_.lower() in taken:
            count[plain.lower()] += 1
            id_ = f"{plain}-{count[plain.lower()] + 1}"
        taken.add(id_.lower())
        ids[path] = id_
    return ids
