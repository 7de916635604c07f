"""`vton data shard`: pack the files of a data set's plain folder into shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vton.data.folder import Folder
from vton.data.shards import SHARD_MB, ShardError, ShardPath, Shards, ShardWriter
from vton.data.tables import TablePath

LIST_SUFFIXES = (".txt", ".json")  # pair lists and captions


def write_folder(folder: Folder, out: Path, shard_mb: float = SHARD_MB) -> Shards:
    """Write what the readers of a data set's plain folder can ask for into shards, and return them.

    Pair lists and captions come first, then the records of each split or category by id. Files that
    no reader knows are left out. Raises ShardError where `out` holds anything, or where the folder
    is shards already.
    """
    if isinstance(folder.root, TablePath):
        raise ShardError(
            f"{folder.root} holds parquet tables. Write them as shards: vton data convert --shards."
        )
    if isinstance(folder.root, ShardPath):
        raise ShardError(f"{folder.root} is sharded already. Set data.root to the plain folder.")
    bases = list(dict.fromkeys([*folder.bases("train"), *folder.bases("test")]))
    bases = [base for base in bases if base.is_dir()]  # photographs of one's own have no `train`
    with ShardWriter(out, shard_mb) as writer:
        for place in (folder.root, *bases):
            _write_lists(writer, folder.root, place)
        for base in bases:
            _write_records(writer, folder, base)
    return Shards(str(out))


def _write_lists(writer: ShardWriter, root: Path, place: Path) -> None:
    """The pair lists and caption files directly in `place`, each as a record of its own."""
    for path in sorted(place.iterdir()):
        if path.suffix in LIST_SUFFIXES and path.is_file():
            name = path.relative_to(root).as_posix()
            writer.add(name, {name: ("", path.read_bytes())})


def _write_records(writer: ShardWriter, folder: Folder, base: Path) -> None:
    """The records of one split or category: by id, every file whose name holds the id."""
    records: dict[str, dict[Path, str]] = {}
    for kind in _known_files(folder):
        if not (base / kind.folder).is_dir():
            continue
        writer.folders.append((base / kind.folder).relative_to(folder.root).as_posix())
        for path in sorted((base / kind.folder).iterdir()):
            match = kind.stem.fullmatch(path.stem)
            if match and path.suffix.lower() in kind.suffixes:
                record = records.setdefault(match[1], {})
                record[path] = f"{kind.folder}{match[2]}{path.suffix}"
    for id_, members in sorted(records.items()):
        files = {}
        for path, rest in members.items():
            files[path.relative_to(folder.root).as_posix()] = (rest, path.read_bytes())
        writer.add(f"{base.relative_to(folder.root).as_posix()}/{id_}", files)


class KnownFiles(NamedTuple):
    """Files that a reader may look for."""

    folder: str
    stem: re.Pattern  # its groups are the id and the rest of the stem
    suffixes: tuple[str, ...]


def _known_files(folder: Folder) -> list[KnownFiles]:
    """Every place a reader may look in, once."""
    known: dict[KnownFiles, None] = {}
    for part, kind in folder.parts.items():
        for order in ("paired", "unpaired"):
            for place in folder.places(part, order):
                known[KnownFiles(place.folder, _pattern(place.stem), kind.suffixes)] = None
    return list(known)


def _pattern(stem: str) -> re.Pattern:
    """A stem with {person} and {garment} as a pattern of the first id and the rest.

    >>> _pattern("{person}__{garment}").pattern
    '(.+?)(__.+)'
    """
    before, _, rest = re.sub(r"\{(person|garment)\}", "{}", stem).partition("{}")
    assert not before, f"{stem} does not begin with an id"
    return re.compile(f"(.+?)({re.escape(rest).replace(re.escape('{}'), '.+')})")
