"""Architectures by name. `@register(Config)` on a TryOnModule is all it takes; names are found from the folders.

A model lives in `vton/models/<name>/` with `config.py` (its ModelConfig; no torch import) and `module.py`.
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
        raise ConfigError(f"model={name}: no such architecture. {nearest(name, names())}")
    return importlib.import_module(f"vton.models.{name}.config").CONFIG


def register(name: str):
    """Class decorator: make a TryOnModule known under the name of its folder."""

    def remember(module: type) -> type:
        if name in _MODULES and _MODULES[name].__qualname__ != module.__qualname__:
            raise ValueError(f"two architectures want the name '{name}': {_MODULES[name]} and {module}")
        _MODULES[name] = module
        return module

    return remember


def module_class(name: str) -> type:
    """The TryOnModule of an architecture. Raises ConfigError for an unknown name."""
    config_class(name)
    importlib.import_module(f"vton.models.{name}.module")
    return _MODULES[name]
