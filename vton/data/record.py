"""A sample before normalisation: what the cache holds and the augmentation changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vton.config import DensePosePicture
from vton.data.pairs import Pair
from vton.data.sample import Order


@dataclass
class Record:
    """One decoded pair at the training size.

    Pictures are uint8. What follows from other parts is left out (agnostic picture, drawn pose), so
    that no change can make them disagree.

    Legend: H W picture height and width.
    """

    index: int  # position in the pair list
    dataset: str
    pair: Pair
    order: Order
    annotation: str  # a few words on the garment

    person: Tensor  # (3, H, W)
    garment: Tensor  # (3, H, W)
    warped_garment: Tensor | None  # (3, H, W); None where nobody reads it, as its mask
    truth: Tensor | None  # (3, H, W); None without one and in paired order: the person is it
    agnostic_mask: Tensor  # (1, H, W) bool
    garment_mask: Tensor  # (1, H, W) bool
    warped_mask: Tensor | None  # (1, H, W) bool
    truth_garment_mask: Tensor | None  # (1, H, W) bool
    parse: Tensor  # (H, W) uint8, labels of vton.data.labels
    densepose: Tensor | None  # (H, W) uint8 part ids
    joints: np.ndarray  # (18, 3) float32 as TryOnSample.keypoints
    person_other: Tensor | None = None  # (3, H, W); the person in other clothes
    densepose_as: DensePosePicture = "colours"
    # (3, 4): the colour change that is made where the floats are made; see vton.data.compact
    colour: Tensor | None = None
    inner: tuple[int, int] | None = None  # height, width without the margins, where there are any

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.person.shape[-2:])


def picture(array: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 as a (3, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def mask(array: np.ndarray) -> Tensor:
    """(H, W) bool as a (1, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(array))[None]
