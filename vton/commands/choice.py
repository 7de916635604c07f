"""What a command works on: the run (--run FOLDER, the newest of --model NAME, or the newest) and
the machine.
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
    """The chosen run with its overrides; of a cascade its last stage, unless --run names one.

    Where it was trained does not matter: it is for this machine, or for the trainer=NAME given.
    """
    trainer = f"trainer={chosen_trainer(args.overrides)}"
    return load_stage(chosen_run(args), trainer, *args.overrides, whole=not args.folder)


def chosen_trainer(overrides: Sequence[str]) -> str:
    """The NAME of trainer=NAME, by default auto."""
    name = GROUPS["trainer"]
    for override in overrides:
        if override.startswith("trainer="):
            name = override.removeprefix("trainer=")
    return name


def say_trainer(overrides: Sequence[str]) -> None:
    """Say on stderr what trainer=auto is here, unless another trainer was asked for."""
    if chosen_trainer(overrides) == "auto" and is_first_process():
        print(f"trainer=auto: {what_there_is()}", file=sys.stderr)
