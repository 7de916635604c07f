"""Published checkpoints: what an architecture tells `vton import` and `vton export` of them.

An architecture that reads and writes its authors' files defines in its checkpoint.py

    read_published(path: Path) -> PublishedWeights
    write_published(target: Path, state: dict[str, Tensor], config: ExperimentConfig,
                    extra: dict[str, Tensor]) -> None

`read_published` checks that the files are of this model, gives their tensors our names and derives
the settings that they imply. `write_published` does the reverse with a run's weights, and refuses
runs that the format has no place for. Both raise UserError, which names the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vton.config import as_override
from vton.files import replacing
from vton.weights.pretrained import PUBLISHED_METADATA, write_tensors


@dataclass
class PublishedWeights:
    """What `vton import` takes from published files."""

    state: dict[str, Tensor]  # trained networks, under our module's names, in the stored dtype
    settings: list[str]  # dotted overrides that follow from the files
    # Tensors that we have no use for, kept so that an export is complete.
    extra: dict[str, Tensor] = field(default_factory=dict)
    # Settings that are in no tensor and in no file beside them: the user must give them.
    undetermined: list[str] = field(default_factory=list)
    # An AutoencoderKL that the files hold, of the shape that `settings` give the codec; it becomes
    # the run's own codec. Empty where the codec lies elsewhere.
    codec: dict[str, Tensor] = field(default_factory=dict)


def settings_of(key: str, values: Mapping[str, Any]) -> list[str]:
    """Overrides key.name=value for `PublishedWeights`."""
    return [as_override(f"{key}.{name}", value) for name, value in values.items()]


def write_mapping(target: Path, tensors: Mapping[str, Tensor], section: str = "") -> None:
    """Tensors as a .safetensors or, for any other suffix, a torch file, whole or not at all.

    section: a key of the torch file that its authors' code expects them under.
    """
    if target.suffix == ".safetensors":
        write_tensors(target, tensors, PUBLISHED_METADATA)
    else:
        write_torch(target, {section: dict(tensors)} if section else dict(tensors))


def write_torch(target: Path, content: dict) -> None:
    """A torch file, whole or not at all. Raises UserError where it cannot be written."""
    with replacing(target) as temporary:
        torch.save(content, temporary)
