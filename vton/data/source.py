"""Where a data set lies: in a plain folder, in shards, or in parquet tables; paths read alike."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from vton.data.shards import INDEX, ShardPath, Shards
from vton.data.tables import TablePath, Tables, table_files

Source = Path | ShardPath | TablePath


def open_source(where: str, keep: str = "", columns: Sequence[str] = ()) -> Source:
    """The folder; its shards where `where` is a URL or has an index; tables where it has those.

    Reads no content yet. keep: the folder that keeps what is fetched from a URL; "" for the default
    one. columns: as for Tables.
    """
    if "://" in where or (Path(where) / INDEX).is_file():
        return ShardPath(Shards(where, keep), PurePosixPath())
    if table_files(Path(where)):
        return TablePath(Tables(where, columns), PurePosixPath())
    return Path(where)


def lexists(source: Source) -> bool:
    """Whether there is anything at this place, a link to nowhere included."""
    if isinstance(source, Path):
        return os.path.lexists(source)
    return source.is_dir() or source.is_file()


def case_differs(path: Source) -> str:
    """What lies at this path, or above it, under a name with other capitals, as a sentence.

    "" where the path exists or nothing has such a name. Only plain folders are searched: shards and
    tables are written under the known names.
    """
    if not isinstance(path, Path):
        return ""
    wanted = path
    while not lexists(wanted.parent):
        wanted = wanted.parent
    if lexists(wanted):
        return ""
    try:
        names = sorted(os.listdir(wanted.parent))
    except OSError:
        return ""
    for name in names:
        if name.casefold() == wanted.name.casefold():
            found = wanted.parent / name
            return (
                f"there is {found}, but its name is expected as {wanted.name}, with the same "
                "capital and small letters. Rename it."
            )
    return ""


def composed(name: str) -> str:
    """A name with letters and accents as one character each.

    macOS writes them apart into its archives, where a list typed elsewhere has them together.
    """
    return unicodedata.normalize("NFC", name)


def fingerprint(source: Source) -> Iterator[str]:
    """Lines that change with the source.

    Names, sizes and times of a folder's files, or the digest of shards. Links are followed, of
    files and of folders, but no folder is entered again inside itself. What may not be read, as a
    disk's lost+found, has a line that says so.
    """
    if isinstance(source, ShardPath):
        yield source.shards.digest
        return
    if isinstance(source, TablePath):
        yield from source.tables.columns
        yield from _files_of(str(source.tables.home), ())
        return
    yield from _files_of(str(source), ())


def _files_of(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Lines of a folder's files and of those below it. above: the real folders it lies in."""
    above = (*above, os.path.realpath(folder))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        yield f"{folder} unreadable\n"
        return
    for entry in entries:
        try:
            is_folder, status = entry.is_dir(), entry.stat()
        except PermissionError:
            yield f"{entry.path} unreadable\n"
            continue
        except OSError:  # a link to nowhere
            is_folder, status = False, entry.stat(follow_symlinks=False)
        if is_folder:
            if os.path.realpath(entry.path) not in above:
                yield from _files_of(entry.path, above)
            continue
        yield f"{entry.path} {status.st_size} {status.st_mtime_ns}\n"
