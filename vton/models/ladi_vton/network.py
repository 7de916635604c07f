"""LaDI-VTON's UNet: Stable Diffusion 2's inpainting UNet with channels for pose and garment.

It reads, in this order, the noisy latents, the mask (1 = repaint), latents of the masked person, 18
pose maps, and latents of the warped garment; with 4 latent channels 31 in all, 27 without garment.
"""
# Shapes: B batch, C latent channels, h w latents, J joints, L tokens of the text, T their width

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vton.data.sample import JOINTS
from vton.diffusion.denoiser import Conditions, Denoiser, Features, Step
from vton.processes import to_device

# What guidance and condition dropout take away, each on its own; mask and masked person stay.
DROPPABLE = ("text", "garment", "pose")


def input_channels(latent_channels: int, garment: bool = True) -> int:
    return 2 * latent_channels + 1 + JOINTS + (latent_channels if garment else 0)


class LadiUNet(Denoiser):
    """unet: of `input_channels`. garment_rate: share of the sampling steps, from the first, that
    see the warped garment.
    """

    def __init__(self, unet: UNet2DConditionModel, garment_rate: float = 1.0):
        super().__init__()
        self.unet = unet
        self.garment_rate = garment_rate

    def condition(
        self,
        *,
        mask: Tensor,
        masked: Tensor,
        pose: Tensor,
        garment: Tensor | None,
        text: Tensor,
        empty_text: Tensor,
    ) -> Conditions:
        """mask (B, 1, h, w); masked (B, C, h, w), latents; pose (B, J, h, w); garment (B, C, h, w),
        latents, None for the variant without; text (B, L, T); empty_text (1, L, T), of the empty
        prompt.
        """
        conditions = {
            "mask": mask,
            "masked": masked,
            "pose": pose,
            "text": text,
            "empty_text": empty_text.expand_as(text),
        }
        return conditions if garment is None else conditions | {"garment": garment}

    def unconditional(self, conditions: Conditions) -> Conditions:
        """The empty prompt, and zeros for latents of the garment and for pose maps."""
        every_row = torch.ones(len(conditions["mask"]), dtype=torch.bool)
        return self.without(conditions, dict.fromkeys(DROPPABLE, every_row))

    def without(self, conditions: Conditions, rows: dict[str, Tensor]) -> Conditions:
        """Conditions that lack a part in some rows. rows: (B,) bool by the part's name."""
        dropped = dict(conditions)
        for name, gone in rows.items():
            if name not in conditions:
                continue
            tensor = conditions[name]
            null = conditions["empty_text"] if name == "text" else torch.zeros_like(tensor)
            gone = to_device(gone, tensor.device).view(-1, *[1] * (tensor.ndim - 1))
            dropped[name] = torch.where(gone, null, tensor)
        return dropped

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        """The warped garment as the step sees it: zeros in the last steps if `garment_rate` is
        below 1.
        """
        if "garment" not in conditions:
            return {}
        garment = conditions["garment"]
        if step is not None and step.index >= step.count - (1 - self.garment_rate) * step.count:
            garment = torch.zeros_like(garment)
        return {"garment": garment}

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        return self(self.stacked(z_t, conditions, features), t, conditions["text"])

    def stacked(self, z_t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        """The UNet's input, channel by channel, in its dtype."""
        c = conditions
        parts = [z_t, c["mask"], c["masked"], c["pose"], *features.values()]
        return torch.cat(parts, dim=1).to(self.unet.dtype)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.unet(x, to_device(t, x.device), text).sample
