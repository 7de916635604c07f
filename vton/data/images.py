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
from vton.data.shards import Source

SUFFIXES = (".jpg", ".png", ".jpeg")  # preferred first
ADVICE = "Run `make data-check` for the full list."
INVERTED = 0.8  # an agnostic mask that sets more of the picture than this is taken for inverted
NEAR_WHITE = 225  # darkest background of an in-shop picture, grey levels; VITON-HD's is 240 to 255
WHITE = 245  # grey level from which a pixel of a warped garment file counts as its white surround
BACKGROUND_NOISE = 10  # grey levels by which JPEG and uneven light move a plain background
SPECK = 5e-4  # share of the picture below which a connected region is JPEG noise

# Everything Pillow raises on truncated or foreign content; SyntaxError is its word for a broken
# PNG.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


@dataclass(frozen=True)
class Origin:
    """Where a file comes from, for error messages."""

    dataset: str
    split: str
    id: str

    def error(self, problem: str, path: Source, advice: str = "") -> FileError:
        problem = f"{problem} ({path}). {advice}".strip()
        error = FileError(f"{self.dataset} {self.split} {self.id}: {problem} {ADVICE}")
        error.origin, error.path, error.problem = self, path, problem
        return error


class FileError(DataError):
    """A DataError about one file. Its parts serve the data check; `problem` says what is wrong and
    what to do.
    """

    origin: Origin
    path: Source
    problem: str


def read_photo(
    path: Source, what: str, origin: Origin, size: tuple[int, int] | None = None
) -> Image.Image:
    """An RGB picture as a viewer shows it. Raises DataError when it is missing, empty, truncated or
    no picture.

    size: (width, height) that it must have, None for any.
    """
    image = _decode(path, what, origin)
    _same_size(image, size, what, path, origin)
    if image.mode == "F":
        raise origin.error(f"{what} holds floating-point values", path, "Save it as 8-bit RGB.")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.float64)
        deep = (
            image.mode != "I" or grey.max() > 255
        )  # mode I tells nothing about the depth of the file
        return Image.fromarray((grey / (257 if deep else 1)).round().astype(np.uint8)).convert(
            "RGB"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def photo_size(path: Source) -> tuple[int, int] | None:
    """(width, height) of an upright photograph from its header alone; None when even that cannot be
    read.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            width, height = image.size
            return (
                (height, width)
                if image.getexif().get(EXIF_ORIENTATION) in TURNED
                else (width, height)
            )
    except BROKEN:
        return None


def read_mask(
    path: Source, what: str, origin: Origin, size: tuple[int, int] | None, silhouette: bool
) -> np.ndarray:
    """A mask file as (H, W) bool, thresholded at 128 because many are JPEG.

    size: (width, height) of the picture it belongs to, None to skip that comparison. `silhouette`:
    the mask outlines an object inside the picture, which may fill most of it, but not most of its
    frame: then it is taken for inverted. Raises DataError.
    """
    image = _decode(path, what, origin)
    _same_size(image, size, what, path, origin)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64) / 257
    elif image.mode in ("RGB", "RGBA", "LA"):
        grey = np.asarray(image.getchannel(0))  # three-channel masks repeat one channel
    else:
        grey = np.asarray(image.convert("L"))
    mask = grey >= 128
    if not mask.any():
        hint = "Masks hold 0 and 255." if 0 < grey.max() < 128 else "It must mark a region."
        raise origin.error(f"{what} is empty, its largest value is {grey.max():.0f}", path, hint)
    frame = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    if frame > 0.5 if silhouette else mask.mean() > INVERTED:
        raise origin.error(
            f"{what} sets {mask.mean():.0%} of the picture: inverted mask", path, "White means set."
        )
    return mask


def read_labels(
    path: Source, what: str, origin: Origin, size: tuple[int, int] | None, count: int
) -> np.ndarray:
    """A label map as (H, W) uint8 indices below `count`. Palette pictures give their indices, grey
    ones their values.

    Raises DataError for colour pictures: ids cannot be read back from colours that a converter may
    have changed.
    """
    image = _decode(path, what, origin)
    if image.mode not in ("P", "L"):
        raise origin.error(
            f"{what} has mode {image.mode}, not label indices",
            path,
            f"Store it as a palette (P) or grey (L) picture whose values are the labels 0 to {count - 1}.",
        )
    _same_size(image, size, what, path, origin)
    label_map = np.array(image)
    if label_map.max() >= count:
        hint = (
            "Grey values look like luminance of the colours, not labels."
            if image.mode == "L"
            else ""
        )
        raise origin.error(
            f"{what} has label {label_map.max()}, expected 0 to {count - 1}", path, hint
        )
    return label_map


def silhouette_on_white(image: Image.Image, path: Source, origin: Origin) -> np.ndarray:
    """(H, W) bool: where an in-shop garment lies, from its white background. Raises DataError when
    it cannot be told.

    For data sets without garment masks (the original DressCode). What the garment encloses, such as
    the white of a print or of a white shirt within its outline, counts as garment.
    """
    pixels = np.asarray(image).astype(np.int16)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(frame, axis=0)
    advice = "Provide a folder with garment masks."
    if background.min() < NEAR_WHITE:
        raise origin.error(
            f"garment mask cannot be derived: background {background.tolist()} is not white",
            path,
            advice,
        )
    regions, count = ndimage.label((np.abs(pixels - background) > BACKGROUND_NOISE).any(axis=2))
    keep = np.bincount(regions.ravel(), minlength=count + 1) >= max(2, SPECK * regions.size)
    keep[0] = False
    mask = ndimage.binary_fill_holes(keep[regions])
    if not 0.01 < mask.mean() < 0.95:
        raise origin.error(
            f"garment mask cannot be derived: {mask.mean():.0%} of the picture differs from its background",
            path,
            advice,
        )
    return mask


def _decode(path: Source, what: str, origin: Origin) -> Image.Image:
    try:
        content = path.read_bytes()
        if not content:
            raise origin.error(
                f"{what} is an empty file (0 bytes)", path, "Restore it from the archive."
            )
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            ImageOps.exif_transpose(
                image, in_place=True
            )  # masks and label maps too, or they would not fit their photo
            return image
    except FileNotFoundError:
        raise origin.error(
            f"{what} is missing", path, "Restore it or take its pairs out of the list."
        ) from None
    except DataError:
        raise
    except UnidentifiedImageError:
        raise origin.error(
            f"{what} cannot be decoded: no picture format", path, "Restore it from the archive."
        ) from None
    except BROKEN as error:
        raise origin.error(
            f"{what} cannot be decoded: {error}", path, "Restore it from the archive."
        ) from None


def _same_size(
    image: Image.Image, size: tuple[int, int] | None, what: str, path: Source, origin: Origin
) -> None:
    if size is not None and image.size != size:
        (width, height), (picture_width, picture_height) = image.size, size
        raise origin.error(
            f"{what} is {width}x{height}, image is {picture_width}x{picture_height}", path
        )
