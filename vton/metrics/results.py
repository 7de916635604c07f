"""Rows of results.json, which tables and notebooks read.

A row is one (model, data, order, region, category):

    {"model": "gardiff", "data": "synthetic", "split": "test",
     "order": "paired", "region": "garment", "category": "all", "protocol": "exact", "n": 200,
     "metrics": {"ssim": 0.91, "psnr": 21.4, "lpips_random": 0.08, "fid_random": 12.3, ...},
     "provenance": {...}}

`kid` is stored as torchmetrics returns it; tables print it times 1000, as papers do.

provenance.intervals holds lower and upper end of each metric's 95 % interval, and
provenance.deviations what it comes from: how the metric deviates over resampled pairs, from which
the interval of a difference between two rows is computed (resampling.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from vton.errors import UserError, one_line
from vton.files import write_atomically

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "torchmetrics",
    "piq",
    "lpips",
    "omegaconf",
    "numpy",
    "pillow",
    "scipy",
)

# What tables and notebooks read of a row's provenance, where it has it, and its type in JSON.
FACTS = {
    "training": dict,  # null where nobody knows it
    "metrics": dict,
    "comparison": dict,
    "cost": dict,
    "deviations": dict,
    "absent": dict,
    "left_out": dict,
    "size": list,
    "commit": str,
    "pairs_sha256": str,
    "checkpoint_sha256": str,
    "settings_sha256": str,
}


@dataclass
class Row:
    """One row of results.json."""

    model: str  # "gardiff", "gardiff[shuffled]" or "baseline/..."
    data: str
    split: str
    order: Literal["paired", "unpaired"]
    region: Literal["image", "garment"]
    category: str  # "all" or a category
    protocol: str
    n: int  # pairs measured
    metrics: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def rules(self) -> str:
        """The protocol, its version and what was changed in it: "exact v1 with repaint=True"."""
        settings = self.provenance.get("metrics", {})
        number = settings.get("protocol", {}).get("version", "?")
        rules = f"{self.protocol} v{number}"
        if settings.get("changes"):
            rules += f" with {', '.join(settings['changes'])}"
        return rules


def digest_of_ids(ids: Iterable[str]) -> str:
    """SHA-256 of the sorted ids, one a line: rows with the same digest measured the same pairs."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def provenance(**parts: Any) -> dict[str, Any]:
    """The common part of every row's provenance: what the caller knows, and the versions.

    The evaluation passes checkpoint and config digests, commit, seed, mask rule, solver, steps,
    guidance, device and wall time as `parts`. `compute_rows` adds the metrics' settings and the
    digest of each row's pairs.
    """
    return {**parts, "versions": versions()}


def versions() -> dict[str, str]:
    """Python and the packages that numbers depend on; those not installed are left out."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write results.json, whole or not at all. NaN is refused (ValueError)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False)
    write_atomically(path, text + "\n")


def read_results(path: Path) -> list[Row]:
    """Rows of a results.json. Raises UserError naming the file and the first row that is wrong."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not readable as results: {one_line(error)}. Run the evaluation again."
        ) from error
    if not isinstance(stored, list):
        raise UserError(
            f"{path}: expected a list of rows, found {type(stored).__name__}. "
            "Run the evaluation again."
        )
    known = {item.name for item in fields(Row)}
    for index, row in enumerate(stored):
        keys = set(row) if isinstance(row, dict) else set()
        if keys != known:
            raise UserError(
                f"{path}: row {index} lacks {sorted(known - keys) or 'nothing'} "
                f"and has unknown keys {sorted(keys - known) or 'none'}; "
                "it was written by another version. Run the evaluation again."
            )
        wrong = _wrong_value(Row(**row))
        if wrong:
            raise UserError(f"{path}: row {index} has {wrong}. Run the evaluation again.")
    return [Row(**row) for row in stored]


def _wrong_value(row: Row) -> str:
    """The first value that no row can have, in words; "" where there is none."""
    for name in ("model", "data", "split", "order", "region", "category", "protocol"):
        if not isinstance(getattr(row, name), str):
            return f"{name}={_shortly(getattr(row, name))}, which is not text"
    if row.order not in ("paired", "unpaired") or row.region not in ("image", "garment"):
        return f"order={_shortly(row.order)} and region={_shortly(row.region)}, which no row has"
    if type(row.n) is not int or row.n < 0:
        return f"n={_shortly(row.n)}, which is not a number of pairs"
    for name in ("metrics", "provenance"):
        if not isinstance(getattr(row, name), dict):
            return f"{name}={_shortly(getattr(row, name))}, where values by name are expected"
    for name, value in row.metrics.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            return f"metrics.{name}={_shortly(value)}, which is not a finite number"
    for name, kind in FACTS.items():
        value = row.provenance.get(name)
        if value is not None and not isinstance(value, kind):
            return f"provenance.{name}={_shortly(value)}, which is of another type"
    return ""


def _shortly(value: Any) -> str:
    return repr(value)[:40]
