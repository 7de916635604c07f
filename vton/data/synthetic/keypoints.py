"""Joints in the files' own forms, and drawn skeletons.

OpenPose JSON with BODY_25, face and hands; DressCode's COCO-18. Coordinates live on 768x1024
(VITON-HD) or 384x512 (DressCode) whatever the size of the pictures.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from PIL import Image, ImageDraw

from vton.data.pose import DRESSCODE_CANVAS, FROM_BODY_25, LIMB_SHADE, VITON_HD_CANVAS
from vton.data.synthetic.body import (
    L_ANKLE,
    L_HEEL,
    L_TOE,
    L_WRIST,
    MID_HIP,
    NOSE,
    R_ANKLE,
    R_HEEL,
    R_TOE,
    R_WRIST,
    Body,
)
from vton.data.synthetic.render import Person

_LIMBS = (
    *((1, 8), (1, 2), (1, 5)),  # trunk
    *((2, 3), (3, 4), (5, 6), (6, 7)),  # arms
    *((8, 9), (9, 10), (10, 11), (8, 12), (12, 13), (13, 14)),  # legs
    *((1, 0), (0, 15), (15, 17), (0, 16), (16, 18)),  # head
    *((14, 19), (19, 20), (14, 21), (11, 22), (22, 23), (11, 24)),  # feet
)
# OpenPose's colour of each BODY_25 joint; a limb takes that of its second joint.
_COLOURS = np.frombuffer(
    bytes.fromhex(
        "ff0055 ff0000 ff5500 ffaa00 ffff00 aaff00 55ff00 00ff00 ff0000"
        "00ff55 00ffaa 00ffff 00aaff 0055ff 0000ff ff00aa aa00ff ff00ff"
        "5500ff 0000ff 0000ff 0000ff 00ffff 00ffff 00ffff"
    ),
    dtype=np.uint8,
).reshape(-1, 3)
_FINGERS = [[0, *range(4 * finger + 1, 4 * finger + 5)] for finger in range(5)]

# Numbers in BODY_25 and in COCO-18.
ELBOWS_AND_WRISTS = [3, 4, 6, 7]  # the same in both
COCO_HEAD = [0, 14, 15, 16, 17]
COCO_EARS = slice(16, 18)


def body_25(person: Person, rng: np.random.Generator, drop: float = 0.0) -> np.ndarray:
    """(25, 3) x, y, confidence on 768x1024; what lies outside the picture is 0, 0, 0.

    drop: the probability that an elbow or wrist is missing although it is in the picture.
    """
    width, height = VITON_HD_CANVAS
    points = person.camera.to_canvas(person.body.joints, width, height)
    confidence = rng.uniform(0.45, 0.95, len(points))
    inside = ((points > 0) & (points < (width, height))).all(-1)
    # Feet are found with their ankle or not at all.
    inside[R_TOE : R_HEEL + 1] &= inside[R_ANKLE]
    inside[L_TOE : L_HEEL + 1] &= inside[L_ANKLE]
    inside[ELBOWS_AND_WRISTS] &= rng.random(4) >= drop
    table = np.column_stack((np.round(points, 3), np.round(confidence, 4)))
    return np.where(inside[:, None], table, 0.0)


def openpose_json(
    person: Person, joints: np.ndarray, rng: np.random.Generator, empty: bool = False
) -> dict:
    """An OpenPose file of one person: body, face (70) and hands (2 x 21).

    joints: the body's (25, 3). empty: nobody was found.
    """
    if empty:
        return {"version": 1.3, "people": []}
    seen = joints[:, 2] > 0
    face = _on_canvas(person, _face(person.body), seen[NOSE], rng)
    left = _on_canvas(person, _hand(person.body, "left"), seen[L_WRIST], rng)
    right = _on_canvas(person, _hand(person.body, "right"), seen[R_WRIST], rng)
    record = {
        "person_id": [-1],
        "pose_keypoints_2d": joints.ravel().tolist(),
        "face_keypoints_2d": face,
        "hand_left_keypoints_2d": left,
        "hand_right_keypoints_2d": right,
        "pose_keypoints_3d": [],
        "face_keypoints_3d": [],
        "hand_left_keypoints_3d": [],
        "hand_right_keypoints_3d": [],
    }
    return {"version": 1.3, "people": [record]}


def coco_18(person: Person, rng: np.random.Generator, drop: float = 0.0) -> list[list[float]]:
    """DressCode's 18 rows [x, y, confidence, running index] on 384x512, in whole pixels.

    Missing joints are -1, -1, 0, -1. Head joints above the picture are present at y = 0, as in the
    real files.
    """
    width, height = DRESSCODE_CANVAS
    joints = person.body.joints[FROM_BODY_25]
    points = np.round(person.camera.to_canvas(joints, width, height))
    found = (points[:, 0] > 0) & (points[:, 0] < width) & (points[:, 1] < height)
    points[COCO_HEAD, 1] = np.maximum(points[COCO_HEAD, 1], 0)
    found &= points[:, 1] >= 0
    found[COCO_EARS] &= rng.random(2) >= 0.08  # ears are missing in 5-11 % of the real files
    found[ELBOWS_AND_WRISTS] &= rng.random(4) >= drop
    confidence = np.round(rng.uniform(0.45, 0.95, len(points)), 4)
    rows = []
    count = 0
    for (x, y), score, seen in zip(points.tolist(), confidence.tolist(), found, strict=True):
        if seen:
            rows.append([x, y, score, float(count)])
            count += 1
        else:
            rows.append([-1.0, -1.0, 0.0, -1.0])
    return rows


def coco_18_pixels(rows: np.ndarray, canvas: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Joints as `vton.data.derived.agnostic` takes them: (18, 3) x, y in pixels, and validity.

    The pixels are those of a picture of `size` (height, width). rows: (18, >=3) x, y, confidence on
    `canvas` (width, height). y <= 0 means outside the picture.
    """
    scale = np.array([size[1] / canvas[0], size[0] / canvas[1]])
    valid = (rows[:, 2] > 0) & (rows[:, 0] > 0) & (rows[:, 1] > 0)
    return np.column_stack((rows[:, :2] * scale, np.ones(len(rows)))) * valid[:, None]


