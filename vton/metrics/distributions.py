"""Distances between two sets of features: Frechet (FID, FD-DINOv2) and kernel (KID, CMMD).

They are computed in float64 and leave the global random state alone. All are biased or noisy for
small sets (FID upwards, the more so below 2048 samples): compare only at equal n and with the same
reference set.
"""
# Shapes: N, M samples of the two sets, D width of a feature

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel


def frechet_distance(x_ND: Tensor, y_MD: Tensor) -> float:
    """Frechet distance of two Gaussians fitted to the sets (Heusel et al. 2017, Eq. 6).

        |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))

    With S_x = A'A and S_y = B'B the last trace is the sum of the singular values of AB', exact also
    where the covariances are singular (fewer samples than dimensions) and far smaller than D x D
    there. Needs N, M >= 2.
    """
    x = x_ND.double()
    y = y_MD.double()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    a = _factor(x)
    b = _factor(y)
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(shift + a.square().sum() + b.square().sum() - 2 * cross))


def _factor(x_ND: Tensor) -> Tensor:
    """A with A'A = the unbiased covariance, in min(N, D) rows."""
    centred = (x_ND - x_ND.mean(0)) / (len(x_ND) - 1) ** 0.5
    if len(centred) > centred.shape[1]:
        return torch.linalg.qr(centred, mode="r").R
    return centred


def kernel_distance(
    x_ND: Tensor, y_MD: Tensor, subsets: int, size: int, degree: int, seed: int
) -> float:
    """`PolynomialDistance` of two sets as a number, for callers that need no parts of them."""
    return PolynomialDistance(x_ND, y_MD, subsets, size, degree, seed).value()


class SetDistance(Protocol):
    """A distance of two sets, as a whole and of parts of them.

    Rows (of x) and columns (of y) are places, int64; a part has at least two of each.
    """

    def value(self) -> float: ...

    def part(self, rows: Tensor, columns: Tensor) -> float: ...


class FrechetDistance:
    """`frechet_distance` of two sets."""

    def __init__(self, x_ND: Tensor, y_MD: Tensor):
        self.x = x_ND.double()
        self.y = y_MD.double()

    def value(self) -> float:
        return frechet_distance(self.x, self.y)

    def part(self, rows: Tensor, columns: Tensor) -> float:
        """As `frechet_distance` of the parts, from products that all parts share.

        With G the products of two sets, |m_x - m_y|^2 and the traces are means of G's blocks, and
        AB' is the block between the sets, centred along both axes. A part of few pictures takes a
        tenth of the time.
        """
        within_x, within_y, between = self._products
        xx = within_x[rows][:, rows]
        yy = within_y[columns][:, columns]
        xy = between[rows][:, columns]
        shift = xx.mean() + yy.mean() - 2 * xy.mean()
        n, m = xy.shape
        variance_x = (xx.trace() - n * xx.mean()) / (n - 1)
        variance_y = (yy.trace() - m * yy.mean()) / (m - 1)
        centred = xy - xy.mean(0, keepdim=True) - xy.mean(1, keepdim=True) + xy.mean()
        cross = torch.linalg.svdvals(centred).sum() / ((n - 1) * (m - 1)) ** 0.5
        return max(0.0, float(shift + variance_x + variance_y - 2 * cross))

    @cached_property
    def _products(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x @ self.x.T, self.y @ self.y.T, self.x @ self.y.T


class PolynomialDistance:
    """Kernel distance of two sets, unscaled (Binkowski et al. 2018).

    The mean over random subsets of the unbiased squared MMD with kernel (x.y / D + 1)^degree.

    Subsets are drawn by position, so the order of rows must not depend on batches or processes.
    Where a subset would hold every sample of both sets, all subsets are the same one, and it is
    computed once. The three kernel matrices are computed once (N = M = 5,400: 0.7 GB); every subset
    is a part of them. Needs N, M, size >= 2.
    """

    def __init__(self, x_ND: Tensor, y_MD: Tensor, subsets: int, size: int, degree: int, seed: int):
        x = x_ND.double()
        y = y_MD.double()
        self.within_x = poly_kernel(x, x, degree=degree)
        self.within_y = poly_kernel(y, y, degree=degree)
        self.between = poly_kernel(x, y, degree=degree)
        self.subsets = subsets
        self.size = min(size, len(x), len(y))
        self.seed = seed

    def value(self) -> float:
        n, m = self.between.shape
        if self.size == n == m:
            value = maximum_mean_discrepancy(self.within_x, self.between, self.within_y)
            return float(value)
        generator = torch.Generator().manual_seed(self.seed)
        values = []
        for _ in range(self.subsets):
            rows = torch.randperm(n, generator=generator)[: self.size]
            columns = torch.randperm(m, generator=generator)[: self.size]
            values.append(self._discrepancy(rows, columns))
        return float(torch.stack(values).mean())

    def part(self, rows: Tensor, columns: Tensor) -> float:
        # The unbiased estimate of torchmetrics takes sets of one size.
        size = min(len(rows), len(columns))
        return float(self._discrepancy(rows[:size], columns[:size]))

    def _discrepancy(self, rows: Tensor, columns: Tensor) -> Tensor:
        return maximum_mean_discrepancy(
            self.within_x[rows][:, rows],
            self.between[rows][:, columns],
            self.within_y[columns][:, columns],
        )


class GaussianDistance:
    """CMMD's distance of two sets of unit vectors (Jayasumana et al. 2024, arXiv 2401.09603).

        1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),  k = exp(-|a - b|^2 / (2 sigma^2))

    with sigma = 10. The means are over all pairs, those of a sample with itself among them: the
    biased estimate, which is what the authors' code computes.
    """

    SIGMA = 10.0
    SCALE = 1000.0

    def __init__(self, x_ND: Tensor, y_MD: Tensor):
        x = x_ND.double()
        y = y_MD.double()
        self.within_x = self._kernel(x, x)
        self.within_y = self._kernel(y, y)
        self.between = self._kernel(x, y)

    def value(self) -> float:
        total = self.within_x.mean() + self.within_y.mean() - 2 * self.between.mean()
        return float(self.SCALE * total)

    def part(self, rows: Tensor, columns: Tensor) -> float:
        x = self.within_x[rows][:, rows].mean()
        y = self.within_y[columns][:, columns].mean()
        return float(self.SCALE * (x + y - 2 * self.between[rows][:, columns].mean()))

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        squares = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
        return torch.exp(-squares / (2 * self.SIGMA**2))
