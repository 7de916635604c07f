"""Joints in the files' own forms: OpenPose JSON with BODY_25, face and hands; DressCode's COCO-18;
drawn skeletons.

Coordinates live on 768x1024 (VITON-HD) or 384x512 (DressCode) whatever the size of the pictures.
"""

from __future__ import annotations

import colorsys
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from vton.data.pose import DRESSCODE_CANVAS, FROM_BODY_25, VITON_HD_CANVAS
from vton.data.synthetic.body import L_ANKLE, R_ANKLE, Body
from vton.data.synthetic.render import Person

_LIMBS = (
    (1, 8),
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (8, 9),
    (9, 10),
    (10, 11),
    (8, 12),
    (12, 13),
    (13, 14),
    (1, 0),
    (0, 15),
    (15, 17),
    (0, 16),
    (16, 18),
    (14, 19),
    (19, 20),
    (14, 21),
    (11, 22),
    (22, 23),
    (11, 24),
)
# OpenPose's colour of each BODY_25 joint; a limb takes that of its second joint.
_COLOURS = (
    (255, 0, 85),
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (255, 0, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (255, 0, 170),
    (170, 0, 255),
    (255, 0, 255),
    (85, 0, 255),
    (0, 0, 255),
    (0, 0, 255),
    (0, 0, 255),
    (0, 255, 255),
    (0, 255, 255),
    (0, 255, 255),
)
_FINGERS = [[0, *range(4 * finger + 1, 4 * finger + 5)] for finger in range(5)]


def body_25(person: Person, rng: np.random.Generator, drop: float = 0.0) -> np.ndarray:
    """(25, 3) x, y, confidence on 768x1024; what lies outside the picture is 0, 0, 0.

    `drop` is the probability that an elbow or wrist is missing although it is in the picture.
    """
    width, height = VITON_HD_CANVAS
    points = person.camera.to_canvas(person.body.joints, width, height)
    confidence = rng.uniform(0.45, 0.95, len(points))
    inside = ((points > 0) & (points < (width, height))).all(-1)
    # Feet are found with their ankle or not at all.
    for ankle, feet in ((R_ANKLE, slice(22, 25)), (L_ANKLE, slice(19, 22))):
        inside[feet] &= inside[ankle]
    inside[[3, 4, 6, 7]] &= rng.random(4) >= drop
    table = np.column_stack((np.round(points, 3), np.round(confidence, 4)))
    return np.where(inside[:, None], table, 0.0)


def openpose_json(
    person: Person, body: np.ndarray, rng: np.random.Generator, empty: bool = False
) -> dict:
    """An OpenPose file of one person with the joints `body` (25, 3), face (70) and hands (2 x 21)."""
    if empty:
        return {"version": 1.3, "people": []}
    record = {"person_id": [-1], "pose_keypoints_2d": body.ravel().tolist()}
    record["face_keypoints_2d"] = _on_canvas(person, _face(person.body), body[0, 2] > 0, rng)
    for side, wrist in (("left", 7), ("right", 4)):
        record[f"hand_{side}_keypoints_2d"] = _on_canvas(
            person, _hand(person.body, side), body[wrist, 2] > 0, rng
        )
    record |= {f"{part}_keypoints_3d": [] for part in ("pose", "face", "hand_left", "hand_right")}
    return {"version": 1.3, "people": [record]}


def coco_18(person: Person, rng: np.random.Generator, drop: float = 0.0) -> list[list[float]]:
    """DressCode's 18 rows [x, y, confidence, running index] on 384x512, in whole pixels.

    Missing joints are -1, -1, 0, -1. Head joints above the picture are present at y = 0, as in the
    real files.
    """
    width, height = DRESSCODE_CANVAS
    points = np.round(person.camera.to_canvas(person.body.joints[FROM_BODY_25], width, height))
    found = (points[:, 0] > 0) & (points[:, 0] < width) & (points[:, 1] < height)
    head = [0, 14, 15, 16, 17]
    points[head, 1] = np.maximum(points[head, 1], 0)
    found &= points[:, 1] >= 0
    found[16:] &= rng.random(2) >= 0.08  # ears are missing in 5-11 % of the real files
    found[[3, 4, 6, 7]] &= rng.random(4) >= drop
    confidence = np.round(rng.uniform(0.45, 0.95, len(points)), 4)
    rows, index = [], 0
    for (x, y), score, seen in zip(points.tolist(), confidence.tolist(), found, strict=True):
        rows.append([x, y, score, float(index)] if seen else [-1.0, -1.0, 0.0, -1.0])
        index += int(seen)
    return rows


def coco_18_pixels(rows: np.ndarray, canvas: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Joints as `vton.data.derived.agnostic` takes them: (18, 3) x, y in pixels of a picture of
    `size`, and validity.

    rows: (18, >=3) x, y, confidence on `canvas` (width, height). y <= 0 means outside the picture.
    """
    scale = np.array([size[1] / canvas[0], size[0] / canvas[1]])
    valid = (rows[:, 2] > 0) & (rows[:, 0] > 0) & (rows[:, 1] > 0)
    return np.column_stack((rows[:, :2] * scale, np.ones(len(rows)))) * valid[:, None]


def draw_openpose(content: dict, size: tuple[int, int]) -> Image.Image:
    """OpenPose's rendering of a JSON file: limbs, joints and hands on black, at `size` (height,
    width).
    """
    height, width = size
    image = Image.new("RGB", (2 * width, 2 * height))
    draw = ImageDraw.Draw(image)
    scale = np.array([2 * width / VITON_HD_CANVAS[0], 2 * height / VITON_HD_CANVAS[1]])
    for person in content["people"]:
        _draw_chain(draw, person["pose_keypoints_2d"], _LIMBS, _COLOURS, scale, max(2, height / 80))
        for side in ("left", "right"):
            for finger, joints in enumerate(_FINGERS):
                colours = [
                    tuple(round(255 * c) for c in colorsys.hsv_to_rgb(finger / 5, 1, 0.8))
                ] * 21
                pairs = tuple(pairwise(joints))
                _draw_chain(
                    draw,
                    person[f"hand_{side}_keypoints_2d"],
                    pairs,
                    colours,
                    scale,
                    max(1, height / 200),
                )
    return image.reduce(2)


def _draw_chain(draw, numbers, pairs, colours, scale: np.ndarray, width: float) -> None:
    table = np.reshape(numbers, (-1, 3))
    points, seen = (table[:, :2] * scale).tolist(), table[:, 2] > 0
    for a, b in pairs:
        if seen[a] and seen[b]:
            shade = tuple(round(0.6 * c) for c in colours[b])  # limbs are drawn at 60 % over black
            draw.line([*points[a], *points[b]], fill=shade, width=round(width))
    radius = width * 0.6
    for joint in {joint for pair in pairs for joint in pair}:
        if seen[joint]:
            x, y = points[joint]
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colours[joint])


def _on_canvas(
    person: Person, points: np.ndarray, found: bool, rng: np.random.Generator
) -> list[float]:
    """Flat x, y, confidence; zeros when the part was not found or the point lies outside the
    picture.
    """
    placed = person.camera.to_canvas(points, *VITON_HD_CANVAS)
    inside = found & ((placed > 0) & (placed < VITON_HD_CANVAS)).all(-1)
    table = np.column_stack((np.round(placed, 3), np.round(rng.uniform(0.3, 0.9, len(points)), 4)))
    return np.where(inside[:, None], table, 0.0).ravel().tolist()


def _face(body: Body) -> np.ndarray:
    """(70, 2) body coordinates: jaw 17, brows 2 x 5, nose 4 + 5, eyes 2 x 6, mouth 12 + 8, pupils
    2.
    """
    (a, b), turn = body.head_size, 0.8 * body.head_turn
    angle = np.linspace(-0.1, np.pi + 0.1, 17)
    jaw = np.column_stack((-a * np.cos(angle) * (1 - 0.1 * np.sin(angle)), b * np.sin(angle)))
    parts = [jaw]
    arch = np.linspace(-1, 1, 5)
    for sign in (-1, 1):
        parts.append(np.column_stack((turn + sign * 0.066 + 0.036 * arch, -0.09 + 0.008 * arch**2)))
    parts.append(np.column_stack((np.full(4, turn), np.linspace(-0.04, 0.03, 4))))
    parts.append(
        np.column_stack((turn + np.linspace(-0.025, 0.025, 5), 0.045 + 0.006 * (1 - arch**2)))
    )
    ring = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    for sign in (-1, 1):
        parts.append(
            np.column_stack(
                (turn + sign * 0.066 - 0.033 * np.cos(ring), -0.04 - 0.016 * np.sin(ring))
            )
        )
    for count, wide, high in ((12, 0.052, 0.020), (8, 0.042, 0.010)):
        ring = np.linspace(0, 2 * np.pi, count, endpoint=False)
        parts.append(np.column_stack((turn - wide * np.cos(ring), 0.11 - high * np.sin(ring))))
    parts.append(np.array([[turn - 0.066, -0.04], [turn + 0.066, -0.04]]))
    x, y = np.concatenate(parts).T
    cx, cy, roll = body.head
    return np.column_stack(
        (cx + x * np.cos(roll) - y * np.sin(roll), cy + x * np.sin(roll) + y * np.cos(roll))
    )


def _hand(body: Body, side: str) -> np.ndarray:
    """(21, 2) body coordinates: wrist, then thumb to little finger, four joints each."""
    _, elbow, wrist = body.limb("arm", side)
    axis = (wrist - elbow) / np.linalg.norm(wrist - elbow)
    inward = np.array([-axis[1], axis[0]]) * (1 if side == "right" else -1)
    inward = -inward if (inward @ (body.joints[8] - wrist)) < 0 else inward
    points = [wrist]
    for finger in range(5):
        spread = 0.032 - 0.016 * finger
        for joint in range(4):
            reach = (0.03 + 0.02 * joint) if finger == 0 else (0.07 + 0.025 * joint)
            points.append(
                wrist + reach * axis + (spread + (0.006 * joint if finger == 0 else 0)) * inward
            )
    return np.array(points)
