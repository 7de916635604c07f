"""Paths of files that lie inside others, in shards or in tables."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Protocol, Self


class Store(Protocol):
    """What holds the files."""

    where: object  # the folder or URL that the store is read from
    folders: dict  # the names in each folder, by its path

    def read(self, path: str) -> bytes: ...


class InsidePath:
    """The part of pathlib.Path's interface that the readers of data sets use.

    A dataclass that extends it has `inside`, and names its store.
    """

    inside: PurePosixPath

    @property
    def store(self) -> Store:
        raise NotImplementedError(f"{type(self).__name__} names no store")

    def __truediv__(self, name: str) -> Self:
        return replace(self, inside=self.inside / name)

    def __str__(self) -> str:
        return f"{self.store.where}/{self._key}".rstrip("/")

    @property
    def _key(self) -> str:
        """The path as the store has it, "" for the root."""
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
    def parent(self) -> Self:
        return replace(self, inside=self.inside.parent)

    def is_dir(self) -> bool:
        return self._key in self.store.folders

    def iterdir(self) -> Iterator[Self]:
        """The files of a folder; folders inside it are not listed."""
        return (self / name for name in self.store.folders[self._key])

    def read_bytes(self) -> bytes:
        return self.store.read(self._key)

    def read_text(self, encoding: str) -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str) -> io.BytesIO:
        """For reading bytes only."""
        if mode != "rb":
            raise ValueError(f"{self} is read as bytes, not with mode {mode!r}")
        return io.BytesIO(self.read_bytes())
