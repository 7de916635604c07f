"""One label map for both data sets: VITON-HD's 20 classes, then DressCode's two that VITON-HD
lacks.

Left and right are the person's. DressCode's `head` (face and neck in one) becomes FACE; VITON-HD's
`neck` exists only where a parser separates it. Source: both data sets' files, see data/README.md.
"""

from __future__ import annotations

import numpy as np

BACKGROUND, HAT, HAIR, GLOVE, SUNGLASSES, UPPER, DRESS, COAT, SOCKS, PANTS = range(10)
NECK, SCARF, SKIRT, FACE, LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG, LEFT_SHOE, RIGHT_SHOE = range(
    10, 20
)
BELT, BAG = 20, 21
NAMES = (
    "background",
    "hat",
    "hair",
    "glove",
    "sunglasses",
    "upper",
    "dress",
    "coat",
    "socks",
    "pants",
    "neck",
    "scarf",
    "skirt",
    "face",
    "left arm",
    "right arm",
    "left leg",
    "right leg",
    "left shoe",
    "right shoe",
    "belt",
    "bag",
)
COUNT = len(NAMES)

# Which labels a garment of each category covers on the person (evaluation region, worn-garment
# cut-out).
GARMENT_LABELS = {
    "upper_body": (UPPER, DRESS, COAT),
    "lower_body": (PANTS, SKIRT),
    "dresses": (UPPER, DRESS, COAT, SKIRT, PANTS),
}

# DressCode's 18 ATR labels (index = DressCode id) in our numbering.
FROM_DRESSCODE = np.array(
    [
        BACKGROUND,
        HAT,
        HAIR,
        SUNGLASSES,
        UPPER,
        SKIRT,
        PANTS,
        DRESS,
        BELT,
        LEFT_SHOE,
        RIGHT_SHOE,
        FACE,
        LEFT_LEG,
        RIGHT_LEG,
        LEFT_ARM,
        RIGHT_ARM,
        BAG,
        SCARF,
    ],
    dtype=np.uint8,
)

# The label each label becomes when the picture is mirrored.
MIRROR = np.arange(COUNT, dtype=np.uint8)
for _left, _right in ((LEFT_ARM, RIGHT_ARM), (LEFT_LEG, RIGHT_LEG), (LEFT_SHOE, RIGHT_SHOE)):
    MIRROR[_left], MIRROR[_right] = _right, _left


def _palette(colours: list[tuple[int, int, int]]) -> bytes:
    """256 RGB entries; those not given are the grey ramp both data sets use there."""
    return bytes(
        value for i in range(256) for value in (colours[i] if i < len(colours) else (i, i, i))
    )


# Exact palettes of the files. VITON-HD's differ from the published CIHP colours by one level in
# places.
VITON_HD_PALETTE = _palette(
    [
        (0, 0, 0),
        (128, 0, 0),
        (254, 0, 0),
        (0, 85, 0),
        (169, 0, 51),
        (254, 85, 0),
        (0, 0, 85),
        (0, 119, 220),
        (85, 85, 0),
        (0, 85, 85),
        (85, 51, 0),
        (52, 86, 128),
        (0, 128, 0),
        (0, 0, 254),
        (51, 169, 220),
        (0, 254, 254),
        (85, 254, 169),
        (169, 254, 85),
        (254, 254, 0),
        (254, 169, 0),
    ]
)
DRESSCODE_PALETTE = _palette(
    [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
        (192, 0, 0),
        (64, 128, 0),
        (192, 128, 0),
        (64, 0, 128),
        (192, 0, 128),
        (64, 128, 128),
        (192, 128, 128),
        (0, 64, 0),
        (128, 64, 0),
    ]
)
