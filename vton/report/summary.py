"""One table of a comparison, drawn from its rows alone: quality and cost of every method, and what
was held equal.

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
from typing import Any

from vton.errors import UserError
from vton.metrics.results import Row, read_results
from vton.report.tables import (
    best_models,
    grouped,
    metric_cell,
    metric_columns,
    metric_heading,
    metric_notes,
    require_comparable,
    table_markdown,
)

ROWS = "results.json"
QUALITY = ("ssim", "psnr", "lpips", "fid")  # in the table itself; all others stand below it
COSTS: dict[str, tuple[str, float, int]] = {  # name in `costs`: heading, unit, digits
    "parameters": ("M parameters", 1e6, 2),
    "picture_flops": ("GFLOP / image", 1e9, 2),
    "seconds_per_picture": ("s / image", 1, 3),
    "sampling_gib": ("sampling MiB", 2**-10, 1),
    "steps": ("train steps", 1, 0),
    "training_flops": ("train TFLOP", 1e12, 1),
    "training_seconds": ("train min", 60, 1),
    "training_peak_gib": ("train GiB", 1, 2),
}
COST_NOTE = (
    "A multiply-add is 2 FLOP. GFLOP / image, train TFLOP and sampling MiB (networks in half precision, all loaded) "
    "are counted, the rest is measured: s / image with reading and writing of pictures, train min with the pictures "
    "and checkpoints on the way, train GiB as the peak of the process on a CPU and of the allocator on a GPU."
)
LATEX = {
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


@dataclass(frozen=True)
class Column:
    """A column of the table: its group's title, its own, and by method the cells and which of them
    are the best.
    """

    group: str
    heading: str
    cells: dict[str, str]
    best: frozenset[str] = frozenset()


def write_tables(folder: Path) -> list[Row]:
    """Draw table.md, table.csv and table.tex of a comparison's folder again; returns its rows,
    averaged over seeds.

    Raises UserError when there are no rows, or rows that cannot share a table.
    """
    folder = Path(folder)
    if not (folder / ROWS).exists():
        raise UserError(
            f"{folder} holds no {ROWS}. Give the folder of a comparison, or make one: make compare."
        )
    rows = over_seeds(read_results(folder / ROWS))
    (folder / "table.md").write_text(markdown(rows), encoding="utf-8")
    (folder / "table.csv").write_text(comma_separated(rows), encoding="utf-8")
    (folder / "table.tex").write_text(latex(rows), encoding="utf-8")
    return rows


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row for all training seeds of a method: means, and in provenance `seeds` and `spread`.

    The spread is the sample standard deviation (n - 1). Raises UserError when rows were measured
    differently.
    """
    require_comparable(rows)
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.order, row.region, row.category), []).append(row)
    return [_averaged(group) for group in groups.values()]


def _averaged(rows: Sequence[Row]) -> Row:
    if len({(row.n, row.provenance.get("pairs_sha256")) for row in rows}) > 1:
        raise UserError(
            f"{rows[0].model} ({rows[0].order}, {rows[0].region}): its seeds were measured on other pairs."
        )
    seeds = [_training(row).get("seed") for row in rows]
    if len(set(seeds)) < len(rows):
        raise UserError(
            f"{rows[0].model} ({rows[0].order}, {rows[0].region}) has several rows of one seed: {seeds}."
        )
    shared = [metric for metric in rows[0].metrics if all(metric in row.metrics for row in rows)]
    values = {metric: [row.metrics[metric] for row in rows] for metric in shared}
    found = {
        "seeds": seeds,
        "costs": {name: _mean(costs(row)[name] for row in rows) for name in COSTS},
    }
    if len(rows) > 1:
        found["spread"] = {metric: statistics.stdev(column) for metric, column in values.items()}
    means = {metric: statistics.fmean(column) for metric, column in values.items()}
    return replace(rows[0], metrics=means, provenance=rows[0].provenance | found)


