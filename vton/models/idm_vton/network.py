"""IDM-VTON's mathematics (arXiv 2403.05139, Section 3): TryonNet, GarmentNet, and what passes
between them.

In every transformer block i of TryonNet, self-attention reads the person's tokens and GarmentNet's
of block i,

    z = [LN1(x); g_i]        x <- x + Wo softmax(Wq LN1(x) (Wk z)^T / sqrt d) Wv z,

with g_i the normalised input of GarmentNet's self-attention at the same timestep. Only queries of
person tokens are formed: the other rows would be thrown away. Cross-attention reads text and image
tokens (vton/models/attention.py).

Legend: B batch, G distinct garments, N person tokens, M garment tokens, D width of a block, c
latent channels, h w latent size, L text tokens, n image tokens, C context width, P pooled width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from vton.diffusion.denoiser import Conditions, Denoiser, Features, Step
from vton.models.attention import (
    ImagePromptProcessor,
    project_out,
    read_garment,
    split_heads,
)
from vton.models.distinct import distinct
from vton.models.resampler import Resampler
from vton.models.rows import Rows, as_rows, index_on, select_rows
from vton.models.unet import execution_order, garment_taps
from vton.processes import to_device


class GarmentRows:
    """The garment features that each row of a batch reads, made once per pass for all
    self-attentions.

    features: {"0": (G, M, D), ...} by block in execution order, and "row" (B,), on the CPU: each
    row's place among the G, or -1 for rows without a garment, which read M zero tokens.
    closed_form: these tokens are summed up instead of computed.
    """

    def __init__(self, features: Features, closed_form: bool):
        self.features = features
        self.closed_form = closed_form
        self.row = to_device(features["row"], features["0"].device)
        self.dressed: list[int] = []  # rows with a garment
        self.garment: list[int] = []  # which of the G each of them wears
        self.bare: list[int] = []  # rows without one
        for row, garment in enumerate(features["row"].tolist()):
            if garment < 0:
                self.bare.append(row)
            else:
                self.dressed.append(row)
                self.garment.append(garment)

    def block(self, index: int) -> Tensor:
        """(G, M, D): one block's features of every distinct garment."""
        return self.features[str(index)]

    def rows(self, index: int) -> Tensor:
        """(B, M, D): one block's features of every row, zeros where there is no garment."""
        g = self.block(index)
        return torch.cat([g, g.new_zeros(1, *g.shape[1:])])[self.row]


class GarmentSelfAttention:
    """Self-attention of transformer block `index` (in execution order), joined by the garment's
    tokens.

    It is bound to its index instead of counting calls, so that gradient checkpointing may call it
    twice.
    """

    def __init__(self, index: int):
        self.index = index

    def __call__(
        self,
        attn: Attention,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        garment: GarmentRows | None = None,
    ):
        """hidden_states (B, N, D) -> (B, N, D)."""
        q = self.project(attn.to_q, attn, hidden_states)
        k = self.project(attn.to_k, attn, hidden_states)
        v = self.project(attn.to_v, attn, hidden_states)
        if garment is None:
            out = F.scaled_dot_product_attention(q, k, v)
        elif garment.closed_form:
            out = self.per_branch(attn, q, k, v, garment)
        else:
            g = garment.rows(self.index)
            k_g = self.project(attn.to_k, attn, g)
            v_g = self.project(attn.to_v, attn, g)
            out = joint_attention(q, k, v, k_g, v_g)
        return project_out(attn, out)

    def per_branch(
        self, attn: Attention, q: Tensor, k: Tensor, v: Tensor, garment: GarmentRows
    ) -> Tensor:
        """Dressed rows read their garment, whose keys and values are projected once however many
        rows wear it.
        """
        g = garment.block(self.index)
        out = torch.empty_like(q)
        if garment.dressed:
            dressed = as_rows(garment.dressed)
            rows = index_on(g.device, dressed)
            worn = index_on(g.device, as_rows(garment.garment))
            k_g = self.project(attn.to_k, attn, g)[worn]
            v_g = self.project(attn.to_v, attn, g)[worn]
            out[rows] = joint_attention(q[rows], k[rows], v[rows], k_g, v_g, dressed)
        if garment.bare:
            rows = index_on(g.device, as_rows(garment.bare))
            out[rows] = attention_with_zeros(q[rows], k[rows], v[rows], zeros=g.shape[1])
        if not garment.dressed and g.requires_grad:
            out = out + 0 * g.sum()  # a gradient for GarmentNet, see run_garment_net
        return out

    @staticmethod
    def project(linear: nn.Linear, attn: Attention, tokens: Tensor) -> Tensor:
        return split_heads(linear(tokens), attn.heads)


class TextCrossAttention(AttnProcessor2_0):
    """Cross-attention without image tokens. garment is for self-attention layers."""

    def __call__(
        self, attn: Attention, hidden_states, *args, garment: GarmentRows | None = None, **kwargs
    ):
        return super().__call__(attn, hidden_states, *args, **kwargs)


