"""TryOnDiffusion's three networks, from tensors to predictions.

arXiv 2306.08276, Sections 3.2 and 3.3, Figs. 2 and 8.

ParallelUNet (128 and 256): two UNets. The person UNet denoises [z_t, agnostic (, low-res)]; the
garment UNet turns the segmented garment into features that the person UNet reads by
cross-attention. One vector e of time, noise levels and both poses modulates both. By configuration
the garment joins the person UNet's input instead (appendix, ablation 1).

EfficientUNet (1024): convolutions only, no try-on condition.

Legend: B batch, H W picture height and width, K keypoints, P pose width, E width of e, L number of
conditional images, G rows of garment features; C h w of a feature map. Pictures are (B, 3, H, W) in
[-1, 1]; t and levels in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vton.models.tryondiffusion.config import EfficientUNetConfig, ParallelUNetConfig
from vton.models.tryondiffusion.layers import (
    NumberEmbedding,
    PoseEncoder,
    Unit,
    conv3,
    group_norm,
    zeroed,
)

# Side, level and number of a unit -> what it reads besides its input.
Read = Callable[[str, int, int], tuple]


class Embedding(nn.Module):
    """e = MLP(t) + sum_i MLP_i(level_i) + pool(person pose) + pool(garment pose); pose tokens."""

    def __init__(self, config: ParallelUNetConfig, keypoints: int, coordinates: int, levels: int):
        super().__init__()
        numbers = (config.sinusoid, config.embedding)
        pose = (keypoints, coordinates, config.pose_width, config.embedding, config.heads)
        self.pose_shape = (keypoints, coordinates)
        self.time = NumberEmbedding(*numbers)
        self.levels = nn.ModuleList(NumberEmbedding(*numbers) for _ in range(levels))
        self.person, self.garment = PoseEncoder(*pose), PoseEncoder(*pose)

    def embed_levels(self, levels: Tensor) -> Tensor:
        """(B, L) -> (B, E)."""
        return sum(embed(level) for embed, level in zip(self.levels, levels.unbind(1), strict=True))

    def embed_poses(self, person: Tensor, garment: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, 2 or 3) each -> tokens of both (B, 2K, P), sum of the pooled vectors (B, E)."""
        person_tokens, person_pooled = self.person(person)
        garment_tokens, garment_pooled = self.garment(garment)
        tokens = torch.cat([person_tokens, garment_tokens], 1)
        return tokens, person_pooled + garment_pooled


class Encoder(nn.Module):
    """Head convolution, then units level by level; stride-2 convolutions in between."""

    def __init__(
        self,
        in_channels: int,
        blocks: tuple[int, ...],
        config: ParallelUNetConfig,
        attention: tuple[bool, ...],
        aspect: float,
    ):
        super().__init__()
        self.head = conv3(in_channels, config.widths[0])
        self.levels = nn.ModuleList()
        for width, count, attend in zip(config.widths, blocks, attention, strict=True):
            units = [Unit(width, width, config, attend, aspect) for _ in range(count)]
            self.levels.append(nn.ModuleList(units))
        steps = pairwise(config.widths)
        self.down = nn.ModuleList(conv3(above, below, stride=2) for above, below in steps)
        self.checkpointing = config.gradient_checkpointing

    def forward(self, x: Tensor, read: Read) -> list[list[Tensor]]:
        """x (B, in_channels, H, W) -> the output of every unit, by level."""
        x = self.head(x)
        outputs: list[list[Tensor]] = []
        for level, units in enumerate(self.levels):
            if level:
                x = self.down[level - 1](x)
            outputs.append([])
            for number, unit in enumerate(units):
                x = run(unit, self.checkpointing, x, *read("encoder", level, number))
                outputs[-1].append(x)
        return outputs