def costs(row: Row) -> dict[str, float | None]:
    """What a method is and took, in plain units; None where a row does not know."""
    training, counted = _training(row), row.provenance.get("cost", {})
    step, steps, sampling = (
        counted.get("step_flops"),
        training.get("steps"),
        counted.get("sampling_bytes"),
    )
    return {
        "parameters": counted.get("parameters"),
        "picture_flops": counted.get("picture_flops"),
        "seconds_per_picture": row.provenance.get("seconds_per_picture"),
        "sampling_gib": None if sampling is None else sampling / 2**30,
        "steps": steps,
        "training_flops": None if None in (step, steps) else step * steps,
        "training_seconds": training.get("seconds"),
        "training_peak_gib": training.get("peak_memory_gib"),
    }


def table(rows: Sequence[Row]) -> tuple[list[str], list[Column]]:
    """Methods, and columns: quality in each order, of the garment where it is known, then costs.

    rows: one for each method, order, region and category, as `over_seeds` makes them
    """
    groups = grouped(rows)
    chosen = {}
    for order in ("paired", "unpaired"):
        regions = [region for region in ("garment", "image") if (order, region, "all") in groups]
        if regions:
            chosen[f"{order}, {regions[0]}"] = groups[order, regions[0], "all"]
    columns = []
    for title, group in chosen.items():
        metrics = [
            m for m in metric_columns(group) if m.split("_")[0] in QUALITY
        ] or metric_columns(group)
        best = best_models(group, metrics)
        for metric in metrics:
            cells = {row.model: metric_cell(row, metric) for row in group}
            columns.append(Column(title, metric_heading(metric), cells, frozenset(best[metric])))
    methods = list(dict.fromkeys(row.model for group in chosen.values() for row in group))
    for name, (title, unit, digits) in COSTS.items():
        cells = {}
        for method in (
            method for method in methods if not method.endswith("]")
        ):  # a control is its model again
            found = _mean(
                r.provenance["costs"][name]
                for group in chosen.values()
                for r in group
                if r.model == method
            )
            cells |= {} if found is None else {method: f"{found / unit:.{digits}f}"}
        if cells:
            columns.append(Column("cost", title, cells))
    return methods, columns


def caption(rows: Sequence[Row]) -> list[str]:
    """What the rows have in common, sentence by sentence."""
    runs = [row for row in rows if row.provenance.get("comparison")]
    first = rows[0]
    height, width = first.provenance["size"]
    sentences = [
        f"{first.data} {first.split} pairs, {height}x{width}, protocol {first.protocol}; masks: "
        f"{_listed(row.provenance.get('mask') for row in rows)}, warped garments: "
        f"{_listed(row.provenance.get('warp') for row in rows)}."
    ]
    if runs:
        sentences.append(_budget(runs[0].provenance["comparison"]["budget"]) + " " + _equal(runs))
        changes = {
            row.model: row.provenance["comparison"]["changes"]
            for row in runs
            if not row.model.endswith("]")
        }
        sentences += [
            f"{model}: {', '.join(settings)}." for model, settings in changes.items() if settings
        ]
        seeds = {row.model: tuple(row.provenance["seeds"]) for row in runs}
        sentences.append("Training seeds: " + _listed(seeds.values(), by=list(seeds)) + ".")
        if any(len(found) > 1 for found in seeds.values()):
            sentences.append("± is the sample standard deviation over training seeds.")
    commits = _listed(row.provenance.get("commit", "unknown")[:12] for row in rows)
    return [*sentences, COST_NOTE, f"Commits: {commits}."]


