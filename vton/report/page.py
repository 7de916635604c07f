"""What a notebook cell shows: HTML of sentences, tables, charts and pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

import pandas as pd


class Page:
    """Parts in HTML, one below the other. Jupyter shows a page by its `_repr_html_`."""

    def __init__(self, *parts: str):
        self.parts = parts

    def _repr_html_(self) -> str:
        return "\n".join(self.parts)


def heading(text: str) -> str:
    return f"<h4>{escape(text)}</h4>"


def sentences(*texts: str) -> str:
    return f"<p>{escape(' '.join(texts))}</p>"


def bullets(texts: Iterable[str]) -> str:
    items = [f"<li>{escape(text)}</li>" for text in texts]
    return f"<ul>{''.join(items)}</ul>"


def html_table(frame: pd.DataFrame) -> str:
    """A frame of text cells with its index as names of the rows; **cell** is bold."""
    safe = frame.map(_cell)
    safe.index = [escape(str(name), quote=False) for name in frame.index]
    safe.columns.name = None
    return safe.to_html(escape=False, border=0)


def _cell(value: object) -> str:
    cell = escape(str(value), quote=False)
    if len(cell) > 4 and cell.startswith("**") and cell.endswith("**"):
        return f"<b>{cell[2:-2]}</b>"
    return cell


def folded(title: str, *parts: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def html_picture(path: Path, caption: str) -> str:
    """A picture's own bytes, so that the page needs no other file."""
    kind = "png" if path.suffix == ".png" else "jpeg"
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" style="max-width:100%">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
