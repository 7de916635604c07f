"""Tables of results: on screen, in Markdown, as JSON. One table is one order, region and category.

Rows can stand in one table only where they were measured the same way: same data and split, same
size, same protocol and version, same pairs, same metric networks, and in a comparison the same
budget. Everything else is refused, not footnoted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from vton.errors import UserError
from vton.metrics.results import Row

HIGHER_IS_BETTER = ("ssim", "psnr", "iou", "cami_u", "cami_s", "image_reward")
DIGITS = {
    "ssim": 4,
    "psnr": 2,
    "lpips": 4,
    "dists": 4,
    "fid": 2,
    "kid": 2,
    "iou": 3,
    "cami_u": 3,
    "cami_s": 3,
    "mp_lpips": 4,
    "image_reward": 3,
}
ORDER = tuple(DIGITS)  # of the columns
KID_SCALE = 1000  # results hold KID as computed, tables show it times this, as papers do
PLAIN_WIDTH = 120  # columns of text, where the output is a file or a pipe
NOTE = (
    "*_random: the metric's own network with fixed random weights. Such values compare methods within this table; "
    "they are not {names} and must not stand beside published numbers."
)


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows by (order, region, category), each sorted: models, controls, baselines. A lone category
    is not repeated.

    Raises UserError when rows that were measured differently would share a table.
    """
    require_comparable(rows)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.order, row.region, row.category), []).append(row)
    for (order, region, category), group in list(groups.items()):
        _require_same(
            [{"n": row.n, "pairs": row.provenance.get("pairs_sha256")} for row in group],
            group,
            "other pairs",
        )
        everything = groups.get((order, region, "all"), [])
        if category != "all" and [row.n for row in group] == [row.n for row in everything]:
            del groups[order, region, category]  # the only category: the same numbers as "all"
    return {
        key: sorted(group, key=_rank)
        for key, group in sorted(groups.items(), key=lambda item: _place(item[0]))
    }


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Every group of rows as a table on the console; the best learned or free method of each column
    in bold.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    for key, group in grouped(rows).items():
        metrics = metric_columns(group)
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("model", no_wrap=True)
        for metric in metrics:
            table.add_column(metric_heading(metric), justify="right")
        best = best_models(group, metrics)
        for row in group:
            cells = [metric_cell(row, metric) for metric in metrics]
            marked = [
                f"[bold]{cell}[/]" if row.model in best[m] else cell
                for m, cell in zip(metrics, cells, strict=True)
            ]
            table.add_row(row.model.replace("[", r"\["), *marked)
        console.print(_title(key, group), style="bold", markup=False, highlight=False)
        console.print(table)
    note = metric_notes(rows)
    if note:
        console.print(note, style="dim", markup=False)


def table_markdown(rows: Sequence[Row]) -> str:
    """The same tables in Markdown."""
    parts = []
    for key, group in grouped(rows).items():
        metrics = metric_columns(group)
        best = best_models(group, metrics)
        lines = [f"**{_title(key, group)}**", ""]
        lines.append("| model | " + " | ".join(metric_heading(metric) for metric in metrics) + " |")
        lines.append("| --- |" + " ---: |" * len(metrics))
        for row in group:
            cells = [metric_cell(row, metric) for metric in metrics]
            marked = [
                f"**{cell}**" if row.model in best[m] else cell
                for m, cell in zip(metrics, cells, strict=True)
            ]
            lines.append(f"| {row.model} | " + " | ".join(marked) + " |")
        parts.append("\n".join(lines))
    note = metric_notes(rows)
    return "\n\n".join([*parts, note.replace("*", r"\*")] if note else parts) + "\n"


def table_json(*tables: Sequence[Row]) -> str:
    """The rows in the order of their tables, as a JSON list; rows that cannot share one are given
    separately.
    """
    shown = [asdict(row) for rows in tables for group in grouped(rows).values() for row in group]
    return json.dumps(shown, indent=1, allow_nan=False)


def base(metric: str, known: Iterable[str] = DIGITS) -> str:
    """The known metric behind another backbone, weights or masks: lpips of lpips_squeeze_random;
    else itself.
    """
    return max(
        (name for name in known if f"{metric}_".startswith(f"{name}_")), key=len, default=metric
    )


