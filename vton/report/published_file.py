"""results/published.yaml, read and checked against its schema: a line for every printed value.

The file keeps every value as the paper prints it. Here KID comes off the printed scale (x100 or
x1000), so that a value stands on the scale of results.json; the printed text stays beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, NoReturn

import yaml

from vton.errors import UserError
from vton.report.columns import DIGITS, is_higher_better

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published.yaml"
ORDERS = ("paired", "unpaired", "unstated", "generated")
KINDS = ("comparison", "ablation", "user_study", "requoted")
MARKS = {  # how far a value can be trusted: its sign in tables
    "stated": "",
    "second_hand": "²",
    "recalled": "?",
    "inferred": "~",
    "misprint": "!",
}
ABSENT = "~"  # in place of a value: the paper prints none
SECTIONS = {"metrics", "systems", "papers", "tables", "directions"}
REQUIRED = {"name", "kind", "paper", "table", "data", "protocol", "mark", "columns", "rows"}
OPTIONAL = {"category", "marks", "study", "labels"}
DIRECTION = {"study", "paper", "table", "row", "than", "metrics", "mark", "says"}
EVERY_METHOD = "*"  # in `marks`
_COLUMN = re.compile(r"(?P<order>\w+) (?P<metric>\w+)(?: x(?P<scale>100|1000))?")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class PublishedTables:
    """The file's content, checked; `Published` documents the keys of a line."""

    values: list[dict]
    directions: list[dict]
    better: dict[str, str]
    models: list[str]


def read_file(path: Path = PUBLISHED) -> PublishedTables:
    """Raises UserError naming the table and what does not fit the schema."""
    try:
        stored = yaml.load(Path(path).read_text(encoding="utf-8"), _TextLoader)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as published numbers: {error}") from error
    missing = SECTIONS - set(stored or ())
    if missing:
        _refuse(f"{path} lacks {sorted(missing)}")
    known = DIGITS.keys() & stored["metrics"].keys()
    if known:
        _refuse(f"{path}: metrics {sorted(known)} are ours already")
    names = [table["name"] for table in stored["tables"] if "name" in table]
    if repeated := _repeated(names):
        _refuse(f"{path}: a table's name stands twice: {repeated}")
    without = set(stored["systems"].values()) - stored["papers"].keys()
    if without:
        _refuse(f"{path}: papers of {sorted(without)} are not in `papers`")
    better = dict(stored["metrics"])
    for metric in DIGITS:
        better[metric] = "higher" if is_higher_better(metric) else "lower"
    values = []
    for table in stored["tables"]:
        values += _lines(table, better, stored["systems"], stored["papers"], path)
    directions = [_direction(entry, stored["papers"], path) for entry in stored["directions"]]
    models = list(dict.fromkeys(stored["systems"].values()))
    return PublishedTables(values, directions, better, models)


class _TextLoader(yaml.SafeLoader):
    """Keeps every scalar as text, so that 0.300 stays 0.300; a repeated key is an error."""

    yaml_implicit_resolvers: ClassVar[dict] = {
        "<": [("tag:yaml.org,2002:merge", re.compile("<<$"))]
    }

    def construct_mapping(self, node, deep=False):
        repeated = _repeated(key.value for key, _ in node.value)
        if repeated:
            problem = f"{repeated} stands twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


class _Column(NamedTuple):
    order: str
    metric: str
    scale: int

    def __str__(self) -> str:
        return f"{self.order} {self.metric}"


