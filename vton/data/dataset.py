"""From files to records and samples: the un-augmented data set, and the stream of augmented
training samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from vton import config as configuration
from vton.config import DataConfig
from vton.data import labels, transforms
from vton.data import record as records
from vton.data.captions import Templates
from vton.data.derived.agnostic import agnostic_mask
from vton.data.derived.warp import WarpSource, warp_source
from vton.data.dresscode import DressCode
from vton.data.encoded import Encodings
from vton.data.folder import Folder, Pair, PairFiles, Split
from vton.data.images import WHITE
from vton.data.record import Record
from vton.data.sample import DataError, Order, TryOnSample
from vton.data.shards import Source, open_source, stands
from vton.data.viton_hd import VitonHD

LAYOUTS: dict[str, type[Folder]] = {"viton_hd": VitonHD, "dresscode": DressCode}


def dataset_root(config: DataConfig) -> Source:
    """The folder or shards to read. Rendered data has one per setting below data.root, so that
    settings never mix.
    """
    root = configuration.data_root(config)
    if config.name == "synthetic":
        rendered, (height, width) = config.synthetic, config.picture_size
        root += (
            f"/{rendered.layout}-{height}x{width}-{rendered.train}-{rendered.test}-{rendered.seed}"
        )
    return open_source(root, config.shards_kept)


def open_folder(config: DataConfig) -> Folder:
    """The reader of the configured data set. Raises DataError when the folder or the chosen
    category is absent.
    """
    layout = config.synthetic.layout if config.name == "synthetic" else config.name
    return LAYOUTS[layout](dataset_root(config), config, config.name)


class TryOnDataset(Dataset):
    """The pairs of one split in one order, as they are on disk: item i is a TryOnSample. Raises
    DataError.

    shuffled: the control experiment. Every sample keeps its person, truth and name but gets the
    garment of the next pair of its category, fitted to its own person. A model that uses its
    garment must get worse.
    warp: the source that data.warp_source=learned means.
    Records stay in this process when data.cache is "memory".
    """

    def __init__(
        self,
        folder: Folder,
        split: Split,
        order: Order,
        shuffled: bool = False,
        warp: WarpSource | None = None,
    ):
        config = folder.config
        self.folder = folder
        self.split = split
        self.order = order
        self.size = config.picture_size
        for (
            part
        ) in folder.parts:  # what stands in the place of a folder without being one is named here
            folder.place(part, split, order)
        pairs = folder.pairs(split, order)
        if split == "train" and config.limit_train > len(pairs):
            raise DataError(
                f"{folder.dataset} train: data.limit_train={config.limit_train}, but there are {len(pairs)} pairs. A "
                "run that is known by its number of pairs must have them: use at most as many, or 0 for all."
            )
        self.pairs = limited(pairs, config.limit_train if split == "train" else config.limit_test)
        self.garments = exchanged(self.pairs) if shuffled else self.pairs
        self.mask_source = self._mask_source()
        self.warp_source = self._warp_source()
        if config.densepose and not self._exists("densepose"):
            raise self._absent(
                "densepose",
                "data.densepose=true",
                "Use data.densepose=false for models without it.",
            )
        self.templates = Templates(config.person_caption, config.garment_caption)
        self._warp = (
            warp if self.warp_source in ("folder", "learned") else warp_source(self.warp_source)
        )
        self._kept: dict[int, Record] | None = {} if config.cache == "memory" else None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def pair_ids(self) -> list[str]:
        """Names of the pairs in list order, as their samples carry them."""
        return [f"{pair.person}__{pair.garment}" for pair in self.pairs]

    def __getitem__(self, index: int) -> TryOnSample:
        return self.sample(self.record(index))

    def sample(self, record: Record, position: int = -1) -> TryOnSample:
        """A record of this data set, changed or not, as models see it: at data.size."""
        return transforms.to_sample(
            transforms.pad(record, self.folder.config.size), position, self.templates
        )

    def record(self, index: int) -> Record:
        """Pair `index`, decoded and brought to its size, without padding."""
        if self._kept is None:
            return self._decode(index)
        if index not in self._kept:
            self._kept[index] = self._decode(index)
        return self._kept[index]

    def photos(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Person and garment of pair `index`, as `record` has them but without reading the rest."""
        person, garment = (
            self.folder.files(self.split, self.order, of[index])
            for of in (self.pairs, self.garments)
        )
        photos = (person.photo("person"), garment.photo("garment"))
        return tuple(records.picture(transforms.resize_photo(photo, self.size)) for photo in photos)

    def originals(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Person and truth of pair `index` as stored, uint8 (3, h, w); no truth for real unpaired
        pairs.

        Evaluation protocols that resize in their own way start from these.
        """
        files = self.folder.files(self.split, self.order, self.pairs[index])
        person = records.picture(np.array(files.photo("person")))
        if self.order == "paired":
            return person, person
        return person, records.picture(np.array(files.photo("truth"))) if self._exists(
            "truth"
        ) else None

    def _decode(self, index: int) -> Record:
        size, pair = self.size, self.pairs[index]
        files = self.folder.files(self.split, self.order, pair)
        clothes = self.folder.files(self.split, self.order, self.garments[index])
        person, garment = files.photo("person"), clothes.photo("garment")
        parse, joints = files.labels("parse", person.size), files.joints()
        parts = files.densepose(person.size) if self.folder.config.densepose else None
        silhouette = transforms.resize_silhouette(clothes.garment_mask(garment), size)
        repaint = transforms.resize_repaint(self._repaint(files, person, parse, joints), size)
        person, garment = (transforms.resize_photo(photo, size) for photo in (person, garment))
        agnostic = np.where(repaint[..., None], np.uint8(0), person)
        warped, warped_mask = self._warped(clothes, garment, silhouette, joints, agnostic, repaint)
        truth, worn = self._truth(files)
        return Record(
            index=index,
            dataset=self.folder.dataset,
            pair=pair,
            order=self.order,
            annotation=clothes.annotation(),
            person=records.picture(person),
            garment=records.picture(garment),
            warped_garment=records.picture(warped),
            truth=None if truth is None else records.picture(transforms.resize_photo(truth, size)),
            agnostic_mask=records.mask(repaint),
            garment_mask=records.mask(silhouette),
            warped_mask=records.mask(warped_mask & repaint),
            truth_garment_mask=None if worn is None else records.mask(worn),
            parse=torch.from_numpy(transforms.resize_labels(parse, size)),
            densepose=None
            if parts is None
            else torch.from_numpy(transforms.resize_labels(parts, size)),
            joints=joints,
        )

    @property
    def sources(self) -> dict[str, str]:
        """Where masks and warped garments come from, for the provenance of results: both change the
        numbers.
        """
        learned = self.warp_source == "learned" and self._warp is not None
        warp = str(self._warp) if learned else self.warp_source
        sources = {"warp": warp, "mask": f"derive:{self.folder.config.mask_rule}"}
        for part, name in (("agnostic_mask", "mask"), ("warped_garment", "warp")):
            if getattr(self, f"{name}_source") == "folder":
                sources[name] = f"folder:{self.folder.place(part, self.split, self.order).folder}"
        has_masks = self.folder.place("garment_mask", self.split, self.order)
        return sources | {
            "garment_mask": f"folder:{has_masks.folder}" if has_masks else "derive:near_white"
        }

    def without_caption(self, where_absent: bool) -> str:
        """One line on the garments that get data.caption_fallback, "" when there are none. Raises
        DataError.

        where_absent: also those of caption files that do not exist, for a data set needs none.
        """
        folder, split = self.folder, self.split
        if folder.config.caption_source == "fallback":  # no garment is asked for one
            return ""
        garments = dict.fromkeys(
            Pair(pair.garment, pair.garment, pair.category) for pair in self.pairs
        )
        files = {garment: folder.caption_file(split, garment.category) for garment in garments}
        counted = [garment for garment, file in files.items() if where_absent or stands(file)]
        left_out = [garment for garment in counted if folder.annotation(split, garment) is None]
        if not left_out:
            return ""
        names = dict.fromkeys(files[garment] for garment in left_out)
        names = ", ".join(str(file) if stands(file) else f"{file} (absent)" for file in names)
        return (
            f"{len(left_out):,} of {len(counted):,} garments have no caption; they get "
            f"'{folder.config.caption_fallback}' (data.caption_fallback). The first is {left_out[0].garment}; "
            f"captions come from {names}."
        )

    def _mask_source(self) -> str:
        source, exists = self.folder.config.mask_source, self._exists("agnostic_mask")
        if source == "folder" and not exists:
            raise self._absent(
                "agnostic_mask", "data.mask_source=folder", "Use data.mask_source=derive."
            )
        return ("folder" if exists else "derive") if source == "auto" else source

    def _warp_source(self) -> str:
        source, exists = self.folder.config.warp_source, self._exists("warped_garment")
        if source == "folder" and not exists:
            raise self._absent(
                "warped_garment", "data.warp_source=folder", "Use data.warp_source=geometric."
            )
        if source == "auto":
            # The renderer's own warp is exact: with it a synthetic comparison would measure who
            # copies best.
            return "folder" if exists and self.folder.config.name != "synthetic" else "geometric"
        return source

    def _exists(self, part: str) -> bool:
        return self.folder.place(part, self.split, self.order) is not None

    def _absent(self, part: str, setting: str, advice: str) -> DataError:
        names = ", ".join(f"{place.folder}/" for place in self.folder.places(part, self.order))
        return DataError(
            f"{self.folder.dataset} {self.split} {self.order}: {setting} needs a folder with the "
            f"{self.folder.parts[part].what} of every pair; looked for {names} below {self.folder.root}. {advice}"
        )

    def _repaint(
        self, files: PairFiles, person: Image.Image, parse: np.ndarray, joints: np.ndarray
    ) -> np.ndarray:
        """(h, w) bool agnostic mask at the stored size, where the rules' constants hold best."""
        if self.mask_source == "folder":
            return files.mask("agnostic_mask", person.size)
        return agnostic_mask(
            parse,
            _in_pixels(joints, parse.shape),
            files.pair.category,
            self.folder.config.mask_rule,
        )

    def _warped(
        self,
        files: PairFiles,
        garment: np.ndarray,
        silhouette: np.ndarray,
        joints: np.ndarray,
        agnostic: np.ndarray,
        repaint: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Warped garment (H, W, 3) uint8 and where it lies (H, W) bool."""
        if self.warp_source != "folder":
            if self._warp is None:
                raise DataError(
                    "data.warp_source=learned: this data set was opened without its warp."
                )
            joints = _in_pixels(joints, self.size)
            return self._warp(garment, silhouette, joints, agnostic, repaint, files.pair.category)
        image = files.photo("warped_garment")
        has_mask = self.folder.place("warped_mask", self.split, self.order) is not None
        stored = (
            files.mask("warped_mask", image.size)
            if has_mask
            else (np.asarray(image) < WHITE).any(axis=2)
        )
        return transforms.resize_photo(image, self.size), transforms.resize_silhouette(
            stored, self.size
        )

    def _truth(self, files: PairFiles) -> tuple[Image.Image | None, np.ndarray | None]:
        """The true picture of an unpaired pair, which rendered data has, and (H, W) bool where it
        shows the garment.
        """
        if self.order == "paired" or not self._exists("truth"):
            return None, None
        truth = files.photo("truth")
        parse = files.labels("truth_parse", truth.size)
        if parse is None:
            return truth, None
        parse = transforms.resize_labels(parse, self.size)
        return truth, np.isin(parse, labels.GARMENT_LABELS[files.pair.category])


class Draw(NamedTuple):
    """One element of the training stream: which pair, and its place in the stream."""

    index: int
    position: int


class TrainingStream(Dataset):
    """Augmented training samples, addressed by Draw, with what is stored of frozen encoders'
    readings.
    """

    def __init__(self, pairs: TryOnDataset, seed: int):
        self.pairs = pairs
        self.seed = seed
        self.encodings: Encodings | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, draw: Draw) -> TryOnSample:
        changes = transforms.Changes.draw(
            self.pairs.folder.config.augment, self.seed, draw.position
        )
        sample = self.pairs.sample(
            transforms.augment(self.pairs.record(draw.index), changes), draw.position
        )
        if self.encodings is not None:
            sample.encoded = self.encodings.of(sample)
        return sample


def limited(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """`limit` pairs spread evenly over the list, so that every category stays; all of them for 0."""
    if not limit or limit >= len(pairs):
        return list(pairs)
    return [pairs[place * len(pairs) // limit] for place in range(limit)]


def exchanged(pairs: Sequence[Pair]) -> list[Pair]:
    """For every pair another of its category, in a cycle. Raises DataError for a category with a
    single pair.
    """
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        places.setdefault(pair.category, []).append(place)
    others = list(pairs)
    for category, members in places.items():
        if len(members) == 1:
            raise DataError(
                f"{category} has a single pair, so garments cannot be exchanged; use eval.shuffled=false."
            )
        for place, other in zip(members, members[1:] + members[:1], strict=True):
            others[place] = pairs[other]
    return others


def _in_pixels(joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Joints with x and y in pixels of a picture of (height, width)."""
    return joints * np.float32([size[1], size[0], 1])
