"""Inverse maps: for every sample point of the picture, where it lies on trunk, arms and legs.

Everything drawn (silhouettes, texture, shading, body-part labels) is a function of these
coordinates, so the picture and its annotations come from one source. h and w are the rows and
columns of sample points of one band of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vton.data.synthetic.body import ASPECT, HAND_END, Body, Camera

_LOOSEST = 0.12  # how far garments may stand off from arms and legs, torso lengths


@dataclass(frozen=True)
class Grid:
    """Sample points in body coordinates."""

    x: np.ndarray  # (w,)
    y: np.ndarray  # (h,)

    @classmethod
    def of(cls, camera: Camera, size: tuple[int, int], samples: int, rows: range) -> Grid:
        """`samples` x `samples` points per pixel of the given rows of a picture.

        size: height, width of the picture.
        """
        height, width = size
        x = ASPECT * (np.arange(width * samples) + 0.5) / (width * samples)
        y = (np.arange(rows.start * samples, rows.stop * samples) + 0.5) / (height * samples)
        x = (x - camera.x) / camera.scale
        y = (y - camera.y) / camera.scale
        return cls(x.astype(np.float32), y.astype(np.float32))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    def window(self, left: float, right: float, top: float, bottom: float) -> tuple[slice, slice]:
        """Rows and columns of the points inside a rectangle."""
        r0, r1 = np.searchsorted(self.y, [top, bottom])
        c0, c1 = np.searchsorted(self.x, [left, right])
        return slice(int(r0), int(r1)), slice(int(c0), int(c1))


@dataclass(frozen=True)
class LimbMap:
    """Coordinates around one arm or leg, inside a window of the grid.

    along:  0 shoulder or hip, 1 elbow or knee, 2 wrist or ankle; below 0 and above 2 beyond them
    across: signed distance from the bones; positive towards the person's left while hanging
    """

    window: tuple[slice, slice]
    along: np.ndarray
    across: np.ndarray

    @property
    def distance(self) -> np.ndarray:
        return np.abs(self.across)


class BodyMaps:
    """All coordinates of one band. Limbs are computed when first needed.

    side: (h, w) distance from the trunk's centre line
    v:    (h, w) trunk coordinate
    """

    def __init__(self, body: Body, grid: Grid):
        self.body = body
        self.grid = grid
        self.side = grid.x[None, :] - body.centre(grid.y)[:, None]
        tilted = grid.y[:, None] - body.tilt(grid.y)[:, None] * self.side
        self.v = body.trunk(tilted)
        self._limbs: dict[tuple[str, str], LimbMap] = {}

    def limb(self, kind: str, side: str) -> LimbMap:
        """`kind` is arm or leg, `side` right or left."""
        key = (kind, side)
        if key not in self._limbs:
            joints = self.body.limb(kind, side)
            radius = self.body.leg_radius
            beyond = 0.0
            if kind == "arm":
                joints = np.vstack((joints, self.body.hand_end(side)))
                radius = self.body.arm_radius
                beyond = HAND_END - 2.0
            reach = float(radius.table.max()) + _LOOSEST
            self._limbs[key] = _limb_map(self.grid, joints, reach, beyond)
        return self._limbs[key]


def _limb_map(grid: Grid, joints: np.ndarray, reach: float, beyond: float) -> LimbMap:
    """Coordinates along and across two bones; the second is prolonged by the share `beyond`."""
    left, top = joints.min(0) - reach
    right, bottom = joints.max(0) + reach
    window = grid.window(left, right, top, bottom)
    x = grid.x[None, window[1]]
    y = grid.y[window[0], None]
    first, first_distance, first_side = _bone(x, y, joints[0], joints[1], 0.0)
    second, second_distance, second_side = _bone(x, y, joints[1], joints[2], beyond)
    nearer = second_distance < first_distance
    # Around the outer side of the bend both bones see the joint itself: one continuous fan of
    # cloth.
    along = np.where(nearer, np.maximum(second, 0) + 1, np.minimum(first, 1))
    across = np.where(
        nearer,
        np.copysign(second_distance, second_side),
        np.copysign(first_distance, first_side),
    )
    return LimbMap(window, along, across)


def _bone(
    x, y, start: np.ndarray, end: np.ndarray, beyond: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position along (1 = end), distance from, and side of the segment from start to end."""
    length = float(np.hypot(*(end - start)))
    dx, dy = ((end - start) / length).tolist()
    px = x - np.float32(start[0])
    py = y - np.float32(start[1])
    along = px * np.float32(dx) + py * np.float32(dy)
    side = px * np.float32(dy) - py * np.float32(dx)
    outside = along - np.clip(along, 0, np.float32(length * (1 + beyond)))
    distance = np.sqrt(outside * outside + side * side)
    return along * np.float32(1 / length), distance, side


def pick(
    window: tuple[slice, slice], index: np.ndarray, width: int, *fields: np.ndarray
) -> list[np.ndarray]:
    """Values of the window's fields at flat indices of the whole band, `width` points wide."""
    row, column = np.divmod(index, width)
    rows, columns = window
    local = (row - rows.start) * (columns.stop - columns.start) + column - columns.start
    return [field.ravel()[local] for field in fields]
