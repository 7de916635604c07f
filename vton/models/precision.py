"""Which network computes in what: the one place of that decision.

    trained weights     float32, and with them gradients, moments and averages; training computes
                        with them under autocast in train.precision
    frozen networks     stored and computed in train.precision: nothing updates them, and autocast
                        would cast their weights anew in every call
    codec               codec.precision; auto: train.precision, but float32 where the run fits it
                        itself, and where its folder says `force_upcast: true` or its file is
                        SDXL's
    sampling            all of it in eval.precision, weights too; null: train.precision

On CPUs train.precision is fp32 unless the configuration says otherwise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vton.config import CodecConfig, ExperimentConfig
from vton.models.ldm import SDXL_SCALING, latent_scaling
from vton.weights.pretrained import hub_file, read_json
from vton.weights.unfilled import read_later

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def stored(config: ExperimentConfig, trained: bool) -> torch.dtype:
    """What a network's weights are kept in, trained or frozen. LoRA trains none of them, and a run
    that is loaded draws pictures.
    """
    if trained and not config.lora_rank and not read_later(trained):
        return torch.float32
    return DTYPES[config.train.precision]


def for_sampling(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration that pictures are drawn with: train.precision is that of sampling."""
    precision = config.eval.precision or config.train.precision
    return replace(config, train=replace(config.train, precision=precision))


def codec_precision(config: ExperimentConfig) -> str:
    """fp32, bf16 or fp16."""
    codec = config.codec
    if codec.precision != "auto":
        return codec.precision
    if config.train.precision == "fp32" or codec.name != "kl" or not codec.pretrained:
        return "fp32"
    return "fp32" if asks_for_float32(codec) else config.train.precision


def asks_for_float32(config: CodecConfig) -> bool:
    """Whether the autoencoder overflows in float16, as SDXL's own does: its config.json says
    `force_upcast: true`, a checkpoint file has SDXL's scaling. A file that is not on this machine
    yet says nothing.
    """
    checkpoint = Path(config.pretrained).expanduser()
    if checkpoint.is_file():
        return (latent_scaling(checkpoint) or config.scaling) == SDXL_SCALING
    file = hub_file(config.pretrained, config.subfolder, "config.json")
    return file is not None and bool(read_json(file).get("force_upcast", False))


def own_precision(network: nn.Module) -> AbstractContextManager:
    """A context in which a network computes in what its weights are stored in.

    Autocast stays for float32, which it brings to half precision, and is off for half precision: a
    frozen network's norms and sums are then not cast back and forth.
    """
    weight = next(network.parameters())
    if weight.dtype == torch.float32:
        return nullcontext()
    return without_autocast(weight)


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Store a network in dtype. diffusers' own `to` warns of layers to keep in float32, also where
    there are none.
    """
    nn.Module.to(network, dtype)


def in_dtype_of(network: nn.Module, tensor: Tensor) -> Tensor:
    """The tensor as a network in half precision takes it; autocast casts for the others."""
    weight = next(network.parameters())
    return tensor if weight.dtype == torch.float32 else tensor.to(weight.dtype)


def take_own_dtype(network: nn.Module) -> None:
    """Let a network cast what it is called with to its weights' dtype, so that an architecture made
    of diffusers' networks need not know in what precision it samples. Timesteps, which have one
    dimension, stay as they are.
    """
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    if dtype == torch.float32:
        return

    def cast_inputs(_, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        def own(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor

        return tree_map_only(Tensor, own, (args, kwargs))

    network.register_forward_pre_hook(cast_inputs, with_kwargs=True)


def without_autocast(like: Tensor) -> AbstractContextManager:
    """A context without autocast, on the devices that have it."""
    if torch.amp.is_autocast_available(like.device.type):
        return torch.autocast(like.device.type, enabled=False)
    return nullcontext()
