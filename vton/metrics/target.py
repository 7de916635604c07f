"""What is compared: a pair's target and a method's prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vton.data.sample import Order, TryOnBatch
from vton.metrics.pictures import to_uint8


@dataclass
class Target:
    """What one prediction is compared with.

    Pictures are uint8 (3, h, w) of any size, masks bool (1, h, w).
    """

    pair_id: str
    person_id: str
    category: str
    order: Order
    size: tuple[int, int]  # height, width of the prediction
    person: Tensor | None = None  # the reference of FID and KID, and what is pasted back
    truth: Tensor | None = None  # absent for real unpaired pairs
    garment_mask: Tensor | None = None  # where the truth shows the garment
    repaint_mask: Tensor | None = None  # where the method painted
    worn_mask: Tensor | None = None  # where the prediction shows the garment, of any size

    # For the garment-driven metrics:
    garment: Tensor | None = None  # in-shop picture
    silhouette: Tensor | None = None  # of the garment in it
    pose_map: Tensor | None = None  # the person's, drawn
    prompt: str = ""


class Prediction(NamedTuple):
    """A method's pictures of some pairs."""

    pictures: Tensor  # uint8 (B, 3, h, w)
    silhouettes: Tensor | None = None  # bool (B, 1, h, w): where a method that warps puts garments


Method = Callable[[TryOnBatch], Prediction]


def targets_of(batch: TryOnBatch) -> list[Target]:
    """A target for each pair of the batch, its pictures rounded to uint8."""
    batch = batch.to("cpu")
    height, width = batch.person.shape[-2:]
    persons = to_uint8(batch.person)
    garments = to_uint8(batch.garment)
    pose_maps = to_uint8(batch.pose_map)
    truths = None if batch.truth is None else to_uint8(batch.truth)

    targets = []
    for row, pair_id in enumerate(batch.pair_id):
        target = Target(
            pair_id=pair_id,
            person_id=batch.person_id[row],
            category=batch.category[row],
            order=batch.order[row],
            size=(height, width),
            person=persons[row],
            repaint_mask=batch.agnostic_mask[row] > 0,
            garment=garments[row],
            silhouette=batch.garment_mask[row] > 0,
            pose_map=pose_maps[row],
            prompt=batch.person_caption[row],
        )
        if truths is not None:
            target.truth = truths[row]
        if batch.truth_garment_mask is not None:
            target.garment_mask = batch.truth_garment_mask[row] > 0
        targets.append(target)
    return targets
