"""IDM-VTON (Choi et al., ECCV 2024, arXiv 2403.05139) behind the contract.

TryonNet reads [x_t, mask, masked person, DensePose]; the garment reaches it through GarmentNet
(self-attention), CLIP tokens (cross-attention) and captions. Here a batch becomes the tensors that
vton/models/idm_vton/network.py works on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from vton.data.sample import DataError, TryOnBatch
from vton.diffusion.sampling import Conditions, Features, Known, Step
from vton.models.base import Reading, TryOnModule
from vton.models.encoders import clip_image_encoder, text_encoder
from vton.models.idm_vton.building import build_garment_net, build_tryon
from vton.models.idm_vton.config import IdmVtonConfig
from vton.models.idm_vton.network import IdmVton, NullPrompt, distinct, latent_mask
from vton.models.unet import read_by_taps, same_garment
from vton.registry import register


@register(IdmVtonConfig)
class IdmVtonModule(TryOnModule):
    """TryonNet is trained; GarmentNet, CLIP and the text encoders where the configuration says so."""

    def build(self) -> None:
        model: IdmVtonConfig = self.config.model
        channels, (height, width) = self.codec.channels, self.config.data.size
        aspect = height / width
        clip = clip_image_encoder(model.clip) if model.image_prompt.enabled else None
        self.tryon = build_tryon(model, channels, clip.width if clip else 0, aspect)
        garment_net = (
            build_garment_net(model.garment_unet, channels, aspect) if model.garment_net else None
        )
        if garment_net:
            self.add("garment_net", garment_net, model.garment_unet.trained)
        if clip:
            self.add("clip", clip, model.clip.trained)
        self.add("text", text_encoder(model.text, "model.text"), model.text.trained)
        self.add("text_2", text_encoder(model.text_2, "model.text_2"), model.text_2.trained)
        self.model = IdmVton(self.tryon, garment_net, self.null_prompt, model.garment_timestep)

    def trained_parameters(self) -> list[dict]:
        """TryonNet with Resampler and image keys/values; of the others what their result depends
        on.
        """
        model: IdmVtonConfig = self.config.model
        parameters = [
            p for name, p in self.tryon.unet.named_parameters() if trained_in_tryon(name, model)
        ]
        if model.garment_net and model.garment_unet.trained:
            parameters += read_by_taps(self.garment_net)
        if model.image_prompt.enabled and model.clip.trained:
            parameters += self.clip.read_by("penultimate")
        for text in (
            self.text if model.text.trained else None,
            self.text_2 if model.text_2.trained else None,
        ):
            parameters += text.read_parameters() if text else []
        return [{"params": parameters}]

    def condition(self, batch: TryOnBatch) -> Conditions:
        """VAE posteriors enter by their modes, so that a picture depends on its seed alone
        (published: samples).
        """
        if batch.densepose is None:
            raise DataError(
                f"{batch.dataset[0]}: idm_vton needs DensePose pictures; set data.densepose=true."
            )
        model: IdmVtonConfig = self.config.model
        first, garment = distinct(same_garment(batch.garment, batch.garment_caption))
        text, pooled, garment_text = self.read_both_captions(batch, first)
        masked, read = self.reading("agnostic", batch), {}
        if model.garment_net:
            latents = self.reading("garment", batch, first)
            read = {
                "garment": garment,
                "garment_latents": latents[garment],
                "garment_text": garment_text[garment],
            }
        if model.image_prompt.enabled:
            read["image_tokens"] = self.tryon.image_tokens(self.reading("clip", batch, first))[
                garment
            ]
        return self.model.condition(
            mask=latent_mask(batch.agnostic_mask, masked.shape[-2:]),
            masked=masked,
            pose=self.reading("densepose", batch),
            text=text,
            pooled=pooled,
            size_ids=size_ids(batch.person),
            **read,
        )

    def readings(self) -> dict[str, Reading]:
        model: IdmVtonConfig = self.config.model
        found = super().readings() | {
            name: self.latents(name) for name in ("agnostic", "densepose")
        }
        encoders, settings = ("text", "text_2"), (model.text.penultimate, model.text_2.penultimate)
        asked = {"text": ("person_caption", 0), "pooled": ("person_caption", 1)}
        if model.garment_net:
            found["garment"] = self.latents("garment")
            asked["garment_text"] = ("garment_caption", 0)
        if model.image_prompt.enabled:
            found["clip"] = Reading(("clip",), ("garment",), self.read_clip, (model.clip.fit,))
        for name, (caption, part) in asked.items():
            found[name] = Reading(
                encoders, (caption,), partial(self.read_caption, caption, part), settings
            )
        return found

    def read_clip(self, batch: TryOnBatch) -> Tensor:
        """CLIP states (B, 1 + patches, width) of the garments."""
        with self.gradients_if(self.config.model.clip.trained):
            return self.part("clip").penultimate(batch.garment)

    def read_caption(self, field: str, part: int, batch: TryOnBatch) -> Tensor:
        """Tokens (part 0) or pooled vectors (1) of the captions in a field of the batch."""
        return self.read_captions(getattr(batch, field))[part]

    def read_both_captions(
        self, batch: TryOnBatch, first: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The persons' tokens and pooled vectors (B, ...), and the tokens of the garments in rows
        `first`; none of them without GarmentNet.

        One pass of the encoders for all captions, unless these were computed ahead.
        """
        first = first if self.config.model.garment_net else []
        if batch.encoded is not None and "text" in batch.encoded:
            text = self.reading("text", batch)
            garment_text = self.reading("garment_text", batch, first) if first else text[:0]
            return text, self.reading("pooled", batch), garment_text
        text, pooled = self.read_captions(
            [*batch.person_caption, *(batch.garment_caption[row] for row in first)]
        )
        return text[: len(batch)], pooled[: len(batch)], text[len(batch) :]

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        conditions = self.condition(batch)
        if self.config.model.training_size_ids == "square":
            conditions["size_ids"] = size_ids(batch.person, square=True)
        return self.drop(conditions, u < self.config.model.condition_dropout)

    def read_captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Both encoders' tokens side by side (B, L, C), and the second one's pooled vector (B, P)."""
        known = list(dict.fromkeys(captions))
        with self.gradients_if(self.config.model.text.trained):
            tokens, _ = self.part("text")(known)
        with self.gradients_if(self.config.model.text_2.trained):
            tokens_2, pooled = self.part("text_2")(known)
        rows = [known.index(caption) for caption in captions]
        return torch.cat([tokens, tokens_2], 2)[rows], pooled[rows]

    def null_prompt(self) -> NullPrompt:
        """The negative prompt, and CLIP's states of an all-zero pixel tensor: a picture of its mean
        colour.
        """
        prompt = self.read_captions([self.config.model.negative_prompt])
        if not self.config.model.image_prompt.enabled:
            return NullPrompt(*prompt, None)
        clip = self.part("clip")
        with self.gradients_if(self.config.model.clip.trained):
            empty = clip.read(clip.mean.new_zeros(1, 3, clip.size, clip.size))
        return NullPrompt(*prompt, empty)

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        return self.model.garment_features(conditions, t, step)

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        return self.model.denoise(z_t, t, conditions, features)

    def unconditional(self, conditions: Conditions) -> Conditions:
        return self.model.unconditional(conditions)

    def known(self, conditions: Conditions) -> Known | None:
        return self.model.known(conditions)


def trained_in_tryon(name: str, config: IdmVtonConfig) -> bool:
    """Whether a parameter of TryonNet's UNet is trained."""
    if config.trained_part == "up_attention" and not (
        name.startswith("up_blocks.") and ".attn" in name
    ):
        return False
    if name.startswith("encoder_hid_proj."):
        return config.resampler.trained
    return config.image_prompt.trained if ".processor." in name else config.unet.trained


def size_ids(person: Tensor, square: bool = False) -> Tensor:
    """SDXL's (B, 6): original height and width, crop top and left, target height and width, in
    pixels.

    square: the height stands for the width, as in the released training script.
    """
    height, width = person.shape[-2:]
    width = height if square else width
    ids = person.new_tensor([height, width, 0, 0, height, width], dtype=torch.float32)
    return ids.expand(len(person), 6)
