"""A data set on disk: its pair lists, where each file of a pair lies, and how each is decoded.

`Folder` holds what VITON-HD and DressCode share; `viton_hd.py` and `dresscode.py` say what differs.
Loading and checking go through the same `PairFiles`, so that what `make data-check` accepts is
exactly what training can read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from vton.config import DataConfig, nearest
from vton.data import images
from vton.data.images import ADVICE, SUFFIXES, Origin
from vton.data.sample import Category, DataError, Order
from vton.data.shards import ShardError, Source, stands

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Pair:
    """One line of a pair list. Paired order: person and garment have the same id."""

    person: str
    garment: str
    category: Category


@dataclass(frozen=True)
class Place:
    """A folder name and the file stem in it, with {person} and {garment} for the ids."""

    folder: str
    stem: str


@dataclass(frozen=True)
class Part:
    """One kind of file: what it is called in messages and the places it is found under, current
    names first.
    """

    what: str
    places: tuple[Place, ...]
    suffixes: tuple[str, ...] = SUFFIXES

    @property
    def of_garment(self) -> bool:
        """Whether the file belongs to the garment alone, so that errors name the garment's id."""
        return all("{person}" not in place.stem for place in self.places)


# Without these there is no sample. Every other part can be derived, or only some models need it.
REQUIRED = ("person", "garment", "parse", "keypoints")


