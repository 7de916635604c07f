"""The arguments of `vton metrics`: folders, settings and the device that they ask for."""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch

from vton.commands.metrics import score_folders
from vton.config import ConfigError, EvalConfig, as_override, load, nearest
from vton.errors import UserError, one_line
from vton.metrics.matching import OPTIONAL_FOLDERS, Folders
from vton.metrics.protocol import METRICS
from vton.metrics.results import Row, write_results
from vton.processes import process_group
from vton.report.noise import compared
from vton.report.tables import print_differences, print_table, table_json


def run(args: Namespace) -> None:
    config = settings(args)
    folders = chosen_folders(args)
    device = usable_device(args.device)
    data = args.data or folders.target.name
    names = [args.name or folders.pred.name]
    every = [folders]
    if args.against:
        other = Path(args.against)
        every.append(replace(folders, pred=other))
        same = other.name == names[0]  # .../mine/out against .../theirs/out
        names.append(str(other) if same else other.name)

    rows: list[Row] = []
    with process_group():
        for model, some in zip(names, every, strict=True):
            found = score_folders(
                some, args.order, config, device, model=model, data=data, mask_rule=args.mask_rule
            )
            rows += found or []
    if not rows:  # another process reports
        return

    facts = rows[0].provenance
    size, stored = facts["size"], facts["targets"]["size"]
    if size != stored:
        print(
            f"vton: targets of {stored} (height, width) were brought to the predictions' {size}.",
            file=sys.stderr,
        )
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


def usable_device(asked: str | None) -> str:
    """The device to compute on, by default this process's GPU. Raises UserError if unusable."""
    try:
        torch.ones((), device=asked)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {asked}: not usable here ({one_line(error)}).") from None
    if asked:
        return asked
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return "cpu"
