"""Settings of the networks that architectures share. No torch here: configurations load fast.

`pretrained` is a folder in the hub's layout or a hub id; "" builds the network freshly in the shape
of the other fields. `trained` decides whether a run learns the network: what a paper freezes has to
be trained where nothing pretrained exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vton.config import ConfigError, NonNegativeFloat, NonNegativeInt, PositiveInt, PositiveInts


@dataclass
class UNetConfig:
    """Shape of diffusers' UNet2DConditionModel; the defaults are Stable Diffusion 1.5's."""

    pretrained: str = ""
    subfolder: str = "unet"
    widths: PositiveInts = (320, 640, 1280, 1280)  # channels per level
    attention: tuple[bool, ...] = (True, True, True, False)  # which levels have transformer blocks
    heads: PositiveInts = (8, 8, 8, 8)  # attention heads per level
    depth: PositiveInts = (1, 1, 1, 1)  # transformer blocks per attention
    layers: PositiveInt = 2  # ResNet blocks per level
    context: PositiveInt = 768  # width of the tokens that cross-attention reads
    groups: PositiveInt = 32  # GroupNorm
    # linear layers around attention instead of 1x1 convolutions (Stable Diffusion 2, SDXL)
    linear_projection: bool = False
    # width of SDXL's pooled text vector; 0 = without added text and size embedding
    pooled: NonNegativeInt = 0
    size_id_width: PositiveInt = 256  # with pooled: channels per embedded size id
    # compute blocks again in the backward pass: less memory, more time
    gradient_checkpointing: bool = False
    # Amplitude of a position code on what attention reads; 0 = none, as published. Convolutions of
    # a UNet from scratch know places by the borders alone, and in a short training attention
    # between two UNets never finds what belongs together: see vton/models/idm_vton/README.md.
    positions: NonNegativeFloat = 0.0
    trained: bool = True

    def __post_init__(self):
        if self.pretrained and self.positions:
            raise ConfigError(
                f"A pretrained UNet has no position code: set positions=0, not {self.positions:g}."
            )
        check_levels(self, "widths", "attention", "heads", "depth")


@dataclass
class ClipConfig:
    """A CLIP vision tower with projection; the defaults are OpenCLIP ViT-H/14's."""

    pretrained: str = ""
    subfolder: str = ""
    width: PositiveInt = 1280  # of a token
    layers: PositiveInt = 32
    heads: PositiveInt = 16
    mlp: PositiveInt = 5120  # hidden width
    patch: PositiveInt = 14  # px, side of what becomes a token
    image_size: PositiveInt = 224  # px, side of what it reads
    projection: PositiveInt = 1024  # width of the pooled vector
    activation: str = "gelu"
    # squash: both sides resized to image_size; crop: shorter side resized, centre cut out
    fit: Literal["squash", "crop"] = "squash"
    trained: bool = False


@dataclass
class TextConfig:
    """A CLIP text encoder and its tokenizer; the defaults are those of Stable Diffusion 1.5.

    From scratch the tokenizer is bytes (ByT5's), which needs no vocabulary file.
    """

    pretrained: str = ""
    subfolder: str = "text_encoder"
    tokenizer_subfolder: str = "tokenizer"
    width: PositiveInt = 768  # of a token
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    mlp: PositiveInt = 3072  # hidden width
    vocabulary: PositiveInt = 49408  # from scratch: bytes and special tokens, at least 384
    length: PositiveInt = 77  # tokens, padded and cut
    projection: NonNegativeInt = 0  # width of the pooled vector; 0 = without
    # tokens before the last layer (SDXL) instead of after it and the final norm
    penultimate: bool = False
    activation: str = "quick_gelu"
    trained: bool = False


@dataclass
class ResamplerConfig:
    """The IP-Adapter-Plus projector; see vton/models/resampler.py. The defaults are SD 1.5's."""

    width: PositiveInt = 768  # of its own tokens
    depth: PositiveInt = 4  # attention layers
    heads: PositiveInt = 12
    head_width: PositiveInt = 64
    queries: PositiveInt = 16  # tokens that come out
    feed_forward: PositiveInt = 4  # hidden width as a multiple of width
    trained: bool = True


def check_levels(config, *names: str) -> None:
    """Raise ConfigError unless these fields hold one value for each level of a UNet."""
    counts = {name: len(getattr(config, name)) for name in names}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(
            f"A UNet's settings describe different numbers of levels ({listed}); "
            "give one value each."
        )
