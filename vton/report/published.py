"""Published numbers as data frames: what papers print, and the directions they claim."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from vton.errors import UserError
from vton.report import columns
from vton.report.published_file import PUBLISHED, read_file

CLAIM = ["name", "row", "than", "order", "metric", "sign", "says"]
ANY_METRIC = "*"  # of a claim about every metric of an order


@dataclass(frozen=True)
class Published:
    """The published numbers, and what follows from them.

    values: a line per printed value. name, kind, study, paper, source (the paper in words), table,
        data, category, protocol; place (of the column), order, metric; row (the method, or an
        ablation's row as in configs/ablation), label (the row in the paper's words), model (""
        where the method is none of ours); printed (text), scale, value (printed / scale), mark
    directions: a line per claim without numbers. study, paper, source, table, row, than, metrics
        (an order, or "" where pictures are the evidence), mark, says
    better: metric -> "higher" or "lower", of our metrics and of the papers' own
    models: the architectures, in the order of every table that holds them all
    """

    values: pd.DataFrame
    directions: pd.DataFrame
    better: dict[str, str]
    models: list[str]

    def base(self, metric: str) -> str:
        """The published metric behind one of ours: lpips for lpips_random.

        Raises UserError for a metric that the file does not name.
        """
        name = columns.base(metric, self.better)
        if name not in self.better:
            raise UserError(
                f"metric {metric} is not in `metrics` of {PUBLISHED}: "
                "add it and which way is better."
            )
        return name

    def towards(self, metric: str) -> int:
        """+1 where a higher value of the metric, or of its base, is better, -1 where a lower is."""
        return 1 if self.better[self.base(metric)] == "higher" else -1

    def of_table(self, name: str) -> pd.DataFrame:
        """The values of one table, in its order. Raises KeyError for a name that is not there."""
        values = self.values[self.values["name"] == name]
        if values.empty:
            raise KeyError(name)
        return values

    def of_own_papers(self) -> pd.DataFrame:
        """What the papers of our architectures print about these architectures."""
        return self.values.query("model != '' and paper == model")

    def rows_of(self, study: str) -> dict[str, str]:
        """The rows of an ablation in the paper's order, and how the paper calls each.

        Where no number is at hand: the rows that its directions name.
        """
        values = self.values[self.values["study"] == study]
        if len(values):
            return dict(zip(values["row"], values["label"], strict=True))
        directions = self.directions[self.directions["study"] == study]
        return {row: row for row in [*directions["than"], *directions["row"]]}

    def claims(self, names: list[str]) -> pd.DataFrame:
        """What tables say about the direction between every two of their rows, in every column.

        Lines of name, row, than (the row above it), order, metric, sign (+1: `row` is better, -1:
        worse, 0: equal) and says, the two printed values. Misprints make no claim.
        """
        lines = []
        for name in names:
            values = self.of_table(name).query("mark != 'misprint'")
            for (order, metric), column in values.groupby(["order", "metric"], sort=False):
                towards = self.towards(metric)
                for above, below in combinations(column.itertuples(), 2):
                    gain = towards * (below.value - above.value)
                    sign = (gain > 0) - (gain < 0)
                    says = f"{above.printed} → {below.printed}"
                    lines.append((name, below.row, above.row, order, metric, sign, says))
        return pd.DataFrame(lines, columns=CLAIM)

    def claims_of(self, study: str) -> pd.DataFrame:
        """The claims of an ablation: of its tables, and of sentences about a whole order."""
        names = self.values.loc[self.values["study"] == study, "name"].unique()
        claims = self.claims(list(names))
        spoken = self.directions.query("study == @study and metrics != ''")
        if spoken.empty:
            return claims
        spoken = spoken.assign(name=study, order=spoken["metrics"], metric=ANY_METRIC, sign=1)
        return pd.concat([claims, spoken[CLAIM]], ignore_index=True)

    def claims_between_models(self) -> pd.DataFrame:
        """The claims of every table that holds two of our architectures, named as here.

        A table may hold one of them in two rows; how these differ is no claim about others.
        """
        ours = self.values.query("model != '' and kind in ['comparison', 'requoted']")
        counts = ours.groupby("name", sort=False)["model"].nunique()
        claims = self.claims(list(counts.index[counts > 1]))
        models = dict(zip(ours["row"], ours["model"], strict=True))
        claims["row"] = claims["row"].map(models)
        claims["than"] = claims["than"].map(models)
        claims = claims.dropna(subset=["row", "than"])
        return claims[claims["row"] != claims["than"]]


def read_published(path: Path = PUBLISHED) -> Published:
    """The file of published numbers. Raises UserError naming the table and what does not fit."""
    file = read_file(path)
    return Published(
        pd.DataFrame(file.values), pd.DataFrame(file.directions), file.better, file.models
    )
