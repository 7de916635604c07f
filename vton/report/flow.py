"""The garment as a network's own attention warps it onto the person: what the flow loss compares.

garment    the in-shop garment
rows x columns    it, warped by the mean flow of all layers with so many tokens of the person
person     the truth, where there is one, else the sampled picture
"""
# Shapes: B batch, H W height and width of pictures

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vton.data.sample import TryOnBatch
from vton.models.attention import GarmentReads, record_reads
from vton.models.base import TryOnModule
from vton.models.flow import flow_field, taking_part, warp_by_flow
from vton.models.rows import index_on
from vton.report.attention import denoise_once
from vton.report.grid import as_images, picture_grid


@torch.no_grad()
def garment_reads(module: TryOnModule, batch: TryOnBatch, pictures: Tensor) -> GarmentReads:
    """What every layer reads of the garment in the middle of the sampler's schedule.

    pictures: (B, 3, H, W) in [-1, 1], which are noised to there
    """
    reads = GarmentReads()
    denoise_once(module, batch, pictures, record_reads(reads))
    return reads


def warped_garments(
    module: TryOnModule, batch: TryOnBatch, reads: GarmentReads
) -> dict[tuple[int, int], Tensor]:
    """{grid of the person's tokens: garments (B, 3, H, W) warped by it}, coarse grids first.

    Rows that read no garment are white.
    """
    settings = module.config.model.flow_loss
    everyone = torch.arange(len(batch))
    fields: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for layer in module.flow_layers(reads, settings.smallest_layer):
        _, rows = taking_part(layer.read.rows, everyone, len(batch))
        field = flow_field(layer, settings.temperature).mean(1)
        fields[layer.person].append((rows, field))
    warped = {}
    for grid, layers in sorted(fields.items()):
        rows = index_on(batch.garment.device, layers[0][0])
        mean = torch.stack([field for _, field in layers]).mean(0)
        pictures = torch.ones_like(batch.garment, dtype=torch.float32)
        moved = warp_by_flow(batch.garment[rows].float(), mean, settings)
        if not settings.upsampled:
            moved = F.interpolate(moved, pictures.shape[-2:], mode="nearest")
        pictures[rows] = moved
        warped[grid] = pictures
    return warped


def flow_grid(
    module: TryOnModule, batch: TryOnBatch, pictures: Tensor, reads: GarmentReads
) -> np.ndarray:
    """The pictures named above, a pair a row, uint8 (H', W', 3)."""
    columns = {"garment": batch.garment}
    for (height, width), warped in warped_garments(module, batch, reads).items():
        columns[f"{height} x {width}"] = warped
    columns["person"] = pictures if batch.truth is None else batch.truth
    rows = list(zip(*map(as_images, columns.values()), strict=True))
    return np.asarray(picture_grid(rows, list(columns)))
