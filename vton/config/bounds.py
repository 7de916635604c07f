"""Bounds of numbers, written in the type of a setting: `lr: PositiveFloat = 1e-4`."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from vton.config.errors import ConfigError

# Infinity is beyond it, and so are whole numbers that no float can be.
LARGEST = sys.float_info.max
LARGEST_INT = 2**63 - 1  # that torch and numpy hold


@dataclass(frozen=True)
class Bounds:
    """Where a number must lie, or each of several. Both ends are included unless open."""

    low: float
    high: float = LARGEST
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below

    def __str__(self) -> str:
        """What follows "must be" in a message."""
        if self.high == LARGEST:
            return f"above {self.low}" if self.open_low else f"at least {self.low}"
        left = "(" if self.open_low else "["
        right = ")" if self.open_high else "]"
        return f"in {left}{self.low}, {self.high}{right}"


NonNegativeInt = Annotated[int, Bounds(0)]
PositiveInt = Annotated[int, Bounds(1)]
NonNegativeFloat = Annotated[float, Bounds(0)]
PositiveFloat = Annotated[float, Bounds(0, open_low=True)]
Fraction = Annotated[float, Bounds(0, 1)]
PositiveInts = Annotated[tuple[int, ...], Bounds(1)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]  # what numpy takes


def check_bounds(config: Any, section: str = "") -> None:
    """Raise ConfigError for the first number outside its bounds, in `config` or a part of it.

    Refused too are numbers that no setting can be: NaN, infinity, and whole ones beyond 64 bits.

    config: a dataclass, or OmegaConf's node of one, in which no section has checked itself yet
    section: its dotted key with a dot behind it, "" for the whole configuration
    """
    config_class, settings = type(config), vars(config)
    if isinstance(config, DictConfig):
        config_class, settings = OmegaConf.get_type(config), dict(config)
    for name, value in settings.items():
        key = f"{section}{name}"
        if is_dataclass(value) or isinstance(value, DictConfig):
            check_bounds(value, f"{key}.")
            continue
        several = isinstance(value, tuple | list | ListConfig)
        shown = list(value) if several else value
        bounds = _bounds(config_class).get(name)
        for number in shown if several else [value]:
            if not isinstance(number, int | float) or isinstance(number, bool):
                continue
            if bounds is not None and number not in bounds:
                each = " each" if several else ""
                raise ConfigError(f"{key}={shown} must be {bounds}{each}.")
            if not abs(number) <= LARGEST:
                raise ConfigError(f"{key}={shown} must be finite.")
            if isinstance(number, int) and abs(number) > LARGEST_INT:
                raise ConfigError(f"{key}={shown} is more than a whole number of 64 bits holds.")


@functools.cache
def _bounds(config_class: type) -> dict[str, Bounds]:
    """The bounds of a dataclass's fields by name; those of its bases, unless it replaces them."""
    bounds = {}
    for owner in reversed(config_class.__mro__):
        for name, hint in get_type_hints(owner, include_extras=True).items():
            for note in getattr(hint, "__metadata__", ()):
                if isinstance(note, Bounds):
                    bounds[name] = note
    return bounds
