"""Intervals: they are as wide as numbers really vary from one set of pairs to the next."""

import numpy as np
import pytest
import torch
from scipy import stats

from vton.metrics import resampling
from vton.metrics.distributions import (
    FrechetDistance,
    GaussianDistance,
    PolynomialDistance,
    frechet_distance,
)


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_interval_of_a_mean_is_scipys():
    scores = drawn(0, 150).exp()
    deviations = resampling.deviations_of_means(scores)
    low, high = resampling.interval(scores.mean().item(), deviations)
    expected = stats.bootstrap(
        (scores.numpy(),), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.1 * width)
    assert high == pytest.approx(expected.high, abs=0.1 * width)


def test_pairs_without_a_score_are_left_out_of_every_draw():
    scores = drawn(1, 60)
    holes = torch.cat([scores, torch.full((60,), torch.nan, dtype=torch.float64)])
    deviations = resampling.deviations_of_means(holes)
    assert deviations.isfinite().all()
    alone = resampling.deviations_of_means(scores)
    # Half of the pairs of a draw have a score, 60 on average: the spread is nearly that of 60.
    assert deviations.std() == pytest.approx(alone.std().item(), rel=0.2)


DISTANCES = {
    "frechet": FrechetDistance,
    "polynomial": lambda x, y: PolynomialDistance(x, y, 20, 1000, 3, 0),
    "gaussian": GaussianDistance,
}


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("order", ["together", "alone"])
def test_intervals_of_set_distances_are_as_wide_as_the_values_vary(name, order):
    """Over 40 data sets of 80 pictures: the mean estimate against how the distance varies.

    A picture and the person it shows are alike in the first case, as in paired order.
    """
    values, estimates = [], []
    for seed in range(40):
        y = drawn(seed, 80, 12)
        x = 1.3 * (y + 0.5 * drawn(1000 + seed, 80, 12)) + 0.4
        names = [f"{place:03d}" for place in range(80)]
        if order == "alone":
            x = 1.3 * drawn(2000 + seed, 80, 12) + 0.4
        distance = DISTANCES[name](x, y)
        persons = dict(zip(names, names, strict=True)) if order == "together" else {}
        parts, factor = resampling.parts(names, persons, names)
        values.append(distance.value())
        deviations = resampling.deviations_of_distance(distance, parts, factor)
        estimates.append(deviations.std().item())
    assert 0.75 < np.mean(estimates) / np.std(values, ddof=1) < 1.5


@pytest.mark.parametrize("width", [12, 60])  # of more and of fewer pictures than dimensions
def test_a_part_is_the_distance_of_the_parts(width):
    x, y = drawn(0, 50, width) * 2 + 1, drawn(1, 40, width)
    rows, columns = torch.arange(0, 50, 2), torch.arange(10, 40)
    found = FrechetDistance(x, y).part(rows, columns)
    assert found == pytest.approx(frechet_distance(x[rows], y[columns]), rel=1e-9)
    part = GaussianDistance(x, y).part(rows, columns)
    assert part == pytest.approx(GaussianDistance(x[rows], y[columns]).value(), rel=1e-9)


def test_persons_stay_together_with_their_pictures():
    references = [f"p{place}" for place in range(9)]
    pairs = [f"{person}__g{garment}" for person in references for garment in range(2)]
    persons = {pair: pair.partition("__")[0] for pair in pairs}
    parts, factor = resampling.parts(pairs, persons, references)
    assert len(parts) == resampling.PARTS and factor == pytest.approx((4 / 5) ** 0.5)
    for rows, columns in parts:
        shown = {persons[pairs[row]] for row in rows.tolist()}
        assert shown == {references[column] for column in columns.tolist()}
        assert len(columns) == 4 and len(rows) == 8


def test_large_sets_have_subsets_of_bounded_size():
    names = [f"{place:05d}" for place in range(2032)]
    parts, factor = resampling.parts(names, dict(zip(names, names, strict=True)), names)
    size = resampling.LARGEST_PART
    assert {len(rows) for rows, _ in parts} == {size}
    assert factor == pytest.approx((size / (2032 - size)) ** 0.5)


def test_draws_are_the_same_for_every_method_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    x, y = drawn(0, 50), drawn(1, 50)
    difference = resampling.deviations_of_means(x) - resampling.deviations_of_means(y)
    assert torch.allclose(difference, resampling.deviations_of_means(x - y))
    assert torch.equal(torch.get_rng_state(), before)


def test_sources_of_noise_add_up():
    alone = resampling.half_width([(4.0, 199)])
    assert alone == pytest.approx(2 * stats.t.ppf(0.975, 199))
    # One degree of freedom, as of two seeds, says little of a spread.
    assert resampling.half_width([(4.0, 1)]) > 6 * alone
    assert resampling.half_width([]) == resampling.half_width([(0.0, 5)]) == 0


def test_text_keeps_three_digits():
    deviations = drawn(3, 20) * 1e-4
    kept = resampling.from_text(resampling.as_text(deviations))
    assert torch.allclose(kept, deviations, rtol=6e-3, atol=0)
