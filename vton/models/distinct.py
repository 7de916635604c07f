"""Rows of a batch that share a garment: what depends on the garment alone is computed once each.

Which rows these are is decided on the CPU, by numbers that are there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def distinct(keys: Tensor, *more: Tensor) -> tuple[list[int], Tensor]:
    """The first row of each group of equal (B,) integers, and each row's group, (B,) int64.

    All on the CPU. Rows with a negative key have no group, -1.
    """
    columns = [column.tolist() for column in (keys, *more)]
    groups: dict[tuple, int] = {}
    first: list[int] = []
    group_of_row: list[int] = []
    for row, values in enumerate(zip(*columns, strict=True)):
        if values[0] < 0:
            group_of_row.append(-1)
            continue
        if values not in groups:
            groups[values] = len(groups)
            first.append(row)
        group_of_row.append(groups[values])
    return first, torch.tensor(group_of_row)


def distinct_garments(
    garments: Tensor, names: Sequence[str], captions: Sequence[str]
) -> tuple[list[int], Tensor]:
    """The rows that first show each distinct garment, and which of these garments each row wears.

    Garments (B, 3, H, W) are the same where name, caption and picture are: augmentation may show
    one twice. Returns as `distinct` does.
    """
    first_with_same: list[int] = []
    for row in range(len(garments)):
        first_with_same.append(row)
        for earlier in range(row):
            same = (names[earlier], captions[earlier]) == (names[row], captions[row])
            if same and torch.equal(garments[earlier], garments[row]):
                first_with_same[row] = earlier
                break
    return distinct(torch.tensor(first_with_same))
