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

from vton.data.sample import TryOnBatch
from vton.diffusion.sampling import Conditions, Features, Known, Step
from vton.models.base import Reading, TryOnModule
from vton.models.encoders import clip_image_encoder, text_encoder
from vton.models.imagdressing.building import build_control, build_dressing_unet, build_projector
from vton.models.imagdressing.checkpoint import load_faceid, read_face
from vton.models.imagdressing.config import FaceConfig, ImagDressingConfig
from vton.models.imagdressing.control import inpaint_picture
from vton.models.imagdressing.faceid import FaceID
from vton.models.imagdressing.network import Dresser, Face, GarmentAdapter
from vton.models.unet import build_unet, read_by_taps, same_garment
from vton.registry import register

CONTROLS = ("inpaint", "pose")


@register(ImagDressingConfig)
class ImagDressing(TryOnModule):
    """Garment UNet, projector and garment keys/values are trained; all else where the configuration
    says so.
    """

    def build(self) -> None:
        model: ImagDressingConfig = self.config.model
        channels, (height, width) = self.codec.channels, self.config.data.size
        aspect = height / width
        clip = clip_image_encoder(model.clip) if model.image_branch else None
        unet = build_dressing_unet(model.unet, channels, aspect)
        garment_unet = build_unet(
            model.garment_unet, channels, channels, "model.garment_unet", aspect
        )
        controls = {
            name: build_control(
                getattr(model, name),
                unet,
                self.codec.factor,
                f"model.{name}",
                fresh=not model.unet.pretrained,
            )
            for name in CONTROLS
            if getattr(model, name).enabled
        }
        networks = {
            "unet": unet,
            "garment_unet": garment_unet,
            "projector": build_projector(model.projector, clip.width, model.garment_unet.context)
            if clip
            else None,
            "adapter": GarmentAdapter(unet) if model.attention == "hybrid" else None,
            "clip": clip,
            "text": text_encoder(model.text),
            **controls,
        }
        for name, network in networks.items():
            if network is not None:
                self.add(name, network, getattr(model, name).trained)
        face = build_face(model.face, unet)
        if face is not None:
            self.frozen["face"] = face
        parts = (networks[name] for name in ("unet", "garment_unet", "projector", "adapter"))
        self.dresser = Dresser(*parts, controls, face)

    def trained_parameters(self) -> list[dict]:
        """What is trained, without what its result does not depend on: 24 tensors behind the
        garment UNet's last tap, the last layer of CLIP.
        """
        read = {
            "garment_unet": read_by_taps,
            "clip": lambda clip: clip.read_by("penultimate"),
            "text": lambda text: text.read_parameters(),
        }
        parameters = []
        for name, network in self.named_children():
            parameters += read[name](network) if name in read else list(network.parameters())
        return [{"params": parameters}]

    def condition(self, batch: TryOnBatch) -> Conditions:
        keep = torch.zeros(len(batch), dtype=torch.bool, device=batch.person.device)
        return self.read(
            batch, no_image=keep, no_text=keep, garment_scale=self.config.model.garment_scale
        )

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        """u falls into one of five parts of [0, 1): no image, no text, neither, nothing at all,
        everything.

        Only "nothing at all" takes the garment's VAE branch away, as guidance does at sampling.
        """
        model: ImagDressingConfig = self.config.model
        shares = (
            model.dropout.image,
            model.dropout.text,
            model.dropout.both,
            model.condition_dropout,
        )
        bounds = torch.tensor(shares, device=u.device).cumsum(0)
        image, text, both, nothing = (
            (u < bounds[k]) & (u >= (bounds[k - 1] if k else 0)) for k in range(4)
        )
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
        """Conditions of a batch. no_image, no_text (B,) bool: zeroed CLIP pixels, empty prompt."""
        model: ImagDressingConfig = self.config.model
        if model.image_branch:
            beside = [str(dropped) for dropped in values(no_image)]
        else:
            pairs = zip(batch.person_caption, values(no_text), strict=True)
            beside = ["" if empty else self.prompt(caption) for caption, empty in pairs]
        first, worn = distinct_garments(batch.garment, beside)
        controls = [
            name
            for name in self.dresser.controls
            if getattr(model, name).in_training or not training
        ]
        text = self.read_prompts(batch, no_text)
        garment_latents = self.reading("garment", batch, first)
        with torch.no_grad():
            known = None if training or not model.inpaint.enabled else self.surroundings(batch)
        return self.dresser.condition(
            text=text[:-1],
            negative_text=text[-1:],
            garment_latents=garment_latents,
            clip=self.read_garments(batch, first, no_image[first])
            if model.image_branch
            else text[first],
            worn=worn,
            garment_scale=garment_scale,
            control={name: control_picture(name, batch) for name in controls},
            face=self.read_faces(batch.person_id) if self.dresser.face and not training else None,
            known=known,
        )

    def readings(self) -> dict[str, Reading]:
        """CLIP's and the text encoder's are those of what is not dropped."""
        model: ImagDressingConfig = self.config.model
        text_settings = (model.prompt_suffix, model.text.penultimate)
        return super().readings() | {
            "garment": self.latents("garment"),
            "clip": Reading(("clip",), ("garment",), self.read_clip, (model.clip.fit,)),
            "text": Reading(("text",), ("person_caption",), self.read_captions, text_settings),
        }

    def read_clip(self, batch: TryOnBatch) -> Tensor:
        """CLIP states (B, S, width) of the garments."""
        clip = self.part("clip")
        with self.gradients_if(self.config.model.clip.trained):
            return clip.penultimate(batch.garment)

    def read_captions(self, batch: TryOnBatch) -> Tensor:
        """(B, T, D) of the persons' prompts."""
        return self.read_text([self.prompt(caption) for caption in batch.person_caption])

    def read_prompts(self, batch: TryOnBatch, dropped: Tensor) -> Tensor:
        """(B + 1, T, D): prompts, empty where `dropped` (B,) says so, and the negative prompt."""
        negative = self.config.model.negative_prompt
        if batch.encoded is not None and "text" in batch.encoded:
            empty, negative = self.read_text(["", negative]).split(1)
            return torch.cat(
                [torch.where(dropped[:, None, None], empty, self.reading("text", batch)), negative]
            )
        pairs = zip(batch.person_caption, values(dropped), strict=True)
        return self.read_text(
            [*("" if drop else self.prompt(caption) for caption, drop in pairs), negative]
        )

    def surroundings(self, batch: TryOnBatch) -> Known:
        """What latent blending keeps. The agnostic picture's latents hold nothing of the garment to
        be replaced.
        """
        latents = self.codec.encode(batch.agnostic)
        return Known(painted_cells(batch.agnostic_mask, latents.shape[-2:]), latents)

    def prompt(self, caption: str) -> str:
        suffix = self.config.model.prompt_suffix
        return f"{caption}, {suffix}" if suffix else caption

    def read_text(self, prompts: Sequence[str]) -> Tensor:
        """(B, T, D); equal prompts are read once."""
        known = list(dict.fromkeys(prompts))
        with self.gradients_if(self.config.model.text.trained):
            tokens, _ = self.part("text")(known)
        return tokens[[known.index(prompt) for prompt in prompts]]

    def read_garments(self, batch: TryOnBatch, first: Sequence[int], dropped: Tensor) -> Tensor:
        """CLIP states (G, S, width) of the garments in rows `first`; dropped (G,): of zeros, CLIP's
        mean colour.
        """
        clip = self.part("clip")
        if batch.encoded is not None and "clip" in batch.encoded:
            with torch.no_grad():
                nothing = clip.read(clip.mean.new_zeros(1, 3, clip.size, clip.size))
            return torch.where(dropped[:, None, None], nothing, self.reading("clip", batch, first))
        with self.gradients_if(self.config.model.clip.trained):
            return clip.read(clip.pixels(batch.garment[first]) * ~dropped.view(-1, 1, 1, 1))

    def read_faces(self, person_ids: Sequence[str]) -> Face:
        folder, clip = Path(self.config.model.face.embeddings), self.part("clip")
        faces = [read_face(folder / f"{person}.safetensors") for person in person_ids]
        embedding, states = (torch.stack(part).to(self.device) for part in zip(*faces, strict=True))
        with torch.no_grad():
            nobody = clip.read(torch.zeros(1, 3, clip.size, clip.size, device=self.device))
        return Face(embedding, states, nobody)

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        return self.dresser.garment_features(conditions, t, step)

    def acting(self, step: Step) -> tuple[str, ...]:
        return tuple(name for name, control in self.dresser.controls.items() if control.acts(step))

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        return self.dresser.denoise(z_t, t, conditions, features)

    def unconditional(self, conditions: Conditions) -> Conditions:
        return self.dresser.unconditional(conditions)

    def known(self, conditions: Conditions) -> Known | None:
        return self.dresser.known(conditions)


