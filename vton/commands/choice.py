"""The run that a command works on: --run FOLDER, the newest of --model NAME, or the newest."""

from __future__ import annotations

from argparse import Namespace

from vton.config import as_text
from vton.runs.cascade import Stage, load_stage
from vton.runs.folder import RunFolder


def chosen_run(args: Namespace) -> RunFolder:
    """Raises UserError where nothing was trained yet, or not that model."""
    if args.folder:
        return RunFolder(args.folder)
    runs = "runs"
    for override in args.overrides:
        key, _, value = override.partition("=")
        if key == "runs":
            runs = as_text(value)
    return RunFolder.newest(runs, args.model)


def chosen_stage(args: Namespace) -> Stage:
    """The chosen run with its overrides; of a cascade its last stage, unless --run names one."""
    return load_stage(chosen_run(args), *args.overrides, whole=not args.folder)
