"""What the notebooks show: published tables, ours in the same rows, and what follows from both.

`Architectures()` is the comparison, `Ablation("gardiff")` the table of one paper; every method is
the page of one cell. Sentences are computed from the numbers, so that they hold for whatever lies
in results/.
"""

from __future__ import annotations

import math

import pandas as pd

from vton.report.agreement import listed, winners
from vton.report.columns import metric_scale
from vton.report.formats import metric_name, metric_place, number
from vton.report.measured import Measured
from vton.report.page import Page, bullets, heading, html_table, sentences
from vton.report.printed import MEANING, legend, own_value, printed_tables, source
from vton.report.published import Published
from vton.report.verdicts import ONE_RUN
from vton.report.view import PLACES, BestRows, View


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
        own = self.published.of_own_papers().query(
            "kind == 'comparison' and data == @data and category == @category"
        )
        # Further rows of an architecture in its paper's table keep their names there.
        first = own.groupby("model")["row"].transform("first")
        further = own["model"] + " (" + own["label"] + ")"
        own = own.assign(shown=own["model"].where(own["row"] == first, further))
        cells: dict[tuple[str, str], dict[str, str]] = {}
        for line in own.itertuples():
            cells.setdefault((line.order, line.metric), {})[line.shown] = own_value(line)
        rows = []
        for name in self.names:
            rows += [*own.loc[own["model"] == name, "shown"].unique()] or [name]
        frame = pd.DataFrame(index=rows)
        for order, metric in sorted(cells, key=lambda key: (key[0], metric_place(key[1]))):
            frame[self._heading(f"{order} {metric}")] = pd.Series(cells[order, metric])
        notes = []
        for line in own.drop_duplicates("model").itertuples():
            notes.append(f"{line.model}: {source(line)}. {line.protocol}")
        for name in self.names:
            if name not in set(own["model"]):
                notes.append(f"The paper of {name} prints nothing here.")
        return Page(html_table(frame.fillna("-")), bullets(notes), legend(own))

    def published_tables(self, *kinds: str) -> Page:
        """Every table of these kinds as printed, folded, with source and protocol."""
        chosen = self.published.values[self.published.values["kind"].isin(kinds)]
        return Page(*printed_tables(chosen, fold=True))

    def shared_tables(self) -> Page:
        """The published tables that hold two of the architectures, as printed."""
        shared = self.published.values["name"].isin(self.claims["name"])
        return Page(*printed_tables(self.published.values[shared]))

    def reprints(self) -> Page:
        """Lowest and highest value that papers print for one architecture on VITON-HD."""
        values = self.published.values.query(
            "model != '' and data == 'viton_hd' and mark != 'misprint' "
            "and kind in ['comparison', 'requoted']"
        )
        ranges: dict[str, dict[str, str]] = {}
        groups = values.groupby(["model", "order", "metric"], sort=False)
        for (model, order, metric), group in groups:
            scale = metric_scale(metric)
            low = f"{group['value'].min() * scale:.3g}"
            high = f"{group['value'].max() * scale:.3g}"
            if low != high:
                papers = group["paper"].nunique()
                column = self._heading(f"{order} {metric}")
                ranges.setdefault(model, {})[column] = f"{low} to {high} in {papers} papers"
        frame = pd.DataFrame(ranges).T.fillna("-")
        return Page(html_table(frame), sentences("Misprints are left out."))

    def who_wins(self) -> Page:
        """Which architecture is best in what, by how much, and whether it beats the baselines."""
        parts = []
        for title, values in self._settings():
            wins = winners(values, self.published)
            places = []
            for win in wins.itertuples():
                places.append((PLACES.index((win.order, win.region)), metric_place(win.metric)))
            wins = wins.assign(place=places).sort_values("place")
            score = [f"{name} in {count}" for name, count in wins["best"].value_counts().items()]
            total = (
                f"Best architecture, of {len(wins)} combinations of order, region and metric: "
                f"{listed(score)}."
            )
            parts += [title, sentences(total), bullets(_victories(wins)), self._margins(wins)]
        return self._page(parts)

    def _best(self, values: pd.DataFrame) -> BestRows:
        wins = winners(values, self.published)
        return wins.set_index(["order", "region", "metric"])["best"].to_dict()

    def _margins(self, wins: pd.DataFrame) -> str:
        """A table of the best and the next architecture and the best baseline."""
        lines = {}
        for win in wins.itertuples():
            metric = win.metric
            unknown = pd.isna(win.spread)
            lines[f"{win.order}, {win.region}: {self._heading(metric)}"] = {
                "best": _named(win.best, metric, win.value),
                "next": _named(win.runner_up, metric, win.behind),
                "lead": "-" if pd.isna(win.margin) else number(metric, win.margin),
                "spread of the lead": "not known" if unknown else number(metric, win.spread),
                "best without learning": _named(win.baseline, metric, win.baseline_value),
            }
        return html_table(pd.DataFrame(lines).T)


