"""The parser backends `fashn` and `segformer`: SegFormer (Xie et al., NeurIPS 2021).

Both weights derive from NVIDIA's, whose licence is for non-commercial use. Neither network knows
all of our labels: what it lacks follows from the joints, or stays away (see the tables).
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from vton.data import labels, pose
from vton.data.derived.published_masks import below_chin
from vton.data.derived.shapes import Skeleton
from vton.data.sample import Category
from vton.errors import UserError
from vton.photos import hub
from vton.photos.backends import Facts

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
NVIDIA = "NVIDIA's SegFormer licence: non-commercial use only"

# Limbs without a side in a network's labels. They are told apart by the nearest bone.
ARMS, LEGS, FEET = 100, 101, 102
SIDES = {
    ARMS: (pose.ARMS, labels.RIGHT_ARM, labels.LEFT_ARM),
    LEGS: (pose.LEGS, labels.RIGHT_LEG, labels.LEFT_LEG),
    FEET: (pose.LEGS, labels.RIGHT_SHOE, labels.LEFT_SHOE),
}
# fashn-human-parser's 18 labels, in their order. Hands count as arms, as in both data sets, and
# jewelry as the skin that it lies on: the neck.
FROM_FASHN = (
    *(labels.BACKGROUND, labels.FACE, labels.HAIR, labels.UPPER, labels.DRESS, labels.SKIRT),
    *(labels.PANTS, labels.BELT, labels.BAG, labels.HAT, labels.SCARF, labels.SUNGLASSES),
    *(ARMS, ARMS, LEGS, FEET, labels.NECK, labels.NECK),
)


class _SegFormer:
    """What the two share. size: height, width of the picture that the network reads."""

    name: str
    default: str
    licence: str
    size: tuple[int, int]
    table: np.ndarray  # our label, or one of SIDES, of each of the network's

    def __init__(self, where: str = ""):
        from transformers import SegformerForSemanticSegmentation

        self.where = where or self.default
        task = f"the parser backend {self.name}"
        self.network, self.folder = hub.load_network(
            task, SegformerForSemanticSegmentation, self.where
        )
        known = self.network.config.num_labels
        if known != len(self.table):
            raise UserError(
                f"{task}: {self.folder} tells {known} labels apart, expected {len(self.table)}."
            )

    @cached_property
    def facts(self) -> Facts:
        return Facts(self.name, self.where, self.licence, hub.digest(self.folder))

    @torch.no_grad()
    def scores(self, picture: Image.Image) -> torch.Tensor:
        """(labels, h, w) at the network's own resolution."""
        height, width = self.size
        reduced = picture.resize((width, height), Image.Resampling.BICUBIC)
        array = (np.asarray(reduced, np.float32) / 255 - MEAN) / DEVIATION
        batch = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None]
        return self.network(batch).logits[0]

    def parse(
        self, picture: Image.Image, joints: np.ndarray, category: Category | None = None
    ) -> np.ndarray:
        size = (picture.height, picture.width)
        scores = F.interpolate(self.scores(picture)[None], size, mode="bilinear")[0]
        ids = self.table[scores.argmax(0).numpy()]
        return self.mapped(ids, joints)

    def mapped(self, ids: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """(H, W) uint8 labels of ours, from ids that may still lack sides or a neck."""
        body = joints * np.float32([ids.shape[1], ids.shape[0], 1])
        parse = ids.copy()
        for limb, (chains, right, left) in SIDES.items():
            where = ids == limb
            if where.any():
                parse[where] = np.where(_nearer_right(where, body, chains), right, left)
        return parse.astype(np.uint8)


class Fashn(_SegFormer):
    """fashn-ai/fashn-human-parser (SegFormer-B4): limbs without sides, torso skin for NECK."""

    name = "fashn"
    default = "fashn-ai/fashn-human-parser@1f80c34dbab321c5730dda5c3fea279fd3e97498"
    licence = NVIDIA
    size = (576, 384)
    table = np.array(FROM_FASHN)


class Segformer(_SegFormer):
    """mattmdjaga/segformer_b2_clothes: DressCode's labels, whose head is face and neck in one."""

    name = "segformer"
    default = "mattmdjaga/segformer_b2_clothes@fc92b3abe7b123c814ca7910683151f2b7b7281e"
    licence = f"MIT by its card, which points to {NVIDIA}"
    size = (512, 512)
    table = labels.FROM_DRESSCODE.astype(int)

    def mapped(self, ids: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """The face below the chin becomes NECK."""
        parse = super().mapped(ids, joints)
        body = Skeleton(joints * np.float32([ids.shape[1], ids.shape[0], 1]), parse.shape)
        return np.where(
            (parse == labels.FACE) & below_chin(parse, body), labels.NECK, parse
        ).astype(np.uint8)


def _nearer_right(where: np.ndarray, joints: np.ndarray, chains: tuple) -> np.ndarray:
    """Of the pixels that are set, whether the bones of the right chain are nearer.

    joints: in pixels. Without bones of either side the halves of the picture decide: a person who
    faces the camera has the right side on its left.
    """
    rows, columns = where.nonzero()
    distances = []
    for chain in chains:
        ends = [joints[joint, :2] for joint in chain if joints[joint, 2] > 0]
        distances.append(_distance(columns, rows, ends))
    right, left = distances
    if np.isinf(right).all() and np.isinf(left).all():
        valid = joints[joints[:, 2] > 0, 0]
        middle = valid.mean() if len(valid) else where.shape[1] / 2
        return columns < middle
    # Pieces of one limb keep together: the majority of each region decides.
    nearer = right < left
    regions, count = ndimage.label(where)
    of_pixel = regions[rows, columns]
    if np.isinf(right).all() or np.isinf(left).all():
        shares = ndimage.mean(nearer, of_pixel, np.arange(1, count + 1))
        return np.asarray(shares)[of_pixel - 1] > 0.5
    return nearer


def _distance(x: np.ndarray, y: np.ndarray, ends: list[np.ndarray]) -> np.ndarray:
    """Of points (n,) from a line through the given ends; infinite without one."""
    nearest = np.full(len(x), np.inf)
    if len(ends) == 1:
        return np.hypot(x - ends[0][0], y - ends[0][1])
    points = np.column_stack([x, y]).astype(np.float64)
    for start, end in pairwise(ends):
        bone = end - start
        along = ((points - start) @ bone / max(bone @ bone, 1e-6)).clip(0, 1)
        away = points - start - along[:, None] * bone
        nearest = np.minimum(nearest, np.hypot(*away.T))
    return nearest
