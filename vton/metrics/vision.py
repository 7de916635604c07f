"""DINOv2 and CLIP: what FD-DINOv2, CMMD and the likeness of garments see of a picture.

`dinov2` is DINOv2 ViT-L/14 as Stein et al. 2023 use it (arXiv 2306.04675, and their dgm-eval): the
class token behind the last normalisation, of pictures squeezed to 224 px. `clip` is CLIP ViT-L/14
at 336 px as CMMD uses it (Jayasumana et al. 2024, arXiv 2401.09603, and their code): the projected
embedding at unit length, of the middle square of a picture brought to the network's size. Both
resize by Pillow's bicubic filter. For the garment region there is no middle to cut out: a garment's
crop is squeezed by both.

The pretrained networks are folders in the hub's layout among the metric weights. Without them
smaller networks of the same kind with fixed random weights take their place, and what they give is
called `_random`.
"""
# Shapes: B batch, S side of the square the network sees, D width of a feature

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from vton.metrics import prepare
from vton.models.encoders import CLIP_MEAN, CLIP_STD
from vton.models.perceptual import IMAGENET_MEAN, IMAGENET_STD, per_channel
from vton.weights.pretrained import from_pretrained


class Kind(NamedTuple):
    """A network, and how it wants its pictures."""

    network: type
    random: Callable[[], object]  # configuration of the random one, as small as its table needs
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    side: int | None  # px; None = what the network's configuration says
    random_side: int
    middle: bool  # whether the middle square is cut out, else pictures are squeezed


KINDS = {
    "dinov2": Kind(
        network=Dinov2Model,
        random=lambda: Dinov2Config(
            hidden_size=384, num_hidden_layers=8, num_attention_heads=6, image_size=112
        ),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        side=224,
        random_side=112,
        middle=False,
    ),
    "clip": Kind(
        network=CLIPVisionModelWithProjection,
        random=lambda: CLIPVisionConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=6,
            patch_size=16,
            image_size=112,
            projection_dim=512,
        ),
        mean=CLIP_MEAN,
        std=CLIP_STD,
        side=None,
        random_side=112,
        middle=True,
    ),
}


class Vision(nn.Module):
    """One of the two networks.

    path: its folder in the hub's layout; None: a small one with fixed random weights
    """

    def __init__(self, name: str, path: Path | None, seed: int):
        super().__init__()
        kind = KINDS[name]
        self.name = name
        self.middle = kind.middle
        if path is None:
            with torch.random.fork_rng(devices=[]):  # constructors draw from the global state
                self.network = kind.network(kind.random())
            randomise(self.network, seed)
            self.side = kind.random_side
        else:
            self.network = from_pretrained(kind.network, str(path), key=name)
            self.side = kind.side or self.network.config.image_size
        self.network.float().eval().requires_grad_(False)
        self.register_buffer("mean", per_channel(kind.mean), persistent=False)
        self.register_buffer("std", per_channel(kind.std), persistent=False)

    def squares(self, pictures: Sequence[Tensor], middle: bool) -> Tensor:
        """uint8 (3, h, w) of any sizes to (B, 3, S, S) uint8, each by its middle or squeezed."""
        size = (self.side, self.side)
        resized = []
        for picture in pictures:
            picture = middle_square(picture.cpu()) if middle else picture.cpu()
            resized.append(prepare.resize(picture, size, "bicubic"))
        return torch.stack(resized)

    def forward(self, squares: Tensor) -> Tensor:
        """Features (B, D) of uint8 (B, 3, S, S); CLIP's are of unit length."""
        pixels = (squares.to(self.mean.device).float() / 255 - self.mean) / self.std
        if self.name == "dinov2":
            return self.network(pixel_values=pixels).pooler_output
        embedding = self.network(pixel_values=pixels).image_embeds
        return embedding / embedding.norm(dim=1, keepdim=True)

    def features(self, pictures: Sequence[Tensor], garments: bool = False) -> Tensor:
        """Features (B, D) of pictures uint8 (3, h, w); garments: they are crops, see above."""
        return self(self.squares(pictures, self.middle and not garments))


def middle_square(picture: Tensor) -> Tensor:
    """(3, h, w) to the square of its shorter side in its middle, rounded towards its start."""
    height, width = picture.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[:, top : top + side, left : left + side]


def white_square(picture: Tensor) -> Tensor:
    """(3, h, w) in the middle of a white square of its longer side: nothing is distorted."""
    height, width = picture.shape[-2:]
    side = max(height, width)
    square = torch.full((3, side, side), 255, dtype=torch.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = picture
    return square


def randomise(network: nn.Module, seed: int) -> None:
    """Weights of a transformer that keep the scale of its input, the same on every machine.

    Matrices are uniform with variance 1 / fan-in, tokens and positions uniform in [-1, 1] / 50,
    biases 0, and what scales (normalisation, layer scale) 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        if parameter.dim() == 1 and "embedding" not in name:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        bound = 0.02
        if "embedding" not in name or "projection" in name or "patch_embedding.weight" in name:
            bound = (3 / parameter[0].numel()) ** 0.5
        uniform = torch.rand(parameter.shape, generator=generator)
        parameter.data.copy_((2 * uniform - 1) * bound)
