"""What the notebooks show: published tables, ours in the same rows, and what follows from both.

`Architectures()` is the comparison, `Ablation("gardiff")` the table of one paper; every method is
the Page of one cell. Sentences are computed from the numbers, so that they hold for whatever lies
in results/.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from vton.report.agreement import directions, listed, summary, winners
from vton.report.charts import COLOURS, Point, bars, scatter
from vton.report.measured import COSTS, NOT_RECORDED, ORIGIN, Measured, read_measured
from vton.report.page import Page, bullets, folded, heading, picture, sentences, table
from vton.report.published import MARKS, Published, read_published
from vton.report.tables import DIGITS, KID_SCALE, ORDER, base

ORDERS, REGIONS = ("paired", "unpaired"), ("garment", "image")
PLACES = [(order, region) for order in ORDERS for region in REGIONS]
CHARTED = ("ssim", "lpips")  # in paired order and the garment's region, over these costs:
X_AXES = ("seconds a picture", "training seconds", "FLOP a picture", "parameters")
SIGNS = {"agrees": "✓", "differs": "✗", "within spread": "≈", "equal": "="}
MEANING = {
    "second_hand": "confirmed only by another paper that quotes it",
    "recalled": "recalled, check the paper before quoting",
    "inferred": "its scale, order or row is our reading",
    "misprint": "contradicted by what it quotes or by a reprint",
}
RANDOM = (
    "Names that end in _random are the metric's own network with fixed random weights: they compare rows of one table "
    "here and are not the published metric."
)
ONE_RUN = "one run each: no spread is known, and a small difference may be chance"
UNEQUAL = "These rows record no training budget: they may have been trained for different times."


class View:
    """Our values, the names of their rows in the published order, and the papers' claims about
    these rows.

    by:    column of the values that names a row: "model" or "row"
    names: every row that should be there -> how it is shown
    """

    by: str
    names: dict[str, str]
    values: pd.DataFrame
    claims: pd.DataFrame

    def __init__(self, published: Published | None, measured: Measured | None):
        self.published = published or read_published()
        self.measured = measured or read_measured()

    # ours

    def tables(self) -> Page:
        """Mean ± standard deviation over runs for each setting, order and region; rows in the
        published order.
        """
        parts = [self._absent(self.values)]
        for title, values in self._settings():
            parts += [title, *self._tables(values, "all", self._best(values))]
            categories = [category for category in values["category"].unique() if category != "all"]
            if len(categories) > 1:
                parts += [
                    folded(category, *self._tables(values, category, {})) for category in categories
                ]
            if any(metric.endswith("_random") for metric in values["metric"].unique()):
                parts.append(sentences(RANDOM))
        return self._page(parts)

    def provenance(self) -> Page:
        """Where our rows come from, and what the rows of each setting share."""
        parts = []
        for title, values in self._settings():
            runs = values[values["kind"] == "architecture"].drop_duplicates([self.by, "run"])
            frame = runs.set_index(self.by)[["seed", *ORIGIN, "run", "folder"]]
            frame = frame.rename(columns={"run": "checkpoint", "steps": "sampling steps"}).map(
                _brief
            )
            held = (
                f"Held equal: training budget {values['budget'].iloc[0]}; {values['held'].iloc[0]}."
            )
            parts += [title, sentences(held), table(frame)]
        return self._page(parts)

    def costs(self) -> Page:
        """What each row cost, where it is recorded: means over orders and runs."""
        parts = []
        for title, values in self._settings():
            frame = self._costs(values).map(
                lambda value: NOT_RECORDED if math.isnan(value) else f"{value:,.4g}"
            )
            parts += [title, table(frame), sentences("Means over orders and runs.")]
        return self._page(parts)

    def pictures(self) -> Page:
        """The grids of pictures in the folders that our values come from."""
        root = self.measured.root
        parts = [
            picture(path, str(path.relative_to(root)))
            for path in self.measured.pictures(self.values)
        ]
        return self._page(parts or [sentences("These folders hold no pictures.")])

    # charts

    def bars(self) -> Page:
        """A bar for every row in every metric, with the standard deviation over runs."""
        parts = []
        for title, values in self._settings():
            parts.append(title)
            rows, means = self._rows(values), summary(values, self.by)
            kinds = values.drop_duplicates(self.by).set_index(self.by)["kind"]
            for order in ORDERS:
                panels = {}
                for region in REGIONS:
                    here = means[(means["order"] == order) & (means["region"] == region)]
                    for metric in sorted(here["metric"].unique(), key=_rank):
                        lines, scale = (
                            here[here["metric"] == metric].set_index(self.by),
                            _scale(metric),
                        )
                        panels[f"{region}: {self._heading(metric)}"] = [
                            Point(
                                shown,
                                lines.loc[row, "mean"] * scale,
                                lines.loc[row, "sd"] * scale,
                                kinds[row],
                            )
                            for row, shown in rows.items()
                            if row in lines.index
                        ]
                parts += [sentences(order), bars(panels)] if panels else []
        return self._page(parts)

    def over_cost(self) -> Page:
        """SSIM and LPIPS of the garment in paired order over the costs of X_AXES that are recorded."""
        parts = []
        for title, values in self._settings():
            parts.append(title)
            means, cost = summary(values, self.by), self._costs(values)
            means = means[(means["order"] == "paired") & (means["region"] == "garment")]
            recorded = [column for column in X_AXES if (cost[column] > 0).any()]
            for metric in [
                metric
                for metric in means["metric"].unique()
                if self.published.base(metric) in CHARTED
            ]:
                lines = means[means["metric"] == metric].set_index(self.by)
                for column in recorded:
                    known = cost.index[(cost[column] > 0) & cost.index.isin(lines.index)]
                    points = [
                        Point(row, *lines.loc[row, ["mean", "sd"]], x=cost.loc[row, column])
                        for row in known
                    ]
                    parts.append(
                        scatter(points, column, f"paired, garment: {self._heading(metric)}")
                    )
            unknown = [column for column in X_AXES if column not in recorded]
            parts += (
                [sentences(f"Not recorded by these rows: {listed(unknown)}.")] if unknown else []
            )
        return self._page(parts)

    # both

    def directions(self) -> Page:
        """Every direction between two rows that a published table gives, against ours, and how many
        agree.
        """
        parts = []
        for title, values in self._settings():
            seeds = self._seeds(values)
            found = directions(self.claims, values, self.by, self.published, seeds)
            parts += [title, self._absent(values), *self._agreement(found, seeds["run"].nunique())]
        return self._page(parts)

    # parts

    def _page(self, parts: Sequence[str]) -> Page:
        """The parts, or, where nothing was measured, what would write it."""
        if len(self.values):
            return Page(*parts)
        named = f"no run of {listed(list(self.names), 'or')} in any results.json"
        found = "no results.json" if self.measured.values.empty else named
        return Page(sentences(f"Nothing measured to show: {found} below {self.measured.root}."))

    def _settings(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Rows that may be compared, under their title; the setting with most runs first."""
        learned = self.values[self.values["kind"] == "architecture"]
        runs = (
            learned.drop_duplicates(["setting", self.by, "run"])
            .groupby("setting", sort=False)
            .size()
        )
        for setting in runs.sort_values(ascending=False, kind="stable").index:
            values = self.values[self.values["setting"] == setting]
            warning = sentences(UNEQUAL) if values["budget"].iloc[0] == NOT_RECORDED else ""
            yield heading(setting) + warning, values

    def _rows(self, values: pd.DataFrame) -> dict[str, str]:
        """The rows that are there and how they are shown: as published, then others, controls,
        baselines.
        """
        kinds = values.drop_duplicates(self.by).set_index(self.by)["kind"]
        others = [name for kind in COLOURS for name in kinds.index[kinds == kind]]
        return {
            name: self.names.get(name, name)
            for name in [*self.names, *others]
            if name in kinds.index
        }

    def _absent(self, values: pd.DataFrame) -> str:
        missing = [name for name in self.names if name not in set(values[self.by])]
        return sentences(
            f"No run of {listed(missing, 'or')} here."
            if missing
            else "Every row has been run here."
        )

    def _tables(
        self, values: pd.DataFrame, category: str, best: dict[tuple[str, str, str], str]
    ) -> list[str]:
        """A table for each order and region of one category."""
        parts, means = [], summary(values, self.by, category)
        for order, region in PLACES:
            here = means[(means["order"] == order) & (means["region"] == region)]
            if len(here):
                counts = values.loc[
                    (values["order"] == order) & (values["category"] == category), "n"
                ].unique()
                marked = {
                    metric: best.get((order, region, metric)) for metric in here["metric"].unique()
                }
                parts += [
                    sentences(f"{order}, {region}, n = {listed([str(count) for count in counts])}")
                ]
                parts += [table(self._means(here, self._rows(values), marked))]
        return parts

    def _means(
        self, means: pd.DataFrame, rows: dict[str, str], best: dict[str, str]
    ) -> pd.DataFrame:
        """Text of one order and region: rows by metrics, the best architecture of a metric marked."""
        metrics = sorted(means["metric"].unique(), key=_rank)
        lines = {(getattr(line, self.by), line.metric): line for line in means.itertuples()}
        frame = pd.DataFrame(index=list(rows.values()))
        frame["runs"] = [
            max(line.runs for (name, _), line in lines.items() if name == row) for row in rows
        ]
        for metric in metrics:
            cells = {
                row: _value(lines[row, metric]) if (row, metric) in lines else "-" for row in rows
            }
            marked = [
                f"**{cell}**" if row == best.get(metric) else cell for row, cell in cells.items()
            ]
            frame[self._heading(metric)] = marked
        return frame

    def _best(self, values: pd.DataFrame) -> dict[tuple[str, str, str], str]:
        """(order, region, metric) -> the row to mark; rows of an ablation do not compete."""
        return {}

    def _costs(self, values: pd.DataFrame) -> pd.DataFrame:
        learned = values[values["kind"] == "architecture"].set_index(self.by)
        means = learned[list(COSTS)].astype(float).groupby(level=0).mean()
        return means.reindex([row for row in self._rows(values) if row in means.index])

    def _seeds(self, values: pd.DataFrame) -> pd.DataFrame:
        """Runs of one model, under the same setting, that say how far seeds scatter where rows have
        one run each.
        """
        return values[:0]

    def _agreement(self, found: pd.DataFrame, seeds: int) -> list[str]:
        """In words how many directions agree and which do not, then all of them; seeds: runs behind
        the spread of rows with one run.
        """
        if found.empty:
            return [
                sentences(
                    "No direction can be checked: of no published pair have both rows been run here."
                )
            ]
        told = []
        for (basis, region), group in found.groupby(["basis", "region"], sort=False):
            against = (
                "On the paper's own metrics"
                if basis == "same metric"
                else "Against what all printed metrics share"
            )
            agree, differ, unclear, equal = (
                int((group["verdict"] == verdict).sum()) for verdict in SIGNS
            )
            told.append(
                f"{against} ({region}): {agree} of {len(group)} directions agree, {differ} differ, {unclear} lie "
                f"within the spread of seeds{f', {equal} are equal here' if equal else ''}."
            )
            for line in group[group["verdict"] == "differs"].itertuples():
                theirs, ours = (
                    "better" if gain > 0 else "worse" for gain in (line.published, line.gain)
                )
                theirs += f" ({line.says})" if line.says else ""
                told.append(
                    f"{line.row} against {line.than}, {line.order} {_name(line.metric)} ({line.region}): published as "
                    f"{theirs}, here {ours} by {_shown(line.metric, abs(line.gain))}."
                )
        if found["spread"].isna().all():
            told.append(f"{ONE_RUN.capitalize()}.")
        elif seeds:
            told.append(
                f"Rows with one run each: the spread is that of the model's {seeds} runs in the comparison."
            )
        cells = found.assign(
            pair=found["row"] + " against " + found["than"],
            column=found["region"] + " " + found["order"] + " " + found["metric"].map(_name),
            cell=[
                f"{SIGNS[line.verdict]} {line.gain * _scale(line.metric):+.3g}"
                + " *" * (line.basis != "same metric")
                for line in found.itertuples()
            ],
        )
        frame = cells.pivot(index="column", columns="pair", values="cell").fillna("-")
        key = (
            "✓ agrees, ✗ differs, ≈ within the spread, = equal in one run each. Numbers: our gain, above 0 where the "
            "first row is better."
        )
        shared = "* The paper does not print this metric in this order; held against what all its metrics share."
        return [
            bullets(told),
            table(frame.loc[cells["column"].unique(), cells["pair"].unique()]),
            sentences(key, shared),
        ]

    def _heading(self, column: str) -> str:
        """A metric, with or without its order before it, its scale and which way is better."""
        return f"{_name(column)} {'↑' if self.published.towards(column.split()[-1]) > 0 else '↓'}"


