"""The run that a command works on: --run FOLDER, the newest of --model NAME, or the newest."""

from __future__ import annotations

from argparse import Namespace

from vton.runs.cascade import Stage, chain_of
from vton.runs.folder import RunFolder


def chosen_run(args: Namespace) -> RunFolder:
    """Raises UserError where nothing was trained yet, or not that model."""
    if args.folder:
        return RunFolder(args.folder)
    runs = "runs"
    for override in args.overrides:
        key, _, value = override.partition("=")
        if key == "runs":
            runs = value
    return RunFolder.newest(runs, args.model)


def chosen_chain(args: Namespace) -> list[Stage]:
    """The chosen run with its overrides; unless --run names it, the whole cascade it belongs to."""
    return chain_of(chosen_run(args), *args.overrides, whole=not args.folder)
