"""LaDI-VTON's settings. Defaults are those of the released code (arXiv 2305.13501, Section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vton.config import (
    Bounds,
    ConfigError,
    Fraction,
    ModelConfig,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from vton.models.settings import ClipConfig, TextConfig, UNetConfig
from vton.models.warp.config import PerceptualConfig


@dataclass
class AdapterConfig:
    """The textual inversion adapter: CLIP's tokens of the garment to words of the text encoder."""

    words: PositiveInt = 16  # pseudo-words in the prompt
    layers: NonNegativeInt = 1  # CLIP encoder layers of its own, as wide as the tower
    # between its linear layers, in training
    dropout: Annotated[float, Bounds(0, 1, open_high=True)] = 0.5
    pretrained: str = ""  # file in the released format to start from
    trained: bool = True


@dataclass
class EmascConfig:
    """Enhanced mask-aware skip connections through the codec (Section 3.3)."""

    # nonlinear: two convolutions a skip (released); linear: one, zero at the start; none: the
    # codec's own decoder
    kind: Literal["nonlinear", "linear", "none"] = "nonlinear"
    # of each batch that they learn from; 0 = all. Decoding is the costly part
    samples: NonNegativeInt = 0
    pretrained: str = ""  # file in the released format to start from
    trained: bool = True


def inpainting_unet() -> UNetConfig:
    """Stable Diffusion 2's."""
    return UNetConfig(heads=(5, 10, 20, 20), context=1024, linear_projection=True)


def text_encoder() -> TextConfig:
    """Stable Diffusion 2's: OpenCLIP ViT-H/14's text tower without its last layer."""
    return TextConfig(width=1024, layers=23, heads=16, mlp=4096, activation="gelu")


@dataclass
class LadiVtonConfig(ModelConfig):
    name: str = "ladi_vton"
    # of text, garment and pose each, independently; mask and masked person are never dropped
    condition_dropout: float = 0.2
    # Where the garment's words come from. words: the adapter; caption: the data's description of
    # the garment; none: an empty prompt
    prompt: Literal["words", "caption", "none"] = "words"
    garment_input: Literal["warped", "none"] = "warped"  # none: no channels for it
    pose_input: bool = True  # false: zeros in its channels
    # share of the sampling steps, from the first, that see the warped garment
    garment_rate: Fraction = 1.0
    # draw: latents are drawn from the VAE's posterior, as in the released code; mode: its mode
    posterior: Literal["draw", "mode"] = "draw"
    heat_sigma: PositiveFloat = 9.0  # px of the picture, at every size
    unet: UNetConfig = field(default_factory=inpainting_unet)
    clip: ClipConfig = field(default_factory=ClipConfig)
    text: TextConfig = field(default_factory=text_encoder)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    emasc: EmascConfig = field(default_factory=EmascConfig)
    # VGG19's part in EMASC's loss
    perceptual: PerceptualConfig = field(default_factory=lambda: PerceptualConfig(weight=0.5))
    # Optimizer steps of EMASC alone, then of the adapter alone with the UNet frozen; train.steps
    # are all steps together, the rest are those of UNet and adapter. 0: no such stage, its network
    # learns beside the UNet. Counts and not shares, so that a longer train.steps continues a run.
    emasc_steps: NonNegativeInt = 40_000
    adapter_steps: NonNegativeInt = 200_000

    def __post_init__(self):
        if self.prompt == "caption" and not (self.text.pretrained or self.text.trained):
            raise ConfigError(
                "model.prompt=caption needs a text encoder that knows words: set "
                "model.text.pretrained, or model.text.trained=true to learn it."
            )
        if self.text.width != self.unet.context:
            raise ConfigError(
                f"model.text.width={self.text.width} must equal "
                f"model.unet.context={self.unet.context}, which reads it."
            )
        if self.text.penultimate:
            raise ConfigError(
                "model.text.penultimate=true: LaDI-VTON reads the text encoder's last layer."
            )
