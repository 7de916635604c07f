"""Blocks of TryOnDiffusion's UNets: FiLM, residual block, both attentions, embeddings.

Paper, Section 3.2, and its appendix.

Legend: B batch, C channels, H W height and width of a feature map, L = H W person tokens, M garment
tokens, N heads, d head width, K keypoints, P pose width, E width of the conditioning vector, G rows
of garment features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vton.models.attention import merge_heads, read_garment, split_heads
from vton.models.precision import in_dtype_of
from vton.models.tryondiffusion.config import EfficientUNetConfig, ParallelUNetConfig
from vton.models.unet import PositionCode
from vton.processes import to_device


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups as the appendix gives them: min(32, channels / 4) of the layer's input."""
    return nn.GroupNorm(min(32, channels // 4), channels)


def conv3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def flat(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)


class FiLM(nn.Module):
    """x <- (1 + gamma) x + beta with [gamma, beta] = Linear(swish(e)); starts as the identity."""

    def __init__(self, embedding: int, channels: int):
        super().__init__()
        self.linear = zeroed(nn.Linear(embedding, 2 * channels))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x (B, C, H, W), e (B, E) -> (B, C, H, W)."""
        gamma, beta = self.linear(F.silu(e))[:, :, None, None].chunk(2, 1)
        return (1 + gamma) * x + beta


class ResBlock(nn.Module):
    """FiLM and twice GroupNorm, swish, 3x3 convolution; beside them a 1x1 convolution (appendix).

    film: "pre" modulates the block's input, so that the 1x1 path sees it too; "norm2" what the
    second norm gives.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int, film: str):
        super().__init__()
        self.before = film == "pre"
        self.film = FiLM(embedding, in_channels if self.before else out_channels)
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3(in_channels, out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = conv3(out_channels, out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        if self.before:
            x = self.film(x, e)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if not self.before:
            h = self.film(h, e)
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """What both attentions share: the person's norm, four projections, and a position code.

    positions: amplitude of the code; 0 = none. With a code, queries and keys start equal, values
    and outputs orthogonal, so that a token first reads its own place and what it reads arrives
    undiminished. aspect: height / width of the pictures.
    """

    read = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, channels: int, heads: int, positions: float, aspect: float):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)
        self.place = PositionCode(channels, positions, aspect) if positions else nn.Identity()
        if positions:
            with torch.no_grad():
                self.to_k.weight.copy_(self.to_q.weight)
                self.to_k.bias.copy_(self.to_q.bias)
            nn.init.orthogonal_(self.to_v.weight)
            nn.init.orthogonal_(self.to_out.weight)

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """x + W_o softmax(q k^T / sqrt d) v: x (B, C, H, W), q (B, L, C), k, v (B, tokens, C)."""
        q, k = split_heads(q, self.heads), split_heads(k, self.heads)
        out = merge_heads(self.read(q, k, split_heads(v, self.heads)))
        return x + self.to_out(out).transpose(1, 2).reshape(x.shape)


class SelfAttention(Attention):
    """Person tokens read themselves and both pictures' pose tokens, in one softmax (3.2)."""

    def __init__(self, channels: int, heads: int, pose_width: int, positions: float, aspect: float):
        super().__init__(channels, heads, positions, aspect)
        self.pose_to_k = nn.Linear(pose_width, channels)
        self.pose_to_v = nn.Linear(pose_width, channels)

    def forward(self, x: Tensor, poses: Tensor) -> Tensor:
        """x (B, C, H, W), poses (B, 2K, P) -> (B, C, H, W)."""
        tokens = flat(self.norm(x))
        placed = self.place(tokens)
        k = torch.cat([self.to_k(placed), self.pose_to_k(poses)], 1)
        v = torch.cat([self.to_v(tokens), self.pose_to_v(poses)], 1)
        return self.attend(x, self.to_q(placed), k, v)


class CrossAttention(Attention):
    """Implicit warp: person tokens read the garment's of the same level and side (3.2)."""

    read = staticmethod(read_garment)

    def __init__(self, channels: int, heads: int, positions: float, aspect: float):
        super().__init__(channels, heads, positions, aspect)
        self.garment_norm = group_norm(channels)

    def forward(self, x: Tensor, garment: Tensor, row: Tensor | None) -> Tensor:
        """x (B, C, H, W), garment (G, C, H, W) -> (B, C, H, W).

        row (B,) int64: which of the G each row of x reads, so that shared features are projected
        once; None: its own.
        """
        tokens = flat(self.garment_norm(garment))
        k, v = self.to_k(self.place(tokens)), self.to_v(tokens)
        if row is not None:
            k, v = k[row], v[row]
        person = flat(self.norm(x))
        return self.attend(x, self.to_q(self.place(person)), k, v)


class Unit(nn.Module):
    """FiLM -> ResBlk [-> self-attention [-> cross-attention]]: the UNets' only step (Fig. 2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: ParallelUNetConfig | EfficientUNetConfig,
        attention: bool,
        aspect: float = 1.0,
    ):
        super().__init__()
        self.block = ResBlock(in_channels, out_channels, config.embedding, config.film)
        self.self_attention = self.cross_attention = None
        if attention:
            heads, positions = config.heads, config.positions
            self.self_attention = SelfAttention(
                out_channels, heads, config.pose_width, positions, aspect
            )
            if config.correspondence == "attention":
                self.cross_attention = CrossAttention(out_channels, heads, positions, aspect)

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        poses: Tensor | None = None,
        garment: Tensor | None = None,
        row: Tensor | None = None,
    ) -> Tensor:
        """x (B, C_in, H, W), e (B, E) -> (B, C_out, H, W).

        With self-attention also poses (B, 2K, P), with cross-attention also garment (G, C, H, W)
        and row (B,) or None.
        """
        x = self.block(x, e)
        if self.self_attention is not None:
            x = self.self_attention(x, poses)
        if self.cross_attention is not None:
            x = self.cross_attention(x, garment, row)
        return x


class NumberEmbedding(nn.Module):
    """Times and noise levels x in [0, 1]: an MLP over sines and cosines of 1000 x, base 10000."""

    def __init__(self, sinusoid: int, embedding: int):
        super().__init__()
        self.half = sinusoid // 2
        self.linear1 = nn.Linear(sinusoid, embedding)
        self.linear2 = nn.Linear(embedding, embedding)

    def forward(self, x: Tensor) -> Tensor:
        """(B,) -> (B, E)."""
        weight = self.linear1.weight
        places = torch.arange(self.half, device=weight.device)
        frequencies = torch.exp(places * (-math.log(10_000) / self.half))
        phase = 1000 * to_device(x, weight.device).to(torch.float32)[:, None] * frequencies
        code = torch.cat([phase.sin(), phase.cos()], 1).to(weight.dtype)
        return self.linear2(F.silu(self.linear1(code)))


class AttentionPool(nn.Module):
    """CLIP's pooling in one dimension: the tokens' mean reads itself and the tokens (3.2)."""

    def __init__(self, tokens: int, width: int, out: int, heads: int):
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(tokens + 1, width) * width**-0.5)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, P) -> (B, E)."""
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positions
        q = split_heads(self.to_q(x[:, :1]), self.heads)
        k = split_heads(self.to_k(x), self.heads)
        v = split_heads(self.to_v(x), self.heads)
        return self.to_out(merge_heads(F.scaled_dot_product_attention(q, k, v)))[:, 0]


class PoseEncoder(nn.Module):
    """One pose as tokens, for self-attention, and as a vector, for FiLM.

    A linear layer per keypoint (P) and a learned code of the joint's number, without which
    attention could not tell a wrist from an ankle (D).
    """

    def __init__(self, keypoints: int, coordinates: int, width: int, embedding: int, heads: int):
        super().__init__()
        self.linear = nn.Linear(coordinates, width)
        self.joints = nn.Parameter(torch.randn(keypoints, width) * width**-0.5)
        self.pool = AttentionPool(keypoints, width, embedding, heads)

    def forward(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, 2 or 3), x and y in [0, 1] -> tokens (B, K, P), pooled (B, E)."""
        tokens = self.linear(in_dtype_of(self.linear, pose)) + self.joints
        return tokens, self.pool(tokens)
