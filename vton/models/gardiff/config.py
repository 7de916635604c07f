"""GarDiff's settings. Defaults are the paper's (Sections 4.1 and 4.4) where it states them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vton.config import ConfigError, ModelConfig


@dataclass
class UNetConfig:
    """Shape of diffusers' UNet2DConditionModel; the defaults are Stable Diffusion 2.1's."""

    pretrained: str = ""  # diffusers folder or hub id with a 4- or 9-channel text-to-image UNet; "" = from scratch
    subfolder: str = "unet"
    widths: tuple[int, ...] = (320, 640, 1280, 1280)  # channels per level
    attention: tuple[bool, ...] = (True, True, True, False)  # which levels have transformer blocks
    heads: tuple[int, ...] = (5, 10, 20, 20)  # attention heads per level
    layers: int = 2  # ResNet blocks per level
    context: int = 1024  # width of the garment tokens
    groups: int = 32  # GroupNorm
    linear_projection: bool = True
    gradient_checkpointing: bool = False

    def __post_init__(self):
        if not len(self.widths) == len(self.attention) == len(self.heads):
            raise ConfigError(
                f"model.unet.widths, attention and heads describe {len(self.widths)}, {len(self.attention)} and "
                f"{len(self.heads)} levels; give one value per level in each."
            )


@dataclass
class ClipConfig:
    """The garment's image encoder; the defaults are OpenCLIP ViT-H/14's vision tower."""

    pretrained: str = ""  # transformers folder or hub id; "" = from scratch
    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp: int = 5120
    patch: int = 14
    image_size: int = 224
    activation: str = "gelu"
    trained: bool = False  # from scratch there is nothing to freeze: trained along with the rest


@dataclass
class AppearanceConfig:
    """Eq. 8 to 10: lambda (L_spatial + L_highfreq) on the one-step clean picture."""

    weight: float = 0.001  # lambda
    spatial: bool = True  # DISTS
    high_frequency: bool = True  # Sobel
    t_max: int = 1000  # applied to timesteps up to this; 1000 = all, as in the paper
    samples: int = 0  # of each batch; 0 = all. Decoding with gradients is the costly part
    dists_weights: str = ""  # folder with vgg16 and dists weights; "" = $VTON_METRIC_WEIGHTS, else fixed random ones
    dists_channels: tuple[int, ...] = (64, 128, 256, 512, 512)  # VGG16; narrower only with random weights


@dataclass
class GarDiffConfig(ModelConfig):
    name: str = "gardiff"
    condition_dropout: float = 0.05
    unet: UNetConfig = field(default_factory=UNetConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    adapter: bool = True  # False: plain cross-attention to the CLIP tokens, no VAE branch, no mask (Table 3, "Base")
    clip_tokens: Literal["all", "pooled"] = "all"  # every patch of the tower, or its projected summary
    vae_tokens: Literal["channels", "patches"] = "channels"  # one token per latent channel, or per 2x2 latent patch
    mask_branches: tuple[Literal["clip", "vae"], ...] = ("clip", "vae")  # branches of Eq. 6 that the mask multiplies
