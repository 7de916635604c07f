"""Decoding single files: each gives the right pixels, or one error that names it."""

import numpy as np
import pytest
from PIL import Image

from tests.data.folders import save
from vton.data import images
from vton.data.images import Origin
from vton.data.sample import DataError

ORIGIN = Origin("viton_hd", "train", "03921_00")


def read(path):
    return np.asarray(images.read_photo(path, "image", ORIGIN))


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (10, 20, 30, 255)
    save(tmp_path / "a.png", pixels)
    assert (read(tmp_path / "a.png")[:4] == (10, 20, 30)).all()
    assert (read(tmp_path / "a.png")[4:] == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png")[..., 0], (ramp / 257).round())


def test_grey_of_more_than_sixteen_bits_does_not_wrap_around(tmp_path):
    pixels = np.int32([[-5, 0, 65535, 66000]])
    Image.fromarray(pixels).save(tmp_path / "deep.tiff")
    read = images.read_photo(tmp_path / "deep.tiff", "image", ORIGIN)
    assert np.asarray(read)[0, :, 0].tolist() == [0, 0, 255, 255]


def test_a_picture_of_sixteen_bits_is_no_mask(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "depth.png")
    with pytest.raises(DataError, match="the mask is grey over"):
        images.read_mask(tmp_path / "depth.png", "the mask", ORIGIN, None, silhouette=False)


def test_masks_are_thresholded_and_one_channel_of_three_is_taken(tmp_path):
    truth = np.zeros((32, 24), bool)
    truth[8:20, 6:18] = True
    save(tmp_path / "a.jpg", truth * np.uint8(255))
    save(tmp_path / "b.png", np.repeat((truth * np.uint8(255))[..., None], 3, 2))
    for name in ("a.jpg", "b.png"):
        mask = images.read_mask(tmp_path / name, "mask", ORIGIN, (24, 32), silhouette=True)
        assert mask.dtype == bool and np.array_equal(mask, truth)


def test_a_garment_may_fill_the_picture_but_not_its_frame(tmp_path):
    """As a skirt photographed close does.

    Agnostic masks know people at the picture's edge, and are told by area.
    """
    skirt = np.zeros((32, 24), bool)
    skirt[1:, 1:-1] = True
    assert skirt.mean() > 0.8
    save(tmp_path / "skirt.png", skirt * np.uint8(255))
    save(tmp_path / "turned.png", ~skirt * np.uint8(255))

    def read_mask(name, silhouette):
        return images.read_mask(tmp_path / name, "mask", ORIGIN, (24, 32), silhouette)

    assert np.array_equal(read_mask("skirt.png", silhouette=True), skirt)
    with pytest.raises(DataError, match="inverted mask"):
        read_mask("turned.png", silhouette=True)
    with pytest.raises(DataError, match="inverted mask"):
        read_mask("skirt.png", silhouette=False)


def test_size_error_names_both_sizes_and_the_file(tmp_path):
    path = tmp_path / "mask.png"
    save(path, np.pad(np.full((10, 10), 255, np.uint8), 11))
    with pytest.raises(DataError) as error:
        images.read_mask(path, "agnostic mask", ORIGIN, (24, 32), silhouette=False)
    assert str(error.value) == (
        f"viton_hd train 03921_00: agnostic mask is 32x32, image is 24x32 ({path}). "
        "Run `make data-check` for the full list."
    )


def test_silhouette_from_white_background_fills_enclosed_white(tmp_path):
    pixels = np.full((96, 72, 3), 243, np.uint8)  # VITON-HD's background is not quite white
    truth = np.zeros((96, 72), bool)
    truth[20:80, 15:60] = True
    pixels[truth] = (200, 30, 40)
    pixels[40:60, 30:40] = 255
    silhouette = images.silhouette_on_white(Image.fromarray(pixels), tmp_path, ORIGIN)
    assert np.array_equal(silhouette, truth)
    for useless in (np.full((96, 72, 3), 255, np.uint8), np.full((96, 72, 3), 90, np.uint8)):
        with pytest.raises(DataError, match="cannot be derived"):
            images.silhouette_on_white(Image.fromarray(useless), tmp_path, ORIGIN)
