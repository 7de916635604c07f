import ast
import csv
import html
import re
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook

from tests.running import command
from vton.errors import UserError
from vton.report.notebooks import NOTEBOOKS, run_notebook, write_pages

# A few made-up rows for each notebook, and the tables that follow from them.
GOLDEN = Path(__file__).parent / "golden"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
OURS = (  # ends of cells that show our numbers
    ".tables()",
    ".provenance()",
    ".costs()",
    ".pictures()",
    ".bars()",
    ".over_cost()",
    ".who_wins()",
    ".directions()",
)


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tables(page) -> list[list[list[str]]]:
    """The text of every cell of every table of a page."""
    texts = []
    for table in BeautifulSoup(page, "html.parser").find_all("table"):
        lines = []
        for line in table.find_all("tr"):
            lines.append([cell.get_text() for cell in line.find_all(["th", "td"])])
        texts.append(lines)
    return texts


def golden(stem) -> list[list[list[str]]]:
    """The tables of a CSV file, with an empty line between them."""
    parts = (GOLDEN / stem / "tables.csv").read_text(encoding="utf-8").split("\n\n")
    return [list(csv.reader(part.splitlines())) for part in parts]


def written(path, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def test_one_for_the_comparison_and_one_for_each_papers_ablation():
    assert [path.stem for path in PATHS] == [
        "ablation_catvton",
        "ablation_gardiff",
        "ablation_idm_vton",
        "ablation_imagdressing",
        "ablation_ladi_vton",
        "ablation_leffa",
        "ablation_stableviton",
        "ablation_tryondiffusion",
        "comparison",
    ]


@pytest.fixture
def shown(monkeypatch):
    """What the cells of a notebook show, or those that end so.

    They are run here: a kernel for each notebook costs more than all of its cells.
    """

    def run(path, results="", ending=""):
        monkeypatch.setenv("VTON_RESULTS", str(results))
        pages, space = [], {}
        monkeypatch.setattr(sys, "displayhook", lambda value: pages.append(value._repr_html_()))
        first, *others = cells(path)
        for cell in [first, *(cell for cell in others if cell.source.endswith(ending))]:
            exec(compile(ast.Interactive(ast.parse(cell.source).body), str(path), "single"), space)
        return pages

    return run


def soon(path):
    """The comparison has a hundred panels of bars: half a minute."""
    marks = pytest.mark.slow if path.stem == "comparison" else ()
    return pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.parametrize("path", [soon(path) for path in PATHS])
def test_shows_the_results_of_this_repository(path, shown):
    page = "\n".join(shown(path))
    assert "<h4>" in page and "arXiv" in page  # published values with their source
    if path.stem == "comparison":
        assert "Best architecture, of" in re.sub(r"<[^>]+>", " ", page)
        assert "data:image/jpeg" in page
        assert page.count("<svg") >= 2


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_shows_the_tables_that_follow_from_the_results(path, shown):
    """Means and standard deviations over runs as worked out by hand; KID is printed times 1000."""
    assert tables("".join(shown(path, GOLDEN / path.stem, ".tables()"))) == golden(path.stem)


@pytest.mark.slow
def test_every_kernel_shows_them_within_a_minute(tmp_path):
    for path in PATHS:
        [(page, seconds)] = write_pages([path], tmp_path, VTON_RESULTS=str(GOLDEN / path.stem))
        shown = tables(page.read_text(encoding="utf-8"))
        assert all(table in shown for table in golden(path.stem)) and seconds < 60, path


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_says_so_where_there_is_no_result(path, shown, tmp_path):
    page = "\n".join(shown(path, tmp_path))
    ours = [cell for cell in cells(path) if cell.source.endswith(OURS)]
    nothing = f"Nothing measured to show: no results.json below {tmp_path}."
    assert page.count(nothing) == len(ours) >= 6
    assert "arXiv" in page


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_is_thin_reads_results_only_and_keeps_no_outputs(path):
    stored = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(stored)
    assert (stored.nbformat, stored.nbformat_minor) == (4, 5)
    for cell in cells(path):
        assert not cell.outputs and not cell.execution_count, (
            f"{path}: clear all outputs in Jupyter and save again"
        )
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.Import | ast.FunctionDef | ast.For | ast.If)
            assert not isinstance(node, ast.ImportFrom) or node.module == "vton.report.views"


def test_runs_from_start_to_end_in_a_kernel_and_its_page_needs_no_network(tmp_path):
    """The kernel has not imported what takes seconds and shows nothing."""
    notebook = nbformat.read(NOTEBOOKS / "ablation_gardiff.ipynb", as_version=4)
    heavy = "{'torchmetrics', 'torchvision', 'lightning', 'diffusers'}"
    notebook.cells.append(new_code_cell(f"import sys\n'heavy', sorted({heavy} & set(sys.modules))"))
    nbformat.write(notebook, tmp_path / "ablation_gardiff.ipynb")
    page = run_notebook(tmp_path / "ablation_gardiff.ipynb", VTON_RESULTS="")
    assert repr(("heavy", [])) in html.unescape(page)
    assert "<title>ablation_gardiff</title>" in page
    assert '<h2 id="Published">' in page
    assert "arXiv" in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?:", page)


def test_the_command_writes_pages_from_kernels_of_this_python_and_names_the_cell_that_fails(
    tmp_path, capsys
):
    environment = (
        "import os, sys\n"
        "print('hi <there>')\n"
        "sys.executable, os.getcwd(), os.environ['VTON_RESULTS'], x"
    )
    good = written(tmp_path / "good.ipynb", "x = 20\nx + 1", environment)
    bad = written(tmp_path / "bad.ipynb", "1", "raise ValueError('no\\nmore')")
    pages = tmp_path / "pages"
    code = command("notebooks", str(good), str(bad), "--results", "some", "--out", str(pages))
    assert code == 2
    (page,) = pages.iterdir()
    page = html.unescape(page.read_text())
    assert "<pre>21</pre>" in page and "<pre>hi <there>\n</pre>" in page
    assert repr((sys.executable, str(Path.cwd()), "some", 20)) in re.sub(r"\s+", " ", page)
    output = capsys.readouterr()
    assert "good.html written in" in output.out
    assert output.err == f"vton: {bad}, cell 2: ValueError: no\n"


@pytest.mark.parametrize(
    "stored", ["{}", "[]", "not JSON", '{"nbformat": 4, "nbformat_minor": 5, "cells": []}']
)
def test_what_is_no_notebook_is_refused(tmp_path, stored):
    (tmp_path / "mine.ipynb").write_text(stored)
    with pytest.raises(UserError, match=r"mine.ipynb: not readable as a notebook: "):
        run_notebook(tmp_path / "mine.ipynb")


def test_without_jupyters_packages_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbclient", None)
    with pytest.raises(
        UserError, match=r"needs nbclient: make setup, or pip install -e '\.\[notebooks\]'"
    ):
        run_notebook(tmp_path / "mine.ipynb")
