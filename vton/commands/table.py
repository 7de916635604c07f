"""`vton table`: print and write the tables of comparisons again, from their stored rows."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from vton.config import load_shared
from vton.report.noise import in_words
from vton.report.summary import write_tables
from vton.report.tables import grouped, print_sentences, print_table, table_json


def run(args: Namespace) -> None:
    folder = Path(args.folder or load_shared().compare.results)
    comparisons = sorted(table.parent for table in folder.glob("*/table.md")) or [folder]
    if args.json:
        tables = [write_tables(comparison, args.intervals) for comparison in comparisons]
        print(table_json(*tables))
        return
    for comparison in comparisons:
        draw_table(comparison, intervals=args.intervals)


def draw_table(folder: Path, as_json: bool = False, intervals: bool = False) -> None:
    """Write and print the tables of one comparison, and which of its differences are noise.

    intervals: show each value's interval over resampled pairs. Raises UserError if there are no
    rows.
    """
    rows = write_tables(folder, intervals)
    if as_json:
        print(table_json(rows))
        return
    print_table(rows, intervals=intervals)
    print_sentences(in_words(grouped(rows)))
    print(f"{folder}/table.md, table.csv and table.tex written.")
