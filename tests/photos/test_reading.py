import io
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from vton.photos import reading
from vton.photos.errors import PhotoError
from vton.photos.reading import in_rgb, read_picture


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
    # Of moving pictures the first one.
    for kind in ("PNG", "WEBP"):
        moving = encoded(colour, kind, save_all=True, append_images=[SMALL.resize((64, 64))])
        assert read_picture(moving, "person").getpixel((9, 9)) == close


def test_transparency_lies_on_white_and_deep_grey_keeps_its_range():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert read_picture(encoded(clear), "garment").getpixel((0, 0)) == (255, 255, 255)
    indexed = Image.new("RGB", (8, 8), (10, 20, 30))
    indexed.paste((204, 102, 51), (2, 2, 6, 6))
    indexed = indexed.quantize(4)
    read = read_picture(encoded(indexed, transparency=indexed.getpixel((0, 0))), "garment")
    assert read.getpixel((0, 0)) == (255, 255, 255) and read.getpixel((4, 4)) == (204, 102, 51)
    deep = Image.fromarray(np.full((4, 4), 257 * 100, np.uint16))
    assert in_rgb(deep).getpixel((0, 0)) == (100, 100, 100)


HOSTILE = {
    "400 million pixels": (lambda: huge_png(20_000, 20_000), "million are the most"),
    "one long side": (lambda: huge_png(60_000, 3), "million are the most"),
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
    "300 MB": (lambda: b"\0" * (reading.MOST_BYTES + 1), "MB are the most"),
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
    with pytest.raises(PhotoError, match="300 MB; 40 MB are the most"):
        read_picture(path, "person")
    with pytest.raises(PhotoError, match="cannot be read: No such file"):
        read_picture(tmp_path / "absent.jpg", "person")


def test_a_bomb_of_text_inside_a_png_is_refused():
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_text("bomb", "x" * 80_000_000, zip=True)
    content = encoded(SMALL, pnginfo=told)
    assert len(content) < 200_000
    with pytest.raises(PhotoError, match="cannot be decoded"):
        read_picture(content, "person")
