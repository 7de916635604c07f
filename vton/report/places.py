"""How far from the true place attention reads the garment: what rendered data alone can measure.

A pixel of a worn garment shows one place of the in-shop picture, which the renderer knows
(vton/data/synthetic/correspondence.py). While the sampler draws, every layer that reads the garment
says where each of the person's tokens reads: the mean place of the garment's tokens under its
attention, over heads. The error is the distance between the two in the garment picture, in heights
of that picture. It is measured on the tokens that the truth covers by at least a half with
garment.

Beside it stand two errors that need no network: of a token that reads its own place of the
picture, and of one that reads the whole picture evenly.
"""
# Shapes: B pairs, H W picture, h w grid of a layer's tokens, Q = h w

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vton.data.sample import TryOnBatch
from vton.diffusion.denoiser import Conditions, Denoiser, Features
from vton.models.attention import GarmentRead, record_reads
from vton.models.base import TryOnModule
from vton.models.flow import FlowLayer, expected_places, flow_layers, taking_part
from vton.models.rows import select_rows
from vton.report.attention import pixels_of
from vton.report.grid import picture_grid

COVERED = 0.5  # share of a token's pixels that show the garment, for it to count
TINT = 0.7  # weight of a place's colour over the picture


@dataclass
class LayerError:
    """One layer that reads the garment, by its number in the order of execution."""

    layer: int
    grid: tuple[int, int]  # height, width of the person's tokens
    tokens: int  # that count
    steps: list[float] = field(default_factory=list)  # the mean error at each sampling step

    @property
    def mean(self) -> float:
        return sum(self.steps) / len(self.steps)


@dataclass
class PlaceErrors:
    """Errors of an architecture on a few pairs of one order, in heights of the garment picture."""

    pairs: int
    timesteps: list[float]  # of the sampling steps
    layers: list[LayerError]
    own_place: float  # of tokens of the finest grid that read their own place
    everywhere: float  # of those that read the whole picture evenly

    @property
    def mean(self) -> float:
        """Over layers and steps, each alike."""
        return sum(layer.mean for layer in self.layers) / len(self.layers)

    @property
    def best(self) -> LayerError:
        """The layer that comes nearest to the true places."""
        return min(self.layers, key=lambda layer: layer.mean)

    def as_json(self) -> dict:
        layers = [asdict(layer) | {"mean": layer.mean} for layer in self.layers]
        return asdict(self) | {"mean": self.mean, "layers": layers}


