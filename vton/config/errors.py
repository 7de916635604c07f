"""The error of every setting that cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from vton.errors import UserError


class ConfigError(UserError):
    """One line that names the key, the problem and the nearest valid choice."""


def nearest(word: str, known: Sequence[str]) -> str:
    """'Did you mean ...?' for a mistyped name, or the list of known ones."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"Did you mean: '{close[0]}'?"
    return f"Known: {', '.join(known)}."


def first_line(error: Exception) -> str:
    """What a library's error says before it goes into detail."""
    return str(error).strip().splitlines()[0]
