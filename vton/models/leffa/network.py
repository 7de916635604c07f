"""Leffa's mathematics (arXiv 2412.08486, Section 3.1): two UNets, and what passes between them.

In every transformer block i of the generative UNet, self-attention reads the person's tokens and
the reference UNet's of block i,

    x <- x + Wo softmax(Wq n (Wk [n; g_i])^T / sqrt d) Wv [n; g_i],       n = LN1(x),

with g_i the normalised input of the reference UNet's self-attention at the same timestep. Only
queries of person tokens are formed: the other rows would be thrown away. There is no text. Where
cross-attention was, both UNets keep its norm: x <- x + LN2(x).

Without garment (guidance, dropout) the reference UNet reads zero latents. Its features are not
zero, but depend on t and the size alone, so one row of them serves a batch.

Legend: B batch, G distinct garments, N person tokens, M garment tokens, D width of a block, c
latent channels, h w latent size.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from vton.diffusion.denoiser import Conditions, Denoiser, Features, Step
from vton.models.attention import project_out, read_garment, split_heads
from vton.models.distinct import distinct
from vton.models.rows import select_rows
from vton.models.unet import execution_order, garment_taps
from vton.processes import to_device

POSE_CHANNELS = 3  # the DensePose picture itself, not encoded
NOBODY = -1  # the garment of rows without one


class ReferenceSelfAttention:
    """Self-attention of transformer block `index`, in execution order, joined by the garment's
    tokens.
    """

    def __init__(self, index: int):
        self.index = index

    def __call__(
        self,
        attn: Attention,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        garment: Features | None = None,
    ):
        """hidden_states (B, N, D) -> (B, N, D). garment: as `Leffa.garment_features` gives it."""
        q = split_heads(attn.to_q(hidden_states), attn.heads)
        k = split_heads(attn.to_k(hidden_states), attn.heads)
        v = split_heads(attn.to_v(hidden_states), attn.heads)
        # Projected once for each garment, however many rows wear it.
        g, row = garment[str(self.index)], garment["row"]
        k_g = split_heads(attn.to_k(g), attn.heads)[row]
        v_g = split_heads(attn.to_v(g), attn.heads)[row]
        tokens = k_g.shape[2]
        out = read_garment(q, torch.cat([k, k_g], 2), torch.cat([v, v_g], 2), tokens)
        return project_out(attn, out)


class WithoutText:
    """In place of cross-attention: what it would read from, the normalised stream, as it is."""

    def __call__(
        self,
        attn: Attention,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        garment: Features | None = None,
    ):
        """garment is for self-attention layers: diffusers hands every layer the same arguments."""
        return hidden_states


def without_text(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet whose blocks add LN2(x) where they would add cross-attention."""
    for name in execution_order(unet):
        unet.get_submodule(name).attn2.set_processor(WithoutText())
    return unet


class Leffa(Denoiser):
    """Both UNets behind the sampler's contract, from tensors to predictions.

    unet: reads 2c + 4 channels: z_t, mask, masked person, DensePose; reference_unet: c.
    Both get new attention processors.
    """

    def __init__(self, unet: UNet2DConditionModel, reference_unet: UNet2DConditionModel):
        super().__init__()
        self.unet = without_text(unet)
        self.reference_unet = without_text(reference_unet)
        self.blocks = execution_order(unet)
        for index, name in enumerate(self.blocks):
            unet.get_submodule(name).attn1.set_processor(ReferenceSelfAttention(index))

    def condition(
        self,
        *,
        mask: Tensor,
        masked: Tensor,
        pose: Tensor,
        garment: Tensor,
        garment_latents: Tensor,
        reference_timestep: int | None = None,
    ) -> Conditions:
        """What depends on neither z_t nor t.

        mask (B, 1, h, w), 1 = paint; latents of masked person and garment (B, c, ., .); pose
        (B, 3, h, w): the DensePose picture at latent size, in [-1, 1]; garment (B,) int64, on the
        CPU: equal for rows that share garment_latents, negative for none.
        reference_timestep: the reference UNet's features at this one t serve every t. An
        approximation, as it reads t (the released code's `ref_acceleration`).
        """
        conditions = {
            "mask": mask,
            "masked": masked,
            "pose": pose,
            "garment": garment,
            "garment_latents": garment_latents,
        }
        if reference_timestep is None:
            return conditions
        return self.with_fixed_features(
            conditions | {"reference_t": torch.full_like(garment, reference_timestep)}
        )

    def with_fixed_features(self, conditions: Conditions) -> Conditions:
        """Conditions with their reference features at reference_t, for each row."""
        features = self.read_garments(conditions, conditions["reference_t"])
        fixed = {}
        for index in range(len(self.blocks)):
            fixed[f"fixed.{index}"] = features[str(index)][features["row"]]
        return conditions | fixed

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        """Features of each distinct garment and timestep, (G, M, D) by block in execution order,
        and "row" (B,): each row's place among them.
        """
        if "reference_t" not in conditions:
            return self.read_garments(conditions, t)
        device = conditions["garment_latents"].device
        features = {"row": torch.arange(len(t), device=device)}
        for index in range(len(self.blocks)):
            features[str(index)] = conditions[f"fixed.{index}"]
        return features

    def read_garments(self, conditions: Conditions, t: Tensor) -> Features:
        garment = conditions["garment"].clamp(min=NOBODY)
        first, row = distinct(garment - NOBODY, t)
        latents = select_rows(conditions["garment_latents"], first).to(self.reference_unet.dtype)
        taps = garment_taps(self.reference_unet, latents, t[first], None)
        features = {str(index): tap for index, tap in enumerate(taps.values())}
        return features | {"row": to_device(row, latents.device)}

    def unet_input(self, z_t: Tensor, conditions: Conditions) -> Tensor:
        """(B, 2c + 4, h, w): noisy latents, mask, masked person, pose."""
        parts = [z_t, conditions["mask"], conditions["masked"], conditions["pose"]]
        return torch.cat([part.to(self.unet.dtype) for part in parts], 1)

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        x = self.unet_input(z_t, conditions)
        t = to_device(t, x.device)
        return self.unet(x, t, None, cross_attention_kwargs={"garment": features}).sample

    def unconditional(self, conditions: Conditions) -> Conditions:
        """Zero garment latents; mask, masked person and pose stay."""
        null = conditions | {
            "garment": torch.full_like(conditions["garment"], NOBODY),
            "garment_latents": torch.zeros_like(conditions["garment_latents"]),
        }
        return self.with_fixed_features(null) if "reference_t" in conditions else null
