"""CAMI-U and CAMI-S, IMAGDressing's scores of a generated garment (arXiv 2407.12705), and
MagicClothing's MP-LPIPS.

    CAMI-U   = SSIM(R', G) + (1 - D) + texture(R', G)
    CAMI-S   = CAMI-U + pose overlap + face similarity + text similarity
    MP-LPIPS = mean over matched points of LPIPS between the patches around them

R is the reference garment, G the garment cut out of the generated picture, R' is R resized to G.
The published numbers come from OpenCV and scikit-image; their arithmetic (fixed-point resizing and
grey, float32 corners, interpolated binary patterns) is repeated here to the last digit, and so are
the published code's habits, each named where it happens. Networks (parser, pose, faces, CLIP,
diffusion features) stay outside: these functions take what they return.

Pictures are uint8 RGB (H, W, 3); G is garment on a plain ground.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional as F

from vton.errors import UserError

SSIM_WINDOW = 7
MOST_CORNERS = 5000
FARTHEST = 0.99  # D of a picture without corners, or with more than MOST_CORNERS
DIAGONAL = 512 * 2**0.5  # distances are divided by it, whatever the size of the pictures
MATCHED_SIDE = 512  # px of the square that MP-LPIPS brings pictures to
POINT_GRID = 40  # px between its points
PATCH = 33  # px, side of its patches
NEAR = 17  # px, side of the square by which a match may miss the garment
PATTERN_BINS = 64  # of 256 codes: the published code counts 8^2 bins where 2^8 was meant, so codes above 64 are lost


class MetricError(UserError):
    """Pictures a metric is not defined for."""


def cami_u(reference: NDArray, generated: NDArray) -> dict[str, float]:
    """Likeness of garments of any size: {ssim, keypoints, texture, cami_u}, their sum, at most 3.

    The corners of the reference are found at its own size, the published code's habit; the rest
    compares R'.
    """
    resized = resize_bilinear(reference, generated.shape[:2])
    parts = {
        "ssim": structural_similarity(resized, generated),
        "keypoints": 1 - corner_distance(harris_corners(reference), harris_corners(generated)),
        "texture": texture_correlation(resized, generated),
    }
    return parts | {"cami_u": sum(parts.values())}


def cami_s(
    reference: NDArray,
    generated: NDArray,
    target_pose: NDArray,
    generated_pose: NDArray,
    faces: tuple[Tensor | NDArray, Tensor | NDArray] | None,
    text: tuple[Tensor | NDArray, Tensor | NDArray],
    wrap: bool = True,
) -> dict[str, float]:
    """`cami_u` with {pose, face, text, cami_s}, the sum of all six parts, at most 6.

    target_pose, generated_pose: pose maps, black where nothing is drawn
    faces:      embeddings of target and generated face; None = no face was found, which scores 0
    text:       CLIP features of prompt and generated picture
    """
    parts = cami_u(reference, generated)
    more = {
        "pose": pose_overlap(target_pose, generated_pose, wrap),
        "face": 0.0 if faces is None else cosine(*faces),
        "text": cosine(*text),
    }
    return parts | more | {"cami_s": parts["cami_u"] + sum(more.values())}


def structural_similarity(reference: NDArray, generated: NDArray) -> float:
    """SSIM of two pictures of one size as scikit-image defines it (Wang et al. 2004, Eq. 13).

    Uniform 7 x 7 window, unbiased covariance, mean over channels and over the pixels whose window
    lies inside. Raises MetricError when the sizes differ or a window does not fit.
    """
    if reference.shape != generated.shape or min(reference.shape[:2]) < SSIM_WINDOW:
        shapes = f"{reference.shape[:2]} and {generated.shape[:2]}"
        raise MetricError(
            f"SSIM needs pictures of one size, at least {SSIM_WINDOW} pixels wide and high, not {shapes}."
        )
    x, y = reference.astype(np.float64), generated.astype(np.float64)

    def mean(values: NDArray) -> NDArray:
        return ndimage.uniform_filter(values, (SSIM_WINDOW, SSIM_WINDOW, 1))

    mean_x, mean_y = mean(x), mean(y)
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    variances = unbiased * (mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2)
    covariance = unbiased * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    border = SSIM_WINDOW // 2
    return float(similarity[border:-border, border:-border].mean())


def corner_distance(reference_corners: NDArray, generated_corners: NDArray) -> float:
    """D: mean distance from each reference corner (N, 2) to the nearest generated one (M, 2), of
    512 sqrt 2.

    0.99 when the generated picture has none or more than 5000. A reference without corners, where
    the published code divides by zero, is treated alike.
    """
    if len(reference_corners) == 0 or not 0 < len(generated_corners) <= MOST_CORNERS:
        return FARTHEST
    distances, _ = KDTree(generated_corners).query(reference_corners)
    return float(distances.mean() / DIAGONAL)


def texture_correlation(reference_resized: NDArray, generated: NDArray) -> float:
    """Pearson correlation of the two pictures' histograms of local binary patterns, 1 where one is
    flat.
    """
    histograms = [
        _pattern_histogram(picture).astype(np.float64) for picture in (reference_resized, generated)
    ]
    x, y = (histogram - histogram.mean() for histogram in histograms)
    spread = (x @ x) * (y @ y)
    return float(x @ y / np.sqrt(spread)) if spread > np.finfo(np.float64).eps else 1.0


def pose_overlap(target: NDArray, generated: NDArray, wrap: bool = True) -> float:
    """Share of the target's drawn pixels that are drawn in the generated pose map too, resized to
    the target's size.

    wrap=True is the published code: channels are summed, and the sums multiplied, in 8 bits, so
    pixels whose sum or product is a multiple of 256 count as black. wrap=False counts a pixel as
    drawn when any channel is. An empty target scores 0.
    """
    generated = resize_bilinear(generated, target.shape[:2])
    dtype = np.uint8 if wrap else bool  # sums and products of bool are "any" and "and"
    target, generated = (
        (pose if wrap else pose > 0).sum(2, dtype=dtype) for pose in (target, generated)
    )
    drawn = np.count_nonzero(target)
    return np.count_nonzero(target * generated) / drawn if drawn else 0.0


def cosine(a: Tensor | NDArray, b: Tensor | NDArray) -> float:
    """Cosine of two feature vectors of any shape, precision and device."""
    a, b = (torch.as_tensor(features).double().flatten().cpu() for features in (a, b))
    return (a @ b / (a.norm() * b.norm())).item()


def mp_lpips(
    garment: NDArray,
    garment_mask: NDArray,
    generated: NDArray,
    generated_mask: NDArray,
    features: Callable[[NDArray], Tensor],
    lpips: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """Distance of the generated garment's details from the in-shop ones, smaller is better.

    garment, generated: uint8 RGB of any size, with masks (h, w) bool of their garments
    features: uint8 (512, 512, 3) to (1, C, h, w) on which points are matched
    lpips:    two batches (N, 3, 33, 33) in [0, 1] to distances (N,)

    Everything is resized to a square and black outside its mask. A point whose match lies off the
    generated garment costs as much as white against black. Raises MetricError when no point lies on
    the garment.
    """
    (source, source_mask), (target, target_mask) = (
        _masked_square(*pair) for pair in ((garment, garment_mask), (generated, generated_mask))
    )
    points = torch.from_numpy(
        np.argwhere(source_mask[::POINT_GRID, ::POINT_GRID])[:, ::-1] * POINT_GRID
    )  # (N, 2), x y
    if not len(points):
        raise MetricError(
            "MP-LPIPS: no point of its grid lies on the garment; its mask is empty or thin."
        )
    matches = match_points(features(source), features(target), points).cpu()
    near = ndimage.maximum_filter(target_mask, NEAR, mode="nearest")
    hits = torch.from_numpy(near[matches[:, 1], matches[:, 0]])
    white = torch.ones(1, 3, PATCH, PATCH)
    penalty = lpips(white, 0 * white).item()
    found = (
        lpips(_patches(source, points[hits]), _patches(target, matches[hits]))
        if hits.any()
        else torch.zeros(0)
    )
    return (found.sum().item() + penalty * int((~hits).sum())) / len(points)


def _masked_square(picture: NDArray, mask: NDArray) -> tuple[NDArray, NDArray]:
    """Both at MATCHED_SIDE by Pillow's bicubic filter, the picture black outside the mask."""
    size = (MATCHED_SIDE, MATCHED_SIDE)
    mask = (
        np.asarray(
            Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
        )
        > 127
    )
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)) * mask[
        ..., None
    ], mask


