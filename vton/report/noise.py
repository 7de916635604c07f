"""Which differences between methods are within noise: their intervals, and words about them.

The noise of a difference has up to three sources: which pairs were measured, and for each of the
two methods which training seeds. Pairs that both methods were measured on are resampled together,
so that what is hard for both cancels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vton.metrics import resampling
from vton.metrics.results import Row
from vton.report.columns import DIGITS, base, metric_columns, metric_scale

PERCENT = round(100 * resampling.LEVEL)
SAME = f"within noise ({PERCENT} %)"


@dataclass(frozen=True)
class Difference:
    """A metric's value of one row minus that of another, with its interval."""

    metric: str
    first: str
    second: str
    value: float
    half: float  # half of the interval
    paired: bool  # whether both were measured on the same pairs, resampled together

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 0."""
        return abs(self.value) <= self.half

    @property
    def shown(self) -> str:
        """The difference and half of its interval, as tables show the metric."""
        scale = metric_scale(self.metric)
        digits = DIGITS[base(self.metric)]
        return f"{self.value * scale:+.{digits}f} ± {self.half * scale:.{digits}f}"


def difference(first: Row, second: Row, metric: str) -> Difference | None:
    """None where a row lacks the metric, or where nothing is known of its noise."""
    if metric not in first.metrics or metric not in second.metrics:
        return None
    sources = []
    paired = False
    texts = [row.provenance.get("deviations", {}).get(metric) for row in (first, second)]
    if all(texts):
        x, y = map(resampling.from_text, texts)
        pairs = {(row.n, row.provenance.get("pairs_sha256")) for row in (first, second)}
        paired = len(pairs) == 1 and len(x) == len(y)
        if paired:
            sources.append(resampling.source(x - y))
        else:
            sources += [resampling.source(x), resampling.source(y)]
    for row in (first, second):
        sources += seed_noise(row, metric)
    if not sources:
        return None
    value = first.metrics[metric] - second.metrics[metric]
    half = resampling.half_width(sources)
    return Difference(metric, first.model, second.model, value, half, paired)


@dataclass(frozen=True)
class Compared:
    """Every metric that two rows of one order, region and category have in common."""

    first: Row
    second: Row
    differences: list[Difference]

    def keep(self) -> None:
        """Write them into the first row's provenance, for who reads rows."""
        stored = {}
        for each in self.differences:
            stored[each.metric] = {
                "difference": each.value,
                "interval": [each.value - each.half, each.value + each.half],
                "within_noise": each.within_noise,
                "paired": each.paired,
            }
        self.first.provenance["against"] = {"model": self.second.model, "differences": stored}


def compared(rows: Sequence[Row], model: str, other: str) -> list[Compared]:
    """The rows of a model beside those of another, wherever both have one."""
    of_other = {}
    for row in rows:
        if row.model == other:
            of_other[row.order, row.region, row.category] = row
    found = []
    for row in rows:
        beside = of_other.get((row.order, row.region, row.category))
        if row.model != model or beside is None:
            continue
        differences = [difference(row, beside, metric) for metric in metric_columns([row])]
        found.append(Compared(row, beside, [each for each in differences if each is not None]))
    return found


def seed_noise(row: Row, metric: str) -> list[tuple[float, int]]:
    """The variance of a mean over training seeds, with its degrees of freedom; [] for one seed."""
    spread = row.provenance.get("spread", {}).get(metric)
    seeds = len(row.provenance.get("seeds", ()))
    if spread is None or seeds < 2:
        return []
    return [(spread**2 / seeds, seeds - 1)]


def interval(row: Row, metric: str) -> tuple[float, float] | None:
    """Lower and upper end of a row's metric: over pairs, and over its seeds if it has several."""
    text = row.provenance.get("deviations", {}).get(metric)
    if text is None or metric not in row.metrics:
        return None
    noise = [resampling.source(resampling.from_text(text)), *seed_noise(row, metric)]
    half = resampling.half_width(noise)
    return row.metrics[metric] - half, row.metrics[metric] + half


def in_words(groups: dict[tuple[str, str, str], list[Row]]) -> list[str]:
    """A sentence for each metric of each group: which of its methods cannot be told apart.

    groups: as `tables.grouped` makes them; all categories together, since each alone has fewer
    pairs. Empty where no row has deviations.
    """
    sentences = []
    for (order, region, category), rows in groups.items():
        known = any("deviations" in row.provenance for row in rows)
        if category != "all" or not known or len(rows) < 2:
            continue
        for metric in metric_columns(rows):
            differences = list(_differences(rows, metric))
            if differences:
                sentences.append(f"{order}, {region}, {metric}: {_sentence(differences)}")
    return sentences


def _differences(rows: Sequence[Row], metric: str) -> Iterator[Difference]:
    """Of all pairs of methods. A control is compared with its own model alone."""
    for first, second in itertools.combinations(rows, 2):
        controls = [row.model for row in (first, second) if row.model.endswith("]")]
        own = first.model.partition("[")[0] == second.model.partition("[")[0]
        if controls and not own:
            continue
        found = difference(first, second, metric)
        if found is not None:
            yield found


def _sentence(differences: Sequence[Difference]) -> str:
    close = [each for each in differences if each.within_noise]
    if not close:
        return "every difference is larger than noise."
    named = [f"{each.first} and {each.second} ({each.shown})" for each in close]
    rest = "" if len(close) == len(differences) else " All other differences are larger."
    return f"{SAME} are {'; '.join(named)}.{rest}"