def markdown(rows: Sequence[Row]) -> str:
    """The table, its caption, and every metric of every region and category."""
    methods, columns = table(rows)
    lines = ["| method | " + " | ".join(f"{c.group}<br>{c.heading}" for c in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    lines += [
        f"| {method} | " + " | ".join(_cells(method, columns, "**{}**".format)) + " |"
        for method in methods
    ]
    notes = "\n".join(f"- {sentence}" for sentence in caption(rows))
    return "\n".join(lines) + f"\n\n{notes}\n\n## Every metric\n\n{table_markdown(rows)}"


def latex(rows: Sequence[Row]) -> str:
    """The table as a float over two columns; needs the packages booktabs and graphicx."""
    methods, columns = table(rows)
    spans = [
        (group, sum(c.group == group for c in columns))
        for group in dict.fromkeys(c.group for c in columns)
    ]
    rules, first = "", 2
    for _, width in spans:
        rules += rf"\cmidrule(lr){{{first}-{first + width - 1}}}"
        first += width
    body = [
        " & ".join([_escaped(method), *_cells(method, columns, r"\textbf{{{}}}".format, _escaped)])
        + r" \\"
        for method in methods
    ]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{_escaped(' '.join([*caption(rows), metric_notes(rows)]))}}}",
            rf"\resizebox{{\textwidth}}{{!}}{{\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            "".join(
                rf" & \multicolumn{{{width}}}{{c}}{{{_escaped(group)}}}" for group, width in spans
            )
            + r" \\",
            rules,
            " & ".join(["method", *(_escaped(c.heading) for c in columns)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    )


def comma_separated(rows: Sequence[Row]) -> str:
    """Every row with its numbers: metrics as stored, `<metric>_std` over seeds, costs in plain
    units.
    """
    metrics = metric_columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    spread = [f"{metric}_std" for metric in metrics]
    writer.writerow(
        ["model", "data", "order", "region", "category", "n", "seeds", *metrics, *spread, *COSTS]
    )
    for row in (row for group in grouped(rows).values() for row in group):
        facts = row.provenance
        deviations = facts.get("spread", {})
        writer.writerow(
            [
                row.model,
                row.data,
                row.order,
                row.region,
                row.category,
                row.n,
                len(facts["seeds"]),
                *(row.metrics.get(metric) for metric in metrics),
                *(deviations.get(metric) for metric in metrics),
                *(facts["costs"][name] for name in COSTS),
            ]
        )
    return text.getvalue()


def _training(row: Row) -> dict[str, Any]:
    return row.provenance.get("training") or {}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _cells(
    method: str, columns: Sequence[Column], bold: Callable, escape: Callable = str
) -> list[str]:
    shown = ((c, escape(c.cells.get(method, "-"))) for c in columns)
    return [bold(text) if method in c.best else text for c, text in shown]


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _listed(values: Iterable[Any], by: Sequence[str] = ()) -> str:
    """Each different value once; with names, whose it is where they differ."""
    values = [
        " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for value in values
    ]
    if len(set(values)) == 1 or not by:
        return ", ".join(dict.fromkeys(values))
    return ", ".join(f"{value} ({name})" for name, value in zip(by, values, strict=True))


def _budget(budget: dict[str, Any]) -> str:
    if budget["kind"] == "flops":
        return f"Budget: {budget['amount']:g} training TFLOP of every run."
    return f"Budget: {budget['amount']:,} optimizer steps of every run."


def _equal(runs: Sequence[Row]) -> str:
    """The settings that all runs share by construction, and the one that an architecture may have
    chosen.
    """
    row, training = runs[0], _training(runs[0])
    rates = {run.model: f"{_training(run)['lr']:g}" for run in runs}
    return (
        f"Equal for all: training pairs and their augmentation, batches of {training['batch_size']} "
        f"(x {training['accumulate']}) in {training['precision']}, {training['schedule']} learning rate after "
        f"{training['warmup_steps']} steps of warm-up, timesteps T u^(1/{training['timestep_power']:g}), sampling by "
        f"{row.provenance['solver']} in {row.provenance['steps']} steps with guidance {row.provenance['guidance']:g}. "
        "The method's own: networks, codec, noise schedule, prediction, losses, dropout of conditions, optimizer; "
        f"learning rate {_listed(rates.values(), by=list(rates))}."
    )
