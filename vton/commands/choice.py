"""What a command works on: the run (--run FOLDER, the newest of --model NAME, or the newest of all)
and the machine.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from vton.config import GROUPS, as_text, what_there_is
from vton.processes import is_first_process
from vton.runs.cascade import Stage, load_stage
from vton.runs.folder import RunFolder


def chosen_run(args: Namespace) -> RunFolder:
    """The run of --run or --model, else the newest one. Raises UserError if there is none."""
    if args.folder:
        return RunFolder(args.folder)
    runs = "runs"
    for override in args.overrides:
        key, _, value = override.partition("=")
        if key == "runs":
            runs = as_text(value)
    return RunFolder.newest(runs, args.model)


def chosen_stage(args: Namespace) -> Stage:
    """The chosen run with its overrides; the last stage of a cascade, unless --run names one.

    It is set up for this machine, or for the given trainer=NAME, wherever it was trained.
    """
    trainer = f"trainer={chosen_trainer(args.overrides)}"
    return load_stage(chosen_run(args), trainer, *args.overrides, whole=not args.folder)


def chosen_trainer(overrides: Sequence[str]) -> str:
    """The NAME of trainer=NAME, or the default."""
    name = GROUPS["trainer"]
    for override in overrides:
        if override.startswith("trainer="):
            name = override.removeprefix("trainer=")
    return name


def say_trainer(overrides: Sequence[str]) -> None:
    """Print on stderr what trainer=auto stands for here, unless another trainer was given."""
    if chosen_trainer(overrides) == "auto" and is_first_process():
        print(f"trainer=auto: {what_there_is()}", file=sys.stderr)
