"""What tables say, in words computed from their numbers: who is best and by how much, whose
directions agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from vton.report.published import Published

WHERE = ["order", "region", "metric"]


def summary(values: pd.DataFrame, by: str, category: str = "all") -> pd.DataFrame:
    """Mean, standard deviation (NaN for one run) and runs of each `by` ("model" or "row"), order,
    region and metric.
    """
    chosen = values[values["category"] == category]
    return (
        chosen.groupby([by, *WHERE], sort=False)["value"]
        .agg(mean="mean", sd="std", runs="count")
        .reset_index()
    )


def spread(one: float, other: float) -> float:
    """Standard deviation of the difference of two single runs, from that of each row's runs; NaN
    where one has one run.

    Wider than that of the difference of their means, which falls with the number of runs.
    """
    return math.sqrt(one**2 + other**2)


def winners(values: pd.DataFrame, published: Published) -> pd.DataFrame:
    """The best architecture of every order, region and metric, and how far it is ahead.

    Lines of order, region, metric, best, value, runner_up, behind (its value), margin (>= 0),
    `spread` (NaN without several runs of both), baseline (the best one), baseline_value,
    beats_baseline.
    """
    lines = []
    kinds = values.drop_duplicates("model").set_index("model")["kind"]
    for (order, region, metric), group in summary(values, "model").groupby(WHERE, sort=False):
        towards = published.towards(metric)
        group = group.assign(kind=group["model"].map(kinds), merit=towards * group["mean"])
        ranked = group.sort_values("merit", ascending=False, kind="stable")
        learned, free = (ranked[ranked["kind"] == kind] for kind in ("architecture", "baseline"))
        if learned.empty:
            continue
        best = learned.iloc[0]
        line = {
            "order": order,
            "region": region,
            "metric": metric,
            "best": best["model"],
            "value": best["mean"],
        }
        if len(learned) > 1:
            second = learned.iloc[1]
            line |= {
                "runner_up": second["model"],
                "behind": second["mean"],
                "margin": best["merit"] - second["merit"],
            }
            line |= {"spread": spread(best["sd"], second["sd"])}
        if len(free):
            line |= {"baseline": free.iloc[0]["model"], "baseline_value": free.iloc[0]["mean"]}
            line |= {"beats_baseline": bool(best["merit"] > free.iloc[0]["merit"])}
        lines.append(line)
    columns = [
        "order",
        "region",
        "metric",
        "best",
        "value",
        "runner_up",
        "behind",
        "margin",
        "spread",
        "baseline",
        "baseline_value",
        "beats_baseline",
    ]
    return pd.DataFrame(lines, columns=columns)


def directions(
    claims: pd.DataFrame,
    values: pd.DataFrame,
    by: str,
    published: Published,
    seeds: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Every claim `row` against `than`, held against our numbers.

    claims: `Published.claims`, rows named as in our column `by` ("row" or "model")
    seeds: values of one model's runs with several seeds, whose deviation stands in for that of rows
    with one run

    Lines of row, than, order, region, metric (ours), basis, says (the printed values), published
    (+1, -1), gain (ours, > 0: `row` is better), spread, verdict (agrees, differs, within spread;
    equal for a tie where no spread is known). basis is "same metric" where the paper prints this
    metric in this order, else "all its metrics": the one direction that all its metrics share.
    Where they do not share one, or either row has no run here, there is no line.
    """
    lines = []
    ours = summary(values, by).set_index([by, *WHERE])
    if seeds is not None and len(seeds):
        known = summary(seeds, "model").set_index(WHERE)["sd"]
        ours["sd"] = ours["sd"].fillna(
            ours.index.droplevel(by).map(known).to_series(index=ours.index)
        )
    for (row, than), pair in claims.groupby(["row", "than"], sort=False):
        for order, region, metric in ours.index.droplevel(by).unique():
            if (row, order, region, metric) not in ours.index or (
                than,
                order,
                region,
                metric,
            ) not in ours.index:
                continue
            same = pair[
                (pair["order"] == order) & pair["metric"].isin([published.base(metric), "*"])
            ]
            said = same if len(same) else pair
            if said["sign"].nunique() != 1 or not said["sign"].iloc[0]:
                continue
            upper, lower = (
                ours.loc[(row, order, region, metric)],
                ours.loc[(than, order, region, metric)],
            )
            gain = published.towards(metric) * (upper["mean"] - lower["mean"])
            noise = spread(upper["sd"], lower["sd"])
            verdict = (
                "agrees" if gain * said["sign"].iloc[0] > 0 else "differs" if gain else "equal"
            )
            lines.append(
                {
                    "row": row,
                    "than": than,
                    "order": order,
                    "region": region,
                    "metric": metric,
                    "basis": "same metric" if len(same) else "all its metrics",
                    "says": "; ".join(same["says"].unique()),
                    "published": said["sign"].iloc[0],
                    "gain": gain,
                    "spread": noise,
                    "verdict": "within spread" if abs(gain) <= noise else verdict,
                }
            )
    columns = [
        "row",
        "than",
        "order",
        "region",
        "metric",
        "basis",
        "says",
        "published",
        "gain",
        "spread",
        "verdict",
    ]
    return pd.DataFrame(lines, columns=columns)


def listed(names: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