def _lines(table: dict, better: dict, systems: dict, papers: dict, path: Path) -> list[dict]:
    """A line for every value that a table prints."""
    where = f"{path}: table {table.get('name')}"
    _check_keys(table, papers, where)
    columns = _columns(table, better, where)
    marks = _marks(table, columns, where)
    shared = {
        "name": table["name"],
        "kind": table["kind"],
        "study": table.get("study", ""),
        "paper": table["paper"],
        "source": papers[table["paper"]],
        "table": table["table"],
        "data": table["data"],
        "category": table.get("category", "all"),
        "protocol": table["protocol"],
    }
    lines = []
    for method, row in table["rows"].items():
        if len(row) != len(columns):
            _refuse(f"{where}: {method} has {len(row)} values for {len(columns)} columns")
        model = table["paper"] if table["kind"] == "ablation" else systems.get(method, "")
        label = table.get("labels", {}).get(method, method)
        for place, (printed, column) in enumerate(zip(row, columns, strict=True)):
            if printed == ABSENT:
                continue
            if not _NUMBER.fullmatch(printed):
                _refuse(f"{where}: {method}, {column.metric}: {printed} is no number")
            whole_column = marks.get((EVERY_METHOD, str(column)), table["mark"])
            cell = {
                "place": place,
                "order": column.order,
                "metric": column.metric,
                "row": method,
                "label": label,
                "model": model,
                "printed": printed,
                "scale": column.scale,
                "value": float(printed) / column.scale,
                "mark": marks.get((method, str(column)), whole_column),
            }
            lines.append(shared | cell)
    return lines


def _check_keys(table: dict, papers: dict, where: str) -> None:
    missing = REQUIRED - set(table)
    if missing:
        _refuse(f"{where} lacks {sorted(missing)}")
    unknown = set(table) - REQUIRED - OPTIONAL
    if unknown:
        _refuse(f"{where} has unknown keys {sorted(unknown)}")
    if table["kind"] not in KINDS:
        _refuse(f"{where}: kind is {table['kind']}, not one of {KINDS}")
    if table["paper"] not in papers:
        _refuse(f"{where}: paper {table['paper']} is not in `papers`")
    if (table["kind"] == "ablation") != ("study" in table):
        _refuse(f"{where}: an ablation, and only that, has a study")
    strange = set(table.get("labels", {})) - set(table["rows"])
    if strange:
        _refuse(f"{where}: labels of {sorted(strange)}: no such row")


def _columns(table: dict, better: dict, where: str) -> list[_Column]:
    columns = []
    for text in table["columns"]:
        match = _COLUMN.fullmatch(text)
        known = match and match["order"] in ORDERS and match["metric"] in better
        if not known or (match["metric"] == "kid") != bool(match["scale"]):
            _refuse(
                f'{where}: column "{text}" is not "<order> <metric>", with x100 or x1000 for KID'
            )
        columns.append(_Column(match["order"], match["metric"], int(match["scale"] or 1)))
    if _repeated(map(str, columns)):
        _refuse(f"{where}: a column stands twice")
    return columns


def _marks(table: dict, columns: list[_Column], where: str) -> dict[tuple[str, str], str]:
    """Marks of single cells by method, or EVERY_METHOD, and column."""
    methods = {EVERY_METHOD, *table["rows"]}
    headings = list(map(str, columns))
    marks = {}
    for method, chosen in table.get("marks", {}).items():
        for heading, mark in chosen.items():
            if method not in methods or heading not in headings:
                _refuse(f"{where}: mark of {method}, {heading}: no such cell")
            marks[method, heading] = mark
    for mark in (table["mark"], *marks.values()):
        if mark not in MARKS:
            _refuse(f"{where}: mark {mark} is not one of {sorted(MARKS)}")
    return marks


def _direction(entry: dict, papers: dict, path: Path) -> dict:
    """A claim without numbers. `metrics` is an order, or "" where pictures are the evidence."""
    where = f"{path}: direction {entry.get('study')}, {entry.get('row')}"
    if set(entry) != DIRECTION:
        _refuse(f"{where} needs exactly {sorted(DIRECTION)}")
    if entry["metrics"] not in (*ORDERS, ABSENT):
        _refuse(f"{where}: metrics is {entry['metrics']}, not an order or {ABSENT}")
    if entry["mark"] not in MARKS or entry["paper"] not in papers:
        _refuse(f"{where}: unknown mark or paper")
    metrics = "" if entry["metrics"] == ABSENT else entry["metrics"]
    return {**entry, "metrics": metrics, "source": papers[entry["paper"]]}


def _repeated(names: Iterable[str]) -> list[str]:
    counts = Counter(names)
    return sorted(name for name, count in counts.items() if count > 1)


def _refuse(problem: str) -> NoReturn:
    raise UserError(f"{problem}.")
