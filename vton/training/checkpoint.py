"""Checkpoints that survive: written under a temporary name, synced, renamed; loaded without
pickle's power.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from lightning import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from vton.errors import UserError
from vton.files import replacing
from vton.processes import together
from vton.runs.checkpoint import export_weights
from vton.runs.folder import RunFolder
from vton.training.ema import EMA, local
from vton.training.finite import ANOTHER_RUN, FiniteNumbers, TrainingError
from vton.training.fsdp import FSDP2
from vton.training.held_out import HeldOut
from vton.training.telemetry import ends_step
from vton.weights.pieces import remove_unnamed
from vton.weights.pretrained import read_checkpoint

MONITOR = "val/paired/psnr_garment"  # the held-out score that makes best.ckpt: higher is better


class AtomicCheckpointIO(TorchCheckpointIO):
    """`path` holds the previous checkpoint or the new one, whole, whenever the process dies. Raises
    UserError.
    """

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return read_checkpoint(Path(path))


class Checkpoints(Callback):
    """last.ckpt every `every` steps and at the end, best.ckpt by a held-out score, and
    weights.safetensors at the end.

    The last two hold weights alone, averaged where training keeps an average.

    keep_last, keep_best: how many of each stay; above 1 they are also there by their steps.
    global_batch: samples per optimizer step over all processes, with which a step is a place in the
    training stream.
    """

    def __init__(
        self,
        run: RunFolder,
        every: int,
        ema: EMA | None,
        held_out: HeldOut | None = None,
        finite: FiniteNumbers | None = None,
        *,
        global_batch: int = 0,
        keep_last: int = 1,
        keep_best: int = 1,
    ):
        self.run, self.every, self.ema, self.held_out = run, every, ema, held_out
        self.finite = finite
        self.global_batch, self.keep_last, self.keep_best = global_batch, keep_last, keep_best
        self.scores: dict[int, float] = {}  # of the best, by step
        self.saved_at = -1
        self.pending_step: int | None = (
            None  # step of the last.ckpt that may still be being written
        )

    def on_train_start(self, trainer, module) -> None:
        if trainer.is_global_zero:
            remove_unnamed(self.run.checkpoints)
        for optimizer in trainer.optimizers:
            lay_out_like_weights(optimizer)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if not ends_step(trainer, batch_idx):
            return
        if self.held_out and self.held_out.step == step and MONITOR in self.held_out.scores:
            self.save_best(trainer, module, self.held_out.scores[MONITOR])
        if step % self.every == 0 or step == trainer.max_steps:
            self.save_last(trainer, module)

    def save_last(self, trainer, module) -> None:
        """last.ckpt of this step, unless it is there. Raises TrainingError rather than save lost
        weights.
        """
        step = trainer.global_step
        if step == self.saved_at:
            return
        self.require_finite(trainer, module)
        self.finish_pending(trainer)
        together(lambda: self.write_last(trainer))
        self.saved_at = self.pending_step = step
        if not isinstance(trainer.strategy, FSDP2):
            self.finish_pending(trainer)

    def write_last(self, trainer) -> None:
        try:
            trainer.save_checkpoint(self.run.last)
        except (UserError, OSError):
            trainer.strategy.barrier()  # where trainer.save_checkpoint lets the others wait
            raise

    def finish_pending(self, trainer) -> None:
        """Wait for the last.ckpt that is being written, and count it among those that stay. Raises
        UserError.
        """
        together(lambda: self.finish_last(trainer))

    def finish_last(self, trainer) -> None:
        if isinstance(trainer.strategy, FSDP2):
            trainer.strategy.finish_writing()
        step, self.pending_step = self.pending_step, None
        if step is None or not trainer.is_global_zero:
            return
        if self.keep_last > 1:
            link_or_copy(self.run.last, self.run.numbered("last", step))
            newest = self.run.numbered("last", step)  # also by a clock that was put back
            earlier = set(self.run.checkpoints.glob("last_*.ckpt")) - {newest}
            by_age = sorted(earlier, key=lambda path: path.stat().st_mtime_ns)
            for old in by_age[: 1 - self.keep_last]:
                old.unlink()
        remove_unnamed(self.run.checkpoints)

    def save_best(self, trainer, module, score: float) -> None:
        """best.ckpt if no score was higher; with keep_best above 1 a file of its own if it is among
        the highest.
        """
        step = trainer.global_step
        ranked = sorted({**self.scores, step: score}.items(), key=lambda item: -item[1])
        self.scores = dict(ranked[: self.keep_best])
        if step not in self.scores:
            return
        self.require_finite(trainer, module)
        state = whole_weights(trainer.strategy) | (self.ema.unsharded_average() if self.ema else {})
        together(lambda: self.write_best(trainer, state, is_first=step == ranked[0][0]))

    def write_best(self, trainer, state: dict[str, Tensor], is_first: bool) -> None:
        """The files of the step's weights; none on other processes than the first."""
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        path = self.run.best if self.keep_best == 1 else self.run.numbered("best", step)
        others = {c.state_key: c.state_dict() for c in trainer.callbacks if c is not self.ema}
        content = {"state_dict": state, "callbacks": others, "global_step": step}
        trainer.strategy.checkpoint_io.save_checkpoint(content, path)
        if self.keep_best > 1:
            if is_first:
                link_or_copy(path, self.run.best)
            kept = {self.run.numbered("best", step) for step in self.scores}
            for old in set(self.run.checkpoints.glob("best_*.ckpt")) - kept:
                old.unlink()

    def require_finite(self, trainer, module) -> None:
        """Raise TrainingError rather than let lost weights be saved."""
        if self.finite:
            self.finite.require_finite(trainer)
        weights = [local(p.detach()) for p in module.parameters() if p.requires_grad]
        finite = torch.stack([weight.isfinite().all() for weight in weights]).all()
        if not trainer.strategy.reduce_boolean_decision(bool(finite), all=True):
            raise TrainingError(
                f"Step {trainer.global_step} made weights that are not finite. {self.run.last} is "
                f"from before. {ANOTHER_RUN.capitalize()}."
            )

    def on_train_end(self, trainer, module) -> None:
        self.finish_pending(trainer)
        state = whole_weights(trainer.strategy) | (self.ema.unsharded_average() if self.ema else {})

        def export() -> None:
            if trainer.is_global_zero:
                export_weights(self.run, state)

        together(export)

    def state_dict(self) -> dict:
        return {"scores": self.scores, "global_batch": self.global_batch}

    def load_state_dict(self, state: dict) -> None:
        self.scores = state.get("scores", {})

    def on_load_checkpoint(self, trainer, module, checkpoint) -> None:
        """Count batches as this run cuts them: Lightning steps where their number divides by
        train.accumulate.
        """
        if not checkpoint["global_step"]:
            return
        for counts in checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].values():
            if isinstance(counts, dict):
                more = checkpoint["global_step"] * trainer.accumulate_grad_batches - counts["ready"]
                counts.update({name: count + more for name, count in counts.items()})


def whole_weights(strategy: Strategy) -> dict[str, Tensor]:
    """The module's weights, where they are sharded on the first process alone. All must ask."""
    if isinstance(strategy, FSDP2):
        return strategy.whole_weights()
    return strategy.lightning_module_state_dict()


def lay_out_like_weights(optimizer: torch.optim.Optimizer) -> None:
    """Moments in the memory format of their weights. Fused AdamW walks through both as they lie,
    without a look at strides, and a checkpoint's are contiguous where it comes from FSDP2, channels
    last where it does not.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if (
                value.shape == parameter.shape
                and value.dtype == parameter.dtype  # moments of 8 bits lie as bitsandbytes has them
                and local(value).stride() != local(parameter.detach()).stride()
            ):
                state[name] = torch.empty_like(parameter).copy_(value)


def link_or_copy(path: Path, name: Path) -> None:
    """A second name for the file, which takes no room; a copy where file systems know no links.
    Raises UserError.
    """
    with replacing(name) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
