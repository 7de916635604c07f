"""Settings of models by name, found from their folders.

A model lives in `vton/models/<name>/`. Its `config.py` holds its TrainedConfig subclass, whose
`name` is the folder's, and imports no torch, so that configurations load fast.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from vton.config.errors import ConfigError, nearest
from vton.config.schema import ModelKind, TrainedConfig


def names(kind: ModelKind = "architecture") -> list[str]:
    """Every model of a kind ("architecture", "warp"); imports no torch."""
    return [name for name in folders() if config_class(name).kind == kind]


def folders() -> list[str]:
    """Every model that can be trained, without importing any."""
    names = []
    for place in importlib.import_module("vton.models").__path__:
        names += [path.parent.name for path in Path(place).glob("*/config.py")]
    return sorted(names)


def config_class(name: str) -> type[TrainedConfig]:
    """The dataclass of a model's settings. Raises ConfigError for an unknown name."""
    if name not in folders():
        raise ConfigError(f"model={name}: no such model. {nearest(name, folders())}")
    module = importlib.import_module(f"vton.models.{name}.config")
    own = []
    for value in vars(module).values():
        is_config = isinstance(value, type) and issubclass(value, TrainedConfig)
        if is_config and value.__module__ == module.__name__:
            own.append(value)
    if len(own) != 1 or own[0].name != name:
        raise ConfigError(
            f"{module.__file__} must define one TrainedConfig subclass with name = '{name}'."
        )
    return own[0]
