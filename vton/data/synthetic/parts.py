"""DensePose's body parts of the drawn body, clothed or not, with coordinates U and V inside each
part.

A flat stand-in for the SMPL charts: ids and ranges agree, charts do not. Frontal halves of the
legs; arms split into an outer and an inner half along the bone.
"""

from __future__ import annotations

import numpy as np

from vton.data.synthetic import head
from vton.data.synthetic.body import CROTCH, SIDES, Body
from vton.data.synthetic.layers import shoe_mask, trunk_skin
from vton.data.synthetic.maps import BodyMaps, Grid
from vton.data.synthetic.render import Person

TORSO, RIGHT_HEAD, LEFT_HEAD = 2, 23, 24
_HAND = {"right": 3, "left": 4}
_FOOT = {"left": 5, "right": 6}
_THIGH, _SHIN = {"right": 9, "left": 10}, {"right": 13, "left": 14}
_UPPER_ARM, _FOREARM = (
    {"left": (15, 17), "right": (16, 18)},
    {"left": (19, 21), "right": (20, 22)},
)  # outer, inner


def body_parts(person: Person, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Part ids (H, W) uint8 in 0..24 and U, V (2, H, W) float32 in 0..1, 0 outside the body."""
    body = person.body
    grid = Grid.of(person.camera, size, 1, range(size[0]))
    maps = BodyMaps(body, grid)
    ids, uv = np.zeros(size, np.uint8), np.zeros((2, *size), np.float32)
    for side, _ in SIDES:
        limb = maps.limb("leg", side)
        radius = body.leg_radius(limb.along)
        part = np.where(limb.along < 1, _THIGH[side], _SHIN[side]).astype(np.uint8)
        inside = (np.abs(limb.across) <= radius) & (limb.along < 2.1)
        _paint(
            ids, uv, limb.window, inside, part, limb.across / radius * 0.5 + 0.5, _along(limb.along)
        )
        window, shoe, along = shoe_mask(body, side, grid)
        _paint(
            ids,
            uv,
            window,
            shoe,
            np.full(shoe.shape, _FOOT[side], np.uint8),
            np.full(shoe.shape, 0.5),
            along,
        )
    skin = trunk_skin(body, maps) & ~((ids > 0) & (maps.v > CROTCH - 0.12))
    whole = (slice(None), slice(None))
    across = maps.side / body.half(maps.v) * 0.5 + 0.5
    _paint(
        ids,
        uv,
        whole,
        skin,
        np.full(size, TORSO, np.uint8),
        across,
        (maps.v + 0.2) / (CROTCH + 0.2),
    )
    face = head.HeadMap.of(body, grid)
    part = np.where(face.x < 0, RIGHT_HEAD, LEFT_HEAD).astype(np.uint8)
    (a, b) = body.head_size
    _paint(
        ids,
        uv,
        face.window,
        face.face | face.crown,
        part,
        face.x / (2 * a) + 0.5,
        face.y / (2 * b) + 0.5,
    )
    for side in ("right", "left") if body.right_arm_first else ("left", "right"):
        _paint_arm(ids, uv, body, maps, side)
    return ids, uv


def _paint_arm(ids: np.ndarray, uv: np.ndarray, body: Body, maps: BodyMaps, side: str) -> None:
    limb = maps.limb("arm", side)
    radius = body.arm_radius(limb.along)
    inner = (limb.across > 0) == (side == "right")
    upper, fore = _UPPER_ARM[side], _FOREARM[side]
    part = np.where(
        limb.along < 1, np.where(inner, upper[1], upper[0]), np.where(inner, fore[1], fore[0])
    )
    part = np.where(limb.along >= 2, _HAND[side], part).astype(np.uint8)
    _paint(
        ids,
        uv,
        limb.window,
        np.abs(limb.across) <= radius,
        part,
        limb.across / radius * 0.5 + 0.5,
        _along(limb.along),
    )


def _along(along: np.ndarray) -> np.ndarray:
    """Position within upper or lower part; what lies beyond the second joint counts on."""
    return np.where(along < 1, along, np.where(along < 2, along - 1, (along - 2) / 0.4))


def _paint(
    ids, uv, window, mask: np.ndarray, part: np.ndarray, u: np.ndarray, v: np.ndarray
) -> None:
    np.copyto(ids[window], part, where=mask)
    np.copyto(uv[0][window], np.clip(u, 0, 1), where=mask, casting="same_kind")
    np.copyto(uv[1][window], np.clip(v, 0, 1), where=mask, casting="same_kind")
