"""Charts as SVG text, drawn by matplotlib: bars with spread, and scatters over a log axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

# By kind of row; the colour-blind can tell them apart. A warp is trained, but nothing is diffused.
COLOURS = {
    "architecture": "#0072b2",
    "control": "#cc79a7",
    "warp": "#009e73",
    "baseline": "#999999",
}
FONT = 9  # points
STYLE = {
    "font.size": FONT,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; a page falls back to its own
    "axes.titlesize": FONT,
    "axes.titleweight": "bold",
    "axes.titley": 1.0,
    "axes.labelweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "svg.fonttype": "none",  # text stays text: sharp, searchable, small
    "svg.hashsalt": "vton",  # the same chart is the same text each time
}
WHISKER = {"ecolor": "#333333", "elinewidth": 1.5}


@dataclass(frozen=True)
class Point:
    """One named value with its standard deviation, which is NaN for one run."""

    label: str
    y: float
    sd: float = math.nan
    kind: str = "architecture"  # a key of COLOURS
    x: float = math.nan  # in a scatter: its place on the x axis


def bars(panels: Mapping[str, Sequence[Point]], columns: int = 2) -> str:
    """A panel of horizontal bars for each title; whiskers are one standard deviation each way.

    columns: panels in a line
    """
    lines = math.ceil(len(panels) / columns)
    longest = max(map(len, panels.values()))
    with matplotlib.rc_context(STYLE):
        size = (6 * columns, lines * (0.25 * longest + 0.6))
        figure = Figure(figsize=size, layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False).flat)
        for title, points in panels.items():
            _draw_bars(axes.pop(0), title, points, longest)
        for unused in axes:
            unused.remove()
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)  # which would lay it out again, and draw it twice
        return _svg(figure)


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Named points over a log x axis (all x > 0); whiskers are one standard deviation of y."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), dpi=72)  # a pixel is a point
        axis = figure.add_subplot(xscale="log", xlabel=x_title, title=y_title)
        for point in points:
            axis.errorbar(point.x, point.y, point.sd, fmt="o", color=COLOURS[point.kind], **WHISKER)
        low, high = axis.get_xlim()
        decades = LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6)
        axis.xaxis.set_major_locator(decades)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid()
        _name_points(axis, points)
        return _svg(figure, "tight")


def _draw_bars(axis: Axes, title: str, points: Sequence[Point], lines: int) -> None:
    """Bars from top to bottom, each with its number at the right; lines: the room for bars."""
    axis.barh(
        range(len(points)),
        [point.y for point in points],
        0.7,
        xerr=[point.sd for point in points],
        color=[COLOURS[point.kind] for point in points],
        error_kw=WHISKER,
    )
    for line, point in enumerate(points):
        number = f"{point.y:.4g}"
        if not math.isnan(point.sd):
            number += f" ± {point.sd:.2g}"
        right = axis.get_yaxis_transform()  # x in parts of the axis, y in lines
        axis.text(1.02, line, number, transform=right, verticalalignment="center")
    axis.set_yticks(range(len(points)), [point.label for point in points])
    axis.set_ylim(lines - 0.5, -0.5)
    axis.set_title(title)
    axis.set_xticks([])


def _name_points(axis: Axes, points: Sequence[Point]) -> None:
    """Write names to the right of points, moved down where they would overlap."""
    lowest = math.inf
    for point in sorted(points, key=lambda point: -point.y):
        _, height = axis.transData.transform((point.x, point.y))
        lowest = min(height, lowest - 1.3 * FONT)
        axis.annotate(
            point.label,
            (point.x, point.y),
            xytext=(FONT, lowest - height),
            textcoords="offset points",
            verticalalignment="center",
        )


def _svg(figure: Figure, box: str | None = None) -> str:
    """The <svg> element alone, to stand in a page.

    box: "tight" makes room for names that leave the figure
    """
    file = StringIO()
    figure.savefig(file, format="svg", bbox_inches=box, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
