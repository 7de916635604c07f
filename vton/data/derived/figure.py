"""A body to dress: joints completed from proportions, and the lines along which a garment hangs.

Coordinates are pixels, x to the right and y down. Sides are those of the *picture*: limb 0 is on
the left, so that a garment is never mirrored, whatever way the person faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vton.data.pose import ARMS, LEGS

# Lengths in units of the shoulder distance of an adult seen from the front, as OpenPose sets its
# joints.
TORSO, UPPER_ARM, FOREARM, HIPS, THIGH, SHANK = 1.5, 0.95, 0.9, 0.62, 1.25, 1.2


@dataclass(frozen=True)
class Figure:
    """A body with both shoulders, both hips and all limbs, some of them completed.

    size:      the shoulder distance that the person would show from the front, px
    arms:      (2, 3, 2) shoulder, elbow, wrist; picture-left limb first
    legs:      (2, 3, 2) hip, knee, ankle; picture-left limb first
    arms_seen: (2, 3) bool, False where the joint was completed
    """

    size: float
    arms: np.ndarray
    legs: np.ndarray
    arms_seen: np.ndarray

    @classmethod
    def of(cls, joints: np.ndarray) -> Figure | None:
        """The figure of (18, 3) joints in pixels with validity.

        None without both shoulders or both hips.
        """
        xy = np.asarray(joints[:, :2], dtype=float)
        valid = joints[:, 2] > 0
        arms, legs = _by_picture_side(xy, valid)
        shoulders = _pair(xy, valid, [arm[0] for arm in arms])
        hips = _pair(xy, valid, [leg[0] for leg in legs])
        if shoulders is None and hips is None:
            return None
        size = _size(shoulders, hips)
        if size < 1:
            return None
        if hips is None:
            hips = _opposite(shoulders, HIPS * size, TORSO * size)
        if shoulders is None:
            shoulders = _opposite(hips, size, -TORSO * size)
        down = _unit_vector(hips.mean(axis=0) - shoulders.mean(axis=0))
        arm_lengths = (UPPER_ARM * size, FOREARM * size)
        leg_lengths = (THIGH * size, SHANK * size)
        return cls(
            size=size,
            arms=_completed(xy, valid, arms, shoulders, down, arm_lengths),
            legs=_completed(xy, valid, legs, hips, down, leg_lengths),
            arms_seen=valid[list(arms)],
        )

    @property
    def shoulders(self) -> np.ndarray:
        """(2, 2) picture-left and picture-right."""
        return self.arms[:, 0]

    @property
    def hips(self) -> np.ndarray:
        """(2, 2) picture-left and picture-right."""
        return self.legs[:, 0]


def _by_picture_side(xy: np.ndarray, valid: np.ndarray) -> tuple[tuple, tuple]:
    """ARMS and LEGS with the picture-left limb first, by the shoulders or else by the hips."""
    for limbs in (ARMS, LEGS):
        right, left = limbs[0][0], limbs[1][0]  # the person's
        if valid[right] and valid[left]:
            if xy[right, 0] > xy[left, 0]:  # seen from behind
                return ARMS[::-1], LEGS[::-1]
            break
    return ARMS, LEGS


def _pair(xy: np.ndarray, valid: np.ndarray, joints: list[int]) -> np.ndarray | None:
    return xy[joints] if valid[joints].all() else None


def _size(shoulders: np.ndarray | None, hips: np.ndarray | None) -> float:
    """Mean of what shoulder distance and torso length say.

    Where the person is turned to the side, the first shrinks and the second stays.
    """
    if shoulders is None:
        return float(np.linalg.norm(hips[1] - hips[0])) / HIPS
    width = float(np.linalg.norm(shoulders[1] - shoulders[0]))
    if hips is None:
        return width
    torso = float(np.linalg.norm(hips.mean(axis=0) - shoulders.mean(axis=0)))
    return (width + torso / TORSO) / 2


def _opposite(pair: np.ndarray, width: float, drop: float) -> np.ndarray:
    """The joint pair at the other end of the torso.

    It lies at right angles to the known pair, `drop` below it.
    """
    across = _unit_vector(pair[1] - pair[0])
    centre = pair.mean(axis=0) + drop * np.array([-across[1], across[0]])
    return np.stack([centre - width / 2 * across, centre + width / 2 * across])


def _completed(
    xy: np.ndarray,
    valid: np.ndarray,
    limbs: tuple[tuple[int, int, int], ...],
    roots: np.ndarray,
    down: np.ndarray,
    lengths: tuple[float, float],
) -> np.ndarray:
    """(2, 3, 2) root, middle and end of both limbs.

    A missing joint continues its limb straight, or down the body, at its usual length.
    """
    points = []
    for (_, middle_id, end_id), root in zip(limbs, roots, strict=True):
        if valid[middle_id]:
            middle = xy[middle_id]
        elif valid[end_id]:
            middle = root + (xy[end_id] - root) * lengths[0] / sum(lengths)
        else:
            middle = root + lengths[0] * down
        if valid[end_id]:
            end = xy[end_id]
        else:
            along = middle - root
            end = middle + along * lengths[1] / max(np.linalg.norm(along), 1e-6)
        points.append([root, middle, end])
    return np.array(points)


def _unit_vector(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-6)


class Line:
    """A polyline with a place and a direction at every length along it.

    It goes straight on beyond both ends.
    """

    def __init__(self, points: np.ndarray):
        self.points = np.asarray(points, dtype=float)
        steps = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        self.knots = np.concatenate([[0.0], steps.cumsum()])  # (N,) lengths at which the points lie

    @property
    def length(self) -> float:
        return float(self.knots[-1])

    @property
    def direction(self) -> np.ndarray:
        """(2,) unit vector of the first segment."""
        return _unit_vector(self.points[1] - self.points[0])

    def at(self, length: np.ndarray) -> np.ndarray:
        """(..., 2) points at the given lengths."""
        length = np.asarray(length, dtype=float)
        x = np.interp(length, self.knots, self.points[:, 0])
        y = np.interp(length, self.knots, self.points[:, 1])
        before = np.minimum(length, 0)[..., None] * self.direction
        last = _unit_vector(self.points[-1] - self.points[-2])
        beyond = np.maximum(length - self.length, 0)[..., None] * last
        return np.stack([x, y], axis=-1) + before + beyond

    def normal(self, length: np.ndarray, smooth: float) -> np.ndarray:
        """(..., 2) unit normals, the direction turned by +90 degrees on screen.

        Corners are rounded over +-`smooth` px.
        """
        length = np.asarray(length, dtype=float)
        along = self.at(length + smooth) - self.at(length - smooth)
        along = along / np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-6)
        return np.stack([-along[..., 1], along[..., 0]], axis=-1)
