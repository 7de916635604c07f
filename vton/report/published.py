"""Published numbers: results/published.yaml, checked against its schema, as data frames.

The file keeps every value as the paper prints it. Here KID comes off the printed scale (x100 or x1000), so that a value
stands on the scale of results.json; the printed text stays beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd
import yaml

from vton.errors import UserError

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published.yaml"
ORDERS = ("paired", "unpaired", "unstated", "generated")
KINDS = ("comparison", "ablation", "user_study", "requoted")
MARKS = {"stated": "", "second_hand": "²", "recalled": "?", "inferred": "~", "misprint": "!"}  # mark -> sign in tables
ABSENT = "~"
REQUIRED = {"name", "kind", "paper", "table", "data", "protocol", "mark", "columns", "rows"}
OPTIONAL = {"category", "marks", "study"}
DIRECTION = {"study", "paper", "table", "row", "than", "metrics", "mark", "says"}
_COLUMN = re.compile(r"(?P<order>\w+) (?P<metric>\w+)(?: x(?P<scale>100|1000))?")


class PublishedError(UserError):
    """The file of published numbers does not fit its schema."""


@dataclass(frozen=True)
class Published:
    """values: a line per printed value. name, kind, study, paper, source (the paper in words), table, data, category,
    protocol; order, metric, method, model ("" where the method is none of ours); printed (text), scale, value
    (printed / scale), mark.
    directions: a line per claim without numbers. study, paper, source, table, row, than, metrics (an order, or "" where
    pictures are the evidence), mark, says.
    better: metric -> "higher" or "lower".
    """

    values: pd.DataFrame
    directions: pd.DataFrame
    better: dict[str, str]

    def of_table(self, name: str) -> pd.DataFrame:
        """The values of one table, in its order. Raises KeyError for a name that is not there."""
        found = self.values[self.values["name"] == name]
        if found.empty:
            raise KeyError(name)
        return found

    def rows_of(self, study: str) -> list[str]:
        """The rows of an ablation, in the paper's order; of one without numbers, what is named there."""
        rows = self.values.loc[self.values["study"] == study, "method"]
        said = self.directions[self.directions["study"] == study]
        return list(dict.fromkeys([*rows, *said["than"], *said["row"]]))

    def claims(self, names: list[str]) -> pd.DataFrame:
        """What tables say about the direction between every two of their rows, in every column.

        Lines of row, than (the row above it), data, order, metric, sign (+1: `row` is better, -1: worse, 0: equal) and
        says, the two printed values. Misprints make no claim.
        """
        lines = []
        for name in names:
            sound = self.of_table(name).query("mark != 'misprint'")
            for (order, metric), column in sound.groupby(["order", "metric"], sort=False):
                towards = 1 if self.better[metric] == "higher" else -1
                for above, below in combinations(column.itertuples(), 2):
                    gain = towards * (below.value - above.value)
                    lines.append(
                        {
                            "row": below.method, "than": above.method, "data": below.data, "order": order,
                            "metric": metric, "sign": (gain > 0) - (gain < 0),
                            "says": f"{above.printed} → {below.printed}",
                        }
                    )  # fmt: skip
        return pd.DataFrame(lines, columns=["row", "than", "data", "order", "metric", "sign", "says"])


def read_published(path: Path = PUBLISHED) -> Published:
    """The file of published numbers. Raises PublishedError naming the table and what does not fit."""
    try:
        stored = yaml.load(Path(path).read_text(encoding="utf-8"), _TextLoader)
    except (OSError, yaml.YAMLError) as error:
        raise PublishedError(f"{path}: not readable as published numbers: {error}") from error
    better, systems, papers = stored["metrics"], stored["systems"], stored["papers"]
    values = [line for table in stored["tables"] for line in _lines(table, better, systems, papers, path)]
    names = [table["name"] for table in stored["tables"]]
    if len(set(names)) < len(names):
        raise PublishedError(f"{path}: a table's name stands twice: {sorted({n for n in names if names.count(n) > 1})}")
    directions = [_direction(entry, papers, path) for entry in stored["directions"]]
    return Published(pd.DataFrame(values), pd.DataFrame(directions), better)


