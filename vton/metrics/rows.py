"""From what was measured to rows of results.json."""
# Shapes: N predictions and M reference pictures, D width of an Inception feature

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from vton.metrics import resampling
from vton.metrics.distributions import (
    FrechetDistance,
    GaussianDistance,
    PolynomialDistance,
    SetDistance,
)
from vton.metrics.extractors import SET_METRICS, Extractors
from vton.metrics.protocol import Protocol
from vton.metrics.results import Row, digest_of_ids
from vton.metrics.tally import REGIONS, PictureFeatures, Region, Tally


def compute_rows(
    tally: Tally,
    reference: PictureFeatures,
    extractors: Extractors,
    *,
    model: str,
    data: str,
    split: str,
    provenance: Mapping[str, Any],
) -> list[Row]:
    """One row per region and category ("all" first) of one method in one order.

    Metrics that cannot be computed are absent, never NaN, and provenance.absent says why: FID and
    KID need two pictures on each side. KID's subsets are no larger than either set. A metric that
    is not defined for some of the pairs is the mean of the others: provenance.left_out names these
    pairs and says why. A row without any metric is written only if it says so of one.
    """
    rows = []
    for region in REGIONS:
        for category in _categories(tally, region):
            ids = tally.pair_ids(region, category)
            metrics, facts = _measured(tally, reference, region, category, extractors)
            if not metrics and not facts:
                continue
            row = Row(
                model=model,
                data=data,
                split=split,
                order=tally.order,
                region=region,
                category=category,
                protocol=extractors.protocol.name,
                n=len(ids),
                metrics=metrics,
                provenance={
                    **provenance,
                    "metrics": extractors.settings(),
                    "pairs_sha256": digest_of_ids(ids),
                    **facts,
                },
            )
            rows.append(row)
    return rows


def _measured(
    tally: Tally,
    reference: PictureFeatures,
    region: Region,
    category: str,
    extractors: Extractors,
) -> tuple[dict[str, float], dict[str, Any]]:
    """A row's metrics; their confidence, and why others are absent or leave pairs out."""
    ids = tally.pair_ids(region, category)
    metrics = _means(tally, region, ids, extractors)
    deviations = _deviations_of_means(tally, region, ids, extractors)
    for name, value, spread in _distances(tally, reference, region, category, extractors):
        metrics[name] = value
        if spread is not None:
            deviations[name] = spread
    gaps = _gaps(tally, region, ids, extractors)
    few = _too_few(tally, reference, region, category, extractors)
    if few:
        gaps["absent"] = gaps.get("absent", {}) | few
    return metrics, _confidence(metrics, deviations) | gaps


def _categories(tally: Tally, region: Region) -> list[str]:
    """ "all" and the categories of the region's pairs; none where it has no pairs."""
    ids = tally.pair_ids(region)
    if not ids:
        return []
    named = {tally.category[name] for name in ids} - {"all"}
    return ["all", *sorted(named)]


def _means(
    tally: Tally, region: Region, ids: Sequence[str], extractors: Extractors
) -> dict[str, float]:
    """Mean over the pairs of every metric that scores them one by one."""
    means = {}
    for metric in extractors.metrics:
        if metric not in tally.scores[region]:
            continue
        without = tally.without(region, metric, ids)
        counted = [name for name in ids if name not in without]
        if counted:
            means[extractors.name(metric)] = tally.mean(region, metric, counted)
    return means


def _deviations_of_means(
    tally: Tally, region: Region, ids: Sequence[str], extractors: Extractors
) -> dict[str, Tensor]:
    """How the means of `_means` deviate over resampled pairs, as far as there are enough pairs."""
    deviations: dict[str, Tensor] = {}
    for metric in extractors.metrics:
        if metric not in tally.scores[region]:
            continue
        values = tally.values(region, metric, ids)
        if int(values.isfinite().sum()) >= resampling.LEAST_PAIRS:
            spread = resampling.deviations_of_means(values)
            # A draw can miss every pair that a metric is defined for.
            deviations[extractors.name(metric)] = spread[spread.isfinite()]
    return deviations


def _distances(
    tally: Tally,
    reference: PictureFeatures,
    region: Region,
    category: str,
    extractors: Extractors,
) -> Iterator[tuple[str, float, Tensor | None]]:
    """Distances of sets, as far as they are asked for and there are two pictures on each side.

    Each with its name in rows and, where there are enough pictures, how it deviates.
    """
    for metric, network in SET_METRICS.items():
        if metric not in extractors.metrics:
            continue
        predicted_ND = tally.features.stack(region, category, network)
        reference_MD = reference.stack(region, category, network)
        fewer = min(len(predicted_ND), len(reference_MD))
        if fewer < 2:
            continue
        distance = _distance(metric, predicted_ND, reference_MD, extractors.protocol)
        spread = drawn = factor = None
        if fewer >= resampling.LEAST_PAIRS:
            pair_ids = tally.features.ids(region, category, network)
            person_ids = reference.ids(region, category, network)
            drawn, factor = resampling.parts(pair_ids, tally.persons, person_ids)
        if drawn:
            spread = resampling.deviations_of_distance(distance, drawn, factor)
        yield extractors.name(metric), distance.value(), spread


def _distance(metric: str, x_ND: Tensor, y_MD: Tensor, protocol: Protocol) -> SetDistance:
    if metric in ("fid", "fd_dinov2"):
        return FrechetDistance(x_ND, y_MD)
    if metric == "cmmd":
        return GaussianDistance(x_ND, y_MD)
    return PolynomialDistance(
        x_ND,
        y_MD,
        protocol.kid_subsets,
        protocol.kid_subset_size,
        protocol.kid_degree,
        protocol.kid_seed,
    )


def _confidence(
    metrics: Mapping[str, float], deviations: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """intervals: lower and upper end for each metric; deviations: what they come from, as text."""
    if not deviations:
        return {}
    intervals = {}
    texts = {}
    for name, spread in deviations.items():
        intervals[name] = resampling.interval(metrics[name], spread)
        texts[name] = resampling.as_text(spread)
    return {"intervals": intervals, "deviations": texts}


def _too_few(
    tally: Tally,
    reference: PictureFeatures,
    region: Region,
    category: str,
    extractors: Extractors,
) -> dict[str, str]:
    """Why distances of sets are absent where they were asked for, by name.

    A region in which no picture has features, as the garment of unpaired ones, is not theirs.
    """
    absent = {}
    for metric, network in SET_METRICS.items():
        if metric not in extractors.metrics:
            continue
        predicted = len(tally.features.ids(region, category, network))
        references = len(reference.ids(region, category, network))
        if predicted and min(predicted, references) < 2:
            reason = f"it needs two pictures on each side, here are {predicted} and {references}"
            absent[extractors.name(metric)] = reason
    return absent


def _gaps(
    tally: Tally, region: Region, ids: Sequence[str], extractors: Extractors
) -> dict[str, dict]:
    """absent: metrics without their networks; left_out: pairs that a metric is not defined for."""
    left_out = {}
    for metric in extractors.metrics:
        without = tally.without(region, metric, ids)
        if without:
            left_out[extractors.name(metric)] = without
    gaps = {}
    if extractors.garment.absent:
        gaps["absent"] = extractors.garment.absent
    if left_out:
        gaps["left_out"] = left_out
    return gaps
