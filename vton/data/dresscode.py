"""DressCode (Morelli et al., ECCV 2022) on disk: a folder for each category.

Each holds training and test pictures. Files of one pair share their id and differ by suffix:
`<id>_0` model, `_1` garment, `_2` keypoints, `_4` parse map, `_5` skeleton and DensePose. The lists
name file and suffix, root lists also the category as 0, 1 or 2. The paired and the unpaired list
have different orders.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from vton.config import DataConfig
from vton.data import captions, densepose, images, labels, pose
from vton.data.folder import Folder, PairFiles, Split, chosen, file_kind, warp_places
from vton.data.images import Origin
from vton.data.pairs import Pair, read_pair_list
from vton.data.sample import CATEGORIES, Category, DataError, Order
from vton.data.source import Source, composed, lexists

CAPTION_FILES = ("dc_caption.txt", "dc_descriptions.txt")  # IDM-VTON's, Mobile-VTON's
LISTS = {
    ("train", "paired"): "train_pairs.txt",
    ("test", "paired"): "test_pairs_paired.txt",
    ("test", "unpaired"): "test_pairs_unpaired.txt",
}


class DressCode(Folder):
    """Reads a DressCode folder.

    Ids are the six digits that model and garment share, such as 048392.
    """

    parts: ClassVar = {
        "person": file_kind("image", "images/{person}_0"),
        "garment": file_kind("garment", "images/{garment}_1"),
        "garment_mask": file_kind("garment mask", "masks/{garment}_1"),  # LaDI-VTON's addition
        "parse": file_kind("parse map", "label_maps/{person}_4", suffixes=(".png",)),
        "keypoints": file_kind("keypoints", "keypoints/{person}_2", suffixes=(".json",)),
        "agnostic_mask": file_kind(
            "agnostic mask",
            "agnostic_masks/{person}_0",
            "agnostic-mask/{person}_0",
            "mask/{person}_0",
        ),
        # IDM-VTON's pictures and the set's own labels come from different DensePose runs: one of
        # them for all splits.
        "densepose": file_kind(
            "DensePose picture", "image-densepose/{person}_0", "dense/{person}_5.png"
        ),
        "person_other": file_kind(
            "picture of the person in other clothes",
            "person-other/{person}_0",
            "image_synthesis/{person}_0",
            "edited_image/{person}_0",
        ),
        "warped_garment": file_kind("warped garment", "warped_cloth/{person}_0"),
        "warped_mask": file_kind("warped garment mask", "warped_mask/{person}_0"),
        "truth": file_kind("true unpaired picture", "gt-unpaired/{person}__{garment}"),
        "truth_parse": file_kind(
            "parse map of the true unpaired picture", "gt-unpaired-parse/{person}__{garment}"
        ),
    }
    # DCI-VTON's names, then those of the VITON-HD layout.
    warps: ClassVar = {
        "paired": warp_places(
            ("warped_cloth/{person}_0", "warped_mask/{person}_0"),
            ("cloth-warp/{person}_0", "cloth-warp-mask/{person}_0"),
            ("warp_cloth/{garment}_1", "warp_cloth-mask/{garment}_1"),
        ),
        "unpaired": warp_places(
            ("unpaired_warped_cloth/{person}_0", "unpaired_warped_mask/{person}_0"),
            ("unpaired-cloth-warp/{person}_0", "unpaired-cloth-warp-mask/{person}_0"),
            ("warp_cloth_u/{garment}_1", "warp_cloth_u-mask/{garment}_1"),
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
        self.require_any_of(CATEGORIES)
        self.require_same_case(*(root / name for name in self.categories))
        absent = [f"{name}/" for name in self.categories if not (root / name).is_dir()]
        if absent:
            raise DataError(
                f"{dataset}: no folder {', '.join(absent)} below {root}. Complete the data set, or "
                "choose the category you have with data.category."
            )

    def pairs(self, split: Split, order: Order) -> list[Pair]:
        name = self.list_name(split, order) or LISTS.get((split, order))
        if name is None:
            raise DataError(
                f"{self.dataset}: there is no list of {order} pairs for the {split} split."
            )
        if len(self.categories) == 1:
            own_list = self.root / self.categories[0] / name
            if lexists(own_list):
                return self._read_list(own_list, order, self.categories[0])
        if lexists(self.root / name):
            pairs = self._read_list(self.root / name, order, None)
            pairs = [pair for pair in pairs if pair.category in self.categories]
            if not pairs:
                raise DataError(
                    f"{self.dataset}: {self.root / name} has no pairs of "
                    f"{', '.join(self.categories)}; choose another data.category."
                )
            return pairs
        self.first_of(self._known_lists(name))  # raises if it has other capitals
        pairs = []
        for category in self.categories:
            pairs += self._read_list(self.root / category / name, order, category)
        return pairs

    def list_path(self, split: Split, order: Order) -> str:
        name = self.list_name(split, order) or LISTS[split, order]
        if lexists(self.root / name):
            return str(self.root / name)
        return ", ".join(str(self.root / category / name) for category in self.categories)

    def lacks(self, split: Split, order: Order) -> str:
        if order == "unpaired" or not self._lists(LISTS["test", "unpaired"]):
            return ""
        if self._lists(LISTS["train", "paired"]):
            return ""
        if split == "train":
            return "no training pairs: no train_pairs.txt"
        if not self._lists(LISTS["test", "paired"]):
            return "no paired test pairs: no test_pairs_paired.txt"
        return ""

    def base(self, split: Split, category: Category) -> Source:
        return self.root / category

    def read_labels(self, files: PairFiles, part: str, size: tuple[int, int] | None) -> np.ndarray:
        ids = images.read_labels(
            files.path(part),
            self.parts[part].what,
            files.origin(part),
            size,
            len(labels.FROM_DRESSCODE),
            palettes=(labels.DRESSCODE_PALETTE, labels.VOC_PALETTE),
            foreign={"VITON-HD": labels.VITON_HD_PALETTE},
        )
        return labels.FROM_DRESSCODE[ids]

    def read_joints(self, path: Source, origin: Origin) -> np.ndarray:
        return pose.read_coco_18(path, origin)

    def read_densepose(
        self, path: Source, origin: Origin, size: tuple[int, int] | None
    ) -> np.ndarray:
        if path.parent.name == "dense":
            return densepose.read_ids(path, origin, size)
        return densepose.read_colours(path, origin, size)

    def caption_file(self, split: Split, category: Category) -> Source:
        return self.first_of([self.root / category / name for name in CAPTION_FILES])

    def annotation(self, split: Split, pair: Pair) -> str | None:
        if pair.category not in self._captions:
            path = self.caption_file(split, pair.category)
            self._captions[pair.category] = (
                captions.read(path, self.dataset) if lexists(path) else {}
            )
        return self._captions[pair.category].get(composed(f"{pair.garment}_1"))

    def _lists(self, name: str) -> bool:
        """Whether root or any category has the list. Raises DataError if it has other capitals."""
        return lexists(self.first_of(self._known_lists(name)))

    def _known_lists(self, name: str) -> list[Source]:
        """Where a list may lie: in the root, or in the folders of categories."""
        return [self.root / name, *(self.root / category / name for category in self.categories)]

    def _read_list(self, path: Source, order: Order, category: Category | None) -> list[Pair]:
        """Pairs of one list.

        `category` is None for a root list, which names it in its third column.
        """
        pairs = []
        for person, garment, *third in read_pair_list(path, self.dataset):
            where = f"{self.dataset}: {path}"
            if category is None and (not third or third[0] not in ("0", "1", "2")):
                raise DataError(
                    f"{where} has no category 0, 1 or 2 in the third column for {person}. Restore "
                    "the list, or remove it to use the lists in the category folders."
                )
            if not (person.endswith("_0") and garment.endswith("_1")):
                raise DataError(
                    f"{where} pairs {person} with {garment}; expected <id>_0 (model) and then "
                    "<id>_1 (garment). Are the columns crossed?"
                )
            listed = category or CATEGORIES[int(third[0])]
            names = person.removesuffix("_0"), garment.removesuffix("_1")
            pair = Pair(*names, listed, per_category=True)
            if order == "paired" and pair.person != pair.garment:
                raise DataError(
                    f"{where} is a paired list but pairs {person} with {garment}. Restore the list."
                )
            pairs.append(pair)
        return pairs