class Architectures(View):
    """The architectures as they are, beside controls and baselines."""

    by = "model"

    def __init__(self, published: Published | None = None, measured: Measured | None = None):
        super().__init__(published, measured)
        self.names = {model: model for model in self.published.models}
        self.values = self.measured.comparison
        self.claims = self.published.claims_between_models()

    def published_claims(self, data: str, category: str = "all") -> Page:
        """Each architecture's own numbers on one data set, from its own paper; KID on one scale."""
        own = self.published.values.query(
            "kind == 'comparison' and data == @data and category == @category and model != ''"
        )
        cells = own.assign(
            column=own["order"] + " " + own["metric"],
            cell=[_claimed(line) for line in own.itertuples()],
        )
        columns = sorted(
            cells["column"].unique(),
            key=lambda column: (column.split()[0], _rank(column.split()[1])),
        )
        frame = cells.pivot(index="model", columns="column", values="cell").reindex(
            index=self.names, columns=columns
        )
        frame.columns = [self._heading(column) for column in columns]
        notes = [
            f"{line.model}: {_source(line)}. {line.protocol}"
            for line in own.drop_duplicates("model").itertuples()
        ]
        notes += [
            f"The paper of {name} prints nothing here."
            for name in self.names
            if name not in set(own["model"])
        ]
        return Page(table(frame.fillna("-")), bullets(notes), _legend(own))

    def published_tables(self, *kinds: str) -> Page:
        """Every table of these kinds as printed, folded, with source and protocol."""
        chosen = self.published.values[self.published.values["kind"].isin(kinds)]
        tables = chosen.groupby("name", sort=False)
        return Page(*(folded(_title(values), *_printed(values)) for _, values in tables))

    def reprints(self) -> Page:
        """How far papers are apart about one and the same architecture on VITON-HD: lowest and
        highest value.
        """
        values = self.published.values.query(
            "model != '' and data == 'viton_hd' and mark != 'misprint'"
        )
        values = values[values["kind"].isin(["comparison", "requoted"])]
        lines = {}
        for (model, order, metric), group in values.groupby(
            ["model", "order", "metric"], sort=False
        ):
            low, high = (
                f"{value * _scale(metric):.3g}"
                for value in (group["value"].min(), group["value"].max())
            )
            if low != high:
                told = f"{low} to {high} in {group['paper'].nunique()} papers"
                lines.setdefault(model, {})[self._heading(f"{order} {metric}")] = told
        return Page(table(pd.DataFrame(lines).T.fillna("-")), sentences("Misprints are left out."))

    def who_wins(self) -> Page:
        """Which architecture is best on what, by how much, with what spread; whether it beats what
        never learned.
        """
        parts = []
        for title, values in self._settings():
            found = winners(values, self.published)
            place = [
                (PLACES.index((line.order, line.region)), _rank(line.metric))
                for line in found.itertuples()
            ]
            found = found.assign(place=place).sort_values("place")
            counts = found["best"].value_counts()
            score = [f"{name} in {count}" for name, count in counts.items()]
            told = f"Best architecture, of {len(found)} combinations of order, region and metric: {listed(score)}."
            parts += [
                title,
                sentences(told),
                bullets(_victories(found)),
                table(self._margins(found)),
            ]
        return self._page(parts)

    def shared_tables(self) -> Page:
        """The published tables that hold two of the architectures, as printed."""
        shared = self.published.values["name"].isin(self.claims["name"])
        return Page(*_headed(self.published.values[shared]))

    def _best(self, values: pd.DataFrame) -> dict[tuple[str, str, str], str]:
        return {
            (w.order, w.region, w.metric): w.best
            for w in winners(values, self.published).itertuples()
        }

    def _margins(self, found: pd.DataFrame) -> pd.DataFrame:
        def cell(name: str, metric: str, value: float) -> str:
            return "-" if pd.isna(value) else f"{name} {_shown(metric, value)}".strip()

        lines = {
            f"{line.order}, {line.region}: {self._heading(line.metric)}": {
                "best": cell(line.best, line.metric, line.value),
                "next": cell(line.runner_up, line.metric, line.behind),
                "lead": cell("", line.metric, line.margin),
                "spread of the lead": "not known"
                if pd.isna(line.spread)
                else _shown(line.metric, line.spread),
                "best without learning": cell(line.baseline, line.metric, line.baseline_value),
            }
            for line in found.itertuples()
        }
        return pd.DataFrame(lines).T


