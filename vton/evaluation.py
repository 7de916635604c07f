"""`vton eval` and `vton predict`: sample held-out pairs, write PNGs, score them, report.

Every process samples its share of the pairs; pictures are files named by pair, so a pair that came twice would
overwrite itself. One process then scores the files, and the baselines beside them, in one pass over the truths.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from vton import registry
from vton.config import ExperimentConfig, to_yaml
from vton.data.dataset import TryOnDataset
from vton.data.module import TryOnDataModule
from vton.data.sample import Order, TryOnBatch
from vton.data.warp import rewarped, warp_source
from vton.metrics.pictures import SILHOUETTES, PictureFolder, as_pictures, to_uint8, write_pictures
from vton.metrics.results import Row, provenance, write_results
from vton.metrics.scorer import Pictures, Scorer
from vton.models.base import TrainedModule, Worn
from vton.models.baselines import BASELINES, warped_garment
from vton.models.codecs import build_codec, load_codec
from vton.models.pretrained import load_state, read_checkpoint, read_safetensors
from vton.report.grid import try_on_grid
from vton.report.tables import print_table, table_json
from vton.training.run import RunError, RunFolder, git_commit
from vton.training.train import data_module, make_trainer, quiet_libraries
from vton.training.warp import RunWarp

CONTROL = "[shuffled]"  # suffix of the row whose garments were exchanged between samples
LEARNED = "baseline/learned_warp"


def evaluate(run: RunFolder, config: ExperimentConfig, checkpoint: str = "weights", as_json: bool = False) -> list[Row]:
    """Sample and score the run in every configured order; write predictions/, results.json and picture grids."""
    started = time.perf_counter()
    quiet_libraries()
    trainer = make_trainer(config.trainer, config, callbacks=[PictureWriter()], logger=False)
    data, module = data_module(config), load_module(run, config, checkpoint)
    learned = learned_warp(config)
    data.prepare_data()
    seconds = {order: sample_order(trainer, module, data, config, run, order) for order in config.eval.orders}
    if not trainer.is_global_zero:
        return []

    scorer = Scorer(config.eval, module.device)
    people = scorer.people(data.eval_dataloader("paired"))
    facts = {
        "checkpoint": checkpoint,
        "checkpoint_sha256": file_digest(checkpoint_path(run, checkpoint)),
        "config_sha256": hashlib.sha256(to_yaml(config).encode()).hexdigest(),
        "commit": git_commit(),
        "seed": config.eval.seed,
        **sampling_facts(config),
        "size": list(config.data.size),
        "device": device_name(module.device),
    }
    rows = []
    for order in config.eval.orders:
        dataset = data.eval_dataset(order)
        methods: dict[str, Pictures] = {}
        for name in sampled_methods(config):
            methods[name] = PictureFolder(prediction_folder(run, name, order))
            methods[name].check(dataset.pair_ids, config.data.size)
        held = held_baselines(config, dataset, learned) if config.eval.baselines else {}
        batches = with_baselines(data.eval_dataloader(order), held)
        for name, tally in scorer.score(batches, methods | held).items():
            seconds_per_picture = seconds[order].get(name)
            details = provenance(**facts, **dataset.sources, seconds_per_picture=seconds_per_picture)
            if name == LEARNED:
                details["learned_warp"] = str(learned)
            rows += scorer.rows(tally, people, model=name, data=config.data.name, split="test", provenance=details)
    for row in rows:
        row.provenance["wall_seconds"] = round(time.perf_counter() - started, 1)
    write_results(run.results, rows)
    save_grid(run, config, data, learned)
    print(table_json(rows)) if as_json else report(rows, run, time.perf_counter() - started)
    return rows


def sampling_facts(config: ExperimentConfig) -> dict[str, Any]:
    """How pictures were drawn; nothing for a warp, which draws none."""
    if config.model.kind != "architecture":
        return {}
    return {"solver": config.sampler.solver, "steps": config.sampler.steps, "guidance": config.sampler.guidance}


def learned_warp(config: ExperimentConfig) -> RunWarp | None:
    """The trained warp that gets a baseline row: eval.warp, else what the model itself reads, else none."""
    path = config.eval.warp or config.data.warp_run
    return RunWarp(path, config.data.size) if path else None


def warps(source: str, learned: RunWarp | None) -> dict[str, Callable[[TryOnBatch], TryOnBatch]]:
    """Baselines that paste a warped garment, and what gives theirs to a batch whose own warp is of `source`."""
    found = {"baseline/geometric_warp": partial(rewarped, source=warp_source("geometric"))}
    if learned:
        found[LEARNED] = learned.put_on
    if source in ("geometric", "folder"):
        found[f"baseline/{source}_warp"] = lambda batch: batch
    return found


def held_baselines(config: ExperimentConfig, dataset: TryOnDataset, learned: RunWarp | None) -> dict[str, HeldPictures]:
    """Every baseline by name; where a learned warp is in the table, silhouettes of those that warp are measured too."""
    compared = learned is not None or config.model.kind == "warp"
    held = {name: HeldPictures(paint) for name, paint in BASELINES.items()}
    for name, wear in warps(dataset.warp_source, learned).items():
        held[name] = HeldPictures(warped_garment, wear, compared)
    return held


def predict(run: RunFolder, config: ExperimentConfig, order: Order, folder: Path) -> None:
    """Pictures of every pair of an order as PNGs, a warp's silhouettes in a folder below them; no scores."""
    quiet_libraries()
    trainer = make_trainer(config.trainer, config, callbacks=[PictureWriter()], logger=False)
    data, module = data_module(config), load_module(run, config, "weights")
    data.prepare_data()
    module.prediction_folder = folder
    data.predicting(order)
    trainer.predict(module, datamodule=data, return_predictions=False)
    print(f"{len(data.eval_dataset(order))} pictures in {folder}")


