"""How sure a number is: the same number over resampled pairs.

A metric that is a mean over pairs is computed again over DRAWS bootstrap samples: as many pairs as
there are, drawn with replacement (Efron 1979). A distance between sets (FID, KID and their kin)
cannot be: a picture drawn twice would look like a mode. It is computed again over random subsets of
m of the n persons, drawn without replacement, at most half of them. The deviations of such subsets
from their own mean, times sqrt(m / (n - m)), vary as the distance of all n does (Politis and Romano
1994; for m = n / 2 the factor is 1). Taking them from their own mean removes what a smaller set
adds to FID. In paired order a person stays together with the pictures of it.

Draws depend on the number of pairs alone. Two rows of the same pairs therefore saw the same draws,
and the difference of their deviations is that of the paired difference: what makes a pair hard for
both methods cancels. Rows keep deviations for this.
"""
# Shapes: N pairs of a row, R draws

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from vton.errors import UserError

if TYPE_CHECKING:  # its import takes seconds, which tables and notebooks would wait for
    from vton.metrics.distributions import SetDistance

DRAWS = 200  # bootstrap samples of a mean
PARTS = 50  # subsets of a distance between sets
LARGEST_PART = 512  # persons in a subset: a Frechet distance of so few takes a tenth of a second
LEAST_PAIRS = 4  # fewer say nothing about their spread
LEVEL = 0.95  # of intervals
SEED = 0


class Part(NamedTuple):
    """A subset of two sets: places of predictions and of reference pictures."""

    rows: Tensor
    columns: Tensor


def deviations_of_means(scores: Tensor) -> Tensor:
    """Deviations (R,) of bootstrap means from the mean.

    scores: float64 (N,), NaN for pairs that the metric is not defined for
    """
    generator = torch.Generator().manual_seed(SEED)
    draws = torch.randint(len(scores), (DRAWS, len(scores)), generator=generator)
    means = scores[draws].nanmean(1)
    return means - scores.nanmean()


def parts(
    pair_ids: Sequence[str], persons: Mapping[str, str], reference_ids: Sequence[str]
) -> tuple[list[Part], float]:
    """Subsets of a row's pairs and of the reference, and the factor for their deviations.

    persons: of each pair; where all of them are in the reference and the reverse, a subset holds
             the pairs of its reference persons, else both sides are drawn by themselves
    """
    generator = torch.Generator().manual_seed(SEED)
    together = {persons.get(name) for name in pair_ids} == set(reference_ids)
    of_person: dict[str, list[int]] = {}
    for place, name in enumerate(pair_ids):
        of_person.setdefault(persons.get(name, ""), []).append(place)

    fewer = min(len(pair_ids), len(reference_ids))
    size = min(fewer // 2, LARGEST_PART)
    drawn = []
    for _ in range(PARTS):
        columns = torch.randperm(len(reference_ids), generator=generator)[:size]
        if together:
            rows = []
            for column in columns.tolist():
                rows += of_person[reference_ids[column]]
            drawn.append(Part(torch.tensor(rows), columns))
        else:
            rows = torch.randperm(len(pair_ids), generator=generator)[:size]
            drawn.append(Part(rows, columns))
    return drawn, (size / (fewer - size)) ** 0.5


def deviations_of_distance(distance: SetDistance, drawn: Sequence[Part], factor: float) -> Tensor:
    """Deviations (R,) that vary as the distance of the whole sets does."""
    values = torch.tensor([distance.part(*part) for part in drawn], dtype=torch.float64)
    return (values - values.mean()) * factor


def half_width(variances: Sequence[tuple[float, int]]) -> float:
    """Half of the LEVEL interval of a value with independent sources of noise.

    variances: of each source, with the degrees of freedom that it was estimated with. The sum has
    those of Welch and Satterthwaite.
    """
    total = sum(variance for variance, _ in variances)
    if not total:
        return 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * total**0.5


def source(deviations: Tensor) -> tuple[float, int]:
    """The variance that deviations show, and its degrees of freedom."""
    return float(deviations.var()), len(deviations) - 1


def interval(value: float, deviations: Tensor) -> list[float]:
    """Lower and upper end of the LEVEL interval of a value."""
    half = half_width([source(deviations)])
    return [value - half, value + half]


def as_text(deviations: Tensor) -> str:
    """Three digits of each, on one line of a results file."""
    return " ".join(f"{value:.3g}" for value in deviations.tolist())


def from_text(text: str) -> Tensor:
    """Raises UserError for text of a damaged file."""
    try:
        return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)
    except (AttributeError, ValueError):
        raise UserError(
            f"deviations of a row are {str(text)[:40]!r} instead of numbers: its results file is "
            "damaged. Run the evaluation again."
        ) from None
