"""LaDI-VTON (Morelli et al., ACM MM 2023, arXiv 2305.13501) behind the contract.

An inpainting UNet reads the warped garment and the pose beside its own channels, and the garment as
pseudo-words in its prompt; EMASC leads the known pixels around the codec's latents. A run trains
them in up to three stages, one after the other in one run folder:

    emasc      `emasc_steps` long: EMASC, on reconstructions of the person
    adapter    `adapter_steps` long: the inversion adapter, read by the frozen base UNet
    try-on     the rest: UNet and adapter; and EMASC, where it has no stage of its own
"""
# Shapes: B batch, C h w latents, H W picture

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from vton.config import ExperimentConfig
from vton.data.sample import TryOnBatch
from vton.diffusion import noise
from vton.diffusion.denoiser import Conditions, Denoiser
from vton.models.base import Reading, TryOnModule, lr_factor
from vton.models.codecs import KLCodec, latent_mask
from vton.models.encoders import ClipImageEncoder, clip_image_encoder
from vton.models.ladi_vton.building import (
    build_adapter,
    build_emasc,
    build_network,
    build_prompter,
)
from vton.models.ladi_vton.config import LadiVtonConfig
from vton.models.ladi_vton.emasc import decode_with_skips, skip_features
from vton.models.ladi_vton.network import DROPPABLE
from vton.models.ladi_vton.pose import pose_latents, pose_maps
from vton.models.ladi_vton.words import Prompter, clip_pixels
from vton.models.precision import stored
from vton.models.warp.losses import build_perceptual
from vton.processes import to_device
from vton.registry import register

TrainingStage = Literal["emasc", "adapter", "try-on"]


