"""`vton data shard`: the files of a data set's plain folder into shards."""

from __future__ import annotations

import re
from pathlib import Path

from vton.data.folder import Folder
from vton.data.shards import SHARD_MB, ShardError, ShardPath, Shards, ShardWriter


def write_folder(folder: Folder, out: Path, shard_mb: float = SHARD_MB) -> Shards:
    """Write what the readers of a data set's plain folder can ask for into shards, and return them.

    Pair lists and captions come first, then the records of each split or category by id. Files that
    no reader knows are left out. Raises ShardError where `out` holds anything, or where the folder
    is shards already.
    """
    if isinstance(folder.root, ShardPath):
        raise ShardError(f"{folder.root} is sharded already. Set data.root to the plain folder.")
    with ShardWriter(out, shard_mb) as writer:
        bases = list(
            dict.fromkeys(base for split in ("train", "test") for base in folder.bases(split))
        )
        for place in (folder.root, *bases):
            for path in sorted(
                path
                for path in place.iterdir()
                if path.suffix in (".txt", ".json") and path.is_file()
            ):
                name = path.relative_to(folder.root).as_posix()
                writer.add(name, {name: ("", path.read_bytes())})
        for base in bases:
            records: dict[str, dict[Path, str]] = {}
            for name, stem, suffixes in _places(folder):
                if (base / name).is_dir():
                    writer.folders.append((base / name).relative_to(folder.root).as_posix())
                    for path in sorted((base / name).iterdir()):
                        found = stem.fullmatch(path.stem)
                        if found and path.suffix.lower() in suffixes:
                            records.setdefault(found[1], {})[path] = (
                                f"{name}{found[2]}{path.suffix}"
                            )
            for id_, files in sorted(records.items()):
                key = f"{base.relative_to(folder.root).as_posix()}/{id_}"
                writer.add(key, {path.relative_to(folder.root).as_posix(): (rest, path.read_bytes())
                                 for path, rest in files.items()})  # fmt: skip
    return Shards(str(out))


def _places(folder: Folder) -> dict[tuple[str, re.Pattern, tuple[str, ...]], None]:
    """Folder names, their stems as patterns of id and rest, and suffixes: every place a reader may
    look in.
    """
    found = {}
    for part in folder.parts:
        for order in ("paired", "unpaired"):
            for place in folder.places(part, order):
                stem = re.sub(r"\{(person|garment)\}", "{}", place.stem, count=1)
                pattern = re.escape(stem).replace(r"\{\}", "(.+?)", 1)
                rest = re.sub(r"\\\{(person|garment)\\\}", ".+", pattern.partition("(.+?)")[2])
                found[place.folder, re.compile(f"(.+?)({rest})"), folder.parts[part].suffixes] = (
                    None
                )
    return found
