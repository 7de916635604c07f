"""GarDiff's network: a latent UNet over [x_t, x_w, x_a] whose cross-attention is the garment-focused adapter.

Paper, Section 3.2 and 3.3. Legend: B batch, c latent channels, h w latent size, Q query positions of a layer,
L tokens, D token width.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F


def garment_focused_attention(q, k_clip, v_clip, k_vae, v_vae, mask=None, mask_branches=("clip", "vae")) -> Tensor:
    """Eq. 6: (M * A_c) V_c + (M * A_v) V_v, with A the softmaxed weights; Eq. 5 without a mask.

    q: (B, N, Q, d) for N heads; keys and values (B, N, L, d); mask (B, 1, Q, 1) in {0, 1} or None.
    The mask has one value per query and multiplies after the softmax (a value constant along the keys would cancel
    inside it), so it can be applied to each branch's output.
    """
    clip = F.scaled_dot_product_attention(q, k_clip, v_clip)
    vae = F.scaled_dot_product_attention(q, k_vae, v_vae)
    if mask is not None:
        clip = clip * mask if "clip" in mask_branches else clip
        vae = vae * mask if "vae" in mask_branches else vae
    return clip + vae


class GarmentFocusedProcessor(nn.Module):
    """The adapter at one cross-attention: the layer's own keys and values read CLIP tokens, added ones VAE tokens."""

    def __init__(self, attention: Attention, mask_branches: tuple[str, ...]):
        super().__init__()
        inner, context = attention.to_k.weight.shape
        self.mask_branches = mask_branches
        self.to_k_adapter = nn.Linear(context, inner, bias=False)
        self.to_v_adapter = nn.Linear(context, inner, bias=False)
        self.to_k_adapter.weight.data.copy_(attention.to_k.weight.data)
        self.to_v_adapter.weight.data.copy_(attention.to_v.weight.data)

    def __call__(
        self, attn, hidden_states, encoder_hidden_states, attention_mask=None, vae_length=0, query_masks=None
    ) -> Tensor:
        """hidden_states (B, Q, D'); encoder_hidden_states (B, L, D): CLIP tokens, then `vae_length` VAE tokens."""
        clip, vae = encoder_hidden_states[:, :-vae_length], encoder_hidden_states[:, -vae_length:]

        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        mask = query_masks[hidden_states.shape[1]][:, None] if query_masks else None
        out = garment_focused_attention(
            heads(attn.to_q(hidden_states)),
            heads(attn.to_k(clip)),
            heads(attn.to_v(clip)),
            heads(self.to_k_adapter(vae)),
            heads(self.to_v_adapter(vae)),
            mask,
            self.mask_branches,
        )
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


class SelfAttentionProcessor(AttnProcessor2_0):
    """Plain self-attention that ignores the adapter's arguments, which diffusers hands to every attention layer."""

    def __call__(self, attn, hidden_states, *args, vae_length=0, query_masks=None, **kwargs):
        return super().__call__(attn, hidden_states, *args, **kwargs)


class GarDiffUNet(nn.Module):
    """eps, v or x0 from [x_t, x_w, x_a] and garment tokens.

    Tokens (Eq. 4): f_clip = MLP(CLIP embeddings), f_vae = MLP(latents of the warped garment).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        clip_width: int,
        vae_width: int,
        adapter: bool = True,
        mask_branches: tuple[str, ...] = ("clip", "vae"),
    ):
        super().__init__()
        self.unet = unet
        self.adapter = adapter
        context = unet.config.cross_attention_dim
        self.clip_mlp = token_mlp(clip_width, context)
        if not adapter:
            return
        self.vae_mlp = token_mlp(vae_width, context)
        for module in unet.modules():
            if isinstance(module, Attention):
                cross = module.is_cross_attention
                processor = GarmentFocusedProcessor(module, mask_branches) if cross else SelfAttentionProcessor()
                module.set_processor(processor)

    def forward(self, x_t: Tensor, t: Tensor, x_w: Tensor, x_a: Tensor, f_clip: Tensor, f_vae: Tensor, mask: Tensor):
        """x_t, x_w, x_a (B, c, h, w); t (B,); f_clip (B, L, D); f_vae (B, L', D); mask (B, 1, h, w) in {0, 1}."""
        x = torch.cat([x_t, x_w, x_a], dim=1)  # (B, 3c, h, w)
        if not self.adapter:
            return self.unet(x, t, f_clip).sample
        arguments = {"vae_length": f_vae.shape[1], "query_masks": self.mask_pyramid(mask)}
        return self.unet(x, t, torch.cat([f_clip, f_vae], 1), cross_attention_kwargs=arguments).sample

    def mask_pyramid(self, mask: Tensor) -> dict[int, Tensor]:
        """The garment mask at every level of the UNet, (B, Q, 1), by the number Q of its positions; nearest."""
        pyramid = {}
        h, w = mask.shape[-2:]
        for _ in self.unet.config.block_out_channels:
            pyramid[h * w] = F.interpolate(mask, (h, w), mode="nearest").flatten(2).transpose(1, 2)
            h, w = (h + 1) // 2, (w + 1) // 2  # the UNet's stride-2 convolutions round up
        return pyramid


def token_mlp(width: int, context: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, context), nn.GELU(), nn.Linear(context, context))


def latent_tokens(x_w: Tensor, kind: str) -> Tensor:
    """The warped garment's latents (B, c, h, w) as tokens.

    channels: max-pooled 2x2, one token per channel, (B, c, h w / 4); patches: one per 2x2 patch, (B, h w / 4, 4 c).
    """
    if kind == "channels":
        return F.max_pool2d(x_w, 2).flatten(2)
    return F.pixel_unshuffle(x_w, 2).flatten(2).transpose(1, 2)
