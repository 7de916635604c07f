"""Parquet tables, as the Hub's `datasets` library stores them, read in place.

A table of try-on pairs has a row for each person and columns of pictures, structs of bytes and path
or plain bytes. Seen through TablePath it is a folder in VITON-HD's layout: nothing is unpacked. A
cell is found by its row group, of which the last few columns read stay in memory; for training at
random places `vton data convert` writes a table as files or shards, which are quicker.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vton.data.inside import InsidePath
from vton.data.sample import DataError
from vton.errors import one_line

SUFFIX = ".parquet"
KEPT_COLUMNS = 16  # of row groups, in memory
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
DESCRIPTIONS = "image_descriptions.txt"


class Column(NamedTuple):
    """Where a part of a sample lies in VITON-HD's layout, and the known names of its column."""

    folder: str
    stem: str  # {} = the row's id
    suffix: str  # "" = that of the pictures in it
    names: tuple[str, ...]


COLUMNS = {
    "person": Column("image", "{}", "", ("image", "person", "model")),
    "garment": Column("cloth", "{}", "", ("cloth", "garment", "clothing")),
    "garment_mask": Column("cloth-mask", "{}", "", ("cloth-mask", "cloth_mask", "garment_mask")),
    "parse": Column(
        "image-parse-v3", "{}", ".png", ("image-parse-v3", "image_parse_v3", "image-parse", "parse")
    ),
    "keypoints": Column(
        "openpose_json", "{}_keypoints", ".json", ("openpose_json", "openpose-json", "keypoints")
    ),
    "agnostic_mask": Column(
        "agnostic-mask", "{}_mask", "", ("agnostic-mask", "agnostic_mask", "mask")
    ),
    "densepose": Column(
        "image-densepose", "{}", "", ("image-densepose", "image_densepose", "densepose", "dense")
    ),
    "warped_garment": Column("cloth-warp", "{}", "", ("cloth-warp", "cloth_warp")),
    "warped_mask": Column("cloth-warp-mask", "{}", "", ("cloth-warp-mask", "cloth_warp_mask")),
    "person_other": Column(
        "person-other", "{}", "", ("person-other", "person_other", "image_synthesis")
    ),
}
# Columns of text about a row.
TEXTS = {
    "id": ("id", "person_id", "file_name", "name"),
    "unpaired_garment": ("unpaired_garment", "unpaired_id"),
    "caption": ("caption", "text", "description"),
}
SPLITS = ("train", "test")
# Folders of plain data sets; a stray table beside them is none of theirs.
PLAIN = (
    *("train/image", "test/image"),
    *("upper_body/images", "lower_body/images", "dresses/images"),
)


@dataclass(frozen=True)
class Row:
    """Where a row lies."""

    file: int
    group: int
    place: int  # in its group


class Split(NamedTuple):
    """The rows of a split by id, in the table's order, and what is said of each."""

    rows: dict[str, Row]
    unpaired: dict[str, str]
    captions: dict[str, str]


