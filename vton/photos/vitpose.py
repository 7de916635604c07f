"""The pose backend `vitpose`: ViTPose (Xu et al., NeurIPS 2022) by transformers.

It reads one person in a box. The boxes come from the small parser.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from PIL import Image

from vton.data import pose
from vton.data.sample import JOINTS
from vton.photos import hub
from vton.photos.backends import Facts
from vton.photos.framing import Frame, centred
from vton.photos.small import CERTAIN, SmallPose

# Our COCO-18 joint of each of COCO's 17; the neck is the middle of the shoulders.
FROM_COCO_17 = np.array([0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10])
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
AROUND = 1.25  # the box that the network reads, relative to the person's


class VitPose:
    default = "usyd-community/vitpose-base@95be2991424e646950d656bb7fc15ec9be119700"

    def __init__(self, where: str = ""):
        from transformers import VitPoseForPoseEstimation

        self.where = where or self.default
        self.network, self.folder = hub.load_network(
            "the pose backend vitpose", VitPoseForPoseEstimation, self.where
        )
        self.finder = SmallPose()
        height, width = self.network.config.backbone_config.image_size
        self.size = (height, width)

    @cached_property
    def facts(self) -> Facts:
        return Facts("vitpose", self.where, "Apache-2.0", hub.digest(self.folder))

    def people(self, photo: Image.Image) -> list[np.ndarray]:
        """Without those whose joints the finder has guessed to lie beyond the photo."""
        found = self.finder.people(photo)
        return [
            self.joints(photo, coarse)
            for coarse in found
            if self.box(photo, coarse).shows(photo.size)
        ]

    @torch.no_grad()
    def joints(self, photo: Image.Image, coarse: np.ndarray) -> np.ndarray:
        """(18, 3) joints, read from a box around coarse ones."""
        frame = self.box(photo, coarse)
        array = np.asarray(frame.cut(photo, self.size), np.float32) / 255
        batch = torch.from_numpy(((array - MEAN) / DEVIATION).astype(np.float32))
        options = {}
        if getattr(self.network.config.backbone_config, "num_experts", 1) > 1:
            options["dataset_index"] = torch.zeros(1, dtype=torch.int64)  # COCO's, of ViTPose+
        heat = self.network(batch.permute(2, 0, 1)[None], **options).heatmaps[0].numpy()
        return frame.to_photo(joints_of(heat), photo.size)

    def box(self, photo: Image.Image, coarse: np.ndarray) -> Frame:
        found = coarse[coarse[:, 2] >= CERTAIN, :2]
        points = (found if len(found) else coarse[:, :2]) * photo.size
        low, high = points.min(0), points.max(0)
        grown = (high - low) * (AROUND - 1) + 0.1 * np.ptp(points[:, 1])
        height, width = self.size
        return centred(width / height, (*(low - grown / 2), *(high + grown / 2)))


def joints_of(heat: np.ndarray) -> np.ndarray:
    """(17, h, w) heat maps to (18, 3): the peak, moved a quarter cell to its higher neighbour."""
    count, height, width = heat.shape
    joints = np.zeros((JOINTS, 3), np.float32)
    for place in range(count):
        row, column = np.unravel_index(heat[place].argmax(), (height, width))
        x, y = column + 0.5, row + 0.5
        if 0 < column < width - 1:
            x += 0.25 * np.sign(heat[place, row, column + 1] - heat[place, row, column - 1])
        if 0 < row < height - 1:
            y += 0.25 * np.sign(heat[place, row + 1, column] - heat[place, row - 1, column])
        peak = np.clip(heat[place, row, column], 0, 1)
        joints[FROM_COCO_17[place]] = x / width, y / height, peak
    shoulders = joints[[pose.RIGHT_SHOULDER, pose.LEFT_SHOULDER]]
    joints[pose.NECK] = *shoulders[:, :2].mean(0), shoulders[:, 2].min()
    return joints
