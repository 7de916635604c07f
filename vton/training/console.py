"""The progress of a training for whoever looks at a terminal or a log file."""

from __future__ import annotations

from collections import deque

import torch
from lightning import Callback
from torch import Tensor

from vton.progress import Progress
from vton.training.held_out import HeldOut
from vton.training.telemetry import ends_step

MEAN_OF = 50  # batches


class Console(Callback):
    """Says which step the training is at, the loss, the newest held-out PSNR of the garment and how
    long it still takes.

    In a log file that is a line every half minute, after every look at the held-out pairs, and at
    the end. The loss is the mean of the first process's last batches.
    """

    def __init__(self, held_out: HeldOut | None = None):
        self.held_out = held_out
        self.losses: deque[Tensor] = deque(maxlen=MEAN_OF)
        self.progress: Progress | None = None

    def on_train_start(self, trainer, module) -> None:
        done = trainer.global_step
        self.accumulated = trainer.accumulate_grad_batches
        self.progress = Progress("Training", trainer.max_steps, "step", done, self.note)
        self.progress.__enter__()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].detach())
        if not ends_step(trainer, batch_idx):
            return
        self.progress.advance()
        step = trainer.global_step
        looked = self.held_out is not None and self.held_out.step == step
        if looked or step == trainer.max_steps:
            self.progress.show()

    def teardown(self, trainer, module, stage) -> None:
        if self.progress is not None:
            self.progress.__exit__()

    def note(self) -> str:
        loss = torch.stack(tuple(self.losses)).mean().item() * self.accumulated
        parts = [f"loss {loss:.4f}"]
        scores = self.held_out.scores if self.held_out else {}
        for name, value in scores.items():
            if name.endswith("/psnr_garment"):
                order = name.split("/")[1]
                parts.append(f"{order} garment {value:.2f} dB")
        return ", ".join(parts)
