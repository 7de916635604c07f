"""Reading picture files: one decoder per kind, strict about what it finds.

Photographs become RGB (alpha composited on white, 16 bit scaled), masks become bool, label maps
keep their indices; all are turned as EXIF says. Whatever cannot be read as its kind is a DataError
that names data set, split, id and path.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from vton.data.sample import DataError
from vton.data.source import Source

SUFFIXES = (".jpg", ".png", ".jpeg")  # preferred first
ADVICE = "Run `make data-check` for the full list."
RESTORE = "Restore it from the archive."
RESTORE_OR_DROP = "Restore it or take its pairs out of the list."

THRESHOLD = 128  # grey level from which a pixel of a mask file is set
INVERTED = 0.8  # an agnostic mask that sets more of the picture than this is taken for inverted
NEAR_WHITE = 225  # darkest background of an in-shop picture, grey levels; VITON-HD's is 240 to 255
BACKGROUND_NOISE = 10  # grey levels by which JPEG and uneven light move a plain background
SPECK = 5e-4  # share of the picture below which a connected region is JPEG noise
PLAUSIBLE = (0.01, 0.95)  # share of an in-shop picture that a garment can fill
DEEP = 257  # 16-bit grey levels per 8-bit one

EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height

# Everything Pillow raises on truncated or foreign content; a broken PNG is a SyntaxError to it.
BROKEN = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Origin:
    """Where a file comes from, for error messages."""

    dataset: str
    split: str
    id: str

    def error(self, problem: str, path: Source, advice: str = "") -> FileError:
        problem = f"{problem} ({path}). {advice}".strip()
        error = FileError(f"{self.dataset} {self.split} {self.id}: {problem} {ADVICE}")
        error.origin = self
        error.path = path
        error.problem = problem
        return error


class FileError(DataError):
    """A DataError about one file. Its parts serve the data check."""

    origin: Origin
    path: Source
    problem: str  # what is wrong and what to do


def read_photo(
    path: Source, what: str, origin: Origin, size: tuple[int, int] | None = None
) -> Image.Image:
    """An RGB picture as a viewer shows it.

    what: its name in messages. size: (width, height) that it must have, None for any. Raises
    DataError when it is missing, empty, truncated or no picture.
    """
    image = _decode(path, what, origin)
    _require_size(image, size, what, path, origin)
    if image.mode == "F":
        raise origin.error(f"{what} holds floating-point values", path, "Save it as 8-bit RGB.")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.float64)
        # Mode I tells nothing about the depth of the file.
        if image.mode != "I" or grey.max() > 255:
            grey = grey / DEEP
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def photo_size(path: Source) -> tuple[int, int] | None:
    """(width, height) of an upright photograph from its header alone, None if unreadable."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            width, height = image.size
            orientation = image.getexif().get(EXIF_ORIENTATION)
    except BROKEN:
        return None
    return (height, width) if orientation in TURNED else (width, height)


def read_mask(
    path: Source, what: str, origin: Origin, size: tuple[int, int] | None, silhouette: bool
) -> np.ndarray:
    """A mask file as (H, W) bool, thresholded at 128 because many are JPEG. Raises DataError.

    size: (width, height) of the picture it belongs to, None to skip that comparison. silhouette:
    the mask outlines an object inside the picture. It may fill most of the picture, but not most of
    its frame; then it is taken for inverted.
    """
    image = _decode(path, what, origin)
    _require_size(image, size, what, path, origin)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64) / DEEP
    elif image.mode in ("RGB", "RGBA", "LA"):
        grey = np.asarray(image.getchannel(0))  # three-channel masks repeat one channel
    else:
        grey = np.asarray(image.convert("L"))
    mask = grey >= THRESHOLD
    if not mask.any():
        hint = "It must mark a region."
        if 0 < grey.max() < THRESHOLD:
            hint = "Masks hold 0 and 255."
        raise origin.error(f"{what} is empty, its largest value is {grey.max():.0f}", path, hint)
    inverted = _frame(mask).mean() > 0.5 if silhouette else mask.mean() > INVERTED
    if inverted:
        problem = f"{what} sets {mask.mean():.0%} of the picture: inverted mask"
        raise origin.error(problem, path, "White means set.")
    return mask


def read_labels(
    path: Source, what: str, origin: Origin, size: tuple[int, int] | None, count: int
) -> np.ndarray:
    """A label map as (H, W) uint8 indices below `count`.

    Palette pictures give their indices, grey ones their values. Raises DataError for colour
    pictures: ids cannot be read back from colours that a converter may have changed.
    """
    image = _decode(path, what, origin)
    if image.mode not in ("P", "L"):
        advice = (
            "Store it as a palette (P) or grey (L) picture whose values are the labels "
            f"0 to {count - 1}."
        )
        raise origin.error(f"{what} has mode {image.mode}, not label indices", path, advice)
    _require_size(image, size, what, path, origin)
    label_map = np.array(image)
    if label_map.max() >= count:
        hint = ""
        if image.mode == "L":
            hint = "Grey values look like luminance of the colours, not labels."
        problem = f"{what} has label {label_map.max()}, expected 0 to {count - 1}"
        raise origin.error(problem, path, hint)
    return label_map


def silhouette_on_white(image: Image.Image, path: Source, origin: Origin) -> np.ndarray:
    """(H, W) bool: where an in-shop garment lies, from its white background.

    For data sets without garment masks (the original DressCode). What the garment encloses, such as
    the white of a print or of a white shirt within its outline, counts as garment. Raises DataError
    when it cannot be told.
    """
    pixels = np.asarray(image).astype(np.int16)
    background = np.median(_frame(pixels), axis=0)
    if background.min() < NEAR_WHITE:
        raise _underivable(f"background {background.tolist()} is not white", path, origin)
    differs = (np.abs(pixels - background) > BACKGROUND_NOISE).any(axis=2)
    regions, count = ndimage.label(differs)
    areas = np.bincount(regions.ravel(), minlength=count + 1)
    keep = areas >= max(2, SPECK * regions.size)
    keep[0] = False  # the background
    mask = ndimage.binary_fill_holes(keep[regions])
    if not PLAUSIBLE[0] < mask.mean() < PLAUSIBLE[1]:
        share = f"{mask.mean():.0%}"
        raise _underivable(f"{share} of the picture differs from its background", path, origin)
    return mask


def _underivable(reason: str, path: Source, origin: Origin) -> FileError:
    advice = "Provide a folder with garment masks."
    return origin.error(f"garment mask cannot be derived: {reason}", path, advice)


def _frame(pixels: np.ndarray) -> np.ndarray:
    """The pixels at the picture's border: (H, W, ...) -> (2 W + 2 H, ...)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _decode(path: Source, what: str, origin: Origin) -> Image.Image:
    try:
        content = path.read_bytes()
        if not content:
            raise origin.error(f"{what} is an empty file (0 bytes)", path, RESTORE)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            # Masks and label maps are turned too, or they would not fit their photo.
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except FileNotFoundError:
        raise origin.error(f"{what} is missing", path, RESTORE_OR_DROP) from None
    except DataError:
        raise
    except UnidentifiedImageError:
        problem = f"{what} cannot be decoded: no picture format"
        raise origin.error(problem, path, RESTORE) from None
    except BROKEN as error:
        raise origin.error(f"{what} cannot be decoded: {error}", path, RESTORE) from None


def _require_size(
    image: Image.Image, size: tuple[int, int] | None, what: str, path: Source, origin: Origin
) -> None:
    if size is not None and image.size != size:
        own = f"{image.width}x{image.height}"
        raise origin.error(f"{what} is {own}, image is {size[0]}x{size[1]}", path)
