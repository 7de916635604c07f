"""Clothing-agnostic mask and picture from human parsing and COCO-18 joints.

One function, `agnostic_mask`, and the rules of the field as named presets. The rule decides a
quarter to a third of the picture, so results under different rules are not comparable: state the
rule with every number.

    safe            ours: OOTDiffusion's label sets, drawn limbs; nothing of the garment stays
    viton_hd        VITON-HD (Choi et al., CVPR 2021): drawn shapes of fixed width, hands erased
    hr_viton        HR-VITON (Lee et al., ECCV 2022), as the released `agnostic-v3.2` files: shapes
                    scale with the person
    cat_dm          CAT-DM (Zeng et al., CVPR 2024): as hr_viton with VITON-HD's neck and shoulders,
                    hands erased
    ladi            LaDI-VTON (Morelli et al., ACM MM 2023): dilated garment labels and arm lines
    dresscode_ref   DressCode (Morelli et al., ECCV 2022): as ladi, dilated more, with a neck line
    ootd            OOTDiffusion and IDM-VTON's demo: dilated labels, holes filled, largest region
                    only
    leffa_hd        Leffa's demo (Zhou et al., CVPR 2025), VITON-HD model: as ootd, with more kept
    leffa_dc        the same, DressCode model: as dresscode_ref at 384x512, holes filled
    hull            CatVTON's manner: convex hull of the body part, softened; hides sleeve length
                    and hem
    box             TPD's manner: bounding box of the body part; hides everything
    tryondiffusion  TryOnDiffusion (Zhu et al., CVPR 2023): bounding box of the whole person; head,
                    hands and what the new garment does not cover come back

`safe` keeps hands and head. Published rules keep their behaviour, leaks included; each rule's
docstring says what stays visible.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
from scipy import ndimage

from vton.config import MaskRule
from vton.data import labels
from vton.data.boxes import bounding_box
from vton.data.derived import published_masks as published
from vton.data.derived import shapes
from vton.data.derived.leffa_masks import leffa_dc, leffa_hd
from vton.data.derived.published_masks import (
    ARM_LABELS,
    HEAD_LABELS,
    LEG_LABELS,
    SHOE_LABELS,
    below_chin,
)
from vton.data.derived.shapes import Skeleton, dilate
from vton.data.labels import COAT, DRESS, FACE, NECK, PANTS, SKIRT, UPPER
from vton.data.pose import ARMS, LEFT_HIP, LEFT_SHOULDER, LEGS, RIGHT_HIP, RIGHT_SHOULDER
from vton.data.sample import CATEGORIES, JOINTS, Category, DataError

# What `safe`, `hull` and `box` take for the garment to replace. A skirt worn in lower_body is
# sometimes labelled dress, a dress sometimes upper garment plus skirt.
TARGET_LABELS = {
    "upper_body": (UPPER, DRESS, COAT),
    "lower_body": (PANTS, SKIRT, DRESS),
    "dresses": (UPPER, DRESS, COAT, SKIRT, PANTS),
}
# Skin that a garment of the category may cover.
COVERABLE_SKIN = {
    "upper_body": ARM_LABELS,
    "lower_body": LEG_LABELS,
    "dresses": (*ARM_LABELS, *LEG_LABELS),
}
# Kept by `safe` and `hull` besides head and hands: everything the new garment does not cover.
OTHER_LABELS = {
    "upper_body": (PANTS, SKIRT, labels.BELT, labels.SOCKS, labels.BAG, *LEG_LABELS, *SHOE_LABELS),
    "lower_body": (UPPER, COAT, labels.SCARF, labels.BAG, *ARM_LABELS, *SHOE_LABELS),
    "dresses": (labels.BAG, *SHOE_LABELS),
}
# What comes back into the person's box of `tryondiffusion` besides head and hands. The paper does
# not treat lower_body and dresses; these are in the same spirit.
PASTED_LABELS = {
    "upper_body": (PANTS, SKIRT, labels.SOCKS, *LEG_LABELS, *SHOE_LABELS),
    "lower_body": (UPPER, COAT, *ARM_LABELS, *SHOE_LABELS),
    "dresses": SHOE_LABELS,
}

HAND = 0.9  # a hand's reach around the wrist in forearms: it has about 0.8 of one
SMALLEST_HAND = 60  # px of 1024: forearms that point at the camera look short
RIM = 4  # px of 1024 around the worn garment where resampled pixels still show its colour


def agnostic_mask(
    parse: np.ndarray, joints: np.ndarray, category: Category, rule: MaskRule = "safe"
) -> np.ndarray:
    """Where the person must be repainted.

    parse:  (H, W) uint8 in vton.data.labels numbering, any size; the papers' constants scale with H
    joints: (18, 3) COCO-18, x and y in pixels of the parse map, validity 0 or 1
    returns (H, W) bool, True = repaint
    raises  DataError for a shape, label, category or rule that does not exist

    With no valid joint the mask comes from the parse map alone. A rule that draws torso or legs
    falls back to `safe` where these joints lack.
    """
    _check(parse, joints, category, rule)
    body = Skeleton(joints, parse.shape)
    if rule in _DRAWN and not published.has_torso(body):
        rule = "safe"
    return _RULES[rule](parse, body, category)


def agnostic_image(person: np.ndarray, mask: np.ndarray, fill: int = 128) -> np.ndarray:
    """(H, W, 3) uint8 person with `fill` where mask is True.

    128 is what the files of `agnostic-v3.2` hold.
    """
    painted = person.copy()
    painted[mask] = fill
    return painted


def _check(parse: np.ndarray, joints: np.ndarray, category: str, rule: str) -> None:
    """Raise DataError for arguments of a wrong type, shape or name."""
    problem = ""
    if parse.ndim != 2 or parse.dtype != np.uint8:
        problem = f"parse map is {parse.dtype} {parse.shape}, expected uint8 (H, W)"
    elif parse.max() >= labels.COUNT:
        problem = f"parse map holds label {parse.max()}, the last one is {labels.COUNT - 1}"
    elif joints.shape != (JOINTS, 3) or not np.isfinite(joints).all():
        problem = f"joints are {joints.shape}, expected finite {(JOINTS, 3)}"
    elif category not in CATEGORIES:
        problem = f"category {category!r}, expected one of {', '.join(CATEGORIES)}"
    elif rule not in _RULES:
        problem = f"no rule {rule!r}, expected one of {', '.join(get_args(MaskRule))}"
    if problem:
        raise DataError(f"agnostic mask: {problem}.")


def _safe(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """No pixel of the target garment stays visible, and any other garment of its category fits.

    Kept: head above the neck, hands beyond the wrists, shoes, bag and the garments of other
    categories, except for a rim of 4 px of 1024 (at least one pixel) around the worn garment, where
    resampled pixels still show its colour.
    """
    garment = np.isin(parse, TARGET_LABELS[category])
    part = _covered_part(parse, body, category)
    wide_garment = dilate(garment, body.px(10, per=512))
    wide_part = dilate(part, body.px(8, per=512))
    mask = shapes.fill_holes(wide_garment | wide_part)
    head = _head(parse, body, category)
    mask &= ~(head | _kept(parse, body, category))
    rim = dilate(garment, max(1.0, body.px(RIM)))
    mask |= rim & ~head
    return mask | garment


def _hull(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """Convex hull of garment and body part, softened by 1/25 of the picture's longer side.

    Head, hands and other garments are kept.
    """
    garment = np.isin(parse, TARGET_LABELS[category])
    hull = shapes.convex_hull(garment | _covered_part(parse, body, category))
    kernel = max(body.height, body.width) / 25
    # The sigma that OpenCV gives a Gaussian of this size.
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    soft = ndimage.gaussian_filter(hull.astype(np.float32), sigma, truncate=kernel / 2 / sigma)
    mask = soft >= 0.1
    mask &= ~(_head(parse, body, category) | _kept(parse, body, category))
    return mask | garment


def _box(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """Box around garment and the skin that the category may cover; nothing inside is kept.

    It is 8 px of 1024 wider, since parse maps are coarse.
    """
    region = np.isin(parse, (*TARGET_LABELS[category], *COVERABLE_SKIN[category]))
    if not region.any():
        region = _covered_part(parse, body, category)
    canvas = body.canvas()
    box = bounding_box(region)
    if box is not None:
        margin = body.px(8)
        canvas.box(box.left - margin, box.top - margin, box.right + margin, box.bottom + margin)
    return canvas.mask


def _tryondiffusion(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """The person's bounding box without head, hands and lower body (arXiv 2306.08276, Section 3.1).

    Arms, neck and the background near the person are hidden too: outlines give away the old
    garment. Hands begin a tenth of the forearm before the wrist and end 0.6 of it behind.
    """
    person = parse != labels.BACKGROUND
    if not person.any():
        person = _covered_part(parse, body, category)
    canvas = body.canvas()
    box = bounding_box(person)
    if box is not None:
        canvas.box(*box)
    kept = np.isin(parse, PASTED_LABELS[category]) | _hands(parse, body, start=-0.1, reach=0.6)
    kept |= _head(parse, body, category) | (parse == labels.HAIR)
    return canvas.mask & ~kept


def _head(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """The head; where a garment may cover the neck, the head above it."""
    head = np.isin(parse, HEAD_LABELS)
    if category == "lower_body":
        return head
    return head & ~below_chin(parse, body)


def _kept(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """Hands, other garments, and hair that does not hang in front of the garment."""
    kept = np.isin(parse, OTHER_LABELS[category]) | _hands(parse, body)
    hair = parse == labels.HAIR
    if category != "lower_body" and body.has(RIGHT_SHOULDER, LEFT_SHOULDER):
        hair &= ~body.below_shoulders
    return kept | hair


def _hands(
    parse: np.ndarray, body: Skeleton, start: float = 0.2, reach: float = HAND
) -> np.ndarray:
    """Gloves, and arm-label pixels beyond a wrist, seen along the forearm.

    Without elbow and wrist nothing counts as hand. start, reach: from how far beyond the wrist
    (cuffs reach past the joint) to how far around it, in lengths of the forearm.
    """
    hands = np.zeros(parse.shape, dtype=bool)
    rows, columns = np.ogrid[: body.height, : body.width]
    for _, elbow, wrist in ARMS:
        if not body.has(elbow, wrist):
            continue
        x, y = body.xy[wrist]
        forearm = body.xy[wrist] - body.xy[elbow]
        length = np.linalg.norm(forearm)
        radius = max(reach * length, body.px(SMALLEST_HAND))
        dx = columns - x
        dy = rows - y
        beyond = dx * forearm[0] + dy * forearm[1] > start * length**2
        hands |= beyond & (dx**2 + dy**2 < radius**2)
    return (hands & np.isin(parse, ARM_LABELS)) | (parse == labels.GLOVE)


def _covered_part(parse: np.ndarray, body: Skeleton, category: Category) -> np.ndarray:
    """The part of the body that some garment of the category may cover.

    Skin labels, and drawn torso, arms and legs.
    """
    part = np.zeros(parse.shape, dtype=bool)
    canvas = body.canvas()
    width = _limb_width(body)
    if category != "lower_body":
        neck = (parse == FACE) & below_chin(parse, body)
        part |= np.isin(parse, (*ARM_LABELS, NECK)) | neck
        if body.has(RIGHT_SHOULDER, LEFT_SHOULDER, LEFT_HIP, RIGHT_HIP):
            canvas.polygon(body.xy[[RIGHT_SHOULDER, LEFT_SHOULDER, LEFT_HIP, RIGHT_HIP]])
            canvas.limb(body.xy[[RIGHT_HIP, LEFT_HIP]], 0.8 * width)
        for arm in ARMS:
            canvas.limb(body.chain(arm), width)
    if category != "upper_body":
        part |= np.isin(parse, LEG_LABELS)
        right, left = (body.chain(leg) for leg in LEGS)
        if len(right) and len(left):
            canvas.polygon([*right, *left[::-1]])  # between the legs: room for a skirt
            canvas.limb([right[0], left[0]], width)
        canvas.limb(right, width)
        canvas.limb(left, width)
    return part | canvas.mask


def _limb_width(body: Skeleton) -> float:
    """Full width of a generous arm line, sleeve included.

    0.65 of the shoulder distance, at least 45 px of 512; 60 without both shoulders.
    """
    shoulders = body.shoulder_width
    if not shoulders:
        return body.px(60, per=512)
    return max(0.65 * shoulders, body.px(45, per=512))


_DRAWN = ("viton_hd", "hr_viton", "cat_dm")  # rules that need shoulders and hips
_RULES: dict[str, Callable[[np.ndarray, Skeleton, Category], np.ndarray]] = {
    "safe": _safe,
    "viton_hd": partial(published.drawn, style=published.VITON_HD),
    "hr_viton": partial(published.drawn, style=published.HR_VITON),
    "cat_dm": partial(published.drawn, style=published.CAT_DM),
    "ladi": published.ladi,
    "dresscode_ref": published.dresscode_ref,
    "ootd": published.ootd,
    "leffa_hd": leffa_hd,
    "leffa_dc": leffa_dc,
    "hull": _hull,
    "box": _box,
    "tryondiffusion": _tryondiffusion,
}
