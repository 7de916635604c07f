"""CAMI and point matching against numbers from OpenCV, scikit-image and the published code's own
arithmetic.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vton.metrics import garment_driven as metric
from vton.metrics import opencv
from vton.weights.pretrained import read_safetensors

VECTORS = Path(__file__).parents[1] / "vectors/garment_driven"
INPUTS = read_safetensors(VECTORS / "inputs.safetensors")
EXPECTED = read_safetensors(VECTORS / "outputs.safetensors")
REFERENCE, GENERATED = INPUTS["reference_rgb"].numpy(), INPUTS["generated_rgb"].numpy()


def test_resized_reference_and_corners_equal_opencv():
    np.testing.assert_array_equal(
        opencv.resize_bilinear(REFERENCE, (64, 48)), EXPECTED["reference_resized_rgb"]
    )
    np.testing.assert_array_equal(opencv.harris_corners(REFERENCE), EXPECTED["keypoints_reference"])
    np.testing.assert_array_equal(opencv.harris_corners(GENERATED), EXPECTED["keypoints_generated"])


def test_scores_equal_the_references():
    scores = metric.cami_s(
        REFERENCE,
        GENERATED,
        INPUTS["pose_target_rgb"].numpy(),
        INPUTS["pose_generated_rgb"].numpy(),
        (INPUTS["face_embed_target"], INPUTS["face_embed_generated"]),
        (INPUTS["clip_text_features"], INPUTS["clip_image_features"]),
    )
    expected = {name: EXPECTED[name].item() for name in ("ssim", "cami_u", "cami_s")} | {
        "keypoints": 1 - EXPECTED["keypoint_distance"].item(),
        "texture": EXPECTED["lbp_correlation"].item(),
        "pose": EXPECTED["pose_overlap"].item(),
        "face": EXPECTED["face_similarity"].item(),
        "text": EXPECTED["clip_similarity"].item(),
    }
    assert scores == pytest.approx(expected, abs=1e-6)


def ssim_by_definition(x, y):
    """Wang et al. 2004, Eq. 13, in float64: 7 x 7 windows inside the picture, unbiased moments."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    values = []
    for row, column, channel in np.ndindex(x.shape[0] - 6, x.shape[1] - 6, 3):
        a = x[row : row + 7, column : column + 7, channel].ravel()
        b = y[row : row + 7, column : column + 7, channel].ravel()
        moments = np.cov(a, b)
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        likeness = (2 * a.mean() * b.mean() + c1) * (2 * moments[0, 1] + c2)
        spread = (a.mean() ** 2 + b.mean() ** 2 + c1) * (moments[0, 0] + moments[1, 1] + c2)
        values.append(likeness / spread)
    return np.mean(values)


@pytest.mark.parametrize("size", [(7, 9), (31, 25)])
def test_ssim_has_the_published_window_and_covariance(size):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2))
    y = y // 2 + x // 2
    assert metric.structural_similarity(x, y) == pytest.approx(ssim_by_definition(x, y), abs=1e-10)


@pytest.mark.parametrize("chunk", [1, 32])
def test_matched_points_equal_the_references(chunk):
    features = (INPUTS["mp_source_features"], INPUTS["mp_target_features"])
    found = metric.match_points(*features, INPUTS["mp_source_points_xy"], chunk=chunk)
    assert found.tolist() == EXPECTED["mp_matched_points_xy"].tolist()


def opencv_resize(image, height, width):
    """OpenCV's INTER_LINEAR of one channel, pixel by pixel: columns are clamped with their weights,
    rows without.
    """

    def place(index, length, wanted):
        centre = np.float32((index + 0.5) * (1 / (wanted / length)) - 0.5)
        return math.floor(centre), float(centre - np.float32(math.floor(centre)))

    def weights(share):
        return round(float(np.float32(1) - np.float32(share)) * 2048), round(share * 2048)

    result = np.zeros((height, width), dtype=np.uint8)
    for i, j in np.ndindex(height, width):
        row, y = place(i, image.shape[0], height)
        column, x = place(j, image.shape[1], width)
        if not 0 <= column < image.shape[1] - 1:
            column, x = min(max(column, 0), image.shape[1] - 1), 0.0
        sums = []
        for r in (row, row + 1):
            line = image[min(max(r, 0), image.shape[0] - 1)].tolist()
            sums.append(
                line[column] * weights(x)[0] + line[min(column + 1, len(line) - 1)] * weights(x)[1]
            )
        (above, below), (b0, b1) = sums, weights(y)
        result[i, j] = ((b0 * (above >> 4) >> 16) + (b1 * (below >> 4) >> 16) + 2) >> 2
    return result


@pytest.mark.parametrize("size", [(31, 40), (7, 5), (12, 16), (24, 32), (5, 53)])
def test_resizing_to_any_size_is_opencvs(size):
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    resized = opencv.resize_bilinear(image, size)
    for channel in range(3):
        np.testing.assert_array_equal(
            resized[..., channel], opencv_resize(image[..., channel], *size)
        )


def test_a_picture_is_most_like_itself():
    scores = metric.cami_u(REFERENCE, REFERENCE)
    assert scores == pytest.approx(
        {"ssim": 1, "keypoints": 1, "texture": 1, "cami_u": 3}, abs=1e-12
    )


def test_corner_distance_is_one_directional_and_has_two_limits():
    corners = np.array([[0, 0], [3, 4]])
    assert metric.corner_distance(np.array([[0, 0]]), corners) == 0
    assert metric.corner_distance(corners, np.array([[0, 0]])) == pytest.approx(
        2.5 / (512 * math.sqrt(2))
    )
    grid = np.argwhere(np.ones((50, 101)))
    assert metric.corner_distance(corners, grid[:5000]) == 0
    for unusable in (grid, np.zeros((0, 2))):
        assert metric.corner_distance(corners, unusable) == 0.99


def test_a_flat_picture_has_no_corners():
    assert opencv.harris_corners(np.full((9, 8, 3), 255, dtype=np.uint8)).shape == (0, 2)


def test_pose_pixels_whose_sum_or_product_wraps_are_lost_unless_repaired():
    target = np.zeros((4, 1, 3), dtype=np.uint8)
    target[:, 0] = [[255, 1, 0], [16, 0, 0], [255, 0, 0], [0, 0, 0]]  # sums 256 = 0, 16, 255, 0
    generated = np.full_like(target, 0)
    generated[:, 0, 2] = 16  # products 0, 256 = 0, 255 * 16, 0
    assert metric.pose_overlap(target, generated) == 0.5
    assert metric.pose_overlap(target, generated, wrap=False) == 1
    assert metric.pose_overlap(np.zeros_like(target), generated) == 0


def test_no_face_scores_zero():
    pose, text = (
        np.ones((8, 8, 3), dtype=np.uint8),
        (torch.ones(4, dtype=torch.bfloat16), np.ones((1, 4))),
    )
    scores = metric.cami_s(REFERENCE, GENERATED, pose, pose, None, text)
    assert scores["face"] == 0 and scores["cami_s"] == pytest.approx(scores["cami_u"] + 2)


def test_pictures_without_a_window_are_an_error():
    with pytest.raises(metric.MetricError, match="SSIM"):
        metric.structural_similarity(REFERENCE, GENERATED)
