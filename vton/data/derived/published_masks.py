"""Mask rules as their papers and repositories state them, leaks included.

`drawn`: VITON-HD, HR-VITON and CAT-DM draw torso and arms around the joints, whatever the parse map
says about the garment. `ladi` and `dresscode_ref`: LaDI-VTON and the DressCode reference dilate
garment labels and arm lines. `ootd`: OOTDiffusion. `drawn` knows upper_body alone; for lower_body
and dresses it gains legs drawn in the same manner (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from vton.data import labels, pose
from vton.data.derived import shapes
from vton.data.derived.shapes import Canvas, Skeleton, dilate
from vton.data.labels import COAT, DRESS, FACE, NECK, PANTS, SKIRT, UPPER
from vton.data.pose import ARMS, LEFT_HIP, LEFT_SHOULDER, LEGS, RIGHT_HIP, RIGHT_SHOULDER
from vton.data.sample import Category

ARM_LABELS = (labels.LEFT_ARM, labels.RIGHT_ARM)
LEG_LABELS = (labels.LEFT_LEG, labels.RIGHT_LEG)
SHOE_LABELS = (labels.LEFT_SHOE, labels.RIGHT_SHOE)
HEAD_LABELS = (labels.HAT, labels.SUNGLASSES, FACE)
# Label of the person's right and left arm, in the order of pose.ARMS.
LABELLED_ARMS = ((labels.RIGHT_ARM, ARMS[0]), (labels.LEFT_ARM, ARMS[1]))


@dataclass(frozen=True)
class DrawnStyle:
    """What the three papers do differently; lengths in units of r."""

    adaptive: bool  # r from the shoulder distance instead of 20 px of 1024
    shoulder_line: float
    cap: tuple[float, float]  # half-axes at each shoulder
    # +-7r around the neck joint, or +-5r wide from 9r above down to it
    neck: Literal["square", "above"]
    keeps_hands: bool


VITON_HD = DrawnStyle(
    adaptive=False, shoulder_line=10, cap=(5, 5), neck="square", keeps_hands=False
)
HR_VITON = DrawnStyle(adaptive=True, shoulder_line=12, cap=(5, 6), neck="above", keeps_hands=True)
CAT_DM = DrawnStyle(adaptive=True, shoulder_line=10, cap=(5, 5), neck="square", keeps_hands=False)


def below_chin(parse: np.ndarray, body: Skeleton) -> np.ndarray:
    """Where the head label means neck.

    Below the line through both shoulders, moved up by 20 px of 512. False everywhere without both
    shoulders, or where the parser separates the neck (VITON-HD).
    """
    if (parse == NECK).any() or not body.has(RIGHT_SHOULDER, LEFT_SHOULDER):
        return np.zeros(parse.shape, dtype=bool)
    return body.below_shoulders


def has_torso(body: Skeleton) -> bool:
    return body.has(RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP)


def drawn(parse: np.ndarray, body: Skeleton, category: Category, style: DrawnStyle) -> np.ndarray:
    """Shapes around the joints, then the original head and other garments come back.

    Needs shoulders and hips. Hair is not restored: in front of the torso it has to be invented
    again. Leaks: whatever reaches beyond the shapes, such as wide sleeves or the skirt of a dress
    in upper_body.
    """
    r = body.px(_adaptive_unit(body) if style.adaptive else 20)
    canvas = body.canvas()
    hips = _wide_hips(body)
    for hip in hips:
        canvas.ellipse(hip, 3 * r, 6 * r)
    canvas.line(hips, 12 * r)
    restored = [FACE, labels.SUNGLASSES, *SHOE_LABELS]
    if category == "lower_body":
        restored += [UPPER, COAT, *ARM_LABELS]
    else:
        _draw_upper(canvas, body, hips, r, style)
    if category == "upper_body":
        restored += [PANTS, SKIRT, *LEG_LABELS]
    else:
        _draw_legs(canvas, body, hips, r)
    keep = np.isin(parse, restored)
    if category != "lower_body":
        keep &= ~((parse == FACE) & below_chin(parse, body))
        if style.keeps_hands:
            keep |= _outside_arms(parse, body, r)
    return canvas.mask & ~keep


def _adaptive_unit(body: Skeleton) -> int:
    """r of HR-VITON in pixels of a picture 1024 high."""
    return int(body.shoulder_width / body.px(16)) + 1


def _wide_hips(body: Skeleton) -> np.ndarray:
    """(2, 2) right and left hip, moved along their line until as far apart as the shoulders."""
    right = body.xy[RIGHT_HIP]
    left = body.xy[LEFT_HIP]
    centre = (right + left) / 2
    half = (left - right) / 2
    half *= body.shoulder_width / max(2 * np.linalg.norm(half), 1e-6)
    return np.stack([centre - half, centre + half])


def _draw_upper(
    canvas: Canvas, body: Skeleton, hips: np.ndarray, r: float, style: DrawnStyle
) -> None:
    shoulders = body.xy[[RIGHT_SHOULDER, LEFT_SHOULDER]]
    canvas.polygon([*shoulders, *hips[::-1]])
    for shoulder, hip in zip(shoulders, hips, strict=True):
        canvas.line([shoulder, hip], 6 * r)
        canvas.ellipse(shoulder, style.cap[0] * r, style.cap[1] * r)
    canvas.line(shoulders, style.shoulder_line * r)
    for arm in ARMS:
        _draw_segments(canvas, body, arm, width=10 * r, radius=5 * r, tip=5 * r)
    if body.has(pose.NECK):
        x, y = body.xy[pose.NECK]
        if style.neck == "square":
            canvas.box(x - 7 * r, y - 7 * r, x + 7 * r, y + 7 * r)
        else:
            canvas.box(x - 5 * r, y - 9 * r, x + 5 * r, y)


def _draw_legs(canvas: Canvas, body: Skeleton, hips: np.ndarray, r: float) -> None:
    right = [hips[0], *body.chain(LEGS[0][1:])]
    left = [hips[1], *body.chain(LEGS[1][1:])]
    canvas.polygon([*right, *left[::-1]])
    canvas.limb(right, 12 * r)
    canvas.limb(left, 12 * r)


def _draw_segments(
    canvas: Canvas, body: Skeleton, joints: Sequence[int], width: float, radius: float, tip: float
) -> None:
    """Lines between neighbouring valid joints, and a disc at the end of each.

    The last joint's disc has the radius `tip`.
    """
    for start, end in pairwise(joints):
        if body.has(start, end):
            canvas.line(body.xy[[start, end]], width)
            canvas.ellipse(body.xy[end], tip if end == joints[-1] else radius)


def _outside_arms(parse: np.ndarray, body: Skeleton, r: float) -> np.ndarray:
    """Arm-label pixels outside their drawn arm: hands, and whatever of an arm leaves the line."""
    kept = np.zeros(parse.shape, dtype=bool)
    for label, arm in LABELLED_ARMS:
        canvas = body.canvas()
        _draw_segments(canvas, body, arm, width=10 * r, radius=5 * r, tip=4 * r)
        kept |= (parse == label) & ~canvas.mask
    return kept


def agnostic_parse(parse: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """VITON-HD's `image-parse-agnostic`: garment, neck and drawn arms become background.

    Forearm tips and hands stay. parse: (H, W) uint8; joints: (18, 3) pixels and validity. Returns a
    new (H, W) uint8 map.
    """
    body = Skeleton(joints, parse.shape)
    r = body.px(10)
    removed = np.isin(parse, (UPPER, DRESS, COAT, NECK))
    chains = (
        (labels.LEFT_ARM, (RIGHT_SHOULDER, *ARMS[1])),
        (labels.RIGHT_ARM, (LEFT_SHOULDER, *ARMS[0])),
    )
    for label, chain in chains:
        canvas = body.canvas()
        _draw_segments(canvas, body, chain, width=10 * r, radius=15 * r, tip=4 * r)
        removed |= (parse == label) & canvas.mask
    return np.where(removed, 0, parse).astype(np.uint8)


# The parser of these rules (ATR) has one label for upper garments and coats.
ATR_UPPER = (UPPER, COAT)
ACCESSORIES = (labels.HAIR, *SHOE_LABELS, labels.HAT, labels.SUNGLASSES, labels.SCARF, labels.BAG)

# Per category: labels of the garment and of the skin it may cover, and labels that stay.
DRESSCODE_CORE = {
    "upper_body": ATR_UPPER,
    "lower_body": (PANTS, *LEG_LABELS),
    "dresses": (DRESS, *LEG_LABELS),
}
OOTD_CORE = {
    "upper_body": (*ATR_UPPER, DRESS),
    "lower_body": (SKIRT, PANTS, *LEG_LABELS),
    "dresses": (*ATR_UPPER, DRESS, SKIRT, PANTS),
}
ATR_OTHERS = {
    "upper_body": (SKIRT, PANTS),
    "lower_body": (*ATR_UPPER, *ARM_LABELS),
    "dresses": (),
}


def ladi(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """LaDI-VTON at 384x512, dilation 5x5 x 5.

    Its arm line is 90 wide for VITON-HD (told by its neck label) and 45 for DressCode. Leaks: what
    `dresscode_ref` leaks, and a few pixels of wide garments under hands and hair.
    """
    reach = body.px(10, per=512)
    if category == "upper_body" and (parse == NECK).any():
        arms = _arm_line(body, body.px(90, per=512))
        mask = dilate(np.isin(parse, (UPPER, DRESS, COAT)) | arms, reach)
        fixed = (labels.HAT, labels.HAIR, PANTS, SKIRT, *SHOE_LABELS, labels.SUNGLASSES, FACE)
        hands = np.isin(parse, ARM_LABELS) & ~arms
        return mask & ~np.isin(parse, fixed) & ~hands
    arms = _arm_line(body, body.px(45, per=512))
    return _dilated_labels(parse, body, category, arms, reach)


def dresscode_ref(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """DressCode's own loader, DCI-VTON and IDM-VTON at 768x1024.

    Leaks: skirts in lower_body, dresses parsed as upper garment and skirt, and a dress label in
    upper_body, all of which stay visible but for the rim that dilation reaches.
    """
    arms = _arm_line(body, body.px(30, per=512))
    arms = dilate(arms, body.px(22.5))  # 10x10, five times
    return _dilated_labels(parse, body, category, arms, body.px(47.5))  # 20x20, five times


def _dilated_labels(
    parse: np.ndarray, body: Skeleton, category: Category, arms: np.ndarray, reach: float
) -> np.ndarray:
    """What `ladi` and `dresscode_ref` share. arms: (H, W) bool arm lines."""
    mask = np.isin(parse, DRESSCODE_CORE[category])
    fixed = np.isin(parse, (*ACCESSORIES, *ATR_OTHERS[category]))
    head = parse == FACE
    if category == "lower_body":
        fixed |= head
    else:
        neck = head & below_chin(parse, body)
        mask |= arms | neck
        fixed |= (head & ~neck) | (np.isin(parse, ARM_LABELS) & ~arms)
    return dilate(mask, reach) & ~fixed


def _arm_line(body: Skeleton, width: float, stretch: float = 1.0) -> np.ndarray:
    """(H, W) bool: one polyline wrist, elbow, shoulder, shoulder, elbow, wrist.

    It stops before a missing joint. Its ends are flat, joints between them rounded. stretch: length
    of the drawn forearm over the joints' distance.
    """
    canvas = body.canvas()
    right, left = (body.chain(arm) for arm in ARMS)
    for arm in (right, left):
        if len(arm) == 3:
            arm[2] = arm[1] + stretch * (arm[2] - arm[1])
    line = [*right[::-1], *left]
    canvas.line(line, width)
    for point in line[1:-1]:
        canvas.ellipse(point, width / 2)
    return canvas.mask


def ootd(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """OOTDiffusion: dilated labels and arm lines, holes filled, largest region only.

    Hair is not kept. The arm line is 60 of 512 wide with a neck label ("hd"), else 45 ("dc"); an
    arm without wrist counts as a whole. Leaks: parts of the garment that other regions cut off,
    since one region is kept.
    """
    mask = dilate(np.isin(parse, OOTD_CORE[category]), body.px(10, per=512))
    fixed_labels = (labels.HAT, labels.SUNGLASSES, labels.BAG, *SHOE_LABELS, *ATR_OTHERS[category])
    fixed = np.isin(parse, fixed_labels)
    head = parse == FACE
    if category == "lower_body":
        fixed |= head
    else:
        separate_neck = parse == NECK
        neck = head & below_chin(parse, body)
        width = body.px(60 if separate_neck.any() else 45, per=512)
        arms = _arm_line(body, width, stretch=1.2)
        for label, arm in LABELLED_ARMS:
            if len(body.chain(arm)) < 3:
                arms |= parse == label
        mask |= dilate(neck | separate_neck, body.px(2, per=512))
        mask |= dilate(arms, body.px(8, per=512))
        fixed |= (head & ~neck) | (np.isin(parse, ARM_LABELS) & ~arms)
    return shapes.largest_component(shapes.fill_holes(mask & ~fixed))