class _TextLoader(yaml.SafeLoader):
    """Every scalar is its own text, so that 0.300 stays 0.300; a key that stands twice is an error."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<$"))]}  # noqa: RUF012

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys):
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise yaml.constructor.ConstructorError(None, None, f"{twice} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _lines(table: dict, better: dict, systems: dict, papers: dict, path: Path) -> list[dict]:
    where = f"{path}: table {table.get('name')}"
    _require(not REQUIRED - set(table), f"{where} lacks {sorted(REQUIRED - set(table))}")
    unknown = set(table) - REQUIRED - OPTIONAL
    _require(not unknown, f"{where} has unknown keys {sorted(unknown)}")
    _require(table["kind"] in KINDS, f"{where}: kind is {table['kind']}, not one of {KINDS}")
    _require(table["paper"] in papers, f"{where}: paper {table['paper']} is not in `papers`")
    _require((table["kind"] == "ablation") == ("study" in table), f"{where}: an ablation, and nothing else, has a study")
    columns = []
    for text in table["columns"]:
        match = _COLUMN.fullmatch(text)
        known = match and match["order"] in ORDERS and match["metric"] in better
        scaled = match and (match["metric"] == "kid") == bool(match["scale"])
        _require(known and scaled, f'{where}: column "{text}" is not "<order> <metric>", with x100 or x1000 for KID alone')
        columns.append((match["order"], match["metric"], int(match["scale"] or 1)))
    _require(len({c[:2] for c in columns}) == len(columns), f"{where}: a column stands twice")
    marks = table.get("marks", {})
    cells = {(method, column) for method, chosen in marks.items() for column in chosen}
    named = {"*", *table["rows"]}, {f"{order} {metric}" for order, metric, _ in columns}
    for method, column in cells:
        _require(method in named[0] and column in named[1], f"{where}: mark of {method}, {column}: no such cell")
    common = {
        "name": table["name"], "kind": table["kind"], "study": table.get("study", ""), "paper": table["paper"],
        "source": papers[table["paper"]], "table": table["table"], "data": table["data"],
        "category": table.get("category", "all"), "protocol": table["protocol"],
    }  # fmt: skip
    lines = []
    for method, row in table["rows"].items():
        _require(len(row) == len(columns), f"{where}: {method} has {len(row)} values for {len(columns)} columns")
        for printed, (order, metric, scale) in zip(row, columns, strict=True):
            if printed == ABSENT:
                continue
            _require(re.fullmatch(r"-?\d+(\.\d+)?", printed), f"{where}: {method}, {metric}: {printed} is no number")
            column = f"{order} {metric}"
            mark = marks.get(method, {}).get(column) or marks.get("*", {}).get(column) or table["mark"]
            _require(mark in MARKS, f"{where}: mark {mark} is not one of {sorted(MARKS)}")
            model = (table["paper"] if table["kind"] == "ablation" else systems.get(method)) or ""
            lines.append(
                common | {"order": order, "metric": metric, "method": method, "model": model, "printed": printed,
                          "scale": scale, "value": float(printed) / scale, "mark": mark}
            )  # fmt: skip
    return lines


def _direction(entry: dict, papers: dict, path: Path) -> dict:
    where = f"{path}: direction {entry.get('study')}, {entry.get('row')}"
    _require(set(entry) == DIRECTION, f"{where} needs exactly {sorted(DIRECTION)}")
    _require(entry["metrics"] in (*ORDERS, ABSENT), f"{where}: metrics is {entry['metrics']}, not an order or {ABSENT}")
    _require(entry["mark"] in MARKS and entry["paper"] in papers, f"{where}: unknown mark or paper")
    metrics = "" if entry["metrics"] == ABSENT else entry["metrics"]
    return entry | {"metrics": metrics, "source": papers[entry["paper"]]}


def _require(holds: object, problem: str) -> None:
    if not holds:
        raise PublishedError(problem + ".")
