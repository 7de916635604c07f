"""LoRA (arXiv 2106.09685) on attention layers, by peft: a published checkpoint learns with a
thousandth of its weights.

    W x  becomes  W x + (alpha / rank) B A x

for the queries, keys, values and outputs of every attention layer. A and B are trained, saved and
averaged in float32. All else is as a frozen network is (precision.py), and is found again where the
configuration says: base weights by `pretrained`, a run's by train.start_from.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from vton.config import ConfigError, LoraSettings
from vton.models.partial import train_only
from vton.weights.pretrained import check_state

LAYERS = ("to_q", "to_k", "to_v", "to_out", "to_out.0")  # as diffusers and our networks name them
MATRICES = ("lora_A.", "lora_B.")  # in the names of what is trained
BASE = ".base_layer."  # in the names of the layers' own weights


def is_lora(name: str) -> bool:
    """Whether a parameter of that name is one of LoRA's matrices."""
    return any(part in name for part in MATRICES)


def add_lora(networks: Iterable[nn.Module], settings: LoraSettings, dtype: torch.dtype) -> None:
    """Give the attention layers of these networks that would be trained LoRA's matrices, and let
    nothing else be trained.

    dtype: of all other weights. Raises ConfigError where peft is not installed or no network has an
    attention layer.
    """
    if not find_spec("peft"):
        raise ConfigError(
            "model.lora: peft is not installed. "
            '.venv/bin/pip install --constraint constraints.txt --editable ".[lora]".'
        )
    from peft import LoraConfig, inject_adapter_in_model  # here: its import takes a moment

    found = 0
    for network in networks:
        layers = attention_layers(network)
        if layers:
            config = LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha or settings.rank,
                target_modules=layers,
            )
            inject_adapter_in_model(config, network)
        for name, parameter in network.named_parameters():
            if not is_lora(name):
                parameter.data = parameter.data.to(dtype)
        train_only(network, is_lora, none=True)
        found += len(layers)
    if not found:
        raise ConfigError("model.lora: this model trains no network with attention layers.")


def attention_layers(network: nn.Module) -> list[str]:
    """Names of the linear layers that LoRA changes: those that would be trained without it."""
    names = []
    for name, layer in network.named_modules():
        is_attention = name.endswith(tuple(f".{end}" for end in LAYERS))
        if is_attention and isinstance(layer, nn.Linear) and layer.weight.requires_grad:
            names.append(name)
    return names


def base_name(name: str) -> str:
    """A parameter's name before LoRA joined its layer."""
    return name.replace(BASE, ".")


@torch.no_grad()
def load_base(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Fill all but LoRA's matrices from a state without them. Raises UserError."""
    own = {base_name(n): p for n, p in module.named_parameters() if not is_lora(n)}
    check_state(own, state, source, owner=type(module).__name__)
    for name, parameter in own.items():
        parameter.copy_(state[name])


@torch.no_grad()
def merged(module: nn.Module) -> dict[str, Tensor]:
    """The module's weights with LoRA's products added to their layers, under their own names."""
    from peft.tuners.lora import LoraLayer

    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
    state = {}
    for name, parameter in module.named_parameters():
        if not is_lora(name):
            state[base_name(name)] = parameter.detach()
    return state
