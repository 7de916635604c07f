"""Distances between two sets of features: Frechet (FID) and kernel (KID).

They are computed in float64 and leave the global random state alone. Both are biased or noisy for
small sets (FID upwards, the more so below 2048 samples): compare only at equal n and with the same
reference set.
"""
# Shapes: N, M samples of the two sets, D width of a feature

from __future__ import annotations

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
    """Kernel distance of two sets, unscaled (Binkowski et al. 2018).

    The mean over random subsets of the unbiased squared MMD with kernel (x.y / D + 1)^degree.

    Subsets are drawn by position, so the order of rows must not depend on batches or processes.
    Where a subset would hold every sample of both sets, all subsets are the same one, and it is
    computed once. The three kernel matrices are computed once (N = M = 5,400: 0.7 GB); every subset
    is a part of them. Needs N, M, size >= 2.
    """
    x = x_ND.double()
    y = y_MD.double()
    within_x = poly_kernel(x, x, degree=degree)
    within_y = poly_kernel(y, y, degree=degree)
    between = poly_kernel(x, y, degree=degree)
    size = min(size, len(x), len(y))
    if size == len(x) == len(y):
        return float(maximum_mean_discrepancy(within_x, between, within_y))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        rows = torch.randperm(len(x), generator=generator)[:size]
        columns = torch.randperm(len(y), generator=generator)[:size]
        value = maximum_mean_discrepancy(
            within_x[rows][:, rows],
            between[rows][:, columns],
            within_y[columns][:, columns],
        )
        values.append(value)
    return float(torch.stack(values).mean())
