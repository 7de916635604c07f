"""Files that are nearly pictures of their kind: the right pixels, or one line that names them."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from scipy import ndimage

from vton.data import densepose, images
from vton.data.decoding import upright
from vton.data.images import Origin
from vton.data.sample import DataError
from vton.metrics.pictures import PictureFolder

ORIGIN = Origin("viton_hd", "train", "03921_00")
RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (64, 48, 3), dtype=np.uint8))


def odd_exif(orientation):
    """EXIF with an orientation, and a tag of a type that it never has: a description of a float."""
    head = b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    described = b"\x0e\x01\x0b\0\x01\0\0\0\0\0\x80\x3f"  # 0x010E, FLOAT, 1.0
    return head + described + b"\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + bytes(4)


def refusal(read, *arguments, **options):
    with pytest.raises(DataError) as error:
        read(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_a_tag_of_an_odd_type_is_no_reason_to_refuse_a_turned_photo(tmp_path, kind):
    path = tmp_path / "a.jpg"
    for turn in range(9):
        NOISE.save(path, kind, exif=odd_exif(turn))
        read = images.read_photo(path, "image", ORIGIN)
        assert read.size == images.photo_size(path) == ((64, 48) if turn > 4 else (48, 64))
        again = upright(read)
        assert again.tobytes() == read.tobytes() and again.size == read.size


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    NOISE.save(tmp_path / "a.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    read = images.read_photo(tmp_path / "a.png", "image", ORIGIN)
    assert read.size == expected.size and read.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "raised",
    [
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        NotImplementedError,
        MemoryError,
    ],
)
def test_whatever_a_decoder_raises_is_one_line_that_names_the_file(tmp_path, monkeypatch, raised):
    path = tmp_path / "a.png"
    NOISE.save(path)

    def fail(image):
        raise raised

    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr(PngImageFile, "load", fail)
    assert str(path) in refusal(images.read_photo, path, "image", ORIGIN)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "L"), ("WEBP", "RGB"), ("MPO", "L")])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_label_maps_in_lossy_formats_are_refused(tmp_path, kind, mode, name):
    path = tmp_path / name
    labels = Image.fromarray(np.full((64, 48), 5, np.uint8)).convert(mode)
    options = {"save_all": True, "append_images": [labels]} if kind == "MPO" else {}
    labels.save(path, kind, **options)
    said = refusal(images.read_labels, path, "parse map", ORIGIN, None, 20)
    assert f"is stored as {kind}" in said and str(path) in said and "Restore the PNG" in said
    # Turned ones too, whose decoded picture is another one than the file's.
    exif = Image.Exif()
    exif[0x0112] = 6
    labels.save(path, kind, exif=exif, **options)
    assert f"is stored as {kind}" in refusal(images.read_labels, path, "map", ORIGIN, None, 20)


def test_dresscodes_dense_maps_in_jpeg_are_refused(tmp_path):
    path = tmp_path / "048392_5.jpg"
    Image.fromarray(np.full((64, 48), 5, np.uint8)).save(path)
    assert "is stored as JPEG" in refusal(densepose.read_ids, path, ORIGIN)
    Image.fromarray(np.full((64, 48), 5, np.uint8)).save(path.with_suffix(".png"))
    assert (densepose.read_ids(path.with_suffix(".png"), ORIGIN) == 5).all()


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO"])
def test_formats_that_no_data_set_has_are_not_opened(tmp_path, kind):
    path = tmp_path / "a.png"
    NOISE.save(path, kind)
    said = refusal(images.read_photo, path, "image", ORIGIN)
    assert "image cannot be decoded: no JPEG, PNG, WebP, BMP, GIF or TIFF picture" in said
    assert images.photo_size(path) is None
    assert "a.png: not readable" in refusal(PictureFolder(tmp_path).check, ["a"], (64, 48))
    assert "picture not readable" in refusal(PictureFolder(tmp_path).read, ["a"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats_that_data_sets_have_are_read(tmp_path, kind):
    NOISE.save(tmp_path / "a.png", kind)
    assert images.read_photo(tmp_path / "a.png", "image", ORIGIN).size == NOISE.size


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animated_pictures_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "a.png"
    NOISE.save(path, kind, save_all=True, append_images=[NOISE.rotate(180)])
    for read in (
        lambda: images.read_photo(path, "image", ORIGIN),
        lambda: images.read_mask(path, "mask", ORIGIN, None, silhouette=True),
        lambda: images.read_labels(path, "parse map", ORIGIN, None, 20),
        lambda: PictureFolder(tmp_path).check(["a"], (64, 48)),
        lambda: PictureFolder(tmp_path).read(["a"]),
    ):
        said = refusal(read)
        assert "is animated; save one frame" in said and str(path) in said


def test_pictures_with_a_depth_map_beside_them_are_no_animation(tmp_path):
    path = tmp_path / "a.jpg"
    NOISE.save(path, "MPO", save_all=True, append_images=[NOISE.resize((24, 32))])
    with Image.open(path) as image:
        assert image.format == "MPO" and image.n_frames == 2
    assert images.read_photo(path, "image", ORIGIN).size == NOISE.size


def plain_silhouette(image):
    """The silhouette by the plain formula, in float64 along the last axis."""
    pixels = np.asarray(image).astype(np.int16)
    background = np.median(images.frame(pixels), axis=0)
    differs = (np.abs(pixels - background) > images.BACKGROUND_NOISE).any(axis=2)
    regions, count = ndimage.label(differs)
    areas = np.bincount(regions.ravel(), minlength=count + 1)
    keep = areas >= max(2, images.SPECK * regions.size)
    keep[0] = False
    return ndimage.binary_fill_holes(keep[regions])


def test_silhouettes_take_little_memory_and_are_those_of_the_plain_formula(tmp_path):
    halves = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        height, width = rng.integers(30, 90, 2)
        pixels = rng.integers(226, 256, (height, width, 3), dtype=np.uint8)
        pixels[10:25, 8:22] = rng.integers(0, 256, (15, 14, 3), dtype=np.uint8)
        if seed % 2:  # levels on both sides of the one that decides, and a median half-way
            pixels = rng.choice(np.uint8([231, 240, 241, 250, 251]), (height, width, 3))
            pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1] = 240, 241, 240, 241
            pixels[0, 0] = pixels[-1, -1] = pixels[0, -1] = pixels[-1, 0] = 240
            pixels[-1, : width // 2] = 241
        image = Image.fromarray(pixels)
        halves += (np.median(images.frame(pixels), axis=0) % 1 != 0).any()
        expected = plain_silhouette(image)
        if images.PLAUSIBLE[0] < expected.mean() < images.PLAUSIBLE[1]:
            assert np.array_equal(images.silhouette_on_white(image, tmp_path, ORIGIN), expected)
    assert halves
    large = np.full((1200, 900, 3), 250, np.uint8)
    large[300:900, 200:700] = 90
    image = Image.fromarray(large)
    tracemalloc.start()
    images.silhouette_on_white(image, tmp_path, ORIGIN)
    peak = tracemalloc.get_traced_memory()[1] / (1200 * 900)
    tracemalloc.stop()
    assert peak < 25, f"{peak:.0f} bytes a pixel"
