"""CatVTON's AutoMasker (arXiv 2407.15886, released code): where to paint, from three label maps.

Its inputs are DensePose's body parts and the label maps of two parsers, SCHP trained on LIP and on
ATR. A data set has one parse map, so this is no `data.mask_rule`; it is for masks that should equal
the release's, as those of DressCode in its paper.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

from vton.data.derived.shapes import convex_hull, dilate
from vton.data.sample import DataError

Kind = Literal["upper", "lower", "overall", "inner", "outer"]

# A name's labels by parser, LIP's and ATR's; empty where the parser has none.
LABELS = {
    "background": ((0,), (0,)),
    "hat": ((1,), (1,)),
    "hair": ((2,), (2,)),
    "glove": ((3,), ()),
    "sunglasses": ((4,), (3,)),
    "upper": ((5,), (4,)),
    "dress": ((6,), (7,)),
    "coat": ((7,), ()),
    "socks": ((8,), ()),
    "pants": ((9,), (6,)),
    "jumpsuit": ((10,), ()),
    "scarf": ((11,), (17,)),
    "skirt": ((12,), (5,)),
    "face": ((13,), (11,)),
    "arms": ((14, 15), (14, 15)),
    "legs": ((16, 17), (12, 13)),
    "shoes": ((18, 19), (9, 10)),
    "bag": ((), (16,)),
}
ACCESSORIES = ("hat", "glove", "sunglasses", "bag", "shoes", "scarf", "socks")

# OpenCV's Gaussian kernels of few taps (side 3, 5 and 7) where it chooses their width.
SMALL_GAUSSIANS = {
    3: (0.25, 0.5, 0.25),
    5: (0.0625, 0.25, 0.375, 0.25, 0.0625),
    7: (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125),
}

# DensePose's parts.
TORSO, HANDS_AND_FEET = (1, 2), (3, 4, 5, 6)
THIGHS, LOWER_LEGS = (7, 8, 9, 10), (11, 12, 13, 14)
UPPER_ARMS, FOREARMS = (15, 16, 17, 18), (19, 20, 21, 22)


class Rule(NamedTuple):
    """What a kind of garment leaves alone and what it covers."""

    kept_body: tuple[str, ...]
    kept_lip: tuple[str, ...]  # clothes, in LIP's map
    kept_atr: tuple[str, ...]  # clothes, in ATR's
    replaced: tuple[str, ...]  # clothes
    parts: tuple[int, ...]  # of DensePose


RULES: dict[str, Rule] = {
    "upper": Rule(
        kept_body=("legs",),
        kept_lip=("skirt", "pants"),
        kept_atr=("skirt", "pants"),
        replaced=("upper", "coat", "dress", "jumpsuit"),
        parts=(*TORSO, *UPPER_ARMS, *FOREARMS),
    ),
    "lower": Rule(
        kept_body=("arms", "face"),
        kept_lip=("upper", "coat"),
        kept_atr=("upper",),
        replaced=("pants", "skirt", "dress", "jumpsuit"),
        parts=(*THIGHS, *LOWER_LEGS),
    ),
    "overall": Rule(
        kept_body=(),
        kept_lip=(),
        kept_atr=(),
        replaced=("upper", "dress", "pants", "skirt", "coat", "jumpsuit"),
        parts=(*TORSO, *THIGHS, *LOWER_LEGS, *UPPER_ARMS, *FOREARMS),
    ),
    "inner": Rule(
        kept_body=("legs",),
        kept_lip=("dress", "coat", "skirt", "pants", "jumpsuit"),
        kept_atr=("dress", "coat", "skirt", "pants"),
        replaced=("upper",),
        parts=TORSO,
    ),
    "outer": Rule(
        kept_body=("legs",),
        kept_lip=("upper", "dress", "pants", "skirt", "jumpsuit"),
        kept_atr=("dress", "pants", "skirt"),
        replaced=("coat",),
        parts=(*TORSO, *UPPER_ARMS, *FOREARMS),
    ),
}
COARSE = 4  # DensePose's parts are grown at a quarter of the size
FAINTEST = 25  # of 255, of the blurred hull that is still painted


def automask(densepose: np.ndarray, lip: np.ndarray, atr: np.ndarray, kind: Kind) -> np.ndarray:
    """(H, W) bool, True = repaint.

    densepose: (H, W) uint8, DensePose's parts 0..24 of the person; zeros where nobody was found
    lip, atr:  (H, W) uint8, label maps of the two parsers
    raises     DataError for maps of different sizes, and for sides that 4 does not divide

    Outlines differ from the release's in about 0.1 % of the pixels: hulls are drawn by Pillow and
    blurred by SciPy, there by OpenCV.
    """
    _check(densepose, lip, atr)
    rule, maps = RULES[kind], Maps(lip, atr)
    longer = max(densepose.shape)
    reach = (_odd(longer // 250) - 1) / 2

    hands = dilate(np.isin(densepose, HANDS_AND_FEET), reach) & maps.either("arms", "legs")
    strong = hands | maps.in_lip("face")
    weak = strong | maps.either("hair", *rule.kept_body, *ACCESSORIES)
    weak |= maps.in_lip(*rule.kept_lip) | maps.in_atr(*rule.kept_atr)

    coarse = np.isin(densepose, rule.parts)[::COARSE, ::COARSE]
    body = dilate(dilate(coarse, reach), reach).repeat(COARSE, 0).repeat(COARSE, 1)
    empty = maps.in_lip("background") & maps.in_atr("background")
    mask = _hulls(~(weak | empty) | body) & ~weak
    mask = blurred(mask, _odd(longer // 25)) >= FAINTEST
    return dilate((mask | maps.either(*rule.replaced)) & ~strong, reach)


class Maps(NamedTuple):
    """The label maps of both parsers, (H, W) each. Methods return (H, W) bool."""

    lip: np.ndarray
    atr: np.ndarray

    def in_lip(self, *names: str) -> np.ndarray:
        """Where LIP's map has a label of one of these names (LABELS)."""
        labels: list[int] = []
        for name in names:
            labels += LABELS[name][0]
        return np.isin(self.lip, labels)

    def in_atr(self, *names: str) -> np.ndarray:
        """The same for ATR's map."""
        labels: list[int] = []
        for name in names:
            labels += LABELS[name][1]
        return np.isin(self.atr, labels)

    def either(self, *names: str) -> np.ndarray:
        return self.in_lip(*names) | self.in_atr(*names)


