"""The two mask rules of Leffa's demo, one for each of its published models (arXiv 2412.08486).

Both come from their repository, not from the paper, whose training used the data sets' own masks.
Lengths are for pictures 512 high, where they are exact to the pixel.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from vton.data import labels
from vton.data.derived import shapes
from vton.data.derived.outline import redrawn
from vton.data.derived.shapes import Canvas, Skeleton
from vton.data.labels import COAT, DRESS, FACE, NECK, PANTS, SKIRT, UPPER
from vton.data.pose import ARMS, LEFT_SHOULDER, RIGHT_SHOULDER
from vton.data.sample import Category

HEIGHT = 512
# Their parser has one label for upper garments and coats.
ATR_UPPER = (UPPER, COAT)
ARM_LABELS = (labels.RIGHT_ARM, labels.LEFT_ARM)  # in the order of ARMS
LEG_LABELS = (labels.LEFT_LEG, labels.RIGHT_LEG)
SHOES = (labels.LEFT_SHOE, labels.RIGHT_SHOE)
OTHERS = {"upper_body": (SKIRT, PANTS), "lower_body": (*ATR_UPPER, *ARM_LABELS), "dresses": ()}

HD_GARMENT = {
    "upper_body": (*ATR_UPPER, DRESS),
    "lower_body": (SKIRT, PANTS, *LEG_LABELS),
    "dresses": (*ATR_UPPER, SKIRT, PANTS, DRESS),
}
HD_FIXED = (labels.HAT, labels.SUNGLASSES, *SHOES, labels.BAG)
HD_HEAD = (labels.HAT, labels.SUNGLASSES, FACE)  # hair is not protected

DC_GARMENT = {
    "upper_body": ATR_UPPER,
    "lower_body": (PANTS, *LEG_LABELS),
    "dresses": (DRESS, *LEG_LABELS),
}
DC_FIXED = (*HD_FIXED, labels.HAIR, labels.SCARF)
DC_HEAD = (*HD_HEAD, labels.HAIR, NECK)


def leffa_hd(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """The rule for the VITON-HD model: OOTDiffusion's, with eroded fixed labels.

    Only the largest region stays, as the polygon of its dominant points. Leaks: parts of the
    garment that other regions cut off.
    """
    fixed = np.isin(parse, (*HD_FIXED, *OTHERS[category]))
    changeable = ~fixed
    head = np.isin(parse, HD_HEAD)
    grown = box(np.isin(parse, HD_GARMENT[category]), 10, body, times=5)
    if category != "lower_body":
        arms = [_arm(parse, body, side) for side in range(len(ARMS))]
        for label, arm in zip(ARM_LABELS, arms, strict=True):
            fixed |= (parse == label) & ~arm
        grown |= box(parse == NECK, 5, body) & ~head
        grown |= box(arms[0] | arms[1], 5, body, times=4)
    kept = box(fixed, 5, body, erode=True) | head
    mask = ~((changeable & ~grown) | kept)
    return redrawn(_closed(mask))


def leffa_dc(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """The rule for the DressCode model.

    Leaks: skirts in lower_body, dresses parsed as upper garment and skirt, and a dress label in
    upper_body.
    """
    fixed = np.isin(parse, (*DC_FIXED, *OTHERS[category]))
    changeable = ~fixed
    head = np.isin(parse, DC_HEAD)
    garment = np.isin(parse, DC_GARMENT[category])
    if category != "lower_body" and body.valid.any():
        arms = box(_arm_line(body), 5, body, times=5)
        fixed |= np.isin(parse, ARM_LABELS) & ~arms
        neck = head & _below_shoulders(parse.shape, body)
        garment |= arms | neck
        head &= ~neck
    grown = box(garment, 10, body, times=5)
    return _closed(~((changeable & ~grown) | fixed | head))


def box(
    mask: np.ndarray, side: int, body: Skeleton, times: int = 1, erode: bool = False
) -> np.ndarray:
    """Mask grown, or eroded, by a square of `side` px of 512, several times.

    As OpenCV has it: an even square reaches one pixel further up and left when it grows. What lies
    outside the picture neither grows nor erodes it.
    """
    before = math.ceil(body.px(times * (side // 2), per=HEIGHT))
    after = math.ceil(body.px(times * (side - 1 - side // 2), per=HEIGHT))
    whole = before + 1 + after  # one box that does what `times` do
    filtered = ndimage.minimum_filter if erode else ndimage.maximum_filter
    return filtered(
        mask.astype(np.uint8),
        size=whole,
        origin=before - whole // 2,
        mode="constant",
        cval=1 if erode else 0,
    ).astype(bool)


def _arm(parse: np.ndarray, body: Skeleton, side: int) -> np.ndarray:
    """(H, W) bool: the right (side 0) or left arm, drawn to beyond the wrist.

    All pixels of its label where the wrist lacks.
    """
    if not body.has(ARMS[side][2]):
        return parse == ARM_LABELS[side]
    shoulder, elbow, wrist = (_point(body, joint) for joint in ARMS[side])
    wrist = elbow + 1.2 * (wrist - elbow)
    width = max(2, int(body.px(60, per=HEIGHT)))
    # The left one from the wrist up: Pillow rounds by direction.
    chain = (shoulder, elbow, wrist) if side == 0 else (wrist, elbow, shoulder)
    canvas = Canvas(parse.shape)
    canvas.curve([_whole(point) for point in chain], width)
    canvas.ring(shoulder, width // 2, width // 2)
    return canvas.mask


def _arm_line(body: Skeleton) -> np.ndarray:
    """(H, W) bool: one line through both arms.

    A missing wrist and its missing elbow are left out, but on one side alone: with both wrists
    missing the line starts in the picture's corner.
    """
    right = [_point(body, joint) for joint in ARMS[0]]
    left = [_point(body, joint) for joint in ARMS[1]]
    for arm, joints in ((right, ARMS[0]), (left, ARMS[1])):
        if not body.has(joints[2]):
            del arm[2 if body.has(joints[1]) else 1 :]
            break
    canvas = body.canvas()
    line = [*left[::-1], *right]
    canvas.curve([_whole(point) for point in line], max(1, round(body.px(30, per=HEIGHT))))
    return canvas.mask


def _below_shoulders(shape: tuple[int, int], body: Skeleton) -> np.ndarray:
    """(H, W) bool: below the line through both shoulders, moved up by 20 px of 512.

    Where that is above the picture, it counts from its lower edge, as a negative index does.
    """
    (x0, y0), (x1, y1) = _point(body, RIGHT_SHOULDER), _point(body, LEFT_SHOULDER)
    slope, start = np.linalg.lstsq(np.array([[x0, 1], [x1, 1]]), np.array([y0, y1]), rcond=None)[0]
    line = np.arange(shape[1]) * slope + start - body.px(20, per=HEIGHT)
    first = np.trunc(line).astype(int)
    first = np.where(first < 0, np.maximum(first + shape[0], 0), first)
    return np.arange(shape[0])[:, None] >= first[None]


def _point(body: Skeleton, joint: int) -> np.ndarray:
    """x and y of a joint; a missing one lies in the picture's corner, as OpenPose writes it."""
    return body.xy[joint] if body.has(joint) else np.zeros(2)


def _whole(point: np.ndarray) -> tuple[int, int]:
    """x and y truncated to 16 bits without sign, in which a negative number is far outside."""
    x, y = np.trunc(point).astype(np.int64) % 2**16
    return int(x), int(y)


def _closed(mask: np.ndarray) -> np.ndarray:
    """Mask without the picture's border pixels, its holes filled."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1]
    return shapes.fill_holes(inner)
