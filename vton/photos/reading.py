"""Reading a photograph that somebody brings: within limits, upright, in RGB, or one clear error.

Only JPEG, PNG and WebP are decoded, by Pillow's decoders for these alone. Size and pixel count are
looked at before anything is decoded.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from vton.data.broken import BROKEN
from vton.errors import one_line
from vton.photos.errors import PhotoError

FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST_BYTES = 40 * 2**20
MOST_PIXELS = 64_000_000  # phones have up to 50 million
LONGEST = 16_000  # px of a side
# What begins or ends a file that is a picture and something else at once. Nothing so short that a
# picture's own bytes would often hold it by chance.
FOREIGN = (b"%PDF-", b"<svg", b"<html", b"<script", b"<?php", b"<!DOCTYPE")
LOOKED_AT = 4096  # bytes at both ends

# It warns of sizes that are refused here anyway, and of camera data that nothing here needs.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Corrupt EXIF data")


def read_picture(source: Path | bytes, picture: str, name: str = "") -> Image.Image:
    """An upright RGB picture; transparency lies on white.

    source: a file, or its content. picture: which of the pictures given it is, for PhotoError.
    name: how messages call it; by default the path. Raises PhotoError.
    """
    called = name or (str(source) if isinstance(source, Path) else f"the {picture}'s picture")
    content = _content(source, picture, called)
    _require_one_kind(content, picture, called)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _require_size(image, picture, called)
            image.load()
            return in_rgb(image)
    except PhotoError:
        raise
    except Image.DecompressionBombError:  # at twice its own limit Pillow does not open a file
        raise _too_many(picture, called, "too many") from None
    except UnidentifiedImageError:
        raise PhotoError(
            picture, f"{called} is no JPEG, PNG or WebP picture. Save it as one of these."
        ) from None
    except (*BROKEN, MemoryError) as error:
        raise PhotoError(
            picture, f"{called} cannot be decoded: {one_line(error)}. Save the picture again."
        ) from None


def _content(source: Path | bytes, picture: str, called: str) -> bytes:
    if isinstance(source, bytes):
        content = source
    else:
        try:
            size = source.stat().st_size
            content = b"" if size > MOST_BYTES else source.read_bytes()
        except OSError as error:
            raise PhotoError(picture, f"{called} cannot be read: {error.strerror}.") from None
        if size > MOST_BYTES:
            raise _too_large(picture, called, size)
    if not content:
        raise PhotoError(picture, f"{called} is empty (0 bytes). Choose the file again.")
    if len(content) > MOST_BYTES:
        raise _too_large(picture, called, len(content))
    return content


def _too_large(picture: str, called: str, size: int) -> PhotoError:
    return PhotoError(
        picture,
        f"{called} has {size / 2**20:.0f} MB; {MOST_BYTES // 2**20} MB are the most. Save it "
        "smaller.",
    )


def _require_one_kind(content: bytes, picture: str, called: str) -> None:
    """Raise PhotoError for a file that another program would take for something else."""
    ends = content[:LOOKED_AT] + content[-LOOKED_AT:]
    if any(sign.lower() in ends.lower() for sign in FOREIGN) or zipfile.is_zipfile(
        io.BytesIO(content)
    ):
        raise PhotoError(
            picture,
            f"{called} holds something else than a picture (a document, a program or an archive). "
            "Save the picture alone, as JPEG or PNG.",
        )


def _require_size(image: Image.Image, picture: str, called: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS or max(width, height) > LONGEST:
        raise _too_many(picture, called, f"{width}x{height}")


def _too_many(picture: str, called: str, count: str) -> PhotoError:
    return PhotoError(
        picture,
        f"{called} has {count} pixels; {MOST_PIXELS / 1e6:.0f} million are the most, and "
        f"{LONGEST:,} a side. Save it smaller.",
    )


def in_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB picture; transparency lies on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey
        image = image.point(lambda value: value / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
