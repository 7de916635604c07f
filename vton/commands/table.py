"""`vton table`: the tables of comparisons, drawn again from their rows alone."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from vton.config import load_shared
from vton.report.summary import write_tables
from vton.report.tables import print_table, table_json


def run(args: Namespace) -> None:
    folder = Path(args.folder or load_shared().compare.results)
    comparisons = sorted(table.parent for table in folder.glob("*/table.md"))
    for comparison in comparisons or [folder]:
        draw_table(comparison, args.json)


def draw_table(folder: Path, as_json: bool) -> None:
    """Write and print the tables of one comparison. Raises UserError if it has no rows."""
    rows = write_tables(folder)
    if as_json:
        print(table_json(rows))
        return
    print_table(rows)
    print(f"{folder}/table.md, table.csv and table.tex written.")
