"""A body to dress: joints completed from proportions, and the lines along which a garment hangs.

Coordinates are pixels, x to the right and y down. Sides are those of the *picture*: limb 0 is on
the left, so that a garment is never mirrored, whatever way the person faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vton.data.derived.shapes import ARMS, LEGS

# Lengths in units of the shoulder distance of an adult seen from the front, as OpenPose sets its
# joints.
TORSO, UPPER_ARM, FOREARM, HIPS, THIGH, SHANK = 1.5, 0.95, 0.9, 0.62, 1.25, 1.2


@dataclass(frozen=True)
class Figure:
    """size: the shoulder distance that the person would show from the front, px.

    arms: (2, 3, 2) shoulder, elbow, wrist; legs: (2, 3, 2) hip, knee, ankle; picture-left limb
    first.
    arms_seen: (2, 3) bool, False where the joint was completed.
    """

    size: float
    arms: np.ndarray
    legs: np.ndarray
    arms_seen: np.ndarray

    @classmethod
    def of(cls, joints: np.ndarray) -> Figure | None:
        """The figure of (18, 3) joints in pixels with validity; None without both shoulders or both
        hips.
        """
        xy, valid = np.asarray(joints[:, :2], dtype=float), joints[:, 2] > 0
        sides = [0, 1]
        known = [root for root in (ARMS, LEGS) if valid[[root[0][0], root[1][0]]].all()]
        if not known:
            return None
        first, second = (xy[known[0][side][0]] for side in sides)
        if first[0] > second[0]:
            sides = [1, 0]
        shoulders, hips = (_roots(xy, valid, limbs, sides) for limbs in (ARMS, LEGS))
        size = _size(shoulders, hips)
        if size < 1:
            return None
        if hips is None:
            hips = _opposite(shoulders, HIPS * size, TORSO * size)
        if shoulders is None:
            shoulders = _opposite(hips, size, -TORSO * size)
        down = hips.mean(axis=0) - shoulders.mean(axis=0)
        down = down / max(np.linalg.norm(down), 1e-6)
        arms = [
            _limb(xy, valid, ARMS[side], shoulders[i], down, (UPPER_ARM * size, FOREARM * size))
            for i, side in enumerate(sides)
        ]
        legs = [
            _limb(xy, valid, LEGS[side], hips[i], down, (THIGH * size, SHANK * size))
            for i, side in enumerate(sides)
        ]
        return cls(size, np.array(arms), np.array(legs), valid[[ARMS[side] for side in sides]])

    @property
    def shoulders(self) -> np.ndarray:
        return self.arms[:, 0]

    @property
    def hips(self) -> np.ndarray:
        return self.legs[:, 0]


def _roots(xy: np.ndarray, valid: np.ndarray, limbs, sides: list[int]) -> np.ndarray | None:
    ids = [limbs[side][0] for side in sides]
    return xy[ids] if valid[ids].all() else None


def _size(shoulders: np.ndarray | None, hips: np.ndarray | None) -> float:
    """Mean of what shoulder distance and torso length say: turned to the side, the first shrinks,
    the second stays.
    """
    if shoulders is None:
        return float(np.linalg.norm(hips[1] - hips[0])) / HIPS
    width = float(np.linalg.norm(shoulders[1] - shoulders[0]))
    if hips is None:
        return width
    return (width + float(np.linalg.norm(hips.mean(axis=0) - shoulders.mean(axis=0))) / TORSO) / 2


def _opposite(pair: np.ndarray, width: float, drop: float) -> np.ndarray:
    """The joint pair at the other end of the torso: at right angles to the known one, `drop` below
    it.
    """
    across = pair[1] - pair[0]
    across = across / max(np.linalg.norm(across), 1e-6)
    centre = pair.mean(axis=0) + drop * np.array([-across[1], across[0]])
    return np.stack([centre - width / 2 * across, centre + width / 2 * across])


def _limb(xy, valid, ids, root, down, lengths) -> np.ndarray:
    """(3, 2) root, middle and end; a missing joint continues the limb straight, or down the body,
    at usual length.
    """
    _, middle_id, end_id = ids
    if valid[middle_id]:
        middle = xy[middle_id]
    elif valid[end_id]:
        middle = root + (xy[end_id] - root) * lengths[0] / sum(lengths)
    else:
        middle = root + lengths[0] * down
    if valid[end_id]:
        return np.array([root, middle, xy[end_id]])
    along = middle - root
    return np.array([root, middle, middle + along * lengths[1] / max(np.linalg.norm(along), 1e-6)])


class Line:
    """A polyline with a place and a direction at every length along it, going straight on beyond
    both ends.
    """

    def __init__(self, points: np.ndarray):
        self.points = np.asarray(points, dtype=float)
        self._at = np.concatenate(
            [[0.0], np.linalg.norm(np.diff(self.points, axis=0), axis=1).cumsum()]
        )

    @property
    def length(self) -> float:
        return float(self._at[-1])

    @property
    def knots(self) -> np.ndarray:
        """(N,) lengths at which the points lie."""
        return self._at

    @property
    def direction(self) -> np.ndarray:
        """(2,) unit vector of the first segment."""
        first = self.points[1] - self.points[0]
        return first / max(np.linalg.norm(first), 1e-6)

    def at(self, length: np.ndarray) -> np.ndarray:
        """(..., 2) points at the given lengths."""
        length = np.asarray(length, dtype=float)
        inside = np.stack([np.interp(length, self._at, self.points[:, i]) for i in (0, 1)], axis=-1)
        first, last = (self.points[1] - self.points[0]), (self.points[-1] - self.points[-2])
        first, last = (v / max(np.linalg.norm(v), 1e-6) for v in (first, last))
        return (
            inside
            + np.minimum(length, 0)[..., None] * first
            + np.maximum(length - self.length, 0)[..., None] * last
        )

    def normal(self, length: np.ndarray, smooth: float) -> np.ndarray:
        """(..., 2) unit normals, the direction turned by +90 degrees on screen; corners rounded
        over +-`smooth` px.
        """
        length = np.asarray(length, dtype=float)
        along = self.at(length + smooth) - self.at(length - smooth)
        along = along / np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-6)
        return np.stack([-along[..., 1], along[..., 0]], axis=-1)
