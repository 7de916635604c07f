"""The table of a comparison, drawn from its rows alone: quality and cost of every method.

A line is a method; several training seeds of it are averaged. `table.md` has every metric of every
region below the table, `table.tex` is the table for a paper, `table.csv` holds everything as
numbers.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vton.errors import UserError
from vton.files import write_atomically
from vton.metrics import resampling
from vton.metrics.results import Row, read_results
from vton.report.caption import caption
from vton.report.columns import metric_cell, metric_columns, metric_heading
from vton.report.costs import COSTS, costs
from vton.report.noise import in_words, interval
from vton.report.seeds import require_seeds, training_seed
from vton.report.tables import (
    best_models,
    grouped,
    is_control,
    metric_notes,
    require_comparable,
    table_markdown,
)

ROWS = "results.json"
QUALITY = ("ssim", "psnr", "lpips", "fid")  # in the table itself; all others stand below it
COST_GROUP = "cost"
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
    }
)


@dataclass(frozen=True)
class Column:
    """A column of the table; `cells` and `best` are by method."""

    group: str
    heading: str
    cells: dict[str, str]
    best: frozenset[str] = frozenset()


def write_tables(folder: Path, intervals: bool = False) -> list[Row]:
    """Draw a comparison's table.md, table.csv and table.tex again; return its rows over seeds.

    intervals: whether table.md shows those of every metric

    Raises UserError when there are no rows, or rows that cannot share a table.
    """
    folder = Path(folder)
    if not (folder / ROWS).exists():
        raise UserError(
            f"{folder} holds no {ROWS}. Give the folder of a comparison, or make one: make compare."
        )
    stored = read_results(folder / ROWS)
    if not stored:
        raise UserError(f"{folder / ROWS} holds no rows. Run its evaluation again.")
    rows = over_seeds(stored)
    try:
        drawn = {"md": markdown(rows, intervals), "csv": comma_separated(rows), "tex": latex(rows)}
    except KeyError as error:
        raise UserError(
            f"{folder / ROWS}: no table can be drawn of these rows, for want of {error}: another "
            "version wrote them. Run the comparison again."
        ) from error
    for suffix, text in drawn.items():
        write_atomically(folder / f"table.{suffix}", text)
    return rows


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row for all training seeds of a method: means, and in provenance `seeds`, `commits` and
    `spread`.

    The spread is the sample standard deviation (n - 1). A metric that a seed lacks has no mean, and
    provenance.absent says so. Raises UserError when rows were measured differently, or seeds of a
    method trained or sampled differently.
    """
    require_comparable(rows)
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.order, row.region, row.category), []).append(row)
    return list(map(_averaged, groups.values()))


def comparison_table(rows: Sequence[Row]) -> tuple[list[str], list[Column]]:
    """Methods, and the columns: quality in each order, then costs.

    rows: one for each method, order, region and category, as `over_seeds` makes them
    """
    columns: list[Column] = []
    shown: list[Row] = []
    for title, group in _main_groups(rows).items():
        columns += _quality_columns(title, group)
        shown += group
    columns += _cost_columns(shown)
    methods = dict.fromkeys(row.model for row in shown)
    return list(methods), columns


def markdown(rows: Sequence[Row], intervals: bool = False) -> str:
    """The table, its caption, every metric of every region and category, and what is noise."""
    methods, columns = comparison_table(rows)
    head = "| method |"
    for column in columns:
        head += f" {column.group}<br>{column.heading} |"
    lines = [head, "| --- |" + " ---: |" * len(columns)]
    for method in methods:
        cells = _cells(method, columns, "**{}**".format)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines.append("")
    lines += map("- {}".format, caption(rows))
    text = "\n".join(lines) + f"\n\n## Every metric\n\n{table_markdown(rows, intervals)}"
    sentences = in_words(grouped(rows))
    if sentences:
        text += "\n## Differences and noise\n\n"
        text += "\n".join(map("- {}".format, sentences)) + "\n"
    return text


