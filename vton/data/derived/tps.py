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
Window = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive


def thin_plate_spline(
    points: np.ndarray,
    values: np.ndarray,
    window: Window,
    *,
    smoothing: float = 1e-3,
    step: float = 4.0,
) -> np.ndarray:
    """Where each pixel of `window` comes from.

    points:    (N, 2) control points x, y on the canvas; N >= 3 and not all on one line, else
               numpy.linalg.LinAlgError
    values:    (N, 2) x, y that these points take, e.g. their places in the garment picture
    smoothing: added to the diagonal of the kernel matrix, for coordinates in units of the control
               points' extent; 0 interpolates
    step:      spacing in pixels of the grid on which the spline is evaluated; bilinear in between
    returns    (h, w, 2) float32, x and y for the centre of each pixel of the window
    """
    left, top, right, bottom = window
    centre = points.mean(axis=0)
    extent = max(float(np.ptp(points, axis=0).max()), 1e-6)
    spline = RBFInterpolator(
        (points - centre) / extent,
        values,
        kernel="thin_plate_spline",
        smoothing=smoothing,
        degree=1,
    )
    xs = _knots(left, right, step)
    ys = _knots(top, bottom, step)
    knots = np.stack(np.meshgrid(xs, ys), axis=-1)
    coarse = spline(((knots - centre) / extent).reshape(-1, 2)).reshape(*knots.shape)
    coarse = coarse.astype(np.float32)
    across = _hat(xs, np.arange(left, right))
    down = _hat(ys, np.arange(top, bottom))
    return np.stack([down @ coarse[..., i] @ across.T for i in (0, 1)], axis=-1)


def _knots(start: int, stop: int, step: float) -> np.ndarray:
    """Evenly spaced places from the first to the last pixel, at most `step` apart."""
    last = stop - 1
    count = max(2, int(np.ceil((last - start) / step)) + 1)
    return np.linspace(start, max(last, start), count)


def _hat(knots: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(len(positions), len(knots)) weights of linear interpolation."""
    spacing = max(knots[1] - knots[0], 1e-6)
    return np.maximum(0, 1 - np.abs(positions[:, None] - knots[None]) / spacing).astype(np.float32)


def bilinear(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours (N, C) float32 of an image (H, W, C) float32 at points (N, 2) x, y.

    Outside of it the border is repeated.
    """
    height, width = image.shape[:2]
    # grid_sample's units, corners not aligned
    centres = (2 * points + 1) / np.array([width, height]) - 1
    grid = torch.from_numpy(centres.astype(np.float32))[None, None]
    channels = torch.from_numpy(image).permute(2, 0, 1)[None]
    picked = functional.grid_sample(
        channels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return picked[0, :, 0].T.numpy()


def covers(region: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(...) bool: whether the (..., 2) points x, y lie on True pixels of region (H, W)."""
    height, width = region.shape
    columns = np.rint(points[..., 0]).astype(np.int32)
    rows = np.rint(points[..., 1]).astype(np.int32)
    inside = (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
    columns = np.where(inside, columns, 0)
    rows = np.where(inside, rows, 0)
    return inside & region[rows, columns]


@dataclass(frozen=True)
class Patch:
    """A part of a garment, drawn by one spline.

    region:  (H, W) bool, its pixels in the garment picture
    person:  (N, 2) control points on the person
    garment: (N, 2) the same points in the garment picture
    visible: (h, w) bool, where on the person's canvas it may show; far from its control points a
             spline folds back
    """

    region: np.ndarray
    person: np.ndarray
    garment: np.ndarray
    visible: np.ndarray


def render(
    garment: np.ndarray, garment_mask: np.ndarray, patches: list[Patch], agnostic_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw patches over each other, the first at the back, inside the agnostic mask.

    garment: (H, W, 3) uint8 with its silhouette (H, W) bool; agnostic_mask: (h, w) bool
    returns  (h, w, 3) uint8 on white, and (h, w) bool where a patch lies
    raises   numpy.linalg.LinAlgError where the control points of a patch lie on one line
    """
    height, width = agnostic_mask.shape
    warped = np.full((height, width, 3), WHITE, np.uint8)
    mask = np.zeros((height, width), bool)
    colours = _bleed(garment, garment_mask)
    step = max(2.0, height / 48)
    for patch in patches:
        window = _reach(patch, agnostic_mask.shape)
        if window is None:
            continue
        left, top, right, bottom = window
        here = (slice(top, bottom), slice(left, right))
        grid = thin_plate_spline(patch.person, patch.garment, window, step=step)
        inside = covers(patch.region, grid) & patch.visible[here] & agnostic_mask[here]
        warped[here][inside] = np.rint(bilinear(colours, grid[inside]))
        mask[here] |= inside
    return warped, mask


def _bleed(garment: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 garment whose colours run over its own edge.

    There the background has mixed in, and every warped part would carry a white line. Strips too
    thin to have an interior keep their colours.
    """
    colours = garment.astype(np.float32)
    inner = ndimage.minimum_filter(mask.view(np.uint8), 3, mode="constant").view(bool)
    rows, columns = np.nonzero(shapes.dilate(mask, 1) & ~inner)
    last_row = mask.shape[0] - 1
    last_column = mask.shape[1] - 1
    total = np.zeros((len(rows), 3), np.float32)
    count = np.zeros((len(rows), 1), np.float32)
    for down, aside in np.ndindex(5, 5):
        near_rows = np.clip(rows + down - 2, 0, last_row)
        near_columns = np.clip(columns + aside - 2, 0, last_column)
        is_inner = inner[near_rows, near_columns][:, None]
        total += is_inner * colours[near_rows, near_columns]
        count += is_inner
    known = count[:, 0] > 0
    colours[rows[known], columns[known]] = total[known] / count[known]
    return colours


def _reach(patch: Patch, shape: tuple[int, int]) -> Window | None:
    """The control points' box with a margin, cut to the canvas; None outside of it."""
    height, width = shape
    low = patch.person.min(axis=0)
    high = patch.person.max(axis=0)
    margin = 0.25 * (high - low) + 2
    left, top = np.maximum(np.floor(low - margin), 0).astype(int)
    right, bottom = np.minimum(np.ceil(high + margin) + 1, [width, height]).astype(int)
    return (left, top, right, bottom) if left < right and top < bottom else None
