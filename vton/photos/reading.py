"""Reading a photograph that somebody brings: within limits, upright, in RGB, or one clear error.

Only JPEG, PNG and WebP are decoded, by Pillow's decoders for these alone. Size and pixel count are
looked at before anything is decoded.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from vton.data.decoding import ANIMATED, BROKEN, DEEP, animated, upright
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


Source = Path | str | bytes | Image.Image  # a file, its content, or what somebody has opened


def read_picture(source: Source, picture: str, name: str = "") -> Image.Image:
    """An upright RGB picture; transparency lies on white, a garment's is kept, see `in_rgb`.

    source: what Pillow has opened already may have any format and size. picture: which of the
    pictures given it is, for PhotoError. name: how messages call it; by default the path. Raises
    PhotoError.
    """
    return _read(source, picture, name, lambda image, called: in_rgb(image, picture, called))


def read_mask(source: Source, name: str = "") -> Image.Image:
    """A painted mask as an upright grey picture, white where to repaint; see `in_grey`.

    source, name: as for `read_picture`. Raises PhotoError.
    """
    return _read(source, "mask", name, in_grey)


def _read(
    source: Source,
    picture: str,
    name: str,
    understand: Callable[[Image.Image, str], Image.Image],
) -> Image.Image:
    """What `understand` makes of the decoded picture and of how messages call it."""
    own = "the mask" if picture == "mask" else f"the {picture}'s picture"
    called = name or (str(source) if isinstance(source, Path | str) else own)
    try:
        if isinstance(source, Image.Image):
            return understand(source, called)
        content = _content(source, picture, called)
        _require_one_kind(content, picture, called)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _require_size(image, picture, called)
            if animated(image):
                raise PhotoError(picture, f"{called} {ANIMATED}.")
            image.load()
            return understand(image, called)
    except PhotoError:
        raise
    except Image.DecompressionBombError:  # at twice its own limit Pillow does not open a file
        raise _too_many(picture, called, "too many") from None
    except UnidentifiedImageError:
        raise PhotoError(
            picture, f"{called} is no JPEG, PNG or WebP picture. Save it as one of these."
        ) from None
    except BROKEN as error:
        raise PhotoError(
            picture, f"{called} cannot be decoded: {one_line(error)}. Save the picture again."
        ) from None


def _content(source: Path | str | bytes, picture: str, called: str) -> bytes:
    if isinstance(source, bytes):
        content, size = source, len(source)
    elif isinstance(source, Path | str):
        try:
            with open(source, "rb") as file:
                content = file.read(MOST_BYTES + 1)
                size = max(len(content), os.fstat(file.fileno()).st_size)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            reason = getattr(error, "strerror", None) or one_line(error)
            raise PhotoError(picture, f"{called} cannot be read: {reason}.") from None
    else:
        raise PhotoError(
            picture,
            f"{called} is given as {type(source).__name__}. Give a path or a PIL picture; "
            "PIL.Image.fromarray makes one of an array.",
        )
    if not content:
        raise PhotoError(picture, f"{called} is empty (0 bytes). Choose the file again.")
    if size > MOST_BYTES:
        raise _too_large(picture, called, size)
    return content


def _too_large(picture: str, called: str, size: int) -> PhotoError:
    return PhotoError(
        picture,
        f"{called} has {size / 2**20:.0f} MB; at most {MOST_BYTES // 2**20} MB are allowed. Save a "
        "smaller copy.",
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
        f"{called} has {count} pixels; at most {MOST_PIXELS / 1e6:.0f} million pixels are allowed, "
        f"and {LONGEST:,} on a side. Save a smaller copy.",
    )


def in_rgb(image: Image.Image, picture: str = "person", called: str = "") -> Image.Image:
    """An upright sRGB picture; transparency lies on white.

    Of a garment it is kept (RGBA): it may be the garment's outline.
    picture, called: which of the pictures given it is, and its name in messages. Raises PhotoError.
    """
    called = called or f"the {picture}'s picture"
    image = upright(image)
    if image.mode == "F":
        raise PhotoError(picture, f"{called} holds floating-point values. Save it as 8-bit RGB.")
    if image.mode.startswith("I"):
        return _of_deep_grey(image, picture, called)
    image = _in_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if picture != "garment":
            image = on_white(image)
    else:
        image = image.convert("RGB")
    # Or a profile would be written beside numbers of sRGB, and comments of a photo into pictures
    # that are made of it.
    image.info.clear()
    return image


def on_white(image: Image.Image) -> Image.Image:
    """RGB of an RGBA picture laid on white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _of_deep_grey(image: Image.Image, picture: str, called: str) -> Image.Image:
    """RGB of grey in 16 bits or more."""
    grey = np.asarray(image).astype(np.float64)
    if image.mode != "I" and grey.max() < 256:
        raise PhotoError(
            picture,
            f"{called} has 16 bits a pixel and no value above 255, which is black. Save it as "
            "8-bit RGB.",
        )
    # Mode I tells nothing about the depth of the file.
    if image.mode != "I" or grey.max() > 255:
        grey = grey / DEEP
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """The colours of the picture's ICC profile as those of sRGB, which everything here takes for
    granted; as they are where there is no profile or a broken one.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = image
    if image.mode not in ("RGB", "CMYK", "L"):
        plain = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(own):  # its numbers stay, to the last bit
            return image
        converted = ImageCms.profileToProfile(plain, own, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, *BROKEN):  # ImportError: Pillow built without it
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def in_grey(image: Image.Image, called: str = "the mask") -> Image.Image:
    """A painted mask as an upright grey picture, white where to repaint. Raises PhotoError.

    Refuses what the reader of data sets' masks refuses: other pictures in the place of a mask. Of
    transparent pictures one kind is plain, white strokes on nothing: they are the mask. Black
    strokes might mean either.
    """
    from vton.data.images import BRIGHTEST, FileError, Origin, channels, grey_of_mask  # with torch

    image = upright(image)
    if image.has_transparency_data:
        *colours, alpha = channels(image.convert("RGBA"))
        seen = alpha >= 128
        if not seen.all() and all((colour[seen] > BRIGHTEST).all() for colour in colours):
            return Image.fromarray(alpha)
    try:
        grey = grey_of_mask(image, called, Path(), Origin("", "", ""))
    except FileError as error:
        raise PhotoError("mask", f"{error.kind}. {error.advice}") from None
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
