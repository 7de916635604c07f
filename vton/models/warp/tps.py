"""The thin-plate spline of a learned warp: control points on a lattice that a network moves.

    f(p) = sum_i w_i U(|p - p_i|) + a + A p        U(r) = 0.5 r^2 ln r^2

The lattice belongs to the output picture, so that f says where each of its pixels comes from.
Coordinates (x, y) run from -1 to 1 between the centres of the outermost pixels. The warp is
LaDI-VTON's (arXiv 2305.13501).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def lattice(side: int, extent: float = 0.9) -> Tensor:
    """(side^2, 2) points x, y in [-extent, extent], row by row."""
    # The device is named because transformers' from_pretrained may have linspace forget
    # `with torch.device(...)` for good.
    place = torch.linspace(-extent, extent, side, device=torch.get_default_device())
    y, x = torch.meshgrid(place, place, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) of U at the distances between points (N, 2) and (M, 2); U(0) = 0."""
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return torch.where(squared > 0, 0.5 * squared * squared.log(), 0.0)


def affine(points: Tensor) -> Tensor:
    """(N, 3): 1, x, y."""
    return torch.cat([torch.ones_like(points[:, :1]), points], dim=1)


class ThinPlateSpline(nn.Module):
    """Moved control points (B, side^2, 2) to a sampling grid (B, height, width, 2).

    Inverse and evaluation stay two float32 matrices, as in LaDI-VTON's files: the system is
    ill-conditioned enough for their product to differ by 5e-6, which trained warps never saw.
    """

    def __init__(self, height: int, width: int, side: int = 5):
        super().__init__()
        self.height = height
        self.width = width
        points = lattice(side)
        count = len(points)
        system = torch.zeros(count + 3, count + 3)
        system[:count, :count] = kernel(points, points)
        system[:count, count:] = affine(points)
        system[count:, :count] = affine(points).T
        pixels = pixel_centres(height, width)
        inverse = torch.linalg.inv(system)  # (n + 3, n + 3)
        evaluation = torch.cat([kernel(pixels, points), affine(pixels)], dim=1)  # (H W, n + 3)
        self.register_buffer("inverse", inverse, persistent=False)
        self.register_buffer("evaluation", evaluation, persistent=False)

    def forward(self, moved: Tensor) -> Tensor:
        # The weights sum up to 0, alone and times x and y.
        zeros = moved.new_zeros(len(moved), 3, 2)
        weights = self.inverse @ torch.cat([moved, zeros], dim=1)
        return (self.evaluation @ weights).unflatten(1, (self.height, self.width))


def pixel_centres(height: int, width: int) -> Tensor:
    """(height width, 2): x and y, row by row."""
    y = torch.arange(height) * 2 / (height - 1) - 1
    x = torch.arange(width) * 2 / (width - 1) - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def warp(image: Tensor, grid: Tensor) -> Tensor:
    """Bilinear lookup of (B, C, H, W) at the grid, the border repeated outside.

    LaDI-VTON reads the grid with align_corners=False although its -1 and 1 are pixel centres: a
    slight change of scale that trained warps have learned to live with.
    """
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
