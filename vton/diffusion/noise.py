"""Random draws as functions of what they are for, so that restarts, batch sizes and process counts
cannot move them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from vton.processes import to_device


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by the key alone, e.g. (seed, "train", position).

    torch keeps 32 bits of a seed: about n^2 / 2^33 pairs of n keys share their draws.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(shape: Sequence[int], generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """(B, *shape) standard normal draws, row i from generators[i], with the device and dtype of
    `like`.
    """
    rows = [torch.randn(tuple(shape), generator=g) for g in generators]
    return to_device(torch.stack(rows), like.device).to(like.dtype)


def uniform(generators: Sequence[torch.Generator]) -> Tensor:
    """(B,) draws from [0, 1), row i from generators[i], float32, on the CPU, which decides by
    them.
    """
    return torch.cat([torch.rand(1, generator=g) for g in generators])
