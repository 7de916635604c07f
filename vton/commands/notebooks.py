"""`vton notebooks`: run notebooks from start to end and write each as a page."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from vton.report.notebooks import NOTEBOOKS, write_pages


def run(args: Namespace) -> None:
    paths = args.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    environment = {"VTON_RESULTS": args.results} if args.results else {}
    for page, seconds in write_pages(paths, Path(args.out), **environment):
        print(f"{page} written in {seconds:.1f} s.")
