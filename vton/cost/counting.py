"""What a model costs: parameters, FLOPs and memory, counted without allocating any weights.

Everything runs on the meta device, through the model's own `generate` and training step. A
multiply-add counts as 2 FLOP; attention products are included. `vton info` shows what `describe`
returns; comparisons use `cost`, the numbers for one picture and one training step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vton.config import ExperimentConfig
from vton.cost.memory import held_out_memory, sampling_memory, training_memory
from vton.cost.meta import (
    deciding_numbers,
    meta_batch,
    on_meta,
    set_everywhere,
    training_loss,
)
from vton.diffusion.denoiser import Conditions, Denoiser, Features, Known, Step
from vton.errors import UserError, one_line
from vton.models.base import TryOnModule
from vton.models.precision import for_sampling


class CountingError(UserError):
    """A model whose cost cannot be counted; the message names it."""


@contextmanager
def naming(config: ExperimentConfig) -> Iterator[None]:
    """Name the model in errors of code that runs on the meta device."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        name = config.model.name
        raise CountingError(
            f"model={name} preset={config.preset}: its cost cannot be counted on the meta device "
            f"({type(error).__name__}: {one_line(error)}). `pytest -k {name}` shows where."
        ) from error


def describe(config: ExperimentConfig, gpus: int = 0, precision: str = "") -> dict:
    """Networks and phases of the configured model or stage, for one sample at data.size.

    gpus: also the memory of training on this many devices, for architectures
    precision: of sampling; "" = as configured

    Raises CountingError.
    """
    with naming(config):
        sampled = for_sampling(config)
        if precision:
            sampled = replace(config, train=replace(config.train, precision=precision))
        module = on_meta(sampled)
        facts = networks_of(module)
        if config.model.kind == "warp":
            return facts | {"flops": {"warp": warp_flops(module)}}
        facts |= sampling_of(module, sampled.train.precision)
        if gpus:
            facts["training"] = training_memories(config, gpus)
        return facts


def networks_of(module: TryOnModule) -> dict:
    """Parameters by network and in all."""
    config = module.config
    trained = set()
    for group in module.optimized():
        trained |= {id(parameter) for parameter in group["params"]}
    rows = [network_row(name, network, trained) for name, network in module.networks().items()]
    facts = {"stage": config.model.stage} if config.model.CASCADE else {}
    return facts | {
        "model": config.model.name,
        "preset": config.preset,
        "size": list(config.data.size),
        "networks": rows,
        "parameters": sum(row["parameters"] for row in rows),
        "trained": sum(row["trained"] for row in rows),
    }


def network_row(name: str, network: nn.Module, trained: set[int]) -> dict:
    row = {"name": name, "class": type(network).__name__, "parameters": 0, "trained": 0}
    for parameter in network.parameters():
        row["parameters"] += parameter.numel()
        if id(parameter) in trained:
            row["trained"] += parameter.numel()
    return row


@torch.no_grad()
def warp_flops(module) -> int:
    with deciding_numbers():
        _, flops = counted(lambda: module.put_on(meta_batch(module.config.data.size)))
    return flops


@torch.no_grad()
def sampling_of(module: TryOnModule, precision: str) -> dict:
    """FLOPs of the contract's calls for one sample, and memory of sampling it in a precision."""
    # The counter refuses views of parameters that want gradients.
    module.eval().requires_grad_(False)
    module.compute_in(precision)
    batch = meta_batch(module.config.data.size)
    denoiser = module.denoiser
    with deciding_numbers():
        conditions, condition_flops = counted(lambda: module.condition(batch))
        t = module.objective.at(torch.zeros(1))
        z = torch.zeros(1, *module.latent_shape(), device="meta")
        features, features_flops = counted(lambda: denoiser.garment_features(conditions, t))
        _, denoise_flops = counted(lambda: denoiser.denoise(z, t, conditions, features))
        _, decode_flops = counted(lambda: module.picture(z, batch))
        memory = sampling_memory(module, batch, precision)
    flops = {
        "condition": condition_flops,
        "garment_features": features_flops,
        "denoise": denoise_flops,
        "decode": decode_flops,
    }
    return {"flops": flops, "memory": memory}


