"""GarDiff (Wan et al., ECCV 2024, arXiv 2409.08258) behind the contract: paper mode.

The UNet reads [x_t, x_w, x_a]: noisy latents, latents of the warped garment, latents of the agnostic person. Its
cross-attention reads CLIP tokens of the in-shop garment and latent tokens of the warped one, inside the garment mask.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vton.data.sample import TryOnBatch
from vton.diffusion.sampling import Conditions, Features
from vton.models.base import TryOnModule
from vton.models.encoders import clip_image_encoder
from vton.models.gardiff.checkpoint import load_base_unet
from vton.models.gardiff.config import AppearanceConfig, GarDiffConfig
from vton.models.gardiff.losses import DISTS, VGG16_CHANNELS, appearance_loss, dists_with_weights, random_dists
from vton.models.gardiff.network import GarDiffUNet, latent_tokens
from vton.models.unet import build_unet
from vton.registry import register

log = logging.getLogger(__name__)


@register(GarDiffConfig)
class GarDiff(TryOnModule):
    """12-channel latent UNet with the garment-focused adapter, trained with the appearance loss."""

    def build(self) -> None:
        model: GarDiffConfig = self.config.model
        clip = clip_image_encoder(model.clip)
        self.add("clip", clip, model.clip.trained)
        channels, h, w = self.latent_shape()
        if model.unet.pretrained:
            unet = load_base_unet(model.unet, channels)
        else:
            unet = build_unet(model.unet, 3 * channels, channels, key="model.unet")
        self.network = GarDiffUNet(
            unet,
            clip_width=clip.width if model.clip_tokens == "all" else clip.tower.config.projection_dim,
            vae_width=(h // 2) * (w // 2) if model.vae_tokens == "channels" else 4 * channels,
            adapter=model.adapter,
            mask_branches=tuple(model.mask_branches),
        )
        if model.appearance.weight and model.appearance.spatial:
            self.frozen["dists"] = build_dists(model.appearance)

    def trained_parameters(self) -> list[dict]:
        """UNet, adapter and token MLPs (text after Eq. 10); the image encoder too where it starts from scratch."""
        parameters = list(self.network.parameters())
        if self.config.model.clip.trained:
            parameters += self.clip.read_by("pooled" if self.config.model.clip_tokens == "pooled" else "last")
        return [{"params": parameters}]

    def condition(self, batch: TryOnBatch) -> Conditions:
        model: GarDiffConfig = self.config.model
        with torch.no_grad():
            x_w = self.codec.encode(batch.warped_garment)
            x_a = self.codec.encode(batch.agnostic)
        with self.gradients_if(model.clip.trained):
            encoder = self.part("clip")
            embeddings = encoder(batch.garment) if model.clip_tokens == "all" else encoder.pooled(batch.garment)
        conditions = {
            "x_w": x_w,
            "x_a": x_a,
            "mask": F.interpolate(batch.warped_mask, x_w.shape[-2:], mode="nearest"),
            "f_clip": self.network.clip_mlp(embeddings),
        }
        if model.adapter:
            conditions["f_vae"] = self.network.vae_mlp(latent_tokens(x_w, model.vae_tokens))
        return conditions

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        c = conditions
        return self.network(z_t, t, c["x_w"], c["x_a"], c["f_clip"], c.get("f_vae"), c["mask"])

    def unconditional(self, conditions: Conditions) -> Conditions:
        """Both garment embeddings dropped together: the projections of zeros. The latents stay (Section 4.1)."""
        null = dict(conditions)
        for name, mlp in (("f_clip", self.network.clip_mlp), ("f_vae", getattr(self.network, "vae_mlp", None))):
            if name in conditions:
                zeros = conditions[name].new_zeros(1, 1, mlp[0].normalized_shape[0])
                null[name] = mlp(zeros).expand_as(conditions[name])
        return null

    def extra_losses(self, batch: TryOnBatch, z_t: Tensor, t: Tensor, prediction: Tensor) -> dict[str, Tensor]:
        config = self.config.model.appearance
        rows = (t < config.t_max).nonzero().flatten()
        rows = rows[: config.samples] if config.samples else rows
        if not config.weight or not len(rows):
            return {}
        x0 = self.objective.clean(z_t[rows], t[rows], prediction[rows].float())  # Eq. 7
        picture, mask = self.codec.decode(x0), batch.warped_mask[rows]
        loss = appearance_loss(picture, batch.person[rows], mask, self.frozen.get("dists"), config.high_frequency)
        return {"appearance": config.weight * loss}


def build_dists(config: AppearanceConfig) -> DISTS:
    """DISTS for the loss: published weights where a folder has them, else fixed random ones, and says so."""
    folder = config.dists_weights or os.environ.get("VTON_METRIC_WEIGHTS", "")
    if folder and tuple(config.dists_channels) == VGG16_CHANNELS:
        return dists_with_weights(Path(folder))
    log.warning("Appearance loss: DISTS runs on fixed random VGG features (model.appearance.dists_weights is empty).")
    return random_dists(tuple(config.dists_channels))
