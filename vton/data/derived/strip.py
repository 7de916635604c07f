"""Centre line and width of a sleeve or a trouser leg, from its pixels."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import Polynomial

SECTIONS = 6  # cross-sections of a strip, besides its root
PERCENTILES = (3, 97)  # of the places across a slice that count as its edges
INSIDE = 0.94  # share of the width that lies between them


def read_strip(
    pixels: np.ndarray, start: np.ndarray, inner: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre line (N + 1, 2), lengths (N,) of cross-sections and half-widths (N,) there.

    pixels: (M, 2) x, y of a strip that leaves the point `start`. Cross-sections begin where the
    strip is whole, that is past the inner end of its root.
    """
    direction = pixels.mean(axis=0) - start
    direction /= max(np.linalg.norm(direction), 1e-6)
    normal = np.array([-direction[1], direction[0]])
    along = (pixels - start) @ direction
    aside = (pixels - start) @ normal
    off_centre = np.abs(aside - np.median(aside))
    # Corners of a slanted cuff reach further than its middle.
    middle = off_centre <= np.median(off_centre)
    end = max(float(np.percentile(along[middle], 99)), 1.0)
    begin = float(np.clip((inner - start) @ direction, 0.15 * end, 0.8 * end))
    centre, half = _profile(along, aside, begin, end)
    places = np.array([(begin + end) / 2, end])
    if end - begin > half(end):
        places = np.linspace(begin, end, SECTIONS)
    points = start + np.outer(places, direction) + np.outer(centre(places), normal)
    line = np.vstack([start, points])
    lengths = np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()
    return line, lengths, np.maximum(half(places), 1.0)


def _profile(
    along: np.ndarray, aside: np.ndarray, begin: float, end: float
) -> tuple[Polynomial, Polynomial]:
    """Centre and half-width of a strip as functions of the length along it.

    Fitted, because oblique ends and folds make single slices unreliable; a strip about as wide as
    long gets no curve.
    """
    edges = np.linspace(begin, end, SECTIONS + 1)
    slices = np.digitize(along, edges[1:-1])
    slices[along < begin] = -1
    rows = []
    for i in range(SECTIONS):
        inside = aside[slices == i]
        if len(inside) >= 3:
            low, high = np.percentile(inside, PERCENTILES)
            place = (edges[i] + edges[i + 1]) / 2
            rows.append((place, (low + high) / 2, (high - low) / 2 / INSIDE + 0.5))
    if len(rows) < 3:
        half = float(np.percentile(np.abs(aside), 90))
        return Polynomial([0.0]), Polynomial([half])
    if len(rows) > 3:
        rows.pop()  # the open end, which may be oblique
    places, centres, halves = np.array(rows).T
    degree = 2 if end - begin > 3 * halves.mean() else 1
    return Polynomial.fit(places, centres, degree), Polynomial.fit(places, halves, 1)
