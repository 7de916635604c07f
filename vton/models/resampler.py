"""The Perceiver resampler that IP-Adapter-Plus, IDM-VTON and IMAGDressing read garments with.

In each layer, with X the projected image tokens and L the queries (arXiv 2103.03206):

    L <- L + Wo softmax(q k^T / sqrt d) v      q = Wq LN2(L),  [k, v] = Wkv [LN1(X); LN2(L)]
    L <- L + W2 GELU(W1 LN(L))

X stays as it is. Parameter names are those of the published files.
"""
# Shapes: B batch, S image tokens, Q queries, D width

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vton.models.attention import merge_heads, split_heads
from vton.models.precision import in_dtype_of
from vton.models.settings import ResamplerConfig

# Width of a head in IP-Adapter's files, which no tensor tells.
IP_ADAPTER_HEAD = 64


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
        read = torch.cat([self.norm1(x_BSD), queries], dim=1)
        k, v = self.to_kv(read).chunk(2, dim=-1)
        q = split_heads(self.to_q(queries), self.heads)
        k, v = split_heads(k, self.heads), split_heads(v, self.heads)
        return self.to_out(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def feed_forward(width: int, factor: int) -> nn.Sequential:
    """LayerNorm, Linear, exact GELU, Linear; without biases in the linear layers."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, factor * width, bias=False),
        nn.GELU(),
        nn.Linear(factor * width, width, bias=False),
    )


class Perceiver(nn.Module):
    """Refines queries that come from outside: (B, S, input), (B, Q, D) -> (B, Q, output)."""

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
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = PerceiverAttention(width, heads, head_width)
            self.layers.append(nn.ModuleList([attention, feed_forward(width, factor)]))

    def forward(self, image_tokens: Tensor, queries: Tensor) -> Tensor:
        x = self.proj_in(in_dtype_of(self.proj_in, image_tokens))
        for attention, mlp in self.layers:
            queries = queries + attention(x, queries)
            queries = queries + mlp(queries)
        return self.norm_out(self.proj_out(queries))


class Resampler(Perceiver):
    """A Perceiver with learned queries: CLIP states (B, S, input) -> (B, queries, output)."""

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
        queries = self.latents.expand(len(image_tokens), -1, -1)
        return super().forward(image_tokens, queries)


def build_resampler(config: ResamplerConfig, input_width: int, output_width: int) -> Resampler:
    """A fresh Resampler of the configured shape."""
    return Resampler(
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        head_width=config.head_width,
        queries=config.queries,
        input_width=input_width,
        output_width=output_width,
        factor=config.feed_forward,
    )


def resampler_shape(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes that a Resampler's tensors show: all but how many heads share the inner width.

    Raises KeyError, ValueError or IndexError for other tensors.
    """
    _, queries, width = state["latents"].shape
    return {
        "width": width,
        "depth": len({name.split(".")[1] for name in state if name.startswith("layers.")}),
        "inner": state["layers.0.0.to_q.weight"].shape[0],
        "queries": queries,
        "input_width": state["proj_in.weight"].shape[1],
        "output_width": state["proj_out.weight"].shape[0],
        "feed_forward": state["layers.0.1.1.weight"].shape[0] // width,
    }
