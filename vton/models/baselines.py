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

from vton.data.sample import TryOnBatch


def mean_colour(batch: TryOnBatch) -> Tensor:
    """The whole masked region in the garment's mean colour."""
    return torch.where(batch.agnostic_mask > 0, _mean_colour(batch), batch.agnostic)


def pasted_garment(batch: TryOnBatch) -> Tensor:
    """The in-shop garment stretched onto the masked region's bounding box, the rest filled from the
    surroundings.
    """
    pictures = fill_hole(batch.agnostic, batch.agnostic_mask)
    for row in range(len(batch)):
        target = _box(batch.agnostic_mask[row, 0])
        source = _box(batch.garment_mask[row, 0])
        size = (target[0].stop - target[0].start, target[1].stop - target[1].start)
        garment = F.interpolate(
            batch.garment[row][:, *source][None], size, mode="bilinear", antialias=True
        )[0]
        silhouette = F.interpolate(
            batch.garment_mask[row][:, *source][None], size, mode="nearest-exact"
        )[0]
        painted = (silhouette > 0) & (batch.agnostic_mask[row][:, *target] > 0)
        pictures[row][:, *target] = torch.where(painted, garment, pictures[row][:, *target])
    return pictures


def warped_garment(batch: TryOnBatch) -> Tensor:
    """The warped garment where it lies; the rest of the masked region filled from the surroundings."""
    filled = fill_hole(batch.agnostic, batch.agnostic_mask)
    return torch.where(batch.warped_mask > 0, batch.warped_garment, filled)


# Beside these, evaluation has a baseline for each warp at hand: `warped_garment` of a batch that
# wears it.
BASELINES = {
    "baseline/mean_colour": mean_colour,
    "baseline/pasted_garment": pasted_garment,
}


def fill_hole(pictures: Tensor, hole: Tensor) -> Tensor:
    """Continue a picture smoothly into a hole, by pull and push over a pyramid (Gortler et al.
    1996, Section 3.3).

    Known pixels are averaged into ever smaller pictures; on the way back each unknown pixel takes
    the value of the smaller picture, interpolated. Every picture is filled on its own.

    pictures: (B, 3, H, W); hole: (B, 1, H, W), 1 = unknown; a picture without known pixels becomes
    0
    """
    known = 1 - hole
    return torch.where(known > 0, pictures, _pull_push(pictures * known, known))


def _pull_push(weighted: Tensor, weight: Tensor) -> Tensor:
    """weighted: (B, 3, H, W) values times weight (B, 1, H, W) in [0, 1]."""
    if weight.shape[-2:] == (1, 1):
        return weighted / weight.clamp(min=1e-6)
    size = weight.shape[-2:]
    smaller = _pull_push(*(F.avg_pool2d(x, 2, ceil_mode=True) for x in (weighted, weight)))
    below = F.interpolate(smaller, size, mode="bilinear", align_corners=False)
    return weighted + (1 - weight) * below


def _mean_colour(batch: TryOnBatch) -> Tensor:
    """Mean of the in-shop garment over its silhouette: (B, 3, 1, 1)."""
    area = batch.garment_mask.sum((2, 3), keepdim=True).clamp(min=1)
    return (batch.garment * batch.garment_mask).sum((2, 3), keepdim=True) / area


def _box(mask: Tensor) -> tuple[slice, slice]:
    """Bounding box of a mask (H, W) as slices; the whole picture where it is empty."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if len(rows) == 0:
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
