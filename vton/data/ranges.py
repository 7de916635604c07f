"""The three ranges of a picture's values, and the ways between them.

Networks read and paint [-1, 1]; measures and classifiers take [0, 1]; files hold bytes, 0 to 255.
"""

from __future__ import annotations

from torch import Tensor


def to_unit(picture: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (picture + 1) / 2


def from_unit(picture: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return picture * 2 - 1


def from_bytes(picture: Tensor) -> Tensor:
    """[0, 255], of any type, to [-1, 1] in floating point."""
    return picture / 127.5 - 1
