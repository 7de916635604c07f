"""Smooth functions of one variable, tabulated because silhouettes are read millions of times."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator

_ENTRIES = 4096


class Profile:
    """f(x) on [low, high], constant beyond.

    Looked up at the nearest of 4096 entries: a step is below 0.1 % of the range, a fraction of a
    pixel at 768x1024.
    """

    def __init__(self, low: float, high: float, table: np.ndarray):
        self.low = np.float32(low)
        self.high = high
        self.table = np.ascontiguousarray(table, np.float32)
        self.scale = np.float32((len(table) - 1) / (high - low))

    @classmethod
    def through(cls, points: list[tuple[float, float]]) -> Profile:
        """Monotone cubic through the given (x, f) points."""
        x, f = np.array(points, float).T
        grid = np.linspace(x[0], x[-1], _ENTRIES)
        return cls(x[0], x[-1], PchipInterpolator(x, f)(grid))

    @classmethod
    def of(cls, function, low: float, high: float) -> Profile:
        """`function` of an array, tabulated on [low, high]."""
        return cls(low, high, function(np.linspace(low, high, _ENTRIES)))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        # Adding 0.5 before truncation rounds, and `clip` repeats the end values.
        place = (x - self.low) * self.scale + np.float32(0.5)
        return self.table.take(place.astype(np.int32), mode="clip")