def build_face(config: FaceConfig, unet: nn.Module) -> FaceID | None:
    if not config.weights:
        return None
    scales = {
        name: getattr(config, name) for name in ("scale", "self_lora", "cross_lora", "shortcut")
    }
    return load_faceid(Path(config.weights), unet, **scales)


def distinct_garments(garments: Tensor, beside: Sequence[str]) -> tuple[list[int], Tensor]:
    """Rows of the G distinct pairs of a picture and what is read beside it, and which of the G each
    row wears (B,).
    """
    same = same_garment(garments, beside)
    if same.is_meta:
        return list(range(len(same))), same
    first, worn = same.unique(return_inverse=True)
    return first.tolist(), worn


def values(flags: Tensor) -> list[bool]:
    """As a list; on the meta device, where values are unknown, False."""
    return [False] * len(flags) if flags.is_meta else flags.tolist()


def control_picture(name: str, batch: TryOnBatch) -> Tensor:
    """(B, 3, H, W) in [0, 1], and -1 where the inpainting ControlNet is to paint."""
    if name == "pose":
        return (batch.pose_map + 1) / 2
    return inpaint_picture((batch.agnostic + 1) / 2, batch.agnostic_mask)


def painted_cells(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) to latent size: a cell is painted if any of its pixels is.

    The released pipeline takes the nearest pixel; cells on the border would then keep parts of what
    is to be replaced.
    """
    return F.adaptive_max_pool2d(mask, size)