class Ablation(View):
    """The rows of one ablation: `study` names it in results/published.yaml."""

    by = "row"

    def __init__(
        self, study: str, published: Published | None = None, measured: Measured | None = None
    ):
        super().__init__(published, measured)
        values, directions = self.published.values, self.published.directions
        self.printed = values[values["study"] == study]
        self.spoken = directions[directions["study"] == study]
        self.names = {}
        for row, label in self.published.rows_of(study).items():
            self.names[row] = row if row == label else f"{row} ({label})"
        self.model = pd.concat([self.printed["paper"], self.spoken["paper"]]).iloc[0]
        ours = self.measured.ablation(self.model)
        self.values = ours[ours["row"].isin(self.names)]
        self.others = [row for row in ours["row"].unique() if row not in self.names]
        self.claims = self.published.claims_of(study)

    def published_table(self) -> Page:
        """The table as the paper prints it; where no number is at hand, what the paper says."""
        parts = printed_tables(self.printed)
        if len(self.spoken):
            parts.append(heading(source(next(self.spoken.itertuples()))))
            lines = []
            for claim in self.spoken.itertuples():
                trust = f" [{MEANING[claim.mark]}]" if claim.mark in MEANING else ""
                lines.append(f"{claim.row} against {claim.than}: {claim.says}{trust}")
            parts.append(bullets(lines))
        return Page(*parts)

    def tables(self) -> Page:
        page = super().tables()
        if not self.others:
            return page
        rows = f"Rows here that this table of the paper does not have: {listed(self.others)}."
        return Page(*page.parts, sentences(rows))

    def directions(self) -> Page:
        page = super().directions()
        unchecked = []
        for claim in self.spoken[self.spoken["metrics"] == ""].itertuples():
            pair = f"{claim.row} against {claim.than}"
            unchecked.append(f"{pair}: the paper claims no metric, so none is checked.")
        return Page(*page.parts, bullets(unchecked)) if unchecked else page

    def _seeds(self, values: pd.DataFrame) -> pd.DataFrame:
        ours = self.measured.comparison
        setting = values["setting"].iloc[0]
        seeds = ours[(ours["model"] == self.model) & (ours["setting"] == setting)]
        return seeds if seeds["run"].nunique() > 1 else seeds[:0]


def _victories(wins: pd.DataFrame) -> list[str]:
    """For each order and region: who leads, what the spread leaves open, what no one beats."""
    lines = []
    for (order, region), group in wins.groupby(["order", "region"], sort=False):
        sentences = []
        for best, own in group.groupby("best", sort=False):
            leads = listed(list(map(_lead, own.itertuples())))
            sentences.append(f"{best} is the best architecture in {leads}")
        unclear = group[group["margin"] <= group["spread"]]
        if len(unclear):
            names = listed(list(map(metric_name, unclear["metric"])))
            sentences.append(f"the lead lies within the spread of seeds in {names}")
        if group["margin"].notna().any() and group["spread"].isna().all():
            sentences.append(ONE_RUN)
        lost = group[group["beats_baseline"].eq(False)]
        if len(lost):
            names = [f"{metric_name(line.metric)} ({line.baseline})" for line in lost.itertuples()]
            sentences.append(f"no architecture beats what needs no learning in {listed(names)}")
        lines += [f"{order}, {region}: {sentence}." for sentence in sentences]
    return lines


def _lead(win) -> str:
    """The metric, and how far the best architecture is ahead of the next."""
    name = metric_name(win.metric)
    if math.isnan(win.margin):
        return name
    return f"{name} by {number(win.metric, win.margin)} before {win.runner_up}"


def _named(name: str, metric: str, value: float) -> str:
    """A model and its value; "-" where there is none."""
    return "-" if math.isnan(value) else f"{name} {number(metric, value)}"
