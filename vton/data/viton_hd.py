"""VITON-HD (Choi et al., CVPR 2021) on disk: one category, folders `train` and `test`, both
generations of names.

`train_pairs.txt` and `test_pairs.txt` name person and garment. Their second column is the
*unpaired* garment, in the
training list too: the garment a person wears has the person's own name.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from vton.config import DataConfig
from vton.data import captions, densepose, images, pose
from vton.data.folder import Folder, Pair, PairFiles, Part, Place, Split, chosen, read_pair_list
from vton.data.images import Origin
from vton.data.sample import Category, Order
from vton.data.shards import Source, stands

CATEGORY: Category = "upper_body"  # the official set holds tops only
LABELS = 20
TAG_FILES = {"train": "vitonhd_train_tagged.json", "test": "vitonhd_test_tagged.json"}


class VitonHD(Folder):
    """Reads a VITON-HD folder. Ids are file stems, such as 00891_00."""

    parts: ClassVar = {
        "person": Part("image", (Place("image", "{person}"),)),
        "garment": Part("garment", (Place("cloth", "{garment}"),)),
        "garment_mask": Part(
            "garment mask", (Place("cloth-mask", "{garment}"), Place("cloth_mask", "{garment}"))
        ),
        "parse": Part(
            "parse map",
            (Place("image-parse-v3", "{person}"), Place("image-parse", "{person}")),
            (".png",),
        ),
        "keypoints": Part(
            "keypoints",
            (
                Place("openpose_json", "{person}_keypoints"),
                Place("openpose-json", "{person}_keypoints"),
            ),
            (".json",),
        ),
        "agnostic_mask": Part(
            "agnostic mask",
            (
                Place("agnostic-mask", "{person}_mask"),
                Place("mask", "{person}"),
                Place("agnostic-densepose-v3", "{person}_mask"),
            ),
        ),
        "densepose": Part("DensePose picture", (Place("image-densepose", "{person}"),)),
        "warped_garment": Part("warped garment", (Place("cloth-warp", "{person}"),)),
        "warped_mask": Part("warped garment mask", (Place("cloth-warp-mask", "{person}"),)),
        "truth": Part("true unpaired picture", (Place("gt-unpaired", "{person}__{garment}"),)),
        "truth_parse": Part(
            "parse map of the true unpaired picture",
            (Place("gt-unpaired-parse", "{person}__{garment}"),),
        ),
    }
    # DCI-VTON's, then GarDiff's, which are keyed by garment.
    warps: ClassVar = {
        "paired": (
            (Place("cloth-warp", "{person}"), Place("cloth-warp-mask", "{person}")),
            (Place("warp_cloth", "{garment}"), Place("warp_cloth-mask", "{garment}")),
        ),
        "unpaired": (
            (
                Place("unpaired-cloth-warp", "{person}"),
                Place("unpaired-cloth-warp-mask", "{person}"),
            ),
            (Place("warp_cloth_u", "{garment}"), Place("warp_cloth_u-mask", "{garment}")),
        ),
    }
    expected: ClassVar = {("train", CATEGORY): 11_647, ("test", CATEGORY): 2_032}

    def __init__(self, root: Source, config: DataConfig, dataset: str = "viton_hd"):
        super().__init__(root, config, dataset)
        self.categories = chosen((CATEGORY,), config.category, dataset)
        self._tags: dict[Split, dict[str, str]] = {}

    def pairs(self, split: Split, order: Order) -> list[Pair]:
        rows = read_pair_list(self.root / f"{split}_pairs.txt", self.dataset)
        return [Pair(row[0], row[order == "unpaired"], CATEGORY) for row in rows]

    def base(self, split: Split, category: Category) -> Source:
        return self.root / split

    def read_labels(self, files: PairFiles, part: str, size: tuple[int, int] | None) -> np.ndarray:
        return images.read_labels(
            files.path(part), self.parts[part].what, files.origin(part), size, LABELS
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
            self._tags[split] = captions.read_tags(path) if stands(path) else {}
        return self._tags[split].get(pair.garment)