def _patches(picture: NDArray, points_xy: Tensor) -> Tensor:
    """(N, 3, 33, 33) in [0, 1] around points (N, 2), black beyond the picture."""
    padded = F.pad(torch.from_numpy(picture).permute(2, 0, 1) / 255, [PATCH // 2] * 4)
    return torch.stack([padded[:, y : y + PATCH, x : x + PATCH] for x, y in points_xy.tolist()])


@torch.no_grad()
def match_points(
    source_features: Tensor,
    target_features: Tensor,
    points_xy: Tensor,
    size: int = MATCHED_SIDE,
    chunk: int = 32,
) -> Tensor:
    """For each source point the target pixel with the most similar features: (N, 2) int64, (x, y).

    source_features, target_features: (1, C, h, w) of size x size pictures, upsampled to them
    (half-pixel centres)
    points_xy:                        (N, 2) int, pixels of the source picture

    Similarity is the cosine; of equal pixels the first in reading order wins. `chunk` points are
    compared at a time.
    """
    points = points_xy.long().to(source_features.device)
    queries = _unit_pixels(source_features, size)[:, points[:, 1] * size + points[:, 0]]  # (C, N)
    targets = _unit_pixels(target_features, size)  # (C, size * size)
    best = torch.cat([(part.T @ targets).argmax(1) for part in queries.split(chunk, 1)])
    return torch.stack([best % size, best // size], 1)


def _unit_pixels(features: Tensor, size: int) -> Tensor:
    upsampled = F.interpolate(features.float(), (size, size), mode="bilinear", align_corners=False)
    return F.normalize(upsampled[0], dim=0).flatten(1)


# ---- OpenCV's and scikit-image's arithmetic ----


def resize_bilinear(image: NDArray, size: tuple[int, int]) -> NDArray:
    """OpenCV's INTER_LINEAR of a uint8 picture (H, W, 3) to (height, width): 11-bit weights,
    truncated between passes.

    Half-pixel centres, no low-pass before shrinking.
    """
    top, below, by = _taps(image.shape[0], size[0])
    left, right, bx = _taps(image.shape[1], size[1])
    bx[left == right] = (
        2048,
        0,
    )  # columns only: at the upper and lower edge a row is weighted with itself
    source = image.astype(np.int64)
    rows = source[:, left] * bx[None, :, 0, None] + source[:, right] * bx[None, :, 1, None] >> 4
    result = (rows[top] * by[:, 0, None, None] >> 16) + (rows[below] * by[:, 1, None, None] >> 16)
    return ((result + 2) >> 2).astype(np.uint8)


def _taps(length: int, wanted: int) -> tuple[NDArray, NDArray, NDArray]:
    """Indices of the two source pixels and their weights, of 2048, (wanted, 2), for every pixel
    along one axis.
    """
    centre = ((np.arange(wanted) + 0.5) * (1 / (wanted / length)) - 0.5).astype(np.float32)
    first = np.floor(centre).astype(np.int64)
    share = centre - first.astype(np.float32)
    weights = np.rint(np.stack([1 - share, share], 1) * np.float32(2048)).astype(np.int64)
    return first.clip(0, length - 1), (first + 1).clip(0, length - 1), weights


def grey(image: NDArray) -> NDArray:
    """OpenCV's grey of RGB: uint8 (H, W), 15-bit fixed point."""
    return ((image.astype(np.int64) @ np.array([9798, 19235, 3735]) + (1 << 14)) >> 15).astype(
        np.uint8
    )


def harris_corners(image: NDArray) -> NDArray:
    """Pixels (N, 2), (row, col), whose Harris response, widened by a 3 x 3 maximum, exceeds 1 % of
    the largest.

        response = det M - 0.04 (trace M)^2,  M = sum over 2 x 2 pixels of the products of Sobel gradients

    As cv2.cornerHarris of the float32 grey picture: gradients are divided by 8, the 2 x 2 window
    ends at its pixel, borders are mirrored without repeating the edge.
    """
    picture = np.pad(grey(image).astype(np.float32), 1, mode="reflect")
    smooth_y = picture[:-2] + 2 * picture[1:-1] + picture[2:]
    smooth_x = picture[:, :-2] + 2 * picture[:, 1:-1] + picture[:, 2:]
    dx, dy = (smooth_y[:, 2:] - smooth_y[:, :-2]) / 8, (smooth_x[2:] - smooth_x[:-2]) / 8
    a, b, c = (_window_sum(product) for product in (dx * dx, dx * dy, dy * dy))
    response = a * c - b * b - np.float32(0.04) * ((a + c) * (a + c))
    response = ndimage.maximum_filter(response, 3, mode="constant", cval=-np.inf)
    return np.argwhere(response > np.float32(0.01) * response.max())


def _window_sum(values: NDArray) -> NDArray:
    """Sum over each pixel and its upper, left and upper left neighbours, mirrored at the border."""
    padded = np.pad(values, ((1, 0), (1, 0)), mode="reflect")
    return padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]


def _pattern_histogram(image: NDArray) -> NDArray:
    """Shares of the codes 0..64 of `binary_patterns`, in 64 bins of which the last holds 63 and 64:
    float32 (64,).
    """
    counts, _ = np.histogram(binary_patterns(grey(image)), bins=np.arange(PATTERN_BINS + 1))
    return counts.astype(np.float32) / np.float32(max(counts.sum(), 1))


def binary_patterns(picture: NDArray) -> NDArray:
    """Local binary patterns of a grey picture (H, W): codes 0..255, bit i set where neighbour i is
    at least the pixel.

    As skimage.feature.local_binary_pattern(picture, 8, 1): neighbours lie on a circle, from the
    right and counterclockwise, those on diagonals are interpolated, and black surrounds the
    picture. Positions are rounded to 5 digits and interpolation is not exact in floating point, so
    that equal neighbours may fall below: this repeats it.
    """
    height, width = picture.shape
    values = picture.astype(np.float64)
    padded = np.pad(values, 1)
    codes = np.zeros(picture.shape, dtype=np.int64)
    for bit in range(8):
        angle = 2 * np.pi * bit / 8
        rows = np.arange(height)[:, None] + np.round(-np.sin(angle), 5)
        columns = np.arange(width)[None] + np.round(np.cos(angle), 5)
        top, left = np.floor(rows), np.floor(columns)
        y, x = rows - top, columns - left
        top, left, bottom, right = (
            (i + 1).astype(int) for i in (top, left, np.ceil(rows), np.ceil(columns))
        )
        upper = (1 - x) * padded[top, left] + x * padded[top, right]
        lower = (1 - x) * padded[bottom, left] + x * padded[bottom, right]
        codes |= ((1 - y) * upper + y * lower >= values).astype(np.int64) << bit
    return codes
