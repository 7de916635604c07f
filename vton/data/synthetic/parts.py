"""DensePose's body parts of the drawn body, clothed or not.

Each part has coordinates U and V inside it. A flat stand-in for the SMPL charts: ids and ranges
agree, charts do not. Frontal halves of the legs; arms split into an outer and an inner half along
the bone.
"""

from __future__ import annotations

import numpy as np

from vton.data.synthetic.body import CROTCH, SIDES
from vton.data.synthetic.head import HeadMap
from vton.data.synthetic.layers import shoe_mask, trunk_skin
from vton.data.synthetic.maps import BodyMaps, Grid
from vton.data.synthetic.render import Person

TORSO, RIGHT_HEAD, LEFT_HEAD = 2, 23, 24
_HAND = {"right": 3, "left": 4}
_FOOT = {"left": 5, "right": 6}
_THIGH = {"right": 9, "left": 10}
_SHIN = {"right": 13, "left": 14}
_OUTER_UPPER_ARM = {"left": 15, "right": 16}
_INNER_UPPER_ARM = {"left": 17, "right": 18}
_OUTER_FOREARM = {"left": 19, "right": 20}
_INNER_FOREARM = {"left": 21, "right": 22}
_WHOLE = (slice(None), slice(None))  # the window of the whole picture


class PartPainter:
    """Part ids (H, W) uint8 and U, V (2, H, W) float32, painted over each other."""

    def __init__(self, size: tuple[int, int]):
        self.ids = np.zeros(size, np.uint8)
        self.uv = np.zeros((2, *size), np.float32)

    def paint(
        self,
        window: tuple[slice, slice],
        mask: np.ndarray,
        part: np.ndarray | int,
        u: np.ndarray | float,
        v: np.ndarray,
    ) -> None:
        """Inside the window, where the mask is set."""
        np.copyto(self.ids[window], part, where=mask, casting="unsafe")
        np.copyto(self.uv[0][window], np.clip(u, 0, 1), where=mask, casting="same_kind")
        np.copyto(self.uv[1][window], np.clip(v, 0, 1), where=mask, casting="same_kind")


def body_parts(person: Person, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Part ids (H, W) uint8 in 0..24 and U, V (2, H, W) float32 in 0..1, 0 outside the body."""
    body = person.body
    grid = Grid.of(person.camera, size, 1, range(size[0]))
    maps = BodyMaps(body, grid)
    painter = PartPainter(size)
    for side, _ in SIDES:
        _paint_leg(painter, maps, side)
    skin = trunk_skin(body, maps) & ~((painter.ids > 0) & (maps.v > CROTCH - 0.12))
    across = maps.side / body.half(maps.v) * 0.5 + 0.5
    painter.paint(_WHOLE, skin, TORSO, across, (maps.v + 0.2) / (CROTCH + 0.2))
    _paint_head(painter, HeadMap.of(body, grid), body.head_size)
    for side in body.arm_order:
        _paint_arm(painter, maps, side)
    return painter.ids, painter.uv


def _paint_leg(painter: PartPainter, maps: BodyMaps, side: str) -> None:
    limb = maps.limb("leg", side)
    radius = maps.body.leg_radius(limb.along)
    part = np.where(limb.along < 1, _THIGH[side], _SHIN[side])
    inside = (np.abs(limb.across) <= radius) & (limb.along < 2.1)
    across = limb.across / radius * 0.5 + 0.5
    painter.paint(limb.window, inside, part, across, _along_part(limb.along))
    window, shoe, along = shoe_mask(maps.body, side, maps.grid)
    painter.paint(window, shoe, _FOOT[side], 0.5, along)


def _paint_head(painter: PartPainter, head: HeadMap, half_axes: tuple[float, float]) -> None:
    a, b = half_axes
    part = np.where(head.x < 0, RIGHT_HEAD, LEFT_HEAD)
    u = head.x / (2 * a) + 0.5
    v = head.y / (2 * b) + 0.5
    painter.paint(head.window, head.face | head.crown, part, u, v)


def _paint_arm(painter: PartPainter, maps: BodyMaps, side: str) -> None:
    limb = maps.limb("arm", side)
    radius = maps.body.arm_radius(limb.along)
    inner = (limb.across > 0) == (side == "right")
    upper_arm = np.where(inner, _INNER_UPPER_ARM[side], _OUTER_UPPER_ARM[side])
    forearm = np.where(inner, _INNER_FOREARM[side], _OUTER_FOREARM[side])
    part = np.where(limb.along < 1, upper_arm, forearm)
    part = np.where(limb.along >= 2, _HAND[side], part)
    inside = np.abs(limb.across) <= radius
    across = limb.across / radius * 0.5 + 0.5
    painter.paint(limb.window, inside, part, across, _along_part(limb.along))


def _along_part(along: np.ndarray) -> np.ndarray:
    """Position within upper or lower part; what lies beyond the second joint counts on."""
    lower = np.where(along < 2, along - 1, (along - 2) / 0.4)
    return np.where(along < 1, along, lower)
