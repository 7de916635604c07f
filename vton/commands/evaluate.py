"""`vton eval` and `vton predict`: sample held-out pairs, write PNGs, score them, report.

Every process samples its share of the pairs; pictures are files named by pair, so a pair that came
twice would overwrite itself. Then every process scores its share of the files, and the baselines
beside them, in one pass over the truths; the first process merges what they measured, by pair, and
reports. The stages of a cascade follow one another through these files (vton/runs/cascade.py).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from vton.commands.baselines import (
    LEARNED,
    Wear,
    held_baselines,
    learned_warp,
    warps,
    with_baselines,
)
from vton.commands.choice import chosen_chain
from vton.config import ExperimentConfig, to_yaml
from vton.data.module import TryOnDataModule
from vton.data.sample import Order, TryOnBatch
from vton.data.transforms import normalise, unpad_picture
from vton.files import file_digest
from vton.metrics.pictures import SILHOUETTES, PictureFolder, as_pictures, write_pictures
from vton.metrics.results import Row, provenance, write_results
from vton.metrics.scorer import Pictures, Scorer
from vton.metrics.tally import Features, Tally, merge, merge_features
from vton.models.base import TrainedModule, Worn
from vton.models.baselines import warped_garment
from vton.processes import gathered
from vton.report.grid import try_on_grid
from vton.report.tables import print_table, table_json
from vton.runs.assemble import checkpoint_path, data_module, load_module
from vton.runs.cascade import Stage, handed_over, interpolated, require_same_pairs
from vton.runs.checkpoint import training_so_far
from vton.runs.folder import RunFolder, git_commit
from vton.runs.warp import RunWarp
from vton.training.dashboard import show_results
from vton.training.trainer import make_trainer, quiet_libraries
from vton.weights.pretrained import read_checkpoint

CONTROL = "[shuffled]"  # suffix of the row whose garments were exchanged between samples
FROM_TRUTH = "[from_truth]"  # suffix of a cascade's upper stage that enlarged the reduced truth, not the stage before
UPSAMPLED = "baseline/upsampled"  # the former stage's pictures by interpolation alone


def run_eval(args: Namespace) -> None:
    evaluate(chosen_chain(args), checkpoint=args.checkpoint, as_json=args.json)


def run_predict(args: Namespace) -> None:
    predict(chosen_chain(args), args.order, Path(args.out))


def evaluate(
    chain: Sequence[Stage], checkpoint: str = "weights", as_json: bool = False
) -> list[Row]:
    """Sample and score a run, or a cascade's stages, each on the pictures of the one before.

    checkpoint: "weights", those at the end of training, or "last" or "best", the file of that name;
    all of them are averaged where training keeps an average. Everything is sampled first, in every
    configured order, then scored. Writes each run's predictions/, results and picture grids.
    """
    started = time.perf_counter()
    data_modules = prepare(chain, checkpoint, chain[-1].config.eval.orders)
    links = [
        chain[: place + 1] for place in range(len(chain))
    ]  # every stage behind those it builds on
    facts, paces = [], []
    for link, data in zip(links, data_modules, strict=True):
        trainer, module = ready(link[-1], checkpoint)
        if trainer.is_global_zero:  # at once: a training under way replaces last.ckpt and best.ckpt
            facts.append(stage_facts(link[-1], checkpoint))
        orders = link[-1].config.eval.orders
        paces.append({order: sample_order(trainer, module, data, link, order) for order in orders})

    tables = []
    for link, data, pace in zip(links, data_modules, paces, strict=True):
        rows = score(link, data, pace, facts[: len(link)], trainer.strategy.root_device)
        if rows is None:
            continue
        for row in rows:
            row.provenance["wall_seconds"] = round(time.perf_counter() - started, 1)
        write_results(results_file(link), rows)
        show_results(link[-1].run, link[-1].config, rows)
        if not as_json:
            report(rows, link, time.perf_counter() - started)
        tables.append(rows)
    if as_json and tables:
        print(table_json(*tables))
    return [row for rows in tables for row in rows]


def score(
    link: Sequence[Stage],
    data: TryOnDataModule,
    seconds: dict[Order, dict[str, float]],
    stages: list[dict],
    device,
) -> list[Row] | None:
    """Rows of the link's last stage and the baselines beside it, and its picture grids; padding is
    not measured.

    stages: what `stage_facts` says of each, on the first process. Every process measures its share;
    all but the first return None.
    """
    config = link[-1].config
    if config.data.pad:
        data = data_module(replace(config, data=config.data.unpadded()))
    learned = learned_warp(config)
    scorer = Scorer(config.eval, device)
    shares = gathered(lambda: score_share(scorer, link, data, learned))
    if shares is None:
        return None
    people = merge_features(share.people for share in shares)
    facts = stages[-1] | {
        "commit": git_commit(),
        "seed": config.eval.seed,
        "device": device_name(device),
        "processes": len(shares),
    }
    if config.model.upper_stage:
        facts["enlarges"] = stages[:-1] or "reduced truth"
    rows = []
    for order in config.eval.orders:
        sources = data.eval_dataset(order).sources
        wearing = warps(data.eval_dataset(order).warp_source, learned)
        save_grid(link, order, data.val_batch(order, config.eval.pictures), wearing)
        for name in shares[0].tallies[order]:
            tally = merge(share.tallies[order][name] for share in shares)
            details = provenance(**facts, **sources, seconds_per_picture=seconds[order].get(name))
            if name == LEARNED:
                details["learned_warp"] = str(learned)
            rows += scorer.rows(
                tally, people, model=name, data=config.data.name, split="test", provenance=details
            )
    return rows


@dataclass
class Share:
    """What one process measured: the reference of FID and KID, and every method in every order."""

    people: Features
    tallies: dict[Order, dict[str, Tally]]


def score_share(
    scorer: Scorer, link: Sequence[Stage], data: TryOnDataModule, learned: RunWarp | None
) -> Share:
    """Measure this process's share of the pairs. Raises DataError naming pictures that are missing
    or broken.
    """
    run, config = link[-1]
    people = scorer.people(data.eval_dataloader("paired"), data.eval_dataset("paired").originals)
    tallies = {}
    for order in config.eval.orders:
        dataset = data.eval_dataset(order)
        methods: dict[str, Pictures] = {}
        for name in sampled_methods(link):
            methods[name] = PictureFolder(prediction_folder(run, name, order))
            methods[name].check(dataset.pair_ids, config.data.picture_size)
        if len(link) > 1 and config.eval.baselines:
            methods[UPSAMPLED] = upsampled(link, order)
        compared = learned is not None or config.model.kind == "warp"
        held = (
            held_baselines(warps(dataset.warp_source, learned), compared)
            if config.eval.baselines
            else {}
        )
        batches = with_baselines(data.eval_dataloader(order), held)
        measured = scorer.score(batches, methods | held, dataset.originals)
        tallies[order] = {name: measured.get(name, Tally(order)) for name in methods | held}
    return Share(people, tallies)


def upsampled(link: Sequence[Stage], order: Order) -> Pictures:
    """The former stage's pictures by interpolation alone."""
    return interpolated(prediction_folder(link[-2].run, "", order), link[-1].config.data)


