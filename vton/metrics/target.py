"""What a prediction is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vton.data.sample import Order


@dataclass
class Target:
    """What one prediction is compared with. Pictures are uint8 (3, h, w) of any size, masks bool
    (1, h, w).
    """

    pair_id: str
    person_id: str
    category: str
    order: Order
    size: tuple[int, int]  # height, width of the prediction
    # as photographed: the reference of FID and KID, and what is pasted back
    person: Tensor | None = None
    truth: Tensor | None = None  # absent for real unpaired pairs
    garment_mask: Tensor | None = None  # where the truth shows the garment
    repaint_mask: Tensor | None = None  # where the method painted
    # in-shop picture; this and what follows for the garment-driven metrics
    garment: Tensor | None = None
    silhouette: Tensor | None = None  # of the garment in it
    pose_map: Tensor | None = None  # the person's, drawn
    prompt: str = ""
