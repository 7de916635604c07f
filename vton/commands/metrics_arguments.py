"""The arguments of `vton metrics`: folders, settings and the device that they ask for."""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vton.commands.metrics import score_folders
from vton.config import ConfigError, EvalConfig, as_override, load, nearest
from vton.files import require_writable
from vton.metrics.extractors import SET_METRICS
from vton.metrics.matching import OPTIONAL_FOLDERS, Folders
from vton.metrics.protocol import METRICS
from vton.metrics.results import Row, write_results
from vton.processes import process_group, usable_device
from vton.report.noise import compared
from vton.report.tables import print_differences, print_table, table_json

NAMED = 3  # names that a remark lists, of any number
SET_TITLES = {"fid": "FID", "kid": "KID", "fd_dinov2": "FD-DINOv2", "cmmd": "CMMD"}


def run(args: Namespace) -> None:
    config = settings(args)
    folders = chosen_folders(args)
    device = str(usable_device(args.device))
    if args.out:
        require_writable(Path(args.out))
    data = args.data or folder_name(folders.target)
    name = args.name or folder_name(folders.pred)
    methods = [(name, folders)]
    if args.against:
        other = Path(args.against)
        # .../mine/out against .../theirs/out, or against out of the current folder
        forms = (folder_name(other), str(other), os.path.abspath(other))
        other_name = next(form for form in forms if form != name)
        methods.append((other_name, replace(folders, pred=other)))

    rows: list[Row] = []
    with process_group():
        for model, its_folders in methods:
            own = score_folders(
                its_folders,
                args.order,
                config,
                device,
                model=model,
                data=data,
                mask_rule=args.mask_rule,
                asked=config.metrics if args.metrics else (),
            )
            rows += own or []
    if not rows:  # another process reports
        return

    lines: dict[str, None] = {}  # each once, though both methods may have it
    for model, its_folders in methods:
        own = [row for row in rows if row.model == model]
        lines |= dict.fromkeys(remarks(own, its_folders))
    for line in lines:
        print(f"vton: {line}", file=sys.stderr)
    names = [model for model, _ in methods]
    if args.against:
        for differences in compared(rows, *names):
            differences.keep()
    if args.out:
        write_results(Path(args.out), rows)
    if args.json:
        print(table_json(rows))
        return
    print_table(rows, intervals=args.intervals)
    if args.against:
        print_differences(compared(rows, *names))


def folder_name(folder: Path) -> str:
    """A folder's own name, also where it is given as `.` or `..`."""
    return os.path.basename(os.path.abspath(folder))


def remarks(rows: Sequence[Row], folders: Folders) -> Iterator[str]:
    """Lines on what readers of the rows should know: sizes, references, gaps, empty masks."""
    facts = rows[0].provenance
    if facts["jpeg_predictions"]:
        compressed = f"{facts['jpeg_predictions']} predictions are JPEG files"
        if facts["metrics"]["protocol"]["prediction_jpeg"]:
            yield f"{compressed}, and {rows[0].protocol} compresses them again: it starts from PNG."
        else:
            yield f"{compressed}: what compression changed counts as the method's error."
    size, targets = facts["size"], facts["targets"]
    stored = targets["size"]
    if size != stored:
        yield f"targets of {stored} (height, width) were brought to the predictions' {size}."
        if abs(size[0] * stored[1] - size[1] * stored[0]) > max(stored):
            yield (
                "these shapes differ, so the pictures are compared distorted, and even perfect "
                "ones score badly. If the predictions have margins, crop them first (height to "
                f"width {stored[0]}:{stored[1]}); if they were stretched, --size "
                f"{stored[0]}x{stored[1]} stretches them back."
            )
    names = {name.removesuffix("_random") for row in rows for name in row.metrics}
    of_sets = [SET_TITLES[metric] for metric in SET_METRICS if metric in names]
    if of_sets:
        *first, last = of_sets
        sets = f"{', '.join(first)} and {last} compare" if first else f"{last} compares"
        yield f"{sets} with {targets['n']} pictures of {folders.target}."
    without, empty = targets["without_prediction"], facts["empty_masks"]
    if without["n"]:
        yield (
            f"{without['n']} of them have no prediction: {named(**without)}. If they do not belong "
            "to the reference, name those that do with --list FILE."
        )
    if empty["n"]:
        yield (
            f"{empty['n']} masks of {folders.mask} are empty; these pairs only count for the whole "
            f"picture: {named(**empty)}."
        )


def named(n: int, first: Sequence[str]) -> str:
    """The first few of n names."""
    return ", ".join(first[:NAMED]) + (", ..." if n > NAMED else "")


def settings(args: Namespace) -> EvalConfig:
    """The section `eval` of the configuration. Raises ConfigError naming the option."""
    overrides = [
        as_override("eval.protocol", args.protocol),
        as_override("eval.batch_size", args.batch_size),
        as_override("eval.weights", args.weights),
    ]
    if args.metrics:
        names = " ".join(args.metrics).replace(",", " ").split()
        for name in names:
            if name not in METRICS:
                raise ConfigError(f"--metrics {name}: no such metric. {nearest(name, METRICS)}")
        overrides.append(as_override("eval.metrics", names))
    if args.size:
        match = re.fullmatch(r"(\d+)x(\d+)", args.size)
        if not match:
            raise ConfigError(
                f"--size {args.size}: expected height x width in pixels, such as 512x384."
            )
        overrides.append(as_override("eval.size", [int(side) for side in match.groups()]))
    return load(*overrides).eval


def chosen_folders(args: Namespace) -> Folders:
    paths = {}
    for name in ("pred", "target", *OPTIONAL_FOLDERS, "prompts", "listed"):
        path = getattr(args, name)
        paths[name] = Path(path) if path else None
    return Folders(**paths)
