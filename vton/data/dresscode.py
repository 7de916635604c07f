"""DressCode (Morelli et al., ECCV 2022) on disk: a folder per category, which holds training and
test pictures.

Files of one pair share their id and differ by suffix: `<id>_0` model, `_1` garment, `_2` keypoints,
`_4` parse map, `_5` skeleton and DensePose. The lists name file and suffix, root lists also the
category as 0, 1 or 2. The paired and the unpaired list have different orders.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from vton.config import DataConfig
from vton.data import captions, densepose, images, labels, pose
from vton.data.folder import Folder, Pair, PairFiles, Part, Place, Split, chosen, read_pair_list
from vton.data.images import Origin
from vton.data.sample import CATEGORIES, Category, DataError, Order
from vton.data.shards import Source, stands

LISTS = {
    ("train", "paired"): "train_pairs.txt",
    ("test", "paired"): "test_pairs_paired.txt",
    ("test", "unpaired"): "test_pairs_unpaired.txt",
}


class DressCode(Folder):
    """Reads a DressCode folder. Ids are the six digits that model and garment share, such as
    048392.
    """

    parts: ClassVar = {
        "person": Part("image", (Place("images", "{person}_0"),)),
        "garment": Part("garment", (Place("images", "{garment}_1"),)),
        "garment_mask": Part(
            "garment mask", (Place("masks", "{garment}_1"),)
        ),  # LaDI-VTON's addition
        "parse": Part("parse map", (Place("label_maps", "{person}_4"),), (".png",)),
        "keypoints": Part("keypoints", (Place("keypoints", "{person}_2"),), (".json",)),
        "agnostic_mask": Part(
            "agnostic mask",
            (
                Place("agnostic_masks", "{person}_0"),
                Place("agnostic-mask", "{person}_0"),
                Place("mask", "{person}_0"),
            ),
        ),
        # IDM-VTON's pictures and the set's own labels come from different DensePose runs: one of
        # them for all splits.
        "densepose": Part(
            "DensePose picture",
            (Place("image-densepose", "{person}_0"), Place("dense", "{person}_5")),
        ),
        "warped_garment": Part("warped garment", (Place("warped_cloth", "{person}_0"),)),
        "warped_mask": Part("warped garment mask", (Place("warped_mask", "{person}_0"),)),
        "truth": Part("true unpaired picture", (Place("gt-unpaired", "{person}__{garment}"),)),
        "truth_parse": Part(
            "parse map of the true unpaired picture",
            (Place("gt-unpaired-parse", "{person}__{garment}"),),
        ),
    }
    # DCI-VTON's name, then those of the VITON-HD layout.
    warps: ClassVar = {
        "paired": (
            (Place("warped_cloth", "{person}_0"), Place("warped_mask", "{person}_0")),
            (Place("cloth-warp", "{person}_0"), Place("cloth-warp-mask", "{person}_0")),
            (Place("warp_cloth", "{garment}_1"), Place("warp_cloth-mask", "{garment}_1")),
        ),
        "unpaired": (
            (
                Place("unpaired_warped_cloth", "{person}_0"),
                Place("unpaired_warped_mask", "{person}_0"),
            ),
            (
                Place("unpaired-cloth-warp", "{person}_0"),
                Place("unpaired-cloth-warp-mask", "{person}_0"),
            ),
            (Place("warp_cloth_u", "{garment}_1"), Place("warp_cloth_u-mask", "{garment}_1")),
        ),
    }
    expected: ClassVar = {
        ("train", "upper_body"): 13_563,
        ("train", "lower_body"): 7_151,
        ("train", "dresses"): 27_678,
        ("test", "upper_body"): 1_800,
        ("test", "lower_body"): 1_800,
        ("test", "dresses"): 1_800,
    }

    def __init__(self, root: Source, config: DataConfig, dataset: str = "dresscode"):
        super().__init__(root, config, dataset)
        self.categories = chosen(CATEGORIES, config.category, dataset)
        self._captions: dict[Category, dict[str, str]] = {}
        absent = [category for category in self.categories if not (root / category).is_dir()]
        if absent:
            raise DataError(
                f"{dataset}: no folder {', '.join(f'{name}/' for name in absent)} below {root}. Complete the data set, "
                "or choose the category you have with data.category."
            )

    def pairs(self, split: Split, order: Order) -> list[Pair]:
        name = LISTS.get((split, order))
        if name is None:
            raise DataError(
                f"{self.dataset}: there is no list of {order} pairs for the {split} split."
            )
        lists = [self.root / category / name for category in self.categories]
        whole = self.root / name
        if len(self.categories) == 1 and stands(lists[0]):
            return self._read_list(lists[0], order, self.categories[0])
        if stands(whole):
            return [
                pair
                for pair in self._read_list(whole, order, None)
                if pair.category in self.categories
            ]
        return [
            pair
            for path, category in zip(lists, self.categories, strict=True)
            for pair in self._read_list(path, order, category)
        ]

    def base(self, split: Split, category: Category) -> Source:
        return self.root / category

    def read_labels(self, files: PairFiles, part: str, size: tuple[int, int] | None) -> np.ndarray:
        count = len(labels.FROM_DRESSCODE)
        atr = images.read_labels(
            files.path(part), self.parts[part].what, files.origin(part), size, count
        )
        return labels.FROM_DRESSCODE[atr]

    def read_joints(self, path: Source, origin: Origin) -> np.ndarray:
        return pose.read_coco_18(path, origin)

    def read_densepose(
        self, path: Source, origin: Origin, size: tuple[int, int] | None
    ) -> np.ndarray:
        reader = densepose.read_ids if path.parent.name == "dense" else densepose.read_colours
        return reader(path, origin, size)

    def caption_file(self, split: Split, category: Category) -> Source:
        return self.root / category / "dc_caption.txt"

    def annotation(self, split: Split, pair: Pair) -> str | None:
        if pair.category not in self._captions:
            path = self.caption_file(split, pair.category)
            self._captions[pair.category] = captions.read_lines(path) if stands(path) else {}
        return self._captions[pair.category].get(f"{pair.garment}_1")

    def _read_list(self, path: Source, order: Order, category: Category | None) -> list[Pair]:
        """Pairs of one list; `category` is None for a root list, which names it in its third
        column.
        """
        pairs = []
        for person, garment, *third in read_pair_list(path, self.dataset):
            if category is None and (not third or third[0] not in ("0", "1", "2")):
                raise DataError(
                    f"{self.dataset}: {path} has no category 0, 1 or 2 in the third column for {person}. Restore the "
                    "list, or remove it to use the lists in the category folders."
                )
            if not (person.endswith("_0") and garment.endswith("_1")):
                raise DataError(
                    f"{self.dataset}: {path} pairs {person} with {garment}; expected <id>_0 (model) and then <id>_1 "
                    "(garment). Are the columns crossed?"
                )
            pair = Pair(person[:-2], garment[:-2], category or CATEGORIES[int(third[0])])
            if order == "paired" and pair.person != pair.garment:
                raise DataError(
                    f"{self.dataset}: {path} is a paired list but pairs {person} with {garment}. Restore the list."
                )
            pairs.append(pair)
        return pairs
