"""Tables of results: on screen, in Markdown, as JSON. One table is one order, region and category.

Rows share a table only where they were measured the same way: same data and split, same size, same
masks, same protocol and version, same pairs, same metric networks, and in a comparison the same
budget. Everything else is refused, not footnoted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from vton.errors import UserError
from vton.metrics.resampling import LEAST_PAIRS
from vton.metrics.results import Row
from vton.report.columns import (
    base,
    interval_cell,
    is_higher_better,
    metric_cell,
    metric_columns,
    metric_heading,
    shown,
)
from vton.report.noise import PERCENT, Compared, Difference, interval

NOTE = (
    "*_random: the metric's own network with fixed random weights. Such values compare methods "
    "within this table; they are not {names} and must not stand beside published numbers."
)
GroupKey = tuple[str, str, str]  # order, region, category


def print_table(
    rows: Sequence[Row], console: Console | None = None, intervals: bool = False
) -> None:
    """Print each group of rows as a table; the best method of each column is bold.

    Where a table is wider than the console, the metrics that do not fit follow in further blocks.
    intervals: behind each value the interval that resampled pairs give it.
    """
    console = console or Console()
    for key, group in grouped(rows).items():
        console.print(_title(key, group), style="bold", markup=False, highlight=False)
        for block in _blocks(group, console, intervals):
            console.print(block)
    note = metric_notes(rows, intervals)
    if note:
        console.print(note, style="dim", markup=False)


def print_differences(compared: Sequence[Compared], console: Console | None = None) -> None:
    """Print each as a table: a line for each metric, and in words what the difference says."""
    console = console or Console()
    for each in compared:
        row, other = each.first, each.second
        key = (row.order, row.region, row.category)
        for title in (_title(key, [row]), f"{row.model} minus {other.model}"):
            console.print(title, style="bold", markup=False, highlight=False)
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("metric", no_wrap=True)
        table.add_column(f"difference ({PERCENT} %)", justify="right", no_wrap=True)
        table.add_column("verdict")
        for found in each.differences:
            table.add_row(metric_heading(found.metric), found.shown, Text(_verdict(found)))
        console.print(table)
        if not each.differences:
            console.print(f"Fewer than {LEAST_PAIRS} pairs: nothing is known of the noise.")


def _verdict(found: Difference) -> str:
    pairs = "" if found.paired else ", of other pairs"
    if found.within_noise:
        return f"within noise{pairs}"
    better = (found.value > 0) == is_higher_better(found.metric)
    return f"{'better' if better else 'worse'}{pairs}"


def print_sentences(sentences: Sequence[str], console: Console | None = None) -> None:
    """Print each as a paragraph of its own, wrapped."""
    console = console or Console()
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False)


def table_markdown(rows: Sequence[Row], intervals: bool = False) -> str:
    """The tables in Markdown; intervals: as for `print_table`."""
    parts = []
    for key, group in grouped(rows).items():
        parts.append(f"**{_title(key, group)}**\n\n{_markdown_table(group, intervals)}")
    note = metric_notes(rows, intervals)
    if note:
        parts.append(note.replace("*", r"\*"))
    return "\n\n".join(parts) + "\n"


def table_json(*tables: Sequence[Row]) -> str:
    """The rows in the order of their tables, as one JSON list.

    tables: rows that cannot share a table are given separately
    """
    listed = []
    for rows in tables:
        for group in grouped(rows).values():
            listed += map(asdict, group)
    return json.dumps(listed, indent=1, allow_nan=False)


def grouped(rows: Sequence[Row]) -> dict[GroupKey, list[Row]]:
    """Rows by (order, region, category): models first, then controls, then baselines.

    A lone category is left out where its numbers are those of "all". They are not where the
    reference of FID and KID holds other categories too. Raises UserError when rows that were
    measured differently would share a table.
    """
    require_comparable(rows)
    groups: dict[GroupKey, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.order, row.region, row.category), []).append(row)
    kept = {}
    for key in sorted(groups, key=_place):
        group = groups[key]
        order, region, category = key
        controls = [row for row in group if is_control(row)]
        competing = [row for row in group if not is_control(row)]
        for alike in (competing, controls):  # controls may take fewer pairs: eval.shuffled_pairs
            _require_same(alike, _pairs, "other pairs")
        everything = groups.get((order, region, "all"), [])
        if category == "all" or not _says_the_same(group, everything):
            kept[key] = sorted(group, key=_kind)
    return kept


def _says_the_same(rows: Sequence[Row], everything: Sequence[Row]) -> bool:
    """Whether a category's rows hold nothing that those of all categories do not hold."""
    if [row.n for row in rows] != [row.n for row in everything]:
        return False
    for row, whole in zip(rows, everything, strict=True):
        if not row.metrics.items() <= whole.metrics.items():
            return False
    return True