def draw_openpose(content: dict, size: tuple[int, int]) -> Image.Image:
    """OpenPose's rendering of a JSON file at `size` (height, width).

    Limbs, joints and hands on black.
    """
    height, width = size
    image = Image.new("RGB", (2 * width, 2 * height))
    draw = ImageDraw.Draw(image)
    scale = np.array([2 * width / VITON_HD_CANVAS[0], 2 * height / VITON_HD_CANVAS[1]])
    colours = [tuple(colour) for colour in _COLOURS.tolist()]
    for person in content["people"]:
        body_width = max(2, height / 80)
        _draw_chain(draw, person["pose_keypoints_2d"], _LIMBS, colours, scale, body_width)
        for side in ("left", "right"):
            hand = person[f"hand_{side}_keypoints_2d"]
            for finger, joints in enumerate(_FINGERS):
                bones = tuple(pairwise(joints))
                shades = [_finger_colour(finger)] * 21
                _draw_chain(draw, hand, bones, shades, scale, max(1, height / 200))
    return image.reduce(2)


def _finger_colour(finger: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(finger / 5, 1, 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_chain(
    draw: ImageDraw.ImageDraw,
    numbers: list[float],
    bones: Sequence[tuple[int, int]],
    colours: Sequence[tuple[int, int, int]],
    scale: np.ndarray,
    width: float,
) -> None:
    """Bones between joints that were found, and these joints.

    numbers: flat x, y, confidence; scale: pixels of the drawing per pixel of their canvas.
    """
    table = np.reshape(numbers, (-1, 3))
    points = (table[:, :2] * scale).tolist()
    seen = table[:, 2] > 0
    for start, end in bones:
        if seen[start] and seen[end]:
            shade = tuple(round(LIMB_SHADE * channel) for channel in colours[end])
            draw.line([*points[start], *points[end]], fill=shade, width=round(width))
    radius = width * 0.6
    for joint in sorted(set(chain.from_iterable(bones))):
        if seen[joint]:
            x, y = points[joint]
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colours[joint])


def _on_canvas(
    person: Person, points: np.ndarray, found: bool, rng: np.random.Generator
) -> list[float]:
    """Flat x, y, confidence of body coordinates.

    Zeros when the part was not found or the point lies outside the picture.
    """
    placed = person.camera.to_canvas(points, *VITON_HD_CANVAS)
    inside = found & ((placed > 0) & (placed < VITON_HD_CANVAS)).all(-1)
    confidence = np.round(rng.uniform(0.3, 0.9, len(points)), 4)
    table = np.column_stack((np.round(placed, 3), confidence))
    return np.where(inside[:, None], table, 0.0).ravel().tolist()


def _face(body: Body) -> np.ndarray:
    """(70, 2) body coordinates.

    Jaw 17, brows 2 x 5, nose 4 + 5, eyes 2 x 6, mouth 12 + 8, pupils 2.
    """
    a, b = body.head_size
    turn = 0.8 * body.head_turn
    parts = []

    angle = np.linspace(-0.1, np.pi + 0.1, 17)
    jaw_x = -a * np.cos(angle) * (1 - 0.1 * np.sin(angle))
    parts.append(np.column_stack((jaw_x, b * np.sin(angle))))

    arch = np.linspace(-1, 1, 5)
    for sign in (-1, 1):
        brow_x = turn + sign * 0.066 + 0.036 * arch
        parts.append(np.column_stack((brow_x, -0.09 + 0.008 * arch**2)))

    parts.append(np.column_stack((np.full(4, turn), np.linspace(-0.04, 0.03, 4))))
    nostrils_x = turn + np.linspace(-0.025, 0.025, 5)
    parts.append(np.column_stack((nostrils_x, 0.045 + 0.006 * (1 - arch**2))))

    ring = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    for sign in (-1, 1):
        eye_x = turn + sign * 0.066 - 0.033 * np.cos(ring)
        parts.append(np.column_stack((eye_x, -0.04 - 0.016 * np.sin(ring))))

    for count, wide, high in ((12, 0.052, 0.020), (8, 0.042, 0.010)):
        ring = np.linspace(0, 2 * np.pi, count, endpoint=False)
        parts.append(np.column_stack((turn - wide * np.cos(ring), 0.11 - high * np.sin(ring))))

    parts.append(np.array([[turn - 0.066, -0.04], [turn + 0.066, -0.04]]))
    x, y = np.concatenate(parts).T
    cx, cy, roll = body.head
    turned_x = cx + x * np.cos(roll) - y * np.sin(roll)
    turned_y = cy + x * np.sin(roll) + y * np.cos(roll)
    return np.column_stack((turned_x, turned_y))


def _hand(body: Body, side: str) -> np.ndarray:
    """(21, 2) body coordinates: wrist, then thumb to little finger, four joints each."""
    _, elbow, wrist = body.limb("arm", side)
    axis = (wrist - elbow) / np.linalg.norm(wrist - elbow)
    inward = np.array([-axis[1], axis[0]]) * (1 if side == "right" else -1)
    if inward @ (body.joints[MID_HIP] - wrist) < 0:
        inward = -inward
    points = [wrist]
    for finger in range(5):
        for joint in range(4):
            reach = 0.07 + 0.025 * joint
            spread = 0.032 - 0.016 * finger
            if finger == 0:  # the thumb
                reach = 0.03 + 0.02 * joint
                spread = spread + 0.006 * joint
            points.append(wrist + reach * axis + spread * inward)
    return np.array(points)
