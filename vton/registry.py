"""Architectures by name, found from their folders.

A model lives in `vton/models/<name>/`: `config.py` holds its ModelConfig subclass, whose `name` is the folder's (no
torch import, so that configurations load fast), and `module.py` holds its TryOnModule under `@register(ItsConfig)`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from vton.config import ConfigError, ModelConfig, nearest

_MODULES: dict[str, type] = {}


def names() -> list[str]:
    """Every architecture with a folder under vton/models, without importing any."""
    return sorted(path.parent.name for path in (Path(__file__).parent / "models").glob("*/config.py"))


def config_class(name: str) -> type[ModelConfig]:
    """The dataclass of an architecture's settings. Raises ConfigError for an unknown name."""
    if name not in names():
        raise ConfigError(f"model={name}: no such model. {nearest(name, names())}")
    module = importlib.import_module(f"vton.models.{name}.config")
    found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, ModelConfig)]
    own = [c for c in found if c.__module__ == module.__name__]
    if len(own) != 1 or own[0].name != name:
        raise ConfigError(f"{module.__file__} must define one ModelConfig subclass with name = '{name}'.")
    return own[0]


def register(config: type[ModelConfig]):
    """Class decorator: make a TryOnModule known under its config's name."""

    def remember(module: type) -> type:
        known = _MODULES.setdefault(config.name, module)
        if (known.__module__, known.__qualname__) != (module.__module__, module.__qualname__):
            raise ValueError(f"two modules want the name '{config.name}': {known} and {module}")
        return module

    return remember


def module_class(name: str) -> type:
    """The TryOnModule of an architecture. Raises ConfigError for an unknown name."""
    config_class(name)
    importlib.import_module(f"vton.models.{name}.module")
    return _MODULES[name]
