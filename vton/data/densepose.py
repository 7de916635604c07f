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
from vton.data.shards import Source

# Colour of part id 0..24: the Parula map at floor(id * 255 / 24), id 0 (background) black.
COLOURS = np.array(
    [
        (0, 0, 0),
        (37, 60, 163),
        (20, 80, 194),
        (4, 97, 223),
        (8, 110, 221),
        (14, 122, 216),
        (20, 132, 212),
        (15, 144, 208),
        (11, 156, 203),
        (6, 166, 198),
        (22, 173, 185),
        (38, 179, 172),
        (55, 185, 159),
        (86, 187, 144),
        (114, 189, 130),
        (145, 191, 116),
        (170, 189, 105),
        (192, 188, 96),
        (216, 186, 86),
        (228, 192, 74),
        (240, 199, 60),
        (252, 206, 46),
        (251, 220, 36),
        (250, 235, 25),
        (249, 251, 14),
    ],
    dtype=np.uint8,
)
COUNT = len(COLOURS)

# Parts 1 and 2 are the torso's back and front; every later pair is a right and a left side.
MIRROR = np.array(
    [0, 1, 2, *(part + 1 if part % 2 else part - 1 for part in range(3, COUNT))], dtype=np.uint8
)

FAR = 60  # RGB distance from every part colour beyond which a pixel is no part colour, JPEG or not
FAR_SHARE = 0.1  # share of far pixels from which a picture is no DensePose picture; real ones have below 0.01


def read_colours(path: Source, origin: Origin, size: tuple[int, int] | None = None) -> np.ndarray:
    """Part ids (H, W) uint8 of a colour picture, each pixel by its nearest part colour.

    size: as for `images.read_mask`. Raises DataError when the picture is not in these colours.
    """
    # Tables over 64 levels per channel: entries differ by at least 12, so rounding to 4 levels
    # confuses none.
    cell = (
        np.asarray(images.read_photo(path, "DensePose picture", origin, size)).astype(np.int32) >> 2
    )
    cell = cell @ np.array([64 * 64, 64, 1], dtype=np.int32)
    part, far = _nearest_part()
    share = far[cell[::4, ::4]].mean()
    if share > FAR_SHARE:
        raise origin.error(
            f"DensePose picture: {share:.0%} of it is in none of the part colours",
            path,
            "It must show part ids in OpenCV's Parula colours on black.",
        )
    return part[cell]


def read_ids(path: Source, origin: Origin, size: tuple[int, int] | None = None) -> np.ndarray:
    """Part ids (H, W) uint8 of a picture that stores them as grey values. Raises DataError."""
    return images.read_labels(path, "DensePose map", origin, size, COUNT)


def draw(parts: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 colour picture of part ids."""
    return COLOURS[parts]


@cache
def _nearest_part() -> tuple[np.ndarray, np.ndarray]:
    centres = np.arange(64) * 4 + 2
    cells = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1).reshape(-1, 3)
    distance, part = KDTree(COLOURS.astype(np.float64)).query(cells)
    return part.astype(np.uint8), distance > FAR
