"""Checkpoints that survive: written under a temporary name, synced, renamed; loaded without pickle's power."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from lightning import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import save_file
from torch import Tensor

from vton.models.pretrained import read_checkpoint
from vton.training.ema import EMA
from vton.training.run import RunFolder


class AtomicCheckpointIO(TorchCheckpointIO):
    """`path` holds the previous checkpoint or the new one, whole, whenever the process dies."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return read_checkpoint(Path(path))


class Checkpoints(Callback):
    """last.ckpt every `every` steps and at the end, best.ckpt by a held-out score, averaged weights at the end."""

    def __init__(self, run: RunFolder, every: int, ema: EMA | None, monitor: str = "val/paired/psnr_garment"):
        self.run, self.every, self.ema, self.monitor = run, every, ema, monitor
        self.best = float("-inf")
        self.saved_at = -1

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches or step == self.saved_at:
            return
        score = trainer.callback_metrics.get(self.monitor)
        if score is not None and score.item() > self.best:
            self.best = score.item()
            trainer.save_checkpoint(self.run.best)
        if step % self.every == 0 or step == trainer.max_steps:
            self.saved_at = step
            trainer.save_checkpoint(self.run.last)

    def on_train_end(self, trainer, module) -> None:
        if trainer.is_global_zero:
            export_weights(self.run, module.state_dict(), self.ema.average if self.ema else {})

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]


def finish_from_checkpoint(run: RunFolder) -> None:
    """What follows the last checkpoint of a run that was killed in between: its weights and training.json."""
    checkpoint = read_checkpoint(run.last)
    callbacks = checkpoint["callbacks"]
    export_weights(run, checkpoint["state_dict"], callbacks.get("EMA", {}).get("average", {}))
    run.finish(checkpoint["global_step"], callbacks.get("Telemetry", {}))


def export_weights(run: RunFolder, state: dict[str, Tensor], average: dict[str, Tensor]) -> None:
    """The trained weights, averaged where there is an average, as safetensors."""
    state = state | average
    temporary = run.weights.with_name(f".{run.weights.name}.{os.getpid()}")
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, temporary)
    os.replace(temporary, run.weights)