def require_comparable(rows: Sequence[Row]) -> None:
    """Raise UserError when rows were measured differently."""
    _require_same(rows, _conditions, "measured differently")


def is_baseline(row: Row) -> bool:
    """Whether the row's pictures need no learning, or at most a warp's."""
    return row.model.startswith("baseline/")


def is_control(row: Row) -> bool:
    """Whether the row is a model again under changed inputs, such as exchanged garments."""
    return row.model.endswith("]")


def best_models(rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, set[str]]:
    """Models with the best value of each metric as tables print it; controls do not compete."""
    best: dict[str, set[str]] = {}
    for metric in metrics:
        values = {}
        for row in rows:
            if metric in row.metrics and not is_control(row):
                values[row.model] = float(shown(metric, row.metrics[metric]))
        choose = max if is_higher_better(metric) else min
        top = choose(values.values(), default=None)
        best[metric] = {model for model in values if values[model] == top}
    return best


def metric_notes(rows: Sequence[Row], intervals: bool = False) -> str:
    """Notes on metrics: which networks are random, what is absent, what covers fewer pairs.

    intervals: whether they are shown and want a note, too
    """
    notes = [*_random_notes(rows), *_absent_notes(rows), *_partial_notes(rows)]
    notes += _control_notes(rows)
    if intervals:
        notes.append(_interval_note(rows))
    return " ".join(notes)


def _blocks(rows: Sequence[Row], console: Console, intervals: bool) -> Iterator[Table]:
    """Tables of all metrics, each no wider than the console; at least one metric in each."""
    columns: list[str] = []
    for metric in metric_columns(rows):
        wider = _screen_table(rows, [*columns, metric], intervals)
        if columns and _width(wider, console) > console.width:
            yield _screen_table(rows, columns, intervals)
            columns = []
        columns.append(metric)
    yield _screen_table(rows, columns, intervals)


def _cell(row: Row, metric: str, intervals: bool) -> str:
    cell = metric_cell(row, metric)
    if intervals:
        cell += interval_cell(interval(row, metric), metric)
    return cell


def _screen_table(rows: Sequence[Row], metrics: Sequence[str], intervals: bool) -> Table:
    best = best_models(rows, metrics)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for metric in metrics:
        table.add_column(metric_heading(metric), justify="right", no_wrap=True)
    for row in rows:
        cells = [Text(row.model)]
        for metric in metrics:
            style = "bold" if row.model in best[metric] else ""
            cells.append(Text(_cell(row, metric, intervals), style))
        table.add_row(*cells)
    return table


def _width(table: Table, console: Console) -> int:
    """Columns of text that the table takes when nothing is cut off."""
    unlimited = console.options.update(width=10_000)
    return Measurement.get(console, unlimited, table).maximum


