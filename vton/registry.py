"""Models by name, found from their folders.

A model lives in `vton/models/<name>/`: `config.py` holds its TrainedConfig subclass, whose `name` is the folder's (no
torch import, so that configurations load fast), and `module.py` holds its TrainedModule under `@register(ItsConfig)`.
Its kind decides where it appears: architectures (ModelConfig, TryOnModule) are compared with each other, a warp is
trained and scored by the same commands and stands among the baselines.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from vton.config import ConfigError, ModelKind, TrainedConfig, nearest

_MODULES: dict[str, type] = {}


def names(kind: ModelKind = "architecture") -> list[str]:
    """Every model of a kind ("architecture", "warp") with a folder under vton/models; imports no torch."""
    return [name for name in folders() if config_class(name).kind == kind]


def folders() -> list[str]:
    """Every model that can be trained, without importing any."""
    return sorted(path.parent.name for path in (Path(__file__).parent / "models").glob("*/config.py"))


def config_class(name: str) -> type[TrainedConfig]:
    """The dataclass of a model's settings. Raises ConfigError for an unknown name."""
    if name not in folders():
        raise ConfigError(f"model={name}: no such model. {nearest(name, folders())}")
    module = importlib.import_module(f"vton.models.{name}.config")
    found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, TrainedConfig)]
    own = [c for c in found if c.__module__ == module.__name__]
    if len(own) != 1 or own[0].name != name:
        raise ConfigError(f"{module.__file__} must define one TrainedConfig subclass with name = '{name}'.")
    return own[0]


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