def load_module(run: RunFolder, config: ExperimentConfig, checkpoint: str) -> TrainedModule:
    """The run's model with its trained weights. Raises UserError subclasses naming what is absent or broken."""
    path = checkpoint_path(run, checkpoint)
    if config.codec.name == "identity" or config.codec.pretrained:
        codec = build_codec(config.codec)
    else:
        codec = load_codec(config.codec, run.codec)
    module = registry.module_class(config.model.name)(config, codec)
    state = read_safetensors(path) if checkpoint == "weights" else read_checkpoint(path)["state_dict"]
    load_state(module, state, path)
    return module.eval()


def checkpoint_path(run: RunFolder, checkpoint: str) -> Path:
    path = {"weights": run.weights, "last": run.last, "best": run.best}[checkpoint]
    if not path.exists():
        raise RunError(
            f"{path} does not exist: {run.path} has not finished training. Run the same `make train` again, "
            f'or evaluate what is there: make eval RUN={run.path} ARGS="--checkpoint last".'
        )
    return path


def sampled_methods(config: ExperimentConfig) -> list[str]:
    return [config.model.name] + ([config.model.name + CONTROL] if config.eval.shuffled else [])


def prediction_folder(run: RunFolder, method: str, order: Order) -> Path:
    return run.predictions / (f"{order}_shuffled" if method.endswith(CONTROL) else order)


def sample_order(trainer, module, data: TryOnDataModule, config, run: RunFolder, order: Order) -> dict[str, float]:
    """Write the model's pictures, and the control's; returns seconds per picture of each."""
    pace = {}
    for method in sampled_methods(config):
        folder = prediction_folder(run, method, order)
        if trainer.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
        trainer.strategy.barrier()
        module.prediction_folder = folder
        data.predicting(order, shuffled=method.endswith(CONTROL))
        started = time.perf_counter()
        trainer.predict(module, datamodule=data, return_predictions=False)
        trainer.strategy.barrier()
        pace[method] = round((time.perf_counter() - started) / len(data.eval_dataset(order)), 4)
    return pace


class PictureWriter(BasePredictionWriter):
    """Every predicted picture goes to its own PNG at once, so memory does not grow with the test split."""

    def __init__(self):
        super().__init__(write_interval="batch")

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx) -> None:
        if isinstance(prediction, Worn):
            write_pictures(module.prediction_folder / SILHOUETTES, batch.pair_id, as_pictures(prediction.silhouettes))
            prediction = prediction.pictures
        write_pictures(module.prediction_folder, batch.pair_id, prediction)


class HeldPictures:
    """A baseline's pictures of the batch at hand, computed while scoring.

    paint: the baseline; wear: gives the batch the warped garment it sees; outlined: whether silhouettes are held too.
    """

    def __init__(
        self,
        paint: Callable[[TryOnBatch], Tensor],
        wear: Callable[[TryOnBatch], TryOnBatch] = lambda batch: batch,
        outlined: bool = False,
    ):
        self.paint, self.wear = paint, wear
        self.silhouettes = self._silhouettes if outlined else None
        self.found: dict[str, Tensor] = {}
        self.outlines: dict[str, Tensor] = {}

    def hold(self, batch: TryOnBatch) -> None:
        worn = self.wear(batch)
        self.found = dict(zip(batch.pair_id, to_uint8(self.paint(worn)), strict=True))
        if self.silhouettes:
            self.outlines = dict(zip(batch.pair_id, to_uint8(as_pictures(worn.warped_mask)), strict=True))

    def _silhouettes(self, pair_ids: Sequence[str]) -> Tensor:
        return torch.stack([self.outlines[pair_id] for pair_id in pair_ids])

    def __call__(self, pair_ids: Sequence[str]) -> Tensor:
        return torch.stack([self.found[pair_id] for pair_id in pair_ids])


def with_baselines(batches: Iterable[TryOnBatch], held: dict[str, HeldPictures]) -> Iterator[TryOnBatch]:
    for batch in batches:
        for pictures in held.values():
            pictures.hold(batch)
        yield batch


def save_grid(run: RunFolder, config: ExperimentConfig, data: TryOnDataModule, learned: RunWarp | None) -> None:
    """pictures_<order>.png: a few pairs, spread over the test list."""
    for order in config.eval.orders:
        batch = data.val_batch(order, config.eval.pictures)
        output = PictureFolder(prediction_folder(run, config.model.name, order))(batch.pair_id)
        wearing = warps(data.eval_dataset(order).warp_source, learned)
        pasted = (warped_garment(wear(batch)) for wear in wearing.values())
        titles = ["output", *(name.removeprefix("baseline/").replace("_", " ") for name in wearing)]
        grid = try_on_grid(batch, output.float() / 127.5 - 1, *pasted, titles=titles)
        Image.fromarray(grid).save(run.grid(order))


def report(rows: Sequence[Row], run: RunFolder, seconds: float) -> None:
    print_table(rows)
    print(f"{run.results}, {run.path}/pictures_*.png and {run.predictions}/ written in {seconds:.0f} s.")


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
