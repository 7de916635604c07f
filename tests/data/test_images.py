"""Decoding single files: every odd or broken kind gives the right pixels or one error that names it."""

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


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :10] = (255, 0, 0)
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 6  # stored lying; a viewer turns it by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    turned = read(tmp_path / "a.png")
    assert turned.shape == (30, 20, 3)
    assert (turned[:10] == (255, 0, 0)).all() and not turned[10:].any()
    assert images.photo_size(tmp_path / "a.png") == (20, 30)


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (10, 20, 30, 255)
    save(tmp_path / "a.png", pixels)
    assert (read(tmp_path / "a.png")[:4] == (10, 20, 30)).all()
    assert (read(tmp_path / "a.png")[4:] == 255).all()


def test_cmyk_and_grey_become_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = read(tmp_path / "a.jpg")[4, 4].astype(int)
    assert red > 200 and green < 60 and blue < 60
    save(tmp_path / "b.png", np.full((8, 8), 77, np.uint8))
    assert (read(tmp_path / "b.png") == 77).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png")[..., 0], (ramp / 257).round())


def test_truncated_zero_byte_and_foreign_files_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 48, 3)).astype(np.uint8)
    for name in ("cut.jpg", "cut.png"):
        save(tmp_path / name, noise)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("cut.jpg", "cut.png", "empty.jpg", "text.jpg", "absent.jpg"):
        with pytest.raises(DataError) as error:
            read(tmp_path / name)
        message = str(error.value)
        assert message.startswith("viton_hd train 03921_00: image ") and str(tmp_path / name) in message
        assert "Restore it" in message and message.endswith("Run `make data-check` for the full list.")


def test_masks_are_thresholded_and_one_channel_of_three_is_taken(tmp_path):
    truth = np.zeros((32, 24), bool)
    truth[8:20, 6:18] = True
    save(tmp_path / "a.jpg", truth * np.uint8(255))
    save(tmp_path / "b.png", np.repeat((truth * np.uint8(255))[..., None], 3, 2))
    for name in ("a.jpg", "b.png"):
        mask = images.read_mask(tmp_path / name, "mask", ORIGIN, (24, 32), silhouette=True)
        assert mask.dtype == bool and np.array_equal(mask, truth)


@pytest.mark.parametrize(
    ("values", "silhouette", "says"),
    [
        (np.full((32, 24), 255), False, "inverted mask"),
        (np.pad(np.zeros((20, 14)), ((6, 6), (5, 5)), constant_values=255), True, "inverted mask"),
        (np.zeros((32, 24)), False, "is empty"),
        (np.pad(np.ones((20, 14)), ((6, 6), (5, 5))), True, "Masks hold 0 and 255"),
    ],
)
def test_masks_that_cannot_be_meant(tmp_path, values, silhouette, says):
    save(tmp_path / "a.png", values.astype(np.uint8))
    with pytest.raises(DataError, match=says):
        images.read_mask(tmp_path / "a.png", "agnostic mask", ORIGIN, None, silhouette)


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
    found = images.silhouette_on_white(Image.fromarray(pixels), tmp_path, ORIGIN)
    assert np.array_equal(found, truth)
    for useless in (np.full((96, 72, 3), 255, np.uint8), np.full((96, 72, 3), 90, np.uint8)):
        with pytest.raises(DataError, match="cannot be derived"):
            images.silhouette_on_white(Image.fromarray(useless), tmp_path, ORIGIN)
