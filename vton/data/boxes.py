"""Bounding boxes of masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

Size = tuple[int, int]  # height, width


class Box(NamedTuple):
    """A rectangle of pixels. `right` and `bottom` are its last column and row."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns, to index a picture with."""
        return slice(self.top, self.bottom + 1), slice(self.left, self.right + 1)


def bounding_box(mask: np.ndarray | Tensor) -> Box | None:
    """The smallest box around what is set in a mask (H, W); None for an empty mask."""
    rows = _places(mask.any(1))
    columns = _places(mask.any(0))
    if len(rows) == 0:
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))


def _places(line: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Where a mask (N,) is set, in order."""
    return line.nonzero()[:, 0] if isinstance(line, Tensor) else line.nonzero()[0]


def margins(inner: Size, outer: Size) -> tuple[int, int, int, int]:
    """Pixels left, right, above and below a picture in the middle of another.

    An odd pixel goes right and below.
    """
    down = outer[0] - inner[0]
    across = outer[1] - inner[1]
    return across // 2, across - across // 2, down // 2, down - down // 2
