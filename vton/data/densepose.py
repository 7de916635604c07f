"""DensePose part pictures: 24 body parts in OpenCV's Parula colours on black, and their part ids.

VITON-HD and IDM-VTON's addition to DressCode store the picture as JPEG, DressCode's own `dense`
folder stores the ids. Both become ids 0..24, which can be mirrored, and are drawn in the same
colours again.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.spatial import KDTree

from vton.data import images
from vton.data.images import Origin
from vton.data.source import Source

# Colour of part id 0..24: the Parula map at floor(id * 255 / 24), id 0 (background) black.
_PARULA = (
    "000000 253ca3 1450c2 0461df 086edd 0e7ad8 1484d4 0f90d0 0b9ccb"
    "06a6c6 16adb9 26b3ac 37b99f 56bb90 72bd82 91bf74 aabd69 c0bc60"
    "d8ba56 e4c04a f0c73c fcce2e fbdc24 faeb19 f9fb0e"
)
COLOURS = np.frombuffer(bytes.fromhex(_PARULA), dtype=np.uint8).reshape(-1, 3)
COUNT = len(COLOURS)
_TABLES = [bytes(colours) + bytes(256 - COUNT) for colours in COLOURS.T]  # by channel

# Parts 1 and 2 are the torso's back and front; every later pair is a right and a left side.
MIRROR = np.arange(COUNT, dtype=np.uint8)
MIRROR[3:] = MIRROR[3:].reshape(-1, 2)[:, ::-1].ravel()

FAR = 60  # RGB distance from every part colour beyond which a pixel is no part colour, JPEG or not
DARK = (
    40  # brightest channel up to which a pixel may be background; the darkest part colour has 163
)
# Share of the body's pixels, those that are not background, from which a picture is no DensePose
# picture. At 128x96, where borders count most, rendered ones have up to .06, and IUV pictures,
# other colour maps and grey have .44 or more.
FAR_SHARE = 0.2
FAINT = 2  # levels up to which JPEG leaves black


def read_colours(path: Source, origin: Origin, size: tuple[int, int] | None = None) -> np.ndarray:
    """Part ids (H, W) uint8 of a colour picture, each pixel by its nearest part colour.

    size: as for `images.read_mask`. A lossless grey picture of the ids themselves is read as such.
    Raises DataError when the picture is in other colours.
    """
    photo = images.read_photo(path, "DensePose picture", origin, size)
    planes = images.channels(photo)
    brightest = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    if FAINT < brightest.max() <= DARK:
        return _ids_in_grey(np.asarray(photo), path, origin)
    # Tables over 64 levels per channel: entries differ by at least 12, so rounding to 4 levels
    # confuses none.
    red, green, blue = (plane >> 2 for plane in planes)
    cell = (red.astype(np.int32) << 12) | (green.astype(np.int32) << 6) | blue
    part, far = _nearest_part()
    few = cell[::4, ::4]
    body = brightest[::4, ::4] > DARK
    share = far[few][body].mean() if body.any() else 0.0
    if share > FAR_SHARE:
        problem = f"DensePose picture: {share:.0%} of its body is in none of the part colours"
        advice = "It must show part ids in OpenCV's Parula colours on black (not IUV)."
        raise origin.error(problem, path, advice)
    return part[cell]


def _ids_in_grey(photo: np.ndarray, path: Source, origin: Origin) -> np.ndarray:
    """Part ids of a picture too dark to be in colours. Raises DataError unless it is exact."""
    grey = (photo == photo[..., :1]).all()
    if not grey or photo.max() >= COUNT or path.suffix.lower() != ".png":
        problem = "DensePose picture is nearly black: it looks like part ids, not their colours"
        advice = "Store the ids as a grey PNG of values 0 to 24, or draw them in Parula colours."
        raise origin.error(problem, path, advice)
    return np.ascontiguousarray(photo[..., 0])


def read_ids(path: Source, origin: Origin, size: tuple[int, int] | None = None) -> np.ndarray:
    """Part ids (H, W) uint8 of a picture that stores them as grey values. Raises DataError."""
    palettes = (COLOURS.tobytes() + bytes(3 * (256 - COUNT)),)
    return images.read_labels(path, "DensePose map", origin, size, COUNT, palettes)


def draw_parts(parts: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 colour picture of part ids, in memory channel by channel."""
    ids = parts.tobytes()
    planes = [np.frombuffer(ids.translate(table), np.uint8) for table in _TABLES]
    return np.stack(planes).reshape(3, *parts.shape).transpose(1, 2, 0)


def grey_labels(parts: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: part ids as grey levels."""
    return np.repeat(parts[..., None], 3, axis=-1)


PICTURES = {"colours": draw_parts, "labels": grey_labels}  # by data.densepose_as


@cache
def _nearest_part() -> tuple[np.ndarray, np.ndarray]:
    """For 64^3 cells of RGB, the part of the nearest colour, and whether that is too far."""
    centres = np.arange(64) * 4 + 2
    cells = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1).reshape(-1, 3)
    distance, part = KDTree(COLOURS.astype(np.float64)).query(cells)
    return part.astype(np.uint8), distance > FAR
