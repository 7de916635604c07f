"""GarDiff's settings. Defaults are the paper's (Sections 4.1 and 4.4) where it states them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vton.config import ModelConfig
from vton.models.settings import ClipConfig, UNetConfig


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


def stable_diffusion_2() -> UNetConfig:
    return UNetConfig(heads=(5, 10, 20, 20), context=1024, linear_projection=True)


@dataclass
class GarDiffConfig(ModelConfig):
    name: str = "gardiff"
    condition_dropout: float = 0.05
    unet: UNetConfig = field(default_factory=stable_diffusion_2)
    clip: ClipConfig = field(default_factory=ClipConfig)
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    adapter: bool = True  # False: plain cross-attention to the CLIP tokens, no VAE branch, no mask (Table 3, "Base")
    clip_tokens: Literal["all", "pooled"] = "all"  # every patch of the tower, or its projected summary
    vae_tokens: Literal["channels", "patches"] = "channels"  # one token per latent channel, or per 2x2 latent patch
    mask_branches: tuple[Literal["clip", "vae"], ...] = ("clip", "vae")  # branches of Eq. 6 that the mask multiplies
