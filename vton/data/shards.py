"""The shard format: a data set's files as WebDataset records in tar files, and an index of them.

A record is everything that belongs to one id, its files byte for byte as they were: consecutive
members of a tar file that share the part of their names before the first dot. The webdataset
library yields them as one sample. `shards.json` beside the tar files says where each file of the
folder lies: shard, offset, size and SHA-256. With it any file is one read away, so training keeps
its own order and resumes in the middle of an epoch as it does from a folder.

Shards are in a folder, or behind a URL that fsspec knows (s3://, gs://, https://, ...). Those
behind a URL are fetched whole when first needed, and kept. The digest of a file is checked whenever
it is read. Nothing here unpickles anything.

fsspec's reference filesystem (path -> URL, offset, length) does not replace the reader: forked
loader processes cannot read from it, and it neither keeps fetched shards nor checks digests.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import fsspec
from filelock import FileLock

from vton.data.inside import InsidePath
from vton.data.sample import DataError
from vton.errors import one_line
from vton.files import sync

INDEX = "shards.json"
FORMAT = "vton-shards-1"
SHARD_MB = 128  # of a shard, about 300 records of VITON-HD
BLOCK = tarfile.BLOCKSIZE


class ShardError(DataError):
    """Shards that cannot be used. The message names the shard or the index."""


class Location(NamedTuple):
    """Where a file is stored."""

    shard: int  # number in Contents.names
    offset: int  # bytes
    size: int  # bytes
    sha256: str

    @property
    def end(self) -> int:
        return self.offset + self.size


class Contents(NamedTuple):
    """The contents of an index."""

    names: list[tuple[str, int]]  # file name and size in bytes of each shard
    files: dict[str, Location]  # by path inside the folder
    folders: dict[str, list[str]]  # names of the files in every folder, "" for the root
    digest: str  # SHA-256 of the index, and so of everything stored


class Shards:
    """The files of one sharded folder.

    They are opened when first read, and can be sent to loader processes.

    where: the folder or URL that holds the index
    keep: the folder for what is fetched from a URL; "" for the default one
    """

    def __init__(self, where: str, keep: str = ""):
        self.where = str(where).rstrip("/")
        self.keep = keep
        self.remote = "://" in self.where
        self._handles: dict[int, io.FileIO] = {}

    def __getstate__(self) -> dict:
        """The state without open files and the index, which a spawned process reads again."""
        return {"where": self.where, "keep": self.keep, "remote": self.remote, "_handles": {}}

    def __eq__(self, other) -> bool:
        return isinstance(other, Shards) and self.where == other.where

    def __hash__(self) -> int:
        return hash(self.where)

    @property
    def names(self) -> list[tuple[str, int]]:
        """File name and size in bytes of each shard."""
        return self._contents.names

    @property
    def files(self) -> dict[str, Location]:
        """Every file by its path inside the folder."""
        return self._contents.files

    @property
    def folders(self) -> dict[str, list[str]]:
        """Names of the files in every folder, "" for the root."""
        return self._contents.folders

    @property
    def digest(self) -> str:
        """SHA-256 of the index, and so of everything stored."""
        return self._contents.digest

    def read(self, path: str) -> bytes:
        """A file's bytes.

        Raises FileNotFoundError, and ShardError for a missing, cut or changed shard.
        """
        location = self.files.get(path)
        if location is None:
            raise FileNotFoundError(f"{self.where} holds no {path}")
        handle = self._handle(location.shard)
        content = os.pread(handle.fileno(), location.size, location.offset)
        if hashlib.sha256(content).hexdigest() != location.sha256:
            problem = f"does not hold {path} as it was written: its digest differs"
            raise self._error(location.shard, problem)
        return content

    @cached_property
    def _contents(self) -> Contents:
        path = f"{self.where}/{INDEX}"
        try:
            with fsspec.open(path, "rb") as file:
                index = file.read()
        except Exception as error:  # aiohttp's and botocore's errors are no OSError
            raise ShardError(
                f"no shards at {self.where}: {path} cannot be read ({one_line(error)})."
            ) from None
        try:
            return _parsed(index)
        except KeyError as error:
            problem = f"no {error}"
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            problem = str(error)
        raise ShardError(f"{path} is no index of shards: {problem}. Write the shards again.")

    def _handle(self, shard: int) -> io.FileIO:
        """The open shard. Reads give their offset, so that forked processes can share it."""
        if shard not in self._handles:
            path = self._local(shard)
            try:
                self._require_size(shard, path.stat().st_size)
                self._handles[shard] = io.FileIO(path)
            except FileNotFoundError:
                raise self._error(shard, "is missing") from None
            except OSError as error:
                raise self._error(shard, one_line(error)) from None
        return self._handles[shard]

    def _local(self, shard: int) -> Path:
        """The shard's file on this machine; fetched first if it is not there yet."""
        name, _ = self.names[shard]
        if not self.remote:
            return Path(self.where) / name
        source = hashlib.sha256(f"{self.where} {self.digest}".encode()).hexdigest()[:16]
        folder = kept_folder(self.keep) / source
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        with FileLock(folder / f".{name}.lock"):  # one of several loader processes fetches
            if not path.exists():
                self._fetch(shard, path)
        return path

    def _fetch(self, shard: int, path: Path) -> None:
        """Fetch a shard from its URL to `path`, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            system, there = fsspec.core.url_to_fs(f"{self.where}/{path.name}")
            system.get_file(there, str(partial))
            sync(partial)
        except Exception as error:  # as for the index
            raise self._error(shard, f"cannot be fetched ({one_line(error)})") from None
        self._require_size(shard, partial.stat().st_size)
        os.replace(partial, path)

    def _require_size(self, shard: int, size: int) -> None:
        _, expected = self.names[shard]
        if size != expected:
            raise self._error(shard, f"has {size:,} bytes, the index says {expected:,}")

    def _error(self, shard: int, problem: str) -> ShardError:
        name, _ = self.names[shard]
        message = f"shard {self.where}/{name} {problem}. Copy it again or write the shards anew."
        if self.remote:
            folder = kept_folder(self.keep)
            message += f" Fetched shards lie in {folder}; remove them to fetch again."
        return ShardError(message)


@lru_cache(maxsize=2)
def _parsed(index: bytes) -> Contents:
    """The contents of an index.

    They are cached, because a run opens its data several times and the index of DressCode has 50
    MB. Raises ValueError, KeyError, TypeError or AttributeError for bytes that are no index.
    """
    content = json.loads(index)
    if content["format"] != FORMAT:
        raise ValueError(f"format is {content['format']!r}, expected {FORMAT!r}")
    names = [(str(name), int(size)) for name, size in content["shards"]]
    if any(Path(name).name != name for name, _ in names):
        raise ValueError("it names shards outside its own folder")
    folders: dict[str, list[str]] = {"": []}
    for folder in content["folders"]:
        while folder:  # and the folders around it
            folders.setdefault(folder, [])
            folder = folder.rpartition("/")[0]
    files = {}
    for path, fields in content["files"].items():
        location = Location(*fields)
        if not 0 <= location.shard < len(names):
            raise ValueError(f"{path} lies outside its shards")
        _, size = names[location.shard]
        if not 0 <= location.offset <= location.end <= size:
            raise ValueError(f"{path} lies outside its shards")
        files[path] = location
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    return Contents(names, files, folders, hashlib.sha256(index).hexdigest())


def kept_folder(keep: str) -> Path:
    """Where shards from URLs are kept: `keep`, or ~/.cache/vton/shards."""
    if keep:
        return Path(keep).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "vton" / "shards"


@dataclass(frozen=True)
class ShardPath(InsidePath):
    """A file or folder in shards."""

    shards: Shards
    inside: PurePosixPath

    @property
    def store(self) -> Shards:
        return self.shards

    def is_file(self) -> bool:
        return self._key in self.shards.files


class ShardWriter:
    """Writes records into `shard-00000.tar`, ... of about `shard_mb` MB, and then their index.

    A context manager. Everything is written beside `out`, synced, and renamed when complete, so
    `out` is never half written, whenever the process dies; the next writer restores or removes what
    a dead one left. If two write the same folder, the second waits for the first. The same records
    give the same bytes.

    replaceable: pattern of the files that may be replaced. If `out` holds shards of such files and
        nothing else, they are replaced. Otherwise ShardError is raised, on entry and again before
        the replacement.
    """

    def __init__(
        self, out: Path, shard_mb: float = SHARD_MB, replaceable: re.Pattern | None = None
    ):
        self.out = out.resolve()
        self.partial = self.out.with_name(f".{self.out.name}.partial")
        self.former = self.out.with_name(f".{self.out.name}.former")
        self.limit = int(shard_mb * 1e6)
        self.replaceable = replaceable
        self.shards: list[tuple[str, int]] = []
        self.files: dict[str, Location] = {}
        self.folders: list[str] = []
        self._tar: tarfile.TarFile | None = None

    def add(self, key: str, files: dict[str, tuple[str, bytes]]) -> None:
        """Write one record.

        key: its name
        files: path in the folder -> rest of the tar member's name behind the key, and content

        Raises ShardError for a dot in the name of a record: WebDataset ends names there.
        """
        if "." in key.rpartition("/")[2] and any(rest for rest, _ in files.values()):
            path = next(iter(files))
            raise ShardError(
                f"{path}: its id has a dot, at which readers of WebDataset cut it. Rename it."
            )
        size = sum(2 * BLOCK + len(content) for _, content in files.values())
        if self._tar is None or (self._tar.offset and self._tar.offset + size > self.limit):
            self._next_shard()
        for path, (rest, content) in files.items():
            self._add_member(f"{key}.{rest}" if rest else key, path, content)

    def _add_member(self, name: str, path: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        blocks = -(-len(content) // BLOCK)  # the content is padded to whole blocks
        offset = self._tar.offset - blocks * BLOCK
        digest = hashlib.sha256(content).hexdigest()
        self.files[path] = Location(len(self.shards), offset, len(content), digest)

    def _next_shard(self) -> None:
        self._close_shard()
        self._tar = tarfile.TarFile(self.partial / f"shard-{len(self.shards):05d}.tar", "w")

    def _close_shard(self) -> None:
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
            self._close_shard()
            if kind is None:
                self._finish()

    def _clean(self) -> None:
        """Undo what a writer began and did not finish: this one, or one that died."""
        if self.former.exists() and not self.out.exists():
            self.former.rename(self.out)
        shutil.rmtree(self.partial, ignore_errors=True)
        shutil.rmtree(self.former, ignore_errors=True)

    def _finish(self) -> None:
        """Write the index and put everything in the place of `out`."""
        folders = set(self.folders)
        for path in self.files:
            folders.add(path.rpartition("/")[0])
        index = {
            "format": FORMAT,
            "shards": self.shards,
            "folders": sorted(folders),
            "files": self.files,
        }
        (self.partial / INDEX).write_text(json.dumps(index, separators=(",", ":")))
        sync(self.partial / INDEX)
        sync(self.partial)
        self._require_replaceable()
        if self.out.exists():
            self.out.rename(self.former)
        self.partial.rename(self.out)
        sync(self.out.parent)

    def _require_replaceable(self) -> None:
        """Raise ShardError unless `out` is absent, an empty folder, or only replaceable shards."""
        if not self.out.exists():
            return
        if self.out.is_dir() and not os.listdir(self.out):
            return
        if self.replaceable is None:
            raise ShardError(
                f"{self.out} exists. Choose another folder, or remove it to write the shards again."
            )
        if not self._only_replaceable():
            raise ShardError(
                f"{self.out} holds other files than shards of this kind, which nothing here may "
                "delete. Choose another folder, or an empty one."
            )

    def _only_replaceable(self) -> bool:
        """Whether `out` holds shards whose files may all be replaced, and nothing else."""
        names = set(os.listdir(self.out)) if self.out.is_dir() else set()
        if INDEX not in names:
            return False
        stored = Shards(str(self.out))
        known = {INDEX, *(name for name, _ in stored.names)}
        return names <= known and all(map(self.replaceable.fullmatch, stored.files))
