"""Who is best and by how much, and whether our directions agree with the published ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import pandas as pd

from vton.report.published import Published

WHERE = ["order", "region", "metric"]
SAME_METRIC = "same metric"  # the paper prints this metric in this order
ALL_METRICS = "all its metrics"  # it does not; all that it prints point the same way


@dataclass
class Winner:
    """The best architecture of an order, region and metric; NaN where a field is not known."""

    order: str
    region: str
    metric: str
    best: str
    value: float
    runner_up: str | float = math.nan
    behind: float = math.nan  # the runner-up's value
    margin: float = math.nan  # at least 0
    spread: float = math.nan  # of the margin; known where both have several runs
    baseline: str | float = math.nan  # the best one
    baseline_value: float = math.nan
    beats_baseline: bool | float = math.nan


@dataclass
class Direction:
    """A published claim about two rows beside our numbers for one order, region and metric."""

    row: str
    than: str
    order: str
    region: str
    metric: str  # ours
    basis: str  # SAME_METRIC or ALL_METRICS
    says: str  # the printed values of this metric; empty where there are none
    published: int  # +1: `row` is better, -1: worse
    gain: float  # ours, above 0 where `row` is better
    spread: float  # of the gain; NaN where no row has several runs
    verdict: str  # agrees, differs, within spread; equal for a tie whose spread is not known


def summary(values: pd.DataFrame, by: str, category: str = "all") -> pd.DataFrame:
    """Mean, standard deviation and number of runs of each `by`, order, region and metric.

    by: "model" or "row". The standard deviation of one run is NaN.
    """
    chosen = values[values["category"] == category]
    groups = chosen.groupby([by, *WHERE], sort=False)["value"]
    return groups.agg(mean="mean", sd="std", runs="count").reset_index()


def spread(one: float, other: float) -> float:
    """Standard deviation of the difference of two single runs; NaN where one deviation is NaN.

    Wider than that of the difference of their means, which falls with the number of runs.
    """
    return math.sqrt(one**2 + other**2)


def winners(values: pd.DataFrame, published: Published) -> pd.DataFrame:
    """A `Winner` for every order, region and metric in which an architecture was measured."""
    kinds = values.drop_duplicates("model").set_index("model")["kind"]
    lines = []
    for (order, region, metric), group in summary(values, "model").groupby(WHERE, sort=False):
        group["kind"] = group["model"].map(kinds)
        group["merit"] = published.towards(metric) * group["mean"]  # higher is better
        ranked = group.sort_values("merit", ascending=False, kind="stable")
        learned = list(ranked[ranked["kind"] == "architecture"].itertuples())
        baselines = list(ranked[ranked["kind"] == "baseline"].itertuples())
        if not learned:
            continue
        best = learned[0]
        line = Winner(order, region, metric, best.model, best.mean)
        if len(learned) > 1:
            second = learned[1]
            line.runner_up = second.model
            line.behind = second.mean
            line.margin = best.merit - second.merit
            line.spread = spread(best.sd, second.sd)
        if baselines:
            line.baseline = baselines[0].model
            line.baseline_value = baselines[0].mean
            line.beats_baseline = best.merit > baselines[0].merit
        lines.append(line)
    return _frame(lines, Winner)


def directions(
    claims: pd.DataFrame,
    values: pd.DataFrame,
    by: str,
    published: Published,
    seeds: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A `Direction` for every claim of a row against another that our numbers can check.

    claims: `Published.claims`, with rows named as in our column `by` ("row" or "model")
    seeds: one model's runs with several seeds; their deviation stands in for that of rows with one
        run

    There is no line where either row has no run here, or where the paper prints other metrics only
    and they do not share one direction.
    """
    ours = _results(values, by, seeds)
    lines = []
    for (row, than), claimed in claims.groupby(["row", "than"], sort=False):
        for order, region, metric in _places(ours):
            upper = ours.get((row, order, region, metric))
            lower = ours.get((than, order, region, metric))
            if upper is None or lower is None:
                continue
            same = claimed["metric"].isin([published.base(metric), "*"])
            same &= claimed["order"] == order
            signs = claimed.loc[same if same.any() else claimed.index, "sign"].unique()
            if len(signs) > 1 or signs[0] == 0:
                continue
            gain = published.towards(metric) * (upper.mean - lower.mean)
            noise = spread(upper.sd, lower.sd)
            lines.append(
                Direction(
                    row,
                    than,
                    order,
                    region,
                    metric,
                    basis=SAME_METRIC if same.any() else ALL_METRICS,
                    says="; ".join(claimed.loc[same, "says"].unique()),
                    published=signs[0],
                    gain=gain,
                    spread=noise,
                    verdict=_verdict(gain, signs[0], noise),
                )
            )
    return _frame(lines, Direction)


class _Result(NamedTuple):
    mean: float
    sd: float


def _results(
    values: pd.DataFrame, by: str, seeds: pd.DataFrame | None
) -> dict[tuple[str, str, str, str], _Result]:
    """Our mean and deviation by row, order, region and metric."""
    deviations = {}
    if seeds is not None:
        for line in summary(seeds, "model").itertuples():
            deviations[line.order, line.region, line.metric] = line.sd
    results = {}
    for line in summary(values, by).itertuples():
        where = (line.order, line.region, line.metric)
        deviation = deviations.get(where, math.nan) if math.isnan(line.sd) else line.sd
        results[getattr(line, by), *where] = _Result(line.mean, deviation)
    return results


def _places(results: dict[tuple[str, str, str, str], _Result]) -> list[tuple[str, str, str]]:
    """Every order, region and metric once."""
    return list(dict.fromkeys(key[1:] for key in results))


def _verdict(gain: float, published: int, spread: float) -> str:
    if abs(gain) <= spread:
        return "within spread"
    if gain == 0:
        return "equal"
    return "agrees" if gain * published > 0 else "differs"


def _frame(lines: list, kind: type) -> pd.DataFrame:
    """A data frame of dataclass instances; with its columns where there is no instance."""
    return pd.DataFrame(lines, columns=[field.name for field in fields(kind)])


def listed(names: list[str], last: str = "and") -> str:
    """a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"
