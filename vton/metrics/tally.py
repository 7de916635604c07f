"""What has been measured, by pair id.

Parts from several processes merge without counting a pair twice.
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


def _for_each_region() -> dict[Region, dict]:
    return {region: {} for region in REGIONS}


@dataclass
class PictureFeatures:
    """Features of a set of pictures by network, region and id.

    network: "inception", which is meant where none is named, "dinov2" or "clip"
    """

    category: dict[str, str] = field(default_factory=dict)  # of every id
    networks: dict[str, dict[Region, dict[str, Tensor]]] = field(default_factory=dict)

    @property
    def regions(self) -> dict[Region, dict[str, Tensor]]:
        """Inception's features by region and id."""
        return self.of("inception")

    def of(self, network: str) -> dict[Region, dict[str, Tensor]]:
        """A network's features by region and id."""
        return self.networks.setdefault(network, _for_each_region())

    def add(
        self,
        region: Region,
        ids: Sequence[str],
        features_BD: Tensor,
        network: str = "inception",
    ) -> None:
        """Store the features of pictures. An id that is there already keeps what it has."""
        stored = self.of(network)[region]
        for name, feature in zip(ids, features_BD.float().cpu(), strict=True):
            # A copy, because a view of one row would keep the whole batch alive.
            stored.setdefault(name, feature.clone())

    def ids(self, region: Region, category: str = "all", network: str = "inception") -> list[str]:
        """Sorted ids of the pictures of a category or of all."""
        return _of_category(self.of(network)[region], self.category, category)

    def stack(self, region: Region, category: str = "all", network: str = "inception") -> Tensor:
        """Features (N, D) of a category or of all, sorted by id."""
        stored = self.of(network)[region]
        ids = self.ids(region, category, network)
        if not ids:
            return torch.empty(0, 0)
        return torch.stack([stored[name] for name in ids])


@dataclass
class Tally:
    """One method in one order: scores and features by pair id."""

    order: str
    # region -> metric -> pair id -> value
    scores: dict[Region, dict[str, dict[str, float]]] = field(default_factory=_for_each_region)
    # region -> metric -> pair id -> why the pair has no score
    left_out: dict[Region, dict[str, dict[str, str]]] = field(default_factory=_for_each_region)
    features: PictureFeatures = field(default_factory=PictureFeatures)
    persons: dict[str, str] = field(default_factory=dict)  # pair id -> person id

    @property
    def category(self) -> dict[str, str]:
        """Category of every pair measured."""
        return self.features.category

    def add(self, region: Region, metric: str, pair_ids: Sequence[str], values: Tensor) -> None:
        """Store scores (B,). A pair that is there already keeps what it has."""
        stored = self.scores[region].setdefault(metric, {})
        for pair_id, value in zip(pair_ids, values.tolist(), strict=True):
            stored.setdefault(pair_id, value)

    def leave_out(self, region: Region, metric: str, pair_id: str, reason: str) -> None:
        """Record that a metric is not defined for a pair.

        The pair counts in its region, but not in the mean of this metric.
        """
        self.left_out[region].setdefault(metric, {}).setdefault(pair_id, reason)

    def pair_ids(self, region: Region, category: str = "all") -> list[str]:
        """Sorted ids of the pairs that count in a region.

        In the image all pairs count, also where no metric could be computed; in the garment those
        whose truth shows it.
        """
        if region == "image":
            return _of_category(self.category, self.category, category)
        measured: set[str] = set()
        for regions in self.features.networks.values():
            measured.update(regions[region])
        for scores in self.scores[region].values():
            measured.update(scores)
        for reasons in self.left_out[region].values():
            measured.update(reasons)
        return _of_category(measured, self.category, category)

    def without(self, region: Region, metric: str, pair_ids: Sequence[str]) -> dict[str, str]:
        """Those of the pairs that the metric leaves out, and why."""
        reasons = self.left_out[region].get(metric, {})
        return {name: reasons[name] for name in pair_ids if name in reasons}

    def mean(self, region: Region, metric: str, pair_ids: Sequence[str]) -> float:
        """Mean over the pairs; exactly rounded, hence the same for every order of summation."""
        scores = self.scores[region][metric]
        return math.fsum(scores[name] for name in pair_ids) / len(pair_ids)

    def values(self, region: Region, metric: str, pair_ids: Sequence[str]) -> Tensor:
        """Scores, float64 (N,), in the order of the pairs; NaN where a pair has none."""
        scores = self.scores[region][metric]
        values = [scores.get(name, math.nan) for name in pair_ids]
        return torch.tensor(values, dtype=torch.float64)


def _of_category(ids: Iterable[str], categories: dict[str, str], category: str) -> list[str]:
    """The sorted ids of a category, or of all."""
    if category == "all":
        return sorted(ids)
    return sorted(name for name in ids if categories[name] == category)


@dataclass
class Measurements:
    """Everything that one process has measured."""

    reference: PictureFeatures = field(default_factory=PictureFeatures)  # of FID and KID, by person
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)  # by order and method


def merge(parts: Sequence[Measurements]) -> Measurements:
    """One result from those of several processes. A pair in two parts counts once.

    Raises ValueError where two parts disagree on a pair.
    """
    merged = Measurements(merge_features([part.reference for part in parts]))
    shares: dict[tuple[str, str], list[Tally]] = {}
    for part in parts:
        for key, tally in part.tallies.items():
            shares.setdefault(key, []).append(tally)
    for key, tallies in shares.items():
        merged.tallies[key] = merge_tallies(tallies)
    return merged


def merge_features(parts: Sequence[PictureFeatures]) -> PictureFeatures:
    """One set of features from several. Of an id in two of them the first counts."""
    merged = PictureFeatures()
    for part in parts:
        merged.category |= part.category
        for network, regions in part.networks.items():
            for region, stored in regions.items():
                merged.of(network)[region] = stored | merged.of(network)[region]
    return merged


def merge_tallies(parts: Sequence[Tally]) -> Tally:
    """One tally from several of one method. A pair in two parts counts once.

    Raises ValueError for parts of different orders, and for a pair whose parts disagree: then it is
    not known which picture was measured.
    """
    orders = {part.order for part in parts}
    if len(orders) != 1:
        raise ValueError(f"only parts of one order can be merged, got {sorted(orders) or 'none'}")
    merged = Tally(orders.pop(), features=merge_features([part.features for part in parts]))
    for part in parts:
        merged.persons |= part.persons
        for region in REGIONS:
            for metric, scores in part.scores[region].items():
                _merge_scores(merged.scores[region].setdefault(metric, {}), scores, metric)
            for metric, reasons in part.left_out[region].items():
                earlier = merged.left_out[region].get(metric, {})
                merged.left_out[region][metric] = reasons | earlier
    return merged


def _merge_scores(stored: dict[str, float], scores: dict[str, float], metric: str) -> None:
    """Add scores by pair id to the stored ones. Raises ValueError where they disagree."""
    for pair_id, value in scores.items():
        earlier = stored.setdefault(pair_id, value)
        # Far above what another order of sums can change.
        if not math.isclose(earlier, value, rel_tol=1e-4, abs_tol=1e-4):
            raise ValueError(
                f"{pair_id}: {metric} is {earlier:.6f} in one part and {value:.6f} in another; "
                "different pictures were measured under one id"
            )
