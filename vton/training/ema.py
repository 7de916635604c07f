"""Exponential moving average over trained parameters only (Lightning's own copies frozen networks
too).
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from lightning import Callback
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


class EMA(Callback):
    """average <- d average + (1 - d) weights after every optimizer step, d = min(decay, (1 + step)
    / (10 + step)).

    Where weights are sharded over processes (FSDP2), so is their average, in checkpoints too.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.step = 0

    def on_train_start(self, trainer, module) -> None:
        loaded = self.average
        self.average = {
            n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad
        }
        for name, value in loaded.items():
            self.average[name].copy_(placed(value, self.average[name]))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:  # an accumulating batch, no optimizer step
            return
        self.step = trainer.global_step
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        weights = weights_of(module)
        current = [local(weights[name].detach()) for name in self.average]
        torch._foreach_lerp_([local(value) for value in self.average.values()], current, 1 - decay)

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
        weights = weights_of(module)
        for name, average in self.average.items():
            weight, average = local(weights[name].detach()), local(average)
            own = weight.clone()
            weight.copy_(average)
            average.copy_(own)

    def unsharded_average(self) -> dict[str, Tensor]:
        """The average unsharded: every process has to ask, and where it is sharded only the first
        is answered.
        """
        return {name: unsharded(value) for name, value in self.average.items()}

    def state_dict(self) -> dict:
        return {"average": dict(self.average), "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.average, self.step = state["average"], state["step"]


def weights_of(module) -> dict[str, Tensor]:
    """Parameters by name, this process's shards of them again where a forward pass broke off in
    between.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return dict(module.named_parameters())


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in the same memory; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def unsharded(tensor: Tensor) -> Tensor:
    """A sharded tensor whole, on the CPU of the first process and empty on the others; any other as
    it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if torch.distributed.get_rank() == 0 else whole.new_empty(0)


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor on like's device and sharded as like is; a whole one is on every process."""
    tensor = tensor.to(like.device)
    if isinstance(tensor, DTensor):
        return tensor
    return (
        distribute_tensor(tensor, like.device_mesh, like.placements)
        if isinstance(like, DTensor)
        else tensor
    )