@register(LadiVtonConfig)
class LadiVton(TryOnModule):
    """UNet, inversion adapter and EMASC; CLIP's towers too where they start from scratch."""

    @classmethod
    def reads(cls, config: ExperimentConfig) -> frozenset[str]:
        return frozenset(
            ("person", "agnostic", "agnostic_mask", "garment", "warped_garment", "keypoints")
        )

    def build(self) -> Denoiser:
        model: LadiVtonConfig = self.config.model
        height, width = self.config.data.size
        self.network = build_network(model, self.codec.channels, aspect=height / width)
        text_trained = model.text.trained and model.prompt != "none"
        prompter = build_prompter(model, stored(self.config, text_trained))
        self.add("text", prompter, text_trained)
        if model.prompt == "words":
            clip = clip_image_encoder(model.clip, dtype=self.stored(model.clip))
            self.add("clip", clip, model.clip.trained)
            adapter = build_adapter(model.adapter, clip, model.text.width)
            self.add("adapter", adapter, model.adapter.trained)
        if model.emasc.kind != "none":
            self.add("emasc", build_emasc(model.emasc, self.codec), model.emasc.trained)
            if model.emasc.trained and model.perceptual.weight:
                self.frozen["perceptual"] = build_perceptual(model.perceptual)
        return self.network

    def trained_parameters(self) -> list[dict]:
        parameters = []
        for name, network in self.trained_networks().items():
            if name == "clip":
                parameters += network.read_by("last")
            else:
                parameters += network.parameters()
        return [{"params": parameters}]

    def trained_networks(self) -> dict[str, nn.Module]:
        return dict(self.named_children())

    def networks(self) -> dict[str, nn.Module]:
        networks = super().networks()
        return {"unet": networks.pop("network").unet, **networks}

    # ---- what the encoders say ----

    def readings(self) -> dict[str, Reading]:
        model: LadiVtonConfig = self.config.model
        readings = {"person": self.posterior("person"), "agnostic": self.posterior("agnostic")}
        if model.garment_input == "warped":
            readings["warped_garment"] = self.posterior("warped_garment")
        if model.prompt == "words":
            readings["clip"] = Reading(("clip",), ("garment",), self.read_garment)
        return readings

    @property
    def draws_latents(self) -> bool:
        """Whether latents are drawn; other codecs than an autoencoder have no spread."""
        return self.config.model.posterior == "draw" and isinstance(self.codec, KLCodec)

    def posterior(self, field: str) -> Reading:
        """Scaled mean and deviation (B, 2 C, h, w) of a picture's latents; its latents alone where
        none are drawn.
        """
        if not self.draws_latents:
            return self.latents(field)

        def compute(batch: TryOnBatch) -> Tensor:
            with torch.no_grad():
                posterior = self.codec.posterior(getattr(batch, field))
                return torch.cat([posterior.mean, posterior.std], dim=1) * self.codec.scaling

        return Reading(("codec",), (field,), compute, (*self.codec.statistics, "posterior"))

    def drawn(self, name: str, batch: TryOnBatch) -> Tensor:
        """Latents (B, C, h, w) of one of the batch's pictures."""
        reading = self.reading(name, batch)
        if not self.draws_latents:
            return reading
        mean, deviation = reading.chunk(2, dim=1)
        return mean + deviation * noise.normal(mean.shape[1:], self.draws(name, batch), mean)

    def draws(self, purpose: str, batch: TryOnBatch) -> list[torch.Generator]:
        """A generator for each sample: of its place in the training stream, else of its pair."""
        generators = []
        for position, order, pair in zip(batch.position, batch.order, batch.pair_id, strict=True):
            key = (self.config.eval.seed, purpose, order, pair)
            if self.training:
                key = (self.config.seed, purpose, position)
            generators.append(noise.generator(*key))
        return generators

    def read_garment(self, batch: TryOnBatch) -> Tensor:
        """CLIP's tokens (B, P, E) behind its last layer, before the norm."""
        encoder: ClipImageEncoder = self.part("clip")
        with self.gradients_if(self.config.model.clip.trained):
            return encoder.run(clip_pixels(encoder, batch.garment)).last_hidden_state

    # ---- conditions ----

    def latents_of(self, batch: TryOnBatch) -> Tensor:
        return self.drawn("person", batch)

    def condition(self, batch: TryOnBatch) -> Conditions:
        model: LadiVtonConfig = self.config.model
        garment = None
        if model.garment_input == "warped":
            garment = self.drawn("warped_garment", batch)
        return self.network.condition(
            mask=latent_mask(batch.agnostic_mask, self.latent_shape()[1:]),
            masked=self.drawn("agnostic", batch),
            pose=self.pose(batch),
            garment=garment,
            text=self.text_states(batch),
            empty_text=self.part("text")([""]),
        )

    def pose(self, batch: TryOnBatch) -> Tensor:
        """Heat maps of the J joints at latent size, (B, J, h, w); zeros without pose_input."""
        model: LadiVtonConfig = self.config.model
        height, width = batch.person.shape[-2:]
        pixels = torch.tensor([width, height], dtype=batch.keypoints.dtype)
        joints = batch.keypoints[..., :2] * to_device(pixels, batch.keypoints.device)
        visible = batch.keypoints[..., 2] > 0
        if not model.pose_input:
            visible = torch.zeros_like(visible)
        maps = pose_maps(joints, visible, (height, width), model.heat_sigma)
        return pose_latents(maps, self.latent_shape()[1:]).to(batch.person.dtype)

    def text_states(self, batch: TryOnBatch) -> Tensor:
        """The text that cross-attention reads, (B, L, T)."""
        text: Prompter = self.part("text")
        if self.config.model.prompt == "caption":
            return text(batch.garment_caption)
        if self.config.model.prompt == "none":
            return text([""]).expand(len(batch), -1, -1)
        return text.with_words(batch.category, self.words(batch))

    def words(self, batch: TryOnBatch) -> Tensor:
        """The garments' pseudo-words, (B, N, T); with the adapter's dropout while it is trained."""
        adapter = self.part("adapter")
        with self.gradients_if(self.config.model.adapter.trained):
            dropout = self.training and self.config.model.adapter.trained
            draws = self.draws("words", batch) if dropout else None
            return adapter(self.reading("clip", batch), draws)

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        """Text, garment and pose are dropped independently; the adapter's stage lacks the last two
        and drops nothing.
        """
        conditions = self.condition(batch)
        if self.stage == "adapter":
            every_row = torch.ones(len(batch), dtype=torch.bool)
            return self.network.without(conditions, {"garment": every_row, "pose": every_row})
        rows = independent(u, self.config.model.condition_dropout, DROPPABLE)
        return self.network.without(conditions, rows)

    # ---- stages ----

    @property
    def stage(self) -> TrainingStage:
        """The stage of the current step; outside training the last one, which costs most."""
        return self.stage_at(self.global_step) if self._trainer else "try-on"

    def stage_at(self, step: int) -> TrainingStage:
        if step < self.stage_starts["adapter"]:
            return "emasc"
        return "adapter" if step < self.stage_starts["try-on"] else "try-on"

    @property
    def stage_starts(self) -> dict[TrainingStage, int]:
        """The first step of each stage. The stage of a network that is not trained is empty."""
        model: LadiVtonConfig = self.config.model
        trained = self.trained_networks()
        emasc_steps = model.emasc_steps if "emasc" in trained else 0
        adapter_steps = model.adapter_steps if "adapter" in trained else 0
        return {"emasc": 0, "adapter": emasc_steps, "try-on": emasc_steps + adapter_steps}

    def learning(self) -> set[str]:
        """Names of the networks that learn in the current step."""
        if self.stage == "emasc":
            return {"emasc"}
        if self.stage == "adapter":
            return {"adapter"}
        learning = set(self.trained_networks())
        return learning - {"emasc"} if self.stage_starts["adapter"] else learning

    def training_loss(
        self, batch: TryOnBatch, x0: Tensor, eps: Tensor, t: Tensor, u: Tensor
    ) -> Tensor:
        """The loss of the networks that learn at this step; the others get a gradient of zero."""
        learning = self.learning()
        losses = self.emasc_losses(batch, x0) if "emasc" in learning else {}
        loss = sum(losses.values())
        if self.stage != "emasc":
            loss = super().training_loss(batch, x0, eps, t, u) + loss
        else:
            self.last_losses = {}
        for name, term in losses.items():
            self.last_losses[name] = term.detach()
        for parameter in self.resting(learning):
            # DDP waits for a gradient of every parameter; FSDP2, whose shards these are, does not.
            if not isinstance(parameter, DTensor):
                loss = loss + 0 * parameter.sum()
        return loss

    def emasc_losses(self, batch: TryOnBatch, x0: Tensor) -> dict[str, Tensor]:
        """L1, and VGG19's distance, of the person decoded from its latents with the skips."""
        rows = slice(self.config.model.emasc.samples or None)
        batch, x0 = batch[rows], x0[rows]
        decoded = decode_with_skips(self.codec, x0, self.skips(batch))
        losses = {"emasc": F.l1_loss(decoded, batch.person)}
        if "perceptual" in self.frozen:
            distance = self.frozen["perceptual"](decoded, batch.person)
            losses["perceptual"] = self.config.model.perceptual.weight * distance
        return losses

    def skips(self, batch: TryOnBatch) -> list[Tensor]:
        if self.config.model.emasc.kind == "none":
            return []
        with torch.no_grad():
            features = skip_features(self.codec, batch.agnostic)
        return self.part("emasc")(features, batch.agnostic_mask)

    def resting(self, learning: set[str]) -> list[nn.Parameter]:
        """Trained parameters that do not learn in this step."""
        parameters = []
        for name, network in self.trained_networks().items():
            if name not in learning:
                parameters += [p for p in network.parameters() if p.requires_grad]
        return parameters

    def on_after_backward(self) -> None:
        # Theirs are zero, or were left in a UNet through which the adapter learns.
        for parameter in self.resting(self.learning()):
            parameter.grad = None

    def configure_optimizers(self):
        """The shared optimizer, with a warm-up at the start of each stage."""
        configured = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(configured["optimizer"], self.rate_at)
        return configured | {"lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate_at(self, step: int) -> float:
        train = self.config.train
        rate = lr_factor(step, train)
        begun = self.stage_starts[self.stage_at(step)]
        if begun:
            rate *= min(1.0, (step - begun + 1) / max(train.warmup_steps, 1))
        return rate

    # ---- pictures ----

    def picture(self, z: Tensor, batch: TryOnBatch) -> Tensor:
        return decode_with_skips(self.codec, z, self.skips(batch)).clamp(-1, 1)

    def garment_places(self, tokens: int) -> None:
        """None: the words describe the garment as a whole."""


def independent(u: Tensor, probability: float, names: Sequence[str]) -> dict[str, Tensor]:
    """(B,) bool for each name, each true with this probability, from one uniform u (B,) in [0, 1).

    Once a coin is decided, u rescaled to the decided part of [0, 1) is uniform again, and decides
    the next one.
    """
    u = u.double()
    coins = {}
    for name in names:
        coins[name] = u < probability
        if 0 < probability < 1:
            below, above = u / probability, (u - probability) / (1 - probability)
            u = torch.where(coins[name], below, above)
    return coins