def _hulls(mask: np.ndarray) -> np.ndarray:
    """The union of the filled convex hulls of the mask's 8-connected regions."""
    regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    filled = np.zeros_like(mask)
    for number, place in enumerate(ndimage.find_objects(regions), 1):
        filled[place] |= convex_hull(regions[place] == number)
    return filled


def blurred(mask: np.ndarray, side: int) -> np.ndarray:
    """255 times the mask under a Gaussian kernel of side x side, of the width OpenCV gives it."""
    kernel = SMALL_GAUSSIANS.get(side)
    if kernel is None:
        sigma = 0.3 * ((side - 1) / 2 - 1) + 0.8
        offsets = np.arange(side) - side // 2
        kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel = np.asarray(kernel) / np.sum(kernel)
    levels = mask.astype(np.float32) * 255
    for axis in (0, 1):
        levels = ndimage.correlate1d(levels, kernel, axis, mode="mirror")
    return levels.round()


def _odd(number: int) -> int:
    return number if number % 2 else number + 1


def _check(densepose: np.ndarray, lip: np.ndarray, atr: np.ndarray) -> None:
    shapes = {densepose.shape, lip.shape, atr.shape}
    if len(shapes) > 1:
        raise DataError(f"AutoMasker: label maps of different sizes {sorted(shapes)}.")
    if densepose.shape[0] % COARSE or densepose.shape[1] % COARSE:
        raise DataError(
            f"AutoMasker: {densepose.shape} must be divisible by {COARSE}; resize the picture."
        )
