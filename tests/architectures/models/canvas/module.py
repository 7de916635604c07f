"""Canvas: person and garment side by side in one picture, read by self-attention alone."""
# Shapes: B batch, C h w latents of one picture, H W its pixels

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F
from vton.models.canvas.config import CanvasConfig

from vton.data.sample import TryOnBatch
from vton.diffusion.denoiser import Conditions
from vton.diffusion.objective import Noised
from vton.models.base import TryOnModule
from vton.models.unet import build_unet
from vton.registry import register


class NoCrossAttention:
    """In place of cross-attention: adds nothing, for there is no text."""

    def __call__(self, attention, hidden_states, *args, **kwargs) -> Tensor:
        return torch.zeros_like(hidden_states)


@register(CanvasConfig)
class Canvas(TryOnModule):
    """[z_t, mask, masked person | garment] -> prediction; a canvas is two pictures high."""

    def build(self) -> None:
        model: CanvasConfig = self.config.model
        channels = self.codec.channels
        height, width = self.config.data.size
        unet = build_unet(model.unet, 2 * channels + 1, channels, "model.unet", 2 * height / width)
        for module in unet.modules():
            if isinstance(module, Attention) and module.is_cross_attention:
                module.set_processor(NoCrossAttention())
        self.add("unet", unet, only=is_trained if model.attention_only else None)

    def trained_parameters(self) -> list[dict]:
        parameters = []
        for name, parameter in self.unet.named_parameters():
            read = ".attn2." not in name and ".norm2." not in name
            if read and (is_trained(name) or not self.config.model.attention_only):
                parameters.append(parameter)
        return [{"params": parameters}]

    def readings(self) -> dict:
        return super().readings() | {
            "garment": self.latents("garment"),
            "agnostic": self.latents("agnostic"),
        }

    def latent_shape(self) -> tuple[int, int, int]:
        channels, height, width = super().latent_shape()
        return channels, 2 * height, width

    def latents_of(self, batch: TryOnBatch) -> Tensor:
        """(B, C, 2h, w): the person above the garment."""
        return torch.cat([self.reading("person", batch), self.reading("garment", batch)], 2)

    def picture(self, z: Tensor, batch: TryOnBatch) -> Tensor:
        return super().picture(z[:, :, : z.shape[2] // 2], batch)

    def condition(self, batch: TryOnBatch) -> Conditions:
        agnostic, garment = self.reading("agnostic", batch), self.reading("garment", batch)
        mask = F.interpolate(batch.agnostic_mask, agnostic.shape[-2:], mode="nearest")
        return {
            "mask": torch.cat([mask, torch.zeros_like(mask)], 2),
            "masked": torch.cat([agnostic, garment], 2),
        }

    def unconditional(self, conditions: Conditions) -> Conditions:
        """The garment's half of the canvas zero."""
        masked = conditions["masked"].clone()
        masked[:, :, masked.shape[2] // 2 :] = 0
        return conditions | {"masked": masked}

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features) -> Tensor:
        x = torch.cat([z_t, conditions["mask"], conditions["masked"]], 1)
        text = x.new_zeros(len(x), 1, self.config.model.unet.context)
        return self.unet(x, t, text).sample

    def adjusted(self, noised: Noised, conditions: Conditions) -> Noised:
        """DREAM: part of the network's own error joins z_t and the target."""
        power = self.config.model.dream
        if not power:
            return noised
        with torch.no_grad():
            prediction = self.denoise(noised.z_t, noised.t, conditions, {})
        _, sigma = self.objective.signal_and_noise(noised.t, noised.z_t)
        error = sigma**power * (noised.target - prediction)
        return noised._replace(z_t=noised.z_t + sigma * error, target=noised.target + error)


def is_trained(name: str) -> bool:
    return ".attn1." in name
