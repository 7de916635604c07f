"""Notebooks from start to end without Jupyter: code cells in one namespace, what they show as one HTML page."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from vton.errors import UserError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #333 }}
table {{ border-collapse: collapse; margin: .5em 0 }} td, th {{ padding: .2em .7em; text-align: right }}
tbody tr:nth-child(odd) {{ background: #f4f4f4 }} pre {{ background: #f4f4f4; padding: .5em; overflow-x: auto }}
details {{ margin: .3em 0 }} svg {{ max-width: 100%; height: auto }} div {{ overflow-x: auto }}
</style>
"""


class NotebookError(UserError):
    """A notebook that cannot be read, or whose code fails."""


def read_cells(path: Path) -> list[tuple[str, str]]:
    """(kind, source) of every cell, kind "markdown" or "code". Raises NotebookError for what is no such notebook."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in stored["cells"]]
        version = stored["nbformat"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotebookError(f"{path}: not readable as a notebook: {type(error).__name__} {error}") from error
    if version != 4 or any(kind not in ("markdown", "code") for kind, _ in cells):
        raise NotebookError(f"{path}: expected notebook format 4 with markdown and code cells only.")
    return cells


def run_notebook(path: Path) -> str:
    """The notebook as an HTML page, its code run from start to end. Raises NotebookError naming the cell that fails."""
    space: dict[str, Any] = {"__name__": "__main__"}
    return HEAD.format(title=escape(Path(path).stem)) + "\n".join(_shown(path, space))


def write_pages(paths: Sequence[Path], folder: Path) -> Iterator[tuple[Path, float]]:
    """Run each notebook, write folder/<name>.html, and yield the page and its seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        started = time.perf_counter()
        page = folder / f"{Path(path).stem}.html"
        page.write_text(run_notebook(path), encoding="utf-8")
        yield page, time.perf_counter() - started


def _shown(path: Path, space: dict[str, Any]) -> Iterator[str]:
    markdown = MarkdownIt().enable("table")
    for number, (kind, source) in enumerate(read_cells(path), 1):
        if kind == "markdown":
            yield markdown.render(source)
            continue
        printed = StringIO()
        try:
            with redirect_stdout(printed):
                value = _run(source, f"{path}, cell {number}", space)
        except Exception as error:
            raise NotebookError(f"{path}, cell {number}: {type(error).__name__}: {error}") from error
        yield f"<pre>{escape(source)}</pre>"
        if printed.getvalue():
            yield f"<pre>{escape(printed.getvalue())}</pre>"
        if value is not None:
            page = value._repr_html_() if hasattr(value, "_repr_html_") else f"<pre>{escape(repr(value))}</pre>"
            yield f"<div>{page}</div>"


def _run(source: str, name: str, space: dict[str, Any]) -> Any:
    """Execute a cell; the value of its last line if that is an expression, as Jupyter shows it."""
    body = ast.parse(source, name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), space)
    return eval(compile(ast.Expression(last.value), name, "eval"), space) if last else None
