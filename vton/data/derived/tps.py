"""Thin-plate splines as backward maps, and drawing the parts of a garment through them.

f(p) = a + A p + sum_i w_i phi(|p - p_i|), phi(r) = r^2 log r: the interpolant of least bending
energy (Bookstein 1989).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.interpolate import RBFInterpolator
from torch.nn import functional

from vton.data.derived import shapes

WHITE = 255
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom exclusive


def thin_plate_spline(
    points: np.ndarray, values: np.ndarray, box: Box, *, smoothing: float = 1e-3, step: float = 4.0
) -> np.ndarray:
    """Where each pixel of `box` comes from.

    points:    (N, 2) control points x, y on the canvas; N >= 3 and not all on one line (else numpy.linalg.LinAlgError)
    values:    (N, 2) x, y that these points take, e.g. their places in the garment picture
    smoothing: added to the diagonal of the kernel matrix, for coordinates in units of the control
               points' extent; 0 interpolates
    step:      spacing in pixels of the grid on which the spline is evaluated; bilinear in between
    returns    (h, w, 2) float32, x and y for the centre of each pixel of the box
    """
    left, top, right, bottom = box
    centre, extent = points.mean(axis=0), max(float(np.ptp(points, axis=0).max()), 1e-6)
    spline = RBFInterpolator(
        (points - centre) / extent,
        values,
        kernel="thin_plate_spline",
        smoothing=smoothing,
        degree=1,
    )
    xs, ys = _knots(left, right, step), _knots(top, bottom, step)
    knots = np.stack(np.meshgrid(xs, ys), axis=-1)
    coarse = spline(((knots - centre) / extent).reshape(-1, 2)).reshape(*knots.shape)
    across, down = _hat(xs, np.arange(left, right)), _hat(ys, np.arange(top, bottom))
    return np.stack([down @ coarse[..., i].astype(np.float32) @ across.T for i in (0, 1)], axis=-1)


def _knots(start: int, stop: int, step: float) -> np.ndarray:
    return np.linspace(
        start, max(stop - 1, start), max(2, int(np.ceil((stop - 1 - start) / step)) + 1)
    )


def _hat(knots: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(len(positions), len(knots)) weights of linear interpolation."""
    spacing = max(knots[1] - knots[0], 1e-6)
    return np.maximum(0, 1 - np.abs(positions[:, None] - knots[None]) / spacing).astype(np.float32)


def sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear lookup, the border repeated outside. image: (H, W, C) float32; points: (N, 2) x, y
    -> (N, C) float32.
    """
    height, width = image.shape[:2]
    centres = (2 * points + 1) / np.array(
        [width, height]
    ) - 1  # grid_sample's units, corners not aligned
    grid = torch.from_numpy(centres.astype(np.float32))[None, None]
    channels = torch.from_numpy(image).permute(2, 0, 1)[None]
    picked = functional.grid_sample(
        channels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return picked[0, :, 0].T.numpy()


def covers(region: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(...) bool: whether the (..., 2) points x, y lie on True pixels of region (H, W)."""
    columns, rows = (np.rint(points[..., i]).astype(np.int32) for i in (0, 1))
    inside = (columns >= 0) & (rows >= 0) & (columns < region.shape[1]) & (rows < region.shape[0])
    columns, rows = np.where(inside, columns, 0), np.where(inside, rows, 0)
    return inside & region[rows, columns]


@dataclass(frozen=True)
class Part:
    """One spline: garment pixels `region`, control points on the person and in the garment, where
    it may show.
    """

    region: np.ndarray  # (H, W) bool in the garment picture
    person: np.ndarray  # (N, 2)
    garment: np.ndarray  # (N, 2)
    visible: (
        np.ndarray
    )  # (h, w) bool on the person's canvas; far from its control points a spline folds back


def render(
    garment: np.ndarray, garment_mask: np.ndarray, parts: list[Part], agnostic_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw parts over each other, the first at the back, inside the agnostic mask.

    garment: (H, W, 3) uint8 with its silhouette (H, W) bool; agnostic_mask: (h, w) bool
    returns  (h, w, 3) uint8 on white, and (h, w) bool where a part lies
    raises   numpy.linalg.LinAlgError where the control points of a part lie on one line
    """
    height, width = agnostic_mask.shape
    warped, mask = np.full((height, width, 3), WHITE, np.uint8), np.zeros((height, width), bool)
    colours = _bleed(garment, garment_mask)
    step = max(2.0, height / 48)
    for part in parts:
        box = _reach(part, agnostic_mask.shape)
        if box is None:
            continue
        left, top, right, bottom = box
        window = (slice(top, bottom), slice(left, right))
        grid = thin_plate_spline(part.person, part.garment, box, step=step)
        inside = covers(part.region, grid) & part.visible[window] & agnostic_mask[window]
        warped[window][inside] = np.rint(sample(colours, grid[inside]))
        mask[window] |= inside
    return warped, mask


def _bleed(garment: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 garment whose colours run over its own edge, where the background has mixed
    in.

    Every warped part would carry a white line otherwise. Strips too thin to have an interior keep
    their colours.
    """
    colours = garment.astype(np.float32)
    inner = ndimage.minimum_filter(mask.view(np.uint8), 3, mode="constant").view(bool)
    rows, columns = np.nonzero(shapes.dilate(mask, 1) & ~inner)
    total, count = np.zeros((len(rows), 3), np.float32), np.zeros((len(rows), 1), np.float32)
    for down, aside in np.ndindex(5, 5):
        near = (
            np.clip(rows + down - 2, 0, mask.shape[0] - 1),
            np.clip(columns + aside - 2, 0, mask.shape[1] - 1),
        )
        found = inner[near][:, None]
        total += found * colours[near]
        count += found
    known = count[:, 0] > 0
    colours[rows[known], columns[known]] = total[known] / count[known]
    return colours


def _reach(part: Part, shape: tuple[int, int]) -> Box | None:
    """The control points' box with a margin, cut to the canvas; None outside of it."""
    low, high = part.person.min(axis=0), part.person.max(axis=0)
    margin = 0.25 * (high - low) + 2
    left, top = np.maximum(np.floor(low - margin), 0).astype(int)
    right, bottom = np.minimum(np.ceil(high + margin) + 1, [shape[1], shape[0]]).astype(int)
    return (left, top, right, bottom) if left < right and top < bottom else None
