"""`vton eval` and `vton predict`: sample held-out pairs, write PNGs, score them, report.

Sampling (sampling.py) and scoring (scoring.py) share nothing but files named by pair. The stages of
a cascade follow one another through these files too (vton/runs/cascade.py).
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from vton.commands.baselines import learned_warp, warp_methods
from vton.commands.choice import chosen_stage, say_trainer
from vton.commands.places import known_places, print_places
from vton.commands.sampling import (
    SampledStage,
    Sampler,
    prediction_folder,
    sample_stage,
    sampled_methods,
)
from vton.commands.scoring import from_files, score_stage, upsampled
from vton.data.module import TryOnDataModule
from vton.data.ranges import normalise
from vton.data.sample import CATEGORIES, Order
from vton.errors import UserError
from vton.files import replacing
from vton.metrics.extractors import SET_METRICS
from vton.metrics.pictures import PictureFolder
from vton.metrics.results import Row, write_results
from vton.metrics.target import Method
from vton.processes import is_first_process
from vton.report.grid import try_on_grid
from vton.report.tables import print_table, table_json
from vton.runs.assemble import checkpoint_path, data_module
from vton.runs.cascade import Stage, require_same_pairs
from vton.training.dashboard import show_results
from vton.training.trainer import quiet_libraries


def run_eval(args: Namespace) -> None:
    stage = chosen_stage(args)
    say_trainer(args.overrides)
    evaluate(stage, args.checkpoint, args.json, args.intervals)


def run_predict(args: Namespace) -> None:
    stage = chosen_stage(args)
    say_trainer(args.overrides)
    predict(stage, args.order, Path(args.out))


def evaluate(
    stage: Stage, checkpoint: str = "weights", as_json: bool = False, intervals: bool = False
) -> list[Row]:
    """Sample and score a trained network, after the stages whose pictures it enlarges.

    checkpoint: "weights", those at the end of training, or "last" or "best", the file of that name;
    all of them are averaged where training keeps an average. Everything is sampled first, in every
    configured order, then scored. Writes each run's predictions/, results and picture grids.
    intervals: as for `print_table`.
    """
    stages = stage.in_order()
    with ExitStack() as locks:
        if is_first_process():
            for part in stages:
                locks.enter_context(part.run.evaluation_lock())
        return sample_and_score(stages, checkpoint, as_json, intervals)


def sample_and_score(
    stages: Sequence[Stage], checkpoint: str, as_json: bool, intervals: bool
) -> list[Row]:
    """`evaluate`, while no other process evaluates these runs. stages: first to last"""
    started = time.perf_counter()
    data_modules = open_data(stages, checkpoint, stages[-1].config.eval.orders)
    for part, data in zip(stages, data_modules, strict=True):
        if part.config.eval.places:
            known_places(part.config, data)  # raises where nobody knows them
    drawn = []
    for part, data in zip(stages, data_modules, strict=True):
        drawn.append(sample_stage(part, data, checkpoint))

    tables = []
    facts_before: list[dict[str, Any]] = []
    for sampled in drawn:
        rows = score_stage(sampled, facts_before)
        facts_before.append(sampled.facts)
        if rows is None:  # another process reports
            continue
        save_grids(sampled)
        seconds = time.perf_counter() - started
        for row in rows:
            row.provenance["wall_seconds"] = round(seconds, 1)
        write_results(results_file(sampled.stage), rows)
        if not sampled.stage.enlarges_truth:  # those rows have another name
            show_results(sampled.stage.run, sampled.stage.config, rows)
        if not as_json:
            print_report(rows, sampled.stage, seconds, intervals)
            print_places(sampled.places)
        tables.append(rows)
    if as_json and tables:
        print(table_json(*tables))
    return [row for rows in tables for row in rows]


def require_no_others(folder: Path, data: TryOnDataModule, order: Order) -> None:
    """Raise UserError if the folder holds pictures of other pairs, which would pass for ours."""
    ours = {pair.id for pair in data.eval_dataset(order).pairs}
    others = []
    for place in (folder, *(folder / category for category in CATEGORIES)):
        for path in sorted(place.glob("*.png")):
            name = path.relative_to(folder)
            if name.with_suffix("").as_posix() not in ours:
                others.append(name)
    if others:
        raise UserError(
            f"{folder} holds {len(others)} pictures of other pairs, such as {others[0]}. "
            "Give another folder, or empty this one."
        )


def predict(stage: Stage, order: Order, folder: Path) -> None:
    """Write the picture of every pair of an order as PNG, without scores.

    Pictures of the stages before lie in folders named by stage, a warp's silhouettes in a folder
    below its pictures.
    """
    stages = stage.in_order()
    data_modules = open_data(stages, "weights", [order], needs_reference=False)
    before = None
    for part, data in zip(stages, data_modules, strict=True):
        target = folder if part is stage else folder / part.config.model.stage
        require_no_others(target, data, order)
        sampler = Sampler(part, "weights")
        sampler.draw(data, order, target, before)
        before = target
    if sampler.trainer.is_global_zero:
        source = ", enlarged from the reduced truth" if stage.enlarges_truth else ""
        print(f"{len(data.eval_dataset(order))} pictures in {folder}{source}")


def open_data(
    stages: Sequence[Stage],
    checkpoint: str,
    orders: Iterable[Order],
    needs_reference: bool = True,
) -> list[TryOnDataModule]:
    """The data of every stage, after all checks that can be made before hours of sampling.

    Raises UserError subclasses.
    """
    quiet_libraries()
    for stage in stages:
        checkpoint_path(stage.run, checkpoint)  # raises where there is none
        learned_warp(stage.config)  # raises where it is not usable
    data_modules = [data_module(stage.config) for stage in stages]
    for stage, data in zip(stages, data_modules, strict=True):
        data.prepare_data()
        for order in orders:
            data.eval_dataset(order).require_files()
        if needs_reference and SET_METRICS.keys() & set(stage.config.eval.metrics):
            data.persons_dataloader().dataset.require_files()
    for place in range(1, len(stages)):
        require_same_pairs(stages[place], data_modules[place], data_modules[place - 1], orders)
    return data_modules


def results_file(stage: Stage) -> Path:
    """results.json; a stage that enlarged the truth has a file of its own beside it."""
    path = stage.run.results
    return path.with_stem("results_from_truth") if stage.enlarges_truth else path


def save_grids(sampled: SampledStage) -> None:
    """Save a grid of pictures for every order: a few pairs, spread over the test list."""
    stage = sampled.stage
    name = sampled_methods(stage)[0]
    for order in stage.config.eval.orders:
        folder = prediction_folder(stage.run, name, order)
        columns: dict[str, Method] = {}
        if stage.before is not None:
            columns["upsampled"] = upsampled(stage, order)
        columns["output"] = from_files(PictureFolder(folder))
        source = sampled.data.eval_dataset(order).warp_source
        for baseline, method in warp_methods(source, sampled.warp).items():
            columns[baseline.removeprefix("baseline/").replace("_", " ")] = method

        batch = sampled.data.val_batch(order, stage.config.eval.pictures)
        outputs = [normalise(method(batch).pictures) for method in columns.values()]
        grid = try_on_grid(batch, *outputs, titles=list(columns))
        with replacing(stage.run.grid(folder.name)) as temporary:
            Image.fromarray(grid).save(temporary, "PNG")


def print_report(rows: Sequence[Row], stage: Stage, seconds: float, intervals: bool) -> None:
    """Print the stage's table and where the files are."""
    run = stage.run
    if stage.config.model.upper_stage:
        source = "the reduced truth, which no cascade has"
        if stage.before is not None:
            source = f"pictures of {stage.before.run.path}"
        height, width = stage.config.data.picture_size
        print(f"{sampled_methods(stage)[0]}: enlarges {source}, to {height}x{width}.")
    print_table(rows, intervals=intervals)
    print(
        f"{results_file(stage)}, {run.path}/pictures_*.png and {run.predictions}/ "
        f"written in {seconds:.0f} s."
    )
