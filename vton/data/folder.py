"""A data set on disk: its pairs, where the files of a pair are, and how they are decoded.

`Folder` holds what VITON-HD and DressCode share; `viton_hd.py` and `dresscode.py` hold what
differs. Loading and checking both go through `PairFiles`, so `make data-check` accepts exactly what
training can read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image

from vton.config import DataConfig, nearest
from vton.data import images
from vton.data.images import ADVICE, RESTORE_OR_DROP, SUFFIXES, Origin
from vton.data.pairs import Pair
from vton.data.sample import Category, DataError, Order
from vton.data.source import Source, case_differs, composed, lexists

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Place:
    """A folder name and the file stem in it, with {person} and {garment} for the ids.

    suffix: that of the file to take where several have this stem, "" for the first of the kind's
    """

    folder: str
    stem: str
    suffix: str = ""

    @classmethod
    def parse(cls, path: str) -> Place:
        """From "folder/stem" or "folder/stem.suffix"."""
        folder, name = path.split("/")
        return cls(folder, PurePath(name).stem, PurePath(name).suffix)

    def stem_of(self, pair: Pair) -> str:
        return self.stem.format(person=pair.person, garment=pair.garment)


@dataclass(frozen=True)
class FileKind:
    """One kind of file, a `part` of a pair."""

    what: str  # its name in messages
    places: tuple[Place, ...]  # where it may be, current names first
    suffixes: tuple[str, ...] = SUFFIXES

    @property
    def of_garment(self) -> bool:
        """Whether the file belongs to the garment alone, so that errors name the garment's id."""
        return all("{person}" not in place.stem for place in self.places)

    def suffixes_at(self, place: Place) -> tuple[str, ...]:
        """The suffixes a file may have, the place's own first."""
        return tuple(sorted(self.suffixes, key=lambda suffix: suffix != place.suffix))


def file_kind(what: str, *paths: str, suffixes: tuple[str, ...] = SUFFIXES) -> FileKind:
    """A FileKind from paths such as "cloth-mask/{garment}"."""
    return FileKind(what, tuple(map(Place.parse, paths)), suffixes)


def warp_places(*pairs: tuple[str, str]) -> tuple[tuple[Place, Place], ...]:
    """Places of warped garments and of their masks, from pairs of paths."""
    return tuple((Place.parse(garment), Place.parse(mask)) for garment, mask in pairs)


