"""Baselines that learn nothing: what a method must beat before its numbers mean anything.

Each takes a TryOnBatch and returns pictures (B, 3, H, W) in [-1, 1]. They see what a model sees
(agnostic picture and mask, in-shop garment, warped garment), never the truth, and keep every pixel
outside the agnostic mask.
"""
# Shapes: B batch, H W height and width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vton.data.boxes import bounding_box
from vton.data.sample import TryOnBatch


def mean_colour(batch: TryOnBatch) -> Tensor:
    """The whole masked region in the mean colour of the in-shop garment."""
    area = batch.garment_mask.sum((2, 3), keepdim=True).clamp(min=1)
    colour = (batch.garment * batch.garment_mask).sum((2, 3), keepdim=True) / area
    return torch.where(batch.agnostic_mask > 0, colour, batch.agnostic)


def pasted_garment(batch: TryOnBatch) -> Tensor:
    """The in-shop garment stretched onto the masked region's bounding box.

    The rest of the region is filled from the surroundings.
    """
    pictures = fill_hole(batch.agnostic, batch.agnostic_mask)
    for row in range(len(batch)):
        source = box_slices(batch.garment_mask[row, 0])
        target = box_slices(batch.agnostic_mask[row, 0])
        hole = batch.agnostic_mask[row][:, *target]
        size = hole.shape[-2:]
        garment = batch.garment[row][:, *source][None]
        silhouette = batch.garment_mask[row][:, *source][None]
        garment = F.interpolate(garment, size, mode="bilinear", antialias=True)[0]
        silhouette = F.interpolate(silhouette, size, mode="nearest-exact")[0]
        painted = (silhouette > 0) & (hole > 0)
        pictures[row][:, *target] = torch.where(painted, garment, pictures[row][:, *target])
    return pictures


def warped_garment(batch: TryOnBatch) -> Tensor:
    """The warped garment where it lies; the rest of the region is filled from the surroundings."""
    filled = fill_hole(batch.agnostic, batch.agnostic_mask)
    return torch.where(batch.warped_mask > 0, batch.warped_garment, filled)


# Beside these, evaluation has a baseline for each warp at hand: `warped_garment` of a batch that
# wears it.
BASELINES = {
    "baseline/mean_colour": mean_colour,
    "baseline/pasted_garment": pasted_garment,
}


def fill_hole(pictures: Tensor, hole: Tensor) -> Tensor:
    """Continue pictures smoothly into holes, by pull and push over a pyramid.

    Known pixels are averaged into ever smaller pictures. On the way back each unknown pixel takes
    the value of the smaller picture, interpolated (Gortler et al. 1996, Section 3.3).

    pictures: (B, 3, H, W), each filled on its own; one without known pixels becomes 0. hole: (B, 1,
    H, W), 1 = unknown.
    """
    known = 1 - hole
    return torch.where(known > 0, pictures, pull_push(pictures * known, known))


def pull_push(weighted: Tensor, weight: Tensor) -> Tensor:
    """weighted: (B, 3, H, W) values times weight (B, 1, H, W) in [0, 1]."""
    size = weight.shape[-2:]
    if size == (1, 1):
        return weighted / weight.clamp(min=1e-6)
    smaller = pull_push(
        F.avg_pool2d(weighted, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True)
    )
    below = F.interpolate(smaller, size, mode="bilinear", align_corners=False)
    return weighted + (1 - weight) * below


def box_slices(mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of a mask's (H, W) bounding box; the whole picture where it is empty."""
    box = bounding_box(mask)
    if box is None:
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    return box.slices
