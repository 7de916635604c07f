"""A set of rows as pages of a notebook: tables, provenance, costs, charts, directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from vton.report.agreement import directions, listed, summary
from vton.report.charts import COLOURS, Point, bars, scatter
from vton.report.columns import metric_scale
from vton.report.formats import in_order, mean_and_spread, metric_name
from vton.report.measured import COSTS, NOT_RECORDED, ORIGIN, Measured, read_measured
from vton.report.page import Page, folded, heading, html_picture, html_table, sentences
from vton.report.published import Published, read_published
from vton.report.verdicts import verdicts

ORDERS = ("paired", "unpaired")
REGIONS = ("garment", "image")
PLACES = [(order, region) for order in ORDERS for region in REGIONS]
CHARTED = ("ssim", "lpips")  # in paired order and the garment's region, over these costs:
X_AXES = ("seconds a picture", "training seconds", "FLOP a picture", "parameters")
DIGEST_LENGTHS = (40, 64)  # of a commit and of SHA-256
RANDOM = (
    "Names that end in _random are the metric's own network with fixed random weights: they "
    "compare rows of one table here and are not the published metric."
)
UNEQUAL = "These rows record no training budget: they may have been trained for different times."
BestRows = Mapping[tuple[str, str, str], str]  # (order, region, metric) -> row


class View:
    """Our values, the names of their rows in the published order, and the papers' claims.

    by:     column of the values that names a row: "model" or "row"
    names:  every row that should be there -> how it is shown
    claims: what the papers say about these rows, as `Published.claims`
    """

    by: str
    names: dict[str, str]
    values: pd.DataFrame
    claims: pd.DataFrame

    def __init__(self, published: Published | None, measured: Measured | None):
        self.published = published or read_published()
        self.measured = measured or read_measured()

    def tables(self) -> Page:
        """Mean ± standard deviation over runs for each setting, order and region."""
        parts = [self._missing(self.values)]
        for title, values in self._settings():
            parts += [title, *self._tables(values, "all", self._best(values))]
            categories = values.loc[values["category"] != "all", "category"].unique()
            if len(categories) > 1:
                for category in categories:
                    parts.append(folded(category, *self._tables(values, category, {})))
            if values["metric"].str.endswith("_random").any():
                parts.append(sentences(RANDOM))
        return self._page(parts)

    def provenance(self) -> Page:
        """Where our rows come from, and what the rows of each setting share."""
        parts = []
        for title, values in self._settings():
            runs = values[values["kind"] == "architecture"].drop_duplicates([self.by, "run"])
            frame = runs.set_index(self.by)[["seed", *ORIGIN, "run", "folder"]]
            frame = frame.rename(columns={"run": "checkpoint", "steps": "sampling steps"})
            first = values.iloc[0]
            equal = f"Held equal: training budget {first['budget']}; {first['shared']}."
            parts += [title, sentences(equal), html_table(frame.map(_brief))]
        return self._page(parts)

    def costs(self) -> Page:
        """What each row cost, where it is recorded: means over orders and runs."""
        parts = []
        for title, values in self._settings():
            frame = self._costs(values).map(_cost)
            parts += [title, html_table(frame), sentences("Means over orders and runs.")]
        return self._page(parts)

    def pictures(self) -> Page:
        """The grids of pictures in the folders that our values come from."""
        parts = []
        for path in self.measured.pictures(self.values):
            parts.append(html_picture(path, str(path.relative_to(self.measured.root))))
        return self._page(parts or [sentences("These folders hold no pictures.")])

    def bars(self) -> Page:
        """A bar for every row in every metric, with the standard deviation over runs."""
        parts = []
        for title, values in self._settings():
            parts.append(title)
            means = summary(values, self.by)
            for order in ORDERS:
                panels: dict[str, list[Point]] = {}
                for region in REGIONS:
                    here = _at(means, order, region)
                    for metric in in_order(here["metric"].unique()):
                        panel = f"{region}: {self._heading(metric)}"
                        panels[panel] = self._points(values, here, metric)
                if panels:
                    parts += [sentences(order), bars(panels)]
        return self._page(parts)

    def over_cost(self) -> Page:
        """SSIM and LPIPS of the garment in paired order over each cost of X_AXES."""
        parts = []
        for title, values in self._settings():
            parts.append(title)
            means = _at(summary(values, self.by), "paired", "garment")
            costs = self._costs(values)
            recorded = (costs[list(X_AXES)] > 0).any()
            for metric in means["metric"].unique():
                if self.published.base(metric) not in CHARTED:
                    continue
                lines = means[means["metric"] == metric].set_index(self.by)
                for column in recorded.index[recorded]:
                    points = _over(lines, costs[column])
                    heading = f"paired, garment: {self._heading(metric)}"
                    parts.append(scatter(points, column, heading))
            if not recorded.all():
                unknown = listed(list(recorded.index[~recorded]))
                parts.append(sentences(f"Not recorded by these rows: {unknown}."))
        return self._page(parts)

    def directions(self) -> Page:
        """Every published direction between two rows against ours, and how many agree."""
        parts = []
        for title, values in self._settings():
            seeds = self._seeds(values)
            lines = directions(self.claims, values, self.by, self.published, seeds)
            parts += [title, self._missing(values), *verdicts(lines, seeds["run"].nunique())]
        return self._page(parts)

    def _page(self, parts: Sequence[str]) -> Page:
        """The parts, or, where nothing was measured, which runs are missing."""
        if len(self.values):
            return Page(*parts)
        problem = f"no run of {listed(list(self.names), 'or')} in any results.json"
        if self.measured.values.empty:
            problem = "no results.json"
        return Page(sentences(f"Nothing measured to show: {problem} below {self.measured.root}."))

    def _settings(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Values that may be compared, below their title; the setting with most runs first."""
        learned = self.values[self.values["kind"] == "architecture"]
        runs = learned.drop_duplicates(["setting", self.by, "run"])
        counts = runs.groupby("setting", sort=False).size()
        for setting in counts.sort_values(ascending=False, kind="stable").index:
            values = self.values[self.values["setting"] == setting]
            title = heading(setting)
            if values["budget"].iloc[0] == NOT_RECORDED:
                title += sentences(UNEQUAL)
            yield title, values

    def _rows(self, values: pd.DataFrame) -> dict[str, str]:
        """The rows that have values and how they are shown.

        The published order comes first, then other architectures, controls, warps and baselines.
        """
        kinds = self._kinds(values)
        others = []
        for kind in COLOURS:
            others += kinds.index[kinds == kind].tolist()
        rows = [row for row in dict.fromkeys([*self.names, *others]) if row in kinds.index]
        return {row: self.names.get(row, row) for row in rows}

    def _kinds(self, values: pd.DataFrame) -> pd.Series:
        return values.drop_duplicates(self.by).set_index(self.by)["kind"]

    def _missing(self, values: pd.DataFrame) -> str:
        known = set(values[self.by])
        missing = [name for name in self.names if name not in known]
        if missing:
            return sentences(f"No run of {listed(missing, 'or')} here.")
        return sentences("Every row has been run here.")

    def _tables(self, values: pd.DataFrame, category: str, best: BestRows) -> list[str]:
        """A table for each order and region of one category."""
        parts = []
        means = summary(values, self.by, category)
        rows = self._rows(values)
        for order, region in PLACES:
            here = _at(means, order, region)
            if here.empty:
                continue
            chosen = values.query("order == @order and category == @category")
            counts = listed(list(map(str, chosen["n"].unique())))
            parts.append(sentences(f"{order}, {region}, n = {counts}"))
            parts.append(html_table(self._means(here, rows, best)))
        return parts

    def _means(self, means: pd.DataFrame, rows: Mapping[str, str], best: BestRows) -> pd.DataFrame:
        """Text of one order and region, rows by metrics; the best architecture is marked."""
        frame = pd.DataFrame(index=list(rows))
        frame["runs"] = means.groupby(self.by)["runs"].max()
        for metric in in_order(means["metric"].unique()):
            cells = {}
            for line in means[means["metric"] == metric].itertuples():
                row = getattr(line, self.by)
                cell = mean_and_spread(metric, line.mean, line.sd)
                is_best = best.get((line.order, line.region, metric)) == row
                cells[row] = f"**{cell}**" if is_best else cell
            frame[self._heading(metric)] = pd.Series(cells)
        return frame.fillna("-").rename(index=rows)

    def _best(self, values: pd.DataFrame) -> BestRows:
        """The row to mark in each column; rows of an ablation do not compete."""
        return {}

    def _points(self, values: pd.DataFrame, means: pd.DataFrame, metric: str) -> list[Point]:
        """A metric's bars, in the order of the rows."""
        kinds = self._kinds(values)
        scale = metric_scale(metric)
        lines = means[means["metric"] == metric].set_index(self.by)
        points = []
        for row, shown in self._rows(values).items():
            if row in lines.index:
                line = lines.loc[row]
                points.append(Point(shown, line["mean"] * scale, line["sd"] * scale, kinds[row]))
        return points

    def _costs(self, values: pd.DataFrame) -> pd.DataFrame:
        """Mean costs of each architecture, over orders and runs."""
        learned = values[values["kind"] == "architecture"].set_index(self.by)
        means = learned[list(COSTS)].astype(float).groupby(level=0).mean()
        return means.reindex([row for row in self._rows(values) if row in means.index])

    def _seeds(self, values: pd.DataFrame) -> pd.DataFrame:
        """Runs of one model that say how far seeds scatter where rows have one run each."""
        return values[:0]

    def _heading(self, column: str) -> str:
        """A metric, with or without its order before it, its scale and which way is better."""
        metric = column.split()[-1]
        arrow = "↑" if self.published.towards(metric) > 0 else "↓"
        return f"{column.removesuffix(metric)}{metric_name(metric)} {arrow}"


def _at(means: pd.DataFrame, order: str, region: str) -> pd.DataFrame:
    return means[(means["order"] == order) & (means["region"] == region)]


def _over(lines: pd.DataFrame, costs: pd.Series) -> list[Point]:
    """A point for each row that has both a value and a cost."""
    points = []
    for row, cost in costs[costs > 0].items():
        if row in lines.index:
            line = lines.loc[row]
            points.append(Point(row, line["mean"], line["sd"], x=cost))
    return points


def _cost(value: float) -> str:
    return NOT_RECORDED if math.isnan(value) else f"{value:,.4g}"


def _brief(value: object) -> str:
    """Numbers without needless digits, digests by their first characters."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:g}"
    text = str(value)
    return text[:8] if len(text) in DIGEST_LENGTHS else text
