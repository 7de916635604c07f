"""One label map for both data sets: VITON-HD's 20 classes, then two that only DressCode has.

Left and right are the person's. DressCode's `head` (face and neck in one) becomes FACE; VITON-HD's
`neck` exists only where a parser separates it. Source: both data sets' files, see data/README.md.
"""

from __future__ import annotations

import numpy as np

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
BACKGROUND, HAT, HAIR, GLOVE, SUNGLASSES, UPPER, DRESS, COAT, SOCKS = range(9)
PANTS, NECK, SCARF, SKIRT, FACE, LEFT_ARM, RIGHT_ARM, LEFT_LEG = range(9, 17)
RIGHT_LEG, LEFT_SHOE, RIGHT_SHOE, BELT, BAG = range(17, COUNT)

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
        *(BACKGROUND, HAT, HAIR, SUNGLASSES, UPPER, SKIRT, PANTS, DRESS, BELT),
        *(LEFT_SHOE, RIGHT_SHOE, FACE, LEFT_LEG, RIGHT_LEG, LEFT_ARM, RIGHT_ARM, BAG, SCARF),
    ],
    dtype=np.uint8,
)

# DressCode's id of each of our labels. It has one for face and neck and one for tops and coats, and
# none for gloves and socks.
TO_DRESSCODE = np.zeros(COUNT, np.uint8)
TO_DRESSCODE[FROM_DRESSCODE] = np.arange(len(FROM_DRESSCODE), dtype=np.uint8)
TO_DRESSCODE[[NECK, COAT]] = TO_DRESSCODE[[FACE, UPPER]]

# VITON-HD's id of each of our labels: a belt is worn with trousers, a bag has no number.
TO_VITON_HD = np.arange(COUNT, dtype=np.uint8)
TO_VITON_HD[[BELT, BAG]] = PANTS, BACKGROUND

# GP-VTON's 29 labels (index = its id): `parse-bytedance`. Sleeves and trouser legs have their own
# there; 11 is the skin of the neck.
FROM_BYTEDANCE = np.array(
    [
        *(BACKGROUND, HAT, HAIR, GLOVE, SUNGLASSES, UPPER, DRESS, COAT, SOCKS),
        *(PANTS, PANTS, NECK, SCARF, SKIRT, FACE, LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG),
        *(LEFT_SHOE, RIGHT_SHOE, UPPER, UPPER, BAG, DRESS, DRESS, COAT, COAT, BELT),
    ],
    dtype=np.uint8,
)

# The label that each label becomes when the picture is mirrored.
MIRROR = np.arange(COUNT, dtype=np.uint8)
MIRROR[[LEFT_ARM, LEFT_LEG, LEFT_SHOE]] = RIGHT_ARM, RIGHT_LEG, RIGHT_SHOE
MIRROR[[RIGHT_ARM, RIGHT_LEG, RIGHT_SHOE]] = LEFT_ARM, LEFT_LEG, LEFT_SHOE


def _voc_palette() -> bytes:
    """The palette of PASCAL VOC: the bits of an index, from the lowest, dealt to R, G and B."""
    entries = np.zeros((256, 3), np.uint8)
    for index in range(256):
        for bit in range(8):
            entries[index, bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return entries.tobytes()


def _palette(colours: str) -> bytes:
    """256 RGB entries: the given ones (hexadecimal), then the grey ramp both data sets use."""
    palette = bytearray(np.arange(256, dtype=np.uint8).repeat(3))
    given = bytes.fromhex(colours)
    palette[: len(given)] = given
    return bytes(palette)


# Exact palettes of the files, in the order of their ids. VITON-HD's differ from the published CIHP
# colours by one level in places.
VITON_HD_PALETTE = _palette(
    "000000 800000 fe0000 005500 a90033 fe5500 000055 0077dc 555500 005555"
    "553300 345680 008000 0000fe 33a9dc 00fefe 55fea9 a9fe55 fefe00 fea900"
)
DRESSCODE_PALETTE = _palette(
    "000000 800000 008000 808000 000080 800080 008080 808080 400000"
    "c00000 408000 c08000 400080 c00080 408080 c08080 004000 804000"
)
# What SCHP writes its label maps in, whichever labels they hold; DressCode's palette begins alike.
VOC_PALETTE = _voc_palette()
