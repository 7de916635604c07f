"""Folders of photographs to a data set's folder in an official layout.

The folder is written beside its name and renamed when it is complete. What is done stays: the same
command goes on where it stopped, and does again only what has changed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vton import __version__
from vton.config import MaskRule
from vton.data.sample import CATEGORIES, Category
from vton.data.source import case_differs
from vton.data.synthetic.words import colour_name
from vton.errors import UserError
from vton.files import file_digest, write_atomically
from vton.photos.backends import Networks
from vton.photos.errors import PhotoError, shown
from vton.photos.framing import Layout
from vton.photos.garment import prepare_garment
from vton.photos.layouts import Files
from vton.photos.person import SIZE, Choice, prepare_person
from vton.photos.reading import SUFFIXES, read_picture
from vton.progress import Progress

RECORD = "prepare.json"
LONGEST_ID = 100  # characters: layouts add to it, and disks take 255 bytes
DONE = "done"  # folder of the unfinished set that says what is done
ITEMS = {"upper_body": "top", "lower_body": "trousers or skirt", "dresses": "dress"}


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


@dataclass
class Outcome:
    """What `prepare` did."""

    folder: Path
    pairs: int
    done: int
    kept: int  # of an earlier, interrupted preparation
    failed: dict[str, str] = field(default_factory=dict)  # message by file
    warnings: dict[str, list[str]] = field(default_factory=dict)  # by file


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
        named = _read_pairs(pairs, persons, garments, category)
    else:
        named = _round(persons, garments)
    named = list(dict.fromkeys(named))
    ids = _ids([*persons, *(path for paths in garments.values() for path in paths)])
    used: dict[Item, None] = {}
    listed = []
    for person, garment, of_pair in named:
        used[Item("person", person, ids[person], of_pair)] = None
        used[Item("garment", garment, ids[garment], of_pair)] = None
        listed.append((ids[person], ids[garment], of_pair))
    if layout is None:
        tops_only = all(of_pair == "upper_body" for _, _, of_pair in listed)
        layout = "viton_hd" if tops_only else "dresscode"
    elif layout == "viton_hd" and any(of_pair != "upper_body" for _, _, of_pair in listed):
        raise UserError("VITON-HD's layout holds tops only; use --layout dresscode.")
    told = _read_captions(captions, garments, ids) if captions else {}
    read = [persons[0].parent, *(own[0].parent for own in garments.values())]
    unread = [path for folder in read for path in _others(folder)]
    if photos / "garments" not in read:
        unread += [path for path in _others(photos / "garments") if path not in read]
    return Plan(list(used), listed, told, Settings(layout, **settings), pairs is not None, unread)


def prepare(plan: Plan, networks: Networks, out: Path, keep_going: bool = False) -> Outcome:
    """Write the folder `out`. Raises UserError, by default for the first photograph that fails.

    keep_going: collect what fails; pairs of it are left out of the list.
    """
    facts = {task: asdict(of_task) for task, of_task in networks.facts.items()}
    settings = json.loads(json.dumps({"settings": asdict(plan.settings), "backends": facts}))
    if out.exists():
        return _existing(out, plan, settings)
    if out.is_symlink():
        raise UserError(f"{out} is a link that leads nowhere. Choose another --out, or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    working = out.with_name(f".{out.name}-partial")
    _require_same(working, settings)
    files = Files(working, plan.settings.layout)
    outcome = Outcome(out, 0, 0, 0)
    records: dict[Item, dict[str, Any]] = {}
    with Progress("Preparing", len(plan.items), "photo") as progress:
        for item in plan.items:
            marker = working / DONE / f"{item.key}.json"
            try:
                digest = _digest(item)
                record = _record_of(marker, digest, working)
                if record is None or not _captioned_so(record, item, plan):
                    record = _prepare_item(item, plan, networks, files) | {"sha256": digest}
                    write_atomically(marker, json.dumps(record))
                    outcome.done += 1
                else:
                    outcome.kept += 1
                records[item] = record
            except PhotoError as error:
                message = str(error)
                if shown(item.path) not in message:
                    message = f"{shown(item.path)}: {message}"
                if not keep_going:
                    raise UserError(
                        f"{message} {len(records)} of {len(plan.items)} photos are done and kept; "
                        "the same command goes on, and --keep-going leaves out what fails."
                    ) from None
                outcome.failed[str(item.path)] = message
            progress.advance()
    for item, record in records.items():
        if record["warnings"]:
            outcome.warnings[str(item.path)] = record["warnings"]
    _finish(plan, records, outcome, files, settings)
    return outcome


def _prepare_item(item: Item, plan: Plan, networks: Networks, files: Files) -> dict[str, Any]:
    """Prepare one photograph and write its files; its entry of `prepare.json`."""
    settings = plan.settings
    photo = read_picture(item.path, item.kind)
    entry = {"id": item.id, "category": item.category, "source": str(item.path)}
    if item.kind == "garment":
        garment = prepare_garment(photo, networks, size=settings.size)
        told = plan.captions.get((item.id, item.category))
        caption = told or described(garment.picture, garment.mask, item.category)
        entry |= {"caption": caption, "caption_by": "file" if told else "colour"}
        entry |= {"warnings": garment.warnings}
        return entry | {"files": files.garment(item.id, item.category, garment)}
    person = prepare_person(
        photo,
        item.category,
        networks,
        layout=settings.layout,
        size=settings.size,
        choice=settings.choice,
        rule=settings.rule,
    )
    entry |= {
        "photo_size": list(photo.size),
        "frame": {name: round(value, 3) for name, value in asdict(person.frame).items()},
        "confidence": [round(float(value), 3) for value in person.confidence],
        "warnings": person.warnings,
    }
    return entry | {"files": files.person(item.id, item.category, person)}


def _captioned_so(record: dict[str, Any], item: Item, plan: Plan) -> bool:
    """Whether a record's caption is the one that the plan's list gives, or none gave it."""
    told = plan.captions.get((item.id, item.category))
    if item.kind == "person" or told is None:
        return record.get("caption_by") != "file"
    return record["caption"] == told


def _digest(item: Item) -> str:
    """SHA-256 of a photograph. Raises PhotoError where it cannot be read."""
    try:
        return file_digest(item.path)
    except OSError as error:
        raise PhotoError(item.kind, f"{item.path} cannot be read: {error.strerror}.") from None


def _digest_if_any(item: Item) -> str | None:
    try:
        return _digest(item)
    except PhotoError:
        return None


def described(picture: Image.Image, mask: np.ndarray, category: Category) -> str:
    """A caption of a garment: the name of its median colour, and what its category is called."""
    red, green, blue = np.median(np.asarray(picture)[mask], axis=0) / 255
    return f"{colour_name((red, green, blue))} {ITEMS[category]}"


def _finish(
    plan: Plan,
    records: dict[Item, dict[str, Any]],
    outcome: Outcome,
    files: Files,
    settings: dict[str, Any],
) -> None:
    """Write lists and record, and give the folder its name. Raises UserError without a pair."""
    ready = {(item.kind, item.id, item.category) for item in records}
    pairs = _ready_pairs(plan, ready, bool(outcome.failed))
    if not pairs:
        first = next(iter(outcome.failed.values()), "")
        raise UserError(f"no pair of a person and a garment is left. {first}".strip())
    captions = {}
    for item, record in records.items():
        if item.kind == "garment":
            captions[item.id, item.category] = record["caption"]
    files.lists(pairs, captions)
    outcome.pairs = len(pairs)
    content = {"vton": __version__, **settings}
    for kind in ("person", "garment"):
        content[f"{kind}s"] = [record for item, record in records.items() if item.kind == kind]
    failed = {}
    for item in plan.items:
        path = str(item.path)
        if path in outcome.failed:
            failed[path] = {"message": outcome.failed[path], "sha256": _digest_if_any(item)}
    content |= {"pairs": pairs, "failed": failed}
    write_atomically(files.root / RECORD, json.dumps(content, indent=1) + "\n")
    for marker in (files.root / DONE).iterdir():
        marker.unlink()
    (files.root / DONE).rmdir()
    files.root.rename(outcome.folder)


def _existing(out: Path, plan: Plan, settings: dict[str, Any]) -> Outcome:
    """The outcome of a preparation that is complete. Raises UserError for anything else."""
    advice = "Choose another --out, or remove the folder if you no longer need it."
    try:
        content = json.loads((out / RECORD).read_text(encoding="utf-8"))
        entries = {
            (kind, entry["id"], entry["category"]): entry
            for kind in ("person", "garment")
            for entry in content[f"{kind}s"]
        }
        digests = {key: entry["sha256"] for key, entry in entries.items()}
        failed = {path: entry["message"] for path, entry in content["failed"].items()}
        of_failed = {path: entry["sha256"] for path, entry in content["failed"].items()}
        pairs = [tuple(pair) for pair in content["pairs"]]
        same = all(content[key] == value for key, value in settings.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{out} exists and was not made by vton prepare. {advice}") from None
    for item in plan.items:
        key = item.kind, item.id, item.category
        if key in entries:
            same = same and digests[key] == _digest(item)
            same = same and _captioned_so(entries[key], item, plan)
        else:
            same = same and of_failed.get(str(item.path), "") == _digest_if_any(item)
    if not same or pairs != _ready_pairs(plan, set(entries), bool(failed)):
        raise UserError(f"{out} exists and holds other photos, pairs or settings. {advice}")
    return Outcome(out, len(pairs), 0, len(entries), failed)


def _require_same(working: Path, settings: dict[str, Any]) -> None:
    """Begin the unfinished folder, or make sure that it has these settings. Raises UserError."""
    stamp = working / DONE / "settings.json"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    if not stamp.exists():
        write_atomically(stamp, json.dumps(settings))
    try:
        same = json.loads(stamp.read_text(encoding="utf-8")) == settings
    except ValueError:  # somebody has changed the file
        same = False
    if not same:
        raise UserError(
            f"{working} was begun with other settings ({stamp}). Use those again, or remove the "
            "folder to begin anew."
        )


def _record_of(marker: Path, digest: str, working: Path) -> dict[str, Any] | None:
    """What an earlier run has recorded of this very photograph, if all of its files are there."""
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
        whole = all((working / path).is_file() for path in record["files"])
        return record if whole and record["sha256"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def _ready_pairs(
    plan: Plan, ready: set[tuple[str, str, Category]], some_failed: bool
) -> list[tuple[str, str, Category]]:
    """The plan's pairs of what is ready: kind, id and category."""
    if some_failed and not plan.listed:  # everybody who is left wears something
        return _pairs_of(ready)
    pairs = []
    for person, garment, category in plan.pairs:
        if ("person", person, category) in ready and ("garment", garment, category) in ready:
            pairs.append((person, garment, category))
    return pairs


def _pairs_of(ready: set[tuple[str, str, Category]]) -> list[tuple[str, str, Category]]:
    """As `_round`, of what is ready: kind, id and category."""
    pairs = []
    for category in CATEGORIES:
        persons, garments = (
            sorted(id_ for kind, id_, of in ready if (kind, of) == (wanted, category))
            for wanted in ("person", "garment")
        )
        if persons and garments:
            pairs += _round(persons, {category: garments})
    return pairs


def _round(persons: list, garments: dict[Category, list]) -> list[tuple]:
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