class Tables:
    """The parquet files of one folder, or a single one. Can be sent to loader processes.

    columns: `part=column` of what the known names do not say, and `train=split` or `test=split`
    where the files name their splits otherwise.
    """

    def __init__(self, where: str, columns: Sequence[str] = ()):
        self.where = str(where).rstrip("/")
        self.columns = tuple(columns)
        self._open: dict[str, Any] = {}
        self._cells: OrderedDict[tuple, Any] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict:
        return {"where": self.where, "columns": self.columns}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["where"], state["columns"])

    def __eq__(self, other) -> bool:
        mine = (self.where, self.columns)
        return isinstance(other, Tables) and mine == (other.where, other.columns)

    def __hash__(self) -> int:
        return hash((self.where, self.columns))

    @property
    def home(self) -> Path:
        """The folder around the files, in which pair lists may lie."""
        where = Path(self.where)
        return where.parent if where.is_file() else where

    @cached_property
    def files(self) -> list[Path]:
        return table_files(Path(self.where))

    @cached_property
    def chosen(self) -> dict[str, str]:
        """What data.columns says. Raises DataError for an entry of another form."""
        known = (*COLUMNS, *TEXTS, *SPLITS)
        chosen = {}
        for entry in self.columns:
            part, _, column = entry.partition("=")
            if part not in known or not column:
                raise DataError(
                    f"data.columns: {entry!r} is not part=column; parts are {', '.join(known)}."
                )
            chosen[part] = column
        return chosen

    @cached_property
    def names(self) -> dict[str, str]:
        """The column of each part and text that the tables have. Raises DataError."""
        of_file = [self._file(number).schema_arrow.names for number in range(len(self.files))]
        there = list(dict.fromkeys(name for names in of_file for name in names))
        found = {}
        known = {part: column.names for part, column in COLUMNS.items()} | TEXTS
        for part, names in known.items():
            if part in self.chosen:
                names = (self.chosen[part],)
                if names[0] not in there:
                    raise DataError(
                        f"data.columns: {self.files[0]} has no column {names[0]!r}; it has "
                        f"{', '.join(there)}."
                    )
            for name in names:
                if name in there and name not in found.values():
                    found[part] = name
                    break
        needed = {name for part, name in found.items() if part in COLUMNS}
        for file, names in zip(self.files, of_file, strict=True):
            lacking = needed - set(names)
            if lacking:
                raise DataError(f"{file} lacks columns that others have: {', '.join(lacking)}.")
        return found

    @cached_property
    def splits(self) -> dict[str, Split]:
        """Raises DataError where ids recur."""
        splits = {split: Split({}, {}, {}) for split in SPLITS}
        by_name = {self.chosen.get(split, split): split for split in SPLITS}
        for number, file in enumerate(self.files):
            split = by_name.get(split_of(file, Path(self.where)))
            if split is not None:
                self._add_rows(splits[split], number)
        return {split: found for split, found in splits.items() if found.rows}

    def _add_rows(self, split: Split, number: int) -> None:
        names = self.names
        if "person" not in names:
            raise DataError(
                f"{self.files[number]} has no column of persons (image). Name it: "
                "data.columns=[person=COLUMN]."
            )
        file = self._file(number)
        for group in range(file.num_row_groups):
            ids = self._texts(number, group, "id")
            others = self._texts(number, group, "unpaired_garment")
            captions = self._texts(number, group, "caption")
            if ids is None:
                ids = self._paths(number, group)
            for place in range(file.metadata.row_group(group).num_rows):
                stored = ids[place] if ids else None
                id_ = _id(stored) if stored else f"{len(split.rows):05d}_00"
                if id_ in split.rows:
                    raise DataError(
                        f"{self.files[number]}: two rows are called {id_}. Name a column of ids "
                        "that differ: data.columns=[id=COLUMN]."
                    )
                split.rows[id_] = Row(number, group, place)
                if others and others[place]:
                    split.unpaired[id_] = _id(others[place])
                caption = (captions[place] or "").split() if captions else []
                if caption:
                    split.captions[id_] = " ".join(caption)

    def _texts(self, number: int, group: int, part: str) -> list[str | None] | None:
        """The texts of a column, None where the file lacks it; of several captions the first.

        Raises DataError for values that are neither text nor whole numbers.
        """
        name = self.names.get(part)
        if name is None or name not in self._file(number).schema_arrow.names:
            return None
        with self._readable(number, group, name):
            column = self._file(number).read_row_group(group, columns=[name]).column(0)
            values = column.to_pylist()
        texts = []
        for value in values:
            if part == "caption" and isinstance(value, list):
                value = value[0] if value else None
            if isinstance(value, bytes):
                with self._readable(number, group, name):
                    value = value.decode()
            if isinstance(value, bool) or not isinstance(value, str | int | None):
                raise DataError(
                    f"{self.files[number]}: column {name} holds {column.type}, not text. Name "
                    f"another column, data.columns=[{part}=COLUMN], or store text."
                )
            texts.append(None if value is None else str(value))
        return texts

    @contextmanager
    def _readable(self, number: int, group: int, name: str) -> Iterator[None]:
        """Turns what pyarrow raises for damaged columns into DataError."""
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.files[number]}: column {name} cannot be read in row group {group} "
                f"({one_line(error)[:160]}). Copy the file again."
            ) from None

    def _paths(self, number: int, group: int) -> list[str] | None:
        """The file names that the persons' pictures had, None unless each has one of its own."""
        leaf = f"{self.names['person']}.path"
        with self._readable(number, group, leaf):
            columns = self._file(number).read_row_group(group, columns=[leaf])
            if columns.num_columns == 0:
                return None
            paths = [value and value.get("path") for value in columns.column(0).to_pylist()]
        ids = {_id(path) for path in paths if path}
        return paths if len(ids) == len(paths) else None

    def cell(self, part: str, row: Row) -> bytes:
        """The content of a file. Raises DataError for cells that hold none."""
        name = self.names[part]
        key = (row.file, row.group, name)
        self._forget_after_fork()
        if key not in self._cells:
            with self._readable(row.file, row.group, name):
                table = self._file(row.file).read_row_group(row.group, columns=[name])
            self._cells[key] = table.column(0)
            if len(self._cells) > KEPT_COLUMNS:
                self._cells.popitem(last=False)
        self._cells.move_to_end(key)
        with self._readable(row.file, row.group, name):
            value = self._cells[key][row.place].as_py()
        if isinstance(value, Mapping) and "bytes" in value:
            value = value["bytes"]
        if isinstance(value, str):
            value = value.encode()
        if not isinstance(value, bytes):
            raise DataError(
                f"{self.files[row.file]}: column {name} holds {type(value).__name__} in row "
                f"{row.place} of group {row.group}, not the bytes of a file."
            )
        return value

    @cached_property
    def suffixes(self) -> dict[str, str]:
        """Suffix of the files of each part, by their first one."""
        suffixes = {}
        for part, column in COLUMNS.items():
            if part in self.names:
                suffixes[part] = column.suffix or self._suffix_of_first(part)
        return suffixes

    def _suffix_of_first(self, part: str) -> str:
        for split in self.splits.values():
            head = self.cell(part, next(iter(split.rows.values())))[:4]
            return ".png" if head == b"\x89PNG" else ".jpg"
        return ".jpg"

    @cached_property
    def folders(self) -> dict[str, dict[str, tuple[str, Row]]]:
        """Part and row of every file, by folder and name."""
        folders: dict[str, dict[str, tuple[str, Row]]] = {"": {}}
        for split, found in self.splits.items():
            folders[split] = {}
            for part, suffix in self.suffixes.items():
                column = COLUMNS[part]
                files = {}
                for id_, row in found.rows.items():
                    files[column.stem.format(id_) + suffix] = part, row
                folders[f"{split}/{column.folder}"] = files
        return folders

    @cached_property
    def texts(self) -> dict[str, str]:
        """Pair lists and captions, by their paths."""
        texts = {}
        for split, found in self.splits.items():
            rows = [(f"{id_}.jpg", f"{found.unpaired.get(id_, id_)}.jpg") for id_ in found.rows]
            texts[f"{split}_pairs.txt"] = "".join(pair_line(*row) for row in rows)
            if found.captions:
                lines = [caption_line(f"{id_}.jpg", said) for id_, said in found.captions.items()]
                texts[f"{split}/{DESCRIPTIONS}"] = "".join(lines)
        return texts

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError and DataError."""
        beside = self.home / path
        if beside.is_file():
            return beside.read_bytes()
        if path in self.texts:
            return self.texts[path].encode()
        folder, _, name = path.rpartition("/")
        found = self.folders.get(folder, {}).get(name)
        if found is None:
            raise FileNotFoundError(f"{self.where} holds no {path}")
        return self.cell(*found)

    def _file(self, number: int):
        """An open parquet file. Raises DataError for what is none."""
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise DataError(
                f"{self.where} holds parquet tables, which need pyarrow: "
                "pip install 'vton[parquet]'."
            ) from None
        self._forget_after_fork()
        path = str(self.files[number])
        if path not in self._open:
            try:
                self._open[path] = ParquetFile(path, memory_map=True)
            except (ArrowException, OSError) as error:
                raise DataError(
                    f"{path} is no readable parquet file ({one_line(error)[:160]}). Copy it again."
                ) from None
        return self._open[path]

    def _forget_after_fork(self) -> None:
        """Open files and cells belong to the process that made them."""
        if self._process != os.getpid():
            self._open, self._cells, self._process = {}, OrderedDict(), os.getpid()


def _id(name: str) -> str:
    """A file's name without its folders and a picture's suffix; other dots belong to the id."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in PICTURES else path.name


