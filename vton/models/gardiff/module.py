"""GarDiff (Wan et al., ECCV 2024, arXiv 2409.08258) behind the contract, in all of its modes.

paper: the UNet reads [x_t, x_w, x_a]: noisy latents, latents of the warped garment, latents of the
agnostic person. Its cross-attention reads CLIP tokens of the in-shop garment and latent tokens of
the warped one, inside the garment mask. The other modes are in vton/models/gardiff/released.py.
Here a batch becomes the tensors that the networks work on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from vton.config import ConfigError, ExperimentConfig
from vton.data.ranges import from_bytes, to_bytes
from vton.data.sample import TryOnBatch
from vton.diffusion.denoiser import Conditions, Denoiser
from vton.diffusion.objective import Noised
from vton.models.base import Reading, TryOnModule
from vton.models.encoders import ClipImageEncoder, clip_image_encoder, text_encoder
from vton.models.gardiff.building import build_network
from vton.models.gardiff.config import AppearanceConfig, GarDiffConfig
from vton.models.gardiff.losses import appearance_loss, build_dists
from vton.models.gardiff.released import clip_pixels, composite, paste_back
from vton.models.precision import without_autocast
from vton.models.rows import index_on
from vton.registry import register


@register(GarDiffConfig)
class GarDiff(TryOnModule):
    """A latent UNet with the garment in its input channels and its cross-attention; paper mode has
    the adapter and is trained with the appearance loss.
    """

    @classmethod
    def reads(cls, config: ExperimentConfig) -> frozenset[str]:
        return frozenset(
            ("person", "agnostic", "agnostic_mask", "garment", "warped_garment", "warped_mask")
        )

    def build(self) -> Denoiser:
        self.check_appearance()
        model: GarDiffConfig = self.config.model
        widths = (0, 0)
        if self.reads_clip:
            clip = clip_image_encoder(model.clip, dtype=self.stored(model.clip))
            widths = (clip.width, clip.tower.config.projection_dim)
            self.add("clip", clip, model.clip.trained)
        self.network = build_network(model, self.latent_shape(), *widths)
        if model.mode == "decoupled" or (model.mode != "paper" and not model.text.trained):
            text = text_encoder(model.text, dtype=self.stored(model.text))
            self.add("text", text, model.text.trained)
        if model.appearance.weight and model.appearance.spatial:
            self.frozen["dists"] = build_dists(model.appearance)
        if model.appearance.weight and model.unet.gradient_checkpointing:
            self.codec.checkpoint()  # the loss decodes every row
        if self.loss_in_float32 and self.config.codec.precision == "auto":
            self.codec.float()
        return self.network

    def check_appearance(self) -> None:
        """Raise ConfigError if the appearance loss would divide by a signal of zero."""
        appearance, objective = self.config.model.appearance, self.config.objective
        reads_last = appearance.weight and appearance.t_max >= objective.train_timesteps
        if reads_last and objective.zero_terminal_snr and objective.prediction == "epsilon":
            raise ConfigError(
                f"model.appearance.t_max={appearance.t_max} takes the loss to the last timestep, "
                "where objective.zero_terminal_snr leaves no signal and "
                "objective.prediction=epsilon implies no clean picture; set model.appearance.t_max "
                f"to at most {objective.train_timesteps - 1}, or v_prediction or sample."
            )

    @property
    def reads_clip(self) -> bool:
        model: GarDiffConfig = self.config.model
        return model.mode != "paper" or not model.adapter or "clip" in model.branches

    @property
    def loss_in_float32(self) -> bool:
        """Whether the appearance loss stays out of half precision. The constants that keep its
        roots' gradients finite are zero in float16.
        """
        return self.config.train.precision == "fp16" and self.config.model.appearance.weight > 0

    @property
    def reads_summary(self) -> bool:
        """Whether CLIP's summary is read instead of its patches."""
        return self.config.model.mode != "paper" or self.config.model.clip_tokens == "pooled"

    def trained_parameters(self) -> list[dict]:
        """UNet, adapter and token MLPs (text after Eq. 10); the encoders too where they start from
        scratch.
        """
        model: GarDiffConfig = self.config.model
        parameters = list(self.network.parameters())
        if self.reads_clip and model.clip.trained:
            parameters += self.clip.read_by("pooled" if self.reads_summary else "last")
        if model.mode == "decoupled" and model.text.trained:
            parameters += self.text.read_parameters()
        return [{"params": parameters}]

    # ---- what the encoders say ----

    def readings(self) -> dict[str, Reading]:
        model: GarDiffConfig = self.config.model
        readings = super().readings()
        if model.mode != "decoupled":
            readings["warped_garment"] = self.latents("warped_garment")
        if model.mode in ("paper", "legacy12"):
            readings["agnostic"] = self.latents("agnostic")
        else:
            fields = ("person", "warped_garment", "agnostic_mask")
            statistics = self.codec.statistics
            readings["composite"] = Reading(("codec",), fields, self.encode_composite, statistics)
        if self.reads_clip:
            settings = (model.mode, model.clip_tokens, model.clip_rescale, model.clip.fit)
            readings["clip"] = Reading(("clip",), ("garment",), self.read_garment, settings)
        if model.mode == "decoupled":
            settings = (model.text.penultimate,)
            readings["text"] = Reading(("text",), ("person_caption",), self.read_captions, settings)
        return readings

    def read_garment(self, batch: TryOnBatch) -> Tensor:
        """CLIP states (B, 1 + patches, width), or the projected summary (B, 1, projection)."""
        model: GarDiffConfig = self.config.model
        encoder: ClipImageEncoder = self.part("clip")
        with self.gradients_if(model.clip.trained):
            if model.mode == "release":
                pixels = clip_pixels(encoder, batch.garment, model.clip_rescale)
                return encoder.run(pixels).image_embeds[:, None]
            if self.reads_summary:
                return encoder.pooled(batch.garment)
            return encoder(batch.garment)

    def read_captions(self, batch: TryOnBatch) -> Tensor:
        return self.read_text(batch.person_caption)

    def read_text(self, captions: Sequence[str]) -> Tensor:
        """Text tokens (B, T, D)."""
        with self.gradients_if(self.config.model.text.trained):
            return self.part("text")(captions)[0]

    @torch.no_grad()
    def encode_composite(self, batch: TryOnBatch) -> Tensor:
        """Latents of the person with the warped garment laid over the agnostic region."""
        return self.codec.encode(composite(batch.person, batch.warped_garment, batch.agnostic_mask))

    def begin(self) -> Tensor | None:
        """The text encoder's begin token (1, 1, D); None where it is learned."""
        if self.config.model.text.trained:
            return None
        with torch.no_grad():
            return self.part("text").begin()

    # ---- conditions ----

    def condition(self, batch: TryOnBatch) -> Conditions:
        """What each mode's network asks for. Latents are posterior modes, where the scripts draw
        some.
        """
        clip = self.reading("clip", batch) if self.reads_clip else None
        conditions_of = {
            "paper": self._paper_conditions,
            "release": self._release_conditions,
            "legacy12": self._legacy_conditions,
            "decoupled": self._decoupled_conditions,
        }
        return conditions_of[self.config.model.mode](batch, clip)

    def _paper_conditions(self, batch: TryOnBatch, clip: Tensor | None) -> Conditions:
        return self.network.condition(
            x_w=self.reading("warped_garment", batch),
            x_a=self.reading("agnostic", batch),
            mask=batch.warped_mask,
            clip=clip,
        )

    def _release_conditions(self, batch: TryOnBatch, clip: Tensor) -> Conditions:
        return self.network.condition(
            begin=self.begin(),
            clip=clip,
            garment=self.reading("warped_garment", batch),
            z_comp=self.reading("composite", batch),
        )

    def _legacy_conditions(self, batch: TryOnBatch, clip: Tensor) -> Conditions:
        garment = self.reading("warped_garment", batch)
        agnostic = self.reading("agnostic", batch)
        return self.network.condition(
            begin=self.begin(),
            clip=clip,
            garment=garment,
            x_a=self.codec.unscaled(agnostic),
            x_w=self.codec.unscaled(garment),
            mask=batch.warped_mask,
        )

    def _decoupled_conditions(self, batch: TryOnBatch, clip: Tensor) -> Conditions:
        return self.network.condition(
            text=self.reading("text", batch),
            negative_text=self.read_text([""]),
            clip=clip[:, 0],
            z_comp=self.reading("composite", batch),
        )

    # ---- training and pictures ----

    def extra_losses(
        self, batch: TryOnBatch, noised: Noised, prediction: Tensor
    ) -> dict[str, Tensor]:
        """The appearance loss of clean pictures as the predictions imply them (Eq. 7 to 10)."""
        config: AppearanceConfig = self.config.model.appearance
        rows = (noised.t < config.t_max).nonzero().flatten()
        if config.samples:
            rows = rows[: config.samples]
        if not config.weight or not len(rows):
            return {}
        t, rows = noised.t[rows], index_on(prediction.device, rows)
        x0 = self.objective.clean(noised.z_t[rows], t, prediction[rows].float())
        with without_autocast(x0) if self.loss_in_float32 else nullcontext():
            loss = appearance_loss(
                self.codec.decode(x0),
                batch.person[rows],
                batch.warped_mask[rows],
                self.frozen.get("dists"),
                config.high_frequency,
            )
        return {"appearance": config.weight * loss}

    def picture(self, z: Tensor, batch: TryOnBatch) -> Tensor:
        picture = super().picture(z, batch)
        if not self.config.model.paste_back:
            return picture
        generated, original = to_bytes(picture).float(), to_bytes(batch.person).float()
        return from_bytes(paste_back(generated, original, batch.agnostic_mask))

    def garment_places(self, tokens: int) -> tuple[int, int] | None:
        """CLIP's patches behind its class token, where they show the whole garment; other tokens
        have no places.
        """
        reads_patches = self.reads_clip and not self.reads_summary
        if not reads_patches or self.config.model.clip.fit != "squash":
            return None
        tower = self.part("clip").tower.config
        side = tower.image_size // tower.patch_size
        return (side, side) if tokens == 1 + side**2 else None
