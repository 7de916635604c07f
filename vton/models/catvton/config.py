"""CatVTON's settings. Defaults are those of its released inpainting checkpoints.

DeCo-VTON is the same network with four other choices: `trained`, `unconditional`, `loss_on` and
`garment_latents`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vton.config import Bounds, ConfigError, ModelConfig, PositiveFloat
from vton.models.settings import TextConfig, UNetConfig


@dataclass
class CatvtonConfig(ModelConfig):
    name: str = "catvton"
    unet: UNetConfig = field(default_factory=UNetConfig)
    # of the UNet. attention: self-attention; transformer: all around it; unet: everything
    trained: Literal["attention", "transformer", "unet"] = "attention"
    # factor of unet.positions on the garment's tokens; above 1 the person starts by reading the
    # garment rather than itself
    garment_positions: PositiveFloat = 1.0
    # skipped: its layers hand their input back, and the block adds it. text: they read captions
    cross_attention: Literal["skipped", "text"] = "skipped"
    text: TextConfig = field(default_factory=TextConfig)  # with cross_attention=text
    # where the garment lies: below the person (released), or beside it (the paper's figures)
    axis: Literal["height", "width"] = "height"
    # false: the mask-free variant, which sees the person in other clothes instead of a masked one,
    # and whose UNet is InstructPix2Pix's; needs data.person_other=true
    mask: bool = True
    # power p of DREAM's factor sqrt(1 - abar)^p, the paper's lambda; 0 = full strength, null = off
    dream: Annotated[float | None, Bounds(0)] = 10.0
    # what guidance compares with. no_condition: the condition without the garment, but z_t with it;
    # garment_free (DeCo): both without it
    unconditional: Literal["no_condition", "garment_free"] = "no_condition"
    # person (DeCo): no loss and no DREAM on the garment's half
    loss_on: Literal["canvas", "person"] = "canvas"
    # in sampling. denoised: like the person's; anchored (DeCo): noised from clean ones at each step
    garment_latents: Literal["denoised", "anchored"] = "denoised"

    def __post_init__(self):
        if not self.unet.trained:
            raise ConfigError(
                "model.unet.trained=false: CatVTON has one network. model.trained says which part "
                "of it learns."
            )
        if self.cross_attention == "text" and self.text.width != self.unet.context:
            raise ConfigError(
                f"model.text.width={self.text.width} and model.unet.context={self.unet.context} "
                "must be equal where model.cross_attention=text."
            )
