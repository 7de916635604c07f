"""Where the person looks in the garment: an architecture's attention as pictures.

output    the sampled picture; its garment's pixels in the colour of the place in the garment that they look at
places    the garment, every place in its own colour
1, 2, 3   the garment, and on it the weights of the pixel with that number on the output
"""
# Shapes: B batch, H W height and width of pictures, Q person tokens, M garment tokens, h w a grid
# of tokens

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from vton.data.sample import TryOnBatch
from vton.diffusion import noise
from vton.diffusion.solvers import sampling_times
from vton.metrics.pictures import to_uint8
from vton.models.attention import AttentionMaps, record_attention, token_grid
from vton.models.base import TryOnModule
from vton.report.grid import picture_grid

HEAT = (255, 64, 0)
ACROSS = (
    0.05,
    0.5,
    0.95,
)  # where the chosen pixels lie in the garment's pixels, from left to right
TINT = 0.6  # weight of colours over the picture


@torch.no_grad()
def attention_maps(module: TryOnModule, batch: TryOnBatch, pictures: Tensor) -> AttentionMaps:
    """How much persons' tokens read garments' tokens.

    pictures: (B, 3, H, W) in [-1, 1], which are noised to the middle of the sampler's schedule and
    denoised once.
    """
    x0 = module.latents_of(replace(batch, person=pictures, encoded=None))
    times = sampling_times(module.config.sampler, module.objective)
    t = times[len(times) // 2].to(x0.device).expand(len(batch))
    draws = [noise.generator(module.config.seed, "attention", pair) for pair in batch.pair_id]
    z_t = module.objective.add_noise(x0, noise.normal(x0.shape[1:], draws, x0), t)
    conditions = module.condition(batch)
    features = module.denoiser.garment_features(conditions, t)
    with record_attention() as maps:
        module.denoiser.denoise(z_t, t, conditions, features)
    return maps


def garment_attention(module: TryOnModule, maps: AttentionMaps) -> Tensor | None:
    """Weights (B, h', w', h, w) of garment places (h, w) for person places (h', w'): 1 in sum for
    each person place.

    The mean of heads and layers, coarser grids interpolated. None where no layer reads garment
    tokens with places.
    """
    placed = []
    for (queries, tokens), weights in maps.means().items():
        person, garment = (
            token_grid(queries, module.config.data.size),
            module.garment_places(tokens),
        )
        if person and garment:
            weights = weights[..., -math.prod(garment) :]  # a class token comes first
            placed.append(weights.unflatten(2, garment).unflatten(1, person))
    if not placed:
        return None
    person, garment = (
        tuple(max(m.shape[i] for m in placed) for i in sides) for sides in ((1, 2), (3, 4))
    )
    resized = [_resized(weights, person, garment) for weights in placed]
    return sum(weights / weights.sum((3, 4), keepdim=True) for weights in resized) / len(resized)


def attention_grid(
    module: TryOnModule, batch: TryOnBatch, pictures: Tensor, maps: AttentionMaps
) -> np.ndarray | None:
    """The pictures named above, a pair a row, uint8 (H', W', 3); None where `garment_attention` is.

    maps: what `attention_maps` says of the batch and its pictures (B, 3, H, W) in [-1, 1].
    """
    weights = garment_attention(module, maps)
    if weights is None:
        return None
    region = batch.agnostic_mask if batch.truth_garment_mask is None else batch.truth_garment_mask
    rows = [
        _row(*parts)
        for parts in zip(pictures, batch.garment, region[:, 0] > 0, weights.cpu(), strict=True)
    ]
    return np.asarray(
        picture_grid(rows, ["output", "places", *(str(1 + n) for n in range(len(ACROSS)))])
    )


def _row(picture: Tensor, garment: Tensor, region: Tensor, weights: Tensor) -> list[Image.Image]:
    """picture and garment (3, H, W), region (H, W) bool, weights (h', w', h, w)."""
    size = picture.shape[-2:]
    picture, garment = (to_uint8(x).permute(1, 2, 0).cpu().float() for x in (picture, garment))
    places = _places(weights.shape[2:])  # (h, w, 3)
    looked_at = torch.einsum("abyx,yxc->cab", weights, places)
    looked_at = F.interpolate(looked_at[None], size, mode="bilinear")[0].permute(1, 2, 0)
    shown = torch.where(region.cpu()[..., None], torch.lerp(picture, looked_at, TINT), picture)
    output = _image(shown)
    pixels = chosen_pixels(region)
    _mark(output, pixels)
    row = [output, _image(torch.lerp(garment, _places(garment.shape[:2]), TINT))]
    for x, y in pixels:
        heat = weights[y * weights.shape[0] // size[0], x * weights.shape[1] // size[1]]
        heat = F.interpolate((heat / heat.max())[None, None], garment.shape[:2], mode="bilinear")[
            0, 0, ..., None
        ]
        row.append(
            _image(torch.lerp(garment, garment.new_tensor(HEAT).expand_as(garment), 0.8 * heat))
        )
    return row


def chosen_pixels(region: Tensor) -> list[tuple[int, int]]:
    """(x, y) of one pixel for each of ACROSS: halfway down the region (H, W) bool in that column;
    the middle of an empty one.
    """
    y, x = region.cpu().nonzero(as_tuple=True)
    if not len(x):
        return [(region.shape[1] // 2, region.shape[0] // 2)] * len(ACROSS)
    across = x.sort().values
    columns = [across[int(part * (len(x) - 1))].item() for part in ACROSS]
    return [(column, y[x == column].median().item()) for column in columns]


def _places(size: tuple[int, int]) -> Tensor:
    """A colour for each place, (h, w, 3) in [0, 255]: red to the right, green downwards."""
    y, x = torch.meshgrid(*(torch.linspace(0, 255, side) for side in size), indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 128)], dim=-1)


def _mark(picture: Image.Image, pixels: list[tuple[int, int]]) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(10, picture.height // 12))
    for number, pixel in enumerate(pixels, 1):
        draw.text(
            pixel,
            str(number),
            (255, 255, 255),
            font,
            anchor="mm",
            stroke_width=1,
            stroke_fill=(0, 0, 0),
        )


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.round().to(torch.uint8).numpy())


def _resized(weights: Tensor, person: tuple[int, int], garment: tuple[int, int]) -> Tensor:
    """(B, h1, w1, h2, w2) on finer grids, bilinear."""
    batch, h1, w1, h2, w2 = weights.shape
    x = F.interpolate(weights.reshape(batch * h1 * w1, 1, h2, w2), garment, mode="bilinear")
    x = x.reshape(batch, h1 * w1, -1).transpose(1, 2).reshape(batch, -1, h1, w1)
    x = F.interpolate(x, person, mode="bilinear").flatten(2).transpose(1, 2)
    return x.reshape(batch, *person, *garment)
