"""The optimizers that `train.optimizer` chooses from.

adamw      AdamW for all parameters (arXiv 1711.05101)
adamw8bit  the same with moments of 8 bits in blocks of 256 (arXiv 2110.02861), by bitsandbytes: 2
           bytes a weight for 8
muon       Muon for the weights of hidden layers, AdamW for the rest
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from vton.config import ConfigError, ExperimentConfig

# Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024): a quintic that
# brings singular values from (0, 1] to about 1 in five steps.
QUINTIC = (3.4445, -4.7750, 2.0315)
QUINTIC_STEPS = 5
MOMENTUM = 0.95
UPDATE_RMS = 0.2  # of AdamW's updates, so that both take the same learning rate (arXiv 2502.16982)
# Names, at any depth, in diffusers' networks: a network's ends, and the last layer of every
# transformer block.
OUTER_LAYERS = ("conv_in", "conv_out", "proj_out")


def build_optimizer(
    module: nn.Module, groups: Iterable[dict], config: ExperimentConfig
) -> torch.optim.Optimizer:
    """The optimizer of a module's parameter groups. Raises ConfigError where it can't be used."""
    train = config.train
    options = {
        "lr": train.lr,
        "betas": train.betas,
        "weight_decay": train.weight_decay,
        # One kernel for all tensors. Lightning's fp16 cannot clip gradients with it, as it scales
        # them back itself.
        "fused": train.precision != "fp16",
    }
    if train.optimizer == "adamw":
        return torch.optim.AdamW(list(groups), **options)
    if config.trainer.strategy in ("fsdp", "deepspeed"):
        raise ConfigError(
            f"train.optimizer={train.optimizer} needs whole tensors, which trainer.strategy="
            f"{config.trainer.strategy} cuts into shards; use adamw or trainer.strategy=ddp."
        )
    if train.optimizer == "adamw8bit":
        options.pop("fused")
        return adamw_8bit()(list(groups), **options)
    return Muon(split_groups(groups, hidden_weights(module, module.OUTER)), **options)


def adamw_8bit() -> type[torch.optim.Optimizer]:
    """bitsandbytes' class. Raises ConfigError where it is not installed."""
    if not find_spec("bitsandbytes"):
        raise ConfigError(
            "train.optimizer=adamw8bit: bitsandbytes is not installed. Use adamw, or "
            '.venv/bin/pip install --constraint constraints.txt --editable ".[eightbit]".'
        )
    from bitsandbytes.optim import AdamW8bit  # here: its import takes seconds

    return AdamW8bit


def hidden_weights(module: nn.Module, outer: tuple[str, ...] = OUTER_LAYERS) -> set[nn.Parameter]:
    """Weights of linear and convolutional layers but those named `outer`."""
    weights = set()
    for name, layer in module.named_modules():
        hidden = name.rpartition(".")[2] not in outer
        if hidden and isinstance(layer, (nn.Linear, nn.Conv2d)):
            weights.add(layer.weight)
    return weights


def split_groups(groups: Iterable[dict], hidden: set[nn.Parameter]) -> list[dict]:
    """Every group in two, of which `muon` says which is which; empty ones are left out."""
    split = []
    for group in groups:
        for muon in (True, False):
            chosen = [p for p in group["params"] if (p in hidden) == muon]
            if chosen:
                split.append(group | {"params": chosen, "muon": muon})
    return split


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `muon=True` take orthogonalised momentum instead.

    A weight (out, in, ...) is one matrix (out, in x ...). Its update has the singular vectors of
    its Nesterov momentum and singular values of about 1, scaled to the RMS of AdamW's updates.
    Weights of equal shape are computed together. Weight decay is AdamW's.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """AdamW's step for its own groups, then that of the matrices."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every_group = self.param_groups
        try:
            self.param_groups = [group for group in every_group if not group["muon"]]
            super().step()
        finally:
            self.param_groups = every_group
        for group in every_group:
            if group["muon"]:
                self.step_matrices(group)
        return loss

    def step_matrices(self, group: dict) -> None:
        """Update a group's weights by their orthogonalised momentum, equal shapes at once."""
        by_shape = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape[weight.shape].append(weight)
        for weights in by_shape.values():
            directions = [self.nesterov(weight).flatten(1) for weight in weights]
            updates = orthogonalised(torch.stack(directions))
            rows, columns = updates.shape[1:]
            rate = group["lr"] * UPDATE_RMS * max(rows, columns) ** 0.5
            for weight, update in zip(weights, updates, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update.view_as(weight), alpha=rate)

    def nesterov(self, weight: nn.Parameter) -> Tensor:
        """Nesterov's momentum of a weight, updated with its gradient."""
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
            state["step"] = torch.zeros(())  # AdamW asks every state for it when one is loaded
        state["step"] += 1
        state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(state["momentum"], MOMENTUM)


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, rows, columns) with their singular values brought near 1 by Newton-Schulz steps.

        X <- P X,    P = a I + b G + c G G,    G = X X'

    Every P is a polynomial of the first G, so they commute, and G itself goes on as P G P. Wide
    matrices multiply the P of all steps first: two products with X instead of ten.
    """
    dtype = torch.bfloat16 if matrices.is_cuda else torch.float32
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # bfloat16 would lose small singular values in G.
    wide = x.shape[2] >= 2 * x.shape[1] and dtype == torch.float32
    x = product_of_steps(x @ x.mT) @ x if wide else step_by_step(x)
    if tall:
        x = x.mT
    return x.to(matrices.dtype)


def step_by_step(x: Tensor) -> Tensor:
    """Newton-Schulz steps of (N, rows, columns)."""
    a, b, c = QUINTIC
    for _ in range(QUINTIC_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, b * gram + c * gram @ gram, x, beta=a)
    return x


def product_of_steps(gram: Tensor) -> Tensor:
    """The matrix (N, rows, rows) that does all Newton-Schulz steps at once, from G of the first."""
    product = factor_of_step(gram)
    factor = product
    for _ in range(QUINTIC_STEPS - 1):
        gram = factor @ gram @ factor
        factor = factor_of_step(gram)
        product = factor @ product
    return product


def factor_of_step(gram: Tensor) -> Tensor:
    """P of one Newton-Schulz step, for G (N, rows, rows)."""
    a, b, c = QUINTIC
    factor = torch.baddbmm(b * gram, gram, gram, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
