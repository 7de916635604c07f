"""Notebooks from start to end, each in a new kernel of this very Python, written as HTML pages that
need no network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from vton.errors import UserError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
STARTUP = 300  # seconds a kernel may take to answer: a busy machine is no failure


class NotebookError(UserError):
    """A notebook that cannot be read, whose code fails, or that nothing here can run."""


def write_pages(
    paths: Sequence[Path], folder: Path, **environment: str
) -> Iterator[tuple[Path, float]]:
    """Run each notebook, write folder/<name>.html, and yield the page and its seconds. Raises
    NotebookError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in map(Path, paths):
        started = time.perf_counter()
        page = folder / f"{path.stem}.html"
        page.write_text(run_notebook(path, **environment), encoding="utf-8")
        yield page, time.perf_counter() - started


def run_notebook(path: Path, **environment: str) -> str:
    """The executed notebook as an HTML page. The kernel has this process' working directory and
    environment variables, and those given here.

    Raises NotebookError naming the cell that fails (the first cell, code or not, is 1) or the
    package that is missing.
    """
    try:
        import ipykernel  # noqa: F401  what the kernel runs
        import nbformat
        from jupyter_client import AsyncKernelManager
        from jupyter_client.kernelspec import KernelSpecManager
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, DeadKernelError
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise NotebookError(
            f"Running notebooks needs {error.name}: make setup, or pip install -e '.[notebooks]'."
        ) from error
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat has no common class for what it meets in a broken file
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise NotebookError(f"{path}: not readable as a notebook: {said}") from error
    with (
        TemporaryDirectory() as folder
    ):  # for sockets instead of ports, and instead of the user's IPython profile
        kernel = AsyncKernelManager(
            kernel_name="python3",  # ipykernel under sys.executable where no folder of installed kernels is searched
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="ipc",
            connection_file=f"{folder}/kernel.json",
        )
        client = NotebookClient(notebook, km=kernel, startup_timeout=STARTUP)
        with client.setup_kernel(
            cleanup_kc=True, env={**os.environ, **environment, "IPYTHONDIR": folder}
        ):
            for index, cell in enumerate(notebook.cells):
                try:
                    client.execute_cell(cell, index)
                except CellExecutionError as error:
                    said = f"{error.ename}: {error.evalue}".partition("\n")[0]
                    raise NotebookError(f"{path}, cell {index + 1}: {said}") from error
                except DeadKernelError as error:
                    raise NotebookError(f"{path}, cell {index + 1}: {error}") from error
    page, _ = HTMLExporter(mathjax_url="", require_js_url="").from_notebook_node(
        notebook, {"metadata": {"name": Path(path).stem}}
    )
    return page
