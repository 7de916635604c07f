"""Parquet tables, as the Hub's `datasets` library stores them, read in place.

A table of try-on pairs has a row for each person, and columns of pictures: structs of bytes and
path, or plain bytes. Through TablePath it looks like a folder in VITON-HD's layout; nothing is
unpacked. A cell is read with the whole column of its row group, and the last few of these columns
stay in memory. Training reads in random order, for which files or shards are quicker: `vton data
convert` writes them.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vton.data.inside import InsidePath
from vton.data.sample import DataError
from vton.errors import one_line

SUFFIX = ".parquet"
KEPT_COLUMNS = 16  # columns of single row groups that stay in memory
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
DESCRIPTIONS = "image_descriptions.txt"


class Column(NamedTuple):
    """The place of a part of a sample in VITON-HD's layout, and the known names of its column."""

    folder: str
    stem: str  # {} = the row's id
    suffix: str  # "" = told by the first picture in it
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
# Folders of plain data sets. A table beside them is not the data set.
PLAIN_FOLDERS = (
    "train/image",
    "test/image",
    "upper_body/images",
    "lower_body/images",
    "dresses/images",
)


@dataclass(frozen=True)
class Row:
    """The position of a row."""

    file: int  # number in Tables.files
    group: int  # row group in the file
    place: int  # row in the group


class Split(NamedTuple):
    """A split of a table; keys are the rows' ids."""

    rows: dict[str, Row]  # in the table's order
    unpaired: dict[str, str]  # ids of the unpaired garments, for rows that have one
    captions: dict[str, str]  # for rows that have one


