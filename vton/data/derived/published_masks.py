"""Mask rules as their papers and repositories state them, leaks included.

`drawn`: VITON-HD, HR-VITON and CAT-DM draw torso and arms around the joints, whatever the parse map
says about the garment. `dilated`: LaDI-VTON and the DressCode reference dilate garment labels and
arm lines. `ootd`: OOTDiffusion. The drawn family knows upper_body alone; for lower_body and dresses
it gains legs drawn in the same manner (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from vton.data import labels
from vton.data.derived import shapes
from vton.data.derived.shapes import (
    ARMS,
    LEFT_HIP,
    LEFT_SHOULDER,
    LEGS,
    RIGHT_HIP,
    RIGHT_SHOULDER,
    Body,
    Drawing,
    dilate,
)
from vton.data.labels import COAT, DRESS, FACE, NECK, PANTS, SKIRT, UPPER
from vton.data.sample import Category

ARM_LABELS = (labels.LEFT_ARM, labels.RIGHT_ARM)
LEG_LABELS = (labels.LEFT_LEG, labels.RIGHT_LEG)
SHOE_LABELS = (labels.LEFT_SHOE, labels.RIGHT_SHOE)
HEAD_LABELS = (labels.HAT, labels.SUNGLASSES, FACE)


@dataclass(frozen=True)
class DrawnStyle:
    """What the three papers do differently; lengths in units of r."""

    adaptive: bool  # r from the shoulder distance instead of 20 px of 1024
    shoulder_line: float
    cap: tuple[float, float]  # half-axes at each shoulder
    neck: Literal[
        "square", "above"
    ]  # +-7r around the neck joint, or +-5r wide from 9r above down to it
    keeps_hands: bool


VITON_HD = DrawnStyle(
    adaptive=False, shoulder_line=10, cap=(5, 5), neck="square", keeps_hands=False
)
HR_VITON = DrawnStyle(adaptive=True, shoulder_line=12, cap=(5, 6), neck="above", keeps_hands=True)
CAT_DM = DrawnStyle(adaptive=True, shoulder_line=10, cap=(5, 5), neck="square", keeps_hands=False)


def below_chin(parse: np.ndarray, body: Body) -> np.ndarray:
    """Where the head label means neck: below the line through both shoulders, moved up by 20 px of
    512.

    False everywhere without both shoulders, or where the parser separates the neck (VITON-HD).
    """
    if (parse == NECK).any() or not body.has(RIGHT_SHOULDER, LEFT_SHOULDER):
        return np.zeros(parse.shape, dtype=bool)
    return body.below_shoulders


def has_torso(body: Body) -> bool:
    return body.has(RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP)


def drawn(parse: np.ndarray, body: Body, category: Category, style: DrawnStyle) -> np.ndarray:
    """Shapes around the joints, then the original head and other garments come back. Needs
    shoulders and hips.

    Hair is not restored: in front of the torso it has to be invented again.
    Leaks: whatever reaches beyond the shapes, such as wide sleeves or the skirt of a dress in
    upper_body.
    """
    r = body.px(_unit(body) if style.adaptive else 20)
    drawing = body.canvas()
    hips = _wide_hips(body)
    for hip in hips:
        drawing.ellipse(hip, 3 * r, 6 * r)
    drawing.line(hips, 12 * r)
    restored = [FACE, labels.SUNGLASSES, *SHOE_LABELS]
    if category == "lower_body":
        restored += [UPPER, COAT, *ARM_LABELS]
    else:
        _draw_upper(drawing, body, hips, r, style)
    if category == "upper_body":
        restored += [PANTS, SKIRT, *LEG_LABELS]
    else:
        _draw_legs(drawing, body, hips, r)
    keep = np.isin(parse, restored)
    if category != "lower_body":
        keep &= ~((parse == FACE) & below_chin(parse, body))
        if style.keeps_hands:
            keep |= _outside_arms(parse, body, r)
    return drawing.mask & ~keep


def _unit(body: Body) -> int:
    """r of HR-VITON in pixels of a picture 1024 high."""
    return int(body.shoulder_width / body.px(16)) + 1


def _wide_hips(body: Body) -> np.ndarray:
    """(2, 2) right and left hip, moved along their line until they are as far apart as the
    shoulders.
    """
    right, left = body.xy[RIGHT_HIP], body.xy[LEFT_HIP]
    centre, half = (right + left) / 2, (left - right) / 2
    half *= body.shoulder_width / max(2 * np.linalg.norm(half), 1e-6)
    return np.stack([centre - half, centre + half])


def _draw_upper(
    drawing: Drawing, body: Body, hips: np.ndarray, r: float, style: DrawnStyle
) -> None:
    shoulders = body.xy[[RIGHT_SHOULDER, LEFT_SHOULDER]]
    drawing.polygon([*shoulders, *hips[::-1]])
    for shoulder, hip in zip(shoulders, hips, strict=True):
        drawing.line([shoulder, hip], 6 * r)
        drawing.ellipse(shoulder, style.cap[0] * r, style.cap[1] * r)
    drawing.line(shoulders, style.shoulder_line * r)
    for arm in ARMS:
        _draw_segments(drawing, body, arm, width=10 * r, radius=5 * r, tip=5 * r)
    if body.has(shapes.NECK):
        x, y = body.xy[shapes.NECK]
        if style.neck == "square":
            drawing.box(x - 7 * r, y - 7 * r, x + 7 * r, y + 7 * r)
        else:
            drawing.box(x - 5 * r, y - 9 * r, x + 5 * r, y)


def _draw_legs(drawing: Drawing, body: Body, hips: np.ndarray, r: float) -> None:
    right, left = ([hip, *body.chain(leg[1:])] for hip, leg in zip(hips, LEGS, strict=True))
    drawing.polygon([*right, *left[::-1]])
    for leg in (right, left):
        drawing.limb(leg, 12 * r)


def _draw_segments(
    drawing: Drawing, body: Body, joints, width: float, radius: float, tip: float
) -> None:
    """Lines between neighbouring valid joints, a disc at the end of each; the last joint's has
    radius `tip`.
    """
    for start, end in pairwise(joints):
        if body.has(start, end):
            drawing.line(body.xy[[start, end]], width)
            drawing.ellipse(body.xy[end], tip if end == joints[-1] else radius)


def _outside_arms(parse: np.ndarray, body: Body, r: float) -> np.ndarray:
    """Arm-label pixels outside their drawn arm: hands, and whatever of an arm leaves the line."""
    kept = np.zeros(parse.shape, dtype=bool)
    for label, arm in ((labels.RIGHT_ARM, ARMS[0]), (labels.LEFT_ARM, ARMS[1])):
        drawing = body.canvas()
        _draw_segments(drawing, body, arm, width=10 * r, radius=5 * r, tip=4 * r)
        kept |= (parse == label) & ~drawing.mask
    return kept


def agnostic_parse(parse: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """VITON-HD's `image-parse-agnostic`: garment, neck and drawn arms become background; forearm
    tips and hands stay.

    parse: (H, W) uint8; joints: (18, 3) pixels and validity. Returns a new (H, W) uint8 map.
    """
    body = Body(joints, parse.shape)
    r = body.px(10)
    removed = np.isin(parse, (UPPER, DRESS, COAT, NECK))
    chains = (
        (labels.LEFT_ARM, (RIGHT_SHOULDER, *ARMS[1])),
        (labels.RIGHT_ARM, (LEFT_SHOULDER, *ARMS[0])),
    )
    for label, chain in chains:
        drawing = body.canvas()
        _draw_segments(drawing, body, chain, width=10 * r, radius=15 * r, tip=4 * r)
        removed |= (parse == label) & drawing.mask
    return np.where(removed, 0, parse).astype(np.uint8)


# The parser of these rules (ATR) has one label for upper garments and coats.
ATR_UPPER = (UPPER, COAT)
ACCESSORIES = (labels.HAIR, *SHOE_LABELS, labels.HAT, labels.SUNGLASSES, labels.SCARF, labels.BAG)


def ladi(parse: np.ndarray, body: Body, category: Category) -> np.ndarray:
    """LaDI-VTON at 384x512: arm line 90 for VITON-HD (told by its neck label) and 45 for DressCode,
    dilation 5x5 x 5.

    Leaks: what `dresscode_ref` leaks, and a few pixels of wide garments under hands and hair.
    """
    reach = body.px(10, per=512)
    if category == "upper_body" and (parse == NECK).any():
        arms = arm_line(body, body.px(90, per=512))
        mask = dilate(np.isin(parse, (UPPER, DRESS, COAT)) | arms, reach)
        fixed = np.isin(
            parse, (labels.HAT, labels.HAIR, PANTS, SKIRT, *SHOE_LABELS, labels.SUNGLASSES, FACE)
        )
        return mask & ~fixed & ~(np.isin(parse, ARM_LABELS) & ~arms)
    return _dresscode(parse, body, category, arm_line(body, body.px(45, per=512)), reach)


def dresscode_ref(parse: np.ndarray, body: Body, category: Category) -> np.ndarray:
    """DressCode's own loader, DCI-VTON and IDM-VTON at 768x1024.

    Leaks: skirts in lower_body, dresses parsed as upper garment and skirt, and a dress label in
    upper_body, all of which stay visible but for the rim that dilation reaches.
    """
    arms = dilate(arm_line(body, body.px(30, per=512)), body.px(22.5))  # 10x10, five times
    return _dresscode(parse, body, category, arms, body.px(47.5))  # 20x20, five times


def _dresscode(
    parse: np.ndarray, body: Body, category: Category, arms: np.ndarray, reach: float
) -> np.ndarray:
    core = {
        "upper_body": ATR_UPPER,
        "lower_body": (PANTS, *LEG_LABELS),
        "dresses": (DRESS, *LEG_LABELS),
    }[category]
    others = {"upper_body": (SKIRT, PANTS), "lower_body": (*ATR_UPPER, *ARM_LABELS), "dresses": ()}[
        category
    ]
    mask, fixed = np.isin(parse, core), np.isin(parse, (*ACCESSORIES, *others))
    head = parse == FACE
    if category != "lower_body":
        neck = head & below_chin(parse, body)
        mask |= arms | neck
        fixed |= (head & ~neck) | (np.isin(parse, ARM_LABELS) & ~arms)
    else:
        fixed |= head
    return dilate(mask, reach) & ~fixed


def arm_line(body: Body, width: float, stretch: float = 1.0) -> np.ndarray:
    """(H, W) bool: one polyline wrist, elbow, shoulder, shoulder, elbow, wrist; it stops before a
    missing joint.

    stretch: length of the drawn forearm over the joints' distance. Ends are flat, joints between
    them rounded.
    """
    drawing = body.canvas()
    right, left = (body.chain(arm) for arm in ARMS)
    for arm in (right, left):
        if len(arm) == 3:
            arm[2] = arm[1] + stretch * (arm[2] - arm[1])
    line = [*right[::-1], *left]
    drawing.line(line, width)
    for point in line[1:-1]:
        drawing.ellipse(point, width / 2)
    return drawing.mask


def ootd(parse: np.ndarray, body: Body, category: Category) -> np.ndarray:
    """OOTDiffusion: dilated labels and arm lines, holes filled, largest region only. Hair is not
    kept.

    Arm line 60 of 512 with a neck label ("hd"), else 45 ("dc"); an arm without wrist counts as a
    whole.
    Leaks: parts of the garment that other regions cut off, since one region is kept.
    """
    upper = (*ATR_UPPER, DRESS)
    core = {
        "upper_body": upper,
        "lower_body": (SKIRT, PANTS, *LEG_LABELS),
        "dresses": (*upper, SKIRT, PANTS),
    }
    others = {"upper_body": (SKIRT, PANTS), "lower_body": (*ATR_UPPER, *ARM_LABELS), "dresses": ()}
    mask = dilate(np.isin(parse, core[category]), body.px(10, per=512))
    fixed = np.isin(
        parse, (labels.HAT, labels.SUNGLASSES, labels.BAG, *SHOE_LABELS, *others[category])
    )
    head = parse == FACE
    if category == "lower_body":
        fixed |= head
    else:
        separate = (parse == NECK).any()
        neck = head & below_chin(parse, body)
        arms = arm_line(body, body.px(60 if separate else 45, per=512), stretch=1.2)
        for label, arm in ((labels.RIGHT_ARM, ARMS[0]), (labels.LEFT_ARM, ARMS[1])):
            if len(body.chain(arm)) < 3:
                arms |= parse == label
        mask |= dilate(neck | (parse == NECK), body.px(2, per=512)) | dilate(
            arms, body.px(8, per=512)
        )
        fixed |= (head & ~neck) | (np.isin(parse, ARM_LABELS) & ~arms)
    return shapes.largest_component(shapes.fill_holes(mask & ~fixed))
