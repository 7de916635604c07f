"""Attention total variation (arXiv 2312.01725): neighbours on the worn garment read neighbours.

    L = sum |F_i - F_i'|_1 / #vertical pairs + sum |F_i - F_i'|_1 / #horizontal pairs

over neighbouring query cells i, i' that both lie inside the worn garment, sums and counts over the
whole batch. F_i is the mean place that cell i attends to, in cells of the garment's grid.
"""
# Shapes: B batch, h w grid of queries, H W picture

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MASK_GRID = (64, 48)  # over which the public code brings the mask to the queries' grid


def garment_cells(worn: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h, w) bool: which cells of the queries' grid lie inside the worn garment.

    worn: (B, 1, H, W) in [0, 1], 1 where the photograph shows the garment
    """
    coarse = F.interpolate(worn, MASK_GRID, mode="nearest")
    return F.interpolate(coarse, grid, mode="nearest")[:, 0] > 0.5


def attention_variation(centres: Tensor, inside: Tensor) -> Tensor:
    """L of centres (B, h, w, 2) and inside (B, h, w) bool; 0 where no two neighbours are inside."""
    total = centres.new_zeros(())
    for axis in (1, 2):
        length = centres.shape[axis] - 1
        here, there = centres.narrow(axis, 0, length), centres.narrow(axis, 1, length)
        both = inside.narrow(axis, 0, length) & inside.narrow(axis, 1, length)
        distance = torch.where(both, (here - there).abs().sum(-1), 0)
        total = total + distance.sum() / both.sum().clamp(min=1)
    return total
