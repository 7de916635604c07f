"""Reading picture files: one strict decoder for each kind.

Photographs become RGB (transparency on white, 16-bit values scaled), masks become bool, label maps
keep their indices; all are turned as EXIF says. A file that cannot be read as its kind raises a
DataError that names data set, split, id and path.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from vton.data.decoding import (
    ANIMATED,
    BROKEN,
    DEEP,
    FORMAT_NAMES,
    FORMATS,
    TURNED,
    animated,
    orientation,
    upright,
)
from vton.data.sample import DataError
from vton.data.source import Source
from vton.errors import one_line

SUFFIXES = (".jpg", ".png", ".jpeg")  # preferred first
ADVICE = "Run `make data-check` for the full list."
RESTORE = "Restore it from the archive."
RESTORE_OR_DROP = "Restore it or take its pairs out of the list."

THRESHOLD = 128  # grey level from which a pixel of a mask file is set
# How a mask is told from another picture. JPEG keeps equal channels equal to within a level at any
# quality, and no mask of the rendered sets or of VITON-HD has a grey region. Agnostic pictures are
# grey over at least .28 of their area, masks feathered by a Gaussian of H / 50 over .002.
COLOURED = 24  # grey levels between the channels of a pixel that is not grey
COLOURED_SHARE = 0.002  # share of coloured pixels above which a picture is no mask
DARKEST, BRIGHTEST = 48, 207  # grey levels between which a pixel is neither black nor white
GREY_SIDE = 0.06  # side of the squares, as a share of the longer side, that must be grey throughout
GREY_SHARE = 0.08  # share of the picture that such squares may fill
INVERTED = 0.8  # an agnostic mask that sets more of the picture than this counts as inverted
NEAR_WHITE = 225  # darkest background of an in-shop picture, grey levels; VITON-HD's is 240 to 255
BACKGROUND_NOISE = 10  # grey levels by which JPEG and uneven light move a plain background
PLAIN = 2  # grey levels within which a whole photograph is of one colour
SPECK = 5e-4  # share of the picture below which a connected region is JPEG noise
PLAUSIBLE = (0.01, 0.95)  # share of an in-shop picture that a garment can fill
LOSSY = ("JPEG", "MPO", "WEBP")  # formats that change labels at every edge

# For the guess which kind of picture was given in place of a mask.
AGNOSTIC_GREY = 128  # the grey level that agnostic pictures are painted with
AGNOSTIC_SHARE = 0.04  # share of the picture in that grey
LABEL_COLOURS = 32  # the most colours that a label map has

SAME_COLOUR = 2  # levels per channel by which the published palettes of one label set differ


@dataclass(frozen=True)
class Origin:
    """Where a file comes from, for error messages."""

    dataset: str
    split: str
    id: str

    def error(self, problem: str, path: Source, advice: str = "") -> FileError:
        """The error of a file. problem: what is wrong with it; advice: what to do."""
        sentences = f"{problem} ({path}). {advice}".strip()
        error = FileError(f"{self.dataset} {self.split} {self.id}: {sentences} {ADVICE}")
        error.origin = self
        error.path = path
        error.problem = sentences
        error.kind = problem
        error.advice = advice
        return error


class FileError(DataError):
    """A DataError about one file. Its parts serve the data check."""

    origin: Origin
    path: Source
    problem: str  # what is wrong, where, and what to do
    kind: str  # what is wrong, without the path
    advice: str  # what to do, "" where that is plain


def read_photo(
    path: Source, what: str, origin: Origin, size: tuple[int, int] | None = None
) -> Image.Image:
    """An RGB picture as a viewer shows it.

    what: its name in messages
    size: (width, height) that it must have, None for any

    Raises DataError if it is missing, empty, truncated or no picture.
    """
    image = _decode(path, what, origin)
    _require_size(image, size, what, path, origin)
    if image.mode == "F":
        raise origin.error(f"{what} holds floating-point values", path, "Save it as 8-bit RGB.")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.float64)
        # Mode I does not tell whether the file has 8 or 16 bits.
        if image.mode != "I" or grey.max() > 255:
            grey = grey / DEEP
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def require_content(photo: Image.Image, what: str, path: Source, origin: Origin) -> None:
    """Raise DataError for an RGB picture of one colour: 8-bit values stored as 16-bit ones, for
    instance, are all black.
    """
    if all(high - low <= PLAIN for low, high in photo.getextrema()):
        raise origin.error(f"{what} shows nothing: all of it has one colour", path, RESTORE)


def photo_size(path: Source) -> tuple[int, int] | None:
    """(width, height) of an upright photograph from its header alone, None if unreadable."""
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            turned = orientation(image) in TURNED
    except BROKEN:
        return None
    return (height, width) if turned else (width, height)


def read_mask(
    path: Source,
    what: str,
    origin: Origin,
    size: tuple[int, int] | None,
    silhouette: bool,
    may_be_empty: bool = False,
) -> np.ndarray:
    """A mask file as (H, W) bool, thresholded at 128 because many are JPEG.

    size: (width, height) of the picture that it belongs to, None for any
    silhouette: the mask outlines an object inside the picture. It may fill most of the picture, but
        not most of its border; then it counts as inverted
    may_be_empty: return a mask that is 0 everywhere. One that is empty because its values are not 0
        and 255 is refused all the same

    All commands read masks with this function. It also refuses other kinds of pictures, which it
    recognises by their colours, by large grey regions, or by a transparency that outlines
    something. Raises DataError.
    """
    image = _decode(path, what, origin)
    _require_size(image, size, what, path, origin)
    grey = grey_of_mask(image, what, path, origin)
    mask = grey >= THRESHOLD
    if not mask.any():
        if may_be_empty and not grey.any():
            return mask
        hint = "It must mark a region."
        if 0 < grey.max() < THRESHOLD:
            hint = "Masks hold 0 and 255."
        raise origin.error(f"{what} is empty, its largest value is {grey.max():.0f}", path, hint)
    inverted = frame(mask).mean() > 0.5 if silhouette else mask.mean() > INVERTED
    if inverted:
        problem = f"{what} sets {mask.mean():.0%} of the picture: inverted mask"
        raise origin.error(problem, path, "White means set.")
    return mask


def grey_of_mask(image: Image.Image, what: str, path: Source, origin: Origin) -> np.ndarray:
    """(H, W) grey levels 0..255 of a mask. Raises DataError for other kinds of pictures."""
    if image.mode == "F":
        raise origin.error(f"{what} holds floating-point values", path, "Save it as 8-bit grey.")
    deep = image.mode.startswith("I")
    if image.has_transparency_data and not deep:
        image = image.convert("RGBA")
        low, high = image.getchannel("A").getextrema()
        if low < high:
            problem = f"{what} is a cut-out: its transparency outlines something"
            advice = "Save that outline as a grey picture of 0 and 255 without transparency."
            raise origin.error(problem, path, advice)
    if deep:
        grey = np.asarray(image) / DEEP
    elif image.mode in ("1", "L"):
        grey = np.asarray(image.convert("L"))
    else:
        red, green, blue = channels(image.convert("RGB"))
        brightest = np.maximum(np.maximum(red, green), blue)
        spread = brightest - np.minimum(np.minimum(red, green), blue)
        coloured = (spread > COLOURED).mean()
        if coloured > COLOURED_SHARE:
            problem = f"{what} is coloured over {coloured:.0%} of it: {_looks_like(image)}"
            raise origin.error(problem, path, "Masks are black and white.")
        grey = red
    step = max(1, max(grey.shape) // 128)
    between = (grey[::step, ::step] > DARKEST) & (grey[::step, ::step] < BRIGHTEST)
    side = max(3, round(GREY_SIDE * max(between.shape)))
    broad = (ndimage.uniform_filter(between.astype(np.float32), side) > 0.99).mean()
    if broad > GREY_SHARE:
        problem = f"{what} is grey over {broad:.0%} of it: {_looks_like(image)}"
        raise origin.error(problem, path, "Masks are black and white.")
    return grey


def channels(image: Image.Image) -> list[np.ndarray]:
    """The channels of a picture, (H, W) each.

    numpy computes on whole channels at the speed of memory; along a last axis of length three it
    takes twenty times as long.
    """
    return [np.asarray(channel) for channel in image.split()]


def _looks_like(image: Image.Image) -> str:
    """A guess which kind of picture was given in place of a mask, for the message."""
    rgb = np.asarray(image.convert("RGB")).astype(np.int16)
    if (np.abs(rgb - AGNOSTIC_GREY).max(axis=2) <= 4).mean() > AGNOSTIC_SHARE:
        return "it looks like an agnostic picture, the person under a grey region"
    small = image.convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
    if len(small.getcolors(64 * 64)) <= LABEL_COLOURS:
        return "it looks like a map of labels in colours"
    return "it looks like a photograph"


def read_labels(
    path: Source,
    what: str,
    origin: Origin,
    size: tuple[int, int] | None,
    count: int,
    palettes: Sequence[bytes] = (),
    foreign: Mapping[str, bytes] = MappingProxyType({}),
) -> np.ndarray:
    """A label map as (H, W) uint8 labels below `count`.

    The labels are the values of a grey picture, or the indices of a palette picture, unless its
    colours tell otherwise: see `_by_colour`.

    palettes: the known palettes of this kind of map, RGB entries in the order of the labels
    foreign: the palettes of maps with other labels, by name

    Raises DataError for lossy formats, and for colour pictures: ids cannot be recovered from
    colours that a converter may have changed.
    """
    image = _decode(path, what, origin)
    if image.format in LOSSY:
        problem = f"{what} is stored as {image.format}, which changes labels at their edges"
        raise origin.error(problem, path, "Restore the PNG that it was made from.")
    if image.mode not in ("P", "L"):
        advice = (
            "Store it as a palette (P) or grey (L) picture whose values are the labels "
            f"0 to {count - 1}."
        )
        raise origin.error(f"{what} has mode {image.mode}, not label indices", path, advice)
    _require_size(image, size, what, path, origin)
    label_map = np.array(image)
    if image.mode == "P" and palettes:
        try:
            label_map = _by_colour(label_map, image, count, palettes, foreign)
        except ValueError as error:
            advice = "Restore it from the archive, or save the labels as grey values."
            raise origin.error(f"{what} {error}", path, advice) from None
    if label_map.max() >= count:
        hint = ""
        if image.mode == "L":
            hint = "Grey values look like luminance of the colours, not labels."
        problem = f"{what} has label {label_map.max()}, expected 0 to {count - 1}"
        raise origin.error(problem, path, hint)
    return label_map


def _by_colour(
    indices: np.ndarray,
    image: Image.Image,
    count: int,
    palettes: Sequence[bytes],
    foreign: Mapping[str, bytes],
) -> np.ndarray:
    """Labels of a palette picture, by the colours of the indices that occur.

    If the colours are in the order of a known palette, or all unknown, the indices are the labels.
    If all are known but in another order, as optimisers of PNG files leave them, the colours decide
    the labels. Raises ValueError for the palette of maps with other labels, and for a mixture of
    unknown colours and known ones in another order.
    """
    used = np.unique(indices)
    table = np.zeros((256, 3), np.int16)
    entries = np.array(image.getpalette("RGB"), np.int16).reshape(-1, 3)
    table[: len(entries)] = entries
    colours = table[used]

    known = [(np.frombuffer(palette, np.uint8).reshape(-1, 3), SAME_COLOUR) for palette in palettes]
    known.append((np.arange(256, dtype=np.uint8).repeat(3).reshape(-1, 3), 0))  # values as greys
    for palette, apart in known:
        if _close(palette[used], colours, apart).all():
            return indices
    for name, entries in foreign.items():
        palette = np.frombuffer(entries, np.uint8).reshape(-1, 3)
        if len(used) > 2 and _close(palette[used], colours).all():
            raise ValueError(f"has the colours of {name}'s labels")
    for palette, apart in known:
        close = _close(palette[None, :count], colours[:, None], apart)  # used x labels
        if close.any(axis=1).all():
            lookup = np.zeros(256, np.uint8)
            lookup[used] = close.argmax(axis=1)
            return lookup[indices]
    own = _close(known[0][0][None, :count], colours[:, None])
    moved = own.any(axis=1) & (own.argmax(axis=1) != used)
    if moved.any():
        index = used[moved][0]
        raise ValueError(
            f"has the colour of label {own[moved][0].argmax()} at index {index}, and colours "
            "of no label"
        )
    return indices


def _close(colours: np.ndarray, others: np.ndarray, apart: int = SAME_COLOUR) -> np.ndarray:
    """Which colours (..., 3) are equal up to the rounding of published palettes."""
    return (np.abs(colours.astype(np.int16) - others) <= apart).all(axis=-1)


def silhouette_on_white(image: Image.Image, path: Source, origin: Origin) -> np.ndarray:
    """(H, W) bool: the silhouette of an in-shop garment on a white background.

    For data sets without garment masks, such as the original DressCode. White regions inside the
    outline, such as those of a print or a white shirt, count as garment. Raises DataError if the
    background is not white, or if the silhouette is implausibly small or large.
    """
    background = np.median(frame(np.asarray(image)), axis=0)
    if background.min() < NEAR_WHITE:
        raise _underivable(f"background {background.tolist()} is not white", path, origin)
    differs = np.zeros((image.height, image.width), bool)
    for channel, level in zip(channels(image), background, strict=True):
        # The median may lie halfway between two levels; counted in half levels it is an integer.
        apart = np.abs(2 * channel.astype(np.int16) - np.int16(2 * level))
        differs |= apart > 2 * BACKGROUND_NOISE
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


def frame(pixels: np.ndarray) -> np.ndarray:
    """The pixels at the picture's border: (H, W, ...) -> (2 W + 2 H, ...)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _decode(path: Source, what: str, origin: Origin) -> Image.Image:
    """A picture file, decoded and turned as EXIF says, in its own mode. Raises DataError."""
    try:
        content = path.read_bytes()
        if not content:
            raise origin.error(f"{what} is an empty file (0 bytes)", path, RESTORE)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if animated(image):
                raise origin.error(f"{what} {ANIMATED}", path)
            image.load()
            # Masks and label maps too, or they would not fit their photo.
            return upright(image)
    except FileNotFoundError:
        raise origin.error(f"{what} is missing", path, RESTORE_OR_DROP) from None
    except DataError:
        raise
    except UnidentifiedImageError:
        problem = f"{what} cannot be decoded: no {FORMAT_NAMES} picture"
        raise origin.error(problem, path, RESTORE) from None
    except BROKEN as error:
        raise origin.error(f"{what} cannot be decoded: {one_line(error)}", path, RESTORE) from None


def _require_size(
    image: Image.Image, size: tuple[int, int] | None, what: str, path: Source, origin: Origin
) -> None:
    if size is not None and image.size != size:
        own = f"{image.width}x{image.height}"
        raise origin.error(f"{what} is {own}, image is {size[0]}x{size[1]}", path)