def _markdown_table(rows: Sequence[Row], intervals: bool) -> str:
    metrics = metric_columns(rows)
    best = best_models(rows, metrics)
    headings = map(metric_heading, metrics)
    lines = [f"| model | {' | '.join(headings)} |", "| --- |" + " ---: |" * len(metrics)]
    for row in rows:
        cells = [row.model]
        for metric in metrics:
            cell = _cell(row, metric, intervals)
            cells.append(f"**{cell}**" if row.model in best[metric] else cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _conditions(row: Row) -> dict[str, Any]:
    """How a row was measured: what all rows of a table have to share."""
    settings = row.provenance.get("metrics", {})
    conditions = {
        "data": row.data,
        "split": row.split,
        "protocol": row.protocol,
        "protocol version": settings.get("protocol", {}).get("version"),
        "protocol settings changed": settings.get("changes", []),
        "size": row.provenance.get("size"),
        "metric networks": settings.get("networks"),
        "reference": _reference(row),
    }
    if row.provenance.get("mask"):  # unknown of other methods' pictures, unless --mask-rule says
        conditions["mask"] = row.provenance["mask"]
    if is_baseline(row):  # learns nothing, so it has no budget
        return conditions
    budget = row.provenance.get("comparison", {}).get("budget")
    return {"budget": budget, **conditions}


def _reference(row: Row) -> str | None:
    """The pictures that FID and KID compared with; None where the test split's persons are."""
    targets = row.provenance.get("targets")
    if targets is None:
        return None
    return f"{targets['n']} pictures {targets.get('sha256', '')[:8]}".strip()


def _pairs(row: Row) -> dict[str, Any]:
    return {"n": row.n, "pairs": row.provenance.get("pairs_sha256")}


def _require_same(
    rows: Sequence[Row], conditions: Callable[[Row], dict[str, Any]], problem: str
) -> None:
    """Raise UserError naming the first two rows that differ in a condition both have."""
    first: dict[str, tuple[Row, object]] = {}
    for row in rows:
        for name, value in conditions(row).items():
            other, expected = first.setdefault(name, (row, value))
            if value != expected:
                raise UserError(
                    f"{other.model} and {row.model} ({row.order}, {row.region}, {row.category}) "
                    f"cannot share a table, {problem}: {name} is {expected} and {value}. "
                    "Evaluate both the same way."
                )


def _kind(row: Row) -> int:
    """Models sort before controls, controls before baselines."""
    if is_baseline(row):
        return 2
    return 1 if is_control(row) else 0


def _place(key: GroupKey) -> tuple:
    """Paired before unpaired, the garment before the whole picture, all categories before each."""
    order, region, category = key
    return order != "paired", region != "garment", category != "all", category


def _title(key: GroupKey, rows: Sequence[Row]) -> str:
    order, region, category = key
    row = rows[0]
    place = f"{row.data} {row.split}, {order}, {region}"
    if category != "all":
        place += f", {category}"
    title = f"{place}: n = {row.n}, protocol {row.rules}"
    mask = next(filter(None, (row.provenance.get("mask") for row in rows)), "")
    return f"{title}, mask {mask}" if mask else title


def _random_notes(rows: Sequence[Row]) -> list[str]:
    """A note on the metrics whose networks have random weights, if there are any."""
    names = set()
    for metric in metric_columns(rows):
        if metric.endswith("_random"):
            names.add(base(metric).upper())
    if not names:
        return []
    return [NOTE.format(names=", ".join(sorted(names)))]


def _interval_note(rows: Sequence[Row]) -> str:
    """What the brackets are, or why there are none."""
    older = {}
    few = {}
    for row in rows:
        if row.metrics and not row.provenance.get("deviations"):
            lacking = few if row.n < LEAST_PAIRS else older
            lacking[row.model] = None
    notes = []
    if any(row.provenance.get("deviations") for row in rows):
        notes.append(
            f"[low, high]: the {PERCENT} % interval over resampled pairs, and over training seeds "
            "where there are several."
        )
    if few:
        notes.append(f"Fewer than {LEAST_PAIRS} pairs give no interval ({', '.join(few)}).")
    if older:
        notes.append(
            f"No intervals are known for {', '.join(older)}, measured by an earlier version. "
            "Evaluate again."
        )
    return " ".join(notes)


def _control_notes(rows: Sequence[Row]) -> list[str]:
    """Which controls cover fewer pairs than their models, a note for each order.

    Fewer pairs may count in the garment than in the image, so a region is compared with itself.
    """
    whole = {}
    for row in rows:
        if row.category == "all" and not is_control(row):
            whole[row.order, row.region] = row.n
    notes = {}
    for row in rows:
        n = whole.get((row.order, row.region), row.n)
        if row.category == "all" and is_control(row) and row.n != n:
            notes[
                f"{row.model} ({row.order}) covers {row.n} of the {n} pairs, so its FID and KID do "
                "not compare with the other rows'."
            ] = None
    return list(notes)


def _absent_notes(rows: Sequence[Row]) -> list[str]:
    """Why a metric is absent, a note for each reason; and where, if it is not absent everywhere."""
    lacking: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for metric, reason in row.provenance.get("absent", {}).items():
            lacking.setdefault((metric, reason), []).append(row)
    notes = []
    for (metric, reason), some in lacking.items():
        where = ""
        if any(metric in row.metrics for row in rows):
            models = ", ".join(dict.fromkeys(row.model for row in some))
            places = "; ".join(dict.fromkeys(map(_place_in_words, some)))
            where = f" of {models} ({places})"
        notes.append(f"{metric}{where} is absent: {reason}.")
    return notes


def _place_in_words(row: Row) -> str:
    place = f"{row.order}, {row.region}"
    return place if row.category == "all" else f"{place}, {row.category}"


def _partial_notes(rows: Sequence[Row]) -> list[str]:
    """Which means are over fewer pairs than the row has, a note for each metric and order."""
    models: dict[tuple[str, str, int, int], list[str]] = {}
    for row in rows:
        if row.category != "all":
            continue
        for metric, pairs in row.provenance.get("left_out", {}).items():
            key = (metric, row.order, row.n - len(pairs), row.n)
            models.setdefault(key, []).append(row.model)
    notes = []
    for (metric, order, counted, n), names in models.items():
        notes.append(
            f"{metric} of {', '.join(names)} ({order}) is the mean over {counted} of {n} pairs: "
            "it is not defined for the others, which provenance.left_out names."
        )
    return notes
