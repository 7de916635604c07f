"""Size, padding and normalisation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.folders import one_record, same_record
from vton.data import augmentation, transforms
from vton.data.augmentation import ColourChange
from vton.data.ranges import normalise, to_bytes
from vton.data.transforms import to_sample


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return one_record(tmp_path_factory.mktemp("data"))


def test_photographs_are_resized_with_antialiasing():
    stripes = np.zeros((256, 192, 3), np.uint8)
    stripes[::2] = 255  # finer than the small picture can show: must become grey, not stripes
    small = transforms.resize_photo(Image.fromarray(stripes), (64, 48))
    assert small.std() < 3 and abs(small.mean() - 127.5) < 3


@pytest.mark.parametrize("size", [(32, 24), (100, 70), (192, 144)])
def test_masks_stay_binary_and_the_repaint_mask_covers(size):
    mask = np.zeros((96, 72), bool)
    mask[50, 30] = True  # a single pixel
    mask[10:40, 10:40] = True
    covering = transforms.resize_repaint(mask, size)
    silhouette = transforms.resize_silhouette(mask, size)
    assert covering.dtype == silhouette.dtype == bool and covering.shape == size
    assert covering[int(50.5 / 96 * size[0]), int(30.5 / 72 * size[1])]
    assert (covering >= silhouette).all()
    assert abs(silhouette[: size[0] // 2].mean() - mask[:48].mean()) < 0.02


def test_padding_keeps_pixels_joints_and_polarity(record):
    """96x72 in 96x96: 12 columns on each side; every part, joints included, stays on its pixels."""
    padded = transforms.pad(record, (96, 96))
    middle = padded.person[..., 12:-12]
    assert torch.equal(middle, record.person)
    assert torch.equal(transforms.unpad_picture(padded.person, (96, 72)), middle)
    assert (padded.person[..., :12] == 255).all() and (padded.garment[..., -12:] == 255).all()
    for name in ("agnostic_mask", "garment_mask", "warped_mask", "parse", "densepose"):
        value = getattr(padded, name)
        assert not value[..., :12].any() and not value[..., -12:].any(), name
    seen = record.joints[:, 2] > 0
    pixels = padded.joints[:, :2] * 96
    before = record.joints[:, :2] * (72, 96)
    np.testing.assert_allclose(pixels[seen], before[seen] + (12, 0), atol=1e-4)
    assert not seen.all() and (padded.joints[~seen] == 0).all()
    assert padded.joints.dtype == np.float32
    assert to_sample(padded).pose_map.shape == (3, 96, 96)
    assert same_record(
        transforms.pad(augmentation.flip(record), (96, 96)), augmentation.flip(padded)
    )
    dark = augmentation.change_colour(record, ColourChange(0.5, 1, 1, 0))
    person = to_sample(transforms.pad(dark, (96, 96))).person
    assert (person[..., :12] == 1).all() and person[..., 12:-12].max() < 0.01


def test_bytes_survive_normalisation():
    pixels = torch.arange(256, dtype=torch.uint8)
    normalised = normalise(pixels)
    assert normalised.min() == -1 and normalised.max() == 1
    assert torch.equal(to_bytes(normalised), pixels)
    torch.testing.assert_close(normalise(pixels / 255), normalised, atol=1e-6, rtol=0)


def test_densepose_is_drawn_in_colours_or_as_grey_labels(record):
    labels = replace(record, densepose_as="labels")
    grey = to_bytes(to_sample(labels).densepose)
    assert torch.equal(grey, record.densepose.expand(3, -1, -1)) and record.densepose.max() > 1
    assert not torch.equal(to_bytes(to_sample(record).densepose), grey)
