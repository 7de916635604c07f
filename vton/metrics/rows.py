"""From what was measured to rows of results.json."""
# Shapes: N predictions and M reference pictures, D width of an Inception feature

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vton.metrics.distributions import frechet_distance, kernel_distance
from vton.metrics.extractors import Extractors
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
            metrics = _means(tally, region, ids, extractors)
            predicted = tally.features.stack(region, category)
            metrics |= _distances(predicted, reference.stack(region, category), extractors)
            gaps = _gaps(tally, region, ids, extractors)
            pictures = (
                len(tally.features.stack(region, category)),
                len(reference.stack(region, category)),
            )
            few = _too_few(extractors, metrics, *pictures)
            if few:
                gaps["absent"] = gaps.get("absent", {}) | few
            if not metrics and not gaps:
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
                    **gaps,
                },
            )
            rows.append(row)
    return rows


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


def _distances(
    predicted_ND: Tensor, reference_MD: Tensor, extractors: Extractors
) -> dict[str, float]:
    """FID and KID, as far as they are asked for and there are two pictures on each side."""
    distances: dict[str, float] = {}
    if min(len(predicted_ND), len(reference_MD)) < 2:
        return distances
    protocol = extractors.protocol
    if "fid" in extractors.metrics:
        distances[extractors.name("fid")] = frechet_distance(predicted_ND, reference_MD)
    if "kid" in extractors.metrics:
        distances[extractors.name("kid")] = kernel_distance(
            predicted_ND,
            reference_MD,
            protocol.kid_subsets,
            protocol.kid_subset_size,
            protocol.kid_degree,
            protocol.kid_seed,
        )
    return distances


def _too_few(
    extractors: Extractors, metrics: Mapping[str, float], predicted: int, references: int
) -> dict[str, str]:
    """Why FID and KID are absent where they were asked for, by name."""
    names = [extractors.name(name) for name in ("fid", "kid") if name in extractors.metrics]
    reason = f"it needs two pictures on each side, here are {predicted} and {references}"
    return {name: reason for name in names if name not in metrics}


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
