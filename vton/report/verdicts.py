"""Which published directions hold here: in words, then a table of all of them."""

from __future__ import annotations

import pandas as pd

from vton.report.agreement import SAME_METRIC
from vton.report.columns import metric_scale
from vton.report.formats import metric_name, number
from vton.report.page import bullets, html_table, sentences

SIGNS = {"agrees": "✓", "differs": "✗", "within spread": "≈", "equal": "="}  # by verdict
ONE_RUN = "one run each: no spread is known, and a small difference may be chance"
NOTHING = "No direction can be checked: no published pair of rows has a run of both here."
KEY = (
    "✓ agrees, ✗ differs, ≈ within the spread, = equal in one run each. Numbers: our gain, above 0 "
    "where the first row is better."
)
OTHER_METRIC = (
    "* The paper does not print this metric in this order; compared with the direction that all "
    "its metrics share."
)


def verdicts(directions: pd.DataFrame, seeds: int) -> list[str]:
    """Parts of a page about the lines of `agreement.directions`.

    seeds: runs behind the spread of rows with one run; 0 where there are none
    """
    if directions.empty:
        return [sentences(NOTHING)]
    lines = _counts(directions)
    if directions["spread"].isna().all():
        lines.append(f"{ONE_RUN.capitalize()}.")
    elif seeds:
        lines.append(
            f"Rows with one run each: the spread is that of the model's {seeds} runs in the "
            "comparison."
        )
    return [bullets(lines), html_table(_cells(directions)), sentences(KEY, OTHER_METRIC)]


def _counts(directions: pd.DataFrame) -> list[str]:
    """How many directions agree by basis and region, and each that differs."""
    lines = []
    for (basis, region), group in directions.groupby(["basis", "region"], sort=False):
        metrics = "Against what all printed metrics share"
        if basis == SAME_METRIC:
            metrics = "On the paper's own metrics"
        counts = group["verdict"].value_counts().reindex(SIGNS, fill_value=0)
        sentence = (
            f"{metrics} ({region}): {counts['agrees']} of {len(group)} directions agree, "
            f"{counts['differs']} differ, {counts['within spread']} lie within the spread of seeds"
        )
        if counts["equal"]:
            sentence += f", {counts['equal']} are equal here"
        lines.append(f"{sentence}.")
        lines += map(_difference, group[group["verdict"] == "differs"].itertuples())
    return lines


def _difference(line) -> str:
    published = "better" if line.published > 0 else "worse"
    if line.says:
        published += f" ({line.says})"
    ours = "better" if line.gain > 0 else "worse"
    where = f"{line.order} {metric_name(line.metric)} ({line.region})"
    return (
        f"{line.row} against {line.than}, {where}: published as {published}, "
        f"here {ours} by {number(line.metric, abs(line.gain))}."
    )


def _cells(directions: pd.DataFrame) -> pd.DataFrame:
    """Verdict and gain: a column for each pair of rows, a line for each region, order, metric."""
    cells: dict[str, dict[str, str]] = {}
    lines: dict[str, None] = {}
    for line in directions.itertuples():
        pair = f"{line.row} against {line.than}"
        metric = f"{line.region} {line.order} {metric_name(line.metric)}"
        gain = line.gain * metric_scale(line.metric)
        cell = f"{SIGNS[line.verdict]} {gain:+.3g}"
        if line.basis != SAME_METRIC:
            cell += " *"
        cells.setdefault(pair, {})[metric] = cell
        lines[metric] = None
    return pd.DataFrame(cells, index=list(lines)).fillna("-")