class Tables:
    """The parquet files of one folder, or a single one. Can be sent to loader processes.

    columns: `part=column` for columns that have none of the known names, and `train=NAME` or
        `test=NAME` for splits that are named otherwise
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
        """The parquet files, sorted."""
        return table_files(Path(self.where))

    @cached_property
    def chosen(self) -> dict[str, str]:
        """The entries of data.columns, by part. Raises DataError for an entry of another form."""
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
        """The column of each part and text that the tables have.

        Raises DataError for a chosen column that does not exist, and for files without a column of
        pictures that other files have.
        """
        columns_by_file: dict[Path, list[str]] = {}
        for number, file in enumerate(self.files):
            columns_by_file[file] = self._file(number).schema_arrow.names
        existing = list(dict.fromkeys(chain.from_iterable(columns_by_file.values())))

        names: dict[str, str] = {}
        known = {part: column.names for part, column in COLUMNS.items()} | TEXTS
        for part, candidates in known.items():
            if part in self.chosen:
                candidates = (self.chosen[part],)
                if candidates[0] not in existing:
                    raise DataError(
                        f"data.columns: {self.files[0]} has no column {candidates[0]!r}; it has "
                        f"{', '.join(existing)}."
                    )
            for candidate in candidates:
                if candidate in existing and candidate not in names.values():
                    names[part] = candidate
                    break

        needed = {name for part, name in names.items() if part in COLUMNS}
        for file, columns in columns_by_file.items():
            lacking = needed - set(columns)
            if lacking:
                raise DataError(f"{file} lacks columns that others have: {', '.join(lacking)}.")
        return names

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The splits that have rows, by name. Raises DataError for ids that occur twice."""
        splits = {split: Split({}, {}, {}) for split in SPLITS}
        by_name = {self.chosen.get(split, split): split for split in SPLITS}
        for number, file in enumerate(self.files):
            split = by_name.get(split_of(file, Path(self.where)))
            if split is not None:
                self._add_rows(splits[split], number)
        return {name: split for name, split in splits.items() if split.rows}

    def _add_rows(self, split: Split, number: int) -> None:
        """Add the rows of file `number` to a split."""
        if "person" not in self.names:
            raise DataError(
                f"{self.files[number]} has no column of persons (image). Name it: "
                "data.columns=[person=COLUMN]."
            )
        file = self._file(number)
        for group in range(file.num_row_groups):
            names = self._texts(number, group, "id")
            unpaired = self._texts(number, group, "unpaired_garment")
            captions = self._texts(number, group, "caption")
            if names is None:
                names = self._paths(number, group)
            for place in range(file.metadata.row_group(group).num_rows):
                name = names[place] if names else None
                id_ = _id(name) if name else f"{len(split.rows):05d}_00"
                if id_ in split.rows:
                    raise DataError(
                        f"{self.files[number]}: two rows are called {id_}. Name a column of ids "
                        "that differ: data.columns=[id=COLUMN]."
                    )
                split.rows[id_] = Row(number, group, place)
                if unpaired and unpaired[place]:
                    split.unpaired[id_] = _id(unpaired[place])
                words = (captions[place] or "").split() if captions else []
                if words:
                    split.captions[id_] = " ".join(words)

    def _texts(self, number: int, group: int, part: str) -> list[str | None] | None:
        """The texts of a column in a row group; None if the file lacks it. Of a list of captions,
        the first is taken.

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
        """Turn the errors that pyarrow raises for damaged columns into DataError."""
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.files[number]}: column {name} cannot be read in row group {group} "
                f"({one_line(error)[:160]}). Copy the file again."
            ) from None

    def _paths(self, number: int, group: int) -> list[str] | None:
        """The file names that the persons' pictures had; None unless all have different ones."""
        leaf = f"{self.names['person']}.path"
        with self._readable(number, group, leaf):
            columns = self._file(number).read_row_group(group, columns=[leaf])
            if columns.num_columns == 0:
                return None
            paths = []
            for picture in columns.column(0).to_pylist():
                paths.append(picture.get("path") if picture else None)
        ids = {_id(path) for path in paths if path}
        return paths if len(ids) == len(paths) else None

    def cell(self, part: str, row: Row) -> bytes:
        """The bytes of the file in a cell. Raises DataError for cells that hold no file."""
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
        """Suffix of the files of each part; for pictures, told by the first one."""
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
        for name, split in self.splits.items():
            folders[name] = {}
            for part, suffix in self.suffixes.items():
                column = COLUMNS[part]
                files = {}
                for id_, row in split.rows.items():
                    files[column.stem.format(id_) + suffix] = part, row
                folders[f"{name}/{column.folder}"] = files
        return folders

    @cached_property
    def texts(self) -> dict[str, str]:
        """Pair lists and captions, by their paths."""
        texts = {}
        for name, split in self.splits.items():
            lines = []
            for id_ in split.rows:
                garment = split.unpaired.get(id_, id_)
                lines.append(pair_line(f"{id_}.jpg", f"{garment}.jpg"))
            texts[f"{name}_pairs.txt"] = "".join(lines)
            if split.captions:
                lines = []
                for id_, caption in split.captions.items():
                    lines.append(caption_line(f"{id_}.jpg", caption))
                texts[f"{name}/{DESCRIPTIONS}"] = "".join(lines)
        return texts

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError and DataError."""
        beside = self.home / path
        if beside.is_file():
            return beside.read_bytes()
        if path in self.texts:
            return self.texts[path].encode()
        folder, _, name = path.rpartition("/")
        cell = self.folders.get(folder, {}).get(name)
        if cell is None:
            raise FileNotFoundError(f"{self.where} holds no {path}")
        part, row = cell
        return self.cell(part, row)

    def _file(self, number: int):
        """File `number`, opened. Raises DataError if it is no parquet file."""
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise DataError(
                f"{self.where} holds parquet tables, which need pyarrow: make setup, or "
                "pip install -e '.[parquet]'."
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
        if self._process == os.getpid():
            return
        self._open = {}
        self._cells = OrderedDict()
        self._process = os.getpid()


def _id(name: str) -> str:
    """A file's name without its folders and a picture's suffix; other dots are part of the id."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in PICTURES else path.name


def pair_line(*columns: str, separator: str = " ") -> str:
    """A line of a pair list; between tabs if a name holds a blank, at which it would be cut."""
    if any(len(column.split()) != 1 for column in columns):
        separator = "\t"
    return separator.join(columns) + "\n"


def caption_line(name: str, caption: str) -> str:
    """A line of a list of descriptions; with a tab after a name that holds a blank."""
    return f"{name}: {caption}\n" if len(name.split()) == 1 else f"{name}\t{caption}\n"


def table_files(where: Path) -> list[Path]:
    """The parquet files at a place: a single one, or those of the folder or of `data` below it."""
    if where.is_file() and where.suffix == SUFFIX:
        return [where]
    if not where.is_dir() or any((where / folder).is_dir() for folder in PLAIN_FOLDERS):
        return []
    for folder in (where, where / "data"):
        files = _visible(folder.glob(f"*{SUFFIX}")) or _visible(folder.glob(f"*/*{SUFFIX}"))
        if files:
            return files
    return []


def _visible(files: Iterable[Path]) -> list[Path]:
    """Sorted, without the hidden files that macOS puts beside others."""
    return sorted(path for path in files if not path.name.startswith("."))


def split_of(file: Path, where: Path) -> str:
    """The split of a file, by its name (train-00000-of-00008-...) or that of its folder."""
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
        if name in self.tables.folders.get(folder, {}) or self._key in self.tables.texts:
            return True
        return (self.tables.home / self._key).is_file()
