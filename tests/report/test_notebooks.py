import ast
import json
import re

import pytest

from vton.cli import main
from vton.report.notebooks import NOTEBOOKS, NotebookError, read_cells, run_notebook

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_one_for_the_comparison_and_one_for_each_papers_ablation():
    assert [path.stem for path in PATHS] == [
        "ablation_gardiff", "ablation_idm_vton", "ablation_imagdressing", "ablation_tryondiffusion", "comparison",
    ]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs_from_start_to_end_on_the_results_of_this_repository(path, monkeypatch):
    monkeypatch.delenv("VTON_RESULTS", raising=False)
    page = run_notebook(path)
    assert "<h4>" in page and "arXiv" in page  # published values with their source
    if path.stem == "comparison":
        told = re.sub(r"<[^>]+>", " ", page)
        assert "Best architecture, of" in told and "data:image/jpeg" in page and "<circle" in page


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs_without_any_result_and_says_so(path, monkeypatch, tmp_path):
    monkeypatch.setenv("VTON_RESULTS", str(tmp_path))
    page = run_notebook(path)
    assert f"Nothing measured to show: no results.json below {tmp_path}." in page
    assert "arXiv" in page


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_is_thin_reads_results_only_and_keeps_no_outputs(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in stored["cells"]}) == len(stored["cells"])
    for cell in stored["cells"]:
        kept = cell.get("outputs") or cell.get("execution_count")
        assert not kept, f"{path}: clear all outputs in Jupyter and save again"
    for kind, source in read_cells(path):
        for node in ast.walk(ast.parse(source)) if kind == "code" else []:
            assert not isinstance(node, ast.Import | ast.FunctionDef | ast.For | ast.If)
            assert not isinstance(node, ast.ImportFrom) or node.module == "vton.report.views"


def notebook(tmp_path, *sources):
    cells = [{"cell_type": "code", "source": source, "outputs": [], "execution_count": None} for source in sources]
    path = tmp_path / "mine.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "cells": cells}))
    return path


def test_cells_share_names_and_the_last_expression_and_what_is_printed_are_shown(tmp_path):
    page = run_notebook(notebook(tmp_path, ["x = 20\n", "x + 1"], "print('hi <there>')\nx * 2", "None"))
    assert "<pre>21</pre>" in page and "<pre>40</pre>" in page and "hi &lt;there&gt;" in page


def test_a_cell_that_fails_is_named(tmp_path):
    with pytest.raises(NotebookError, match=r"mine.ipynb, cell 2: ZeroDivisionError: .*zero"):
        run_notebook(notebook(tmp_path, "1", "1 / 0"))


def test_what_is_no_notebook_is_refused(tmp_path):
    (tmp_path / "mine.ipynb").write_text("{}")
    with pytest.raises(NotebookError, match=r"mine.ipynb: not readable as a notebook: KeyError 'cells'"):
        read_cells(tmp_path / "mine.ipynb")


def test_the_command_writes_pages(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VTON_RESULTS", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["notebooks", str(notebook(tmp_path, "40 + 2")), "--out", str(tmp_path / "pages")])
    assert not stop.value.code
    assert "<pre>42</pre>" in (tmp_path / "pages" / "mine.html").read_text()
    assert "mine.html written in" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["notebooks", str(NOTEBOOKS / "comparison.ipynb"), "--results", str(tmp_path / "absent"),
              "--out", str(tmp_path / "pages")])  # fmt: skip
    assert stop.value.code == 2
    assert "absent: no such folder of results" in capsys.readouterr().err