class Folder(ABC):
    """One data set's folder. `dataset` is its name in samples and messages, which for rendered data
    is "synthetic".
    """

    parts: ClassVar[dict[str, Part]]
    warps: ClassVar[
        dict[Order, tuple[tuple[Place, Place], ...]]
    ]  # warped garment and its mask, per order
    expected: ClassVar[dict[tuple[Split, Category], int]]  # pairs of the official archive
    categories: tuple[Category, ...]

    def __init__(self, root: Source, config: DataConfig, dataset: str):
        self.root = root
        self.config = config
        self.dataset = dataset
        self._listings: dict[tuple[Source, tuple[str, ...]], dict[str, str]] = {}
        self._places: dict[tuple[str, Split, Order], Place | None] = {}
        if not root.is_dir():
            raise DataError(
                f"{dataset}: no folder {root}. Set data.root or VTON_DATA; data/README.md says how to get the data."
            )

    @abstractmethod
    def pairs(self, split: Split, order: Order) -> list[Pair]:
        """All pairs of a split in the order of its list. Training pairs are always paired. Raises
        DataError.
        """

    @abstractmethod
    def base(self, split: Split, category: Category) -> Source:
        """The folder that holds the part folders."""

    @abstractmethod
    def read_labels(self, files: PairFiles, part: str, size: tuple[int, int] | None) -> np.ndarray:
        """(H, W) uint8 parse map in the labels of vton.data.labels."""

    @abstractmethod
    def read_joints(self, path: Source, origin: Origin) -> np.ndarray:
        """(18, 3) COCO-18 joints in [0, 1] with validity."""

    @abstractmethod
    def read_densepose(
        self, path: Source, origin: Origin, size: tuple[int, int] | None
    ) -> np.ndarray:
        """(H, W) uint8 DensePose part ids."""

    @abstractmethod
    def caption_file(self, split: Split, category: Category) -> Source:
        """Where the annotations of garments lie, in data sets that have them."""

    @abstractmethod
    def annotation(self, split: Split, pair: Pair) -> str | None:
        """A few words on the garment, None where there are none. Raises DataError for a broken
        caption file.
        """

    def files(self, split: Split, order: Order, pair: Pair) -> PairFiles:
        return PairFiles(self, split, order, pair)

    def place(self, part: str, split: Split, order: Order) -> Place | None:
        """Where a part lies in this folder: the first known place that exists in every category,
        None if none does.
        """
        key = (part, split, order)
        if key not in self._places:
            places = self.places(part, order)
            if part == "warped_mask":  # of the warped garments in use, not of others
                garment = self.place("warped_garment", split, order)
                places = [mask for warped, mask in self._warp_places(order) if warped == garment]
            self._places[key] = next((place for place in places if self._has(place, split)), None)
        return self._places[key]

    def places(self, part: str, order: Order) -> tuple[Place, ...]:
        """Where a part may lie, the preferred place first."""
        if part == "warped_garment":
            return tuple(garment for garment, _ in self._warp_places(order))
        if part == "warped_mask":
            return tuple(mask for _, mask in self._warp_places(order))
        return self.parts[part].places

    def bases(self, split: Split) -> list[Source]:
        return [self.base(split, category) for category in self.categories]

    def locate(
        self, part: str, split: Split, order: Order, pair: Pair, origin: Origin
    ) -> Source | None:
        """The file of a part; None when the whole folder is absent from the data set.

        Raises DataError when the folder is there and the file is not, or when a required part has
        no folder.
        """
        what = self.parts[part].what
        place = self.place(part, split, order)
        base = self.base(split, pair.category)
        if place is None:
            if part not in REQUIRED:
                return None
            names = ", ".join(f"{known.folder}/" for known in self.places(part, order))
            raise DataError(
                f"{self.dataset} {split}: no folder for the {what} below {base}; known names: {names}. {ADVICE}"
            )
        stem = place.stem.format(person=pair.person, garment=pair.garment)
        names = self._stems(base / place.folder, self.parts[part].suffixes)
        if stem not in names:
            advice = (
                self._crossed(split, order, pair) or "Restore it or take its pairs out of the list."
            )
            neighbour = next(iter(names.values()), "")
            suffix = PurePath(neighbour).suffix or self.parts[part].suffixes[0]
            raise origin.error(f"{what} is missing", base / place.folder / (stem + suffix), advice)
        return base / place.folder / names[stem]

    def _crossed(self, split: Split, order: Order, pair: Pair) -> str:
        """Advice when a line names the garment first, a slip of some scripts: only swapped do both
        files exist.
        """
        swapped = Pair(pair.garment, pair.person, pair.category)
        if pair == swapped or any(
            self._exists(part, split, order, pair) for part in ("person", "garment")
        ):
            return ""
        if not all(self._exists(part, split, order, swapped) for part in ("person", "garment")):
            return ""
        return "Are the columns of the pair list crossed? Person comes first."

    def _exists(self, part: str, split: Split, order: Order, pair: Pair) -> bool:
        place = self.place(part, split, order)
        if place is None:
            return False
        stems = self._stems(
            self.base(split, pair.category) / place.folder, self.parts[part].suffixes
        )
        return place.stem.format(person=pair.person, garment=pair.garment) in stems

    def _stems(self, folder: Source, suffixes: tuple[str, ...]) -> dict[str, str]:
        """File name by stem, listed once per folder. Where a stem has several suffixes, the one
        named first wins.
        """
        key = (folder, suffixes)
        if key not in self._listings:
            try:
                files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
            except OSError as error:
                raise DataError(
                    f"{self.dataset}: folder cannot be listed ({folder}): {error.strerror}."
                ) from None
            files.sort(key=lambda path: (-suffixes.index(path.suffix.lower()), path.name))
            self._listings[key] = {path.stem: path.name for path in files}
        return self._listings[key]

    def _has(self, place: Place, split: Split) -> bool:
        folders = [base / place.folder for base in self.bases(split)]
        for folder in folders:
            if (
                stands(folder) and not folder.is_dir()
            ):  # not absent: what it stands for must not be lost
                raise DataError(
                    f"{self.dataset} {split}: {folder} is a file or a link to nowhere, not a folder. Repair it."
                )
        return all(folder.is_dir() for folder in folders)

    def _warp_places(self, order: Order) -> tuple[tuple[Place, Place], ...]:
        name = self.config.warp_folder if order == "paired" else self.config.warp_folder_unpaired
        if not name:
            return self.warps[order]
        stem = self.parts[self.config.warp_key].places[0].stem
        return ((Place(name, stem), Place(f"{name}-mask", stem)),)


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair, decoded at their stored size. Every reading method raises DataError."""

    folder: Folder
    split: Split
    order: Order
    pair: Pair

    def origin(self, part: str) -> Origin:
        of_garment = self.folder.parts[part].of_garment
        return Origin(
            self.folder.dataset, self.split, self.pair.garment if of_garment else self.pair.person
        )

    def path(self, part: str) -> Source | None:
        """The part's file; None when the data set has no folder for this optional part."""
        return self.folder.locate(part, self.split, self.order, self.pair, self.origin(part))

    def photo(self, part: str) -> Image.Image | None:
        """An upright RGB picture, None where the part is absent."""
        path = self.path(part)
        return (
            None
            if path is None
            else images.read_photo(path, self.folder.parts[part].what, self.origin(part))
        )

    def mask(self, part: str, size: tuple[int, int] | None) -> np.ndarray | None:
        """(H, W) bool, None where the part is absent. size: (width, height) of its picture, None to
        skip comparing.
        """
        path = self.path(part)
        if path is None:
            return None
        what = self.folder.parts[part].what
        return images.read_mask(
            path, what, self.origin(part), size, silhouette=part != "agnostic_mask"
        )

    def garment_mask(self, garment: Image.Image) -> np.ndarray:
        """(H, W) bool silhouette of the in-shop garment: the file, or derived where the data set
        has no such folder.
        """
        mask = self.mask("garment_mask", garment.size)
        if mask is not None:
            return mask
        return images.silhouette_on_white(garment, self.path("garment"), self.origin("garment"))

    def labels(self, part: str, size: tuple[int, int] | None) -> np.ndarray | None:
        """(H, W) uint8 in the labels of vton.data.labels, None where the part is absent."""
        return None if self.path(part) is None else self.folder.read_labels(self, part, size)

    def joints(self) -> np.ndarray:
        """(18, 3) COCO-18 joints in [0, 1] with validity."""
        return self.folder.read_joints(self.path("keypoints"), self.origin("keypoints"))

    def densepose(self, size: tuple[int, int] | None) -> np.ndarray | None:
        """(H, W) uint8 DensePose part ids, None where the part is absent."""
        path = self.path("densepose")
        return (
            None
            if path is None
            else self.folder.read_densepose(path, self.origin("densepose"), size)
        )

    def annotation(self) -> str:
        config = self.folder.config
        own = (
            None
            if config.caption_source == "fallback"
            else self.folder.annotation(self.split, self.pair)
        )
        return own or config.caption_fallback


