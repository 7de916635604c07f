"""Sweeps over every architecture that `make test` makes in part, and `make test-slow` whole."""

import pytest

from vton import registry

# Beside these, one over diffusers' blocks (gardiff) and one with networks of its own
# (tryondiffusion) say soon whether what they share is broken. An architecture that somebody adds is
# none of these and is tested at once.
LATER = ("catvton", "idm_vton", "imagdressing", "ladi_vton", "leffa", "stableviton")
SHIPPED = ("gardiff", "tryondiffusion", *LATER)


def soon_and_later(names: list[str] | None = None) -> list:
    """The parameters of a sweep, by default over all architectures: those LATER are slow."""
    chosen = []
    for name in registry.names() if names is None else names:
        marks = pytest.mark.slow if name in LATER else ()
        chosen.append(pytest.param(name, marks=marks))
    return chosen