def _measured(row: Row) -> dict:
    settings = row.provenance.get("metrics", {})
    budget = {"budget": row.provenance.get("comparison", {}).get("budget")}
    return ({} if is_baseline(row) else budget) | {  # baselines learn nothing
        "data": row.data,
        "split": row.split,
        "protocol": row.protocol,
        "protocol version": settings.get("protocol", {}).get("version"),
        "protocol settings changed": settings.get("changes", []),
        "size": row.provenance.get("size"),
        "metric networks": settings.get("networks"),
    }


def require_comparable(rows: Sequence[Row]) -> None:
    """Raises UserError when rows were measured differently."""
    _require_same([_measured(row) for row in rows], rows, "measured differently")


def _require_same(keys: Sequence[dict], rows: Sequence[Row], problem: str) -> None:
    first: dict[str, tuple[Row, object]] = {}
    for key, row in zip(keys, rows, strict=True):
        for name, value in key.items():
            other, expected = first.setdefault(name, (row, value))
            if value != expected:
                raise UserError(
                    f"{other.model} and {row.model} ({row.order}, {row.region}, {row.category}) cannot share a "
                    f"table, {problem}: {name} is {expected} and {value}. Evaluate both the same way."
                )


def is_baseline(row: Row) -> bool:
    """Whether the row's pictures need no learning, or at most a warp's."""
    return row.model.startswith("baseline/")


def _rank(row: Row) -> int:
    return 2 if is_baseline(row) else 1 if row.model.endswith("]") else 0


def _place(key: tuple[str, str, str]) -> tuple:
    order, region, category = key
    return order != "paired", region != "garment", category != "all", category


def metric_columns(rows: Sequence[Row]) -> list[str]:
    """Names of all metrics, in the order of DIGITS."""
    return sorted(
        {metric for row in rows for metric in row.metrics},
        key=lambda metric: (ORDER.index(base(metric)), metric),
    )


def metric_heading(metric: str) -> str:
    """A metric's name with its scale and an arrow towards better."""
    scale = f" x{KID_SCALE}" if base(metric) == "kid" else ""
    return f"{metric}{scale} {'↑' if base(metric) in HIGHER_IS_BETTER else '↓'}"


def metric_cell(row: Row, metric: str) -> str:
    """A metric as printed; of rows that stand for several seeds with its spread. '-' where there is
    none.
    """
    if metric not in row.metrics:
        return "-"
    scale, digits = KID_SCALE if base(metric) == "kid" else 1, DIGITS[base(metric)]
    spread = row.provenance.get("spread", {}).get(metric)
    around = "" if spread is None else f" ± {spread * scale:.{digits}f}"
    return f"{row.metrics[metric] * scale:.{digits}f}{around}"


def best_models(rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, set[str]]:
    """Models with the best value of each metric; controls do not compete."""
    best = {}
    for metric in metrics:
        values = {
            row.model: row.metrics[metric]
            for row in rows
            if metric in row.metrics and _rank(row) != 1
        }
        choose = max if base(metric) in HIGHER_IS_BETTER else min
        best[metric] = {
            model for model, value in values.items() if value == choose(values.values())
        }
    return best


def _title(key: tuple[str, str, str], rows: Sequence[Row]) -> str:
    order, region, category = key
    row = rows[0]
    what = "" if category == "all" else f", {category}"
    masks = sorted({row.provenance["mask"] for row in rows if row.provenance.get("mask")})
    mask = f", mask {' and '.join(masks)}" if masks else ""
    return (
        f"{row.data} {row.split}, {order}, {region}{what}: n = {row.n}, protocol {row.rules}{mask}"
    )


def metric_notes(rows: Sequence[Row]) -> str:
    """What has to be said of metrics: which networks are random, which metrics are absent or mean
    fewer pairs.
    """
    names = sorted(
        {
            base(metric).upper()
            for row in rows
            for metric in row.metrics
            if metric.endswith("_random")
        }
    )
    notes = [NOTE.format(names=", ".join(names))] if names else []
    absent = {
        metric: reason
        for row in rows
        for metric, reason in row.provenance.get("absent", {}).items()
    }
    notes += [f"{metric} is absent: {reason}." for metric, reason in absent.items()]
    fewer: dict[tuple, list[str]] = {}
    for row in rows:
        for metric, pairs in (
            row.provenance.get("left_out", {}).items() if row.category == "all" else ()
        ):
            fewer.setdefault((metric, row.order, row.n - len(pairs), row.n), []).append(row.model)
    notes += [
        f"{metric} of {', '.join(models)} ({order}) is the mean over {counted} of {n} pairs: it is not defined for the "
        "others, which provenance.left_out names."
        for (metric, order, counted, n), models in fewer.items()
    ]
    return " ".join(notes)