def training_memories(config: ExperimentConfig, gpus: int) -> dict[str, dict]:
    """`training_memory` of one sample per device, without and with gradient checkpointing."""
    memory = {}
    held_out = 0
    if config.train.picture_every:
        rows = min(config.eval.batch_size, max(1, config.train.val_pairs // gpus))
        drawing = on_meta(config).eval().requires_grad_(False)
        with torch.no_grad(), deciding_numbers():
            held_out = held_out_memory(drawing, meta_batch(config.data.size, rows))
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        config = copy.deepcopy(config)
        set_everywhere(config.model, "gradient_checkpointing", checkpointing)
        memory[name] = training_memory(
            on_meta(config), meta_batch(config.data.size), gpus, held_out
        )
    return memory


def cost(config: ExperimentConfig) -> dict[str, int]:
    """The configured model's costs, as rows of a comparison hold them.

    parameters, trained_parameters
    picture_flops    of one picture, as the configured sampler draws it
    step_flops       of one training step, see `step_flops`
    sampling_bytes   the most at once, with all networks loaded in half precision

    Raises CountingError.
    """
    facts = describe(config, precision="fp16")
    return {
        "parameters": facts["parameters"],
        "trained_parameters": facts["trained"],
        "picture_flops": picture_flops(config),
        "step_flops": step_flops(config),
        "sampling_bytes": facts["memory"]["peak"],
    }


@torch.no_grad()
def picture_flops(config: ExperimentConfig) -> int:
    """FLOPs of `generate` for one picture: conditions, every step with its guidance, decoding.

    Without what a model keeps from one picture to the next. Raises CountingError.
    """
    with naming(config):
        module = on_meta(config).eval().requires_grad_(False)
        repeated = []
        for part in module.modules():
            if isinstance(part, TryOnModule):
                part.__dict__["denoiser"] = EqualSteps(part.denoiser)
                repeated.append(part.denoiser)
        with deciding_numbers():
            _, flops = counted(lambda: module.generate(meta_batch(config.data.size)))
        return flops + sum(denoiser.skipped_flops for denoiser in repeated)


def step_flops(config: ExperimentConfig) -> int:
    """FLOPs of one training step on one device, forward and backward: `train.accumulate` batches of
    `train.batch_size`.

    All garments and captions of a batch count as different ones, no condition is dropped, and every
    loss that depends on the timestep acts. Raises CountingError.
    """
    with naming(config):
        module = on_meta(config).train()
        batch = meta_batch(config.data.size, config.train.batch_size)
        with deciding_numbers():
            _, flops = counted(lambda: training_loss(module, batch).backward())
        return config.train.accumulate * flops


def counted(call: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a call, and its FLOPs."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    return result, counter.get_total_flops()


class EqualSteps(Denoiser):
    """A denoiser that runs once for all steps of a kind, and counts what the others would take.

    Steps are of one kind if their latents, conditions and features have the same names and shapes.
    A ControlNet that acts in some steps only shows in the features.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.__dict__["own"] = denoiser  # not registered: the module has its networks already
        self.flops: dict[tuple, int] = {}
        self.skipped_flops = 0

    def __getattr__(self, name: str):
        return getattr(self.__dict__["own"], name)

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        return self.own.garment_features(conditions, t, step)

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        kind = (z_t.shape, shapes(conditions), shapes(features))
        if kind in self.flops:
            self.skipped_flops += self.flops[kind]
            return torch.empty_like(z_t)
        prediction, self.flops[kind] = counted(
            lambda: self.own.denoise(z_t, t, conditions, features)
        )
        return prediction

    def unconditional(self, conditions: Conditions) -> Conditions:
        return self.own.unconditional(conditions)

    def known(self, conditions: Conditions) -> Known | None:
        return self.own.known(conditions)

    def start(self, conditions: Conditions) -> Tensor | None:
        return self.own.start(conditions)


def shapes(tensors: dict[str, Tensor]) -> tuple:
    return tuple((name, tensor.shape) for name, tensor in tensors.items())
