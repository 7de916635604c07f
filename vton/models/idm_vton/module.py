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

from vton.config import ExperimentConfig
from vton.data.sample import DataError, TryOnBatch
from vton.diffusion.denoiser import Conditions, Denoiser
from vton.models.base import Reading, TryOnModule
from vton.models.codecs import latent_mask
from vton.models.distinct import distinct_garments
from vton.models.encoders import clip_image_encoder, text_encoder
from vton.models.idm_vton.building import build_garment_net, build_tryon
from vton.models.idm_vton.config import IdmVtonConfig
from vton.models.idm_vton.network import IdmVton, NullPrompt
from vton.models.precision import stored
from vton.models.rows import select_rows
from vton.models.unet import read_by_taps
from vton.processes import to_device
from vton.registry import register


@register(IdmVtonConfig)
class IdmVtonModule(TryOnModule):
    """TryonNet is trained; GarmentNet and the encoders where the configuration says so."""

    @classmethod
    def reads(cls, config: ExperimentConfig) -> frozenset[str]:
        return frozenset(("person", "agnostic", "agnostic_mask", "garment", "densepose"))

    def build(self) -> Denoiser:
        model: IdmVtonConfig = self.config.model
        channels = self.codec.channels
        height, width = self.config.data.size
        aspect = height / width
        clip = None
        if model.image_prompt.enabled:
            clip = clip_image_encoder(model.clip, dtype=self.stored(model.clip))
        clip_width = clip.width if clip else 0
        dtype = stored(self.config, trained=True)
        self.tryon = build_tryon(model, channels, clip_width, aspect, dtype)
        garment_net = None
        if model.garment_net:
            dtype = self.stored(model.garment_unet)
            garment_net = build_garment_net(model.garment_unet, channels, aspect, dtype)
            self.add("garment_net", garment_net, model.garment_unet.trained)
        if clip:
            self.add("clip", clip, model.clip.trained)
        for name in ("text", "text_2"):
            settings = getattr(model, name)
            encoder = text_encoder(settings, f"model.{name}", self.stored(settings))
            self.add(name, encoder, settings.trained)
        return IdmVton(self.tryon, garment_net, self.null_prompt, model.garment_timestep)

    def trained_parameters(self) -> list[dict]:
        """TryonNet with Resampler and image keys/values; of the others what their result depends
        on.
        """
        model: IdmVtonConfig = self.config.model
        parameters = []
        for name, parameter in self.tryon.unet.named_parameters():
            if trained_in_tryon(name, model):
                parameters.append(parameter)
        if model.trained_part != "all":
            return [{"params": parameters}]
        if model.garment_net and model.garment_unet.trained:
            parameters += read_by_taps(self.garment_net)
        if model.image_prompt.enabled and model.clip.trained:
            parameters += self.clip.read_by("penultimate")
        if model.text.trained:
            parameters += self.text.read_parameters()
        if model.text_2.trained:
            parameters += self.text_2.read_parameters()
        return [{"params": parameters}]

    # ---- conditions ----

    def condition(self, batch: TryOnBatch) -> Conditions:
        """VAE posteriors enter by their modes, so that a picture depends on its seed alone
        (published: samples).
        """
        if batch.densepose is None:
            raise DataError(
                f"{batch.dataset[0]}: idm_vton needs DensePose pictures; set data.densepose=true."
            )
        model: IdmVtonConfig = self.config.model
        first, garment = distinct_garments(batch.garment, batch.garment_id, batch.garment_caption)
        text, pooled, garment_text = self.read_both_captions(batch, first)
        masked = self.reading("agnostic", batch)
        garment_conditions = {}
        if model.garment_net:
            latents = self.reading("garment", batch, first)
            garment_conditions["garment"] = garment
            garment_conditions["garment_latents"] = select_rows(latents, garment)
            garment_conditions["garment_text"] = select_rows(garment_text, garment)
        if model.image_prompt.enabled:
            tokens = self.tryon.image_tokens(self.reading("clip", batch, first))
            garment_conditions["image_tokens"] = select_rows(tokens, garment)
        return self.denoiser.condition(
            mask=latent_mask(batch.agnostic_mask, masked.shape[-2:]),
            masked=masked,
            pose=self.reading("densepose", batch),
            text=text,
            pooled=pooled,
            size_ids=size_ids(batch.person),
            **garment_conditions,
        )

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        conditions = self.condition(batch)
        if self.config.model.training_size_ids == "square":
            conditions["size_ids"] = size_ids(batch.person, square=True)
        return self.drop(conditions, u < self.config.model.condition_dropout)

    def wearing(self, conditions: Conditions) -> Tensor:
        if "garment" not in conditions:
            return super().wearing(conditions)
        return conditions["garment"] >= 0

    def null_prompt(self) -> NullPrompt:
        """The negative prompt, and CLIP's states of an all-zero pixel tensor: a picture of its mean
        colour.
        """
        text, pooled = self.read_captions([self.config.model.negative_prompt])
        if not self.config.model.image_prompt.enabled:
            return NullPrompt(text, pooled, None)
        clip = self.part("clip")
        with self.gradients_if(self.config.model.clip.trained):
            empty = clip.read(clip.normalise.mean.new_zeros(1, 3, clip.size, clip.size))
        return NullPrompt(text, pooled, empty)

    # ---- what the encoders say ----

    def readings(self) -> dict[str, Reading]:
        model: IdmVtonConfig = self.config.model
        readings = super().readings()
        readings["agnostic"] = self.latents("agnostic")
        readings["densepose"] = self.latents("densepose")
        readings["text"] = self.caption_reading("person_caption", part=0)
        readings["pooled"] = self.caption_reading("person_caption", part=1)
        if model.garment_net:
            readings["garment"] = self.latents("garment")
            readings["garment_text"] = self.caption_reading("garment_caption", part=0)
        if model.image_prompt.enabled:
            settings = (model.clip.fit,)
            readings["clip"] = Reading(("clip",), ("garment",), self.read_clip, settings)
        return readings

    def caption_reading(self, field: str, part: int) -> Reading:
        """Tokens (part 0) or pooled vectors (1) of the captions in a field of the batch."""
        model: IdmVtonConfig = self.config.model
        settings = (model.text.penultimate, model.text_2.penultimate)
        compute = partial(self.read_caption, field, part)
        return Reading(("text", "text_2"), (field,), compute, settings)

    def read_caption(self, field: str, part: int, batch: TryOnBatch) -> Tensor:
        return self.read_captions(getattr(batch, field))[part]

    def read_clip(self, batch: TryOnBatch) -> Tensor:
        """CLIP states (B, 1 + patches, width) of the garments."""
        with self.gradients_if(self.config.model.clip.trained):
            return self.part("clip").penultimate(batch.garment)

    def read_both_captions(
        self, batch: TryOnBatch, first: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The persons' tokens and pooled vectors (B, ...), and the tokens of the garments in rows
        `first`; none of them without GarmentNet.

        One pass of the encoders for all captions, unless these were computed ahead.
        """
        if not self.config.model.garment_net:
            first = []
        if batch.encoded is not None and "text" in batch.encoded:
            text = self.reading("text", batch)
            garment_text = self.reading("garment_text", batch, first) if first else text[:0]
            return text, self.reading("pooled", batch), garment_text
        garment_captions = [batch.garment_caption[row] for row in first]
        text, pooled = self.read_captions([*batch.person_caption, *garment_captions])
        persons = len(batch)
        return text[:persons], pooled[:persons], text[persons:]

    def read_captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Both encoders' tokens side by side (B, L, C), and the second's pooled vectors (B, P)."""
        with self.gradients_if(self.config.model.text.trained):
            tokens, _ = self.part("text").encode_distinct(captions)
        with self.gradients_if(self.config.model.text_2.trained):
            tokens_2, pooled = self.part("text_2").encode_distinct(captions)
        return torch.cat([tokens, tokens_2], 2), pooled


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
    ids = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
    return to_device(ids, person.device).expand(len(person), 6)
