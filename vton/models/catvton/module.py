"""CatVTON (Chong et al., ICLR 2025, arXiv 2407.15886) behind the contract; DeCo-VTON by settings.

Here a batch becomes the canvas that vton/models/catvton/network.py works on.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vton.config import ConfigError, ExperimentConfig
from vton.data.sample import DataError, TryOnBatch
from vton.diffusion.denoiser import Conditions, Denoiser
from vton.diffusion.objective import Noised
from vton.models.base import Reading, TryOnModule
from vton.models.catvton.config import CatvtonConfig
from vton.models.catvton.network import (
    DIMENSIONS,
    CatVton,
    beside,
    dream,
    halves,
    is_trained,
    read_canvas,
)
from vton.models.codecs import latent_mask
from vton.models.encoders import text_encoder
from vton.models.precision import stored
from vton.models.unet import build_unet
from vton.processes import to_device
from vton.registry import register


@register(CatvtonConfig)
class CatvtonModule(TryOnModule):
    """One UNet over a canvas; as published, its self-attention alone learns."""

    @classmethod
    def reads(cls, config: ExperimentConfig) -> frozenset[str]:
        if config.model.mask:
            return frozenset(("person", "agnostic", "agnostic_mask", "garment"))
        return frozenset(("person", "person_other", "garment"))

    def build(self) -> Denoiser:
        model: CatvtonConfig = self.config.model
        channels = self.codec.channels
        height, width = self.config.data.size
        inputs = 2 * channels + int(model.mask)
        unet = build_unet(
            model.unet,
            inputs,
            channels,
            key="model.unet",
            aspect=height / width,
            dtype=stored(self.config, trained=True),
            train_all=model.trained == "unet",
        )
        if model.unet.positions:
            self.check_seam()
        read_canvas(unet, model.axis, self.reads_text, model.garment_positions)
        only = partial(is_trained, part=model.trained, text=self.reads_text)
        # A UNet that learns whole is saved whole, with the layers that are skipped.
        self.add("unet", unet, only=None if model.trained == "unet" else only)
        if self.reads_text:
            text = text_encoder(model.text, dtype=self.stored(model.text))
            self.add("text", text, model.text.trained)
        return CatVton(
            unet,
            model.axis,
            garment_free=model.unconditional == "garment_free",
            anchored=model.garment_latents == "anchored",
        )

    def check_seam(self) -> None:
        """Raise ConfigError where a level's tokens lie across the seam, as these have no place."""
        model: CatvtonConfig = self.config.model
        side = self.latent_shape()[DIMENSIONS[model.axis] - 1]
        for level in range(len(model.unet.widths)):
            if side % 2:
                raise ConfigError(
                    f"data.size={list(self.config.data.size)}: level {level} of the UNet has "
                    f"{side} lines of tokens along the canvas's {model.axis}, which no seam "
                    f"halves, and model.unet.positions={model.unet.positions:g} needs halves. "
                    "Use another size."
                )
            side = (side + 1) // 2

    @property
    def reads_text(self) -> bool:
        return self.config.model.cross_attention == "text"

    def trained_parameters(self) -> list[dict]:
        model: CatvtonConfig = self.config.model
        parameters = []
        for name, parameter in self.unet.named_parameters():
            if is_trained(name, model.trained, self.reads_text):
                parameters.append(parameter)
        if self.reads_text and model.text.trained:
            parameters += self.text.read_parameters()
        return [{"params": parameters}]

    # ---- the canvas ----

    def latents_of(self, batch: TryOnBatch) -> Tensor:
        """The person, unmasked, and the garment."""
        axis = self.config.model.axis
        return beside(self.reading("person", batch), self.reading("garment", batch), axis)

    def latent_shape(self) -> tuple[int, int, int]:
        channels, height, width = super().latent_shape()
        if self.config.model.axis == "height":
            return channels, 2 * height, width
        return channels, height, 2 * width

    def picture(self, z: Tensor, batch: TryOnBatch) -> Tensor:
        person, _ = halves(z, self.config.model.axis)
        return super().picture(person, batch)

    def condition(self, batch: TryOnBatch) -> Conditions:
        if self.config.model.mask:
            masked = self.reading("agnostic", batch)
            mask = latent_mask(batch.agnostic_mask, masked.shape[-2:])
        else:
            masked, mask = self.reading("other", batch), None
        return self.denoiser.condition(
            mask=mask,
            masked=masked,
            garment=self.reading("garment", batch),
            text=self.reading("text", batch) if self.reads_text else None,
        )

    def wearing(self, conditions: Conditions) -> Tensor:
        """Dropped samples don't, though their z_t shows the garment where t is small."""
        _, garment = halves(conditions["masked"], self.config.model.axis)
        return garment.flatten(1).any(1).cpu()  # waits for the device

    # ---- training ----

    def adjusted(self, noised: Noised, conditions: Conditions) -> Noised:
        """DREAM, if `model.dream` is set; on the person's half only if the loss is."""
        model: CatvtonConfig = self.config.model
        if model.dream is None:
            return noised
        with torch.no_grad():
            prediction = self.denoiser.denoise(noised.z_t, noised.t, conditions, {})
        where = None
        if model.loss_on == "person":
            person, garment = halves(noised.z_t[:, :1], model.axis)
            where = beside(torch.ones_like(person), torch.zeros_like(garment), model.axis)
        return dream(noised, prediction, self.objective, model.dream, where)

    def losses(self, prediction: Tensor, noised: Noised, batch: TryOnBatch) -> Tensor:
        model: CatvtonConfig = self.config.model
        if model.loss_on == "canvas":
            return super().losses(prediction, noised, batch)
        person, _ = halves(prediction, model.axis)
        target, _ = halves(noised.target, model.axis)
        return super().losses(person, noised._replace(target=target), batch)

    # ---- what the encoders say ----

    def readings(self) -> dict[str, Reading]:
        readings = super().readings()
        if self.config.model.mask:
            readings["agnostic"] = self.latents("agnostic")
        else:
            readings["other"] = Reading(
                ("codec",), ("person", "person_other"), self.read_other, self.codec.statistics
            )
        readings["garment"] = self.latents("garment")
        if self.reads_text:
            settings = (self.config.model.text.penultimate,)
            readings["text"] = Reading(("text",), ("person_caption",), self.read_captions, settings)
        return readings

    def read_other(self, batch: TryOnBatch) -> Tensor:
        """Latents of the persons in other clothes than the garment.

        In unpaired order the photograph shows them so. Raises DataError where a paired batch has no
        such picture.
        """
        pictures = batch.person
        if "paired" in batch.order:
            if batch.person_other is None:
                raise DataError(
                    f"{batch.dataset[0]}: model.mask=false needs persons in other clothes where "
                    "the photograph shows them in the garment; set data.person_other=true."
                )
            paired = torch.tensor([order == "paired" for order in batch.order])
            paired = to_device(paired, pictures.device).view(-1, 1, 1, 1)
            pictures = torch.where(paired, batch.person_other, pictures)
        with torch.no_grad():
            return self.codec.encode(pictures)

    def read_captions(self, batch: TryOnBatch) -> Tensor:
        """Tokens (B, L, C) of the persons' captions."""
        with self.gradients_if(self.config.model.text.trained):
            tokens, _ = self.part("text").encode_distinct(batch.person_caption)
        return tokens
