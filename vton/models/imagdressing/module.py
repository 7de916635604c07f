"""IMAGDressing-v1 (Shen et al., AAAI 2025, arXiv 2407.12705) behind the contract, in its try-on
mode.

The garment reaches the dressing UNet through the garment UNet and hybrid attention, the person
through an inpainting ControlNet and latent blending. Here a batch becomes the tensors that
vton/models/imagdressing/network.py works on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vton.config import ExperimentConfig
from vton.data.ranges import to_unit
from vton.data.sample import TryOnBatch
from vton.diffusion.denoiser import Conditions, Denoiser, Known
from vton.models.base import Reading, TryOnModule
from vton.models.distinct import distinct_garments
from vton.models.encoders import clip_image_encoder, text_encoder
from vton.models.imagdressing.building import build_control, build_dressing_unet, build_projector
from vton.models.imagdressing.checkpoint import load_faceid, read_face
from vton.models.imagdressing.config import FaceConfig, ImagDressingConfig
from vton.models.imagdressing.control import inpaint_picture
from vton.models.imagdressing.faceid import FaceID
from vton.models.imagdressing.network import Dresser, Face, GarmentAdapter
from vton.models.rows import select_rows
from vton.models.unet import build_unet, read_by_taps
from vton.processes import to_device
from vton.registry import register

CONTROLS = ("inpaint", "pose")


@register(ImagDressingConfig)
class ImagDressing(TryOnModule):
    """Garment UNet, projector and garment keys/values are trained; all else where the configuration
    says so.
    """

    denoiser: Dresser

    @classmethod
    def reads(cls, config: ExperimentConfig) -> frozenset[str]:
        return frozenset(("person", "agnostic", "agnostic_mask", "garment", "pose_map"))

    def build(self) -> Denoiser:
        model: ImagDressingConfig = self.config.model
        channels = self.codec.channels
        height, width = self.config.data.size
        aspect = height / width
        clip = None
        if model.image_branch:
            clip = clip_image_encoder(model.clip, dtype=self.stored(model.clip))
        unet = build_dressing_unet(model.unet, channels, aspect, self.stored(model.unet))
        garment_unet = build_unet(
            model.garment_unet, channels, channels, "model.garment_unet", aspect
        )
        controls = self.build_controls(unet)
        projector = None
        if clip is not None:
            projector = build_projector(model.projector, clip.width, model.garment_unet.context)
        adapter = GarmentAdapter(unet) if model.attention == "hybrid" else None
        networks = {
            "unet": unet,
            "garment_unet": garment_unet,
            "projector": projector,
            "adapter": adapter,
            "clip": clip,
            "text": text_encoder(model.text, dtype=self.stored(model.text)),
            **controls,
        }
        for name, network in networks.items():
            if network is not None:
                self.add(name, network, getattr(model, name).trained)
        face = build_face(model.face, unet)
        if face is not None:
            self.add("face", face, trained=False)
        return Dresser(unet, garment_unet, projector, adapter, controls, face)

    def build_controls(self, unet: nn.Module) -> dict[str, nn.Module]:
        """The configured ControlNets by name."""
        model: ImagDressingConfig = self.config.model
        controls = {}
        for name in CONTROLS:
            settings = getattr(model, name)
            if settings.enabled:
                controls[name] = build_control(
                    settings,
                    unet,
                    self.codec.factor,
                    f"model.{name}",
                    fresh=not model.unet.pretrained,
                    dtype=self.stored(settings),
                )
        return controls

    def trained_parameters(self) -> list[dict]:
        """What is trained, without what its result does not depend on: 24 tensors behind the
        garment UNet's last tap, the last layer of CLIP.
        """
        parameters = []
        for name, network in self.named_children():
            if name == "garment_unet":
                parameters += read_by_taps(network)
            elif name == "clip":
                parameters += network.read_by("penultimate")
            elif name == "text":
                parameters += network.read_parameters()
            else:
                parameters += network.parameters()
        return [{"params": parameters}]

    # ---- conditions ----

    def condition(self, batch: TryOnBatch) -> Conditions:
        nothing = torch.zeros(len(batch), dtype=torch.bool)
        scale = self.config.model.garment_scale
        return self.read(batch, no_image=nothing, no_text=nothing, garment_scale=scale)

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        """u falls into one of five parts of [0, 1): no image, no text, neither, nothing at all,
        everything.

        Only "nothing at all" takes the garment's VAE branch away, as guidance does at sampling.
        """
        model: ImagDressingConfig = self.config.model
        dropout = model.dropout
        shares = (dropout.image, dropout.text, dropout.both, model.condition_dropout)
        ends = torch.tensor(shares).cumsum(0)
        image = u < ends[0]
        text = (u < ends[1]) & (u >= ends[0])
        both = (u < ends[2]) & (u >= ends[1])
        nothing = (u < ends[3]) & (u >= ends[2])
        return self.read(
            batch,
            no_image=image | both,
            no_text=text | both | nothing,
            garment_scale=(~nothing).float(),
            training=True,
        )

    def read(
        self,
        batch: TryOnBatch,
        *,
        no_image: Tensor,
        no_text: Tensor,
        garment_scale: Tensor | float,
        training: bool = False,
    ) -> Conditions:
        """Conditions of a batch. no_image, no_text (B,) bool, on the CPU: zeroed CLIP pixels, empty
        prompt.
        """
        model: ImagDressingConfig = self.config.model
        first, worn = distinct_garments(
            batch.garment, batch.garment_id, self.read_beside(batch, no_image, no_text)
        )
        text = self.read_prompts(batch, no_text)
        garment_latents = self.reading("garment", batch, first)
        clip = select_rows(text, first)
        if model.image_branch:
            clip = self.read_garments(batch, first, no_image[first])
        control = {}
        for name in self.denoiser.controls:
            if getattr(model, name).in_training or not training:
                control[name] = control_picture(name, batch)
        face = known = None
        if not training:
            if self.denoiser.face:
                face = self.read_faces(batch.person_id)
            if model.inpaint.enabled:
                known = self.surroundings(batch)
        return self.denoiser.condition(
            text=text[:-1],
            negative_text=text[-1:],
            garment_latents=garment_latents,
            clip=clip,
            worn=worn,
            garment_scale=garment_scale,
            control=control,
            face=face,
            known=known,
        )

    def wearing(self, conditions: Conditions) -> Tensor:
        return conditions["garment_scale"] > 0

    def read_beside(self, batch: TryOnBatch, no_image: Tensor, no_text: Tensor) -> list[str]:
        """What the garment UNet reads beside each garment: rows that differ in it don't share."""
        if self.config.model.image_branch:
            return [str(dropped) for dropped in no_image.tolist()]
        return self.prompts(batch, no_text)

    @torch.no_grad()
    def surroundings(self, batch: TryOnBatch) -> Known:
        """What latent blending keeps. The agnostic picture's latents hold nothing of the garment to
        be replaced.
        """
        latents = self.codec.encode(batch.agnostic)
        return Known(painted_cells(batch.agnostic_mask, latents.shape[-2:]), latents)

    # ---- what the encoders say ----

    def readings(self) -> dict[str, Reading]:
        """CLIP's and the text encoder's are those of what is not dropped."""
        model: ImagDressingConfig = self.config.model
        readings = super().readings()
        readings["garment"] = self.latents("garment")
        readings["clip"] = Reading(("clip",), ("garment",), self.read_clip, (model.clip.fit,))
        settings = (model.prompt, model.prompt_suffix, model.text.penultimate)
        readings["text"] = Reading(("text",), ("person_caption",), self.read_captions, settings)
        return readings

    def read_clip(self, batch: TryOnBatch) -> Tensor:
        """CLIP states (B, S, width) of the garments."""
        with self.gradients_if(self.config.model.clip.trained):
            return self.part("clip").penultimate(batch.garment)

    def read_garments(self, batch: TryOnBatch, first: Sequence[int], dropped: Tensor) -> Tensor:
        """CLIP states (G, S, width) of the garments in rows `first`; dropped (G,), on the CPU: of
        zeros, CLIP's mean colour.
        """
        clip = self.part("clip")
        dropped = to_device(dropped, batch.garment.device)
        if batch.encoded is not None and "clip" in batch.encoded:
            with torch.no_grad():
                nothing = clip.read(clip.normalise.mean.new_zeros(1, 3, clip.size, clip.size))
            states = self.reading("clip", batch, first)
            return torch.where(dropped[:, None, None], nothing, states)
        with self.gradients_if(self.config.model.clip.trained):
            pixels = clip.pixels(select_rows(batch.garment, first))
            return clip.read(pixels * ~dropped.view(-1, 1, 1, 1))

    def read_captions(self, batch: TryOnBatch) -> Tensor:
        """(B, T, D) of the persons' prompts."""
        return self.read_text([self.prompt(caption) for caption in batch.person_caption])

    def read_prompts(self, batch: TryOnBatch, dropped: Tensor) -> Tensor:
        """(B + 1, T, D): prompts, empty where `dropped` (B,) says so, and the negative prompt."""
        negative = self.config.model.negative_prompt
        if batch.encoded is not None and "text" in batch.encoded:
            empty, negative = self.read_text(["", negative]).split(1)
            text = self.reading("text", batch)
            text = torch.where(to_device(dropped, text.device)[:, None, None], empty, text)
            return torch.cat([text, negative])
        return self.read_text([*self.prompts(batch, dropped), negative])

    def prompts(self, batch: TryOnBatch, dropped: Tensor) -> list[str]:
        """The prompt of each row, empty where `dropped` (B,) says so."""
        prompts = []
        for caption, empty in zip(batch.person_caption, dropped.tolist(), strict=True):
            prompts.append("" if empty else self.prompt(caption))
        return prompts

    def prompt(self, caption: str) -> str:
        caption = self.config.model.prompt or caption
        suffix = self.config.model.prompt_suffix
        return f"{caption}, {suffix}" if suffix else caption

    def read_text(self, prompts: Sequence[str]) -> Tensor:
        """(B, T, D)."""
        with self.gradients_if(self.config.model.text.trained):
            tokens, _ = self.part("text").encode_distinct(prompts)
        return tokens

    def read_faces(self, person_ids: Sequence[str]) -> Face:
        folder = Path(self.config.model.face.embeddings)
        faces = [read_face(folder / f"{person}.safetensors") for person in person_ids]
        embeddings = torch.stack([embedding for embedding, _ in faces])
        states = torch.stack([state for _, state in faces])
        clip = self.part("clip")
        with torch.no_grad():
            nobody = clip.read(torch.zeros(1, 3, clip.size, clip.size, device=self.device))
        return Face(embeddings.to(self.device), states.to(self.device), nobody)


def build_face(config: FaceConfig, unet: nn.Module) -> FaceID | None:
    if not config.weights:
        return None
    scales = {
        name: getattr(config, name) for name in ("scale", "self_lora", "cross_lora", "shortcut")
    }
    return load_faceid(Path(config.weights), unet, **scales)


def control_picture(name: str, batch: TryOnBatch) -> Tensor:
    """(B, 3, H, W) in [0, 1], and -1 where the inpainting ControlNet is to paint."""
    if name == "pose":
        return to_unit(batch.pose_map)
    return inpaint_picture(to_unit(batch.agnostic), batch.agnostic_mask)


def painted_cells(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) to latent size: a cell is painted if any of its pixels is.

    The released pipeline takes the nearest pixel; cells on the border would then keep parts of what
    is to be replaced.
    """
    return F.adaptive_max_pool2d(mask, size)
