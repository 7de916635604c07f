"""Scores of a generated garment: IMAGDressing's CAMI (arXiv 2407.12705), MagicClothing's MP-LPIPS.

    CAMI-U   = SSIM(R', G) + (1 - D) + texture(R', G)
    CAMI-S   = CAMI-U + pose overlap + face similarity + text similarity
    MP-LPIPS = mean over matched points of LPIPS between the patches around them

R is the reference garment, G the garment cut out of the generated picture, R' is R resized to G.
The published numbers come from OpenCV, whose arithmetic is repeated (opencv.py), and scikit-image.
The published code's habits are repeated too, each named where it happens. Networks (parser, pose,
faces, CLIP, diffusion features) stay outside: these functions take what they return.

Pictures are uint8 RGB (H, W, 3); G is garment on a plain ground.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional as F

from vton.errors import UserError
from vton.metrics.opencv import grey, harris_corners, resize_bilinear

SSIM_WINDOW = 7
MOST_CORNERS = 5000
WORST_DISTANCE = 0.99  # D of a picture without corners, or with more than MOST_CORNERS
DIAGONAL = 512 * 2**0.5  # distances are divided by it, whatever the size of the pictures
# Of 256 codes. The published code counts 8^2 bins where 2^8 was meant: codes above 64 are lost.
PATTERN_BINS = 64
MATCHED_SIDE = 512  # px of the square that MP-LPIPS brings pictures to
POINT_GRID = 40  # px between its points
PATCH = 33  # px, side of its patches
NEAR = 17  # px, side of the square by which a match may miss the garment


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
    garment = cami_u(reference, generated)
    scene = {
        "pose": pose_overlap(target_pose, generated_pose, wrap),
        "face": 0.0 if faces is None else cosine(*faces),
        "text": cosine(*text),
    }
    return garment | scene | {"cami_s": garment["cami_u"] + sum(scene.values())}


def structural_similarity(reference: NDArray, generated: NDArray) -> float:
    """scikit-image's SSIM (Wang et al. 2004, Eq. 13) of two pictures of one size.

    Uniform 7 x 7 window, unbiased covariance, mean over channels and over the pixels whose window
    lies inside. Raises MetricError when the sizes differ or a window does not fit.
    """
    if reference.shape != generated.shape or min(reference.shape[:2]) < SSIM_WINDOW:
        raise MetricError(
            f"SSIM needs pictures of one size, at least {SSIM_WINDOW} pixels wide and high, "
            f"not {reference.shape[:2]} and {generated.shape[:2]}."
        )
    similarity = skimage.metrics.structural_similarity(
        reference, generated, win_size=SSIM_WINDOW, channel_axis=-1
    )
    return float(similarity)


def corner_distance(reference_corners: NDArray, generated_corners: NDArray) -> float:
    """D: mean distance from each reference corner to the nearest generated one, over 512 sqrt 2.

    reference_corners: (N, 2), generated_corners: (M, 2)

    It is 0.99 when the generated picture has no corners or more than 5000. A reference without
    corners, where the published code divides by zero, is treated alike.
    """
    if len(reference_corners) == 0 or not 0 < len(generated_corners) <= MOST_CORNERS:
        return WORST_DISTANCE
    distances, _ = KDTree(generated_corners).query(reference_corners)
    return float(distances.mean() / DIAGONAL)


def texture_correlation(reference_resized: NDArray, generated: NDArray) -> float:
    """Pearson correlation of the two pictures' histograms of local binary patterns.

    It is 1 where a histogram is flat.
    """
    x = _pattern_histogram(reference_resized).astype(np.float64)
    y = _pattern_histogram(generated).astype(np.float64)
    x = x - x.mean()
    y = y - y.mean()
    spread = (x @ x) * (y @ y)
    if spread <= np.finfo(np.float64).eps:
        return 1.0
    return float(x @ y / np.sqrt(spread))


def _pattern_histogram(image: NDArray) -> NDArray:
    """Shares of the pattern codes 0..64 in 64 bins, the last of 63 and 64: float32 (64,)."""
    codes = skimage.feature.local_binary_pattern(grey(image), P=8, R=1)
    counts, _ = np.histogram(codes, bins=np.arange(PATTERN_BINS + 1))
    return counts.astype(np.float32) / np.float32(max(counts.sum(), 1))


def pose_overlap(target: NDArray, generated: NDArray, wrap: bool = True) -> float:
    """Share of the target's drawn pixels that are drawn in the generated pose map too.

    The generated map is resized to the target's size. An empty target scores 0.

    wrap=True is the published code: channels are summed, and the sums multiplied, in 8 bits, so
    pixels whose sum or product is a multiple of 256 count as black. wrap=False counts a pixel as
    drawn when any channel is.
    """
    generated = resize_bilinear(generated, target.shape[:2])
    if wrap:
        target = target.sum(2, dtype=np.uint8)
        generated = generated.sum(2, dtype=np.uint8)
    else:
        target = target.any(2)
        generated = generated.any(2)
    drawn = np.count_nonzero(target)
    if drawn == 0:
        return 0.0
    return np.count_nonzero(target * generated) / drawn


def cosine(a: Tensor | NDArray, b: Tensor | NDArray) -> float:
    """Cosine of two feature vectors of any shape, precision and device."""
    a = torch.as_tensor(a).double().flatten().cpu()
    b = torch.as_tensor(b).double().flatten().cpu()
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
    source, source_mask = _masked_square(garment, garment_mask)
    target, target_mask = _masked_square(generated, generated_mask)
    rows_columns = np.argwhere(source_mask[::POINT_GRID, ::POINT_GRID]) * POINT_GRID
    points = torch.from_numpy(rows_columns[:, ::-1].copy())  # (N, 2), x y
    if not len(points):
        raise MetricError(
            "MP-LPIPS: no point of its grid lies on the garment; its mask is empty or thin."
        )
    matches = match_points(features(source), features(target), points).cpu()
    near_garment = ndimage.maximum_filter(target_mask, NEAR, mode="nearest")
    hits = torch.from_numpy(near_garment[matches[:, 1], matches[:, 0]])

    white = torch.ones(1, 3, PATCH, PATCH)
    penalty = lpips(white, 0 * white).item()
    distance = 0.0
    if hits.any():
        distances = lpips(_patches(source, points[hits]), _patches(target, matches[hits]))
        distance = distances.sum().item()
    misses = int((~hits).sum())
    return (distance + penalty * misses) / len(points)


def _masked_square(picture: NDArray, mask: NDArray) -> tuple[NDArray, NDArray]:
    """Both at MATCHED_SIDE by Pillow's bicubic filter, the picture black outside the mask."""
    size = (MATCHED_SIDE, MATCHED_SIDE)
    levels = Image.fromarray(mask.astype(np.uint8) * 255)
    mask = np.asarray(levels.resize(size, Image.Resampling.BICUBIC)) > 127
    pixels = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    return pixels * mask[..., None], mask


def _patches(picture: NDArray, points_xy: Tensor) -> Tensor:
    """(N, 3, 33, 33) in [0, 1] around points (N, 2), black beyond the picture."""
    padded = F.pad(torch.from_numpy(picture).permute(2, 0, 1) / 255, [PATCH // 2] * 4)
    patches = []
    for x, y in points_xy.tolist():
        patches.append(padded[:, y : y + PATCH, x : x + PATCH])
    return torch.stack(patches)


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
    pixels = points[:, 1] * size + points[:, 0]
    queries = _unit_pixels(source_features, size)[:, pixels]  # (C, N)
    targets = _unit_pixels(target_features, size)  # (C, size * size)
    best = torch.cat([(part.T @ targets).argmax(1) for part in queries.split(chunk, 1)])
    return torch.stack([best % size, best // size], 1)


def _unit_pixels(features: Tensor, size: int) -> Tensor:
    """Features (1, C, h, w), upsampled, as (C, size * size) vectors of unit length."""
    upsampled = F.interpolate(features.float(), (size, size), mode="bilinear", align_corners=False)
    return F.normalize(upsampled[0], dim=0).flatten(1)
