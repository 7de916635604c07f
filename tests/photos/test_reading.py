import io
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.data.test_picture_files import odd_exif
from vton.photos import reading
from vton.photos.errors import PhotoError
from vton.photos.reading import in_grey, in_rgb, read_mask, read_picture


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


SMALL = Image.fromarray(np.arange(48 * 36 * 3, dtype=np.uint8).reshape(48, 36, 3))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))


def huge_png(width, height):
    """A PNG of a few hundred bytes that says it has so many pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", b"\0" * 10_000_000)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_read_upright_and_in_rgb(kind, tmp_path):
    path = tmp_path / "photo"
    path.write_bytes(encoded(SMALL, kind))
    assert read_picture(path, "person").size == (36, 48)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(encoded(SMALL, kind, exif=exif), "person").size == (48, 36)


TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF's orientation to Pillow's inverse


@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_is_turned_back(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = NOISE.transpose(TURNS[orientation])
    read = read_picture(encoded(turned, "PNG", exif=exif), "person")
    assert read.tobytes() == NOISE.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_tag_of_an_odd_type_is_no_reason_to_refuse_a_turned_photo(kind):
    for turn in range(2, 9):
        read = read_picture(encoded(NOISE, kind, exif=odd_exif(turn)), "person")
        assert read.size == ((64, 48) if turn > 4 else (48, 64))
        assert in_rgb(read).tobytes() == read.tobytes()  # turned once, though it is read again


def test_broken_camera_data_is_no_reason_to_refuse():
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff broken", b"Exif\0\0MM\0*\0\0\0\x08\0\x05"):
        assert read_picture(encoded(SMALL, "JPEG", exif=exif), "person").size == SMALL.size
    exif = Image.Exif()
    exif[0x0112] = 77
    assert read_picture(encoded(SMALL, "JPEG", exif=exif), "person").size == SMALL.size


def test_kinds_of_pixels():
    colour = Image.new("RGB", (64, 64), (204, 102, 51))
    close = pytest.approx((204, 102, 51), abs=3)
    for kind, mode in (("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA")):
        read = read_picture(encoded(colour.convert(mode), kind), "person")
        assert read.mode == "RGB" and read.getpixel((9, 9)) == close
    deep = np.zeros((8, 8, 3), np.uint16) + np.uint16([51 * 257, 102 * 257, 204 * 257])  # BGR
    content = cv2.imencode(".png", deep)[1].tobytes()
    assert read_picture(content, "person").getpixel((4, 4)) == (204, 102, 51)
    for mode in ("1", "L", "LA"):
        assert read_picture(encoded(colour.convert(mode), "PNG"), "person").mode == "RGB"


def test_transparency_lies_on_white_and_deep_grey_keeps_its_range():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert read_picture(encoded(clear), "person").getpixel((0, 0)) == (255, 255, 255)
    kept = read_picture(encoded(clear), "garment")  # perhaps its outline
    assert kept.mode == "RGBA" and in_rgb(kept, "garment").tobytes() == kept.tobytes()
    indexed = Image.new("RGB", (8, 8), (10, 20, 30))
    indexed.paste((204, 102, 51), (2, 2, 6, 6))
    indexed = indexed.quantize(4)
    read = read_picture(encoded(indexed, transparency=indexed.getpixel((0, 0))), "person")
    assert read.getpixel((0, 0)) == (255, 255, 255) and read.getpixel((4, 4)) == (204, 102, 51)
    deep = Image.fromarray(np.full((4, 4), 257 * 100, np.uint16))
    assert in_rgb(deep).getpixel((0, 0)) == (100, 100, 100)


def test_grey_of_every_depth_keeps_its_range():
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    read = in_rgb(Image.fromarray(ramp))
    assert np.array_equal(np.asarray(read)[..., 0], (ramp / 257).round())
    assert read_picture(encoded(Image.fromarray(ramp)), "person").tobytes() == read.tobytes()
    deep = Image.fromarray(ramp.astype(np.int32))
    assert deep.mode == "I" and in_rgb(deep).tobytes() == read.tobytes()
    shallow = Image.fromarray((ramp >> 8).astype(np.int32))  # 8 bits in mode I
    assert np.array_equal(np.asarray(in_rgb(shallow))[..., 1], ramp >> 8)
    with pytest.raises(PhotoError, match="floating-point values") as refused:
        in_rgb(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "garment")
    assert refused.value.picture == "garment"
    with pytest.raises(PhotoError, match="no value above 255, which is black"):
        read_picture(encoded(Image.fromarray(ramp >> 8)), "person")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animated_pictures_are_refused_by_name(kind, tmp_path):
    path = tmp_path / "dance.png"
    path.write_bytes(encoded(SMALL, kind, save_all=True, append_images=[SMALL.rotate(180)]))
    with pytest.raises(PhotoError) as refused:
        read_picture(path, "person")
    assert str(refused.value) == f"{path} is animated; save one frame."
    stereo = encoded(SMALL, "MPO", save_all=True, append_images=[SMALL.rotate(180)])
    assert read_picture(stereo, "person").size == SMALL.size


# ---- colour profiles ----


def wide_profile():
    """An ICC profile: sRGB's with the columns of red and blue exchanged."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", content[128:132])[0]
    places = {content[132 + 12 * n : 136 + 12 * n].decode(): 136 + 12 * n for n in range(count)}
    red, blue = places["rXYZ"], places["bXYZ"]
    content[red : red + 8], content[blue : blue + 8] = (
        content[blue : blue + 8], content[red : red + 8]
    )  # fmt: skip
    return bytes(content).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_colours_of_a_profile_become_those_of_srgb(kind):
    colour = Image.new("RGB", (64, 64), (204, 102, 51))
    read = read_picture(encoded(colour, kind, icc_profile=wide_profile()), "person")
    assert read.getpixel((9, 9)) == pytest.approx((51, 102, 204), abs=4)
    assert "icc_profile" not in read.info  # a .png would keep it, a .jpg would not
    assert b"iCCP" not in encoded(read)
    assert in_rgb(read).tobytes() == read.tobytes()