class Ablation(View):
    """The rows of one ablation: `study` names it in results/published.yaml."""

    by = "row"

    def __init__(
        self, study: str, published: Published | None = None, measured: Measured | None = None
    ):
        super().__init__(published, measured)
        self.study = study
        self.printed = self.published.values[self.published.values["study"] == study]
        self.said = self.published.directions[self.published.directions["study"] == study]
        self.names = {
            row: row if row == label else f"{row} ({label})"
            for row, label in self.published.rows_of(study).items()
        }
        ours = self.measured.ablation(
            pd.concat([self.printed["paper"], self.said["paper"]]).iloc[0]
        )
        self.values = ours[ours["row"].isin(self.names)]
        self.others = [row for row in ours["row"].unique() if row not in self.names]
        self.claims = self.published.claims_of(study)

    def published_table(self) -> Page:
        """The table as the paper prints it, with source and protocol; where no number is at hand,
        what is said.
        """
        parts = _headed(self.printed)
        if len(self.said):
            parts.append(heading(_source(next(self.said.itertuples()))))
            parts.append(
                bullets(
                    f"{s.row} against {s.than}: {s.says} [{MEANING[s.mark]}]"
                    for s in self.said.itertuples()
                )
            )
        return Page(*parts)

    def tables(self) -> Page:
        page = super().tables()
        other = (
            f"Rows here that this table of the paper does not have: {listed(self.others)}."
            if self.others
            else ""
        )
        return Page(*page.parts, sentences(other)) if other else page

    def _seeds(self, values: pd.DataFrame) -> pd.DataFrame:
        ours = self.measured.comparison
        seeds = ours[
            (ours["model"] == values["model"].iloc[0])
            & (ours["setting"] == values["setting"].iloc[0])
        ]
        return seeds if seeds["run"].nunique() > 1 else seeds[:0]

    def directions(self) -> Page:
        page = super().directions()
        silent = [
            f"{line.row} against {line.than}: the paper claims no metric, so none is checked."
            for line in self.said[self.said["metrics"] == ""].itertuples()
        ]
        return Page(*page.parts, bullets(silent)) if silent else page


