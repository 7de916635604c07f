"""IMAGDressing-v1's mathematics (arXiv 2407.12705, Section 3): two stock UNets, hybrid attention,
and its plug-ins.

The garment UNet runs at t = 0, once per garment. In the self-attention of the same name in the
dressing UNet, with x the person's tokens and f the garment UNet's,

    q = Wq x,  k = Wk x,  v = Wv x,  k' = W'k f,  v' = W'v f
    Z = softmax(q k^T / sqrt d) v + lambda softmax(q k'^T / sqrt d) v',   out = Wo Z + b

Only W'k and W'v are new. lambda = 0, as in the guidance branch, is the base UNet. For comparison,
`joint` attention is one softmax over both pictures' tokens by the layer's own weights:

    Z = softmax([q k^T, q k'^T + sqrt d ln lambda] / sqrt d) [v; v'],  k' = Wk f,  v' = Wv f

Legend: B batch, G garments, N attention heads, L person tokens, M garment tokens, C width of a
layer, d head width, T text tokens, D context width, S CLIP tokens, h w latent size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from vton.diffusion.denoiser import Conditions, Denoiser, Features, Known, Step
from vton.models.attention import (
    image_prompt_attention,
    merge_heads,
    read_garment,
    split_heads,
)
from vton.models.imagdressing.control import Control
from vton.models.imagdressing.faceid import FaceID, Identity, project
from vton.models.precision import in_dtype_of
from vton.models.resampler import Resampler
from vton.models.rows import Rows, as_rows, index_on, select_rows
from vton.models.unet import attention_names, execution_order, garment_taps
from vton.processes import to_device


class DressedRows(NamedTuple):
    """What the self-attentions of one call read of the garments, for the R rows that have one."""

    rows: Tensor  # (R,) int64, on the device
    chosen: Rows  # the same, on the CPU
    k: dict[int, Tensor]  # (R, M, C) by layer number
    v: dict[int, Tensor]
    scale: Tensor  # (R,) lambda


def hybrid_attention(
    q: Tensor, k: Tensor, v: Tensor, garments: DressedRows | None, number: int
) -> Tensor:
    """softmax(q k^T / sqrt d) v + lambda softmax(q k'^T / sqrt d) v'; the first term alone for rows
    without a garment.

    q, k, v: (B, N, L, d). The garments' M need not be L. Returns (B, N, L, d).
    """
    out = F.scaled_dot_product_attention(q, k, v)
    if garments is None:
        return out
    k_garment, v_garment = (split_heads(x[number], q.shape[1]) for x in (garments.k, garments.v))
    own = select_rows(q, garments.chosen)
    added = read_garment(own, k_garment, v_garment, rows=garments.chosen)
    scale = garments.scale.view(-1, 1, 1, 1)
    return out.index_add(0, garments.rows, (scale * added).to(out.dtype))


def weighted_joint_attention(
    q: Tensor, k: Tensor, v: Tensor, garments: DressedRows | None, number: int
) -> Tensor:
    """softmax([q k^T, q k'^T + sqrt d ln lambda] / sqrt d) [v; v']: garment tokens count lambda
    times, 0 = not at all.

    Shapes as in `hybrid_attention`.
    """
    if garments is None:
        return F.scaled_dot_product_attention(q, k, v)
    k_garment, v_garment = (split_heads(x[number], q.shape[1]) for x in (garments.k, garments.v))
    rows = garments.chosen
    weights = garments.scale.to(q.dtype).log().view(-1, 1, 1, 1)
    own_bias = torch.zeros_like(weights).expand(-1, 1, 1, k.shape[2])
    garment_bias = weights.expand(-1, 1, 1, k_garment.shape[2])
    bias = torch.cat([own_bias, garment_bias], 3)
    joined_k = torch.cat([select_rows(k, rows), k_garment], 2)
    joined_v = torch.cat([select_rows(v, rows), v_garment], 2)
    tokens = k_garment.shape[2]
    out = read_garment(select_rows(q, rows), joined_k, joined_v, tokens, attn_mask=bias, rows=rows)
    if len(garments.rows) == len(q):
        return out
    return F.scaled_dot_product_attention(q, k, v).index_copy(0, garments.rows, out)


ATTENTIONS = {"hybrid": hybrid_attention, "joint": weighted_joint_attention}


class HybridSelfAttention:
    """A self-attention layer of the dressing UNet; without garment and identity it computes what
    the layer does.

    Keys and values of the garment are arguments, not parameters: they are the same at every step.
    """

    def __init__(self, number: int, attention: str = "hybrid"):
        self.number = number
        self.attention = ATTENTIONS[attention]

    def __call__(
        self,
        attn: Attention,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        garments: DressedRows | None = None,
        identity: Identity | None = None,
    ):
        """hidden_states (B, L, C) -> (B, L, C)."""
        lora = identity.in_self_attention(self.number) if identity else None
        q = split_heads(project(attn, "to_q", hidden_states, lora), attn.heads)
        k = split_heads(project(attn, "to_k", hidden_states, lora), attn.heads)
        v = split_heads(project(attn, "to_v", hidden_states, lora), attn.heads)
        out = self.attention(q, k, v, garments, self.number)
        return attn.to_out[1](project(attn, "to_out", merge_heads(out), lora))


class IdentityCrossAttention:
    """A cross-attention layer of the dressing UNet: text, and identity tokens where there is a
    face.
    """

    def __init__(self, number: int):
        self.number = number

    def __call__(
        self,
        attn: Attention,
        hidden_states,
        encoder_hidden_states,
        attention_mask=None,
        garments: DressedRows | None = None,
        identity: Identity | None = None,
    ):
        """hidden_states (B, L, C), encoder_hidden_states (B, T, D) -> (B, L, C)."""
        lora = identity.in_cross_attention(self.number) if identity else None
        q = split_heads(project(attn, "to_q", hidden_states, lora), attn.heads)
        k = split_heads(project(attn, "to_k", encoder_hidden_states, lora), attn.heads)
        v = split_heads(project(attn, "to_v", encoder_hidden_states, lora), attn.heads)
        if identity is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            k_face = split_heads(lora.layer.to_k_ip(identity.tokens), attn.heads)
            v_face = split_heads(lora.layer.to_v_ip(identity.tokens), attn.heads)
            scale = identity.scale.to(q.dtype).view(-1, 1, 1, 1)
            out = image_prompt_attention(q, k, v, k_face, v_face, scale)
        return attn.to_out[1](project(attn, "to_out", merge_heads(out), lora))


def self_attentions(unet: UNet2DConditionModel) -> dict[int, str]:
    """{number: transformer block} of all self-attentions; a number is the place among all attention
    layers.
    """
    numbers = {name: number for number, name in enumerate(attention_names(unet))}
    return {numbers[f"{block}.attn1"]: block for block in execution_order(unet)}


def make_hybrid(unet: UNet2DConditionModel, attention: str = "hybrid") -> UNet2DConditionModel:
    """Let a stock UNet take garments and identities as attention arguments; without them it
    computes what it did.
    """
    numbers = {name: number for number, name in enumerate(attention_names(unet))}
    for block in execution_order(unet):
        layer = unet.get_submodule(block)
        layer.attn1.set_processor(HybridSelfAttention(numbers[f"{block}.attn1"], attention))
        layer.attn2.set_processor(IdentityCrossAttention(numbers[f"{block}.attn2"]))
    return unet


class GarmentProjection(nn.Module):
    """W'k and W'v of one layer, which start as copies of its own Wk and Wv."""

    def __init__(self, attention: Attention):
        super().__init__()
        width, inputs = attention.to_k.weight.shape
        self.to_k_ref = nn.Linear(inputs, width, bias=False)
        self.to_v_ref = nn.Linear(inputs, width, bias=False)
        self.to_k_ref.weight.data.copy_(attention.to_k.weight.data)
        self.to_v_ref.weight.data.copy_(attention.to_v.weight.data)


class GarmentAdapter(nn.ModuleDict):
    """W'k and W'v of every self-attention of a dressing UNet, under the layer's number."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.blocks = self_attentions(unet)
        for number, block in self.blocks.items():
            self[str(number)] = GarmentProjection(unet.get_submodule(f"{block}.attn1"))

    def forward(self, taps: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Garment features by transformer block (G, M, C) -> layer number, k' and v' (G, M, C)."""
        for number, block in self.blocks.items():
            projection = self[str(number)]
            yield number, projection.to_k_ref(taps[block]), projection.to_v_ref(taps[block])


class SharedProjection:
    """In place of a GarmentAdapter: each layer's own Wk and Wv, which `joint` attention applies to
    the garment too.
    """

    def __init__(self, unet: UNet2DConditionModel):
        self.unet = unet
        self.blocks = self_attentions(unet)

    def __call__(self, taps: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Garment features by transformer block (G, M, C) -> layer number, k' and v' (G, M, C)."""
        for number, block in self.blocks.items():
            layer = self.unet.get_submodule(f"{block}.attn1")
            yield number, layer.to_k(taps[block]), layer.to_v(taps[block])


class Face(NamedTuple):
    """Faces of a batch; the leading dimension may be 1."""

    embedding: Tensor  # (B, identity width), of unit norm
    clip: Tensor  # (B, S, width): CLIP states of the aligned crop
    null_clip: Tensor  # (1, S, width): of an all-zero pixel tensor


class Dresser(Denoiser):
    """The networks behind the sampler's contract, from tensors to predictions. Any batch size, any
    guidance scale.

    unet, garment_unet: stock UNets of the same attention layers; `unet` gets new attention
    processors. projector: None = the garment UNet reads text. adapter: None = joint instead of
    hybrid attention. controls: by a name of your choice. face: a FaceID-Plus file. All plug-ins may
    be exchanged between samples.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        garment_unet: UNet2DConditionModel,
        projector: Resampler | None,
        adapter: GarmentAdapter | None,
        controls: Mapping[str, Control] | None = None,
        face: FaceID | None = None,
    ):
        super().__init__()
        self.unet = make_hybrid(unet, "joint" if adapter is None else "hybrid")
        self.garment_unet = garment_unet
        self.projector = projector
        self.adapter = SharedProjection(unet) if adapter is None else adapter
        self.controls = nn.ModuleDict(controls or {})
        self.face = face

    def condition(
        self,
        *,
        text: Tensor,
        negative_text: Tensor,
        garment_latents: Tensor,
        clip: Tensor,
        worn: Tensor | None = None,
        garment_scale: Tensor | float = 1.0,
        control: Mapping[str, Tensor] | None = None,
        face: Face | None = None,
        known: Known | None = None,
    ) -> Conditions:
        """What depends on neither z_t nor t; one garment pass for the G garments.

        text (B, T, D); negative_text (B or 1, T, D); garment_latents (G, c, ., .) without noise;
        clip (G, S, width): CLIP's penultimate states of the garment picture, or without a projector
        text tokens (G, T, D); worn (B,) int64: which of the G garments a row wears, by default its
        own or the only one; garment_scale: lambda, one for all or (B,), 0 = no garment; both are on
        the CPU. control: pictures by the name of their ControlNet, see Control.embed; known: what
        inpainting keeps. Where a leading dimension is 1, all rows share it.

        The result may be changed by row before sampling: garment_scale, identity_scale, self_lora,
        cross_lora (B,). Raises ValueError for a picture without a ControlNet, a face without
        FaceID, and where `worn` has to be said.
        """
        control = control or {}
        self.require_plugins(control, face)
        count, garments = len(text), len(garment_latents)
        if worn is None:
            if garments not in (1, count):
                raise ValueError(
                    f"{count} rows and {garments} garments: say with `worn` who wears which"
                )
            worn = torch.arange(count).clamp(max=garments - 1)
        worn = to_device(worn, text.device)
        scale = torch.as_tensor(garment_scale, dtype=torch.float32).view(-1)

        def rows(tensor: Tensor) -> Tensor:
            return tensor.expand(count, *tensor.shape[1:]).contiguous()

        conditions = {
            "text": in_dtype_of(self.unet, text),
            "negative_text": in_dtype_of(self.unet, rows(negative_text)),
            "garment_scale": rows(scale),
        }
        for number, k, v in self.adapter(self.garment_taps(garment_latents, clip)):
            conditions[f"k.{number}"] = k[worn]
            conditions[f"v.{number}"] = v[worn]
        for name, picture in control.items():
            conditions[f"control.{name}"] = rows(self.controls[name].embed(picture))
        if face is not None:
            for name, tensor in self.face_conditions(face).items():
                conditions[name] = rows(tensor)
        if known is not None:
            conditions["known_mask"] = rows(known.mask)
            conditions["known_latents"] = rows(known.latents)
        return conditions

    def require_plugins(self, control: Mapping[str, Tensor], face: Face | None) -> None:
        """Raise ValueError for a picture without a ControlNet and for a face without FaceID."""
        unknown = sorted(set(control) - set(self.controls))
        if face is not None and self.face is None:
            unknown.append("a face")
        if unknown:
            has = ", ".join(self.controls) or "no ControlNet"
            raise ValueError(
                f"conditions for {', '.join(unknown)}, but the plug-ins are {has}; FaceID: "
                f"{self.face is not None}"
            )

    def garment_taps(self, garment_latents: Tensor, clip: Tensor) -> dict[str, Tensor]:
        """The garment UNet's features (G, M, C) by transformer block: t = 0, projected CLIP tokens
        for text.
        """
        t = torch.zeros(len(garment_latents), dtype=torch.int64, device=garment_latents.device)
        tokens = clip if self.projector is None else self.projector(clip)
        return garment_taps(self.garment_unet, garment_latents, t, tokens)

    def face_conditions(self, face: Face) -> Conditions:
        """Identity tokens; those of nobody, for the guidance branch; and the scales."""
        plugin, embedding = self.face, face.embedding
        nobody = torch.zeros_like(embedding[:1])
        return {
            "identity": plugin.image_proj(embedding, face.clip, plugin.shortcut),
            "null_identity": plugin.image_proj(nobody, face.null_clip, plugin.shortcut),
            "identity_scale": embedding.new_full((1,), plugin.scale),
            "self_lora": embedding.new_full((1,), plugin.self_lora),
            "cross_lora": embedding.new_full((1,), plugin.cross_lora),
        }

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        """The rows that wear a garment, and the scale of each ControlNet that acts at this step.

        With gradients every row counts as dressed, some of them with lambda 0, so that every
        parameter gets a gradient.
        """
        scale = conditions["garment_scale"]
        all_rows = torch.arange(len(scale))
        features = {"dressed": all_rows if torch.is_grad_enabled() else all_rows[scale != 0]}
        for name, control in self.controls.items():
            key = f"control.{name}"
            if key in conditions and control.acts(step):
                features[key] = torch.tensor(control.scale)
        return features

    def control_residuals(
        self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features
    ) -> list[Tensor] | None:
        """The summed residuals of the ControlNets that act, those of the skip connections first and
        that of the middle block last; None if none acts.
        """
        total = None
        for name, control in self.controls.items():
            key = f"control.{name}"
            if key in features:
                residuals = control(z_t, t, conditions["text"], conditions[key], features[key])
                if total is not None:
                    residuals = [a + b for a, b in zip(total, residuals, strict=True)]
                total = residuals
        return total

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        """The dressing UNet's prediction (B, c, h, w)."""
        z_t = z_t.to(self.unet.dtype)  # solvers keep latents in float32
        t = to_device(t, z_t.device)
        plugged = {}
        residuals = self.control_residuals(z_t, t, conditions, features)
        if residuals is not None:
            plugged["down_block_additional_residuals"] = tuple(residuals[:-1])
            plugged["mid_block_additional_residual"] = residuals[-1]
        attention = {
            "garments": self.garments(conditions, features),
            "identity": self.identity(conditions),
        }
        text = self.context(conditions)
        return self.unet(z_t, t, text, cross_attention_kwargs=attention, **plugged).sample

    def garments(self, conditions: Conditions, features: Features) -> DressedRows | None:
        """Keys and values of the dressed rows; None if all are undressed, which leaves the base
        UNet.
        """
        rows = features["dressed"]
        if not len(rows):
            return None
        chosen, device = as_rows(rows.tolist()), conditions["text"].device
        index = index_on(device, chosen)
        k = {number: conditions[f"k.{number}"][index] for number in self.adapter.blocks}
        v = {number: conditions[f"v.{number}"][index] for number in self.adapter.blocks}
        scale = to_device(conditions["garment_scale"][chosen], device)
        return DressedRows(to_device(rows, device), chosen, k, v, scale)

    def context(self, conditions: Conditions) -> Tensor:
        """The text that the dressing UNet reads (B, T, D); see FaceID's cut_text."""
        text = conditions["text"]
        if self.face is None or not self.face.cut_text or "identity" in conditions:
            return text
        return text[:, : -self.face.image_proj.tokens]

    def identity(self, conditions: Conditions) -> Identity | None:
        if "identity" not in conditions:
            return None
        names = ("identity", "identity_scale", "self_lora", "cross_lora")
        return Identity(self.face, *(conditions[name] for name in names))

    def unconditional(self, conditions: Conditions) -> Conditions:
        """Negative prompt, nobody's identity tokens, no garment: the base model, with its
        ControlNets and LoRA.
        """
        null = dict(conditions)
        null["text"] = conditions["negative_text"]
        null["garment_scale"] = torch.zeros_like(conditions["garment_scale"])
        if "identity" in conditions:
            null["identity"] = conditions["null_identity"]
        return null

    def known(self, conditions: Conditions) -> Known | None:
        """What inpainting keeps."""
        if "known_mask" not in conditions:
            return None
        return Known(conditions["known_mask"], conditions["known_latents"])