@contextmanager
def watching(denoiser: Denoiser, watch: Callable[[Tensor, int, list[GarmentRead]], None]):
    """Inside, every step of the denoiser shows t, its rows, and what its layers read."""
    plain = denoiser.denoise

    def denoise(z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        with record_reads() as reads:
            prediction = plain(z_t, t, conditions, features)
        watch(t, len(z_t), reads.layers)
        return prediction

    denoiser.__dict__["denoise"] = denoise
    try:
        yield
    finally:
        del denoiser.__dict__["denoise"]


class Watch:
    """Errors of a few batches, and the places that each pair's tokens read.

    Raises nothing where no layer reads garment tokens with places: `errors` is None then.
    """

    def __init__(self, module: TryOnModule):
        self.module = module
        self.size = module.config.data.size
        self.sums: dict[tuple[int, int], float] = {}  # by step and layer
        self.counts: dict[tuple[int, int], int] = {}
        self.grids: dict[int, tuple[int, int]] = {}
        self.timesteps: list[float] = []
        self.references = torch.zeros(2, dtype=torch.float64)  # own place, everywhere
        self.reference_tokens = 0
        self.pairs = 0
        self.read: dict[int, Tensor] = {}  # of the last batch: places (B, h, w, 2) by layer
        self.steps = 0
        self.truth = torch.empty(0)

    def draw(self, batch: TryOnBatch, truth: Tensor, seed: int) -> Tensor:
        """Pictures (B, 3, H, W) of a batch, as the module draws them.

        truth: (B, H, W, 2) x and y in [0, 1] of the garment picture; NaN where there is no garment
        """
        self.truth, self.steps, self.read = truth.to(batch.person.device), 0, {}
        with watching(self.module.denoiser, self.watch):
            pictures = self.module.generate(batch, seed)
        self.pairs += len(batch)
        self._count_references()
        return pictures

    def watch(self, t: Tensor, rows: int, reads: list[GarmentRead]) -> None:
        """One step of the sampler: conditional rows are the last ones."""
        if self.steps == len(self.timesteps):
            self.timesteps.append(float(t[-1]))
        layers = flow_layers(reads, self.size, self.module.garment_places)
        wanted = torch.arange(rows - len(self.truth), rows)
        for number, layer in enumerate(layers):
            inside, own = taking_part(layer.read.rows, wanted, rows)
            places = attended(layer, inside, self.size)
            truth = select_rows(self.truth, own - wanted[0])
            truth, counts = true_places(truth, layer.person, self.size)
            distance = (places - truth).norm(dim=-1)[counts]
            key = (self.steps, number)
            self.sums[key] = self.sums.get(key, 0.0) + distance.double().sum().item()
            self.counts[key] = self.counts.get(key, 0) + len(distance)
            self.grids[number] = layer.person
            self.read[number] = places
        self.steps += 1

    def _count_references(self) -> None:
        if not self.grids:
            return
        grid = max(self.grids.values())
        truth, counts = true_places(self.truth, grid, self.size)
        own = centres(grid, self.size, self.truth.device).unflatten(0, grid).expand_as(truth)
        middle = own.new_tensor([self.size[1] / self.size[0] / 2, 0.5])
        for place, read in enumerate((own, middle.expand_as(truth))):
            distance = (read - truth).norm(dim=-1)[counts]
            self.references[place] += distance.double().sum().item()
        self.reference_tokens += int(counts.sum())

    def errors(self) -> PlaceErrors | None:
        """None where no layer reads garment tokens with places, or no token counts."""
        layers = []
        for number, grid in self.grids.items():
            keys = [key for key in self.sums if key[1] == number]
            if all(self.counts[key] for key in keys):
                steps = [self.sums[key] / self.counts[key] for key in sorted(keys)]
                layers.append(LayerError(number, grid, self.counts[keys[0]], steps))
        if not layers or not self.reference_tokens:
            return None
        own, everywhere = (self.references / self.reference_tokens).tolist()
        return PlaceErrors(self.pairs, self.timesteps, layers, own, everywhere)


# ---- places ----


def centres(grid: tuple[int, int], size: tuple[int, int], device: torch.device) -> Tensor:
    """(h w, 2): x and y of the tokens' middles, in heights of a picture of this size."""
    height, width = grid
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width * (size[1] / size[0])
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def attended(layer: FlowLayer, rows: Tensor, size: tuple[int, int]) -> Tensor:
    """(R, h, w, 2): where each person token of these rows reads, the mean of heads."""
    height, width = layer.garment
    q = select_rows(layer.read.q, rows)
    k = select_rows(layer.read.k, rows)[..., -height * width :, :]
    places = expected_places(q, k, centres(layer.garment, size, q.device), temperature=1.0)
    return places.mean(1).unflatten(1, layer.person)


def true_places(
    truth: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(B, h, w, 2) mean true place of each token's garment pixels, in heights of the picture, and
    (B, h, w) bool: whether the token counts.
    """
    shown = truth[..., :1].isfinite()
    known = torch.cat([truth.nan_to_num(), shown.to(truth.dtype)], -1).permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(known * known[:, 2:], grid).permute(0, 2, 3, 1)
    share = pooled[..., 2:]
    places = pooled[..., :2] / share.clamp(min=1e-6)
    return places * places.new_tensor([size[1] / size[0], 1.0]), share[..., 0] >= COVERED


# ---- as a picture ----


def places_grid(
    batch: TryOnBatch, pictures: Tensor, truth: Tensor, read: dict[int, Tensor], best: int
) -> np.ndarray:
    """A pair a row, uint8 (H', W', 3): garment, output, and the garment's pixels on it in the
    colours of the places that they truly show, and that two layers read.

    The first of the layers is the one with the least error, the second the last of all; a layer
    that is both stands once. places: the garment picture in these colours, red to the right, green
    downwards.
    """
    layers = sorted({best, max(read)})
    titles = ["places", "output", "true", *(f"layer {layer + 1}" for layer in layers)]
    height, width = pictures.shape[-2:]
    shown = truth[..., 0].isfinite()
    aspect = truth.new_tensor([width / height, 1.0])
    whole = centres((height, width), (height, width), truth.device).unflatten(0, (height, width))
    rows = []
    for row in range(len(batch)):
        picture, garment = pixels_of(pictures[row]), pixels_of(batch.garment[row])
        cells = [torch.lerp(garment, colours(whole, aspect), TINT), picture]
        read_here = [read[layer][row] for layer in layers]
        for places in (truth[row].nan_to_num() * aspect, *read_here):
            spread = F.interpolate(
                places.permute(2, 0, 1)[None].float(), (height, width), mode="nearest"
            )[0].permute(1, 2, 0)
            tinted = torch.lerp(picture, colours(spread.cpu(), aspect.cpu()), TINT)
            cells.append(torch.where(shown[row, ..., None].cpu(), tinted, picture))
        rows.append([Image.fromarray(cell.round().to(torch.uint8).numpy()) for cell in cells])
    return np.asarray(picture_grid(rows, titles))


def colours(places: Tensor, aspect: Tensor) -> Tensor:
    """(..., 3) in [0, 255] of places in heights of the picture."""
    x, y = (255 * (places / aspect).clamp(0, 1)).unbind(-1)
    return torch.stack([x, y, torch.full_like(x, 128)], -1)
