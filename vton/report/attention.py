"""Where the person reads the garment: an architecture's attention as pictures.

output   the sampled picture; its garment's pixels in the colour of the garment's place they read
places   the garment, every place in its own colour
1, 2, 3  the garment, and on it the weights of the pixel with that number on the output
"""
# Shapes: B batch, H W height and width of pictures, h w a grid of tokens

from __future__ import annotations

import math
from contextlib import AbstractContextManager
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
ACROSS = (0.05, 0.5, 0.95)  # where the chosen pixels lie in the garment, from left to right
TINT = 0.6  # weight of colours over the picture
HEAT_TINT = 0.8  # weight of HEAT where a weight is the largest
TITLES = ["output", "places", *(str(1 + number) for number in range(len(ACROSS)))]


@torch.no_grad()
def attention_maps(module: TryOnModule, batch: TryOnBatch, pictures: Tensor) -> AttentionMaps:
    """How much the tokens of a person read those of the garment.

    pictures: (B, 3, H, W) in [-1, 1], which are noised to the middle of the sampler's schedule and
        denoised once
    """
    maps = AttentionMaps()
    denoise_once(module, batch, pictures, record_attention(maps))
    return maps


@torch.no_grad()
def denoise_once(
    module: TryOnModule, batch: TryOnBatch, pictures: Tensor, recording: AbstractContextManager
) -> None:
    """Noise pictures (B, 3, H, W) to the middle of the sampler's schedule and denoise them there.

    recording: is open while the network runs
    """
    x0 = module.latents_of(replace(batch, person=pictures, encoded=None))
    times = sampling_times(module.config.sampler, module.objective)
    t = times[len(times) // 2].expand(len(batch))
    draws = [noise.generator(module.config.seed, "attention", pair) for pair in batch.pair_name]
    z_t = module.objective.add_noise(x0, noise.normal(x0.shape[1:], draws, x0), t)
    conditions = module.condition(batch)
    features = module.denoiser.garment_features(conditions, t)
    with recording:
        module.denoiser.denoise(z_t, t, conditions, features)


def garment_attention(module: TryOnModule, maps: AttentionMaps) -> Tensor | None:
    """Weights (B, h', w', h, w) of garment places (h, w) for each person place (h', w').

    They sum to 1 for each person place: the mean of heads and layers, coarser grids interpolated.
    None where no layer reads garment tokens that have places.
    """
    placed = []
    for (queries, tokens), weights in maps.means().items():
        person = token_grid(queries, module.config.data.size)
        garment = module.garment_places(tokens)
        if person and garment:
            weights = weights[..., -math.prod(garment) :]  # a class token comes first
            placed.append(weights.unflatten(2, garment).unflatten(1, person))
    if not placed:
        return None
    finest = torch.tensor([weights.shape[1:] for weights in placed]).amax(0).tolist()
    total = 0
    for weights in placed:
        weights = _resized(weights, tuple(finest[:2]), tuple(finest[2:]))
        total = total + weights / weights.sum((3, 4), keepdim=True)
    return total / len(placed)


def attention_grid(
    module: TryOnModule, batch: TryOnBatch, pictures: Tensor, maps: AttentionMaps
) -> np.ndarray | None:
    """The pictures named above, a pair a row, uint8 (H', W', 3); None where `garment_attention` is.

    maps: `attention_maps` of the batch and its pictures (B, 3, H, W) in [-1, 1]
    """
    weights = garment_attention(module, maps)
    if weights is None:
        return None
    region = batch.agnostic_mask if batch.truth_garment_mask is None else batch.truth_garment_mask
    samples = zip(pictures, batch.garment, region[:, 0] > 0, weights.cpu(), strict=True)
    rows = [_row(*sample) for sample in samples]
    return np.asarray(picture_grid(rows, TITLES))


def chosen_pixels(region: Tensor) -> list[tuple[int, int]]:
    """(x, y) of one pixel of the region (H, W) bool for each of ACROSS, halfway down its column.

    All are the middle of the picture where the region is empty.
    """
    y, x = region.cpu().nonzero(as_tuple=True)
    if not len(x):
        return [(region.shape[1] // 2, region.shape[0] // 2)] * len(ACROSS)
    across = x.sort().values
    pixels = []
    for part in ACROSS:
        column = across[int(part * (len(x) - 1))].item()
        pixels.append((column, y[x == column].median().item()))
    return pixels


def _row(picture: Tensor, garment: Tensor, region: Tensor, weights: Tensor) -> list[Image.Image]:
    """picture and garment (3, H, W), region (H, W) bool, weights (h', w', h, w)."""
    height, width = picture.shape[-2:]
    garment = pixels_of(garment)
    pixels = chosen_pixels(region)
    output = _image(_coloured(pixels_of(picture), region.cpu(), weights))
    _mark(output, pixels)
    row = [output, _image(torch.lerp(garment, _places(garment.shape[:2]), TINT))]
    for x, y in pixels:
        heat = weights[y * weights.shape[0] // height, x * weights.shape[1] // width]
        row.append(_image(_heated(garment, heat)))
    return row


def pixels_of(picture: Tensor) -> Tensor:
    """(3, H, W) in [-1, 1] to (H, W, 3) in [0, 255], float."""
    return to_uint8(picture).permute(1, 2, 0).cpu().float()


def _coloured(picture: Tensor, region: Tensor, weights: Tensor) -> Tensor:
    """The picture (H, W, 3), in its region the colours of the places that each pixel reads."""
    places = _places(weights.shape[2:])
    colours = torch.einsum("abyx,yxc->cab", weights, places)
    colours = F.interpolate(colours[None], picture.shape[:2], mode="bilinear")[0].permute(1, 2, 0)
    return torch.where(region[..., None], torch.lerp(picture, colours, TINT), picture)


def _heated(garment: Tensor, weights: Tensor) -> Tensor:
    """The garment (H, W, 3), and on it the weights (h, w) relative to the largest."""
    heat = (weights / weights.max())[None, None]
    heat = F.interpolate(heat, garment.shape[:2], mode="bilinear")[0, 0, ..., None]
    colour = garment.new_tensor(HEAT).expand_as(garment)
    return torch.lerp(garment, colour, HEAT_TINT * heat)


def _places(size: tuple[int, int]) -> Tensor:
    """A colour for each place, (h, w, 3) in [0, 255]: red to the right, green downwards."""
    height, width = size
    down = torch.linspace(0, 255, height)
    right = torch.linspace(0, 255, width)
    y, x = torch.meshgrid(down, right, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 128)], dim=-1)


def _mark(picture: Image.Image, pixels: list[tuple[int, int]]) -> None:
    """Write the number of each chosen pixel on the picture."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, picture.height // 12))
    white, black = (255, 255, 255), (0, 0, 0)
    for number, pixel in enumerate(pixels, 1):
        draw.text(pixel, str(number), white, font, "mm", stroke_width=1, stroke_fill=black)


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.round().to(torch.uint8).numpy())


def _resized(weights: Tensor, person: tuple[int, int], garment: tuple[int, int]) -> Tensor:
    """(B, h1, w1, h2, w2) on finer grids, bilinear."""
    batch, h1, w1, h2, w2 = weights.shape
    x = F.interpolate(weights.reshape(batch * h1 * w1, 1, h2, w2), garment, mode="bilinear")
    x = x.reshape(batch, h1 * w1, -1).transpose(1, 2).reshape(batch, -1, h1, w1)
    x = F.interpolate(x, person, mode="bilinear").flatten(2).transpose(1, 2)
    return x.reshape(batch, *person, *garment)
