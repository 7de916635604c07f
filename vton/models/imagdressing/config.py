"""IMAGDressing-v1's settings. Defaults are the paper's, else those of its try-on script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vton.config import ConfigError, Fraction, ModelConfig, NonNegativeFloat, PositiveInts
from vton.models.settings import ClipConfig, ResamplerConfig, TextConfig, UNetConfig


@dataclass
class ProjectorConfig(ResamplerConfig):
    """CLIP states to the garment UNet's tokens; starts from an IP-Adapter-Plus file."""

    pretrained: str = ""  # folder or hub id that holds `file`; "" starts freshly
    file: str = "models/ip-adapter-plus_sd15.safetensors"


@dataclass
class AdapterConfig:
    """Keys and values of the garment in self-attention; they start as copies of the person's."""

    trained: bool = True


@dataclass
class ControlConfig:
    """One ControlNet (arXiv 2302.05543).

    Without `pretrained` it starts as a copy of the dressing UNet's encoder.
    """

    enabled: bool = False
    pretrained: str = ""
    subfolder: str = ""
    scale: NonNegativeFloat = 1.0  # conditioning scale
    # it acts on step i of N unless i/N < start or (i+1)/N > end; in training always
    start: float = 0.0
    end: float = 1.0
    # Channels of the control picture's convolutions. From scratch one is used per halving of the
    # picture, and one more.
    embedding: PositiveInts = (16, 32, 96, 256)
    in_training: bool = False  # takes part in training; the paper trains without ControlNets
    trained: bool = False

    def __post_init__(self):
        if not 0 <= self.start <= self.end <= 1:
            raise ConfigError(
                f"A ControlNet's start={self.start} and end={self.end} must satisfy "
                "0 <= start <= end <= 1."
            )
        if self.trained and not (self.enabled and self.in_training):
            raise ConfigError(
                "A ControlNet with trained=true must also have enabled=true and in_training=true."
            )


@dataclass
class FaceConfig:
    """IP-Adapter FaceID-Plus. Always pretrained and frozen."""

    weights: str = ""  # FaceID-Plus file (.bin or .safetensors); "" = without faces
    # folder with <person_id>.safetensors: id_embeds (D,) and clip_hidden (S, width) of the crop
    embeddings: str = ""
    scale: NonNegativeFloat = 0.9  # of the identity tokens' attention
    self_lora: NonNegativeFloat = 0.2
    cross_lora: NonNegativeFloat = 0.2
    # PlusV2 files: queries + shortcut * result; null = Plus, as all released scripts run
    shortcut: float | None = None

    def __post_init__(self):
        if self.weights and not self.embeddings:
            raise ConfigError(
                "model.face.weights is set, but model.face.embeddings, the folder with the faces, "
                "is not."
            )


@dataclass
class DropoutConfig:
    """Probabilities of dropping a sample's conditions in training; the VAE branch stays."""

    image: Fraction = 0.05  # zeroed CLIP pixels
    text: Fraction = 0.05  # empty prompt
    both: Fraction = 0.05


@dataclass
class ImagDressingConfig(ModelConfig):
    name: str = "imagdressing"
    # of all conditions, garment features included: trains the guidance branch, which is pretrained
    # in the paper
    condition_dropout: float = 0.0
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    unet: UNetConfig = field(default_factory=lambda: UNetConfig(trained=False))
    garment_unet: UNetConfig = field(default_factory=UNetConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    clip: ClipConfig = field(default_factory=lambda: ClipConfig(fit="crop"))
    text: TextConfig = field(default_factory=TextConfig)
    inpaint: ControlConfig = field(default_factory=lambda: ControlConfig(enabled=True))
    pose: ControlConfig = field(default_factory=ControlConfig)
    face: FaceConfig = field(default_factory=FaceConfig)
    # False: the garment UNet reads the prompt instead of projected CLIP tokens
    image_branch: bool = True
    # joint: one softmax over the person's and the garment's tokens, by the layer's own Wk and Wv
    attention: Literal["hybrid", "joint"] = "hybrid"
    garment_scale: NonNegativeFloat = 1.0  # lambda at sampling; 1 in training
    # instead of data.person_caption, for every pair; the released try-on script has one
    prompt: str = ""
    # joined to the prompt by a comma; "best quality, high quality" in the text-to-image scripts
    prompt_suffix: str = ""
    negative_prompt: str = "monochrome, lowres, bad anatomy, worst quality, low quality"

    def __post_init__(self):
        self._check_text()
        for name in ("widths", "attention", "depth", "layers"):
            own, garment = getattr(self.unet, name), getattr(self.garment_unet, name)
            if own != garment:
                raise ConfigError(
                    f"model.garment_unet.{name}={garment} must equal model.unet.{name}={own}: each "
                    "self-attention reads the garment features of the layer with its name."
                )
        dropout = self.dropout
        dropped = dropout.image + dropout.text + dropout.both + self.condition_dropout
        if dropped > 1:
            raise ConfigError(
                "model.dropout (image, text, both) and model.condition_dropout sum up to "
                f"{dropped:g}; they exclude each other and must leave a probability between 0 and "
                "1."
            )

    def _check_text(self):
        """Raise ConfigError unless all that reads the text encoder's tokens has their width."""
        if self.unet.context != self.text.width:
            raise ConfigError(
                f"model.unet.context={self.unet.context} and model.text.width={self.text.width} "
                "must be equal: the dressing UNet's cross-attention reads the text encoder's "
                "tokens."
            )
        if self.image_branch:
            return
        if self.garment_unet.context != self.text.width:
            raise ConfigError(
                "model.image_branch=false lets the garment UNet read text: "
                f"model.garment_unet.context={self.garment_unet.context} must equal "
                f"model.text.width={self.text.width}."
            )
        if self.face.weights:
            raise ConfigError(
                "model.image_branch=false runs without CLIP, which model.face.weights needs."
            )