def _victories(found: pd.DataFrame) -> list[str]:
    """For each order and region: who leads in what and by how much, what the spread leaves open,
    what no one beats.
    """
    told = []
    for (order, region), group in found.groupby(["order", "region"], sort=False):
        where = f"{order}, {region}"
        for best, lines in group.groupby("best", sort=False):
            ahead = [
                _name(line.metric)
                + (
                    ""
                    if pd.isna(line.margin)
                    else f" by {_shown(line.metric, line.margin)} before {line.runner_up}"
                )
                for line in lines.itertuples()
            ]
            told.append(f"{where}: {best} is the best architecture in {listed(ahead)}.")
        unclear = [_name(line.metric) for line in group.itertuples() if line.margin <= line.spread]
        if unclear:
            told.append(f"{where}: the lead lies within the spread of seeds in {listed(unclear)}.")
        if group["margin"].notna().any() and group["spread"].isna().all():
            told.append(f"{where}: {ONE_RUN}.")
        lost = group[group["baseline"].notna() & ~group["beats_baseline"].eq(True)]
        if len(lost):
            names = [f"{_name(line.metric)} ({line.baseline})" for line in lost.itertuples()]
            told.append(
                f"{where}: no architecture beats what needs no learning in {listed(names)}."
            )
    return told


