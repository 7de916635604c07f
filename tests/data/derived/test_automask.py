"""CatVTON's AutoMasker against masks of the released code (tests/vectors/catvton/automask_*)."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from vton.data.derived.automask import RULES, automask, blurred
from vton.data.sample import DataError

VECTORS = Path(__file__).parents[2] / "vectors" / "catvton"


@pytest.fixture(scope="module")
def maps():
    return load_file(VECTORS / "automask_inputs.safetensors")


@pytest.mark.parametrize("kind", RULES)
def test_masks_are_the_releases_but_for_their_outlines(maps, kind):
    expected = load_file(VECTORS / "automask_outputs.safetensors")[kind] > 0
    found = automask(maps["densepose"], maps["lip"], maps["atr"], kind)
    wrong = found != expected
    assert wrong.mean() < 0.002
    edge = expected ^ np.roll(expected, 1, 0) | expected ^ np.roll(expected, 1, 1)
    near = np.zeros_like(edge)
    for down in range(-3, 4):
        for across in range(-3, 4):
            near |= np.roll(edge, (down, across), (0, 1))
    assert not (wrong & ~near).any()


@pytest.mark.parametrize("kind", RULES)
def test_hands_and_face_are_never_painted_over(maps, kind):
    mask = automask(maps["densepose"], maps["lip"], maps["atr"], kind)
    inner = maps["lip"] == 13
    for axis in (0, 1):  # the last dilation reaches a pixel into the face
        inner &= np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
    assert not (mask & inner).any()


def test_without_a_person_in_densepose_the_parsers_decide_alone(maps):
    nobody = np.zeros_like(maps["densepose"])
    mask = automask(nobody, maps["lip"], maps["atr"], "upper")
    assert mask.any() and not mask.all()


def test_sizes_that_cannot_be(maps):
    with pytest.raises(DataError, match=r"\(503, 96\) must be divisible by 4"):
        automask(maps["densepose"][1:], maps["lip"][1:], maps["atr"][1:], "upper")
    with pytest.raises(DataError, match="label maps of different sizes"):
        automask(maps["densepose"], maps["lip"][4:], maps["atr"], "upper")


def test_small_blurs_have_the_taps_that_opencv_tabulates():
    """cv2.getGaussianKernel(5, 0) is [.0625, .25, .375, .25, .0625]."""
    point = np.zeros((9, 9), bool)
    point[4, 4] = True
    row = blurred(point, 5)[4] / 255
    np.testing.assert_allclose(
        row[2:7], np.array([0.0625, 0.25, 0.375, 0.25, 0.0625]) * 0.375, atol=2e-3
    )
    wide = blurred(point, 9)[4]
    assert wide[0] > 0 and wide[4] == wide.max()
