"""What has been measured so far, keyed by id: merging parts from several processes cannot count a
picture twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Region = Literal["image", "garment"]
REGIONS: tuple[Region, ...] = ("image", "garment")


@dataclass
class Features:
    """Inception features of a set of pictures, per region and id; every id has a category."""

    category: dict[str, str] = field(default_factory=dict)
    regions: dict[Region, dict[str, Tensor]] = field(
        default_factory=lambda: {region: {} for region in REGIONS}
    )

    def add(self, region: Region, ids: Sequence[str], features_BD: Tensor) -> None:
        for name, feature in zip(ids, features_BD.float().cpu(), strict=True):
            self.regions[region].setdefault(
                name, feature.clone()
            )  # a row view would keep the whole batch alive

    def stack(self, region: Region, category: str = "all") -> Tensor:
        """Features (N, D) of a category or of all, sorted by id."""
        stored = self.regions[region]
        chosen = [name for name in sorted(stored) if category in ("all", self.category[name])]
        return torch.stack([stored[name] for name in chosen]) if chosen else torch.empty(0, 0)


@dataclass
class Tally:
    """One method in one order: scores per pair and features per pair."""

    order: str
    scores: dict[Region, dict[str, dict[str, float]]] = (
        field(  # region -> metric -> pair id -> value
            default_factory=lambda: {region: {} for region in REGIONS}
        )
    )
    left_out: dict[Region, dict[str, dict[str, str]]] = (
        field(  # region -> metric -> pair id -> why it has no score
            default_factory=lambda: {region: {} for region in REGIONS}
        )
    )
    features: Features = field(default_factory=Features)

    @property
    def category(self) -> dict[str, str]:
        """Category of every pair measured."""
        return self.features.category

    def add(self, region: Region, metric: str, pair_ids: Sequence[str], values: Tensor) -> None:
        stored = self.scores[region].setdefault(metric, {})
        for pair_id, value in zip(pair_ids, values.tolist(), strict=True):
            stored.setdefault(pair_id, value)

    def leave_out(self, region: Region, metric: str, pair_id: str, reason: str) -> None:
        """Record that a metric is not defined for a pair, which then counts in its region but not
        in this mean.
        """
        self.left_out[region].setdefault(metric, {}).setdefault(pair_id, reason)

    def pair_ids(self, region: Region, category: str = "all") -> list[str]:
        """Sorted ids of the pairs that count in a region: all of them, or those whose truth shows
        the garment.
        """
        known = (*self.scores[region].values(), *self.left_out[region].values())
        measured = set(self.features.regions[region]).union(*known)
        if region == "image":
            measured = set(self.category)  # also where no metric could be computed
        return [name for name in sorted(measured) if category in ("all", self.category[name])]

    def without(self, region: Region, metric: str, pair_ids: Sequence[str]) -> dict[str, str]:
        """Those of the pairs that the metric leaves out, and why."""
        reasons = self.left_out[region].get(metric, {})
        return {name: reasons[name] for name in pair_ids if name in reasons}

    def mean(self, region: Region, metric: str, pair_ids: Sequence[str]) -> float:
        """Mean over the pairs; exactly rounded, hence the same for every order of summation."""
        return math.fsum(self.scores[region][metric][name] for name in pair_ids) / len(pair_ids)


def merge_features(parts: Iterable[Features]) -> Features:
    """One set of features from the parts of several processes. An id in two parts counts once."""
    merged = Features()
    for part in parts:
        merged.category |= part.category
        for region, stored in part.regions.items():
            merged.regions[region] = stored | merged.regions[region]
    return merged


def merge(parts: Iterable[Tally]) -> Tally:
    """One tally from the parts of several processes. A pair in two parts counts once.

    Raises ValueError for parts of different orders and for a pair whose parts disagree, since then
    it is not known which picture was measured (1e-4 is far above what the order of sums can
    change).
    """
    parts = list(parts)
    orders = {part.order for part in parts}
    if len(orders) != 1:
        raise ValueError(f"only parts of one order can be merged, got {sorted(orders) or 'none'}")
    merged = Tally(orders.pop(), features=merge_features(part.features for part in parts))
    for part in parts:
        for region, metrics in part.scores.items():
            for metric, values in metrics.items():
                stored = merged.scores[region].setdefault(metric, {})
                for pair_id, value in values.items():
                    if not math.isclose(
                        stored.setdefault(pair_id, value), value, rel_tol=1e-4, abs_tol=1e-4
                    ):
                        raise ValueError(
                            f"{pair_id}: {metric} is {stored[pair_id]:.6f} in one part and {value:.6f} in another; "
                            "different pictures were measured under one id"
                        )
        for region, metrics in part.left_out.items():
            for metric, reasons in metrics.items():
                merged.left_out[region][metric] = reasons | merged.left_out[region].get(metric, {})
    return merged
