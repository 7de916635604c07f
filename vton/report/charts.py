"""Charts as SVG text: bars with spread, and scatters. They need no plotting package and stay sharp in every browser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = {"architecture": "#0072b2", "control": "#cc79a7", "baseline": "#999999"}  # told apart by the colour-blind too
INK, LINES, FONT = "#333333", "#dddddd", 12
BAR, LABEL, NUMBER, PLOT = 20, 170, 110, 260  # px: height of a bar's line, width of names, of numbers, of the bars


@dataclass(frozen=True)
class Point:
    """One named value: its mean, its standard deviation (NaN: one run) and, in a scatter, its place on the x axis."""

    label: str
    y: float
    sd: float = math.nan
    kind: str = "architecture"  # a key of COLOURS
    x: float = math.nan


def bars(panels: Mapping[str, Sequence[Point]], columns: int = 2) -> str:
    """A panel of horizontal bars for each title, `columns` a line; whiskers are one standard deviation each way."""
    wide = LABEL + PLOT + NUMBER
    tall = 2 * FONT + BAR * max((len(points) for points in panels.values()), default=0) + FONT
    shapes = []
    for index, (title, points) in enumerate(panels.items()):
        left, top = index % columns * wide, index // columns * tall
        shapes.append(_text(left + LABEL, top + FONT, title, weight="bold"))
        ends = [point.y + (0 if math.isnan(point.sd) else side * point.sd) for point in points for side in (-1, 1)]
        low, high = min(0.0, *ends), max(0.0, *ends)
        scale = PLOT / (high - low or 1)
        for line, point in enumerate(points):
            middle = top + 2 * FONT + BAR * (line + 0.5)
            start, end = (left + LABEL + (value - low) * scale for value in sorted((0.0, point.y)))
            shapes.append(_text(left + LABEL - 6, middle, point.label, anchor="end"))
            shapes.append(
                f'<rect x="{start:.1f}" y="{middle - BAR * 0.35:.1f}" width="{end - start:.1f}" '
                f'height="{BAR * 0.7:.1f}" fill="{COLOURS[point.kind]}"/>'
            )
            shapes += _whisker(left + LABEL + (point.y - low) * scale, middle, point.sd * scale, across=True)
            spread = "" if math.isnan(point.sd) else f" ± {point.sd:.2g}"
            shapes.append(_text(left + LABEL + PLOT + 6, middle, f"{point.y:.4g}{spread}"))
    rows = -(-len(panels) // columns)
    return _svg(min(columns, len(panels)) * wide, rows * tall, shapes)


def scatter(points: Sequence[Point], x_title: str, y_title: str, width: int = 560, height: int = 320) -> str:
    """Named points over a logarithmic x axis (all x > 0); a whisker is one standard deviation of y each way."""
    left, right, top, bottom = 70, width - 150, 20, height - 50
    places = [math.log10(point.x) for point in points]
    x_low, x_high = math.floor(min(places) * 2) / 2, math.ceil(max(places) * 2) / 2
    x_high += 0.5 * (x_high == x_low)
    sides = [point.y + (0 if math.isnan(point.sd) else side * point.sd) for point in points for side in (-1, 1)]
    ticks = _ticks(min(sides), max(sides))
    y_low, y_high = ticks[0], ticks[-1]

    def at(place: float, y: float) -> tuple[float, float]:
        return (
            left + (place - x_low) / (x_high - x_low) * (right - left),
            bottom - (y - y_low) / (y_high - y_low) * (bottom - top),
        )

    shapes = []
    for tick in ticks:
        _, y = at(x_low, tick)
        shapes.append(f'<path d="M{left} {y:.1f}H{right}" stroke="{LINES}"/>')
        shapes.append(_text(left - 8, y, f"{tick:.6g}", anchor="end"))
    for half in range(round(x_low * 2), round(x_high * 2) + 1):
        x, _ = at(half / 2, y_low)
        shapes.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="{LINES}"/>')
        shapes.append(_text(x, bottom + FONT + 2, f"{10 ** (half / 2):.2g}", anchor="middle"))
    shapes.append(_text((left + right) / 2, height - 10, x_title, anchor="middle", weight="bold"))
    shapes.append(_text(left, top - FONT, y_title, weight="bold"))
    lowest_label = -math.inf
    for place, point in sorted(zip(places, points, strict=True), key=lambda item: -item[1].y):
        x, y = at(place, point.y)
        shapes += _whisker(x, y, point.sd / (y_high - y_low) * (bottom - top), across=False)
        shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLOURS[point.kind]}"/>')
        lowest_label = max(y, lowest_label + FONT + 2)  # names of near points are moved apart
        shapes.append(_text(x + 9, lowest_label, point.label))
    return _svg(width, height, shapes)


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values that enclose low and high, about `wanted` of them."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * wanted >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * index for index in range(first, max(last, first + 1) + 1)]


def _whisker(x: float, y: float, half: float, across: bool) -> list[str]:
    if math.isnan(half):
        return []
    move = f"M{x - half:.1f} {y:.1f}H{x + half:.1f}" if across else f"M{x:.1f} {y - half:.1f}V{y + half:.1f}"
    return [f'<path d="{move}" stroke="{INK}" stroke-width="2"/>']


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" dominant-baseline="central">'
        f"{escape(text)}</text>"
    )


def _svg(width: float, height: float, shapes: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="{FONT}" fill="{INK}">'
        f'<rect width="{width}" height="{height}" fill="white"/>{"".join(shapes)}</svg>'
    )
