"""GarDiff (Wan et al., ECCV 2024, arXiv 2409.08258) behind the contract, in all of its modes.

paper: the UNet reads [x_t, x_w, x_a]: noisy latents, latents of the warped garment, latents of the
agnostic person. Its cross-attention reads CLIP tokens of the in-shop garment and latent tokens of
the warped one, inside the garment mask. The other modes are in vton/models/gardiff/released.py.
Here a batch becomes the tensors that the networks work on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vton.data.sample import TryOnBatch
from vton.diffusion.sampling import Conditions, Features, Known
from vton.models.base import Reading, TryOnModule
from vton.models.encoders import ClipImageEncoder, clip_image_encoder, text_encoder
from vton.models.gardiff.building import build_network
from vton.models.gardiff.config import AppearanceConfig, GarDiffConfig
from vton.models.gardiff.losses import (
    DISTS,
    VGG16_CHANNELS,
    appearance_loss,
    published_dists,
    random_dists,
)
from vton.models.gardiff.released import clip_pixels, composite, paste_back
from vton.registry import register
from vton.weights.metric_networks import for_loss

log = logging.getLogger(__name__)


@register(GarDiffConfig)
class GarDiff(TryOnModule):
    """A latent UNet with the garment in its input channels and its cross-attention; paper mode has
    the adapter and is trained with the appearance loss.
    """

    def build(self) -> None:
        model: GarDiffConfig = self.config.model
        widths = (0, 0)
        if self.reads_clip:
            clip = clip_image_encoder(model.clip)
            widths = (clip.width, clip.tower.config.projection_dim)
            self.add("clip", clip, model.clip.trained)
        self.network = build_network(model, self.latent_shape(), *widths)
        if model.mode == "decoupled" or (model.mode != "paper" and not model.text.trained):
            self.add("text", text_encoder(model.text), model.text.trained)
        if model.appearance.weight and model.appearance.spatial:
            self.frozen["dists"] = build_dists(model.appearance)

    @property
    def reads_clip(self) -> bool:
        model: GarDiffConfig = self.config.model
        return model.mode != "paper" or not model.adapter or "clip" in model.branches

    def trained_parameters(self) -> list[dict]:
        """UNet, adapter and token MLPs (text after Eq. 10); the encoders too where they start from
        scratch.
        """
        model: GarDiffConfig = self.config.model
        parameters = list(self.network.parameters())
        if self.reads_clip and model.clip.trained:
            parameters += self.clip.read_by("pooled" if self.pooled else "last")
        if model.mode == "decoupled" and model.text.trained:
            parameters += self.text.read_parameters()
        return [{"params": parameters}]

    @property
    def pooled(self) -> bool:
        """Whether CLIP's summary is read instead of its patches."""
        return self.config.model.mode != "paper" or self.config.model.clip_tokens == "pooled"

    def read_garment(self, garment: Tensor) -> Tensor:
        """CLIP states (B, 1 + patches, width), or the projected summary (B, 1, projection)."""
        model: GarDiffConfig = self.config.model
        encoder: ClipImageEncoder = self.part("clip")
        with self.gradients_if(model.clip.trained):
            if model.mode in ("release", "legacy12"):
                return encoder.tower(
                    clip_pixels(encoder, garment, model.clip_rescale)
                ).image_embeds[:, None]
            return encoder.pooled(garment) if self.pooled else encoder(garment)

    def readings(self) -> dict[str, Reading]:
        model: GarDiffConfig = self.config.model
        pictures = {
            "paper": ("warped_garment", "agnostic"),
            "legacy12": ("warped_garment", "agnostic"),
            "release": ("warped_garment",),
            "decoupled": (),
        }[model.mode]
        found = super().readings() | {name: self.latents(name) for name in pictures}
        if model.mode in ("release", "decoupled"):
            fields = ("person", "warped_garment", "agnostic_mask")
            found["composite"] = Reading(
                ("codec",), fields, self.encode_composite, (self.codec.scaling,)
            )
        if self.reads_clip:
            settings = (model.mode, model.clip_tokens, model.clip_rescale, model.clip.fit)
            found["clip"] = Reading(
                ("clip",), ("garment",), lambda b: self.read_garment(b.garment), settings
            )
        if model.mode == "decoupled":
            captions, settings = ("person_caption",), (model.text.penultimate,)
            found["text"] = Reading(
                ("text",), captions, lambda b: self.read_text(b.person_caption), settings
            )
        return found

    def read_text(self, captions: Sequence[str]) -> Tensor:
        """Text tokens (B, T, D)."""
        with self.gradients_if(self.config.model.text.trained):
            return self.part("text")(captions)[0]

    @torch.no_grad()
    def encode_composite(self, batch: TryOnBatch) -> Tensor:
        """Latents of the person with the warped garment laid over the agnostic region."""
        return self.codec.encode(composite(batch.person, batch.warped_garment, batch.agnostic_mask))

    def condition(self, batch: TryOnBatch) -> Conditions:
        """What each mode's network asks for; latents are posterior modes, where the scripts draw
        some.
        """
        mode, network = self.config.model.mode, self.network
        clip = self.reading("clip", batch) if self.reads_clip else None
        if mode == "paper":
            x_w, x_a = self.reading("warped_garment", batch), self.reading("agnostic", batch)
            return network.condition(x_w=x_w, x_a=x_a, mask=batch.warped_mask, clip=clip)
        if mode == "legacy12":
            garment, agnostic = (
                self.reading("warped_garment", batch),
                self.reading("agnostic", batch),
            )
            x_a, x_w = agnostic / self.codec.scaling, garment / self.codec.scaling
            begin, mask = self.begin(), batch.warped_mask
            return network.condition(
                begin=begin, clip=clip, garment=garment, x_a=x_a, x_w=x_w, mask=mask
            )
        z_comp = self.reading("composite", batch)
        if mode == "release":
            garment = self.reading("warped_garment", batch)
            return network.condition(begin=self.begin(), clip=clip, garment=garment, z_comp=z_comp)
        text, negative_text = self.reading("text", batch), self.read_text([""])
        return network.condition(
            text=text, negative_text=negative_text, clip=clip[:, 0], z_comp=z_comp
        )

    def begin(self) -> Tensor | None:
        """The text encoder's begin token (1, 1, D); None where it is learned."""
        if self.config.model.text.trained:
            return None
        with torch.no_grad():
            return self.part("text").begin()

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        return self.network.denoise(z_t, t, conditions, features)

    def unconditional(self, conditions: Conditions) -> Conditions:
        return self.network.unconditional(conditions)

    def garment_grid(self, tokens: int) -> tuple[int, int] | None:
        """CLIP's patches behind its class token, where they show the whole garment; other tokens
        have no places.
        """
        side = math.isqrt(tokens - 1)
        whole = self.config.model.clip.fit == "squash" and side > 1 and side**2 == tokens - 1
        return (side, side) if whole else None

    def known(self, conditions: Conditions) -> Known | None:
        return self.network.known(conditions)

    def extra_losses(
        self, batch: TryOnBatch, z_t: Tensor, t: Tensor, prediction: Tensor
    ) -> dict[str, Tensor]:
        config = self.config.model.appearance
        # Without values, on the meta device, the most that may be asked.
        rows = (
            torch.arange(len(t), device=t.device)
            if t.is_meta
            else (t < config.t_max).nonzero().flatten()
        )
        rows = rows[: config.samples] if config.samples else rows
        if not config.weight or not len(rows):
            return {}
        x0 = self.objective.clean(z_t[rows], t[rows], prediction[rows].float())  # Eq. 7
        picture, mask = self.codec.decode(x0), batch.warped_mask[rows]
        loss = appearance_loss(
            picture, batch.person[rows], mask, self.frozen.get("dists"), config.high_frequency
        )
        return {"appearance": config.weight * loss}

    def generate(self, batch: TryOnBatch, seed: int = 0) -> Tensor:
        picture = super().generate(batch, seed)
        if not self.config.model.paste_back:
            return picture
        generated, original = (((image + 1) * 127.5).round() for image in (picture, batch.person))
        return paste_back(generated, original, batch.agnostic_mask) / 127.5 - 1


def build_dists(config: AppearanceConfig) -> DISTS:
    """DISTS for the loss: published weights where a folder has them, else fixed random ones, and
    says so.
    """
    if tuple(config.dists_channels) == VGG16_CHANNELS:
        if vgg16 := for_loss("vgg", config.dists_weights, "model.appearance.dists_weights"):
            return published_dists(vgg16)
        log.warning(
            "Appearance loss: DISTS runs on fixed random VGG16 features. `make weights` fetches the real ones."
        )
    return random_dists(tuple(config.dists_channels))
