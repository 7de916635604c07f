"""A fixed set of held-out pairs, drawn every so often while training."""

from __future__ import annotations

from contextlib import nullcontext

from lightning import Callback
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vton.data.ranges import to_unit
from vton.data.sample import TryOnBatch
from vton.metrics.pixelwise import output_psnr
from vton.models.base import TryOnModule
from vton.report.attention import attention_grid, attention_maps
from vton.report.flow import flow_grid, garment_reads
from vton.report.grid import try_on_grid
from vton.training.ema import EMA
from vton.training.telemetry import ends_step


class HeldOut(Callback):
    """Every `every` steps: the same held-out pairs through the sampler, as pictures, attention and
    a few scalars.

    val/ORDER/{ssim, psnr, psnr_garment}: means over the pairs, the last over those whose picture
    shows the garment.
    """

    def __init__(self, batches: dict[str, TryOnBatch], every: int, pictures: int, ema: EMA | None):
        self.batches = batches  # by order
        self.every = every
        self.pictures = pictures
        self.ema = ema
        self.step = 0  # of the last pictures
        self.scores: dict[str, float] = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if not due or not ends_step(trainer, batch_idx):
            return
        scores = {}
        module.eval()
        with self.ema.applied(module) if self.ema else nullcontext():
            for order, held_out in self.batches.items():
                if module.can_sample(held_out):
                    scores |= self.draw(trainer, module, order, held_out, step)
        module.train()
        self.step = step
        # The first process's scores: what is saved by them must be the same on all processes, and
        # their last digits may differ.
        self.scores = trainer.strategy.broadcast(scores)

    def draw(self, trainer, module, order: str, batch: TryOnBatch, step: int) -> dict[str, float]:
        """Pictures of a batch, and attention in them, to TensorBoard; returns the scores."""
        batch = batch.to(module.device)
        shown = batch[: self.pictures]
        maps = reads = None
        with trainer.precision_plugin.forward_context():  # hooks run outside of it
            output = module.generate(batch).float()
            drawn = output[: self.pictures]
            if isinstance(module, TryOnModule):
                maps = module.as_forward(attention_maps, module, shown, drawn)
                if module.config.model.flow_loss.weight:
                    reads = module.as_forward(garment_reads, module, shown, drawn)
        if trainer.is_global_zero:
            writer = trainer.logger.experiment
            writer.add_image(f"images/{order}", try_on_grid(shown, drawn), step, dataformats="HWC")
            attention = None if maps is None else attention_grid(module, shown, drawn, maps)
            if attention is not None:
                writer.add_image(f"attention/{order}", attention, step, dataformats="HWC")
            if reads is not None:
                warped = flow_grid(module, shown, drawn, reads)
                writer.add_image(f"flow/{order}", warped, step, dataformats="HWC")
        scores = {f"val/{order}/{name}": score for name, score in score(output, batch).items()}
        if scores:
            trainer.logger.log_metrics(scores, step=step)
        return scores


def score(output: Tensor, batch: TryOnBatch) -> dict[str, float]:
    """Mean scores of pictures (B, 3, H, W) in [-1, 1]; none without a truth."""
    if batch.truth is None:
        return {}
    ssim = structural_similarity_index_measure(
        to_unit(output), to_unit(batch.truth), data_range=1.0
    )
    scores = {"ssim": ssim.item(), "psnr": output_psnr(output, batch.truth).mean().item()}
    if batch.truth_garment_mask is not None:
        of_garment = output_psnr(output, batch.truth, batch.truth_garment_mask)
        if len(of_garment):
            scores["psnr_garment"] = of_garment.mean().item()
    return scores
