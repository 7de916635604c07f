"""Leffa's settings. Defaults are those of the paper, its code and its published checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

from vton.config import ConfigError, ModelConfig
from vton.models.settings import UNetConfig


@dataclass
class LeffaConfig(ModelConfig):
    name: str = "leffa"
    # Weights that training starts from: a published file, or weights.safetensors of a run, such as
    # that of the stage before. "" = what the two UNets' own settings say.
    pretrained: str = ""
    # reads [z_t, mask, masked person, DensePose]; `pretrained`: an inpainting UNet, widened
    unet: UNetConfig = field(default_factory=UNetConfig)
    # reads the garment; `pretrained`: the same UNet, narrowed
    reference_unet: UNetConfig = field(default_factory=UNetConfig)
    # approximation in sampling: the reference UNet runs once, at the middle step's t, for all steps
    reference_once: bool = False

    def __post_init__(self):
        for name in ("widths", "attention", "depth", "layers"):
            own, reference = getattr(self.unet, name), getattr(self.reference_unet, name)
            if own != reference:
                raise ConfigError(
                    f"model.reference_unet.{name}={reference} must equal model.unet.{name}={own}: "
                    "each self-attention reads the reference features of the layer with its name."
                )
