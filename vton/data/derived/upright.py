"""A garment mask turned upright by its mirror symmetry and cut at the axis, for reading rows from
the axis outwards.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vton.data.derived import shapes

ROWS = 160  # height at which silhouettes are read; more moves landmarks by less than a pixel of 256


class Upright:
    """The mask reduced, turned upright and cut at its axis of symmetry; `place` leads back to the
    garment picture.
    """

    def __init__(
        self, full: np.ndarray, mask: np.ndarray, corner: np.ndarray, turn: np.ndarray, axis: float
    ):
        self.full, self.mask, self.corner, self.turn, self.axis = full, mask, corner, turn, axis
        self.height = mask.shape[0]
        self.first = first = int(np.floor(axis)) + 1  # first column right of the axis
        width = max(first, mask.shape[1] - first)
        left, right = mask[:, :first][:, ::-1], mask[:, first:]
        # (H, width) halves read outwards from the axis
        self.halves = [np.pad(half, [(0, 0), (0, width - half.shape[1])]) for half in (left, right)]

    @classmethod
    def of(cls, mask: np.ndarray) -> Upright | None:
        """mask: (H, W) bool. None where the garment is smaller than 8 pixels."""
        box = shapes.bounding_box(mask)
        if box is None or min(box[2] - box[0], box[3] - box[1]) < 8:
            return None
        angle = _tilt(mask, box)
        small, corner, turn = _turned(mask, box, angle, ROWS)
        return cls(mask, small, corner, turn, _symmetry(small)[1])

    def place(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) x, y of the upright mask -> x, y of the garment picture."""
        return np.asarray(points, dtype=float) @ self.turn.T + self.corner

    def outline(self, side: int, points: np.ndarray) -> np.ndarray:
        """(..., 2) column and row of a half -> x, y of the garment picture."""
        columns, rows = np.moveaxis(np.asarray(points, dtype=float), -1, 0)
        return self.place(
            np.stack(
                [self.first - 1 - columns if side == 0 else self.first + columns, rows], axis=-1
            )
        )

    def beyond(self, side: int, cut: list[tuple[float, float]], margin: float) -> np.ndarray:
        """(H, W) bool of the garment picture: further out than the cut, which runs down from the
        shoulder tip.

        cut: columns and rows of a half; margin: columns by which it is moved outwards.
        """
        far, top, bottom = 2.0 * self.mask.shape[1], -self.height, 2 * self.height
        cut = [(column + margin, row) for column, row in cut]
        polygon = [(cut[0][0], top), *cut, (cut[-1][0], bottom), (far, bottom), (far, top)]
        return self._polygon(self.outline(side, np.array(polygon)))

    def below(self, row: float, side: int | None = None) -> np.ndarray:
        """(H, W) bool of the garment picture: below a row, on one side of the axis or on both."""
        far, bottom = 2.0 * self.mask.shape[1], 2 * self.height
        left = self.axis if side == 1 else -far
        right = self.axis if side == 0 else far
        return self._polygon(
            self.place(np.array([(left, row), (right, row), (right, bottom), (left, bottom)]))
        )

    def _polygon(self, points: np.ndarray) -> np.ndarray:
        drawing = shapes.Drawing(self.full.shape)
        drawing.polygon(points)
        return drawing.mask

    @property
    def scale(self) -> float:
        """Pixels of the garment picture per pixel of the upright mask."""
        return float(np.linalg.norm(self.turn[:, 0]))


def _turned(mask, box, angle: float, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The box's content turned by `angle`, reduced and cropped to the garment; corner and matrix
    that lead back.
    """
    left, top, right, bottom = box
    scale = max(1.0, (bottom - top + 1) / rows)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    half = np.array([right - left, bottom - top]) / 2 / scale + 1
    if angle:
        half = np.full(2, np.hypot(*half) + 1)
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    corner = centre - turn @ half
    shape = tuple(np.ceil(2 * half[::-1]).astype(int) + 1)
    source = (
        ndimage.uniform_filter(mask.astype(np.float32), round(scale))
        if scale >= 2
        else mask.astype(np.float32)
    )
    matrix = turn[::-1, ::-1]  # rows first
    small = (
        ndimage.affine_transform(source, matrix, offset=corner[::-1], output_shape=shape, order=1)
        > 0.5
    )
    small = shapes.largest_component(small)
    inner = shapes.bounding_box(small)
    if inner is None:
        return np.ones((1, 1), bool), corner, turn
    small = small[inner[1] : inner[3] + 1, inner[0] : inner[2] + 1]
    return small, corner + turn @ np.array(inner[:2]), turn


def _symmetry(mask: np.ndarray) -> tuple[float, float]:
    """(share of the mask that its mirror image covers, column of the mirror axis)."""
    size = 2 * mask.shape[1]
    spectrum = np.fft.rfft(mask.astype(np.float32), size, axis=1)
    overlap = np.fft.irfft(
        (spectrum**2).sum(axis=0), size
    )  # entry s: pixels x with x and s - x in the mask
    best = int(overlap.argmax())
    return float(overlap[best] / max(mask.sum(), 1)), best / 2


def _tilt(mask: np.ndarray, box) -> float:
    """Angle in radians by which the garment is turned, up to 12 degrees, from its mirror symmetry."""
    straight = _symmetry(_turned(mask, box, 0.0, 64)[0])[0]
    if straight > 0.95:
        return 0.0
    angles = np.arange(-12, 13, 3)
    scores = np.array(
        [_symmetry(_turned(mask, box, np.radians(angle), 64)[0])[0] for angle in angles]
    )
    best = int(scores.argmax())
    if scores[best] < straight + 0.02:  # an asymmetric garment is not a turned one
        return 0.0
    peak = float(angles[best])
    if 0 < best < len(angles) - 1:  # vertex of the parabola through the three best
        before, at, after = scores[best - 1 : best + 2]
        peak += 1.5 * (before - after) / min(before - 2 * at + after, -1e-6)
    return float(np.radians(np.clip(peak, -13, 13)))
