"""Our own numbers: the rows of every results.json below results/ as one data frame."""

from __future__ import annotations

import hashlib
import math
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
from vton.report.seeds import require_seeds, setting_difference, training_seed
from vton.report.tables import is_baseline, is_control

RESULTS = Path(__file__).resolve().parents[2] / "results"
PICTURES = (".jpg", ".png")
NOT_RECORDED = "not recorded"
BASELINE_TOLERANCE = 5e-3  # of a metric that two folders hold for one baseline
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
class Measurement:
    """A row of a results.json."""

    key: RowKey
    row: Row

    @property
    def method(self) -> tuple:
        """Equal for rows that are averaged if they are training seeds of one setting."""
        key = self.key
        return key.model, key.row, key.order, key.region, key.category

    def copies(self, other: Measurement) -> bool:
        """Whether both are one measurement of the same weights.

        Those of baselines, which have none, may differ by the order of sums.
        """
        if self.key.run != other.key.run:
            return False
        tolerance = BASELINE_TOLERANCE if self.key.kind == "baseline" else 0
        for metric in self.row.metrics.keys() & other.row.metrics.keys():
            value, known = self.row.metrics[metric], other.row.metrics[metric]
            if not math.isclose(value, known, rel_tol=tolerance, abs_tol=tolerance * 1e-3):
                return False
        return True


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

    A baseline that was measured beside several architectures stands once. Folders whose rows are
    not training seeds of one thing get settings of their own. Raises UserError for a folder that
    does not exist, a file that does not hold rows, and one that holds a method in two settings.
    """
    root = Path(root or os.environ.get("VTON_RESULTS") or RESULTS)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder of results. Name one in VTON_RESULTS, or leave it unset."
        )
    measurements: list[Measurement] = []
    for path in sorted(root.rglob("results.json")):
        folder = str(path.parent.relative_to(root))
        measurements += _measurements(read_results(path), folder, path)
    _keep_apart(measurements)
    lines = []
    for measurement in measurements:
        lines += _lines(measurement)
    values = pd.DataFrame(lines, columns=[*IDENTITY, *COSTS, *ORIGIN, "metric", "value"])
    return Measured(root, values[~_repeated(values)].reset_index(drop=True))


def _repeated(values: pd.DataFrame) -> pd.Series:
    """Whether the same line stands above in another folder; of a baseline, a line of its metric."""
    value = values["value"].where(values["kind"] != "baseline", 0)
    keys = values[[*IDENTITY, "metric"]].drop(columns="folder")
    return keys.assign(value=value).duplicated()


def _measurements(rows: Sequence[Row], folder: str, path: Path) -> list[Measurement]:
    """The rows of one file, which belong to one run or to one comparison.

    Raises UserError for rows of one method that are not its training seeds.
    """
    comparison = _comparison(rows)
    pairs = _pairs(rows)
    measurements = []
    seeds: dict[tuple, list[Row]] = {}
    for row in rows:
        measurement = Measurement(_identity(row, folder, comparison, pairs), row)
        measurements.append(measurement)
        seeds.setdefault(measurement.method, []).append(row)
    for same in seeds.values():
        first = same[0]
        require_seeds(same, f"{path}: {first.model} ({first.order}, {first.region})")
    return measurements


def _keep_apart(measurements: Sequence[Measurement]) -> None:
    """Give settings of their own to folders that cannot be averaged with those before them.

    What a folder holds of one setting stays together, so that its methods and baselines can be
    compared. It joins the first section of its setting in which every method is another training
    seed of the one that is there.
    """
    by_setting: dict[str, dict[str, list[Measurement]]] = {}
    for measurement in measurements:
        folders = by_setting.setdefault(measurement.key.setting, {})
        folders.setdefault(measurement.key.folder, []).append(measurement)
    for setting, folders in by_setting.items():
        sections: dict[str, list[Measurement]] = {}
        for own in folders.values():
            name = setting
            for section, others in sections.items():
                problem = _clash(others, own)
                if not problem:
                    name = section
                    break
                if section == setting:
                    name = f"{setting}, kept apart: {problem}"
            sections.setdefault(name, []).extend(own)
            for measurement in own:
                measurement.key.setting = name


def _clash(others: Sequence[Measurement], own: Sequence[Measurement]) -> str:
    """Why rows of another folder are no further seeds of the others, in words; "" if they are."""
    known: dict[tuple, list[Measurement]] = {}
    for measurement in others:
        known.setdefault(measurement.method, []).append(measurement)
    for measurement in own:
        for other in known.get(measurement.method, ()):
            if measurement.copies(other):
                continue
            name = measurement.row.model
            folders = f"{other.key.folder} and {measurement.key.folder}"
            if measurement.key.kind == "baseline":
                return f"{name} has other values in {folders}"
            difference = setting_difference(other.row, measurement.row)
            if difference:
                return f"in {folders}, {difference} for {name}"
            seed = training_seed(measurement.row)
            if seed == training_seed(other.row):
                return f"{folders} both hold {name} with training seed {seed}"
    return ""


def _lines(measurement: Measurement) -> list[dict[str, Any]]:
    """A line for each metric of a row."""
    row = measurement.row
    facts = asdict(measurement.key)
    spent = costs(row)
    facts |= {column: spent[name] for column, name in COSTS.items()}
    facts |= {name: row.provenance.get(name) for name in ORIGIN}
    return [{**facts, "metric": metric, "value": value} for metric, value in row.metrics.items()]


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
