"""Published tables as their papers print them."""

from __future__ import annotations

import pandas as pd

from vton.report.columns import KID_SCALE
from vton.report.page import folded, heading, html_table, sentences
from vton.report.published_file import MARKS

MEANING = {
    "second_hand": "confirmed only by another paper that quotes it",
    "recalled": "recalled, check the paper before quoting",
    "inferred": "its scale, order or row is our reading",
    "misprint": "contradicted by what it quotes or by a reprint",
}


def printed_tables(values: pd.DataFrame, fold: bool = False) -> list[str]:
    """Every table among these values below its title, with its protocol; fold: behind its title."""
    parts = []
    for _, lines in values.groupby("name", sort=False):
        title = _title(lines)
        if fold:
            parts.append(folded(title, *_printed(lines)))
        else:
            parts += [heading(title), *_printed(lines)]
    return parts


def own_value(line) -> str:
    """A value with its mark, as printed, except that KID is shown on one scale."""
    value = f"{line.value * KID_SCALE:.4g}" if line.metric == "kid" else line.printed
    return value + MARKS[line.mark]


def legend(values: pd.DataFrame) -> str:
    """What the marks among these values mean."""
    used = set(values["mark"])
    meanings = [f"{MARKS[mark]} {MEANING[mark]}" for mark in MEANING if mark in used]
    return sentences(f"{'; '.join(meanings)}.") if meanings else ""


def source(line) -> str:
    """The paper and its table."""
    return f"{line.source}: {line.table}"


def _printed(values: pd.DataFrame) -> list[str]:
    """A table, its protocol, and what its marks mean."""
    values = values.sort_values("place", kind="stable")
    cells: dict[str, dict[str, str]] = {}
    for line in values.itertuples():
        column = f"{line.order} {line.metric}"
        if line.scale != 1:
            column += f" x{line.scale}"
        cells.setdefault(column, {})[line.label] = line.printed + MARKS[line.mark]
    frame = pd.DataFrame(cells).fillna("-")
    rows = values.sort_index()["label"].unique()
    return [html_table(frame.loc[rows]), sentences(values["protocol"].iloc[0]), legend(values)]


def _title(values: pd.DataFrame) -> str:
    line = next(values.itertuples())
    title = f"{source(line)}, {line.data}"
    return title if line.category == "all" else f"{title}, {line.category}"
