"""Exponential moving average over trained parameters only (Lightning's own copies frozen networks too)."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from lightning import Callback
from torch import Tensor


class EMA(Callback):
    """average <- d average + (1 - d) weights after every optimizer step, d = min(decay, (1 + step) / (10 + step))."""

    def __init__(self, decay: float):
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.step = 0

    def on_fit_start(self, trainer, module) -> None:
        loaded = self.average
        self.average = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
        for name, value in loaded.items():
            self.average[name].copy_(value)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:  # an accumulating batch, no optimizer step
            return
        self.step = trainer.global_step
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        weights = dict(module.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [weights[n].detach() for n in self.average], 1 - decay)

    @contextmanager
    def applied(self, module):
        """The module with averaged weights inside the block, its own afterwards."""
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)

    @torch.no_grad()
    def swap(self, module) -> None:
        weights = dict(module.named_parameters())
        for name, average in self.average.items():
            own = weights[name].data.clone()
            weights[name].data.copy_(average)
            average.copy_(own)

    def state_dict(self) -> dict:
        return {"average": self.average, "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.average, self.step = state["average"], state["step"]
