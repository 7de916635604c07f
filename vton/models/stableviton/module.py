"""StableVITON (Kim et al., CVPR 2024, arXiv 2312.01725) behind the contract.

The UNet reads [z_t, agnostic person, keep mask, DensePose]. The garment reaches it through a
spatial encoder's features, by zero cross-attention in its decoder, and through one CLIP token. Here
a batch becomes the tensors that vton/models/stableviton/network.py works on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vton.config import ConfigError
from vton.data.sample import DataError, TryOnBatch
from vton.diffusion.denoiser import Conditions
from vton.diffusion.objective import Noised
from vton.models.base import Reading, TryOnModule
from vton.models.precision import stored
from vton.models.stableviton.building import build_networks
from vton.models.stableviton.config import AttentionLossConfig, StableVitonConfig
from vton.models.stableviton.losses import attention_variation, garment_cells
from vton.models.stableviton.network import StableViton, without_effect
from vton.processes import to_device
from vton.registry import register


@register(StableVitonConfig)
class StableVitonModule(TryOnModule):
    """Spatial encoder, zero cross-attention and context token are trained; UNet and CLIP branch
    where the configuration says so.
    """

    denoiser: StableViton

    def build(self) -> StableViton:
        model: StableVitonConfig = self.config.model
        height, width = self.config.data.size
        frozen_dtype = stored(self.config, trained=False)
        networks = build_networks(model, self.codec.channels, height / width, frozen_dtype)
        trained = {"unet": model.unet.trained, "clip": model.clip.trained}
        for name, network in networks.named().items():
            self.add(name, network, trained.get(name, True))
        return StableViton(
            networks.unet,
            networks.token,
            networks.encoder,
            networks.garment_blocks,
            levels=self.levels,
            encoder_gradients=model.encoder_gradients,
            encoder_input=model.encoder_input,
            watched=model.attention_loss.blocks if model.attention_loss.weight else (),
        )

    @property
    def levels(self) -> int:
        """How many of the spatial encoder's levels are read."""
        levels = self.config.model.levels
        return len(levels) - levels[::-1].index(True)

    def trained_parameters(self) -> list[dict]:
        """What the prediction depends on and a gradient reaches. `without_effect` says what a
        context of one token leaves idle.
        """
        model: StableVitonConfig = self.config.model
        parameters = list(self.token.parameters())
        if model.garment != "token":
            parameters += self.encoder.read_by(self.levels)
            parameters += self.garment_blocks.parameters()
        if model.unet.trained:
            for name, parameter in self.unet.named_parameters():
                decodes = name.startswith(("up_blocks.", "conv_norm_out.", "conv_out."))
                if (decodes or model.encoder_gradients) and not without_effect(name):
                    parameters.append(parameter)
        if model.clip.trained:
            parameters += self.clip.parameters()
        return [{"params": parameters}]

    # ---- conditions ----

    def condition(self, batch: TryOnBatch) -> Conditions:
        """VAE posteriors enter by their modes, so that a picture depends on its seed alone
        (published: samples).
        """
        if batch.densepose is None:
            raise DataError(
                f"{batch.dataset[0]}: stableviton needs DensePose pictures; set "
                "data.densepose=true."
            )
        model: StableVitonConfig = self.config.model
        agnostic = self.reading("agnostic", batch)
        start = None
        if model.start != "noise":
            start = self.reading(model.start, batch)
        garment = None
        if model.garment != "token":
            garment = self.reading("garment", batch)
        return self.denoiser.condition(
            embedding=self.reading("clip", batch),
            agnostic=agnostic,
            keep=keep_mask(batch.agnostic_mask, agnostic.shape[-2:]),
            densepose=self.reading("densepose", batch),
            garment=garment,
            start=start,
        )

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        """Every row asks both the CLIP token and the learned vector, so that processes that train
        together have a gradient for both whatever is dropped.
        """
        conditions = self.condition(batch)
        dropped = to_device(u < self.config.model.condition_dropout, self.device).view(-1, 1, 1)
        null = self.denoiser.unconditional(conditions)["context"]
        return conditions | {"context": torch.where(dropped, null, conditions["context"])}

    # ---- what the encoders say ----

    def readings(self) -> dict[str, Reading]:
        readings = super().readings()
        for name in ("agnostic", "densepose"):
            readings[name] = self.latents(name)
        if self.config.model.garment != "token":
            readings["garment"] = self.latents("garment")
        readings["clip"] = Reading(("clip",), ("garment",), self.embed_garment)
        return readings

    def embed_garment(self, batch: TryOnBatch) -> Tensor:
        """(B, 1, width): CLIP's summary of the garments behind the mapper."""
        with self.gradients_if(self.config.model.clip.trained):
            return self.part("clip")(batch.garment)

    # ---- training ----

    def extra_losses(
        self, batch: TryOnBatch, noised: Noised, prediction: Tensor
    ) -> dict[str, Tensor]:
        """Attention total variation of the blocks that read neither too few nor too many tokens.

        Raises ConfigError where none does, and DataError without the worn garment's mask.
        """
        config: AttentionLossConfig = self.config.model.attention_loss
        if not config.weight or self.global_step < config.start_step:
            return {}
        if batch.truth_garment_mask is None:
            raise DataError(
                f"{batch.dataset[0]} {batch.order[0]}: model.attention_loss needs to know where "
                "the person wears the garment; set model.attention_loss.weight=0."
            )
        total = noised.z_t.new_zeros(())
        for centres in self.counted_centres():
            inside = garment_cells(batch.truth_garment_mask, tuple(centres.shape[1:3]))
            total = total + attention_variation(centres, inside)
        return {"attention": config.weight * total}

    def counted_centres(self) -> list[Tensor]:
        """The centres (B, h, w, 2) of the watched blocks with a number of tokens within bounds.

        Raises ConfigError if there is none.
        """
        config: AttentionLossConfig = self.config.model.attention_loss
        counted = []
        tokens = {}
        for position, centres in self.denoiser.centres.items():
            tokens[position] = centres.tokens
            if config.above_tokens < centres.tokens < config.below_tokens:
                counted.append(centres.of_cells)
        if not counted:
            raise ConfigError(
                f"model.attention_loss: none of its blocks={list(config.blocks)} reads more than "
                f"{config.above_tokens} and fewer than {config.below_tokens} garment tokens "
                f"(found {tokens or 'no such block'}); set above_tokens and below_tokens for "
                f"data.size={list(self.config.data.size)}, or weight=0."
            )
        return counted


def keep_mask(agnostic_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, h, w) in [0, 1]: 1 where the person is known. Soft at the border: the mean of the
    middle pixels of each cell.
    """
    return F.interpolate(1 - agnostic_mask, size, mode="bilinear")
