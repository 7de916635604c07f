"""Bounding boxes of arrays and tensors."""

import numpy as np
import pytest
import torch

from vton.data.boxes import Box, bounding_box


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_box_of_what_is_set(kind):
    mask = np.zeros((6, 8), bool)
    assert bounding_box(kind(mask)) is None
    mask[2, 3] = mask[4, 1] = True
    box = bounding_box(kind(mask))
    assert box == Box(left=1, top=2, right=3, bottom=4)
    inside = np.zeros_like(mask)
    inside[box.slices] = True
    assert inside.sum() == 9 and not (mask & ~inside).any()
    assert bounding_box(kind(mask.astype(np.float32))) == box
