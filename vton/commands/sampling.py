"""The pictures of test pairs, drawn by a trained network and written to files named by pair.

Every process draws its share of the pairs. A pair that came twice would overwrite its own file.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import Subset

from vton.commands.baselines import learned_warp
from vton.commands.places import measure_places
from vton.config import ExperimentConfig
from vton.data.compact import CompactSample
from vton.data.module import TryOnDataModule
from vton.data.sample import Order
from vton.data.transforms import unpad_picture
from vton.errors import UserError
from vton.metrics.pictures import SILHOUETTES, as_pictures, write_pictures
from vton.models.base import PicturesAndSilhouettes
from vton.models.precision import for_sampling
from vton.processes import from_every_process
from vton.progress import Progress
from vton.report.places import PlaceErrors
from vton.runs.assemble import data_module
from vton.runs.cascade import Stage, WithLowres
from vton.runs.folder import RunFolder
from vton.runs.provenance import load_with_facts
from vton.runs.warp import RunWarp
from vton.training.trainer import make_trainer

CONTROL = "[shuffled]"  # suffix of the row whose garments were exchanged between samples
# Suffix of a cascade's upper stage that enlarged the reduced truth, not the stage before.
FROM_TRUTH = "[from_truth]"


@dataclass
class SampledStage:
    """A stage whose pictures are drawn, with what scoring needs to know."""

    stage: Stage
    data: TryOnDataModule  # without padding, which is not measured
    warp: RunWarp | None  # the learned warp that gets a baseline row
    device: torch.device
    seconds: dict[Order, dict[str, float]]  # per picture, by method
    facts: dict[str, Any]  # how the pictures were made
    # how far from the true places the garment is read; filled on the first process
    places: dict[Order, PlaceErrors]


def sample_stage(stage: Stage, data: TryOnDataModule, checkpoint: str) -> SampledStage:
    """Draw the pictures of the stage in every configured order."""
    config = stage.config
    sampler = Sampler(stage, checkpoint)
    seconds = {}
    for order in config.eval.orders:
        seconds[order] = sampler.draw_all(data, order)
    if config.data.pad:
        data = data_module(replace(config, data=config.data.unpadded()))
    device = sampler.trainer.strategy.root_device
    places = {}
    if config.eval.places and sampler.trainer.is_global_zero:
        places = measure_places(sampler.module.to(device), data, stage)
    return SampledStage(stage, data, learned_warp(config), device, seconds, sampler.facts, places)


def sampled_methods(stage: Stage) -> list[str]:
    """What the stage's pictures are called in rows: the model, and the control beside it."""
    name = stage.config.model.label
    if stage.enlarges_truth:
        name += FROM_TRUTH
    if stage.config.eval.shuffled:
        return [name, name + CONTROL]
    return [name]


def control_places(data: TryOnDataModule, order: Order, config: ExperimentConfig) -> list[int]:
    """Which pairs of the test list the control row draws."""
    count = config.eval.shuffled_pairs or len(data.eval_dataset(order))
    return data.val_places(order, count)


def prediction_folder(run: RunFolder, method: str, order: Order) -> Path:
    """predictions/<order>, followed by what stands in brackets behind the method's name."""
    suffixes = re.findall(r"\[(\w+)\]", method)
    return run.predictions / "_".join([order, *suffixes])


class Chosen(Subset):
    """Some pairs of a test split, for loaders too."""

    def compact(self, index: int, *arguments) -> CompactSample:
        return self.dataset.compact(self.indices[index], *arguments)


class Sampler:
    """A stage's trained network, and the trainer that runs it on every process."""

    def __init__(self, stage: Stage, checkpoint: str):
        config = for_sampling(stage.config)
        self.stage = stage
        self.writer = PictureWriter(config.data.picture_size)
        # Without autocast: the weights are in the precision of sampling themselves.
        plain = replace(config.train, precision="fp32")
        replicated = replace(config, trainer=config.trainer.replicated(), train=plain)
        self.trainer = make_trainer(replicated, callbacks=[self.writer])
        self.module, self.facts = load_with_facts(stage.run, config, stage.config, checkpoint)
        # Of a small list some processes get no pair.
        self.module.allow_zero_length_dataloader_with_multiple_devices = True
        self.writer.weights = self.facts["checkpoint_sha256"]

    def draw_all(self, data: TryOnDataModule, order: Order) -> dict[str, float]:
        """Draw the pictures of an order and of its control into the run folder.

        Returns seconds per picture by method.
        """
        seconds = {}
        for method in sampled_methods(self.stage):
            folder = prediction_folder(self.stage.run, method, order)
            # What was drawn before stays until its successor is complete.
            partial = folder.with_name(f".{folder.name}.partial")
            former = folder.with_name(f".{folder.name}.former")
            if self.trainer.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(former, ignore_errors=True)
            self.trainer.strategy.barrier()
            before = None
            if self.stage.before is not None:
                before = prediction_folder(self.stage.before.run, method, order)
            started = time.perf_counter()
            self.draw(data, order, partial, before, shuffled=method.endswith(CONTROL))
            if self.trainer.is_global_zero:
                if folder.exists():
                    folder.rename(former)
                partial.rename(folder)
                shutil.rmtree(former, ignore_errors=True)
            self.trainer.strategy.barrier()
            pairs = len(data.eval_dataset(order))
            if method.endswith(CONTROL):
                pairs = len(control_places(data, order, self.stage.config))
            seconds[method] = round((time.perf_counter() - started) / pairs, 4)
        return seconds

    def draw(
        self,
        data: TryOnDataModule,
        order: Order,
        folder: Path,
        before: Path | None = None,
        shuffled: bool = False,
    ) -> None:
        """Draw every pair's picture into `folder`.

        before: where the pictures lie that the stage enlarges
        """
        pairs = data.eval_dataset(order, shuffled, data.warped)
        if shuffled:
            pairs = Chosen(pairs, control_places(data, order, self.stage.config))
        if before is not None:
            pairs = WithLowres(pairs, before, self.stage.config)
        self.writer.folder = folder
        loader = data.sampling_dataloader(pairs)
        doing = f"Drawing {order}{CONTROL if shuffled else ''}"
        with Progress(doing, len(pairs), "pair") as self.writer.progress:
            self.trainer.predict(self.module, dataloaders=loader, return_predictions=False)
        self.trainer.strategy.barrier()


class PictureWriter(BasePredictionWriter):
    """Writes every predicted picture to its own PNG in `folder` at once, without padding.

    So memory does not grow with the test split. size: height, width of the pictures
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__(write_interval="batch")
        self.size = size
        self.folder = Path()
        self.weights = ""  # digest of the file that this process has loaded
        self.progress: Progress

    def setup(self, trainer, module, stage) -> None:
        """Raises UserError unless all processes draw with the same weights."""
        if len(set(from_every_process(self.weights))) > 1:
            raise UserError(
                "A training has replaced the checkpoint while the processes loaded it: they hold "
                "different ones. Run the same command again."
            )

    def write_on_batch_end(
        self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx
    ) -> None:
        pictures = prediction
        if isinstance(prediction, PicturesAndSilhouettes):
            pictures = prediction.pictures
            silhouettes = unpad_picture(as_pictures(prediction.silhouettes), self.size)
            write_pictures(self.folder / SILHOUETTES, batch.pair_id, silhouettes)
        write_pictures(self.folder, batch.pair_id, unpad_picture(pictures, self.size))
        self.progress.advance(len(batch) * trainer.world_size)
