"""Our own numbers: the rows of every results.json below results/, whatever folder they lie in, as
one data frame.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vton import registry
from vton.errors import UserError
from vton.metrics.results import Row, read_results
from vton.report.summary import costs

RESULTS = Path(__file__).resolve().parents[2] / "results"
PICTURES = (".jpg", ".png")
NOT_RECORDED = "not recorded"
UNITS = {"steps": "optimizer steps", "flops": "training TFLOP"}  # of a comparison's budget
ROW = (
    "folder",
    "model",
    "kind",
    "row",
    "data",
    "split",
    "order",
    "region",
    "category",
    "n",
    "seed",
    "run",
    "budget",
    "setting",
    "held",
)
ORIGIN = (
    "commit",
    "solver",
    "steps",
    "guidance",
    "device",
    "mask",
    "warp",
)  # recorded by the evaluation
COSTS = {  # column: name in vton.report.summary.costs
    "parameters": "parameters",
    "FLOP a picture": "picture_flops",
    "seconds a picture": "seconds_per_picture",
    "training steps": "steps",
    "training FLOP": "training_flops",
    "training seconds": "training_seconds",
    "training memory, GiB": "training_peak_gib",
    "sampling memory, GiB": "sampling_gib",
}


@dataclass(frozen=True)
class Measured:
    """values: a line per metric of a row. folder (below `root`), model, kind (a key of
    charts.COLOURS), row (of an ablation, or ""), data, split, order, region, category, n, seed, run
    (what a second seed differs in), budget, setting (only rows of one setting may be compared),
    held (what else they share, in words), metric, value, and the columns of COSTS and ORIGIN.
    """

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
        folders = [self.root / folder for folder in values["folder"].unique()]
        return [
            path
            for folder in folders
            for path in sorted(folder.iterdir())
            if path.suffix in PICTURES
        ]


def read_measured(root: Path | None = None) -> Measured:
    """Every results.json below root; by default $VTON_RESULTS, or the repository's results/.

    The same baseline measured beside several architectures stands once. Raises UserError for a
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
    values = pd.DataFrame(lines, columns=[*ROW, *COSTS, *ORIGIN, "metric", "value"])
    # what learned nothing differs by the order of sums at most
    rounded = values["value"].where(
        values["kind"] != "baseline", values["value"].map("{:.3g}".format)
    )
    same = values[[name for name in ROW if name != "folder"] + ["metric"]].assign(value=rounded)
    return Measured(root, values[~same.duplicated()].reset_index(drop=True))


def _lines(rows: Sequence[Row], folder: str) -> list[dict[str, Any]]:
    """The lines of one file, whose rows belong to one run or to one comparison."""
    lines = []
    comparison = next(
        (row.provenance["comparison"] for row in rows if "comparison" in row.provenance), {}
    )
    ablated = comparison.get("ablation", "")  # an architecture, whose rows are this file's models
    pairs = sorted(
        {(row.order, row.category, row.provenance.get("pairs_sha256", "")[:6]) for row in rows}
    )
    for row in rows:
        known, training = row.provenance, row.provenance.get("training") or {}
        kind = _kind(row.model)
        learned = kind != "baseline"  # a baseline has no seed: what is measured twice is the same
        line = {
            "folder": folder,
            "model": ablated or row.model,
            "kind": kind,
            "row": row.model if ablated else "",
            "data": row.data,
            "split": row.split,
            "order": row.order,
            "region": row.region,
            "category": row.category,
            "n": row.n,
            "seed": training.get("seed", known.get("seed")) if learned else None,
            "run": known.get("checkpoint_sha256", folder) if learned else "",
        }
        spent = costs(row)
        line |= _setting(row, pairs, _budget(comparison)) | {
            column: spent[name] for column, name in COSTS.items()
        }
        line |= {key: known.get(key) for key in ORIGIN}
        lines += [
            line | {"metric": metric, "value": value} for metric, value in row.metrics.items()
        ]
    return lines


def _kind(model: str) -> str:
    if model.startswith("baseline/"):
        return "baseline"
    if model in registry.names("warp"):
        return "warp"
    return "control" if model.endswith("]") else "architecture"


def _budget(comparison: Mapping[str, Any]) -> str:
    budget = comparison.get("budget")
    return f"{budget['amount']:,.10g} {UNITS[budget['kind']]}" if budget else NOT_RECORDED


def _setting(row: Row, pairs: Sequence[tuple[str, str, str]], budget: str) -> dict[str, str]:
    """What a row shares with every row it may be compared with, briefly and in full."""
    known = row.provenance
    metrics = known.get("metrics", {})
    size = "x".join(str(side) for side in known.get("size", ())) or f"size {NOT_RECORDED}"
    held = [f"protocol {row.rules}", f"mask {known.get('mask', NOT_RECORDED)}"]
    held += [f"{order} pairs {digest}" for order, category, digest in pairs if category == "all"]
    held += [f"{name} network: {weights}" for name, weights in metrics.get("networks", {}).items()]
    held = "; ".join(held)
    categories = ", ".join(dict.fromkeys(category for _, category, _ in pairs if category != "all"))
    brief = f"{row.data} {row.split}{f' ({categories})' if categories else ''}, {size}, training budget {budget}"
    return {
        "budget": budget,
        "held": held,
        "setting": f"{brief} [{hashlib.sha256(held.encode()).hexdigest()[:4]}]",
    }