def _printed(values: pd.DataFrame) -> list[str]:
    """A table as printed, its protocol, and what its marks mean."""
    values = values.assign(
        column=[
            f"{v.order} {v.metric}" + ("" if v.scale == 1 else f" x{v.scale}")
            for v in values.itertuples()
        ],
        cell=values["printed"] + values["mark"].map(MARKS),
    )
    frame = values.pivot(index="label", columns="column", values="cell").fillna("-")
    frame = frame.loc[values["label"].unique(), values.sort_values("place")["column"].unique()]
    return [table(frame), sentences(values["protocol"].iloc[0]), _legend(values)]


def _headed(values: pd.DataFrame) -> list[str]:
    """Every table among these values as printed, below its title."""
    tables = values.groupby("name", sort=False)
    return [part for _, table in tables for part in (heading(_title(table)), *_printed(table))]


def _legend(values: pd.DataFrame) -> str:
    used = [
        f"{MARKS[mark]} {meaning}"
        for mark, meaning in MEANING.items()
        if mark in set(values["mark"])
    ]
    return sentences(f"{'; '.join(used)}.") if used else ""


def _title(values: pd.DataFrame) -> str:
    line = next(values.itertuples())
    return f"{_source(line)}, {line.data}" + (
        "" if line.category == "all" else f", {line.category}"
    )


def _source(line) -> str:
    return f"{line.source}: {line.table}"


def _claimed(line) -> str:
    return (f"{line.value * KID_SCALE:.4g}" if line.metric == "kid" else line.printed) + MARKS[
        line.mark
    ]


def _name(metric: str) -> str:
    return metric + (f" x{KID_SCALE}" if _scale(metric) != 1 else "")


def _scale(metric: str) -> int:
    return KID_SCALE if metric.split()[-1].startswith("kid") else 1


def _rank(metric: str) -> tuple[int, str]:
    return ORDER.index(base(metric)) if base(metric) in ORDER else len(ORDER), metric


def _shown(metric: str, value: float) -> str:
    return f"{value * _scale(metric):.{DIGITS.get(base(metric), 4)}f}"


def _value(line) -> str:
    return _shown(line.metric, line.mean) + (
        "" if math.isnan(line.sd) else f" ± {_shown(line.metric, line.sd)}"
    )


def _brief(value: object) -> str:
    """Numbers without needless digits, digests by their first characters."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:g}"
    text = NOT_RECORDED if value is None else str(value)
    return text[:8] if len(text) in (40, 64) else text
