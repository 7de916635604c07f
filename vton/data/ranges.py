"""The three ranges of a picture's values, and the ways between them.

Networks read and paint [-1, 1]; measures and classifiers take [0, 1]; files hold bytes, 0 to 255.
`vton.metrics.pictures.to_uint8` makes bytes of pictures that a network painted.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(image: Tensor) -> Tensor:
    """uint8 in [0, 255] or float in [0, 1] to float32 in [-1, 1]."""
    return from_bytes(image) if image.dtype == torch.uint8 else from_unit(image)


def to_bytes(image: Tensor) -> Tensor:
    """[-1, 1] to uint8: the inverse of `normalise`, for pictures that were bytes before."""
    return ((image + 1) * 127.5).round().to(torch.uint8)


def to_unit(image: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (image + 1) / 2


def from_unit(image: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return image * 2 - 1


def from_bytes(image: Tensor) -> Tensor:
    """[0, 255], of any type, to [-1, 1] in floating point."""
    return image / 127.5 - 1
