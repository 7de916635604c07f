"""IDM-VTON's settings. Defaults are those of the paper and its published checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vton.config import Bounds, ConfigError, ModelConfig, NonNegativeFloat
from vton.models.settings import ClipConfig, ResamplerConfig, TextConfig, UNetConfig


@dataclass
class ImagePromptConfig:
    """Keys and values of the image tokens in cross-attention; `resampler` makes the tokens."""

    # False: no CLIP, Resampler and image keys/values; cross-attention reads the caption alone
    enabled: bool = True
    # folder or hub id that holds `file`: Resampler and keys/values; "" starts both freshly
    pretrained: str = ""
    file: str = "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"
    scale: NonNegativeFloat = 1.0  # weight of the image attention against the text attention
    trained: bool = True


def stable_diffusion_xl(pooled: int) -> UNetConfig:
    return UNetConfig(
        widths=(320, 640, 1280),
        attention=(False, True, True),
        heads=(5, 10, 20),
        depth=(1, 2, 10),  # the first value is unused: that level has no attention
        context=2048,
        linear_projection=True,
        pooled=pooled,
    )


def open_clip_big_g() -> TextConfig:
    return TextConfig(
        subfolder="text_encoder_2",
        tokenizer_subfolder="tokenizer_2",
        width=1280,
        layers=32,
        heads=20,
        mlp=5120,
        projection=1280,
        penultimate=True,
        activation="gelu",
    )


@dataclass
class IdmVtonConfig(ModelConfig):
    name: str = "idm_vton"
    # the released script drops nothing, so its guidance branch is never trained
    condition_dropout: float = 0.1
    unet: UNetConfig = field(default_factory=lambda: stable_diffusion_xl(pooled=1280))
    # up_attention: attention of unet's up blocks and nothing else, customisation to one pair
    trained_part: Literal["all", "up_attention"] = "all"
    # False: no GarmentNet; TryonNet's self-attention reads the person alone
    garment_net: bool = True
    garment_unet: UNetConfig = field(default_factory=lambda: stable_diffusion_xl(pooled=0))
    resampler: ResamplerConfig = field(
        default_factory=lambda: ResamplerConfig(width=1280, heads=20)
    )
    image_prompt: ImagePromptConfig = field(default_factory=ImagePromptConfig)
    clip: ClipConfig = field(default_factory=lambda: ClipConfig(fit="crop"))
    text: TextConfig = field(default_factory=lambda: TextConfig(penultimate=True))
    text_2: TextConfig = field(default_factory=open_clip_big_g)  # also makes the pooled vector
    negative_prompt: str = "monochrome, lowres, bad anatomy, worst quality, low quality"
    # square: height twice, as the released training script
    training_size_ids: Literal["true", "square"] = "true"
    # equal results; zeros is the slow way to check it
    null_features: Literal["closed_form", "zeros"] = "closed_form"
    # approximation: garment features of this t at every t; null = exact
    garment_timestep: Annotated[int | None, Bounds(0)] = None

    def __post_init__(self):
        own, garment = self.unet.context, self.garment_unet.context
        text = self.text.width + self.text_2.width
        if not own == garment == text:
            raise ConfigError(
                f"model.unet.context={own}, model.garment_unet.context={garment} and "
                f"model.text.width + model.text_2.width={text} must be equal: both UNets read both "
                "text encoders' tokens side by side."
            )
        if self.garment_timestep is not None and not self.garment_net:
            raise ConfigError(
                f"model.garment_timestep={self.garment_timestep} needs model.garment_net=true: it "
                "is GarmentNet's."
            )
        if self.unet.pooled != self.text_2.projection:
            raise ConfigError(
                f"model.unet.pooled={self.unet.pooled} must equal "
                f"model.text_2.projection={self.text_2.projection}."
            )
        if self.text.length != self.text_2.length:
            raise ConfigError(
                f"model.text.length={self.text.length} must equal "
                f"model.text_2.length={self.text_2.length}."
            )
        own, garment = joined_blocks(self.unet), joined_blocks(self.garment_unet)
        if own != garment:
            raise ConfigError(
                f"model.garment_unet {garment} must have the transformer blocks of model.unet "
                f"{own} (width and depth of each level with attention, and layers)."
            )


def joined_blocks(unet: UNetConfig) -> tuple:
    """What has to be alike in both UNets, as attention joins them block by block.

    Levels without attention are free.
    """
    levels = []
    for attention, width, depth in zip(unet.attention, unet.widths, unet.depth, strict=True):
        levels.append((width, depth) if attention else "plain")
    return unet.layers, *levels
