"""Small textured pictures of dressed figures, as batches: what metrics must be able to tell apart."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tests.batches import random_sample
from vton.data.sample import CATEGORIES, TryOnBatch, TryOnSample

SIZE = (64, 48)


def dressed_sample(index: int, order: str = "paired", category: str = "upper_body") -> TryOnSample:
    """A striped garment with grain on a smooth background; the garment differs with `index`."""
    sample = random_sample(index, SIZE)
    generator = torch.Generator().manual_seed(1000 + index)
    height, width = SIZE
    colours = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
    rows = torch.arange(height).view(1, height, 1)
    stripes = torch.where(rows // (2 + index % 4) % 2 > 0, colours[0], colours[1]).expand(
        3, height, width
    )
    grain = 0.1 * torch.randn(3, height, width, generator=generator)
    truth = torch.where(sample.warped_mask > 0, stripes, sample.person).add(grain).clamp(-1, 1)
    garment_id = sample.garment_id if order == "paired" else f"{index + 1:05d}_00"
    person = truth if order == "paired" else sample.person
    return replace(
        sample, order=order, category=category, garment_id=garment_id, person=person, truth=truth
    )


def dressed_batches(
    count: int, size: int, order: str = "paired", categories: int = 1
) -> list[TryOnBatch]:
    """`count` pairs in batches of `size`; sample i is of category i modulo `categories`."""
    samples = [
        dressed_sample(index, order, CATEGORIES[index % categories]) for index in range(count)
    ]
    return [TryOnBatch.collate(samples[start : start + size]) for start in range(0, count, size)]


class Remembered:
    """Pictures in memory, by pair id, changed by a function of uint8 (B, 3, H, W)."""

    def __init__(self, batches: list[TryOnBatch], change=lambda pictures: pictures):
        from vton.metrics.pictures import to_uint8

        self.pictures = {
            pair_id: picture
            for batch in batches
            for pair_id, picture in zip(batch.pair_id, change(to_uint8(batch.truth)), strict=True)
        }

    def __call__(self, pair_ids):
        return torch.stack([self.pictures[pair_id] for pair_id in pair_ids])


class TinyExtractor(nn.Module):
    """In Inception's place, where it matters what is done with features rather than what they are."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.filters = nn.Conv2d(3, width, 7, stride=6)

    def forward(self, x):
        return self.filters((x - 128) / 128).relu().mean((2, 3))
