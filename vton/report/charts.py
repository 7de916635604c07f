"""Charts as SVG text, drawn by matplotlib: bars with spread, and scatters over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

# Of what is measured, told apart by the colour-blind too. A warp is a trained one that nothing is
# diffused from.
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
    """One named value: its mean, its standard deviation (NaN: one run) and, in a scatter, its place
    on the x axis.
    """

    label: str
    y: float
    sd: float = math.nan
    kind: str = "architecture"  # a key of COLOURS
    x: float = math.nan


def bars(panels: Mapping[str, Sequence[Point]], columns: int = 2) -> str:
    """A panel of horizontal bars for each title, `columns` a line; whiskers are one standard
    deviation each way.
    """
    rows, longest = -(-len(panels) // columns), max(len(points) for points in panels.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6 * columns, rows * (0.25 * longest + 0.6)), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for axis, (title, points) in zip(
            axes, panels.items(), strict=False
        ):  # the last line may have room
            labels, values, spreads, kinds = zip(
                *((p.label, p.y, p.sd, p.kind) for p in points), strict=True
            )
            lines, colours = range(len(points)), [COLOURS[kind] for kind in kinds]
            axis.barh(lines, values, 0.7, xerr=spreads, color=colours, error_kw=WHISKER)
            axis.set_yticks(lines, labels)
            axis.set_ylim(longest - 0.5, -0.5)
            axis.set_title(title)
            axis.set_xticks([])
            for line, point in enumerate(points):
                number = f"{point.y:.4g}" + ("" if math.isnan(point.sd) else f" ± {point.sd:.2g}")
                axis.text(
                    1.02,
                    line,
                    number,
                    transform=axis.get_yaxis_transform(),
                    verticalalignment="center",
                )
        for axis in axes[len(panels) :]:
            axis.remove()
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)  # which would lay it out again, and draw it twice
        return _svg(figure)


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Named points over a logarithmic x axis (all x > 0); a whisker is one standard deviation of y
    each way.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), dpi=72)  # a pixel is a point
        axis = figure.add_subplot(xscale="log", xlabel=x_title, title=y_title)
        for point in points:
            axis.errorbar(point.x, point.y, point.sd, fmt="o", color=COLOURS[point.kind], **WHISKER)
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6)
        )
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid()
        lowest = math.inf
        for point in sorted(points, key=lambda point: -point.y):
            _, height = axis.transData.transform((point.x, point.y))
            lowest = min(height, lowest - 1.3 * FONT)  # names of near points are moved apart
            away = (FONT, lowest - height)
            axis.annotate(
                point.label,
                (point.x, point.y),
                away,
                textcoords="offset points",
                verticalalignment="center",
            )
        return _svg(figure, "tight")


def _svg(figure: Figure, box: str | None = None) -> str:
    """The <svg> element alone, to stand in a page; box "tight" makes room for names that leave the
    figure.
    """
    file = StringIO()
    figure.savefig(file, format="svg", bbox_inches=box, metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]
