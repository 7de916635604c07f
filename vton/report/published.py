"""Published numbers: results/published.yaml, checked against its schema, as data frames.

The file keeps every value as the paper prints it. Here KID comes off the printed scale (x100 or
x1000), so that a value stands on the scale of results.json; the printed text stays beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from vton.errors import UserError
from vton.report import tables

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published.yaml"
ORDERS = ("paired", "unpaired", "unstated", "generated")
KINDS = ("comparison", "ablation", "user_study", "requoted")
MARKS = {
    "stated": "",
    "second_hand": "²",
    "recalled": "?",
    "inferred": "~",
    "misprint": "!",
}  # mark -> sign in tables
ABSENT = "~"
OURS = {
    metric: "higher" if metric in tables.HIGHER_IS_BETTER else "lower" for metric in tables.DIGITS
}
REQUIRED = {"name", "kind", "paper", "table", "data", "protocol", "mark", "columns", "rows"}
OPTIONAL = {"category", "marks", "study", "labels"}
DIRECTION = {"study", "paper", "table", "row", "than", "metrics", "mark", "says"}
CLAIM = ("name", "row", "than", "order", "metric", "sign", "says")
_COLUMN = re.compile(r"(?P<order>\w+) (?P<metric>\w+)(?: x(?P<scale>100|1000))?")


class PublishedError(UserError):
    """The file of published numbers does not fit its schema."""


@dataclass(frozen=True)
class Published:
    """values: a line per printed value. name, kind, study, paper, source (the paper in words),
    table, data, category, protocol; place (of the column), order, metric, row (the method, or an
    ablation's row as in configs/ablation), label (the row in the paper's words), model ("" where
    the method is none of ours); printed (text), scale, value (printed / scale), mark.
    directions: a line per claim without numbers. study, paper, source, table, row, than, metrics
    (an order, or "" where pictures are the evidence), mark, says.
    better: metric -> "higher" or "lower", of our metrics and of the papers' own.
    models: the architectures, in the order of every table that holds them all.
    """

    values: pd.DataFrame
    directions: pd.DataFrame
    better: dict[str, str]
    models: list[str]

    def base(self, metric: str) -> str:
        """The published metric that one of ours measures with its own weights: lpips for
        lpips_random.

        Raises PublishedError for a metric that the file does not name.
        """
        name = tables.base(metric, self.better)
        if name not in self.better:
            raise PublishedError(
                f"metric {metric} is not in `metrics` of {PUBLISHED}: add it and which way is better."
            )
        return name

    def towards(self, metric: str) -> int:
        """+1 where a higher value of the metric, or of the one it is based on, is better, -1 where
        a lower one is.
        """
        return 1 if self.better[self.base(metric)] == "higher" else -1

    def of_table(self, name: str) -> pd.DataFrame:
        """The values of one table, in its order. Raises KeyError for a name that is not there."""
        found = self.values[self.values["name"] == name]
        if found.empty:
            raise KeyError(name)
        return found

    def rows_of(self, study: str) -> dict[str, str]:
        """The rows of an ablation in the paper's order, with its words; where no number is at hand,
        what is named.
        """
        lines = self.values[self.values["study"] == study]
        said = self.directions[self.directions["study"] == study]
        named = dict(zip(lines["row"], lines["label"], strict=True))
        return named or {row: row for row in [*said["than"], *said["row"]]}

    def claims(self, names: list[str]) -> pd.DataFrame:
        """What tables say about the direction between every two of their rows, in every column.

        Lines of name, row, than (the row above it), order, metric, sign (+1: `row` is better, -1:
        worse, 0: equal) and says, the two printed values. Misprints make no claim.
        """
        lines = []
        for name in names:
            sound = self.of_table(name).query("mark != 'misprint'")
            for (order, metric), column in sound.groupby(["order", "metric"], sort=False):
                for above, below in combinations(column.itertuples(), 2):
                    gain = self.towards(metric) * (below.value - above.value)
                    lines.append(
                        {
                            "name": name,
                            "row": below.row,
                            "than": above.row,
                            "order": order,
                            "metric": metric,
                            "sign": (gain > 0) - (gain < 0),
                            "says": f"{above.printed} → {below.printed}",
                        }
                    )
        return pd.DataFrame(lines, columns=list(CLAIM))

    def claims_of(self, study: str) -> pd.DataFrame:
        """The claims of an ablation: of its tables, and of sentences about every metric of an order
        (metric "*").
        """
        tables = self.claims(list(self.values.loc[self.values["study"] == study, "name"].unique()))
        said = self.directions[
            (self.directions["study"] == study) & (self.directions["metrics"] != "")
        ]
        said = said.assign(name=study, order=said["metrics"], metric="*", sign=1)
        return pd.concat([tables, said[list(CLAIM)]], ignore_index=True) if len(said) else tables

    def claims_between_models(self) -> pd.DataFrame:
        """The claims of every table that holds two of our architectures, named as here."""
        ours = self.values[
            (self.values["model"] != "") & self.values["kind"].isin(["comparison", "requoted"])
        ]
        shared = [
            name for name, table in ours.groupby("name", sort=False) if table["model"].nunique() > 1
        ]
        named = dict(zip(ours["row"], ours["model"], strict=True))
        claims = self.claims(shared)
        claims = claims[claims["row"].isin(named) & claims["than"].isin(named)]
        return claims.assign(row=claims["row"].map(named), than=claims["than"].map(named))


def read_published(path: Path = PUBLISHED) -> Published:
    """The file of published numbers. Raises PublishedError naming the table and what does not fit."""
    try:
        stored = yaml.load(Path(path).read_text(encoding="utf-8"), _TextLoader)
    except (OSError, yaml.YAMLError) as error:
        raise PublishedError(f"{path}: not readable as published numbers: {error}") from error
    missing = {"metrics", "systems", "papers", "tables", "directions"} - set(stored or ())
    _require(not missing, f"{path} lacks {sorted(missing)}")
    twice = sorted(OURS.keys() & stored["metrics"].keys())
    _require(not twice, f"{path}: metrics {twice} are ours already")
    better, systems, papers = OURS | stored["metrics"], stored["systems"], stored["papers"]
    values = [
        line for table in stored["tables"] for line in _lines(table, better, systems, papers, path)
    ]
    names = [table["name"] for table in stored["tables"]]
    if len(set(names)) < len(names):
        raise PublishedError(
            f"{path}: a table's name stands twice: {sorted({n for n in names if names.count(n) > 1})}"
        )
    directions = [_direction(entry, papers, path) for entry in stored["directions"]]
    return Published(
        pd.DataFrame(values),
        pd.DataFrame(directions),
        better,
        list(dict.fromkeys(systems.values())),
    )


class _TextLoader(yaml.SafeLoader):
    """Every scalar is its own text, so that 0.300 stays 0.300; a key that stands twice is an error."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<$"))]}

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys):
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice} stands twice", node.start_mark
            )
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
    _check(table, papers, where)
    columns = _columns(table, better, where)
    labels, marks = table.get("labels", {}), _marks(table, columns, where)
    common = {
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
        _require(
            len(row) == len(columns),
            f"{where}: {method} has {len(row)} values for {len(columns)} columns",
        )
        model = (table["paper"] if table["kind"] == "ablation" else systems.get(method)) or ""
        for place, (printed, column) in enumerate(zip(row, columns, strict=True)):
            if printed == ABSENT:
                continue
            number = re.fullmatch(r"-?\d+(\.\d+)?", printed)
            _require(number, f"{where}: {method}, {column.metric}: {printed} is no number")
            lines.append(
                common
                | {
                    "place": place,
                    "order": column.order,
                    "metric": column.metric,
                    "row": method,
                    "label": labels.get(method, method),
                    "model": model,
                    "printed": printed,
                    "scale": column.scale,
                    "value": float(printed) / column.scale,
                    "mark": marks.get((method, str(column)))
                    or marks.get(("*", str(column)))
                    or table["mark"],
                }
            )
    return lines


def _check(table: dict, papers: dict, where: str) -> None:
    """Raise PublishedError for keys and words that do not fit the schema."""
    _require(not REQUIRED - set(table), f"{where} lacks {sorted(REQUIRED - set(table))}")
    unknown = set(table) - REQUIRED - OPTIONAL
    _require(not unknown, f"{where} has unknown keys {sorted(unknown)}")
    _require(table["kind"] in KINDS, f"{where}: kind is {table['kind']}, not one of {KINDS}")
    _require(table["paper"] in papers, f"{where}: paper {table['paper']} is not in `papers`")
    _require(
        (table["kind"] == "ablation") == ("study" in table),
        f"{where}: an ablation, and only that, has a study",
    )
    strange = sorted(set(table.get("labels", {})) - set(table["rows"]))
    _require(not strange, f"{where}: labels of {strange}: no such row")


def _columns(table: dict, better: dict, where: str) -> list[_Column]:
    columns = []
    for text in table["columns"]:
        match = _COLUMN.fullmatch(text)
        known = match and match["order"] in ORDERS and match["metric"] in better
        scaled = match and (match["metric"] == "kid") == bool(match["scale"])
        _require(
            known and scaled,
            f'{where}: column "{text}" is not "<order> <metric>", with x100 or x1000 for KID',
        )
        columns.append(_Column(match["order"], match["metric"], int(match["scale"] or 1)))
    _require(len(set(map(str, columns))) == len(columns), f"{where}: a column stands twice")
    return columns


def _marks(table: dict, columns: list[_Column], where: str) -> dict[tuple[str, str], str]:
    """Marks by method, or "*", and column."""
    marks = {
        (method, at): mark
        for method, chosen in table.get("marks", {}).items()
        for at, mark in chosen.items()
    }
    for method, at in marks:
        known = method in {"*", *table["rows"]} and at in map(str, columns)
        _require(known, f"{where}: mark of {method}, {at}: no such cell")
    for mark in (table["mark"], *marks.values()):
        _require(mark in MARKS, f"{where}: mark {mark} is not one of {sorted(MARKS)}")
    return marks


def _direction(entry: dict, papers: dict, path: Path) -> dict:
    where = f"{path}: direction {entry.get('study')}, {entry.get('row')}"
    _require(set(entry) == DIRECTION, f"{where} needs exactly {sorted(DIRECTION)}")
    _require(
        entry["metrics"] in (*ORDERS, ABSENT),
        f"{where}: metrics is {entry['metrics']}, not an order or {ABSENT}",
    )
    _require(entry["mark"] in MARKS and entry["paper"] in papers, f"{where}: unknown mark or paper")
    metrics = "" if entry["metrics"] == ABSENT else entry["metrics"]
    return entry | {"metrics": metrics, "source": papers[entry["paper"]]}


def _require(holds: object, problem: str) -> None:
    if not holds:
        raise PublishedError(problem + ".")
