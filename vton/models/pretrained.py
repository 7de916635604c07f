"""Weights from disk: hub-format folders, safetensors files and `.pth` files, never with pickle's power to run code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vton.errors import UserError


class WeightsError(UserError):
    """Weights that are absent, broken or of another model; the message names the file and what to do."""


def from_pretrained(cls: type, source: str, *, key: str, **kwargs: Any):
    """`cls.from_pretrained` for a local folder or a hub id that is already in the local hub cache.

    Nothing is downloaded unless VTON_DOWNLOAD=1. Raises WeightsError naming the configuration key.
    """
    download = os.environ.get("VTON_DOWNLOAD") == "1"
    try:
        return cls.from_pretrained(source, local_files_only=not download, **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{key}={source}: cannot load {cls.__name__} {kwargs.get('subfolder', '')}: {reason} "
            "Give a local folder in the hub's layout, or set VTON_DOWNLOAD=1 to fetch a hub id."
        ) from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors. Raises WeightsError for an absent or broken file."""
    if not Path(path).is_file():
        raise WeightsError(f"No weights at {path}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}). Copy or export it again.") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A torch file of plain tensors, numbers and strings. Raises WeightsError for all else, and runs none of it."""
    if not Path(path).is_file():
        raise WeightsError(f"No checkpoint at {path}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can raise almost anything from inside the unpickler
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{path}: not a safe, complete torch file ({reason[:160]}).") from None


def load_state(module: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Load every tensor, or raise WeightsError listing the first ten missing, unexpected and mismatched keys."""
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    mismatched = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched))
        if keys
    ]
    if problems:
        raise WeightsError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}.")
    module.load_state_dict(state)
