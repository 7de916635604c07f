"""GarDiff's network: a latent UNet over [x_t, x_w, x_a] whose cross-attention is the
garment-focused adapter.

Paper, Section 3.2 and 3.3. Legend: B batch, c latent channels, h w latent size, Q query positions
of a layer, L tokens, D token width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from vton.diffusion.denoiser import Conditions, Denoiser, Features
from vton.models.attention import project_out, read_garment, split_heads
from vton.models.precision import in_dtype_of
from vton.processes import to_device


def focused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """One branch of Eq. 6: (M * A) V with A = softmax(q k^T / sqrt d + key_mask); Eq. 5 without a
    mask.

    q: (B, N, Q, d) for N heads; keys and values (B, N, L, d); query_mask (B, 1, Q, 1) in {0, 1};
    key_mask (B, 1, 1 or Q, L), added to the logits. M has one value per query and multiplies after
    the softmax (a value constant along the keys would cancel inside it), so it can be applied to
    the output.
    """
    out = read_garment(q, k, v, attn_mask=key_mask)
    return out if query_mask is None else out * query_mask


class GarmentFocusedProcessor(nn.Module):
    """A cross-attention of one or two branches: the layer's own keys and values, and added ones for
    further tokens.

    The sum of both goes through the layer's output projection once. In paper mode CLIP tokens are
    the first branch and VAE tokens the second; in decoupled mode text is the first and projected
    CLIP tokens are the second. The added keys and values start as copies of the layer's own.

    masked: for each branch, whether the query mask multiplies it; its length is the number of
    branches.
    scale: of the second branch.
    """

    def __init__(
        self, attention: Attention, masked: tuple[bool, ...] = (False, False), scale: float = 1.0
    ):
        super().__init__()
        self.masked = masked
        self.scale = scale
        if len(masked) == 2:
            inner, context = attention.to_k.weight.shape
            self.to_k_adapter = nn.Linear(context, inner, bias=False)
            self.to_v_adapter = nn.Linear(context, inner, bias=False)
            self.to_k_adapter.weight.data.copy_(attention.to_k.weight.data)
            self.to_v_adapter.weight.data.copy_(attention.to_v.weight.data)

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states,
        attention_mask=None,
        adapter_length=0,
        query_masks=None,
    ) -> Tensor:
        """hidden_states (B, Q, D'); encoder_hidden_states (B, L, D), whose last `adapter_length`
        tokens are the second branch's; attention_mask (B, 1 or Q, L - adapter_length), added to the
        first branch's logits.
        """
        first, second = encoder_hidden_states.split(
            [encoder_hidden_states.shape[1] - adapter_length, adapter_length], dim=1
        )

        def heads(x):
            return split_heads(x, attn.heads)

        masks: list[Tensor | None] = [None, None]
        for branch, masked in enumerate(self.masked):
            if masked and query_masks:
                masks[branch] = query_masks[hidden_states.shape[1]][:, None]
        q = heads(attn.to_q(hidden_states))
        key_mask = None if attention_mask is None else attention_mask[:, None]
        out = focused_attention(
            q, heads(attn.to_k(first)), heads(attn.to_v(first)), masks[0], key_mask
        )
        if adapter_length:
            k, v = heads(self.to_k_adapter(second)), heads(self.to_v_adapter(second))
            added = focused_attention(q, k, v, masks[1])
            out = out + (added if self.scale == 1 else self.scale * added)
        return project_out(attn, out)


class SelfAttentionProcessor(AttnProcessor2_0):
    """Plain self-attention that ignores the adapter's arguments, which diffusers hands to every
    attention layer.
    """

    def __call__(self, attn, hidden_states, *args, adapter_length=0, query_masks=None, **kwargs):
        return super().__call__(attn, hidden_states, *args, **kwargs)


def set_adapter(
    unet: UNet2DConditionModel, masked: tuple[bool, ...] = (False, False), scale: float = 1.0
) -> None:
    """Put a GarmentFocusedProcessor into every cross-attention of the UNet."""
    for module in unet.modules():
        if not isinstance(module, Attention):
            continue
        if module.is_cross_attention:
            module.set_processor(GarmentFocusedProcessor(module, masked, scale))
        else:
            module.set_processor(SelfAttentionProcessor())


class GarDiffUNet(Denoiser):
    """mode=paper: eps, v or x0 from [x_t, x_w, x_a] and garment tokens.

    Tokens (Eq. 4): f_clip = MLP(CLIP embeddings), f_vae = MLP(latents of the warped garment).
    Without adapter, plain cross-attention to f_clip. `vae_width` is that of `latent_tokens` for
    `vae_tokens`.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        clip_width: int,
        vae_width: int,
        adapter: bool = True,
        mask_branches: Sequence[str] = ("clip", "vae"),
        branches: Sequence[str] = ("clip", "vae"),
        vae_tokens: str = "channels",
    ):
        super().__init__()
        self.unet = unet
        self.adapter = adapter
        self.vae_tokens = vae_tokens
        if adapter:
            branches = [branch for branch in ("clip", "vae") if branch in branches]
        else:
            branches = ["clip"]
        context = unet.config.cross_attention_dim
        self.clip_mlp = token_mlp(clip_width, context) if "clip" in branches else None
        self.vae_mlp = token_mlp(vae_width, context) if "vae" in branches else None
        if adapter:
            set_adapter(unet, tuple(branch in mask_branches for branch in branches))

    def condition(
        self, *, x_w: Tensor, x_a: Tensor, mask: Tensor, clip: Tensor | None
    ) -> Conditions:
        """What depends on neither z_t nor t.

        x_w, x_a (B, c, h, w); mask (B, 1, H, W) in {0, 1}, of the warped garment; clip
        (B, L, clip_width).
        """
        conditions = {
            "x_w": x_w,
            "x_a": x_a,
            "mask": F.interpolate(mask, x_w.shape[-2:], mode="nearest"),
        }
        if self.clip_mlp is not None:
            conditions["f_clip"] = self.clip_mlp(in_dtype_of(self.clip_mlp, clip))
        if self.vae_mlp is not None:
            tokens = in_dtype_of(self.vae_mlp, latent_tokens(x_w, self.vae_tokens))
            conditions["f_vae"] = self.vae_mlp(tokens)
        return conditions

    def unconditional(self, conditions: Conditions) -> Conditions:
        """Both garment embeddings are dropped together and become projections of zeros; the latents
        stay (Section 4.1).
        """
        null = dict(conditions)
        for name, mlp in (("f_clip", self.clip_mlp), ("f_vae", self.vae_mlp)):
            if mlp is not None:
                zeros = conditions[name].new_zeros(1, 1, mlp[0].normalized_shape[0])
                null[name] = mlp(zeros).expand_as(conditions[name])
        return null

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        c = conditions
        return self(z_t, t, c["x_w"], c["x_a"], c.get("f_clip"), c.get("f_vae"), c["mask"])

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        x_w: Tensor,
        x_a: Tensor,
        f_clip: Tensor | None,
        f_vae: Tensor | None,
        mask: Tensor,
    ) -> Tensor:
        """x_t, x_w, x_a (B, c, h, w); t (B,); f_clip (B, L, D); f_vae (B, L', D); mask (B, 1, h, w)
        in {0, 1}.
        """
        x = in_dtype_of(self.unet, torch.cat([x_t, x_w, x_a], dim=1))  # (B, 3c, h, w)
        t = to_device(t, x.device)
        if not self.adapter:
            return self.unet(x, t, f_clip).sample
        mask = in_dtype_of(self.unet, mask)
        tokens = [f for f in (f_clip, f_vae) if f is not None]
        second = tokens[1].shape[1] if len(tokens) == 2 else 0
        arguments = {"adapter_length": second, "query_masks": self.mask_pyramid(mask)}
        return self.unet(x, t, torch.cat(tokens, 1), cross_attention_kwargs=arguments).sample

    def mask_pyramid(self, mask: Tensor) -> dict[int, Tensor]:
        """The garment mask at every level of the UNet, (B, Q, 1), by the number Q of its positions;
        nearest.
        """
        pyramid = {}
        h, w = mask.shape[-2:]
        for _ in self.unet.config.block_out_channels:
            pyramid[h * w] = F.interpolate(mask, (h, w), mode="nearest").flatten(2).transpose(1, 2)
            h, w = (h + 1) // 2, (w + 1) // 2  # the UNet's stride-2 convolutions round up
        return pyramid


def token_mlp(width: int, context: int) -> nn.Sequential:
    """Tokens (B, L, width) to tokens of cross-attention, (B, L, context)."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, context), nn.GELU(), nn.Linear(context, context)
    )


def latent_tokens(x_w: Tensor, kind: str) -> Tensor:
    """The warped garment's latents (B, c, h, w) as tokens.

    channels: max-pooled 2x2, one token per channel, (B, c, h w / 4); patches: one per 2x2 patch,
    (B, h w / 4, 4 c).
    """
    if kind == "channels":
        return F.max_pool2d(x_w, 2).flatten(2)
    return F.pixel_unshuffle(x_w, 2).flatten(2).transpose(1, 2)