def test_profiles_of_other_kinds_of_pixels():
    profile = wide_profile()
    colour = Image.new("RGBA", (64, 64), (204, 102, 51, 255))
    colour.paste((0, 0, 0, 0), (0, 0, 32, 64))
    read = read_picture(encoded(colour, icc_profile=profile), "person")
    assert read.getpixel((9, 9)) == (255, 255, 255)
    assert read.getpixel((40, 9)) == pytest.approx((51, 102, 204), abs=4)
    indexed = colour.convert("RGB").quantize(4)
    read = read_picture(encoded(indexed, icc_profile=profile), "person")
    assert read.getpixel((40, 9)) == pytest.approx((51, 102, 204), abs=4)
    # Those that do not fit or say nothing change nothing, and are dropped.
    grey = Image.new("L", (64, 64), 90)
    ours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for picture, unfit in ((grey, profile), (NOISE, b"no profile"), (NOISE, ours)):
        read = read_picture(encoded(picture, icc_profile=unfit), "person")
        assert read.tobytes() == picture.convert("RGB").tobytes()
        assert "icc_profile" not in read.info


def test_profiles_of_cmyk(monkeypatch):
    """Of a kind too large to make here: what is asked of the library."""
    asked = []

    def convert(image, own, other, outputMode):
        asked.append((image.mode, outputMode))
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    ink = Image.new("CMYK", (16, 16), (10, 20, 30, 40))
    read = read_picture(encoded(ink, "JPEG", icc_profile=wide_profile()), "person")
    assert read.getpixel((0, 0)) == (1, 2, 3) and asked == [("CMYK", "RGB")]


# ---- masks ----


def strokes(colour, mode="RGBA", ground=(0, 0, 0, 0)):
    mask = Image.new(mode, (64, 96), ground)
    mask.paste(colour, (20, 30, 44, 70))
    return mask


PAINTED = np.asarray(strokes(255, "L", 0)) > 0


@pytest.mark.parametrize(
    "mask",
    [
        strokes(255, "L", 0),
        strokes(255, "L", 0).convert("1"),
        strokes((255, 255, 255), "RGB", (0, 0, 0)),
        strokes((255, 255, 255, 255), ground=(0, 0, 0, 255)),  # as the demo's page sends it
        strokes((255, 255, 255, 255)),
        strokes((255, 255, 255, 255), ground=(255, 255, 255, 0)),
        Image.fromarray(np.asarray(strokes(255, "L", 0)).astype(np.uint16) * 257),
    ],
)
def test_masks_are_white_where_to_repaint(mask):
    read = read_mask(encoded(mask))
    assert read.mode == "L" and np.array_equal(np.asarray(read) >= 128, PAINTED)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (strokes((0, 0, 0, 255)), "is a cut-out: its transparency outlines something"),
        (strokes((200, 30, 40, 255)), "is a cut-out"),
        (strokes((0, 0, 0, 0), ground=(0, 0, 0, 255)), "is a cut-out"),  # rubbed out of black
        (NOISE, "it looks like a photograph. Masks are black and white"),
        (NOISE.convert("L").resize((512, 512)), "is grey over"),
        (Image.fromarray(np.asarray(NOISE.convert("L")).astype(np.uint16) * 257), "is grey over"),
        (Image.new("F", (8, 8)), "holds floating-point values"),
    ],
)
def test_other_pictures_in_the_place_of_a_mask_are_refused(mask, message, tmp_path):
    kind = "TIFF" if mask.mode == "F" else "PNG"
    with pytest.raises(PhotoError) as refused:
        in_grey(mask)
    said = str(refused.value)
    assert message in said and "\n" not in said and refused.value.picture == "mask"
    if kind == "PNG":
        (tmp_path / "mask.png").write_bytes(encoded(mask))
        with pytest.raises(PhotoError, match=str(tmp_path / "mask.png")):
            read_mask(tmp_path / "mask.png")