def latex(rows: Sequence[Row]) -> str:
    """The table as a float over two columns; needs the packages booktabs and graphicx."""
    methods, columns = comparison_table(rows)
    spans, rules = _latex_groups(columns)
    headings = ["method"]
    for column in columns:
        headings.append(_escaped(column.heading))
    notes = " ".join([*caption(rows), metric_notes(rows)])
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{_escaped(notes)}}}",
        rf"\resizebox{{\textwidth}}{{!}}{{\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        spans + r" \\",
        rules,
        " & ".join(headings) + r" \\",
        r"\midrule",
    ]
    for method in methods:
        cells = _cells(method, columns, r"\textbf{{{}}}".format, _escaped)
        lines.append(" & ".join([_escaped(method), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""]
    return "\n".join(lines)


def comma_separated(rows: Sequence[Row]) -> str:
    """Every row as numbers: metrics as stored, `<metric>_std` over seeds, costs in plain units.

    Where intervals are known, `<metric>_low` and `<metric>_high` stand at the end.
    """
    metrics = metric_columns(rows)
    deviations = map("{}_std".format, metrics)
    known = []  # metrics of which a row has an interval
    ends = []
    for metric in metrics:
        if any(interval(row, metric) for row in rows):
            known.append(metric)
            ends += [f"{metric}_low", f"{metric}_high"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    identity = ["model", "data", "order", "region", "category", "n", "seeds"]
    writer.writerow([*identity, *metrics, *deviations, *COSTS, *ends])
    for group in grouped(rows).values():
        for row in group:
            facts = row.provenance
            spread = facts.get("spread", {})
            line = [row.model, row.data, row.order, row.region, row.category, row.n]
            line.append(len(facts["seeds"]))
            line += map(row.metrics.get, metrics)
            line += map(spread.get, metrics)
            line += map(facts["costs"].get, COSTS)
            for metric in known:
                line += interval(row, metric) or (None, None)
            writer.writerow(line)
    return text.getvalue()


def _averaged(rows: Sequence[Row]) -> Row:
    """The mean of one method's rows, which differ in their training seed alone."""
    first = rows[0]
    where = f"{first.model} ({first.order}, {first.region})"
    pairs = {(row.n, row.provenance.get("pairs_sha256")) for row in rows}
    if len(pairs) > 1:
        raise UserError(
            f"{where}: its seeds were measured on different pairs. Evaluate them all on one list."
        )
    require_seeds(rows, where)
    seeds = list(map(training_seed, rows))
    means, spread = {}, {}
    for metric in first.metrics:
        values = [row.metrics[metric] for row in rows if metric in row.metrics]
        if len(values) < len(rows):
            continue
        means[metric] = statistics.fmean(values)
        if len(rows) > 1:
            spread[metric] = statistics.stdev(values)
    gaps = _gaps(rows, seeds)
    commits = list(dict.fromkeys(row.provenance.get("commit", "unknown") for row in rows))
    facts = {"seeds": seeds, "commits": commits, "costs": _mean_costs(rows)}
    provenance = first.provenance | gaps | facts
    if spread:
        provenance["spread"] = spread
    if len(rows) > 1:
        provenance = _without_confidence(provenance) | _mean_confidence(rows, means)
    return replace(first, metrics=means, provenance=provenance)


def _gaps(rows: Sequence[Row], seeds: Sequence[int | None]) -> dict[str, dict]:
    """absent and left_out of all seeds; a metric that some of them have is absent, too."""
    metrics: dict[str, None] = {}
    left_out: dict[str, dict[str, str]] = {}
    for row in rows:
        metrics |= dict.fromkeys([*row.metrics, *row.provenance.get("absent", {})])
        for metric, pairs in row.provenance.get("left_out", {}).items():
            left_out.setdefault(metric, {}).update(pairs)
    absent = {}
    for metric in metrics:
        reasons = {}
        for row, seed in zip(rows, seeds, strict=True):
            if metric not in row.metrics:
                reasons[seed] = row.provenance.get("absent", {}).get(metric, "it was not measured")
        if len(reasons) == len(rows) and len(set(reasons.values())) == 1:
            absent[metric] = next(iter(reasons.values()))
        elif reasons:
            absent[metric] = "; ".join(f"seed {seed}: {why}" for seed, why in reasons.items())
    gaps = {"absent": absent, "left_out": left_out}
    return {name: gap for name, gap in gaps.items() if gap}


def _without_confidence(provenance: dict) -> dict:
    """Those of the first seed would stay where not every row has them."""
    return {key: provenance[key] for key in provenance if key not in ("deviations", "intervals")}


def _mean_confidence(rows: Sequence[Row], means: dict[str, float]) -> dict[str, dict]:
    """Deviations of the mean over seeds, and its intervals over pairs alone.

    All seeds drew the same pairs, so that the deviations of their mean are the mean deviations.
    """
    texts = {}
    intervals = {}
    for metric, mean in means.items():
        known = [row.provenance.get("deviations", {}).get(metric) for row in rows]
        if all(known):
            deviations = torch.stack(list(map(resampling.from_text, known))).mean(0)
            texts[metric] = resampling.as_text(deviations)
            intervals[metric] = resampling.interval(mean, deviations)
    return {"deviations": texts, "intervals": intervals} if texts else {}


def _mean_costs(rows: Sequence[Row]) -> dict[str, float | None]:
    every = list(map(costs, rows))
    means = {}
    for name in COSTS:
        means[name] = _mean(each[name] for each in every)
    return means


def _main_groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each order, of the garment where it is known, else of the whole picture."""
    groups = grouped(rows)
    chosen = {}
    for order in ("paired", "unpaired"):
        for region in ("garment", "image"):
            if (order, region, "all") in groups:
                chosen[f"{order}, {region}"] = groups[order, region, "all"]
                break
    return chosen


def _quality_columns(title: str, rows: Sequence[Row]) -> list[Column]:
    every = metric_columns(rows)
    metrics = [metric for metric in every if _is_main(metric)] or every
    best = best_models(rows, metrics)
    columns = []
    for metric in metrics:
        cells = {row.model: metric_cell(row, metric) for row in rows}
        columns.append(Column(title, metric_heading(metric), cells, frozenset(best[metric])))
    return columns


def _is_main(metric: str) -> bool:
    """Whether a metric is one of QUALITY, of the whole region."""
    words = metric.split("_")
    return words[0] in QUALITY and not {"edge", "texture"} & set(words)


def _cost_columns(rows: Sequence[Row]) -> list[Column]:
    """Costs that at least one method knows, as means over orders; a control is its model again."""
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        if not is_control(row):
            by_method.setdefault(row.model, []).append(row)
    columns = []
    for name, (title, unit, digits) in COSTS.items():
        cells = {}
        for method, own in by_method.items():
            mean = _mean(row.provenance["costs"][name] for row in own)
            if mean is not None:
                cells[method] = f"{mean / unit:.{digits}f}"
        if cells:
            columns.append(Column(COST_GROUP, title, cells))
    return columns


def _latex_groups(columns: Sequence[Column]) -> tuple[str, str]:
    """The line of the groups' titles, and the rules below them."""
    widths: dict[str, int] = {}
    for column in columns:
        widths[column.group] = widths.get(column.group, 0) + 1
    titles = rules = ""
    first = 2
    for group, width in widths.items():
        titles += rf" & \multicolumn{{{width}}}{{c}}{{{_escaped(group)}}}"
        rules += rf"\cmidrule(lr){{{first}-{first + width - 1}}}"
        first += width
    return titles, rules


def _cells(
    method: str,
    columns: Sequence[Column],
    bold: Callable[[str], str],
    escape: Callable[[str], str] = str,
) -> list[str]:
    cells = []
    for column in columns:
        cell = escape(column.cells.get(method, "-"))
        cells.append(bold(cell) if method in column.best else cell)
    return cells


def _escaped(text: str) -> str:
    return text.translate(LATEX)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
