"""Small textured pictures of dressed figures, as batches: metrics must tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from tests.batches import random_sample
from vton.data.sample import CATEGORIES, TryOnBatch, TryOnSample
from vton.metrics.extractors import Extractors
from vton.metrics.pictures import to_uint8
from vton.metrics.results import Row
from vton.metrics.rows import compute_rows
from vton.metrics.scorer import Scorer
from vton.metrics.tally import Measurements
from vton.metrics.target import Method, Prediction, targets_of

SIZE = (64, 48)


def dressed_sample(index: int, order: str = "paired", category: str = "upper_body") -> TryOnSample:
    """A striped garment with grain on a smooth background; the garment differs with `index`."""
    sample = random_sample(index, SIZE)
    generator = torch.Generator().manual_seed(1000 + index)
    height, width = SIZE
    colours = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
    rows = torch.arange(height).view(1, height, 1)
    odd = rows // (2 + index % 4) % 2 > 0
    stripes = torch.where(odd, colours[0], colours[1]).expand(3, height, width)
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
    samples = []
    for index in range(count):
        samples.append(dressed_sample(index, order, CATEGORIES[index % categories]))
    return [TryOnBatch.collate(samples[start : start + size]) for start in range(0, count, size)]


def unchanged(pictures: torch.Tensor) -> torch.Tensor:
    return pictures


class Remembered:
    """A method: the batches' truths by pair id, changed by a function of uint8 (B, 3, H, W)."""

    def __init__(self, batches: list[TryOnBatch], change=unchanged):
        self.pictures = {}
        for batch in batches:
            changed = change(to_uint8(batch.truth))
            self.pictures |= dict(zip(batch.pair_id, changed, strict=True))

    def __call__(self, batch: TryOnBatch) -> Prediction:
        return Prediction(torch.stack([self.pictures[pair_id] for pair_id in batch.pair_id]))


def measured(
    extractors: Extractors,
    batches: Sequence[TryOnBatch],
    methods: dict[str, Method],
    reference: Sequence[TryOnBatch] = (),
) -> Measurements:
    """Every method's pictures of the batches, against the persons of `reference`."""
    scorer = Scorer(extractors)
    for batch in reference:
        scorer.update_reference(targets_of(batch))
    for batch in batches:
        predictions = {name: method(batch) for name, method in methods.items()}
        scorer.update(targets_of(batch), predictions)
    return scorer.measured


def rows_by_method(extractors: Extractors, results: Measurements) -> dict[str, list[Row]]:
    rows = {}
    for (_, name), tally in results.tallies.items():
        rows[name] = compute_rows(
            tally,
            results.reference,
            extractors,
            model=name,
            data="synthetic",
            split="test",
            provenance={"seed": 0},
        )
    return rows


def rows_of_one(
    extractors: Extractors, batches: Sequence[TryOnBatch], method: Method, reference=None
) -> list[Row]:
    """Rows of one method; the reference is the batches' persons unless another is given."""
    reference = batches if reference is None else reference
    results = measured(extractors, batches, {"m": method}, reference)
    return rows_by_method(extractors, results)["m"]


class TinyExtractor(nn.Module):
    """In Inception's place, where it matters what is done with features, not what they are."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.filters = nn.Conv2d(3, width, 7, stride=6)

    def forward(self, x):
        return self.filters((x - 128) / 128).relu().mean((2, 3))
