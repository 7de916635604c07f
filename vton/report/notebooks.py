"""Notebooks run from start to end, each in a new kernel of this Python, written as HTML pages."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from vton.errors import UserError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
STARTUP = 300  # seconds a kernel may take to answer: a busy machine is no failure


def write_pages(
    paths: Sequence[Path], folder: Path, **environment: str
) -> Iterator[tuple[Path, float]]:
    """Run each notebook, write folder/<name>.html, and yield the page and its seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in map(Path, paths):
        started = time.perf_counter()
        page = folder / f"{path.stem}.html"
        page.write_text(run_notebook(path, **environment), encoding="utf-8")
        yield page, time.perf_counter() - started


def run_notebook(path: Path, **environment: str) -> str:
    """The executed notebook as an HTML page that needs no network.

    The kernel has this process' working directory and environment variables, and those given here.
    Raises UserError naming the cell that fails (the first cell, code or not, is 1), or the package
    that is missing.
    """
    try:
        import ipykernel  # noqa: F401  what the kernel runs
        import nbclient
        import nbformat
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise UserError(
            f"Running notebooks needs {error.name}: make setup, or pip install -e '.[notebooks]'."
        ) from error
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat has no common class for what it meets in a broken file
        problem = _first_line(type(error).__name__, error)
        raise UserError(f"{path}: not readable as a notebook: {problem}") from error
    with _kernel(notebook, environment) as client:
        for number, cell in enumerate(notebook.cells, 1):
            try:
                client.execute_cell(cell, number - 1)
            except nbclient.exceptions.CellExecutionError as error:
                problem = _first_line(error.ename, error.evalue)
                raise UserError(f"{path}, cell {number}: {problem}") from error
            except nbclient.exceptions.DeadKernelError as error:
                raise UserError(f"{path}, cell {number}: {error}") from error
    exporter = HTMLExporter(mathjax_url="", require_js_url="")
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    return page


@contextmanager
def _kernel(notebook, environment: dict[str, str]) -> Iterator:
    """A client whose kernel runs the notebook's cells."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    # The folder holds sockets, used instead of ports, and stands for the user's IPython profile.
    with TemporaryDirectory() as folder:
        kernel = AsyncKernelManager(
            kernel_name="python3",
            # Without folders of installed kernels, python3 is ipykernel under sys.executable.
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="ipc",
            connection_file=f"{folder}/kernel.json",
        )
        client = NotebookClient(notebook, km=kernel, startup_timeout=STARTUP)
        variables = {**os.environ, **environment, "IPYTHONDIR": folder}
        with client.setup_kernel(cleanup_kc=True, env=variables):
            yield client


def _first_line(kind: str, problem: object) -> str:
    return f"{kind}: {problem}".partition("\n")[0]
