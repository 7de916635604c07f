"""Packages of the extras `photo` and `demo`: asked for by name, where they are used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from vton.errors import UserError, one_line


def package(name: str, purpose: str, extra: str = "photo") -> ModuleType:
    """An optional package. Raises UserError with the command that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the package {name} ({one_line(error)}): make setup, or "
            f"pip install -e '.[{extra}]'."
        ) from None
