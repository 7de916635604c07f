import math
import re
from xml.etree import ElementTree

import pytest

from vton.report.charts import COLOURS, WHISKER, Point, bars, scatter

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg, kind, colour):
    shapes = ElementTree.fromstring(svg).iter(SVG + kind)
    return [shape for shape in shapes if colour in shape.get("style", "")]


def spans(svg, colour, axis):
    """(lowest, highest) coordinate of every path in this colour.

    axis: 0 is x, to the right; 1 is y, downwards
    """
    ranges = []
    for path in drawn(svg, "path", colour):
        numbers = re.findall(r"-?[\d.]+", path.get("d", ""))[axis::2]
        if numbers:
            coordinates = list(map(float, numbers))
            ranges.append((min(coordinates), max(coordinates)))
    return ranges


def texts(svg):
    shapes = ElementTree.fromstring(svg).iter(SVG + "text")
    return {shape.text: float(shape.get("y")) for shape in shapes}


def test_bars_start_at_zero_and_whiskers_are_one_standard_deviation_each_way():
    points = [Point("a", 4.0, 1.0), Point("b", 2.0), Point("c", -1.0, kind="baseline")]
    panels = {"psnr <dB>": points, "one": [Point("a", 1.0)], "two": [Point("b", 1.0)]}
    svg = bars(panels)
    (zero, a), (b_start, b), *_ = spans(svg, COLOURS["architecture"], 0)
    assert b_start == zero and a - zero == pytest.approx(2 * (b - zero), rel=1e-4)
    assert spans(svg, COLOURS["baseline"], 0) == [
        (pytest.approx(zero - (a - zero) / 4, rel=1e-4), zero)
    ]
    (whisker,) = spans(svg, WHISKER["ecolor"], 0)
    assert whisker == pytest.approx((a - (a - zero) / 4, a + (a - zero) / 4), rel=1e-4)
    assert texts(svg).keys() == {"psnr <dB>", "a", "4 ± 1", "b", "2", "c", "-1", "one", "1", "two"}
    assert texts(svg)["a"] < texts(svg)["b"]  # the first on top
    assert svg == bars(panels)


def test_scatter_is_logarithmic_in_x_and_keeps_names_apart():
    points = [
        Point("slow", 0.5, 0.05, x=10.0),
        Point("mid", 0.50001, x=1.0),
        Point("fast", 0.4, x=0.1),
    ]
    svg = scatter(points, "seconds", "ssim")
    dots = drawn(svg, "use", COLOURS["architecture"])
    slow, mid, fast = ((float(dot.get("x")), float(dot.get("y"))) for dot in dots)
    assert slow[0] - mid[0] == pytest.approx(mid[0] - fast[0], rel=1e-4)
    assert slow[0] > mid[0]
    (whisker,) = spans(svg, WHISKER["ecolor"], 1)
    assert sum(whisker) / 2 == pytest.approx(slow[1], abs=0.01)
    assert whisker[1] - whisker[0] == pytest.approx(fast[1] - slow[1], rel=1e-4)  # both 0.1
    names = texts(svg)
    assert names["slow"] - names["mid"] >= 11 and names["fast"] > names["slow"]
    assert {"0.1", "1", "10", "seconds", "ssim"} <= names.keys()


@pytest.mark.parametrize("x", [(1.0,), (5.0, 5.0), (9.0, 10.0), (1e9, 3e11)])
def test_scatter_has_ticks_however_near_its_points_are(x):
    svg = scatter([Point(f"at {place}", 3.0, math.nan, x=place) for place in x], "x", "y")
    places = texts(svg)
    del places["x"]  # the axis' title
    lowest = max(places.values())
    ticks = [text for text, y in places.items() if y == lowest]
    assert len(ticks) >= 2 and all(float(tick) > 0 for tick in ticks)
    assert len(drawn(svg, "use", COLOURS["architecture"])) == len(x)
