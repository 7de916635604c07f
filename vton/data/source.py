"""Where a data set lies: in a plain folder, or in shards, which are read through paths alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vton.data.shards import INDEX, ShardPath, Shards

Source = Path | ShardPath


def open_source(where: str, keep: str = "") -> Source:
    """The folder, or its shards where `where` is a URL or a folder with an index.

    Reads nothing yet. keep: the folder that keeps what is fetched from a URL; "" for the default
    one.
    """
    if "://" in where or (Path(where) / INDEX).is_file():
        return ShardPath(Shards(where, keep), PurePosixPath())
    return Path(where)


def lexists(source: Source) -> bool:
    """Whether there is anything at this place, a link to nowhere included."""
    if isinstance(source, Path):
        return os.path.lexists(source)
    return source.is_dir() or source.is_file()


def fingerprint(source: Source) -> Iterator[str]:
    """Lines that change with the source.

    Names, sizes and times of a folder's files, or the digest of shards.
    """
    if isinstance(source, ShardPath):
        yield source.shards.digest
        return
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            yield f"{path} {status.st_size} {status.st_mtime_ns}\n"
