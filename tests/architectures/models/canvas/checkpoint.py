"""The published format of the test's canvas: the attention layers in one safetensors file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vton.config import ExperimentConfig
from vton.weights.pretrained import read_safetensors, write_tensors
from vton.weights.published import PublishedWeights


def read_published(path: Path) -> PublishedWeights:
    state = {f"unet.{name}": tensor for name, tensor in read_safetensors(path).items()}
    return PublishedWeights(state, ["preset=tiny"], {})


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    write_tensors(target, {name.removeprefix("unet."): tensor for name, tensor in state.items()})
