"""The Perceiver resampler that IP-Adapter-Plus, IDM-VTON and IMAGDressing read garments with.

For each layer, with X the projected image tokens and L the queries (arXiv 2103.03206;
IP-Adapter-Plus):

    L <- L + Wo softmax(q k^T / sqrt d) v      q = Wq LN2(L),  [k, v] = Wkv [LN1(X); LN2(L)]
    L <- L + W2 GELU(W1 LN(L))

X is never updated. Parameter names are those of the published files.
"""
# Shapes: B batch, S image tokens, Q queries, D width, N heads, d head width

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PerceiverAttention(nn.Module):
    """Queries read image tokens and themselves. heads * head_width need not equal width."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x_BSD: Tensor, queries_BQD: Tensor) -> Tensor:
        queries = self.norm2(queries_BQD)
        k, v = self.to_kv(torch.cat([self.norm1(x_BSD), queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(queries), k, v)
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def feed_forward(width: int, factor: int) -> nn.Sequential:
    """LayerNorm, Linear, exact GELU, Linear; without biases in the linear layers."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, factor * width, bias=False),
        nn.GELU(),
        nn.Linear(factor * width, width, bias=False),
    )


class Perceiver(nn.Module):
    """Queries that are given from outside refined by image tokens: (B, S, input), (B, Q, D) -> (B,
    Q, output).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        head_width: int,
        input_width: int,
        output_width: int,
        factor: int = 4,
    ):
        super().__init__()
        self.proj_in = nn.Linear(input_width, width)
        self.proj_out = nn.Linear(width, output_width)
        self.norm_out = nn.LayerNorm(output_width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [PerceiverAttention(width, heads, head_width), feed_forward(width, factor)]
            )
            for _ in range(depth)
        )

    def refine(self, image_tokens: Tensor, queries: Tensor) -> Tensor:
        x = self.proj_in(image_tokens)
        for attention, mlp in self.layers:
            queries = queries + attention(x, queries)
            queries = queries + mlp(queries)
        return self.norm_out(self.proj_out(queries))

    def forward(self, image_tokens: Tensor, queries: Tensor) -> Tensor:
        return self.refine(image_tokens, queries)


class Resampler(Perceiver):
    """The same with learned queries: CLIP's hidden states (B, S, input) -> (B, queries, output)."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        head_width: int,
        queries: int,
        input_width: int,
        output_width: int,
        factor: int = 4,
    ):
        super().__init__(width, depth, heads, head_width, input_width, output_width, factor)
        self.latents = nn.Parameter(torch.randn(1, queries, width) / width**0.5)

    def forward(self, image_tokens: Tensor) -> Tensor:
        return self.refine(image_tokens, self.latents.expand(len(image_tokens), -1, -1))
