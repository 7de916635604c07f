"""From files to records and samples: the pairs of one split in one order, un-augmented."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from vton import config as configuration
from vton.config import DataConfig
from vton.data import crosscheck, images, labels, transforms
from vton.data import record as records
from vton.data.captions import Templates
from vton.data.compact import EVERYTHING, CompactSample, Fields
from vton.data.derived.agnostic import agnostic_mask
from vton.data.derived.warp import WarpSource, warp_source
from vton.data.dresscode import DressCode
from vton.data.folder import Folder, PairFiles, Place, Split, fallback_caption
from vton.data.pairs import Pair, exchanged, limited, require_unique_ids
from vton.data.record import Record
from vton.data.sample import Category, DataError, Order, TryOnSample
from vton.data.source import Source, lexists, open_source
from vton.data.viton_hd import VitonHD

log = logging.getLogger(__name__)
_warned: set[str] = set()  # lists and folders that this process has warned of
READERS: dict[str, type[Folder]] = {"viton_hd": VitonHD, "dresscode": DressCode}
# Grey level from which a pixel of a stored warped garment belongs to its white surround.
SURROUND = 245


def dataset_root(config: DataConfig) -> Source:
    """The folder or shards to read.

    Rendered data has one per setting below data.root, so that settings never mix. data.root may
    also name that folder itself. Raises DataError if it names one of other settings.
    """
    root = configuration.data_root(config)
    if config.name == "synthetic":
        name = rendered_name(config)
        if PurePosixPath(root).name != name:
            _require_not_rendered(root, name)
            root += f"/{name}"
    return open_source(root, config.shards_kept, config.columns)


def rendered_name(config: DataConfig) -> str:
    """The name of the folder that holds the rendered data of these settings."""
    rendered = config.synthetic
    height, width = config.picture_size
    name = f"{rendered.layout}-{height}x{width}-{rendered.train}-{rendered.test}-{rendered.seed}"
    return f"{name}-other" if rendered.other_clothes else name


def _require_not_rendered(root: str, name: str) -> None:
    """Raise DataError if `root` is a rendered data set, below which another would be rendered."""
    from vton.data.synthetic.writing import STAMP  # real data does not need the renderer

    if "://" not in root and lexists(open_source(root) / STAMP):
        raise DataError(
            f"synthetic: {root} is a rendered data set itself, not the folder of {name}, which "
            f"these settings ask for. Name the folder above it in data.root, or give the settings "
            f"of its {STAMP} and keep its name."
        )


def open_folder(config: DataConfig) -> Folder:
    """The reader of the configured data set.

    Raises DataError when the folder or the chosen category is absent.
    """
    layout = config.synthetic.layout if config.name == "synthetic" else config.name
    return READERS[layout](dataset_root(config), config, config.name)


class Person(NamedTuple):
    """A person without a garment to try on, for the reference of set metrics."""

    index: int
    person_id: str
    category: Category
    picture: torch.Tensor  # (3, H, W) uint8
    worn: torch.Tensor  # (1, H, W) bool: where the picture shows the garment of the category


class Persons(Dataset):
    """The persons of a split in one order: item i is the Person of pair i."""

    def __init__(self, pairs: TryOnDataset):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def require_files(self) -> None:
        """Raise DataError unless every file that `person` reads exists."""
        for pair in self.pairs.pairs:
            for part in ("person", "parse"):
                self.pairs.folder.files(self.pairs.split, self.pairs.order, pair).path(part)

    def __getitem__(self, index: int) -> Person:
        return self.pairs.person(index)


class TryOnDataset(Dataset):
    """The pairs of one split in one order, as they are on disk: item i is a TryOnSample.

    shuffled: the control experiment. Every sample keeps its person, truth and name, but gets the
        garment of the next pair of its category that has another one. Warps on disk fit their own
        persons only, so these garments are warped geometrically instead. A model that uses its
        garment must get worse.
    warp: the warp that data.warp_source=learned stands for
    warped: whether samples have a warped garment, the part that takes longest to make

    Records stay in this process when data.cache is "memory". Raises DataError.
    """

    def __init__(
        self,
        folder: Folder,
        split: Split,
        order: Order,
        shuffled: bool = False,
        warp: WarpSource | None = None,
        warped: bool = True,
    ):
        config = folder.config
        self.folder = folder
        self.split = split
        self.order = order
        self.warped = warped
        self.size = config.picture_size
        self.templates = Templates(config.person_caption, config.garment_caption)
        # What is wrong with a list of unpaired pairs that are all paired, "" for any other list.
        self.in_fact_paired = ""
        self.pairs = self._listed_pairs()
        self.garments = exchanged(self.pairs) if shuffled else self.pairs
        self.mask_source = self._mask_source()
        self.warp_source = self._warp_source()
        if shuffled and self.warp_source == "folder":
            self.warp_source = "geometric"
        self._require_places_asked_for()
        self._warn_of_partly_absent()
        self._warp = warp
        if self.warp_source not in ("folder", "learned"):
            self._warp = warp_source(self.warp_source)
        if self.warp_source == "folder":
            self._require_one_warp_each()
        self._kept: dict[int, Record] | None = {} if config.cache == "memory" else None

    def _listed_pairs(self) -> list[Pair]:
        """The pairs of the list that the limits leave. Raises DataError."""
        folder, split, order = self.folder, self.split, self.order
        lacking = folder.lacks(split, order)
        if lacking:
            advice = "Train on another folder" if split == "train" else "Use eval.orders=[unpaired]"
            raise DataError(f"{folder.dataset} {split}: {lacking} ({folder.root}). {advice}.")
        for part in folder.parts:
            folder.place(part, split, order)  # raises if a file has a folder's name
        pairs = folder.pairs(split, order)
        limit = folder.config.limit_train if split == "train" else folder.config.limit_test
        if split == "train" and limit > len(pairs):
            raise DataError(
                f"{folder.dataset} train: data.limit_train={limit}, but there are {len(pairs)} "
                "pairs. A run that is known by its number of pairs must have them: use at most as "
                "many, or 0 for all."
            )
        require_unique_ids(pairs, f"{folder.dataset} {split} {order}")
        if order == "unpaired":
            self.in_fact_paired = _in_fact_paired(folder, split, pairs)
        return limited(pairs, limit)

    def _require_places_asked_for(self) -> None:
        """Raise DataError if the settings ask for optional parts that have no folder."""
        if self.folder.config.densepose and self._place("densepose") is None:
            advice = "Use data.densepose=false for models without it."
            raise self._absent("densepose", "data.densepose=true", advice)
        if self.folder.config.person_other and self._place("person_other") is None:
            advice = "Use data.person_other=false for models without it."
            raise self._absent("person_other", "data.person_other=true", advice)

    def _warn_of_partly_absent(self) -> None:
        """Warn, once per folder, of what is derived although some categories have it."""
        derived = ["garment_mask"]
        if self.mask_source == "derive" and self.folder.config.mask_source == "auto":
            derived.append("agnostic_mask")
        if self.warped and self.folder.config.warp_source == "auto":
            derived.append("warped_garment")
        for part in derived:
            if self._place(part) is not None:
                continue
            partly = self.folder.partly_absent(part, self.split, self.order)
            if partly and (key := f"{self.folder.root} {partly}") not in _warned:
                _warned.add(key)
                what = self.folder.parts[part].what
                log.warning(
                    "%s: %s; the %s is derived in all categories.",
                    self.folder.dataset,
                    partly,
                    what,
                )

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def pair_ids(self) -> list[str]:
        """Names of the pairs (TryOnSample.pair_id) in the order of the list."""
        return [pair.id for pair in self.pairs]

    def __getitem__(self, index: int) -> TryOnSample:
        return self.sample(self.record(index))

    def sample(self, record: Record, position: int = -1) -> TryOnSample:
        """A record of this data set, augmented or not, as models see it: at data.size."""
        padded = transforms.pad(record, self.folder.config.size)
        return transforms.to_sample(padded, position, self.templates)

    def compact(self, index: int, wanted: Fields = EVERYTHING) -> CompactSample:
        """Item `index` in bytes, with the wanted fields."""
        return self.compact_record(self.record(index), -1, wanted)

    def compact_record(self, record: Record, position: int, wanted: Fields) -> CompactSample:
        """A record of this data set, augmented or not, as loaders hand it over."""
        padded = transforms.pad(record, self.folder.config.size)
        return transforms.to_compact(padded, position, self.templates, wanted)

    def record(self, index: int) -> Record:
        """Pair `index`, decoded and brought to its size, without padding."""
        if self._kept is None:
            return self._decode(index)
        if index not in self._kept:
            self._kept[index] = self._decode(index)
        return self._kept[index]

    def photos(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Person and garment of pair `index`, (3, H, W) uint8 each, without reading the rest."""
        person = self._files(self.pairs[index]).photo("person")
        garment = self._files(self.garments[index]).photo("garment")
        return self._picture(person), self._picture(garment)

    def person(self, index: int) -> Person:
        """The person of pair `index` and the garment they wear, without reading a garment's files.

        This much is known even of a person whose own garment has no picture.
        """
        files = self._files(self.pairs[index])
        photo = files.photo("person")
        parse = transforms.resize_labels(files.labels("parse", photo.size), self.size)
        worn = np.isin(parse, labels.GARMENT_LABELS[files.pair.category])
        return Person(
            index,
            files.pair.person_id,
            files.pair.category,
            self._picture(photo),
            records.mask(worn),
        )

    def originals(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Person and truth of pair `index` as stored, uint8 (3, h, w).

        Evaluation protocols that resize in their own way start from these. Real unpaired pairs have
        no truth.
        """
        files = self._files(self.pairs[index])
        person = records.picture(np.array(files.photo("person")))
        if self.order == "paired":
            return person, person
        if self._place("truth") is None:
            return person, None
        return person, records.picture(np.array(files.photo("truth")))

    @property
    def sources(self) -> dict[str, str]:
        """Where masks and warped garments come from, for the provenance of results.

        Both change the numbers.
        """
        warp = self.warp_source
        if warp == "folder":
            warp = f"folder:{self._place('warped_garment').folder}"
        elif warp == "learned" and self._warp is not None:
            warp = str(self._warp)
        mask = f"derive:{self.folder.config.mask_rule}"
        if self.mask_source == "folder":
            mask = f"folder:{self._place('agnostic_mask').folder}"
        silhouettes = self._place("garment_mask")
        garment_mask = f"folder:{silhouettes.folder}" if silhouettes else "derive:near_white"
        return {"warp": warp, "mask": mask, "garment_mask": garment_mask}

    def learned_from(self) -> dict[str, str]:
        """What a training learns from besides the listed pictures, for the memory of a run.

        The sources that `sources` names, the folders of other parts that have several known ones,
        and the digest of all annotations.
        """
        learned = dict(self.sources)
        if not self.warped:
            del learned["warp"]
        for part in ("parse", "densepose", "person_other"):
            if part == "parse" or getattr(self.folder.config, part):
                learned[part] = f"folder:{self._place(part).folder}"
        annotations = [self._files(pair).annotation() for pair in self.pairs]
        digest = hashlib.sha256("\n".join(annotations).encode("utf-8", "surrogateescape"))
        learned["captions"] = f"sha256 {digest.hexdigest()[:16]}"
        return learned

    def without_caption(self, where_absent: bool) -> str:
        """One line on the garments that get data.caption_fallback, "" if there are none.

        where_absent: also count the garments of data sets without any caption file, which need
        none. Raises DataError.
        """
        config = self.folder.config
        if config.caption_source == "fallback":  # every garment has its category's
            return ""
        files = {}
        for category in self.folder.categories:
            files[category] = self.folder.caption_file(self.split, category)
        if not where_absent and not any(map(lexists, files.values())):
            return ""
        garments = [replace(pair, person=pair.garment) for pair in self.pairs]
        count = 0
        left_out: dict[Pair, Source] = {}
        for garment in dict.fromkeys(garments):
            count += 1
            if self.folder.annotation(self.split, garment) is None:
                left_out[garment] = files[garment.category]
        if not left_out:
            return ""
        sources = []
        for file in dict.fromkeys(left_out.values()):
            sources.append(str(file) if lexists(file) else f"{file} (absent)")
        first = next(iter(left_out))
        fallbacks = {}
        for pair in left_out:
            fallbacks[f"'{fallback_caption(config, pair.category)}'"] = None
        return (
            f"{len(left_out):,} of {count:,} garments have no caption; they get "
            f"{', '.join(fallbacks)} (data.caption_fallback). "
            f"The first is {first.garment_id}; captions come from {', '.join(sources)}."
        )

    def _decode(self, index: int) -> Record:
        """Read the files of pair `index`, check them against each other, resize, and warp."""
        size, config = self.size, self.folder.config
        files = self._files(self.pairs[index])
        garment_files = self._files(self.garments[index])

        # At their stored sizes.
        person = files.photo("person")
        garment = garment_files.photo("garment")
        parse = files.labels("parse", person.size)
        joints = files.joints()
        densepose = files.densepose(person.size) if config.densepose else None
        person_other = files.photo("person_other", person.size) if config.person_other else None
        silhouette = garment_files.garment_mask(garment)
        repaint = self._repaint(files, person, parse, joints)
        if self.folder.crosschecked:
            contents = {"parse": parse, "keypoints": joints}
            if densepose is not None:
                contents["densepose"] = densepose
            if self.mask_source == "folder":
                contents["agnostic_mask"] = repaint
            crosscheck.require(files, contents)

        # At the size of the data set.
        person = transforms.resize_photo(person, size)
        garment = transforms.resize_photo(garment, size)
        silhouette = transforms.resize_silhouette(silhouette, size)
        repaint = transforms.resize_repaint(repaint, size)
        if densepose is not None:
            densepose = torch.from_numpy(transforms.resize_labels(densepose, size))
        if person_other is not None:
            person_other = self._picture(person_other)
        warped = warped_mask = None
        if self.warped:
            agnostic = np.where(repaint[..., None], np.uint8(0), person)
            warped, covered = self._warped(
                garment_files, garment, silhouette, joints, agnostic, repaint
            )
            warped, warped_mask = records.picture(warped), records.mask(covered & repaint)
        truth, truth_garment_mask = self._truth(files)
        return Record(
            index=index,
            dataset=self.folder.dataset,
            pair=self.pairs[index],
            order=self.order,
            annotation=garment_files.annotation(),
            person=records.picture(person),
            garment=records.picture(garment),
            warped_garment=warped,
            truth=truth,
            agnostic_mask=records.mask(repaint),
            garment_mask=records.mask(silhouette),
            warped_mask=warped_mask,
            truth_garment_mask=truth_garment_mask,
            parse=torch.from_numpy(transforms.resize_labels(parse, size)),
            densepose=densepose,
            joints=joints,
            person_other=person_other,
            densepose_as=self.folder.config.densepose_as,
        )

    def _repaint(
        self, files: PairFiles, person: Image.Image, parse: np.ndarray, joints: np.ndarray
    ) -> np.ndarray:
        """(h, w) bool agnostic mask at the stored size, for which the rules were made."""
        if self.mask_source == "folder":
            return files.mask("agnostic_mask", person.size)
        rule = self.folder.config.mask_rule
        return agnostic_mask(parse, _in_pixels(joints, parse.shape), files.pair.category, rule)

    def _warped(
        self,
        files: PairFiles,
        garment: np.ndarray,
        silhouette: np.ndarray,
        joints: np.ndarray,
        agnostic: np.ndarray,
        repaint: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Warped garment (H, W, 3) uint8, and (H, W) bool: what it covers."""
        if self.warp_source == "folder":
            image = files.photo("warped_garment")
            if self._place("warped_mask") is not None:
                stored = files.mask("warped_mask", image.size)
            else:
                stored = (np.asarray(image) < SURROUND).any(axis=2)
            warped = transforms.resize_photo(image, self.size)
            return warped, transforms.resize_silhouette(stored, self.size)
        if self._warp is None:
            raise DataError("data.warp_source=learned: this data set was opened without its warp.")
        joints = _in_pixels(joints, self.size)
        return self._warp(garment, silhouette, joints, agnostic, repaint, files.pair.category)

    def _truth(self, files: PairFiles) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The true picture of an unpaired pair, (3, H, W) uint8, and where it shows the garment,
        (1, H, W) bool. Only rendered data has them.
        """
        if self.order == "paired" or self._place("truth") is None:
            return None, None
        truth = files.photo("truth")
        parse = files.labels("truth_parse", truth.size)
        if parse is None:
            return self._picture(truth), None
        parse = transforms.resize_labels(parse, self.size)
        worn = np.isin(parse, labels.GARMENT_LABELS[files.pair.category])
        return self._picture(truth), records.mask(worn)

    def _picture(self, photo: Image.Image) -> torch.Tensor:
        """A photograph at this data set's size, (3, H, W) uint8."""
        return records.picture(transforms.resize_photo(photo, self.size))

    def _files(self, pair: Pair) -> PairFiles:
        return self.folder.files(self.split, self.order, pair)

    def _place(self, part: str) -> Place | None:
        return self.folder.place(part, self.split, self.order)

    def _mask_source(self) -> str:
        """data.mask_source with "auto" resolved: "folder" or "derive"."""
        source = self.folder.config.mask_source
        exists = self._place("agnostic_mask") is not None
        if source == "folder" and not exists:
            advice = "Use data.mask_source=derive."
            raise self._absent("agnostic_mask", "data.mask_source=folder", advice)
        if source == "auto":
            return "folder" if exists else "derive"
        return source

    def _warp_source(self) -> str:
        """data.warp_source with "auto" resolved."""
        source = self.folder.config.warp_source
        exists = self._place("warped_garment") is not None
        if source == "folder" and not exists:
            advice = "Use data.warp_source=geometric."
            raise self._absent("warped_garment", "data.warp_source=folder", advice)
        if source == "auto":
            # The renderer's own warp is exact: with it a synthetic comparison would measure who
            # copies best.
            return "folder" if exists and self.folder.config.name != "synthetic" else "geometric"
        return source

    def _require_one_warp_each(self) -> None:
        """Raise DataError if two pairs with different garments or persons would read one warp."""
        place = self._place("warped_garment")
        known: dict[tuple[str, str], Pair] = {}
        for pair in self.garments:
            key = (pair.category, place.stem_of(pair))
            other = known.setdefault(key, pair)
            if other == pair:
                continue
            owner, others = "person", "garments"
            if "{person}" not in place.stem:
                owner, others = "garment", "persons"
            raise DataError(
                f"{self.folder.dataset} {self.split} {self.order}: {place.folder}/ has warped "
                f"garments named by {owner}, but {getattr(pair, owner)} is listed with two "
                f"{others} ({other.id}, {pair.id}), of which one would get the other's warp. "
                f"Use data.warp_source=geometric, or a list that has each {owner} once."
            )

    def require_files(self) -> None:
        """Raise DataError unless every file that samples are read from exists.

        Only names are looked up, which is quick. The message names the first missing file and
        counts the others. A list of unpaired pairs that are all paired is refused too: its results
        would have the wrong name.
        """
        if self.in_fact_paired:
            raise DataError(self.in_fact_paired)
        missing: dict[str, DataError] = {}
        for pair, garment in zip(self.pairs, self.garments, strict=True):
            for part in self._parts_read():
                of_garment = part in ("garment", "garment_mask", "warped_garment", "warped_mask")
                files = self._files(garment if of_garment else pair)
                try:
                    files.path(part)
                except images.FileError as error:
                    missing.setdefault(str(error.path), error)
        if missing:
            first = next(iter(missing.values()))
            more = f" {len(missing) - 1:,} more files are missing." if len(missing) > 1 else ""
            raise DataError(f"{first}{more}")

    def _parts_read(self) -> list[str]:
        """The parts that `record` reads from files."""
        parts = ["person", "garment", "parse", "keypoints"]
        optional = ["garment_mask"]
        if self.folder.config.densepose:
            optional.append("densepose")
        if self.folder.config.person_other:
            optional.append("person_other")
        if self.mask_source == "folder":
            optional.append("agnostic_mask")
        if self.warp_source == "folder":
            optional += ["warped_garment", "warped_mask"]
        if self.order == "unpaired":
            optional += ["truth", "truth_parse"]
        return parts + [part for part in optional if self._place(part) is not None]

    def _absent(self, part: str, setting: str, advice: str) -> DataError:
        names = ", ".join(f"{place.folder}/" for place in self.folder.places(part, self.order))
        what = self.folder.parts[part].what
        partly = self.folder.partly_absent(part, self.split, self.order)
        if partly:
            advice = f"{partly}: add it, or choose another data.category. {advice}"
        return DataError(
            f"{self.folder.dataset} {self.split} {self.order}: {setting} needs a folder with the "
            f"{what} of every pair; looked for {names} below {self.folder.root}. {advice}"
        )


def _in_fact_paired(folder: Folder, split: Split, pairs: Sequence[Pair]) -> str:
    """What is wrong with a list of unpaired pairs that are all paired, "" for any other list.

    Warns once per list if some of its pairs are paired.
    """
    count = sum(pair.person == pair.garment for pair in pairs)
    if not count:
        return ""
    path = folder.list_path(split, "unpaired")
    message = (
        f"{folder.dataset} {split}: {count:,} of {len(pairs):,} unpaired pairs of {path} are in "
        "fact paired"
    )
    if count == len(pairs):
        message += ". Name another list in data.list_unpaired, or set eval.orders=[paired]."
    if path not in _warned:
        _warned.add(path)
        log.warning("%s", message)
    return message if count == len(pairs) else ""


def _in_pixels(joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Joints with x and y in pixels of a picture of (height, width)."""
    return joints * np.float32([size[1], size[0], 1])