class Decoder(nn.Module):
    """Units from the lowest resolution up to level `last`, each joined by its mirror unit's output.

    The mirror unit is the encoder's of the same level, counted from its other end.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        config: ParallelUNetConfig,
        attention: tuple[bool, ...],
        last: int,
        aspect: float,
    ):
        super().__init__()
        self.order = list(reversed(range(last, len(blocks))))
        self.levels = nn.ModuleDict()
        for level in self.order:
            width, attend = config.widths[level], attention[level]
            units = [Unit(2 * width, width, config, attend, aspect) for _ in range(blocks[level])]
            self.levels[str(level)] = nn.ModuleList(units)
        self.up = nn.ModuleDict()
        for low, high in pairwise(self.order):
            self.up[str(low)] = conv3(config.widths[low], config.widths[high])
        self.skip_scale = config.skip_scale
        self.checkpointing = config.gradient_checkpointing

    def forward(self, skips: list[list[Tensor]], read: Read) -> dict[int, list[Tensor]]:
        """The encoder's outputs -> the output of every unit, by level."""
        x = skips[-1][-1]
        outputs: dict[int, list[Tensor]] = {}
        for level in self.order:
            if outputs:
                x = self.up[str(level + 1)](upsample(x))
            outputs[level] = []
            for number, unit in enumerate(self.levels[str(level)]):
                skip = skips[level][-1 - number]
                joined = torch.cat([x, self.skip_scale * skip], 1)
                x = run(unit, self.checkpointing, joined, *read("decoder", level, number))
                outputs[level].append(x)
        return outputs


def upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def run(unit: Unit, checkpointing: bool, *arguments) -> Tensor:
    """The unit's output; checkpointing computes its activations again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(unit, *arguments, use_reentrant=False)
    return unit(*arguments)


class GarmentUNet(nn.Module):
    """Segmented garment to features, without attention.

    Nothing is built behind the last feature that the person UNet reads.
    """

    def __init__(self, config: ParallelUNetConfig):
        super().__init__()
        blocks, nowhere = config.garment_blocks, (False,) * len(config.widths)
        self.encoder = Encoder(3, blocks, config, nowhere, aspect=1.0)
        self.decoder = Decoder(blocks, config, nowhere, config.last_attention, aspect=1.0)
        self.by_block = config.garment_map == "block"
        self.attended = [level for level, attention in enumerate(config.attention) if attention]

    def forward(self, garment: Tensor, e: Tensor) -> dict[str, Tensor]:
        """garment (B, 3, H, W), e (B, E) -> features (B, C, h, w) by the name of their reader."""
        encoded = self.encoder(garment, lambda *_: (e,))
        decoded = self.decoder(encoded, lambda *_: (e,))
        features = {}
        for side, outputs in (("encoder", encoded), ("decoder", decoded)):
            for level in self.attended:
                if not self.by_block:
                    features[f"{side}.{level}"] = outputs[level][-1]
                    continue
                for number, output in enumerate(outputs[level]):
                    features[f"{side}.{level}.{number}"] = output
        return features


class PersonUNet(nn.Module):
    """Noisy picture and what is aligned with it to a prediction; reads poses and the garment."""

    def __init__(self, config: ParallelUNetConfig, in_channels: int, aspect: float):
        super().__init__()
        self.encoder = Encoder(in_channels, config.blocks, config, config.attention, aspect)
        self.decoder = Decoder(config.blocks, config, config.attention, 0, aspect)
        self.norm = group_norm(config.widths[0])
        self.tail = zeroed(conv3(config.widths[0], 3))
        self.by_block = config.garment_map == "block"
        self.attention = config.attention

    def forward(self, x: Tensor, e: Tensor, poses: Tensor, features: dict[str, Tensor]) -> Tensor:
        """x (B, in_channels, H, W), e (B, E), poses (B, 2K, P), features -> (B, 3, H, W).

        features: as `GarmentUNet` gives them; {} with correspondence=concatenation. Their "row"
        (B,) int64, where present, says which of their rows each row of x reads.
        """

        def read(side: str, level: int, number: int) -> tuple:
            if not self.attention[level]:
                return (e,)
            if not features:
                return e, poses
            name = f"{side}.{level}.{number}" if self.by_block else f"{side}.{level}"
            return e, poses, features[name], features.get("row")

        decoded = self.decoder(self.encoder(x, read), read)
        return self.tail(F.silu(self.norm(decoded[0][-1])))


class ParallelUNet(nn.Module):
    """The 128 and 256 networks; `embed`, `encode_garment` and `denoise` each run when they must.

    images: names of the conditional images, in the order of their noise levels. Those in `aligned`
    join z_t in the person UNet's head: all but "garment"; with correspondence=concatenation it does
    too, and there is no garment UNet.
    aspect: height / width of the pictures, for a position code. All layers take any size divisible
    by `factor`.
    """

    def __init__(
        self,
        config: ParallelUNetConfig,
        images: tuple[str, ...] = ("agnostic", "garment"),
        keypoints: int = 17,
        coordinates: int = 2,
        aspect: float = 1.0,
    ):
        super().__init__()
        by_attention = config.correspondence == "attention"
        self.factor = 2 ** (len(config.widths) - 1)
        self.images = images
        self.aligned = tuple(name for name in images if name != "garment" or not by_attention)
        self.embedding = Embedding(config, keypoints, coordinates, levels=len(images))
        self.person_unet = PersonUNet(config, 3 * (1 + len(self.aligned)), aspect)
        self.garment_unet = GarmentUNet(config) if by_attention else None
        if config.start_awake:
            init_unit_gain(self)

    def embed(
        self, t: Tensor, levels: Tensor, person_pose: Tensor, garment_pose: Tensor
    ) -> tuple[Tensor, Tensor]:
        """t (B,), levels (B, L), poses (B, K, 2 or 3) -> e (B, E), pose tokens (B, 2K, P)."""
        tokens, pooled = self.embedding.embed_poses(person_pose, garment_pose)
        return self.embedding.time(t) + self.embedding.embed_levels(levels) + pooled, tokens

    def encode_garment(self, garment: Tensor, e: Tensor) -> dict[str, Tensor]:
        """Garment (B, 3, H, W) and e (B, E) to what cross-attention reads; {} if nothing does."""
        if self.garment_unet is None:
            return {}
        return self.garment_unet(garment.to(e.dtype), e)

    def denoise(
        self,
        z_t: Tensor,
        aligned: list[Tensor],
        e: Tensor,
        poses: Tensor,
        features: dict[str, Tensor],
    ) -> Tensor:
        """Prediction (B, 3, H, W) from z_t and the pictures in `self.aligned`, in this order."""
        x = torch.cat([image.to(e.dtype) for image in (z_t, *aligned)], 1)
        return self.person_unet(x, e, poses, features)


@torch.no_grad()
def init_unit_gain(network: ParallelUNet) -> None:
    """Let every convolution but the tail keep the size of what it reads.

    z_t, which is mostly noise, is read at a tenth.
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d) or layer is network.person_unet.tail:
            continue
        if layer.kernel_size == (1, 1):
            nn.init.orthogonal_(layer.weight)
        else:
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    network.person_unet.encoder.head.weight[:, :3] *= 0.1


