"""Decoding pictures without torch: the formats that are read, the errors of broken files, EXIF
orientation.
"""

from __future__ import annotations

import struct
import zlib

from PIL import Image

# Everything Pillow raises on truncated or foreign content; a broken PNG is a SyntaxError to it.
BROKEN = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    TypeError,
    LookupError,  # KeyError and IndexError
    AttributeError,
    OverflowError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Pillow knows many more, some of which start other programs; EPS starts Ghostscript.
# An MPO is opened as the JPEG that it begins with.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
FORMAT_NAMES = "JPEG, PNG, WebP, BMP, GIF or TIFF"
ANIMATED = "is animated; save one frame"

DEEP = 257  # 16-bit grey levels per 8-bit one
EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Entries of `Image.info` in which Pillow looks for the orientation.
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def animated(image: Image.Image) -> bool:
    """Whether the file holds several pictures. Those of an MPO file are depth maps or the like."""
    return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def orientation(image: Image.Image) -> object:
    """EXIF's orientation, 1 to 8 if it is valid. Raises one of BROKEN for unreadable EXIF."""
    return image.getexif().get(EXIF_ORIENTATION)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as EXIF says. It keeps its format and loses its orientation tags.

    Only the orientation is read: Pillow's own function writes all of EXIF again, which fails on a
    single tag of an odd type. Raises one of BROKEN for EXIF that cannot be read.
    """
    transpose = UPRIGHT.get(orientation(image))
    if transpose is None:
        return image
    turned = image.transpose(transpose)
    turned.format = image.format
    for key in ORIENTATION_KEYS:
        turned.info.pop(key, None)
    return turned
