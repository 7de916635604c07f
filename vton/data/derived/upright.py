"""A garment mask turned upright and cut at its axis of symmetry, so that rows read outwards."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vton.data.boxes import Box, bounding_box
from vton.data.derived import shapes

ROWS = 160  # height at which silhouettes are read; more moves landmarks by less than a pixel of 256
COARSE_ROWS = 64  # height at which the tilt is found
SMALLEST = 8  # px; smaller garments are not read

TILTS = np.arange(-12, 13, 3)  # degrees that are tried
STRAIGHT = 0.95  # share of a mask that its mirror image covers, from which it stands upright
BETTER = 0.02  # what a turned mask must gain in this share: an asymmetric garment is not turned


class Upright:
    """The mask reduced, turned upright and cut at its axis of symmetry.

    full:   (H, W) bool, the garment picture's mask
    mask:   (h, w) bool, the upright mask
    corner, turn: place and matrix that lead from the upright mask back to the garment picture
    axis:   column of the axis in the upright mask
    first:  first column right of the axis
    halves: picture-left and picture-right, each (h, width) read outwards from the axis
    """

    def __init__(
        self, full: np.ndarray, mask: np.ndarray, corner: np.ndarray, turn: np.ndarray, axis: float
    ):
        self.full = full
        self.mask = mask
        self.corner = corner
        self.turn = turn
        self.axis = axis
        self.height = mask.shape[0]
        self.first = int(np.floor(axis)) + 1
        left = mask[:, : self.first][:, ::-1]
        right = mask[:, self.first :]
        width = max(left.shape[1], right.shape[1])
        self.halves = [np.pad(half, [(0, 0), (0, width - half.shape[1])]) for half in (left, right)]

    @classmethod
    def of(cls, mask: np.ndarray) -> Upright | None:
        """mask: (H, W) bool. None where the garment is smaller than 8 pixels."""
        box = bounding_box(mask)
        if box is None or min(box.right - box.left, box.bottom - box.top) < SMALLEST:
            return None
        small, corner, turn = _turned(mask, box, _tilt(mask, box), ROWS)
        _, axis = _symmetry(small)
        return cls(mask, small, corner, turn, axis)

    @property
    def scale(self) -> float:
        """Pixels of the garment picture per pixel of the upright mask."""
        return float(np.linalg.norm(self.turn[:, 0]))

    def place(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) x, y of the upright mask -> x, y of the garment picture."""
        return np.asarray(points, dtype=float) @ self.turn.T + self.corner

    def outline(self, side: int, points: np.ndarray) -> np.ndarray:
        """(..., 2) column and row of a half -> x, y of the garment picture."""
        columns, rows = np.moveaxis(np.asarray(points, dtype=float), -1, 0)
        x = self.first - 1 - columns if side == 0 else self.first + columns
        return self.place(np.stack([x, rows], axis=-1))

    def beyond(self, side: int, cut: list[tuple[float, float]], margin: float) -> np.ndarray:
        """(H, W) bool of the garment picture: further out than the cut.

        cut: columns and rows of a half, down from the shoulder tip. margin: columns by which it is
        moved outwards.
        """
        far = 2.0 * self.mask.shape[1]
        top = -self.height
        bottom = 2 * self.height
        cut = [(column + margin, row) for column, row in cut]
        polygon = [(cut[0][0], top), *cut, (cut[-1][0], bottom), (far, bottom), (far, top)]
        return self._filled(self.outline(side, np.array(polygon)))

    def below(self, row: float, side: int | None = None) -> np.ndarray:
        """(H, W) bool of the garment picture: below a row, on one side of the axis or on both."""
        far = 2.0 * self.mask.shape[1]
        bottom = 2 * self.height
        left = self.axis if side == 1 else -far
        right = self.axis if side == 0 else far
        corners = [(left, row), (right, row), (right, bottom), (left, bottom)]
        return self._filled(self.place(np.array(corners)))

    def _filled(self, polygon: np.ndarray) -> np.ndarray:
        canvas = shapes.Canvas(self.full.shape)
        canvas.polygon(polygon)
        return canvas.mask


def _turned(
    mask: np.ndarray, box: Box, angle: float, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The box's content turned by `angle`, reduced to at most `rows`, cropped to the garment.

    Returns it with the corner and the matrix that lead back to the mask.
    """
    left, top, right, bottom = box
    scale = max(1.0, (bottom - top + 1) / rows)
    cosine = scale * np.cos(angle)
    sine = scale * np.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    half = np.array([right - left, bottom - top]) / 2 / scale + 1
    if angle:
        half = np.full(2, np.hypot(*half) + 1)
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    corner = centre - turn @ half
    shape = tuple(np.ceil(2 * half[::-1]).astype(int) + 1)
    source = mask.astype(np.float32)
    if scale >= 2:
        source = ndimage.uniform_filter(source, round(scale))
    rows_first = turn[::-1, ::-1]
    small = ndimage.affine_transform(
        source, rows_first, offset=corner[::-1], output_shape=shape, order=1
    )
    small = shapes.largest_component(small > 0.5)
    inner = bounding_box(small)
    if inner is None:
        return np.ones((1, 1), bool), corner, turn
    return small[inner.slices], corner + turn @ np.array([inner.left, inner.top]), turn


def _symmetry(mask: np.ndarray) -> tuple[float, float]:
    """(share of the mask that its mirror image covers, column of the mirror axis)."""
    size = 2 * mask.shape[1]
    spectrum = np.fft.rfft(mask.astype(np.float32), size, axis=1)
    # Entry s: pixels x with x and s - x in the mask.
    overlap = np.fft.irfft((spectrum**2).sum(axis=0), size)
    best = int(overlap.argmax())
    return float(overlap[best] / max(mask.sum(), 1)), best / 2


def _tilt(mask: np.ndarray, box: Box) -> float:
    """Angle in radians, of at most 13 degrees, by which the garment is turned.

    It is the one at which the mask is most symmetric.
    """
    straight = _upright_share(mask, box, 0.0)
    if straight > STRAIGHT:
        return 0.0
    scores = np.array([_upright_share(mask, box, np.radians(tilt)) for tilt in TILTS])
    best = int(scores.argmax())
    if scores[best] < straight + BETTER:
        return 0.0
    peak = float(TILTS[best])
    if 0 < best < len(TILTS) - 1:  # vertex of the parabola through the three best
        before, at, after = scores[best - 1 : best + 2]
        peak += 1.5 * (before - after) / min(before - 2 * at + after, -1e-6)
    return float(np.radians(np.clip(peak, -13, 13)))


def _upright_share(mask: np.ndarray, box: Box, angle: float) -> float:
    """The share of the turned mask that its mirror image covers."""
    small, _, _ = _turned(mask, box, angle, COARSE_ROWS)
    share, _ = _symmetry(small)
    return share