class EfficientUNet(nn.Module):
    """The 1024 network: Imagen's Efficient-UNet without any attention layer (Section 3.3).

    A block changes size first on the way down and last on the way up. Down: stride-2 convolution,
    units. Up: + skip_scale x the output of its mirror, units, enlargement by 2 and convolution.
    """

    def __init__(self, config: EfficientUNetConfig):
        super().__init__()
        widths = config.widths
        self.factor = 2 ** len(widths)
        self.time = NumberEmbedding(config.sinusoid, config.embedding)
        self.level = NumberEmbedding(config.sinusoid, config.embedding)
        self.head = conv3(6, widths[0])
        steps = list(pairwise((widths[0], *widths)))
        self.down = nn.ModuleList(conv3(above, below, stride=2) for above, below in steps)
        self.up = nn.ModuleList(conv3(below, above) for above, below in steps)
        self.down_units = units_by_level(config)
        self.up_units = units_by_level(config)
        self.norm = group_norm(widths[0])
        self.tail = zeroed(conv3(widths[0], 3))
        self.skip_scale = config.skip_scale
        self.checkpointing = config.gradient_checkpointing

    def denoise(self, z_t: Tensor, lowres: Tensor, e: Tensor) -> Tensor:
        """z_t and enlarged low-resolution result, e (B, E) -> prediction, all else (B, 3, H, W)."""
        x = self.head(torch.cat([z_t.to(e.dtype), lowres.to(e.dtype)], 1))
        skips = []
        for down, units in zip(self.down, self.down_units, strict=True):
            x = down(x)
            for unit in units:
                x = run(unit, self.checkpointing, x, e)
            skips.append(x)
        for level in reversed(range(len(skips))):
            x = x + self.skip_scale * skips[level]
            for unit in self.up_units[level]:
                x = run(unit, self.checkpointing, x, e)
            x = self.up[level](upsample(x))
        return self.tail(F.silu(self.norm(x)))


def units_by_level(config: EfficientUNetConfig) -> nn.ModuleList:
    levels = nn.ModuleList()
    for width, count in zip(config.widths, config.blocks, strict=True):
        units = [Unit(width, width, config, attention=False) for _ in range(count)]
        levels.append(nn.ModuleList(units))
    return levels
