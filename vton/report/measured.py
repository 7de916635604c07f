"""Our own numbers: the rows of every results.json below results/, whatever folder they lie in, as one data frame."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vton.errors import UserError
from vton.metrics.results import Row, read_results

RESULTS = Path(__file__).resolve().parents[2] / "results"
PICTURES = (".jpg", ".png")
NOT_RECORDED = "not recorded"

# What `vton compare` and `vton ablate` add to a row's provenance, and what they call it. A row that lacks one is shown
# without it.
ABLATION_ROW = "row"  # of configs/ablation/<file>.yaml; absent or empty: the architecture itself
COMPARISON = "comparison"  # the folder below results/
BUDGET = "budget"  # what training was given, the same for every row of a comparison
SEED = "seed"
ORIGIN = ("commit", "solver", "steps", "guidance", "device", "mask", "warp")  # what the evaluation itself records
COSTS = {  # column -> key
    "parameters": "params",
    "FLOP a picture": "flops",
    "seconds a picture": "seconds_per_picture",
    "training seconds": "train_seconds",
    "peak memory, GiB": "memory_gib",
}


@dataclass(frozen=True)
class Measured:
    """values: a line per metric of a row. folder (below `root`), model, kind (architecture, control or baseline), row
    (of an ablation, or ""), data, split, order, region, category, n, seed, run (what a second seed differs in), budget,
    setting (only rows of one setting may be compared), held (what else they share, in words), metric, value, and the
    columns of COSTS and ORIGIN.
    """

    root: Path
    values: pd.DataFrame

    @property
    def comparison(self) -> pd.DataFrame:
        """Values of the architectures as they are, with controls and baselines."""
        return self.values[self.values["row"] == ""]

    def ablation(self, model: str) -> pd.DataFrame:
        """Values of the ablation rows of one architecture, without controls and baselines."""
        return self.values[(self.values["row"] != "") & (self.values["model"] == model)]

    def pictures(self, values: pd.DataFrame) -> list[Path]:
        """Grids of pictures in the folders that these values come from."""
        folders = [self.root / folder for folder in values["folder"].unique()]
        return [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in PICTURES]


def read_measured(root: Path | None = None) -> Measured:
    """Every results.json below root; by default $VTON_RESULTS, or the repository's results/.

    The same baseline measured beside several architectures stands once. Raises UserError for a folder that does not
    exist or a file that does not hold rows.
    """
    root = Path(root or os.environ.get("VTON_RESULTS") or RESULTS)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of results. Name one in VTON_RESULTS, or leave it unset.")
    lines = []
    for path in sorted(root.rglob("results.json")):
        rows = read_results(path)
        pairs = sorted({(row.order, row.category, row.provenance.get("pairs_sha256", "")[:6]) for row in rows})
        for row in rows:
            lines += _lines(row, str(path.parent.relative_to(root)), pairs)
    values = pd.DataFrame(lines, columns=[*_FIXED, *COSTS, *ORIGIN, "metric", "value"])
    # what learned nothing differs by the order of sums at most
    rounded = values["value"].where(values["kind"] != "baseline", values["value"].map("{:.3g}".format))
    same = values[[name for name in _FIXED if name != "folder"] + ["metric"]].assign(value=rounded)
    return Measured(root, values[~same.duplicated()].reset_index(drop=True))


_FIXED = (
    "folder", "model", "kind", "row", "data", "split", "order", "region", "category", "n", "seed", "run", "budget",
    "setting", "held",
)  # fmt: skip


def _lines(row: Row, folder: str, pairs: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    known = row.provenance
    kind = "baseline" if row.model.startswith("baseline/") else "control" if row.model.endswith("]") else "architecture"
    learned = kind != "baseline"  # a baseline has no seed: what is measured twice is the same
    common = {
        "folder": folder, "model": row.model, "kind": kind, "row": known.get(ABLATION_ROW) or "", "data": row.data,
        "split": row.split, "order": row.order, "region": row.region, "category": row.category, "n": row.n,
        "seed": known.get(SEED) if learned else None, "run": known.get("checkpoint_sha256", folder) if learned else "",
    } | _setting(row, pairs)  # fmt: skip
    common |= {column: known.get(key) for column, key in COSTS.items()} | {key: known.get(key) for key in ORIGIN}
    return [common | {"metric": metric, "value": value} for metric, value in row.metrics.items()]


def _setting(row: Row, pairs: list[tuple[str, str, str]]) -> dict[str, str]:
    """What a row shares with every row it may be compared with, briefly and in full."""
    known = row.provenance
    metrics = known.get("metrics", {})
    size = "x".join(str(side) for side in known.get("size", ())) or "size not recorded"
    budget = known.get(BUDGET, NOT_RECORDED)
    budget = budget if isinstance(budget, str) else json.dumps(budget, sort_keys=True)
    held = [f"protocol {row.protocol} v{metrics.get('protocol', {}).get('version', '?')}"]
    held += [f"{order} pairs {digest}" for order, category, digest in pairs if category == "all"]
    held += [f"{name} network: {weights}" for name, weights in metrics.get("networks", {}).items()]
    held = "; ".join(held)
    brief = f"{row.data} {row.split}, {size}, training budget {budget}"
    return {"budget": budget, "held": held, "setting": f"{brief} [{hashlib.sha256(held.encode()).hexdigest()[:4]}]"}
