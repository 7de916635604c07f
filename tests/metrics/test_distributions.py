import random

import numpy as np
import pytest
import torch
from cleanfid import fid as clean_fid
from scipy import linalg
from torchmetrics.image.fid import _compute_fid

from vton.metrics.distributions import frechet_distance, kernel_distance


def features(count: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + shift


def kid_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


# More samples than dimensions, mixed, fewer.
@pytest.mark.parametrize(("n", "m"), [(100, 80), (40, 12), (13, 11)])
def test_frechet_agrees_with_the_matrix_square_root(n, m):
    x, y = features(n, 16, seed=0), features(m, 16, seed=1, shift=0.3)
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = linalg.sqrtm(a @ b + 0j)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(a + b - 2 * root).real
    # sqrtm itself loses half the digits on singular products
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6 if min(n, m) > 16 else 1e-4)
    theirs = _compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item()
    assert frechet_distance(x, y) == pytest.approx(theirs, rel=1e-4)


def test_frechet_of_a_set_and_itself_is_zero_and_grows_with_distance():
    x = features(30, 64, seed=0).float()
    assert frechet_distance(x, x) < 1e-6
    distances = [frechet_distance(x, x + shift) for shift in (0.1, 0.2, 0.4)]
    assert distances == pytest.approx([64 * shift**2 for shift in (0.1, 0.2, 0.4)], rel=1e-4)


def test_kid_agrees_with_its_definition():
    x, y = features(9, 6, seed=0), features(9, 6, seed=1, shift=0.5)
    value = kernel_distance(x, y, subsets=5, size=100, degree=3, seed=0)
    assert value == pytest.approx(kid_by_definition(x.numpy(), y.numpy()), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(100, 80), (40, 40)])
def test_both_are_those_of_clean_fid(n, m):
    """1e-6 relative for FID: their matrix square root is iterative. 1e-9 for KID, whose subset is
    here everything.
    """
    x, y = features(n, 12, seed=0), features(m, 12, seed=1, shift=0.3)
    moments = []
    for sample in (x.numpy(), y.numpy()):
        moments += [sample.mean(0), np.cov(sample, rowvar=False)]
    assert frechet_distance(x, y) == pytest.approx(clean_fid.frechet_distance(*moments), rel=1e-6)
    x, y = x[: min(n, m)], y[: min(n, m)]
    expected = clean_fid.kernel_distance(x.numpy(), y.numpy(), num_subsets=1)
    assert kernel_distance(x, y, subsets=1, size=1000, degree=3, seed=0) == pytest.approx(
        expected, rel=1e-9
    )


def test_kid_subsets_are_drawn_from_a_seed_of_their_own():
    x, y = features(20, 6, seed=0), features(15, 6, seed=1, shift=0.5)

    def draw(seed):
        return kernel_distance(x, y, subsets=3, size=8, degree=3, seed=seed)

    generator = torch.Generator().manual_seed(7)
    expected = []
    for _ in range(3):
        rows, columns = (torch.randperm(n, generator=generator)[:8] for n in (20, 15))
        expected.append(kid_by_definition(x[rows].numpy(), y[columns].numpy()))
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    assert draw(7) == pytest.approx(np.mean(expected), rel=1e-10)
    assert draw(7) == draw(7) != draw(8)
    after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_kid_is_unbiased_where_frechet_is_not():
    """Few samples of one distribution: KID's mean is about 0, FID is far above it."""
    kid = [kernel_distance(features(20, 32, 5)[:10], features(20, 32, 5)[10:], 1, 1000, 3, 0)]
    for seed in range(40):
        pool = torch.randn(
            20, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        kid.append(kernel_distance(pool[:10], pool[10:], 1, 1000, 3, 0))
    assert abs(np.mean(kid[1:])) < 3 * np.std(kid[1:]) / 40**0.5
    assert frechet_distance(pool[:10], pool[10:]) > 10