def sampling_facts(config: ExperimentConfig) -> dict[str, Any]:
    """How pictures were drawn; nothing for a warp, which draws none."""
    if config.model.kind != "architecture":
        return {}
    return {
        "solver": config.sampler.solver,
        "steps": config.sampler.steps,
        "guidance": config.sampler.guidance,
    }


def predict(chain: Sequence[Stage], order: Order, folder: Path) -> None:
    """Pictures of every pair of an order as PNGs, no scores; those of stages below in folders by
    their names, a warp's silhouettes in a folder below its pictures.
    """
    before = None
    for stage, data in zip(chain, prepare(chain, "weights", [order]), strict=True):
        trainer, module = ready(stage, "weights")
        target = folder if stage is chain[-1] else folder / stage.config.model.stage
        draw_pictures(trainer, module, data, order, target, before)
        before = target
    source = ", enlarged from the reduced truth" if sees_truth(chain) else ""
    if trainer.is_global_zero:
        print(f"{len(data.eval_dataset(order))} pictures in {folder}{source}")


def prepare(
    chain: Sequence[Stage], checkpoint: str, orders: Iterable[Order]
) -> list[TryOnDataModule]:
    """The data of every stage. Raises UserError subclasses for what would stop a chain half-way."""
    quiet_libraries()
    for stage in chain:
        checkpoint_path(stage.run, checkpoint)  # before hours of sampling
        learned_warp(stage.config)
    data_modules = [data_module(stage.config) for stage in chain]
    for data in data_modules:
        data.prepare_data()
    require_same_pairs(chain, data_modules, orders)
    return data_modules


def ready(stage: Stage, checkpoint: str) -> tuple[Trainer, TrainedModule]:
    """What draws a stage's pictures."""
    run, config = stage
    replicated = replace(config, trainer=config.trainer.replicated())
    trainer = make_trainer(replicated, callbacks=[PictureWriter()])
    return trainer, load_module(run, config, checkpoint)


def stage_facts(stage: Stage, checkpoint: str) -> dict[str, Any]:
    """What a row says about how its pictures were made, or those that its stage enlarged."""
    run, config = stage
    facts = {
        "checkpoint": checkpoint,
        "checkpoint_sha256": file_digest(checkpoint_path(run, checkpoint)),
        "config_sha256": hashlib.sha256(to_yaml(config).encode()).hexdigest(),
        "training": training_facts(run, config, checkpoint),
        **sampling_facts(config),
        "size": list(config.data.picture_size),
    }
    return facts | ({"padded_to": list(config.data.size)} if config.data.pad else {})


