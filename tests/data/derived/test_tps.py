"""The thin-plate spline as a function, without garments."""

import numpy as np
import pytest

from vton.data.derived.tps import bilinear, covers, thin_plate_spline

BOX = (3, 5, 83, 65)  # left, top, right, bottom


def grid_of(xs, ys):
    """(len(ys), len(xs), 2) x, y."""
    return np.stack(np.meshgrid(xs, ys), axis=-1).astype(float)


LATTICE = grid_of(np.linspace(5, 80, 5), np.linspace(8, 60, 5)).reshape(-1, 2)


def pixels(box=BOX):
    left, top, right, bottom = box
    return grid_of(np.arange(left, right), np.arange(top, bottom))


def test_points_that_stay_give_the_identity():
    grid = thin_plate_spline(LATTICE, LATTICE, BOX)
    assert grid.shape == (60, 80, 2) and grid.dtype == np.float32
    np.testing.assert_allclose(grid, pixels(), atol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 1e-3, 1.0])
def test_affine_maps_are_reproduced_whatever_the_smoothing(smoothing):
    matrix = np.array([[0.8, -0.3], [0.2, 1.4]])
    shift = np.array([5.0, -7.0])
    grid = thin_plate_spline(LATTICE, LATTICE @ matrix.T + shift, BOX, smoothing=smoothing)
    np.testing.assert_allclose(grid, pixels() @ matrix.T + shift, atol=1e-3)


def test_control_points_are_interpolated_without_smoothing_and_eased_with_it():
    points = np.rint(LATTICE)
    values = points + np.random.default_rng(0).normal(0, 4, points.shape)
    columns, rows = (points - BOX[:2]).astype(int).T
    errors = []
    for smoothing in (0.0, 0.1, 10.0):
        grid = thin_plate_spline(points, values, BOX, smoothing=smoothing, step=1)
        errors.append(np.abs(grid[rows, columns] - values).max())
    assert errors[0] < 1e-3 < errors[1] < errors[2]


def test_the_coarse_grid_is_close_to_every_pixel():
    values = LATTICE + np.random.default_rng(1).normal(0, 3, LATTICE.shape)
    fine = thin_plate_spline(LATTICE, values, BOX, step=1)
    coarse = thin_plate_spline(LATTICE, values, BOX, step=4)
    assert np.abs(fine - coarse).max() < 1 and np.abs(fine - coarse).mean() < 0.1


def test_points_on_one_line_are_refused():
    with pytest.raises(np.linalg.LinAlgError):
        thin_plate_spline(np.array([(0, 0), (1, 1), (2, 2)], float), np.zeros((3, 2)), BOX)


def test_bilinear_reads_pixel_centres_and_blends_between_them():
    image = np.random.default_rng(2).random((7, 9, 3), dtype=np.float32)
    points = np.array([(0, 0), (8, 6), (3, 4), (3.5, 4), (20, 2)])
    picked = bilinear(image, points)
    assert picked.shape == (5, 3) and picked.dtype == np.float32
    expected = [image[0, 0], image[6, 8], image[4, 3], (image[4, 3] + image[4, 4]) / 2, image[2, 8]]
    np.testing.assert_allclose(picked, expected, atol=1e-5)


def test_covers_is_false_outside_of_the_region():
    region = np.zeros((4, 5), bool)
    region[2, 3] = True
    points = np.array([[(3, 2), (2.6, 2.4)], [(2, 3), (-2, 2)], [(3, 40), (8, 2)]])
    assert covers(region, points).tolist() == [[True, True], [False, False], [False, False]]