def joint_attention(
    q: Tensor, k: Tensor, v: Tensor, k_g: Tensor, v_g: Tensor, rows: Rows | None = None
) -> Tensor:
    """One softmax over person and garment tokens; all (B, heads, tokens, d).

    rows: which rows of the whole batch these are; None: all
    """
    k, v = torch.cat([k, k_g], 2), torch.cat([v, v_g], 2)
    return read_garment(q, k, v, tokens=k_g.shape[2], rows=rows)


def attention_with_zeros(q: Tensor, k: Tensor, v: Tensor, zeros: int) -> Tensor:
    """Attention over k and v and `zeros` further tokens whose keys and values are 0, without
    building these.

    Each adds exp(q 0) = 1 to the softmax's denominator and nothing to its numerator. One zero token
    does the same with logit ln(zeros):

        sum_j exp(s_j) v_j / (sum_j exp(s_j) + zeros),  s = q k^T / sqrt d
    """
    logits = null_logits(zeros, q.dtype)
    bias = q.new_zeros(1, 1, 1, k.shape[2] + len(logits))
    for place, logit in enumerate(logits, start=k.shape[2]):
        bias[..., place] = logit
    k, v = (F.pad(x, (0, 0, 0, len(logits))) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def null_logits(count: int, dtype: torch.dtype) -> list[float]:
    """Numbers exact in dtype with sum of exponentials = count: ln(count), or a few of half
    precision.

    bf16 holds ln 3072 with an error of 3 % of the count. Sixteenths below 16 are exact in it, and
    each takes at least 94 % of what is left.
    """
    if dtype in (torch.float32, torch.float64):
        return [math.log(count)]
    logits, rest = [], float(count)
    while rest > 1e-5 * count:
        logits.append(math.floor(16 * math.log(rest)) / 16)
        rest -= math.exp(logits[-1])
    return logits


class TryonNet(nn.Module):
    """A stock UNet over [x_t, mask, masked person, pose] whose attention layers read the garment.

    `unet` holds the parameters under the published names: the Resampler is its `encoder_hid_proj`,
    and each attn2 has `processor.to_k_ip` and `processor.to_v_ip`. Without a Resampler
    cross-attention reads text alone.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        resampler: Resampler | None,
        image_scale: float = 1.0,
        null_features: str = "closed_form",
    ):
        super().__init__()
        self.unet = unet
        self.closed_form = null_features == "closed_form"
        if resampler is not None:
            unet.encoder_hid_proj = resampler  # the UNet itself never calls it
        for index, name in enumerate(execution_order(unet)):
            block = unet.get_submodule(name)
            block.attn1.set_processor(GarmentSelfAttention(index))
            cross = TextCrossAttention()
            if resampler is not None:
                cross = ImagePromptProcessor(block.attn2, resampler.latents.shape[1], image_scale)
            block.attn2.set_processor(cross)

    def image_tokens(self, clip: Tensor) -> Tensor:
        """CLIP's hidden states (B, S, width) -> (B, n, C)."""
        return self.unet.encoder_hid_proj(clip)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        pooled: Tensor,
        size_ids: Tensor,
        features: Features,
    ) -> Tensor:
        """Predict (B, c, h, w).

        x (B, 3c + 1, h, w), t (B,), context (B, L + n, C), pooled (B, P), size_ids (B, 6). Without
        features self-attention reads the person alone.
        """
        garment = GarmentRows(features, self.closed_form) if features else None
        return self.unet(
            x.to(self.unet.dtype),  # solvers keep latents in float32
            to_device(t, x.device),
            context,
            cross_attention_kwargs={"garment": garment},
            added_cond_kwargs={"text_embeds": pooled, "time_ids": size_ids},
        ).sample


class NullPrompt(NamedTuple):
    """What guidance compares with; leading dimension 1 or B."""

    text: Tensor  # (1, L, C) negative prompt
    pooled: Tensor  # (1, P)
    # (1, S, width) CLIP's hidden states of an all-zero pixel tensor; None without image prompt
    clip: Tensor | None


