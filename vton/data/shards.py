"""Sharded storage: a data set's files as WebDataset records in tar shards, read by the same code as
a plain folder.

A record is everything that belongs to one id, its files byte for byte as they were: consecutive
members of a tar shard that share the part of their names before the first dot, which is what the
webdataset library yields as one sample. `shards.json` beside them says where each file of the
folder lies: shard, offset, size and SHA-256. With it any file is one read away, so training keeps
its own order and resumes in the middle of an epoch as it does from a folder.

The shards lie in a folder or behind a URL that fsspec knows (s3://, gs://, https://, ...), from
which each is fetched when first needed, and kept. Every file's digest is checked on every reading.
Nothing here unpickles anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import fsspec
from filelock import FileLock

from vton.data.sample import DataError
from vton.errors import one_line
from vton.files import sync

INDEX = "shards.json"
FORMAT = "vton-shards-1"
SHARD_MB = 128  # of a shard, about 300 records of VITON-HD
BLOCK = tarfile.BLOCKSIZE


class ShardError(DataError):
    """Shards that cannot be used; the message names the shard or the index."""


class Entry(NamedTuple):
    """Where one file lies."""

    shard: int
    offset: int  # bytes
    size: int  # bytes
    sha256: str

    @property
    def end(self) -> int:
        return self.offset + self.size


class Contents(NamedTuple):
    """An index as the attributes of Shards give it."""

    names: list[tuple[str, int]]
    files: dict[str, Entry]
    folders: dict[str, list[str]]
    digest: str


@lru_cache(maxsize=2)
def _parsed(index: bytes) -> Contents:
    """An index, kept because a run opens its data several times and DressCode's has 50 MB.

    Raises ValueError, KeyError, TypeError or AttributeError for anything else.
    """
    content = json.loads(index)
    if content["format"] != FORMAT:
        raise ValueError(f"format is {content['format']!r}, expected {FORMAT!r}")
    names = [(str(name), int(size)) for name, size in content["shards"]]
    if any(Path(name).name != name for name, _ in names):
        raise ValueError("it names shards outside its own folder")
    files = {path: Entry(*entry) for path, entry in content["files"].items()}
    folders: dict[str, list[str]] = {"": []}
    for folder in content["folders"]:
        for parent in (folder, *map(str, PurePosixPath(folder).parents)):
            folders.setdefault("" if parent == "." else parent, [])
    for path, entry in files.items():
        if not (
            0 <= entry.shard < len(names)
            and 0 <= entry.offset <= entry.end <= names[entry.shard][1]
        ):
            raise ValueError(f"{path} lies outside its shards")
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    return Contents(names, files, folders, hashlib.sha256(index).hexdigest())


class Shards:
    """The files of one sharded folder. Opened lazily; goes along to loader processes.

    where: the folder or URL that holds the index. keep: the folder for what is fetched from a URL.
    """

    def __init__(self, where: str, keep: str = ""):
        self.where, self.keep = str(where).rstrip("/"), keep
        self.remote = "://" in self.where
        self._handles: dict[int, io.FileIO] = {}

    def __getstate__(self) -> dict:
        return {
            "where": self.where,
            "keep": self.keep,
            "remote": self.remote,
            "_handles": {},
        }  # spawned ones read anew

    def __eq__(self, other) -> bool:
        return isinstance(other, Shards) and self.where == other.where

    def __hash__(self) -> int:
        return hash(self.where)

    @cached_property
    def _contents(self) -> Contents:
        path = f"{self.where}/{INDEX}"
        try:
            with fsspec.open(path, "rb") as file:
                index = file.read()
        except (
            Exception
        ) as error:  # each file system has its own: aiohttp's and botocore's are no OSError
            raise ShardError(
                f"no shards at {self.where}: {path} cannot be read ({one_line(error)})."
            ) from None
        try:
            return _parsed(index)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ShardError(
                f"{path} is no index of shards: {problem}. Write the shards again."
            ) from None

    @property
    def digest(self) -> str:
        """SHA-256 of the index, and so of everything stored."""
        return self._contents.digest

    @property
    def names(self) -> list[tuple[str, int]]:
        """File name and size in bytes of each shard."""
        return self._contents.names

    @property
    def files(self) -> dict[str, Entry]:
        """Every file by its path inside the folder."""
        return self._contents.files

    @property
    def folders(self) -> dict[str, list[str]]:
        """Names of the files in every folder, "" for the root."""
        return self._contents.folders

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError, and ShardError for a missing, cut or changed
        shard.
        """
        entry = self.files.get(path)
        if entry is None:
            raise FileNotFoundError(f"{self.where} holds no {path}")
        content = os.pread(self._handle(entry.shard).fileno(), entry.size, entry.offset)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise self._error(
                entry.shard, f"does not hold {path} as it was written: its digest differs"
            )
        return content

    def _handle(self, shard: int) -> io.FileIO:
        """The open shard. Reads give their offset, so that forked processes can share it."""
        if shard not in self._handles:
            path = self._local(shard)
            try:
                self._require_size(shard, path.stat().st_size)
                self._handles[shard] = open(path, "rb", buffering=0)
            except OSError as error:
                raise self._error(
                    shard, "is missing" if not path.exists() else one_line(error)
                ) from None
        return self._handles[shard]

    def _local(self, shard: int) -> Path:
        """The shard on this machine, fetched where it is not."""
        name = self.names[shard][0]
        if not self.remote:
            return Path(self.where) / name
        folder = (
            kept_folder(self.keep)
            / hashlib.sha256(f"{self.where} {self.digest}".encode()).hexdigest()[:16]
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        with FileLock(folder / f".{name}.lock"):  # of several loader processes one fetches
            if not path.exists():
                partial = folder / f".{name}.partial"
                try:
                    system, there = fsspec.core.url_to_fs(f"{self.where}/{name}")
                    system.get_file(there, str(partial))
                    sync(partial)
                except Exception as error:  # as of the index
                    raise self._error(shard, f"cannot be fetched ({one_line(error)})") from None
                self._require_size(shard, partial.stat().st_size)
                os.replace(partial, path)
        return path

    def _require_size(self, shard: int, found: int) -> None:
        if found != (size := self.names[shard][1]):
            raise self._error(shard, f"has {found:,} bytes, the index says {size:,}")

    def _error(self, shard: int, problem: str) -> ShardError:
        name = self.names[shard][0]
        kept = (
            f" Fetched shards lie in {kept_folder(self.keep)}; remove them to fetch again."
            if self.remote
            else ""
        )
        return ShardError(
            f"shard {self.where}/{name} {problem}. Copy it again or write the shards anew.{kept}"
        )


@dataclass(frozen=True)
class ShardPath:
    """A file or folder in shards, with as much of pathlib.Path as the readers of data sets use."""

    shards: Shards
    inside: PurePosixPath

    def __truediv__(self, name: str) -> ShardPath:
        return ShardPath(self.shards, self.inside / name)

    def __str__(self) -> str:
        return f"{self.shards.where}/{self._key}".rstrip("/")

    @property
    def _key(self) -> str:
        return "" if self.inside == PurePosixPath() else str(self.inside)

    @property
    def name(self) -> str:
        return self.inside.name

    @property
    def stem(self) -> str:
        return self.inside.stem

    @property
    def suffix(self) -> str:
        return self.inside.suffix

    @property
    def parent(self) -> ShardPath:
        return ShardPath(self.shards, self.inside.parent)

    def is_dir(self) -> bool:
        return self._key in self.shards.folders

    def is_file(self) -> bool:
        return self._key in self.shards.files

    def iterdir(self) -> Iterator[ShardPath]:
        """The files of a folder; folders inside it are not listed."""
        return (self / name for name in self.shards.folders[self._key])

    def read_bytes(self) -> bytes:
        return self.shards.read(self._key)

    def read_text(self, encoding: str) -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str) -> io.BytesIO:
        """For reading bytes only."""
        if mode != "rb":
            raise ValueError(f"shards are read as bytes, not with mode {mode!r}")
        return io.BytesIO(self.read_bytes())


