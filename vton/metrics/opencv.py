"""OpenCV's arithmetic, to the last digit and without OpenCV: resizing, grey, Harris corners.

The published garment-driven scores were computed with it, and they depend on its fixed-point
numbers. Pictures are uint8 RGB (H, W, 3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

ONE = 2048  # 1 in the 11-bit fixed point of INTER_LINEAR's weights


def resize_bilinear(image: NDArray, size: tuple[int, int]) -> NDArray:
    """INTER_LINEAR to (height, width): 11-bit weights, truncated between the passes.

    Half-pixel centres, no low-pass before shrinking.
    """
    top, below, row_weights = _taps(image.shape[0], size[0])
    left, right, column_weights = _taps(image.shape[1], size[1])
    # At the left and right edge a pixel counts once. At the upper and lower edge, where OpenCV
    # leaves the weights as they are, a row is weighted with itself.
    column_weights[left == right] = (ONE, 0)

    source = image.astype(np.int64)
    rows = source[:, left] * column_weights[None, :, 0, None]
    rows = (rows + source[:, right] * column_weights[None, :, 1, None]) >> 4
    upper = rows[top] * row_weights[:, 0, None, None] >> 16
    lower = rows[below] * row_weights[:, 1, None, None] >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _taps(length: int, wanted: int) -> tuple[NDArray, NDArray, NDArray]:
    """The two source pixels of each pixel along one axis: their indices and weights (wanted, 2)."""
    scale = 1 / (wanted / length)
    centre = ((np.arange(wanted) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(centre).astype(np.int64)
    share = centre - first.astype(np.float32)
    weights = np.rint(np.stack([1 - share, share], 1) * np.float32(ONE)).astype(np.int64)
    return first.clip(0, length - 1), (first + 1).clip(0, length - 1), weights


def grey(image: NDArray) -> NDArray:
    """Grey of RGB, uint8 (H, W), in 15-bit fixed point."""
    weighted = image.astype(np.int64) @ np.array([9798, 19235, 3735])
    return ((weighted + (1 << 14)) >> 15).astype(np.uint8)


def harris_corners(image: NDArray) -> NDArray:
    """Corners (N, 2), (row, col): pixels of a high Harris response.

        response = det M - 0.04 (trace M)^2
        M        = sum over 2 x 2 pixels of the products of Sobel gradients

    High is above 1 % of the largest, after a 3 x 3 maximum. As cv2.cornerHarris of the float32 grey
    picture: gradients are divided by 8, the 2 x 2 window ends at its pixel, borders are mirrored
    without repeating the edge.
    """
    picture = np.pad(grey(image).astype(np.float32), 1, mode="reflect")
    smooth_y = picture[:-2] + 2 * picture[1:-1] + picture[2:]
    smooth_x = picture[:, :-2] + 2 * picture[:, 1:-1] + picture[:, 2:]
    dx = (smooth_y[:, 2:] - smooth_y[:, :-2]) / 8
    dy = (smooth_x[2:] - smooth_x[:-2]) / 8

    xx, xy, yy = _window_sum(dx * dx), _window_sum(dx * dy), _window_sum(dy * dy)
    trace = xx + yy
    response = xx * yy - xy * xy - np.float32(0.04) * (trace * trace)
    response = ndimage.maximum_filter(response, 3, mode="constant", cval=-np.inf)
    return np.argwhere(response > np.float32(0.01) * response.max())


def _window_sum(values: NDArray) -> NDArray:
    """Sum over each pixel and its upper, left and upper left neighbours, mirrored at the border."""
    padded = np.pad(values, ((1, 0), (1, 0)), mode="reflect")
    return padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]