class IdmVton(Denoiser):
    """Both UNets behind the sampler's contract, from tensors to predictions.

    garment_net: None = without; then `condition` takes no garment.
    null: makes the unconditional prompt when guidance or dropout asks for it.
    garment_timestep: GarmentNet's features at this one t serve every t. An approximation, as
    GarmentNet reads t.
    """

    def __init__(
        self,
        tryon: TryonNet,
        garment_net: UNet2DConditionModel | None,
        null: Callable[[], NullPrompt],
        garment_timestep: int | None = None,
    ):
        super().__init__()
        self.tryon = tryon
        self.garment_net = garment_net
        self.null = null
        self.garment_timestep = garment_timestep
        self.blocks = len(execution_order(tryon.unet))

    def condition(
        self,
        *,
        mask: Tensor,
        masked: Tensor,
        pose: Tensor,
        text: Tensor,
        pooled: Tensor,
        size_ids: Tensor,
        image_tokens: Tensor | None = None,
        garment: Tensor | None = None,
        garment_latents: Tensor | None = None,
        garment_text: Tensor | None = None,
    ) -> Conditions:
        """What depends on neither z_t nor t.

        mask (B, 1, h, w), 1 = paint; latents of masked person, pose and garment (B, c, ., .); text
        and garment_text (B, L, C); pooled (B, P); size_ids (B, 6): original height, width, crop
        top, left, target height, width; image_tokens (B, n, C); garment (B,) int64, on the CPU:
        equal for rows that share garment_latents and garment_text.
        """
        conditions = {
            "mask": mask,
            "masked": masked,
            "pose": pose,
            "text": text,
            "pooled": pooled,
            "size_ids": size_ids,
            "image_tokens": image_tokens,
            "garment": garment,
            "garment_latents": garment_latents,
            "garment_text": garment_text,
        }
        conditions = {name: tensor for name, tensor in conditions.items() if tensor is not None}
        if self.garment_timestep is not None:
            t = torch.full_like(garment, self.garment_timestep)
            features = self.run_garment_net(conditions, t)
            for index in range(self.blocks):
                conditions[f"fixed.{index}"] = select_rows(features[str(index)], features["row"])
        return conditions

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        """Features of each distinct garment and timestep, (G, M, D) per block, and each row's place
        among them.
        """
        if self.garment_net is None:
            return {}
        if self.garment_timestep is None:
            return self.run_garment_net(conditions, t)
        first, row = distinct(conditions["garment"])
        features = {"row": row}
        for index in range(self.blocks):
            features[str(index)] = select_rows(conditions[f"fixed.{index}"], first)
        return features

    def run_garment_net(self, conditions: Conditions, t: Tensor) -> Features:
        """GarmentNet's features of each distinct garment and timestep."""
        latents = conditions["garment_latents"]
        first, row = distinct(conditions["garment"], t)
        if torch.is_grad_enabled() and not first:
            first = [0]  # processes that train together wait for a gradient of every parameter
        if first:
            text = select_rows(conditions["garment_text"], first)
            latents = select_rows(latents, first)
            taps = list(garment_taps(self.garment_net, latents, t[first], text).values())
        else:  # only the number of tokens matters
            shapes = tap_shapes(self.garment_net, latents.shape[-2:])
            taps = [latents.new_zeros(0, *shape) for shape in shapes]
        features = {str(index): tap for index, tap in enumerate(taps)}
        return features | {"row": row}

    def tryon_input(self, z_t: Tensor, conditions: Conditions) -> Tensor:
        """(B, 3c + 1, h, w): noisy latents, mask, masked person, pose."""
        return torch.cat([z_t, conditions["mask"], conditions["masked"], conditions["pose"]], 1)

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        x = self.tryon_input(z_t, conditions)
        context = conditions["text"]
        if "image_tokens" in conditions:
            context = torch.cat([context, conditions["image_tokens"]], 1)
        pooled = conditions["pooled"]
        return self.tryon(x, t, context, pooled, conditions["size_ids"], features)

    def unconditional(self, conditions: Conditions) -> Conditions:
        """Negative prompt, tokens of an empty picture, no garment; mask, masked person, pose and
        size stay.
        """
        null = self.null()
        replaced = {"text": null.text, "pooled": null.pooled}
        if null.clip is not None:
            replaced["image_tokens"] = self.tryon.image_tokens(null.clip)
        replaced = {name: tensor.expand_as(conditions[name]) for name, tensor in replaced.items()}
        if "garment" in conditions:
            replaced["garment"] = torch.full_like(conditions["garment"], -1)
        return conditions | replaced


def tap_shapes(unet: UNet2DConditionModel, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(M, D) of each feature that `garment_taps` finds for latents of this size, without running
    the network.
    """
    levels, padding = len(unet.config.block_out_channels), unet.config.downsample_padding
    sizes = [tuple(size)]
    for _ in range(levels - 1):
        # Stride-2 convolutions of side 3; without padding diffusers adds one row and column.
        sizes.append(tuple((side + (2 * padding or 1) - 3) // 2 + 1 for side in sizes[-1]))

    def shape(name: str) -> tuple[int, int]:
        place, block = name.split(".")[:2]
        depth = {"down_blocks": lambda: int(block), "up_blocks": lambda: levels - 1 - int(block)}
        level = depth.get(place, lambda: levels - 1)()
        return math.prod(sizes[level]), unet.get_submodule(f"{name}.norm1").normalized_shape[0]

    return [shape(name) for name in execution_order(unet)]
