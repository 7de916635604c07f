"""VITON-HD (Choi et al., CVPR 2021) on disk: one category, folders `train` and `test`.

Both generations of folder names are known. `train_pairs.txt` and `test_pairs.txt` name person and
garment. Their second column is the *unpaired* garment, in the training list too: the garment a
person wears has the person's own name.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from vton.config import DataConfig
from vton.data import captions, densepose, images, labels, pose
from vton.data.folder import Folder, PairFiles, Split, chosen, file_kind, warp_places
from vton.data.images import Origin
from vton.data.pairs import Pair, read_pair_list
from vton.data.sample import Category, Order
from vton.data.source import Source, lexists

CATEGORY: Category = "upper_body"  # the official set holds tops only
LABELS = 20
TAG_FILES = {"train": "vitonhd_train_tagged.json", "test": "vitonhd_test_tagged.json"}

PARSE_FOLDERS = ("image-parse-v3/{person}", "image-parse/{person}")
KEYPOINT_FOLDERS = ("openpose_json/{person}_keypoints", "openpose-json/{person}_keypoints")
AGNOSTIC_FOLDERS = (
    "agnostic-mask/{person}_mask",
    "mask/{person}",
    "agnostic-densepose-v3/{person}_mask",
)


class VitonHD(Folder):
    """Reads a VITON-HD folder. Ids are file stems, such as 00891_00."""

    parts: ClassVar = {
        "person": file_kind("image", "image/{person}"),
        "garment": file_kind("garment", "cloth/{garment}"),
        "garment_mask": file_kind("garment mask", "cloth-mask/{garment}", "cloth_mask/{garment}"),
        "parse": file_kind("parse map", *PARSE_FOLDERS, suffixes=(".png",)),
        "keypoints": file_kind("keypoints", *KEYPOINT_FOLDERS, suffixes=(".json",)),
        "agnostic_mask": file_kind("agnostic mask", *AGNOSTIC_FOLDERS),
        "densepose": file_kind("DensePose picture", "image-densepose/{person}"),
        "warped_garment": file_kind("warped garment", "cloth-warp/{person}"),
        "warped_mask": file_kind("warped garment mask", "cloth-warp-mask/{person}"),
        "truth": file_kind("true unpaired picture", "gt-unpaired/{person}__{garment}"),
        "truth_parse": file_kind(
            "parse map of the true unpaired picture", "gt-unpaired-parse/{person}__{garment}"
        ),
    }
    # DCI-VTON's, then GarDiff's, which are keyed by garment.
    warps: ClassVar = {
        "paired": warp_places(
            ("cloth-warp/{person}", "cloth-warp-mask/{person}"),
            ("warp_cloth/{garment}", "warp_cloth-mask/{garment}"),
        ),
        "unpaired": warp_places(
            ("unpaired-cloth-warp/{person}", "unpaired-cloth-warp-mask/{person}"),
            ("warp_cloth_u/{garment}", "warp_cloth_u-mask/{garment}"),
        ),
    }
    expected: ClassVar = {("train", CATEGORY): 11_647, ("test", CATEGORY): 2_032}

    def __init__(self, root: Source, config: DataConfig, dataset: str = "viton_hd"):
        super().__init__(root, config, dataset)
        self.categories = chosen((CATEGORY,), config.category, dataset)
        self._tags: dict[Split, dict[str, str]] = {}

    def pairs(self, split: Split, order: Order) -> list[Pair]:
        pairs = []
        for person, garment, *_ in read_pair_list(self.root / f"{split}_pairs.txt", self.dataset):
            worn = person if order == "paired" else garment
            pairs.append(Pair(person, worn, CATEGORY))
        return pairs

    def lacks(self, split: Split, order: Order) -> str:
        if split == "train":
            training = (self.root / "train_pairs.txt", self.root / "train")
            if not any(map(lexists, training)):
                return "no training pairs: neither train_pairs.txt nor train/"
        elif order == "paired" and not self._worn("unpaired", self.pairs("test", "unpaired")):
            return "no paired test pairs: no garment has the name of a person, who would wear it"
        return ""

    def base(self, split: Split, category: Category) -> Source:
        return self.root / split

    def read_labels(self, files: PairFiles, part: str, size: tuple[int, int] | None) -> np.ndarray:
        return images.read_labels(
            files.path(part),
            self.parts[part].what,
            files.origin(part),
            size,
            LABELS,
            palettes=(labels.VITON_HD_PALETTE, labels.VOC_PALETTE),
        )

    def read_joints(self, path: Source, origin: Origin) -> np.ndarray:
        return pose.read_body_25(path, origin)

    def read_densepose(
        self, path: Source, origin: Origin, size: tuple[int, int] | None
    ) -> np.ndarray:
        return densepose.read_colours(path, origin, size)

    def caption_file(self, split: Split, category: Category) -> Source:
        return self.root / split / TAG_FILES[split]

    def annotation(self, split: Split, pair: Pair) -> str | None:
        if split not in self._tags:
            path = self.caption_file(split, pair.category)
            self._tags[split] = captions.read_tags(path) if lexists(path) else {}
        return self._tags[split].get(pair.garment)
