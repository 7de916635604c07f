"""Our own numbers: the rows of every results.json below results/ as one data frame."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from vton import registry
from vton.errors import UserError
from vton.metrics.results import Row, read_results
from vton.report.costs import costs, training_of
from vton.report.tables import is_baseline, is_control

RESULTS = Path(__file__).resolve().parents[2] / "results"
PICTURES = (".jpg", ".png")
NOT_RECORDED = "not recorded"
UNITS = {"steps": "optimizer steps", "flops": "training TFLOP"}  # of a comparison's budget
# Recorded by the evaluation.
ORIGIN = ("commit", "solver", "steps", "guidance", "device", "mask", "warp")
COSTS = {  # column: name in vton.report.costs.costs
    "parameters": "parameters",
    "FLOP a picture": "picture_flops",
    "seconds a picture": "seconds_per_picture",
    "training steps": "steps",
    "training FLOP": "training_flops",
    "training seconds": "training_seconds",
    "training memory, GiB": "training_peak_gib",
    "sampling memory, GiB": "sampling_gib",
}


@dataclass
class RowKey:
    """Whose a value is, and how it was measured."""

    folder: str  # below the root
    model: str
    kind: str  # a key of charts.COLOURS
    row: str  # of an ablation, or ""
    data: str
    split: str
    order: str
    region: str
    category: str
    n: int
    seed: int | None
    run: str  # differs between seeds
    budget: str
    setting: str  # only rows of one setting may be compared
    shared: str  # what else rows of one setting share, in words


IDENTITY = [field.name for field in fields(RowKey)]


@dataclass(frozen=True)
class Measured:
    """values: a line per metric of a row, with the columns of RowKey, COSTS and ORIGIN."""

    root: Path
    values: pd.DataFrame

    @property
    def comparison(self) -> pd.DataFrame:
        """Values of the architectures as they are, with controls and baselines."""
        return self.values[self.values["row"] == ""]

    def ablation(self, model: str) -> pd.DataFrame:
        """Values of the ablation rows of one architecture, without controls and baselines."""
        return self.values.query("row != '' and model == @model and kind == 'architecture'")

    def pictures(self, values: pd.DataFrame) -> list[Path]:
        """Grids of pictures in the folders that these values come from."""
        paths = []
        for folder in values["folder"].unique():
            files = sorted((self.root / folder).iterdir())
            paths += [path for path in files if path.suffix in PICTURES]
        return paths


def read_measured(root: Path | None = None) -> Measured:
    """Every results.json below root; by default $VTON_RESULTS, or the repository's results/.

    A baseline that was measured beside several architectures stands once. Raises UserError for a
    folder that does not exist or a file that does not hold rows.
    """
    root = Path(root or os.environ.get("VTON_RESULTS") or RESULTS)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder of results. Name one in VTON_RESULTS, or leave it unset."
        )
    lines = []
    for path in sorted(root.rglob("results.json")):
        lines += _lines(read_results(path), str(path.parent.relative_to(root)))
    values = pd.DataFrame(lines, columns=[*IDENTITY, *COSTS, *ORIGIN, "metric", "value"])
    return Measured(root, values[~_repeated(values)].reset_index(drop=True))


def _repeated(values: pd.DataFrame) -> pd.Series:
    """Whether the same line stands above in another folder.

    Baselines are compared by three digits: they learned nothing, so they differ by the order of
    sums at most.
    """
    rounded = values["value"].map("{:.3g}".format)
    value = values["value"].where(values["kind"] != "baseline", rounded)
    keys = values[[*IDENTITY, "metric"]].drop(columns="folder")
    return keys.assign(value=value).duplicated()


def _lines(rows: Sequence[Row], folder: str) -> list[dict[str, Any]]:
    """The lines of one file, whose rows belong to one run or to one comparison."""
    comparison = _comparison(rows)
    pairs = _pairs(rows)
    lines = []
    for row in rows:
        facts = asdict(_identity(row, folder, comparison, pairs))
        spent = costs(row)
        facts |= {column: spent[name] for column, name in COSTS.items()}
        facts |= {name: row.provenance.get(name) for name in ORIGIN}
        for metric, value in row.metrics.items():
            lines.append({**facts, "metric": metric, "value": value})
    return lines


def _comparison(rows: Iterable[Row]) -> Mapping[str, Any]:
    """The comparison that the rows belong to; empty for a run of its own."""
    for row in rows:
        if "comparison" in row.provenance:
            return row.provenance["comparison"]
    return {}


def _identity(
    row: Row, folder: str, comparison: Mapping[str, Any], pairs: Sequence[tuple[str, str, str]]
) -> RowKey:
    ablated = comparison.get("ablation", "")  # an architecture, whose rows are this file's models
    budget = _budget(comparison)
    shared = _shared(row, pairs)
    seed, run = None, ""  # of a baseline: measured twice it is the same
    if not is_baseline(row):
        seed = training_of(row).get("seed", row.provenance.get("seed"))
        run = row.provenance.get("checkpoint_sha256", folder)
    return RowKey(
        folder=folder,
        model=ablated or row.model,
        kind=_kind(row),
        row=row.model if ablated else "",
        data=row.data,
        split=row.split,
        order=row.order,
        region=row.region,
        category=row.category,
        n=row.n,
        seed=seed,
        run=run,
        budget=budget,
        setting=_setting(row, pairs, budget, shared),
        shared=shared,
    )


def _kind(row: Row) -> str:
    if is_baseline(row):
        return "baseline"
    if row.model in registry.names("warp"):
        return "warp"
    return "control" if is_control(row) else "architecture"


def _pairs(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """Order, category and the beginning of the digest of every pair list, each once.

    Those of controls don't count: they may be a part of the others.
    """
    lists = set()
    for row in rows:
        if is_control(row):
            continue
        digest = row.provenance.get("pairs_sha256", "")[:6]
        lists.add((row.order, row.category, digest))
    return sorted(lists)


def _budget(comparison: Mapping[str, Any]) -> str:
    budget = comparison.get("budget")
    if not budget:
        return NOT_RECORDED
    return f"{budget['amount']:,.10g} {UNITS[budget['kind']]}"


def _shared(row: Row, pairs: Sequence[tuple[str, str, str]]) -> str:
    """What a row shares with every row it may be compared with, in words."""
    facts = row.provenance
    shared = [f"protocol {row.rules}", f"mask {facts.get('mask', NOT_RECORDED)}"]
    for order, category, digest in pairs:
        if category == "all":
            shared.append(f"{order} pairs {digest}")
    for name, weights in facts.get("metrics", {}).get("networks", {}).items():
        shared.append(f"{name} network: {weights}")
    return "; ".join(shared)


def _setting(row: Row, pairs: Sequence[tuple[str, str, str]], budget: str, shared: str) -> str:
    """The same briefly, with a code of four letters for the rest."""
    categories = dict.fromkeys(category for _, category, _ in pairs if category != "all")
    named = f"{row.data} {row.split}"
    if categories:
        named += f" ({', '.join(categories)})"
    size = "x".join(map(str, row.provenance.get("size", ()))) or f"size {NOT_RECORDED}"
    code = hashlib.sha256(shared.encode()).hexdigest()[:4]
    return f"{named}, {size}, training budget {budget} [{code}]"
