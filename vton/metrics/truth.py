"""What all methods are compared with: the truth of a few pairs, region by region."""
# Shapes: B pairs that count in a region, H W height and width of the comparison

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vton.metrics import prepare
from vton.metrics.extractors import Extractors
from vton.metrics.protocol import Protocol
from vton.metrics.tally import Region
from vton.metrics.target import Target
from vton.models.perceptual import Statistics


@dataclass
class RegionTruth:
    """The truth of one region, prepared by the protocol, with its features."""

    region: Region
    pair_ids: list[str]  # of the pairs that count in this region
    rows: Tensor  # their places among all pairs at hand
    mask: Tensor | None = None  # float (B, 1, H, W); None for the whole picture
    pictures: Tensor | None = None  # uint8 (B, 3, H, W); None for real unpaired pairs
    lpips: list[Tensor] | None = None
    dists: list[Statistics] | None = None


def truths_of(targets: Sequence[Target], extractors: Extractors) -> list[RegionTruth]:
    """The regions of a few targets, which have a truth all or none."""
    pictures = lpips = dists = None
    if targets[0].truth is not None:
        prepared = []
        for target in targets:
            size = comparison_size(target, extractors.protocol)
            prepared.append(prepare.truth(target.truth, size, extractors.protocol))
        pictures = torch.stack(prepared).to(extractors.device)
        if extractors.lpips is not None:
            lpips = extractors.lpips_features(pictures)
        if extractors.dists is not None:
            dists = extractors.dists_features(pictures)

    truths = []
    for region, places in regions_of(targets):
        rows = torch.tensor(places, device=extractors.device)
        truth = RegionTruth(region, [targets[place].pair_id for place in places], rows)
        if region == "garment":
            masks = []
            for place in places:
                size = comparison_size(targets[place], extractors.protocol)
                masks.append(prepare.resize_mask(targets[place].garment_mask, size))
            truth.mask = torch.stack(masks).float().to(extractors.device)
        if pictures is not None:
            truth.pictures = pictures[rows]
        if lpips is not None:
            truth.lpips = [layer[rows] for layer in lpips]
        if dists is not None:
            layers = [layer[rows] for layer in dists]
            truth.dists = extractors.dists.statistics(layers, truth.mask)
        truths.append(truth)
    return truths


def regions_of(targets: Sequence[Target]) -> Iterator[tuple[Region, list[int]]]:
    """Each region with the places of the targets that count in it."""
    yield "image", list(range(len(targets)))
    places = []
    for place, target in enumerate(targets):
        if target.garment_mask is not None and target.garment_mask.any():
            places.append(place)
    if places:
        yield "garment", places


def edge_and_texture(mask: Tensor, share: float) -> dict[str, Tensor]:
    """A garment's mask (B, 1, H, W) of 0 and 1 as its edge and, eroded by the edge, its inside.

    share: width of the edge, of the picture's shorter side; at least a pixel. The eroding element
    is a square. What the picture's border cuts off is no edge.
    """
    width = max(1, round(min(mask.shape[-2:]) * share))
    outside = 1 - mask
    grown = F.max_pool2d(outside, (2 * width + 1, 1), 1, (width, 0))
    grown = F.max_pool2d(grown, (1, 2 * width + 1), 1, (0, width))
    inside = 1 - grown
    return {"edge": mask - inside, "texture": inside}


def comparison_size(target: Target, protocol: Protocol) -> tuple[int, int]:
    """Height and width at which a target and its predictions are compared."""
    return protocol.size or target.size
