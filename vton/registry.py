"""Models by name.

A model's settings are found in its folder (vton/config/models.py). Its `module.py` holds its
TrainedModule under `@register(ItsConfig)`. Its kind decides where it appears: architectures
(ModelConfig, TryOnModule) are compared with each other; a warp is trained and scored by the same
commands and stands among the baselines.
"""

from __future__ import annotations

import importlib

from vton.config import TrainedConfig
from vton.config.models import config_class, folders, names

__all__ = ["config_class", "folders", "module_class", "names", "register"]

_MODULES: dict[str, type] = {}


def register(config: type[TrainedConfig]):
    """Class decorator: make a TrainedModule known under its config's name."""

    def remember(module: type) -> type:
        known = _MODULES.setdefault(config.name, module)
        if (known.__module__, known.__qualname__) != (module.__module__, module.__qualname__):
            raise ValueError(f"two modules want the name '{config.name}': {known} and {module}")
        return module

    return remember


def module_class(name: str) -> type:
    """The TrainedModule of a model. Raises ConfigError for an unknown name."""
    config_class(name)
    importlib.import_module(f"vton.models.{name}.module")
    return _MODULES[name]