# Suffixes of pictures that people have, whether they are read or not.
PICTURES = {*SUFFIXES, ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif"}

# Every sample needs these. Other parts can be derived, or are needed by some models only.
REQUIRED = ("person", "garment", "parse", "keypoints")


class Folder(ABC):
    """One data set's folder.

    `dataset` is its name in samples and messages, which for rendered data is "synthetic".
    """

    parts: ClassVar[dict[str, FileKind]]
    # Places of the warped garment and of its mask, per order.
    warps: ClassVar[dict[Order, tuple[tuple[Place, Place], ...]]]
    expected: ClassVar[dict[tuple[Split, Category], int]]  # pairs of the official archive
    crosschecked: ClassVar[bool] = True  # whether files that do not fit together are refused
    categories: tuple[Category, ...]

    def __init__(self, root: Source, config: DataConfig, dataset: str):
        self.root = root
        self.config = config
        self.dataset = dataset
        self._listings: dict[tuple[Source, tuple[str, ...]], Listing] = {}
        self._places: dict[tuple[str, Split, Order], Place | None] = {}
        # The folders that were searched: the folder itself, and its file names by stem.
        self._listed: dict[tuple, tuple[Source, dict[str, str]]] = {}
        # The last pair that `_crossed` was asked about, and the answer.
        self._last_crossed: tuple[object, bool] = (None, False)
        if not root.is_dir():
            self.require_same_case(root)
            raise DataError(
                f"{dataset}: no folder {root}. Set data.root or VTON_DATA; data/README.md says how "
                "to get the data."
            )

    def require_same_case(self, *paths: Source) -> None:
        """Raise DataError if one of these paths is absent, but is there with other capitals.

        What was meant must not be passed over in silence.
        """
        for path in paths:
            problem = case_differs(path)
            if problem:
                raise DataError(f"{self.dataset}: {problem}")

    def first_of(self, known: Sequence[Source]) -> Source:
        """The first of these paths that exists, or the first.

        Raises DataError if none exists but one is there with other capitals.
        """
        for path in known:
            if lexists(path):
                return path
        self.require_same_case(*known)
        return known[0]

    def require_any_of(self, names: Sequence[str]) -> None:
        """Raise DataError where none of these lies in the root but one does in a folder below.

        Some archives bring a folder of their own.
        """
        if not isinstance(self.root, Path) or any(lexists(self.root / name) for name in names):
            return
        for inner in sorted(filter(Path.is_dir, self.root.iterdir())):
            if any(lexists(inner / name) for name in names):
                raise DataError(
                    f"{self.dataset}: the data set is not in {self.root} but in a folder below it. "
                    f"Set data.root={inner}."
                )

    @abstractmethod
    def pairs(self, split: Split, order: Order) -> list[Pair]:
        """All pairs of a split in the order of its list.

        Training pairs are always paired. Raises DataError.
        """

    @abstractmethod
    def lacks(self, split: Split, order: Order) -> str:
        """Why this folder need not have pairs of a split in an order; "" if it must have them.

        Folders of users' own photographs hold test persons and garments only, and no person's own
        garment is among them.
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
        """The file with the annotations of garments. It need not exist.

        Raises DataError if its name has other capitals.
        """

    @abstractmethod
    def annotation(self, split: Split, pair: Pair) -> str | None:
        """A few words on the garment, None if it has none.

        Raises DataError for a broken caption file.
        """

    def list_name(self, split: Split, order: Order) -> str:
        """The pair list that the settings name; "" if a known name is to be looked for."""
        if split == "train":
            return self.config.list_train
        return self.config.list_paired if order == "paired" else self.config.list_unpaired

    def list_path(self, split: Split, order: Order) -> str:
        """Where the pairs of an order are listed, for messages."""
        return str(self.root)

    def files(self, split: Split, order: Order, pair: Pair) -> PairFiles:
        return PairFiles(self, split, order, pair)

    def bases(self, split: Split) -> list[Source]:
        """The folders that hold the part folders, one for each category."""
        return [self.base(split, category) for category in self.categories]

    def place(self, part: str, split: Split, order: Order) -> Place | None:
        """The first known place of a part that exists in every category, None if none does."""
        key = (part, split, order)
        if key not in self._places:
            self._places[key] = self._find_place(part, split, order)
        return self._places[key]

    def places(self, part: str, order: Order) -> tuple[Place, ...]:
        """All known places of a part, the preferred one first."""
        if part == "warped_garment":
            return tuple(dict.fromkeys(garment for garment, _ in self._warp_places(order)))
        if part == "warped_mask":
            return tuple(mask for _, mask in self._warp_places(order))
        return self.parts[part].places

    def locate(
        self, part: str, split: Split, order: Order, pair: Pair, origin: Origin
    ) -> Source | None:
        """The file of a part; None if the data set has no folder for this optional part.

        Raises DataError if the folder exists but the file does not, or if a required part has no
        folder.
        """
        kind = self.parts[part]
        place = self.place(part, split, order)
        if place is None:
            if part not in REQUIRED:
                return None
            places = self.places(part, order)
            without = [base for base in self.bases(split) if not _any_folder(base, places)]
            base = without[0] if without else self.base(split, pair.category)
            names = ", ".join(f"{known.folder}/" for known in places)
            raise DataError(
                f"{self.dataset} {split}: no folder for the {kind.what} below {base}; known names: "
                f"{names}. {ADVICE}"
            )
        key = (part, split, order, pair.category)
        if key not in self._listed:
            folder = self.base(split, pair.category) / place.folder
            self._listed[key] = folder, self._listing(folder, kind.suffixes_at(place)).by_stem
        folder, names = self._listed[key]
        stem = place.stem_of(pair)
        name = names.get(composed(stem))
        if name is not None:
            return folder / name
        neighbour = next(iter(names.values()), "")
        suffix = PurePath(neighbour).suffix or kind.suffixes[0]
        advice = RESTORE_OR_DROP
        if kind.of_garment and split == "test" and order == "paired":
            advice = "Restore it, or evaluate unpaired pairs alone (eval.orders=[unpaired])."
        listing = self._listing(folder, kind.suffixes_at(place))
        other_case = listing.folded.get(composed(stem).casefold())
        if other_case:
            advice = f"There is {other_case}, with other capitals. Rename it, or correct the list."
        unread = listing.unread.get(composed(stem))
        if unread:
            readable = " or ".join(kind.suffixes)
            advice = f"There is {unread}, which is not read: {kind.what} files end in {readable}."
        if self._crossed(split, order, pair):
            advice = "Are the columns of the pair list crossed? Person comes first."
        raise origin.error(f"{kind.what} is missing", folder / (stem + suffix), advice)

    def _find_place(self, part: str, split: Split, order: Order) -> Place | None:
        places = self.places(part, order)
        if part == "warped_mask":  # only that of the warped garments in use
            in_use = self.place("warped_garment", split, order)
            places = [mask for garment, mask in self._warp_places(order) if garment == in_use]
        for place in places:
            if self.has(place, split):
                return place
        return None

    def _warp_places(self, order: Order) -> tuple[tuple[Place, Place], ...]:
        name = self.config.warp_folder if order == "paired" else self.config.warp_folder_unpaired
        if not name:
            return self.warps[order]
        stem = self.parts[self.config.warp_key].places[0].stem
        return ((Place(name, stem), Place(f"{name}-mask", stem)),)

    def has(self, place: Place, split: Split) -> bool:
        """Whether every category has this folder.

        Raises DataError if a file or a broken link has its name, or a folder with other capitals:
        what was meant must not be passed over in silence.
        """
        folders = [base / place.folder for base in self.bases(split)]
        for folder in folders:
            if lexists(folder) and not folder.is_dir():
                raise DataError(
                    f"{self.dataset} {split}: {folder} is a file or a link to nowhere, not a "
                    "folder. Repair it."
                )
        self.require_same_case(*folders)
        return all(folder.is_dir() for folder in folders)

    def partly_absent(self, part: str, split: Split, order: Order) -> str:
        """Which categories lack a folder that others have, so that none of them reads it.

        "" if there is no such folder. The first known one that some categories have is named.
        """
        for place in self.places(part, order):
            if place == self.place(part, split, order):
                break
            lacking = []
            for category in self.categories:
                if not (self.base(split, category) / place.folder).is_dir():
                    lacking.append(category)
            if 0 < len(lacking) < len(self.categories):
                return f"{place.folder}/ is absent in {' and '.join(lacking)}"
        return ""

    def passed_over(self, part: str, split: Split, order: Order) -> dict[str, str]:
        """Files of a part that are not read because one of the same name in another format is.

        By path; the values are the names of the files that are read.
        """
        place = self.place(part, split, order)
        found = {}
        if place is not None:
            for base in self.bases(split):
                folder = base / place.folder
                listing = self._listing(folder, self.parts[part].suffixes_at(place))
                for name, taken in listing.passed_over.items():
                    found[str(folder / name)] = taken
        return found

    def _crossed(self, split: Split, order: Order, pair: Pair) -> bool:
        """Whether the list names the garment first, as some scripts do by mistake.

        Then both files exist for the swapped pair only. Every missing file of a pair asks, one
        after the other, so the last answer is kept.
        """
        key = (split, order, pair)
        if self._last_crossed[0] != key:
            self._last_crossed = key, self._has_only_swapped(split, order, pair)
        return self._last_crossed[1]

    def _has_only_swapped(self, split: Split, order: Order, pair: Pair) -> bool:
        """Whether person and garment are missing, but exist under each other's names."""
        swapped = replace(pair, person=pair.garment, garment=pair.person)
        if pair == swapped:
            return False
        for part in ("person", "garment"):
            if self._exists(part, split, order, pair):
                return False
            if not self._exists(part, split, order, swapped):
                return False
        return True

    def _worn(self, pairs: Sequence[Pair]) -> bool:
        """Whether the folder has the garment that any person of these test pairs wears.

        Also True if all garments of the pairs themselves are missing, which is another fault.
        """
        if not any(self._exists("garment", "test", "unpaired", pair) for pair in pairs):
            return True
        for pair in pairs:
            worn = Pair(pair.person, pair.person, pair.category)
            if self._exists("garment", "test", "unpaired", worn):
                return True
        return False

    def _exists(self, part: str, split: Split, order: Order, pair: Pair) -> bool:
        place = self.place(part, split, order)
        if place is None:
            return False
        folder = self.base(split, pair.category) / place.folder
        listing = self._listing(folder, self.parts[part].suffixes_at(place))
        return composed(place.stem_of(pair)) in listing.by_stem

    def _listing(self, folder: Source, suffixes: tuple[str, ...]) -> Listing:
        """The files of a folder, which is listed once.

        Of files with one stem, that with the earliest of `suffixes` is taken.
        """
        key = (folder, suffixes)
        if key not in self._listings:
            try:
                listed = list(folder.iterdir())
            except OSError as error:
                raise DataError(
                    f"{self.dataset}: folder cannot be listed ({folder}): {error.strerror}."
                ) from None
            files = [path for path in listed if path.suffix.lower() in suffixes]
            files.sort(key=lambda path: (-suffixes.index(path.suffix.lower()), path.name))
            by_stem = {composed(path.stem): path.name for path in files}
            passed_over = {}
            if len(by_stem) < len(files):
                for path in files:
                    taken = by_stem[composed(path.stem)]
                    if path.name != taken:
                        passed_over[path.name] = taken
            others = [path for path in listed if path.suffix.lower() in PICTURES - set(suffixes)]
            unread = {composed(path.stem): path.name for path in others}
            folded = {stem.casefold(): name for stem, name in by_stem.items()}
            self._listings[key] = Listing(by_stem, passed_over, unread, folded)
        return self._listings[key]


class Listing(NamedTuple):
    """The names of a folder's files."""

    by_stem: dict[str, str]  # of the files that are read, by composed stem
    passed_over: dict[str, str]  # name of a file that is not -> that of the same stem that is
    unread: dict[str, str]  # of pictures in formats that are not read, by composed stem
    folded: dict[str, str]  # of the files that are read, by stem without upper case


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair, decoded at their stored size.

    Every reading method raises DataError.
    """

    folder: Folder
    split: Split
    order: Order
    pair: Pair

    def origin(self, part: str) -> Origin:
        """Where a part comes from, for messages: with the id of the person or the garment."""
        of_garment = self.folder.parts[part].of_garment
        id_ = self.pair.garment_id if of_garment else self.pair.person_id
        return Origin(self.folder.dataset, self.split, id_)

    def path(self, part: str) -> Source | None:
        """The part's file; None if the data set has no folder for this optional part."""
        return self.folder.locate(part, self.split, self.order, self.pair, self.origin(part))

    def photo(self, part: str, size: tuple[int, int] | None = None) -> Image.Image | None:
        """An upright RGB picture, None if the part is absent.

        size: (width, height) that it must have, None for any
        """
        path = self.path(part)
        if path is None:
            return None
        what, origin = self.folder.parts[part].what, self.origin(part)
        photo = images.read_photo(path, what, origin, size)
        if part in ("person", "garment"):
            images.require_content(photo, what, path, origin)
        return photo

    def mask(self, part: str, size: tuple[int, int] | None) -> np.ndarray | None:
        """(H, W) bool, None if the part is absent.

        size: (width, height) of its picture, which it must have; None for any
        """
        path = self.path(part)
        if path is None:
            return None
        what = self.folder.parts[part].what
        silhouette = part != "agnostic_mask"
        return images.read_mask(path, what, self.origin(part), size, silhouette)

    def garment_mask(self, garment: Image.Image) -> np.ndarray:
        """(H, W) bool silhouette of the in-shop garment: from its file, or from the white ground if
        the data set has no folder of masks.
        """
        mask = self.mask("garment_mask", garment.size)
        if mask is not None:
            return mask
        return images.silhouette_on_white(garment, self.path("garment"), self.origin("garment"))

    def labels(self, part: str, size: tuple[int, int] | None) -> np.ndarray | None:
        """(H, W) uint8 in the labels of vton.data.labels, None if the part is absent."""
        if self.path(part) is None:
            return None
        return self.folder.read_labels(self, part, size)

    def joints(self) -> np.ndarray:
        """(18, 3) COCO-18 joints in [0, 1] with validity."""
        return self.folder.read_joints(self.path("keypoints"), self.origin("keypoints"))

    def densepose(self, size: tuple[int, int] | None) -> np.ndarray | None:
        """(H, W) uint8 DensePose part ids, None if the part is absent."""
        path = self.path("densepose")
        if path is None:
            return None
        return self.folder.read_densepose(path, self.origin("densepose"), size)

    def annotation(self) -> str:
        """A few words on the garment, by data.caption_source and data.caption_fallback."""
        config = self.folder.config
        if config.caption_source != "fallback":
            annotation = self.folder.annotation(self.split, self.pair)
            if annotation:
                return annotation
        return fallback_caption(config, self.pair.category)


def _any_folder(base: Source, places: Sequence[Place]) -> bool:
    return any((base / place.folder).is_dir() for place in places)


def fallback_caption(config: DataConfig, category: Category) -> str:
    """The annotation of a garment of this category that has none."""
    if category == "lower_body":
        return config.caption_fallback_lower
    if category == "dresses":
        return config.caption_fallback_dresses
    return config.caption_fallback


def chosen(known: Sequence[str], category: str, dataset: str) -> tuple[str, ...]:
    """The categories that data.category selects among those of a data set."""
    if category == "all":
        return tuple(known)
    if category not in known:
        raise DataError(
            f"{dataset}: data.category={category} is not in this data set. "
            f"{nearest(category, known)}"
        )
    return (category,)
