import math
from xml.etree import ElementTree

import pytest

from vton.report.charts import Point, bars, scatter

SVG = "{http://www.w3.org/2000/svg}"


def shapes(svg, kind):
    return ElementTree.fromstring(svg).findall(f"{SVG}{kind}")


def number(shape, name):
    return float(shape.get(name))


def test_bars_start_at_zero_and_whiskers_are_one_standard_deviation_each_way():
    svg = bars({"psnr <dB>": [Point("a", 4.0, 1.0), Point("b", 2.0), Point("c", -1.0, kind="baseline")]})
    paper, a, b, c = shapes(svg, "rect")
    assert number(a, "width") / number(b, "width") == pytest.approx(2, rel=1e-3)
    assert number(c, "x") + number(c, "width") == pytest.approx(number(a, "x"), abs=0.11)  # left of zero
    (whisker,) = shapes(svg, "path")
    start, end = (float(part) for part in whisker.get("d").replace("M", "").replace("H", " ").split()[::2])
    assert end - start == pytest.approx(number(a, "width") / 2, abs=0.2)
    told = [text.text for text in shapes(svg, "text")]
    assert told == ["psnr <dB>", "a", "4 ± 1", "b", "2", "c", "-1"]
    assert all(number(bar, "x") + number(bar, "width") <= number(paper, "width") for bar in (a, b, c))


def test_scatter_is_logarithmic_in_x_and_keeps_names_apart():
    points = [Point("slow", 0.5, 0.05, x=10.0), Point("mid", 0.50001, x=1.0), Point("fast", 0.4, x=0.1)]
    svg = scatter(points, "seconds", "ssim")
    mid, slow, fast = shapes(svg, "circle")  # from above
    steps = [number(one, "cx") - number(other, "cx") for one, other in ((slow, mid), (mid, fast))]
    assert steps[0] == pytest.approx(steps[1], abs=0.2) and steps[0] > 0
    assert number(fast, "cy") > number(mid, "cy")
    names = {text.text: number(text, "y") for text in shapes(svg, "text")}
    assert names["slow"] - names["mid"] >= 14
    assert {"0.1", "1", "10", "seconds", "ssim"} <= names.keys()


@pytest.mark.parametrize("points", [[Point("one", 0.0, x=1.0)], [Point("one", 3.0, math.nan, x=5.0)] * 2])
def test_scatter_of_equal_points_is_drawn(points):
    assert len(shapes(scatter(points, "x", "y"), "circle")) == len(points)
