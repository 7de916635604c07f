"""Folders of photographs to a data set's folder in an official layout.

The folder is written beside its name and renamed when it is complete. What is done stays: the same
command goes on where it stopped, and does again only what has changed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vton import __version__
from vton.data.sample import CATEGORIES, Category
from vton.data.synthetic.words import colour_name
from vton.errors import UserError
from vton.files import file_digest, write_atomically
from vton.photos.backends import Networks
from vton.photos.errors import PhotoError, shown
from vton.photos.garment import prepare_garment
from vton.photos.layouts import Files
from vton.photos.person import prepare_person
from vton.photos.plan import Item, Plan, pair_in_turn
from vton.photos.reading import read_picture
from vton.progress import Progress

RECORD = "prepare.json"
DONE = "done"  # folder of the unfinished set that says what is done
ITEMS = {"upper_body": "top", "lower_body": "trousers or skirt", "dresses": "dress"}


@dataclass
class Outcome:
    """What `prepare` did."""

    folder: Path
    pairs: int
    done: int
    kept: int  # of an earlier, interrupted preparation
    failed: dict[str, str] = field(default_factory=dict)  # message by file
    warnings: dict[str, list[str]] = field(default_factory=dict)  # by file


def prepare(plan: Plan, networks: Networks, out: Path, keep_going: bool = False) -> Outcome:
    """Write the folder `out`. Raises UserError, by default for the first photograph that fails.

    keep_going: collect what fails; pairs of it are left out of the list.
    """
    settings = _settings(plan, networks)
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
            try:
                records[item] = _record(item, plan, networks, files, outcome)
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


def _settings(plan: Plan, networks: Networks) -> dict[str, Any]:
    """What two preparations must have in common, as it reads from a JSON file."""
    backends = {task: asdict(facts) for task, facts in networks.facts.items()}
    return json.loads(json.dumps({"settings": asdict(plan.settings), "backends": backends}))


def _record(
    item: Item, plan: Plan, networks: Networks, files: Files, outcome: Outcome
) -> dict[str, Any]:
    """A photograph's entry of `prepare.json`: an earlier run's, or made now; counted in `outcome`.

    Raises PhotoError.
    """
    digest = _digest(item)
    marker = files.root / DONE / f"{item.key}.json"
    record = _earlier_record(marker, digest, files.root)
    if record is not None and _captioned_so(record, item, plan):
        outcome.kept += 1
        return record
    record = _prepare_item(item, plan, networks, files) | {"sha256": digest}
    write_atomically(marker, json.dumps(record))
    outcome.done += 1
    return record


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


def _earlier_record(marker: Path, digest: str, working: Path) -> dict[str, Any] | None:
    """What an earlier run has recorded of this very photograph, if all of its files are there."""
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
        whole = all((working / path).is_file() for path in record["files"])
        return record if whole and record["sha256"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
    """As `pair_in_turn`, of what is ready: kind, id and category."""
    pairs = []
    for category in CATEGORIES:
        persons = sorted(id_ for kind, id_, of in ready if (kind, of) == ("person", category))
        garments = sorted(id_ for kind, id_, of in ready if (kind, of) == ("garment", category))
        if persons and garments:
            pairs += pair_in_turn(persons, {category: garments})
    return pairs
