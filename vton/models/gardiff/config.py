"""GarDiff's settings. Defaults are the paper's (Sections 4.1 and 4.4) where it states them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vton.config import (
    ConfigError,
    ModelConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    PositiveInts,
)
from vton.models.settings import ClipConfig, TextConfig, UNetConfig

Branch = Literal["clip", "vae"]


@dataclass
class AppearanceConfig:
    """Eq. 8 to 10: lambda (L_spatial + L_highfreq) on the one-step clean picture."""

    weight: NonNegativeFloat = 0.001  # lambda
    spatial: bool = True  # DISTS
    high_frequency: bool = True  # Sobel
    t_max: NonNegativeInt = 1000  # applied to timesteps up to this; 1000 = all, as in the paper
    # of each batch; 0 = all. Decoding with gradients is the costly part
    samples: NonNegativeInt = 0
    # folder with VGG16's; "" = $VTON_METRIC_WEIGHTS, `make weights`' folder, else random
    dists_weights: str = ""
    # of DISTS' five stages; others than VGG16's have fixed random weights
    dists_channels: PositiveInts = (64, 128, 256, 512, 512)


@dataclass
class DecoupledConfig:
    """mode=decoupled: text attention plus `scale` times attention to tokens of CLIP's summary."""

    tokens: PositiveInt = 4
    scale: NonNegativeFloat = 1.0
    # adapter file: projection head, keys and values; IP-Adapter's names or GarDiff's
    pretrained: str = ""


def stable_diffusion_2() -> UNetConfig:
    return UNetConfig(heads=(5, 10, 20, 20), context=1024, linear_projection=True)


@dataclass
class GarDiffConfig(ModelConfig):
    name: str = "gardiff"
    # paper: Section 3 of the paper; release: the script of December 2024; legacy12: that of July
    # 2024; decoupled: the adapter classes of the repository. vton/models/gardiff/README.md compares
    # them.
    mode: Literal["paper", "release", "decoupled", "legacy12"] = "paper"
    condition_dropout: float = 0.05
    unet: UNetConfig = field(default_factory=stable_diffusion_2)
    clip: ClipConfig = field(default_factory=ClipConfig)
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)

    # ---- mode=paper ----

    # False: plain cross-attention to the CLIP tokens, no VAE branch, no mask (Table 3, "Base")
    adapter: bool = True
    # of the adapter; a single one uses the layer's own keys and values
    branches: tuple[Branch, ...] = ("clip", "vae")
    # every patch of the tower, or its projected summary
    clip_tokens: Literal["all", "pooled"] = "all"
    # one token per latent channel, or per 2x2 latent patch
    vae_tokens: Literal["channels", "patches"] = "channels"
    # branches of Eq. 6 that the mask multiplies; [] = Eq. 5
    mask_branches: tuple[Branch, ...] = ("clip", "vae")

    # ---- the other modes ----

    # release, legacy12: only its begin token, learned if trained
    text: TextConfig = field(default_factory=TextConfig)
    decoupled: DecoupledConfig = field(default_factory=DecoupledConfig)
    # release: pixels divided by 255 twice, as that script does
    clip_rescale: Literal["single", "release"] = "single"
    # legacy12: sampling steps, from the first, after which the warped garment is put in
    blend_steps: NonNegativeInt = 18
    # original picture outside the feathered mask, as the released script does
    paste_back: bool = False

    def __post_init__(self):
        named_once = self.branches and len(set(self.branches)) == len(self.branches)
        if self.adapter and not named_once:
            raise ConfigError(
                f"model.branches={list(self.branches)} must name clip, vae or both, each once; "
                "without the adapter use model.adapter=false."
            )
        if self.mode != "paper":
            self._check_tokens()

    def _check_tokens(self):
        """Tokens that meet in one sequence have the width that cross-attention reads."""
        reads_text = self.mode == "decoupled" or not self.text.trained
        if reads_text:
            self._check_width("text.width", self.text.width)
        if self.mode != "decoupled":
            self._check_width("clip.projection", self.clip.projection)
        if reads_text and not (self.text.pretrained or self.text.trained):
            raise ConfigError(
                f"model.mode={self.mode} needs a text encoder: set model.text.pretrained, or "
                "model.text.trained=true to learn it."
            )

    def _check_width(self, name: str, width: int):
        if width != self.unet.context:
            raise ConfigError(
                f"model.{name}={width} must equal model.unet.context={self.unet.context}: "
                f"model.mode={self.mode} hands both to the same cross-attention."
            )