def pair_line(*columns: str, separator: str = " ") -> str:
    """A line of a pair list; with tabs where a name holds a blank, which would cut it."""
    cut = any(len(column.split()) != 1 for column in columns)
    return ("\t" if cut else separator).join(columns) + "\n"


def caption_line(name: str, caption: str) -> str:
    """A line of a list of descriptions; with a tab behind a name that holds a blank."""
    return f"{name}: {caption}\n" if len(name.split()) == 1 else f"{name}\t{caption}\n"


def table_files(where: Path) -> list[Path]:
    """The parquet files at a place: itself, or those in the folder or in `data` below it."""
    if where.is_file() and where.suffix == SUFFIX:
        return [where]
    if not where.is_dir() or any((where / folder).is_dir() for folder in PLAIN):
        return []
    for folder in (where, where / "data"):
        found = _visible(folder.glob(f"*{SUFFIX}")) or _visible(folder.glob(f"*/*{SUFFIX}"))
        if found:
            return found
    return []


def _visible(files: Iterable[Path]) -> list[Path]:
    """Sorted, without the hidden files that macOS puts beside others."""
    return sorted(path for path in files if not path.name.startswith("."))


def split_of(file: Path, where: Path) -> str:
    """The split of a file: train-00000-of-00008-..., or a folder of that name."""
    if file.parent not in (where, where / "data") and file != where:
        return file.parent.name
    return file.stem.partition("-")[0]


@dataclass(frozen=True)
class TablePath(InsidePath):
    """A file or folder in tables."""

    tables: Tables
    inside: PurePosixPath

    @property
    def store(self) -> Tables:
        return self.tables

    def is_file(self) -> bool:
        folder, _, name = self._key.rpartition("/")
        in_table = name in self.tables.folders.get(folder, {})
        return (
            in_table or self._key in self.tables.texts or (self.tables.home / self._key).is_file()
        )
