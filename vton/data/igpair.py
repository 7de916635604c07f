"""IGPair (IMAGDressing-v1's own data set) as its archive lies: read by `vton data convert` alone.

IGPair.json lists one entry for each picture: `image_file`, `cloth_file` and `text`, some captions.
`clothes/` and `densepose/` lie beside it. It has neither parse maps nor keypoints, so what comes
out is a VITON-HD folder that still lacks these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vton.data.images import SUFFIXES
from vton.data.sample import DataError
from vton.data.tables import caption_line, pair_line
from vton.progress import track

ANNOTATIONS = "IGPair.json"
# Folders below the root in which a listed file may lie where its path leads nowhere.
PICTURES = ("", "images", "image", "models")
CLOTHES = ("", "clothes")
LACKING = (
    "It has no parse maps (image-parse-v3) and keypoints (openpose_json), which training needs."
)


class Entry(NamedTuple):
    id: str
    person: Path
    garment: Path
    caption: str


def is_igpair(root: Path) -> bool:
    return (root / ANNOTATIONS).is_file()


def write_viton_hd(root: Path, out: Path) -> int:
    """Write the folder in VITON-HD's layout, as training pairs; returns their number.

    A garment is stored once for each person who wears it, under that person's name. Raises
    DataError naming the entry for files that are missing or lie outside the root, and for names
    that come twice.
    """
    entries = list(_entries(root))
    lines, captions = [], []
    for entry in track(entries, "Converting", len(entries), "picture"):
        _copy(entry.person, out / "train/image", entry.id)
        _copy(entry.garment, out / "train/cloth", entry.id)
        parts = _beside(root / "densepose", entry.person.stem)
        if parts is not None:
            _copy(parts, out / "train/image-densepose", entry.id)
        lines.append(pair_line(f"{entry.id}.jpg", f"{entry.id}.jpg"))
        if entry.caption:
            captions.append(caption_line(f"{entry.id}.jpg", entry.caption))
    (out / "train_pairs.txt").write_text("".join(lines), encoding="utf-8")
    if captions:
        path = out / "train/image_descriptions.txt"
        path.write_text("".join(captions), encoding="utf-8")
    return len(entries)


def _entries(root: Path) -> Iterator[Entry]:
    """The entries of the archive's annotations. Raises DataError naming the entry."""
    path = root / ANNOTATIONS
    try:
        listed = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}.") from None
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{path}: expected a list of entries with image_file and cloth_file.")
    seen: set[str] = set()
    for number, entry in enumerate(listed, start=1):
        where = f"entry {number} of {path}"
        keys = ("image_file", "cloth_file")
        files = [entry.get(key) if isinstance(entry, dict) else None for key in keys]
        if not all(isinstance(file, str) and file for file in files):
            raise DataError(f"{where} has no image_file or no cloth_file.")
        person = _find(root, files[0], PICTURES, where)
        garment = _find(root, files[1], CLOTHES, where)
        id_ = person.stem if person.stem not in seen else f"{person.stem}_{garment.stem}"
        if id_ in seen:
            raise DataError(f"{where} repeats {person.stem} with {garment.stem}.")
        seen.add(id_)
        text = entry.get("text") or ""
        first = text[0] if isinstance(text, list) else text
        yield Entry(id_, person, garment, " ".join(str(first).split()))


def _find(root: Path, listed: str, folders: tuple[str, ...], where: str) -> Path:
    """The listed file below the root: at its path, or by its name in a known folder."""
    name = PurePosixPath(listed).name
    for path in (root / listed, *(root / folder / name for folder in folders)):
        if path.is_file():
            if not path.resolve().is_relative_to(root.resolve()):
                raise DataError(f"{where} names {listed}, which lies outside {root}.")
            return path
    raise DataError(f"{where}: {listed} is missing below {root}.")


def _beside(folder: Path, stem: str) -> Path | None:
    for suffix in SUFFIXES:
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return path
    return None


def _copy(source: Path, folder: Path, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}{source.suffix.lower()}").write_bytes(source.read_bytes())
