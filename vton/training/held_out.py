"""A fixed set of held-out pairs, drawn every so often while training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from lightning import Callback
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vton.data.module import TryOnDataModule
from vton.data.ranges import to_unit
from vton.data.sample import Order, TryOnBatch
from vton.data.transforms import unpad_picture
from vton.metrics.pixelwise import output_psnr
from vton.models.base import TryOnModule
from vton.processes import from_every_process, process_share
from vton.report.attention import attention_grid, attention_maps
from vton.report.flow import flow_grid, garment_reads
from vton.report.grid import try_on_grid
from vton.training.ema import EMA
from vton.training.finite import FiniteNumbers, TrainingError
from vton.training.telemetry import ends_step


class HeldOutPairs(NamedTuple):
    """Held-out pairs of one order."""

    scored: TryOnBatch  # all of them; in training this process's share
    shown: TryOnBatch  # the first of them

    def share(self) -> HeldOutPairs:
        """What this process scores.

        Every process has as many, so that all of them make equally many passes through the network:
        a pair may come to two of them, and counts once.
        """
        rank, world = process_share()
        share = math.ceil(len(self.scored) / world)
        own = [(rank * share + place) % len(self.scored) for place in range(share)]
        return self._replace(scored=self.scored[own])


def held_out_pairs(data: TryOnDataModule, order: Order, count: int, shown: int) -> HeldOutPairs:
    """`count` pairs spread over the test list."""
    pairs = data.eval_dataset(order)
    every = TryOnBatch.collate([pairs[place] for place in data.val_places(order, count)])
    return HeldOutPairs(every, every[:shown])


class HeldOut(Callback):
    """Every `every` steps: the same held-out pairs through the sampler, as pictures, attention and
    a few scalars.

    val/ORDER/{ssim, psnr, psnr_garment}: means over the pairs, the last over those whose picture
    shows the garment. at_once: pairs that pass through the networks together.
    """

    def __init__(
        self,
        pairs: dict[str, HeldOutPairs],
        every: int,
        at_once: int,
        ema: EMA | None,
        finite: FiniteNumbers | None = None,
    ):
        self.pairs = pairs  # by order
        self.every = every
        self.at_once = at_once
        self.ema = ema
        self.finite = finite
        self.step = 0  # of the last pictures
        self.scores: dict[str, float] = {}

    def on_train_start(self, trainer, module) -> None:
        """Share the pairs out, now that the processes are connected."""
        self.pairs = {order: pairs.share() for order, pairs in self.pairs.items()}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if not due or not ends_step(trainer, batch_idx):
            return
        if self.finite:  # which names the step that spoilt the weights, where pictures cannot
            self.finite.require_finite(trainer)
        scores = {}
        module.eval()
        with self.ema.applied(module) if self.ema else nullcontext():
            for order, held_out in self.pairs.items():
                if module.can_sample(held_out.scored):
                    scores |= self.score_order(trainer, module, order, held_out, step)
        module.train()
        self.step = step
        # The first process's scores: what is saved by them must be the same on all processes, and
        # their last digits may differ.
        self.scores = trainer.strategy.broadcast(scores)

    def score_order(
        self, trainer, module, order: str, held_out: HeldOutPairs, step: int
    ) -> dict[str, float]:
        """Draw, score and show the pairs of an order; returns the mean scores.

        Raises TrainingError, on all processes, where a picture holds NaN on one of them.
        """
        shown = set(held_out.shown.pair_id)
        size = module.config.data.picture_size
        pictures: dict[str, Tensor] = {}
        scores: dict[str, dict[str, float]] = {}  # by pair
        not_finite: list[str] = []  # pairs whose pictures hold NaN or infinity
        for places in torch.arange(len(held_out.scored)).split(self.at_once):
            batch = held_out.scored[places.tolist()].to(module.device)
            with trainer.precision_plugin.forward_context():  # hooks run outside of it
                drawn = module.generate(batch).float()
            for row, pair in enumerate(batch.pair_id):
                if not drawn[row].isfinite().all():
                    not_finite.append(pair)
                scores[pair] = score(drawn[row : row + 1], batch[row : row + 1], size)
                if pair in shown:
                    pictures[pair] = drawn[row].cpu()
        shares = from_every_process((pictures, scores, not_finite))
        for their_pictures, their_scores, their_not_finite in shares:
            pictures |= their_pictures
            scores |= their_scores
            not_finite = sorted({*not_finite, *their_not_finite})
        if not_finite:
            raise TrainingError(
                f"Step {step}: the picture of held-out pair {not_finite[0]} ({order}) holds NaN. "
                "The last checkpoint is from before; train.picture_every=0 resumes from it without "
                "held-out pictures."
            )
        self.show(trainer, module, order, held_out.shown, pictures, step)
        means = mean_scores(scores.values(), f"val/{order}/")
        if means:
            trainer.logger.log_metrics(means, step=step)
        return means

    def show(
        self,
        trainer,
        module,
        order: str,
        batch: TryOnBatch,
        pictures: dict[str, Tensor],
        step: int,
    ) -> None:
        """Pictures of a batch by pair, and attention in them, to TensorBoard."""
        drawn = torch.stack([pictures[pair] for pair in batch.pair_id]).to(module.device)
        batch = batch.to(module.device)
        maps = reads = None
        read = slice(0, self.at_once)
        if isinstance(module, TryOnModule):  # on every process: weights may be in pieces
            with trainer.precision_plugin.forward_context():
                maps = module.as_forward(attention_maps, module, batch[read], drawn[read])
                if module.config.model.flow_loss.weight:
                    reads = module.as_forward(garment_reads, module, batch[read], drawn[read])
        if not trainer.is_global_zero:
            return
        writer = trainer.logger.experiment
        writer.add_image(f"images/{order}", try_on_grid(batch, drawn), step, dataformats="HWC")
        attention = None
        if maps is not None:
            attention = attention_grid(module, batch[read], drawn[read], maps)
        if attention is not None:
            writer.add_image(f"attention/{order}", attention, step, dataformats="HWC")
        if reads is not None:
            warped = flow_grid(module, batch[read], drawn[read], reads)
            writer.add_image(f"flow/{order}", warped, step, dataformats="HWC")


def score(output: Tensor, batch: TryOnBatch, size: tuple[int, int]) -> dict[str, float]:
    """Scores of one picture (1, 3, H, W) in [-1, 1]; none without a truth.

    size: height, width of the picture inside its margins
    """
    if batch.truth is None:
        return {}
    output, truth = unpad_picture(output, size), unpad_picture(batch.truth, size)
    ssim = structural_similarity_index_measure(to_unit(output), to_unit(truth), data_range=1.0)
    scores = {"ssim": ssim.item(), "psnr": output_psnr(output, truth).item()}
    if batch.truth_garment_mask is not None:
        worn = unpad_picture(batch.truth_garment_mask, size)
        of_garment = output_psnr(output, truth, worn)
        if len(of_garment):
            scores["psnr_garment"] = of_garment.item()
    return scores


def mean_scores(scores: Iterable[dict[str, float]], prefix: str) -> dict[str, float]:
    """The mean over pairs of each score, its name behind a prefix."""
    values_by_name: dict[str, list[float]] = {}
    for of_pair in scores:
        for name, value in of_pair.items():
            values_by_name.setdefault(name, []).append(value)
    means = {}
    for name, values in values_by_name.items():
        means[prefix + name] = math.fsum(values) / len(values)
    return means
