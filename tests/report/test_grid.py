import numpy as np
import pytest
from PIL import Image

from tests.batches import random_batch
from vton.metrics.pictures import to_uint8
from vton.report.grid import LEAST_HEIGHT, MARGIN, picture_grid, try_on_grid


def solid(colour, size=(300, 400)):
    return Image.new("RGB", size, colour)


def test_pictures_stand_in_their_row_and_column_below_titles():
    grid = picture_grid(
        [[solid("red"), solid("green")], [solid("blue"), solid("black")]], ["a", "b"]
    )
    assert grid.size == (2 * 306 + MARGIN, 32 + 2 * 406)
    assert grid.getpixel((MARGIN + 150, 32 + 200)) == (255, 0, 0)
    assert grid.getpixel((MARGIN + 306 + 150, 32 + 200)) == (0, 128, 0)
    assert grid.getpixel((MARGIN + 150, 32 + 406 + 200)) == (0, 0, 255)
    header = np.asarray(grid)[:32]
    assert header.min() < 128  # the titles' ink


def test_small_pictures_are_enlarged_by_a_whole_factor_and_long_titles_fit():
    titles = ["baseline/geometric_warp and more", "baseline/geometric_warp and less"]
    grid = picture_grid([[solid("red", (96, 128)), solid("red", (96, 128))]], titles)
    assert grid.size == (2 * (192 + MARGIN) + MARGIN, 32 + LEAST_HEIGHT + MARGIN)
    between = np.asarray(grid)[:32, MARGIN + 192 : MARGIN + 192 + MARGIN]
    assert (between == 255).all()  # no title runs into its neighbour


def test_uneven_rows_and_sizes_are_refused():
    with pytest.raises(ValueError, match="2 titles, but rows of"):
        picture_grid([[solid("red")]], ["a", "b"])
    with pytest.raises(ValueError, match="one size"):
        picture_grid([[solid("red"), solid("red", (3, 4))]], ["a", "b"])
    with pytest.raises(ValueError, match="rows of"):
        picture_grid([], ["a"])


def test_try_on_grid_shows_the_truth_only_where_it_is_not_the_person():
    batch = random_batch(2, size=(256, 192))
    paired = try_on_grid(batch, batch.garment, batch.person, titles=("one", "two"))
    assert paired.shape == (32 + 2 * 262, 5 * 198 + MARGIN, 3)
    assert paired.dtype == np.uint8
    batch.order = ["unpaired"] * 2
    unpaired = try_on_grid(batch, batch.person)
    assert unpaired.shape[1] == 5 * 198 + MARGIN
    last = unpaired[32:288, -198:-MARGIN]
    assert np.array_equal(last, to_uint8(batch.truth)[0].permute(1, 2, 0).numpy())
    batch.truth = None
    assert try_on_grid(batch, batch.person).shape[1] == 4 * 198 + MARGIN
