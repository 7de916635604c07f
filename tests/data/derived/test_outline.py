"""Outlines redrawn from dominant points. Whole masks are held against OpenCV's in vectors/leffa."""

import numpy as np
import pytest

from vton.data.derived.outline import dominant_points, follow_border, line_pixels, redrawn


def drawn(text):
    return np.array([[cell == "#" for cell in row] for row in text.split()])


def test_a_border_is_followed_once_around_from_its_first_pixel():
    codes, origin = follow_border(drawn(".... .##. .##. ...."))
    assert origin == (1, 1)
    assert codes == [6, 0, 2, 4]  # down, right, up, left
    codes, origin = follow_border(drawn("... .#. ..."))
    assert (codes, origin) == ([], (1, 1))
    codes, origin = follow_border(drawn("##..."))  # there and back
    assert codes == [0, 4]


def test_a_rectangle_is_its_corners():
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:15, 5:25] = True
    codes, origin = follow_border(mask)
    assert set(dominant_points(codes, origin)) == {(5, 3), (5, 14), (24, 14), (24, 3)}
    assert np.array_equal(redrawn(mask), mask)


def test_only_the_largest_region_stays_and_its_holes_are_filled():
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:15, 5:25] = True
    whole = mask.copy()
    mask[8, 10] = False
    mask[17:19, 2:4] = True
    assert np.array_equal(redrawn(mask), whole)
    assert not redrawn(np.zeros((5, 5), dtype=bool)).any()
    point = np.zeros((5, 5), dtype=bool)
    point[2, 3] = True
    assert np.array_equal(redrawn(point), point)


def test_what_the_outline_encloses_decides_which_region_is_the_largest():
    """As cv2.contourArea: 39 x 39 for the square of 1,600 px, 3 x 419 for the strip of 1,680."""
    mask = np.zeros((60, 440), dtype=bool)
    mask[2:42, 10:50] = True
    square = mask.copy()
    mask[50:54, 10:430] = True
    assert np.array_equal(redrawn(mask), square)


def test_a_disc_moves_at_its_rim_alone():
    y, x = np.mgrid[:80, :80]
    distance = np.hypot(x - 40, y - 40)
    changed = redrawn(distance <= 30) != (distance <= 30)
    assert 0 < changed.sum() < 150
    assert (abs(distance[changed] - 30) < 3).all()


@pytest.mark.parametrize(
    ("end", "middle"), [((8, 4), (4, 2)), ((4, 8), (2, 4)), ((8, -4), (4, -2))]
)
def test_lines_go_from_end_to_end(end, middle):
    pixels = line_pixels((0, 0), end)
    assert {(0, 0), end, middle} <= set(pixels) and len(pixels) == 9
    assert set(line_pixels(end, (0, 0))) == set(pixels)
