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
from vton.data.source import Source, composed, lexists

CATEGORY: Category = "upper_body"  # the official set holds tops only
LABELS = 20
# Caption files, in the split's folder or the root; the first one that exists is read.
CAPTION_FILES = (
    "{split}/vitonhd_{split}_tagged.json",  # IDM-VTON
    "{split}/image_descriptions.txt",  # Mobile-VTON
    "{split}_gpt4o.json",  # PromptDresser
)
# Names of pair lists. The second column of the official lists is the unpaired garment, and so it is
# in those of StableVITON, SIFT-VTON and PromptDresser. CatVTON, GP-VTON and D4-VTON have a list for
# each order.
LISTS: dict[tuple[Split, Order], tuple[str, ...]] = {
    ("train", "paired"): ("train_pairs.txt", "train_pairs_1018.txt", "siftvton_train_pairs.txt"),
    ("test", "paired"): (
        "test_pairs.txt",
        "test_pairs_paired.txt",
        "test_pairs_paired_1018.txt",
        "siftvton_test_pairs.txt",
        "test_unpairs.txt",
        "test_pairs_unpaired.txt",
        "test_pairs_unpaired_1018.txt",
    ),
    ("test", "unpaired"): (
        "test_pairs.txt",
        "test_pairs_unpaired.txt",
        "test_pairs_unpaired_1018.txt",
        "siftvton_test_pairs.txt",
        "test_unpairs.txt",
    ),
}

PARSE_FOLDERS = (
    "image-parse-v3/{person}",
    "image-parse/{person}",
    "parse-bytedance/{person}",  # GP-VTON's, of 29 labels
)
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
        "garment_mask": file_kind(
            "garment mask",
            "cloth-mask/{garment}",
            "cloth_mask/{garment}",
            "cloth_mask-bytedance/{garment}",
        ),
        "parse": file_kind("parse map", *PARSE_FOLDERS, suffixes=(".png",)),
        "keypoints": file_kind("keypoints", *KEYPOINT_FOLDERS, suffixes=(".json",)),
        "agnostic_mask": file_kind("agnostic mask", *AGNOSTIC_FOLDERS),
        # GP-VTON's `densepose` holds part ids in grey.
        "densepose": file_kind(
            "DensePose picture", "image-densepose/{person}", "densepose/{person}.png"
        ),
        "person_other": file_kind(
            "picture of the person in other clothes",
            "person-other/{person}",
            "image_synthesis/{person}",
            "edited_image/{person}",
        ),
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
            ("cloth-warp/{person}", "gt_cloth_warped_mask/{person}"),  # StableVITON's silhouettes
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
        lists = dict.fromkeys(name for names in LISTS.values() for name in names)
        self.require_any_of(("train", "test", *lists))
        self._tags: dict[Split, dict[str, str]] = {}

    def pairs(self, split: Split, order: Order) -> list[Pair]:
        pairs = []
        for person, garment, *_ in read_pair_list(self._list(split, order), self.dataset):
            worn = person if order == "paired" else garment
            pairs.append(Pair(person, worn, CATEGORY))
        return pairs

    def list_path(self, split: Split, order: Order) -> str:
        return str(self._list(split, order))

    def lacks(self, split: Split, order: Order) -> str:
        if lexists(self._list("train", "paired")) or lexists(self.root / "train"):
            return ""
        self.require_same_case(self.root / "train")
        if split == "train":
            return "no training pairs: neither train_pairs.txt nor train/"
        one_list = self._list(split, "paired") == self._list(split, "unpaired")
        if order == "unpaired" or not one_list or self._worn(self.pairs(split, "unpaired")):
            return ""
        return "no paired test pairs: no garment has the name of a person, who would wear it"

    def _list(self, split: Split, order: Order) -> Source:
        """The pair list of an order: the first known one that exists.

        For unpaired pairs, the first one with another garment than the person's own on any line.
        Raises DataError where only a list with other capitals exists.
        """
        chosen_name = self.list_name(split, order)
        if chosen_name:
            return self.root / chosen_name
        known = [self.root / name for name in LISTS.get((split, order), LISTS["train", "paired"])]
        existing = [path for path in known if lexists(path)]
        if order == "unpaired" and len(existing) > 1:
            for path in existing:
                if any(row[0] != row[1] for row in read_pair_list(path, self.dataset)):
                    return path
        return self.first_of(known)

    def base(self, split: Split, category: Category) -> Source:
        return self.root / split

    def read_labels(self, files: PairFiles, part: str, size: tuple[int, int] | None) -> np.ndarray:
        path = files.path(part)
        what, origin = self.parts[part].what, files.origin(part)
        if path.parent.name == "parse-bytedance":
            ids = images.read_labels(path, what, origin, size, len(labels.FROM_BYTEDANCE))
            return labels.FROM_BYTEDANCE[ids]
        palettes = (labels.VITON_HD_PALETTE, labels.VOC_PALETTE)
        return images.read_labels(path, what, origin, size, LABELS, palettes)

    def read_joints(self, path: Source, origin: Origin) -> np.ndarray:
        return pose.read_body_25(path, origin)

    def read_densepose(
        self, path: Source, origin: Origin, size: tuple[int, int] | None
    ) -> np.ndarray:
        if path.parent.name == "densepose":
            return densepose.read_ids(path, origin, size)
        return densepose.read_colours(path, origin, size)

    def caption_file(self, split: Split, category: Category) -> Source:
        return self.first_of([self.root / name.format(split=split) for name in CAPTION_FILES])

    def annotation(self, split: Split, pair: Pair) -> str | None:
        if split not in self._tags:
            path = self.caption_file(split, pair.category)
            self._tags[split] = captions.read(path, self.dataset) if lexists(path) else {}
        return self._tags[split].get(composed(pair.garment))
