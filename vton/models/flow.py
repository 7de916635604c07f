"""The flow loss of Leffa (Zhou et al., CVPR 2025, arXiv 2412.08486, Section 3.3) for any attention.

Attention from person to garment tells, for each place on the person, where in the garment picture
it reads. The expected places are a flow field, which warps the garment picture. The warped garment
must look like the garment on the person:

    A_i  = softmax(q_i k_i^T / (tau sqrt d))     head i, over the garment's tokens alone     Eq. 2
    F    = mean_i A_i C                          C: places of the garment's tokens           Eq. 3
    L    = [t < bound] sum_layers |m I_garment(F) - m I_person|^2                            Eq. 4

Maps of N x M tokens are not built: A_i C is ordinary attention with places as values.

By default the settings (FlowLossConfig) have the paper's form; over_layers=mean and
difference=smooth_l1 give the form of the code that its authors published for four days.
"""
# Shapes: B batch, R rows of it that read a garment, N heads, Q person tokens, M garment tokens,
# d head width, H W picture, h w grid of tokens

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vton.config import FlowLossConfig
from vton.models.attention import GarmentRead, token_grid
from vton.models.precision import without_autocast
from vton.models.rows import Rows, index_on, select_rows

# From a number of garment tokens to their grid: TryOnModule.garment_places.
GridOf = Callable[[int], tuple[int, int] | None]


class FlowLayer(NamedTuple):
    """A layer whose queries and garment keys have places."""

    read: GarmentRead
    person: tuple[int, int]  # height and width of the grid of the queries
    garment: tuple[int, int]  # of the grid of the keys, or of the last ones if it has fewer


def flow_layers(
    reads: Iterable[GarmentRead],
    size: tuple[int, int],
    garment_grid: GridOf,
    smallest: float = 0.0,
) -> list[FlowLayer]:
    """The layers with places, with grids of at least `smallest` of the picture's height."""
    layers = []
    for read in reads:
        person = token_grid(read.q.shape[-2], size)
        garment = garment_grid(read.k.shape[-2])
        if person and garment and person[0] / size[0] >= smallest:
            layers.append(FlowLayer(read, person, garment))
    return layers


# ---- from attention to places ----


