"""StableVITON's settings. Defaults are those of its public code and released checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vton.config import (
    Bounds,
    ConfigError,
    ModelConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)
from vton.models.settings import ClipConfig, UNetConfig


def clip_vit_l() -> ClipConfig:
    """openai/clip-vit-large-patch14, whose projection is not read."""
    return ClipConfig(width=1024, layers=24, heads=16, mlp=4096, activation="quick_gelu")


@dataclass
class AttentionLossConfig:
    """Attention total variation: where neighbouring cells of the worn garment attend to."""

    # 0.001 in the public script for the second training, from the first's end
    weight: NonNegativeFloat = 0.0
    # zero cross-attention blocks by position
    blocks: Annotated[tuple[int, ...], Bounds(0)] = (1, 4, 7)
    # a block counts where it reads more garment tokens than this and fewer than the next
    above_tokens: NonNegativeInt = 700
    below_tokens: NonNegativeInt = 3000
    # optimizer steps before it acts: the public code's first training
    start_step: NonNegativeInt = 0


@dataclass
class StableVitonConfig(ModelConfig):
    name: str = "stableviton"
    # checkpoint file that every network starts from: StableVITON's own (VITONHD_PBE_pose.ckpt,
    # VITONHD.ckpt), or Paint-by-Example's; "" starts from scratch
    pretrained: str = ""
    # that the learned vector stands for the garment's CLIP token; the hint is never dropped
    condition_dropout: float = 0.2
    # of the UNet, and of the spatial encoder, which has the shape of its encoder half
    unet: UNetConfig = field(default_factory=lambda: UNetConfig(trained=False))
    # whether gradients pass the UNet's time embedding, encoder and middle block, which the public
    # code runs without; with unet.trained=true these learn then too
    encoder_gradients: bool = False
    clip: ClipConfig = field(default_factory=clip_vit_l)
    mapper_layers: NonNegativeInt = 5  # MLP blocks after CLIP, Paint-by-Example's
    mapper_heads: PositiveInt = 1
    # cross_attention: the paper's; added: spatial features through zero convolutions onto the
    # decoder's, as ControlNet does; token: no spatial encoder, the CLIP token is all of the garment
    garment: Literal["cross_attention", "added", "token"] = "cross_attention"
    # levels of the UNet, the finest first, whose decoder blocks read the garment
    levels: tuple[bool, ...] = (True, True, True, False)
    # garment: the spatial encoder sees the hint alone, not the noisy person
    encoder_input: Literal["all", "garment"] = "all"
    attention_loss: AttentionLossConfig = field(default_factory=AttentionLossConfig)
    # what sampling starts from: pure noise, or these latents noised to the last timestep. The
    # public script takes the person, which in paired order shows a little of the answer.
    start: Literal["noise", "person", "agnostic"] = "noise"

    def __post_init__(self):
        for name in ("unet", "clip"):
            if getattr(self, name).pretrained:
                raise ConfigError(
                    f"model.{name}.pretrained={getattr(self, name).pretrained}: stableviton starts "
                    "all networks from one file; use model.pretrained."
                )
        if self.pretrained and self.unet.positions:
            raise ConfigError(
                f"model.pretrained={self.pretrained} has no position code: set "
                f"model.unet.positions=0, not {self.unet.positions:g}."
            )
        if len(self.levels) != len(self.unet.widths) or self.levels[-1] or not any(self.levels):
            raise ConfigError(
                f"model.levels={list(self.levels)} must say true or false for each of "
                f"model.unet.widths={list(self.unet.widths)}: true for at least one, false for the "
                "last, whose decoder has no zero cross-attention."
            )
        if self.attention_loss.weight and self.garment != "cross_attention":
            raise ConfigError(
                f"model.attention_loss.weight={self.attention_loss.weight:g} needs "
                f"model.garment=cross_attention, not {self.garment}."
            )