def test_masks_have_the_limits_of_pictures():
    with pytest.raises(PhotoError, match="million pixels are allowed"):
        read_mask(huge_png(20_000, 20_000))
    with pytest.raises(PhotoError, match="no JPEG, PNG or WebP"):
        read_mask(encoded(strokes(255, "L", 0), "GIF"))


# ---- what is refused ----


HOSTILE = {
    "400 million pixels": (lambda: huge_png(20_000, 20_000), "million pixels are allowed"),
    "one long side": (lambda: huge_png(60_000, 3), "million pixels are allowed"),
    "an archive": (archive, "something else than a picture"),
    "a picture with an archive behind it": (
        lambda: encoded(SMALL) + archive(),
        "something else than a picture",
    ),
    "an SVG": (
        lambda: b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>",
        "something else than a picture",
    ),
    "a page in front of a picture": (
        lambda: b"GIF89a<script>alert(1)</script>" + encoded(SMALL, "GIF"),
        "something else than a picture",
    ),
    "a document": (lambda: b"%PDF-1.7 " + encoded(SMALL, "JPEG"), "something else than a picture"),
    "another format": (lambda: encoded(SMALL, "GIF"), "no JPEG, PNG or WebP"),
    "a program": (lambda: b"#!/bin/sh\nrm -r .\n", "no JPEG, PNG or WebP"),
    "a TIFF": (lambda: encoded(SMALL, "TIFF"), "no JPEG, PNG or WebP"),
    "cut off": (lambda: encoded(NOISE)[:3000], "cannot be decoded"),
    "noise": (lambda: bytes(range(256)) * 4, "no JPEG, PNG or WebP"),
    "nothing": (lambda: b"", "is empty"),
    "300 MB": (lambda: b"\0" * (reading.MOST_BYTES + 1), "MB are allowed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_everything_else_is_refused_in_one_line(name):
    make, message = HOSTILE[name]
    with pytest.raises(PhotoError) as refused:
        read_picture(make(), "garment")
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.picture == "garment"


def test_bytes_that_mean_nothing_inside_a_picture_are_no_reason_to_refuse_it():
    assert read_picture(encoded(SMALL, "JPEG", comment=b"#!/bin/sh PK MZ"), "person").size == (
        36,
        48,
    )


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)  # takes no space
    with pytest.raises(PhotoError, match="300 MB; at most 40 MB are allowed"):
        read_picture(path, "person")
    with pytest.raises(PhotoError, match="cannot be read: No such file"):
        read_picture(tmp_path / "absent.jpg", "person")


def test_a_file_without_an_end_is_not_read_to_it():
    with pytest.raises(PhotoError, match="at most 40 MB are allowed"):
        read_picture(Path("/dev/zero"), "person")


@pytest.mark.parametrize("read", [lambda source: read_picture(source, "person"), read_mask])
def test_what_python_hands_over_is_a_path_or_a_picture(read, tmp_path):
    white = Image.new("L", (40, 30), 255)
    white.save(tmp_path / "white.png")
    for source in (white, str(tmp_path / "white.png")):
        assert np.asarray(read(source)).min() == 255
    (tmp_path / "cut.png").write_bytes(encoded(NOISE)[:3000])
    for source, message in (
        (Image.open(tmp_path / "cut.png"), "cannot be decoded: image file is truncated"),
        (np.asarray(white), "is given as ndarray.*PIL.Image.fromarray makes one"),
        (None, "is given as NoneType. Give a path"),
        ("a\0.png", r"a\\x00.png cannot be read"),
        (Path("two\nlines.png"), r"two\\nlines.png cannot be read"),
    ):
        with pytest.raises(PhotoError, match=message):
            read(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_a_camera_wrote_beside_the_picture_goes_no_further(kind):
    exif = Image.Exif()
    exif[0x010E] = "at home"
    told = {"PNG": {}, "JPEG": {"comment": b"at home"}, "WEBP": {}}[kind]
    photo = read_picture(encoded(SMALL, kind, exif=exif, xmp=b"<x>at home</x>", **told), "person")
    assert b"at home" not in encoded(photo.resize((60, 80)), kind) and not photo.info


def test_a_bomb_of_text_inside_a_png_is_refused():
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_text("bomb", "x" * 80_000_000, zip=True)
    content = encoded(SMALL, pnginfo=told)
    assert len(content) < 200_000
    with pytest.raises(PhotoError, match="cannot be decoded"):
        read_picture(content, "person")