def read_pair_list(path: Source, dataset: str) -> list[tuple[str, ...]]:
    """The columns of a pair list, two or three per line. Any run of blanks or tabs separates; blank
    lines do not count.

    Picture suffixes are dropped: some lists name .png where the photograph is .jpg. Raises
    DataError on a missing or empty file, a line of another width, or a name that would leave the
    data set's folder.
    """
    advice = "Restore the list from the archive."
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{dataset}: pair list is missing ({path}). {advice}") from None
    except ShardError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(
            f"{dataset}: pair list is not readable ({path}): {error}. {advice}"
        ) from None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) not in (2, 3):
            raise DataError(
                f"{dataset}: line {number} of {path} has {len(columns)} columns, expected person, garment and perhaps "
                f"a category: {line.strip()[:80]!r}. {advice}"
            )
        rows.append((*(_id(name, number, path, dataset) for name in columns[:2]), *columns[2:]))
    if not rows:
        raise DataError(f"{dataset}: pair list is empty ({path}). {advice}")
    return rows


def chosen(known: Sequence[str], category: str, dataset: str) -> tuple[str, ...]:
    """The categories that data.category selects among those of a data set."""
    if category == "all":
        return tuple(known)
    if category not in known:
        raise DataError(
            f"{dataset}: data.category={category} is not in this data set. {nearest(category, known)}"
        )
    return (category,)


def _id(name: str, line: int, path: Source, dataset: str) -> str:
    stem = name[: name.rindex(".")] if name.lower().endswith(SUFFIXES) else name
    if not stem or stem in (".", "..") or any(bad in stem for bad in ("/", "\\", "\0", ":")):
        raise DataError(
            f"{dataset}: line {line} of {path} names {name!r}; ids are plain file names inside the data set's folders."
        )
    return stem
