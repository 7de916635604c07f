"""An outline redrawn from its dominant points (Teh and Chin, PAMI 1989), as OpenCV's contours are.

A published mask rule keeps only the largest region of its mask, and keeps it as the polygon through
those points, so that its border moves by a few pixels. Here the same is computed without OpenCV:
border following, dominant points by 1-curvature (CHAIN_APPROX_TC89_L1), filling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vton.data.derived import shapes

# Steps x, y of the chain codes 0 to 7: right, then against the clock.
STEPS = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
Pixel = tuple[int, int]  # x, y


@dataclass
class Point:
    """A pixel of an outline."""

    at: Pixel
    curvature: int  # by how many eighths of a turn the outline bends here; 0 = left out
    support: int = 0  # pixels to each side that belong to the bend


def redrawn(mask: np.ndarray) -> np.ndarray:
    """The 8-connected region of a mask (H, W) bool whose dominant points enclose most, as the
    polygon of these points. An empty mask stays empty.
    """
    regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return np.zeros(mask.shape, dtype=bool)
    outlines = [dominant_points(*follow_border(regions == 1 + k)) for k in range(count)]
    corners = max(outlines, key=enclosed)
    drawn = np.zeros(mask.shape, dtype=bool)
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        for x, y in line_pixels(start, end):
            drawn[y, x] = True
    return shapes.fill_holes(drawn)


def enclosed(corners: list[Pixel]) -> float:
    """Area of the polygon through the middles of pixels."""
    x, y = np.array(corners).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def follow_border(region: np.ndarray) -> tuple[list[int], Pixel]:
    """Chain codes around a region's outside, and the pixel where they start: its first, row by row.

    None for a region of one pixel.
    """
    padded = np.pad(region, 1)
    y0, x0 = (int(place) for place in np.argwhere(padded)[0])

    def inside(x: int, y: int, code: int) -> bool:
        return padded[y + STEPS[code][1], x + STEPS[code][0]]

    origin = (x0 - 1, y0 - 1)
    first = next((code for code in (3, 2, 1, 0, 7, 6, 5) if inside(x0, y0, code)), None)
    if first is None:
        return [], origin
    before = (x0 + STEPS[first][0], y0 + STEPS[first][1])  # the pixel that ends the round
    codes = []
    x, y, code = x0, y0, first
    while True:
        code = (code + 1) % 8
        while not inside(x, y, code):
            code = (code + 1) % 8
        codes.append(code)
        following = (x + STEPS[code][0], y + STEPS[code][1])
        if following == (x0, y0) and (x, y) == before:
            return codes, origin
        x, y = following
        code = (code + 4) % 8


def dominant_points(codes: list[int], origin: Pixel) -> list[Pixel]:
    """The pixels that the outline with these chain codes is redrawn from."""
    if not codes:
        return [origin]
    points = []
    x, y = origin
    for place, code in enumerate(codes):
        turn = abs(code - codes[place - 1])
        points.append(Point((x, y), min(turn, 8 - turn)))
        x, y = x + STEPS[code][0], y + STEPS[code][1]
    kept = [place for place, point in enumerate(points) if point.curvature]
    for place in kept:
        points[place].support = support_of(points, place)
    kept = [place for place in kept if not _below_a_neighbour(points, place)]
    kept = [place for place in kept if not _weak(points, place)]
    return [points[place].at for place in _one_of_each_couple(points, kept)]


def support_of(points: list[Point], place: int) -> int:
    """How far the bend at a pixel reaches.

    It grows while the chord between its ends does, and while the pixel's distance from the chord
    grows relative to it.
    """
    x, y = points[place].at
    length = distance = 0
    reach = 1
    while True:
        x1, y1 = points[place - reach].at
        x2, y2 = points[(place + reach) % len(points)].at
        dx, dy = x2 - x1, y2 - y1
        chord = dx * dx + dy * dy
        away = (x - x1) * dy - (y - y1) * dx
        falls = distance * chord - away * length
        if reach > 1 and (
            length >= chord or (distance > 0 and falls <= 0) or (distance < 0 and falls >= 0)
        ):
            return reach - 1
        length, distance = chord, away
        reach += 1


def _below_a_neighbour(points: list[Point], place: int) -> bool:
    """Whether a pixel within half the support bends more. The pixel is cleared then."""
    point = points[place]
    for reach in range(1, point.support // 2 + 1):
        for other in (points[place - reach], points[(place + reach) % len(points)]):
            if other.curvature > point.curvature:
                point.curvature = 0
                return True
    return False


def _weak(points: list[Point], place: int) -> bool:
    """Whether a bend of one pixel is no sharper than one beside it. The pixel is cleared then."""
    point = points[place]
    beside = (points[place - 1], points[(place + 1) % len(points)])
    if point.support == 1 and any(point.curvature <= other.curvature for other in beside):
        point.curvature = 0
        return True
    return False


def _one_of_each_couple(points: list[Point], kept: list[int]) -> list[int]:
    """Thin out neighbouring points: keep the sharper one of two, the first and the last of more."""
    runs: list[list[int]] = []
    for place in kept:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    if len(runs) > 1 and runs[0][0] == 0 and runs[-1][-1] == len(points) - 1:
        runs[0] = runs.pop() + runs[0]
    chosen = []
    for run in runs:
        if len(run) == 2:
            first, second = points[run[0]], points[run[1]]
            sharper = first.curvature > second.curvature
            as_sharp = first.curvature == second.curvature and first.support <= second.support
            chosen.append(run[0] if sharper or as_sharp else run[1])
        else:
            chosen += run if len(run) == 1 else [run[0], run[-1]]
    return sorted(chosen)


def line_pixels(start: Pixel, end: Pixel) -> list[Pixel]:
    """Bresenham's line between two pixels, always drawn from left to right."""
    (x, y), (x2, y2) = sorted((start, end), key=lambda pixel: pixel[0])
    if start[0] == end[0]:
        (x, y), (x2, y2) = start, end
    dx, dy, down = x2 - x, abs(y2 - y), 1 if y2 >= y else -1
    steep = dy > dx
    long, short = (dy, dx) if steep else (dx, dy)
    error = long - 2 * short
    pixels = [(x, y)]
    for _ in range(long):
        both = error < 0
        error += 2 * (long * both - short)
        if steep:
            x, y = x + both, y + down
        else:
            x, y = x + 1, y + down * both
        pixels.append((int(x), int(y)))
    return pixels