def corner_places(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(h w, 2): x and y of each token, row by row; those of the corners are -1 and 1.

    A grid of one row or column has -1 there, as torch.linspace gives it.
    """
    y = torch.linspace(-1, 1, grid[0], device=device)
    x = torch.linspace(-1, 1, grid[1], device=device)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def expected_places(q: Tensor, k: Tensor, places: Tensor, temperature: float) -> Tensor:
    """(R, N, Q, 2): the mean of `places` (M, 2) under each head's attention. At least in float32.

    q: (R, N, Q, d); k: (R, N, M, d).
    """
    width = q.shape[-1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q):
        # Fused attention kernels need values that are as wide as the keys.
        values = k.new_zeros((*k.shape[:-1], max(width, 2)), dtype=dtype)
        values[..., :2] = places
        scale = 1 / (temperature * width**0.5)
        out = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), values, scale=scale)
    return out[..., :2]


def flow_field(layer: FlowLayer, temperature: float, rows: Tensor | None = None) -> Tensor:
    """(R, N, 2, h, w): where in the garment picture every head reads, for each person token.

    rows: which of the layer's rows to compute, on the CPU; None: all
    """
    q, k = layer.read.q, layer.read.k
    height, width = layer.garment
    k = k[..., -height * width :, :]  # a class token comes first
    if rows is not None:
        q, k = select_rows(q, rows), select_rows(k, rows)
    places = expected_places(q, k, corner_places(layer.garment, q.device), temperature)
    return places.unflatten(2, layer.person).permute(0, 1, 4, 2, 3)


# ---- from places to the loss ----


def warp_by_flow(garment: Tensor, field: Tensor, settings: FlowLossConfig) -> Tensor:
    """The garment picture (R, 3, H, W) at the places of a field (R, 2, h, w): (R, 3, H', W').

    H', W' are the picture's size, to which the field is enlarged, or without that the field's.
    Black where a place lies outside.
    """
    corners = settings.align_corners
    if settings.upsampled:
        field = F.interpolate(
            field, garment.shape[-2:], mode="bilinear", align_corners=corners
        ).clamp(-1, 1)
    else:
        garment = shrunk(garment, field.shape[-2:])
    grid = field.permute(0, 2, 3, 1)
    return F.grid_sample(garment, grid, "bilinear", "zeros", align_corners=corners)


def shrunk(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture at a layer's size, bilinear without a low-pass."""
    return F.interpolate(picture, size, mode="bilinear", align_corners=False)


def layer_losses(
    field: Tensor, garment: Tensor, person: Tensor, mask: Tensor, settings: FlowLossConfig
) -> Tensor:
    """(R,): what one layer's warped garment differs from the person inside the mask.

    field: (R, N, 2, h, w); pictures (R, 3, H, W) in [-1, 1]; mask (R, 1, H, W), 1 = garment on the
    person. The mean is over all values of the picture, those outside the mask counted as 0.
    """
    if settings.heads == "mean":
        field = field.mean(1, keepdim=True)
    heads = field.shape[1]
    if not settings.upsampled:
        person = shrunk(person, field.shape[-2:])
        mask = F.interpolate(mask, field.shape[-2:], mode="nearest")
    repeated = garment.repeat_interleave(heads, 0)
    warped = warp_by_flow(repeated, field.flatten(0, 1), settings).unflatten(0, (-1, heads))
    mask = mask[:, None]
    worn = (person[:, None] * mask).expand_as(warped)
    if settings.difference == "smooth_l1":
        difference = F.smooth_l1_loss(warped * mask, worn, reduction="none")
    else:
        difference = (warped * mask - worn) ** 2
    return difference.flatten(1).mean(1)


def flow_losses(
    layers: Iterable[FlowLayer],
    acts: Tensor,
    garment: Tensor,
    person: Tensor,
    mask: Tensor,
    settings: FlowLossConfig,
) -> Tensor:
    """(L, B): the loss of every layer and sample, not yet weighted; 0 where it does not act.

    acts (B,) bool, on the CPU: samples on which it acts, in the layers where they read a garment.
    Pictures (B, 3, H, W) in [-1, 1], mask (B, 1, H, W).
    """
    wanted = acts.nonzero().flatten()
    losses = []
    for layer in layers:
        dtype = torch.promote_types(layer.read.q.dtype, torch.float32)
        inside, rows = taking_part(layer.read.rows, wanted, len(acts))
        layer_loss = person.new_zeros(len(acts), dtype=dtype)
        if len(rows):
            field = flow_field(layer, settings.temperature, inside)
            rows = index_on(field.device, rows)
            pictures = (picture[rows].to(dtype) for picture in (garment, person, mask))
            with without_autocast(field):
                each = layer_losses(field, *pictures, settings)
            layer_loss = layer_loss.index_add(0, rows, each)
        losses.append(layer_loss)
    return torch.stack(losses)


def taking_part(rows: Rows | None, wanted: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which of a layer's own rows are `wanted` rows of the batch, and which rows of the batch these
    are, (R,) int64 each, on the CPU.

    rows: which rows of the batch of `count` the layer has; None: all
    """
    own = torch.arange(count)
    if rows is not None:
        own = own[rows]
    inside = torch.isin(own, wanted).nonzero().flatten()
    return inside, own[inside]


def over_layers(losses: Tensor, settings: FlowLossConfig) -> Tensor:
    """Scalar of (L, B): sum or mean of layers, mean over the batch. Not yet weighted."""
    total = losses.sum(0) if settings.over_layers == "sum" else losses.mean(0)
    return total.mean()
