"""`vton compare` and `vton ablate`: several methods under one budget, and one table of them.

A comparison is a set of ordinary runs (comparison.py). Interrupt it any time; the same command
resumes and skips finished runs. Each run is trained and scored by the ordinary commands, in a
process of its own, and there is no state but the run folders: a run is done when its results.json
is there, which is written last. The same command, started several times, shares the runs out.
"""

from __future__ import annotations

import fcntl
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from PIL import Image

from vton.commands.comparison import (
    Comparison,
    ComparisonRun,
    plan_ablation,
    plan_as_json,
    plan_models,
)
from vton.commands.sampling import prediction_folder
from vton.commands.table import draw_table
from vton.config import load_file
from vton.data.ranges import normalise
from vton.errors import UserError
from vton.files import replacing
from vton.metrics.pictures import PictureFolder
from vton.metrics.results import Row, read_results, write_results
from vton.report.grid import try_on_grid
from vton.report.summary import ROWS, write_tables
from vton.report.tables import is_baseline
from vton.runs.assemble import data_module
from vton.runs.folder import NO_EFFECT, differences

Execute = Callable[[Sequence[str]], int]  # arguments of `vton` -> its exit code


def run_compare(args: Namespace) -> int:
    return run_command(plan_models(*args.overrides), args)


def run_ablate(args: Namespace) -> int:
    return run_command(plan_ablation(*args.overrides), args)


def run_command(comparison: Comparison, args: Namespace) -> int:
    """Run the comparison, or print its plan. Exit code 1 if a run failed."""
    if args.dry_run:
        print(plan_as_json(comparison))
        return 0
    failed = run_comparison(comparison)
    if (comparison.results_folder / "table.md").exists():
        draw_table(comparison.results_folder, args.json, args.intervals)
    if failed:
        print_progress(f"vton: failed: {'; '.join(failed)}. The same command tries again.")
    return int(bool(failed))


def run_comparison(comparison: Comparison, execute: Execute | None = None) -> list[str]:
    """Run what is not done yet; returns the titles of the runs that failed.

    Rows, tables and pictures are updated after each run. Runs that another process works on are
    left for the end and then waited for. execute: runs `vton`, by default in a process of its own.
    Raises UserError if a run folder holds other settings.
    """
    for run in comparison.runs:
        require_same_settings(run)
    update_results(comparison)
    failed, busy = [], []
    for run in comparison.runs:
        with run_lock(run) as lock:
            if lock is None:
                busy.append(run)
            elif not complete(run, comparison, lock, execute):
                failed.append(run.title)
    busy = [run for run in busy if not run.done]  # some have ended in the meantime
    if busy:
        titles = "; ".join(run.title for run in busy)
        print_progress(f"Waiting for runs of other processes: {titles}.")
    for run in busy:
        with run_lock(run, wait=True) as lock:
            if not complete(run, comparison, lock, execute):
                failed.append(run.title)
    return failed


def complete(
    run: ComparisonRun, comparison: Comparison, lock: int, execute: Execute | None
) -> bool:
    """Do what is left of a run, and update the results. False if one of its commands failed."""
    if run.done:
        return True
    number = comparison.runs.index(run) + 1
    print_progress(f"[{number}/{len(comparison.runs)}] {run.title}")
    for arguments in run.commands():
        code = in_own_process(arguments, lock) if execute is None else execute(arguments)
        if code:
            break
    update_results(comparison)
    return code == 0


def require_same_settings(run: ComparisonRun) -> None:
    """Raise UserError if the run's folder holds a run of other settings, finished or not."""
    folder = run.folder
    if not folder.config.exists():
        return
    stored = load_file(folder.config)
    differing = differences(stored, run.config, allowed=(*NO_EFFECT, "eval.baselines"))
    if differing:
        raise UserError(
            f"{folder.path} was run with other settings ({'; '.join(differing[:5])}). "
            "Give this comparison a name (name=...), or remove the folder."
        )


def run_lock(run: ComparisonRun, wait: bool = False) -> AbstractContextManager[int | None]:
    """`file_lock` of a run: who has it works on the run."""
    return file_lock(run.folder.path / ".lock", wait)


@contextmanager
def file_lock(path: Path, wait: bool) -> Iterator[int | None]:
    """Lock a file, which need not exist, and give its descriptor; None if it is taken and we don't
    wait.

    Processes that inherit the descriptor keep the lock even if this one dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def in_own_process(arguments: Sequence[str], lock: int) -> int:
    """Run `vton` in a process that gives its memory back and may crash; it prints to stderr."""
    print_progress(f"$ {shlex.join(['vton', *arguments])}")
    command = [sys.executable, "-m", "vton", *arguments]
    done = subprocess.run(command, stdout=sys.stderr.fileno(), pass_fds=[lock], check=False)
    return done.returncode


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def update_results(comparison: Comparison) -> None:
    """Write rows, tables and the picture grid of the runs that are done."""
    with file_lock(comparison.runs_folder / ".table.lock", wait=True):
        done, missing = [], []
        for run in comparison.runs:
            if run.done:
                done.append(run)
            else:
                missing.append(run)
        if not done:
            return
        rows = []
        for run in done:
            rows += rows_of(run, comparison, missing)
        write_results(comparison.results_folder / ROWS, rows)
        write_tables(comparison.results_folder)
        first_seed = comparison.shared.compare.seeds[0]
        sampled = [run for run in done if run.seed == first_seed]
        if sampled:
            save_methods_grid(sampled, comparison.results_folder / "grid.jpg")


def rows_of(
    run: ComparisonRun, comparison: Comparison, missing: Sequence[ComparisonRun]
) -> list[Row]:
    """A run's rows under its method's name, with what the comparison knows of it.

    Baselines come from the first run only, and without its training: they learned nothing from it.
    missing: runs of the comparison that are not done, which the table names
    """
    facts = {
        "name": comparison.name,
        "ablation": comparison.ablated,
        "budget": comparison.budget,
        "changes": list(run.changes),
    }
    if missing:
        facts["missing"] = [other.title for other in missing]
    rows = []
    for row in read_results(run.folder.results):
        if not is_baseline(row):
            row.model = row.model.replace(run.config.model.label, run.method, 1)
            row.provenance["comparison"] = facts
            row.provenance["cost"] = comparison.costs[run.method]
            rows.append(row)
        elif run.config.eval.baselines:
            row.provenance.pop("training", None)
            rows.append(row)
    return rows


def save_methods_grid(runs: Sequence[ComparisonRun], path: Path) -> None:
    """Some held-out pairs, unpaired if they were evaluated, and each method's picture of them."""
    config = runs[0].config
    order = "unpaired" if "unpaired" in config.eval.orders else "paired"
    data = data_module(replace(config, data=config.data.unpadded()))
    data.prepare_data()
    batch = data.val_batch(order, config.eval.pictures)
    outputs = []
    for run in runs:
        folder = prediction_folder(run.folder, run.config.model.label, order)
        outputs.append(normalise(PictureFolder(folder).read(batch.pair_id)))
    grid = try_on_grid(batch, *outputs, titles=[run.method for run in runs])
    with replacing(path) as temporary:
        Image.fromarray(grid).save(temporary, "JPEG", quality=90)
