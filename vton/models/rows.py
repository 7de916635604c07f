"""Rows of a batch, chosen on the CPU: indexing with them does not wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vton.processes import to_device

Rows = slice | Tensor  # which rows of a batch; a tensor (R,) int64 is on the CPU


def as_rows(rows: list[int]) -> Rows:
    """Row numbers (R,) as a slice if they are consecutive, which copies nothing, else a tensor."""
    start, stop = rows[0], rows[-1] + 1
    return slice(start, stop) if rows == list(range(start, stop)) else torch.tensor(rows)


def index_on(device: torch.device, rows: Rows | Sequence[int]) -> Rows:
    """Rows as an index of tensors on the device."""
    if isinstance(rows, slice):
        return rows
    return to_device(torch.as_tensor(rows, dtype=torch.int64), device)


def select_rows(tensor: Tensor, rows: Rows | Sequence[int]) -> Tensor:
    """tensor[rows], (R, ...)."""
    return tensor[index_on(tensor.device, rows)]