def training_facts(
    run: RunFolder, config: ExperimentConfig, checkpoint: str
) -> dict[str, Any] | None:
    """How the weights were trained, and what it took until there; None where they are not this
    run's own.
    """
    if checkpoint == "weights":
        done = run.trained()
    else:
        done = training_so_far(
            read_checkpoint(checkpoint_path(run, checkpoint), "callbacks", "global_step")
        )
    if not done:
        return None
    names = ("batch_size", "accumulate", "lr", "warmup_steps", "schedule", "precision")
    settings = {name: value for name, value in asdict(config.train).items() if name in names}
    return {
        "seed": config.seed,
        **settings,
        "timestep_power": config.objective.timestep_power,
        **done,
    }


def sees_truth(link: Sequence[Stage]) -> bool:
    """Whether the stage enlarges the reduced truth: an upper one without those below."""
    return bool(link[0].config.model.upper_stage)


def sampled_methods(link: Sequence[Stage]) -> list[str]:
    """The models in the rows of a link's last stage."""
    config = link[-1].config
    name = config.model.label + (FROM_TRUTH if sees_truth(link) else "")
    return [name] + ([name + CONTROL] if config.eval.shuffled else [])


def prediction_folder(run: RunFolder, method: str, order: Order) -> Path:
    """predictions/<order>, followed by what stands in brackets behind the method's name."""
    return run.predictions / "_".join([order, *re.findall(r"\[(\w+)\]", method)])


def results_file(link: Sequence[Stage]) -> Path:
    """results.json; a stage that saw the truth does not replace what the cascade has achieved."""
    path = link[-1].run.results
    return path.with_stem("results_from_truth") if sees_truth(link) else path


def sample_order(
    trainer: Trainer,
    module: TrainedModule,
    data: TryOnDataModule,
    link: Sequence[Stage],
    order: Order,
) -> dict[str, float]:
    """Write the pictures of the link's last stage, and the control's; returns seconds per picture
    of each.
    """
    pace = {}
    for method in sampled_methods(link):
        folder = prediction_folder(link[-1].run, method, order)
        if trainer.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
        trainer.strategy.barrier()
        before = prediction_folder(link[-2].run, method, order) if len(link) > 1 else None
        started = time.perf_counter()
        draw_pictures(
            trainer, module, data, order, folder, before, shuffled=method.endswith(CONTROL)
        )
        pace[method] = round((time.perf_counter() - started) / len(data.eval_dataset(order)), 4)
    return pace


def draw_pictures(
    trainer: Trainer,
    module: TrainedModule,
    data: TryOnDataModule,
    order: Order,
    folder: Path,
    before: Path | None,
    shuffled: bool = False,
) -> None:
    """Every pair's picture into `folder`; before: where the former stage's pictures lie."""
    module.prediction_folder = folder
    if before is not None:
        module.former = handed_over(before, module.config)
    data.predicting(order, shuffled)
    trainer.predict(module, datamodule=data, return_predictions=False)
    trainer.strategy.barrier()


class PictureWriter(BasePredictionWriter):
    """Every predicted picture goes to its own PNG at once, unpadded, so memory does not grow with
    the test split.
    """

    def __init__(self):
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx
    ) -> None:
        if isinstance(prediction, Worn):
            outlines = unpad_picture(
                as_pictures(prediction.silhouettes), module.config.data.picture_size
            )
            write_pictures(module.prediction_folder / SILHOUETTES, batch.pair_id, outlines)
            prediction = prediction.pictures
        pictures = unpad_picture(prediction, module.config.data.picture_size)
        write_pictures(module.prediction_folder, batch.pair_id, pictures)


def save_grid(
    link: Sequence[Stage], order: Order, batch: TryOnBatch, wearing: dict[str, Wear]
) -> None:
    """A few pairs, spread over the test list."""
    run, name = link[-1].run, sampled_methods(link)[0]
    folder = prediction_folder(run, name, order)
    columns = {"upsampled": upsampled(link, order)(batch.pair_id)} if len(link) > 1 else {}
    columns["output"] = PictureFolder(folder)(batch.pair_id)
    outputs = [normalise(pictures) for pictures in columns.values()]
    outputs += [warped_garment(wear(batch)) for wear in wearing.values()]
    titles = [*columns, *(name.removeprefix("baseline/").replace("_", " ") for name in wearing)]
    grid = try_on_grid(batch, *outputs, titles=titles)
    Image.fromarray(grid).save(run.grid(folder.name))


def report(rows: Sequence[Row], link: Sequence[Stage], seconds: float) -> None:
    run, config = link[-1]
    if config.model.upper_stage:
        source = (
            "the reduced truth, which no cascade has"
            if sees_truth(link)
            else f"pictures of {link[-2].run.path}"
        )
        print(
            f"{sampled_methods(link)[0]}: enlarges {source}, to {'x'.join(map(str, config.data.picture_size))}."
        )
    print_table(rows)
    print(
        f"{results_file(link)}, {run.path}/pictures_*.png and {run.predictions}/ written in {seconds:.0f} s."
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