Source = Path | ShardPath  # where a data set lies


def stands(source: Source) -> bool:
    """Whether anything is in this place, be it a link to nowhere."""
    return (
        os.path.lexists(source) if isinstance(source, Path) else source.is_dir() or source.is_file()
    )


def open_source(where: str, keep: str = "") -> Source:
    """The folder, or its shards where `where` is a URL or a folder with an index. Reads nothing
    yet.
    """
    if "://" in where or (Path(where) / INDEX).is_file():
        return ShardPath(Shards(where, keep), PurePosixPath())
    return Path(where)


def fingerprint(source: Source) -> Iterator[str]:
    """Lines that change with the source: names, sizes and times of a folder's files, or the digest
    of shards.
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


def kept_folder(keep: str) -> Path:
    """Where shards from URLs are kept: `keep`, or ~/.cache/vton/shards."""
    if keep:
        return Path(keep).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vton" / "shards"


class ShardWriter:
    """Writes records into `shard-00000.tar`, ... of about `shard_mb` MB, and their index at the
    end.

    A context manager. Everything is written beside `out`, synced, and takes its name when complete,
    so that `out` is never half written, whenever the process dies: the next writer restores or
    removes what it left. Of two that write one folder the second waits for the first. The same
    records give the same bytes.

    replaceable: paths of files whose shards, where `out` holds nothing else, are replaced. Raises
    ShardError where `out` holds anything that is not replaceable, on entry and again before it
    would be replaced.
    """

    def __init__(
        self, out: Path, shard_mb: float = SHARD_MB, replaceable: re.Pattern | None = None
    ):
        self.out, self.limit, self.replaceable = out.resolve(), int(shard_mb * 1e6), replaceable
        self.partial, self.former = (
            self.out.with_name(f".{self.out.name}.{part}") for part in ("partial", "former")
        )
        self.shards: list[tuple[str, int]] = []
        self.files: dict[str, Entry] = {}
        self.folders: list[str] = []
        self._tar: tarfile.TarFile | None = None

    def add(self, key: str, files: dict[str, tuple[str, bytes]]) -> None:
        """One record. key: its name; files: by path in the folder, the rest of the member's name
        and the content.

        Raises ShardError for a dot in the name of a record: WebDataset ends names there.
        """
        if "." in key.rpartition("/")[2] and any(rest for rest, _ in files.values()):
            raise ShardError(
                f"{next(iter(files))}: its id has a dot, at which readers of WebDataset cut it. Rename it."
            )
        size = sum(2 * BLOCK + len(content) for _, content in files.values())
        if self._tar is None or (self._tar.offset and self._tar.offset + size > self.limit):
            self._next()
        for path, (rest, content) in files.items():
            member = tarfile.TarInfo(f"{key}.{rest}" if rest else key)
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
            offset = self._tar.offset - -(-len(content) // BLOCK) * BLOCK
            self.files[path] = Entry(
                len(self.shards), offset, len(content), hashlib.sha256(content).hexdigest()
            )

    def _next(self) -> None:
        self._close()
        self._tar = tarfile.open(self.partial / f"shard-{len(self.shards):05d}.tar", "w")

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            path = Path(self._tar.name)
            sync(path)
            self.shards.append((path.name, path.stat().st_size))
            self._tar = None

    def __enter__(self) -> ShardWriter:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(FileLock(self.out.with_name(f".{self.out.name}.lock")))
            self._clean()
            self._require_replaceable()
            self.partial.mkdir()
            stack.callback(self._clean)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._leave:
            self._close()
            if kind is None:
                self._finish()

    def _clean(self) -> None:
        """Undo what a writer began and did not finish: this one, or under the lock a dead one."""
        if self.former.exists() and not self.out.exists():
            self.former.rename(self.out)
        for folder in (self.partial, self.former):
            shutil.rmtree(folder, ignore_errors=True)

    def _require_replaceable(self) -> None:
        """Raise ShardError unless `out` is absent, an empty folder, or replaceable shards and
        nothing else.
        """
        if not self.out.exists():
            return
        names = set(os.listdir(self.out)) if self.out.is_dir() else {self.out.name}
        if names and self.replaceable is None:
            raise ShardError(
                f"{self.out} exists. Choose another folder, or remove it to write the shards again."
            )
        stored = Shards(str(self.out)) if INDEX in names else None
        if names and not (
            stored
            and names <= {INDEX, *(name for name, _ in stored.names)}
            and all(self.replaceable.fullmatch(path) for path in stored.files)
        ):
            raise ShardError(
                f"{self.out} holds other files than shards of this kind, which nothing here may delete. Choose another "
                "folder, or an empty one."
            )

    def _finish(self) -> None:
        folders = sorted({*self.folders, *(path.rpartition("/")[0] for path in self.files)})
        index = {"format": FORMAT, "shards": self.shards, "folders": folders, "files": self.files}
        (self.partial / INDEX).write_text(json.dumps(index, separators=(",", ":")))
        sync(self.partial / INDEX)
        sync(self.partial)
        self._require_replaceable()
        if self.out.exists():
            self.out.rename(self.former)
        self.partial.rename(self.out)
        sync(self.out.parent)
