"""Attention that architectures share: where the person reads the garment, and image prompts.

Legend: B batch, N heads, d head width, Q queries, D = N d, L text tokens, n image tokens, C context
width, M garment tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from vton.models.precision import without_autocast
from vton.models.rows import Rows


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B, N, L, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, N, L, d) -> (B, L, D)."""
    return x.transpose(1, 2).flatten(2)


def project_out(attn: Attention, heads: Tensor) -> Tensor:
    """The layer's output (B, L, D) from what its heads have read, (B, N, L, d)."""
    projection, dropout = attn.to_out
    return dropout(projection(merge_heads(heads)))


# ---- reading the garment ----


def read_garment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: int | None = None,
    attn_mask: Tensor | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt d + mask) v, (B, N, Q, d), by which a person's tokens read a garment's.

    Every layer that reads the garment calls it: pictures of attention, the flow loss and the
    measured distance to the true place all watch these calls.

    tokens: how many of the keys, the last ones, are the garment's; None: all.
    rows: which rows of the whole batch these are; None: all.
    """
    for recorder in _recording:
        recorder.add(q, k, tokens or k.shape[-2], attn_mask, rows)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)


class GarmentRead(NamedTuple):
    """One layer's call of `read_garment`, without the person's own keys."""

    q: Tensor  # (R, N, Q, d), of the person
    k: Tensor  # (R, N, M, d), of the garment
    rows: Rows | None  # which rows of the whole batch the R are; None: all, in their order


class GarmentReads:
    """Queries and garment keys of every layer, in the order of execution.

    They are the layers' own tensors, so gradients flow through them. Recording computes nothing,
    which keeps gradient checkpointing exact.
    """

    def __init__(self):
        self.layers: list[GarmentRead] = []

    def add(
        self, q: Tensor, k: Tensor, tokens: int, mask: Tensor | None, rows: Rows | None
    ) -> None:
        self.layers.append(GarmentRead(q, k[..., -tokens:, :], rows))


class AttentionMaps:
    """How much each query reads each garment token, averaged over heads and layers of one size."""

    # Queries times keys. The weights of larger layers would take more memory than sampling does.
    LARGEST = 2**21

    def __init__(self):
        self.sums: dict[tuple[int, int], Tensor] = {}
        self.layers: dict[tuple[int, int], int] = {}

    def add(
        self, q: Tensor, k: Tensor, tokens: int, mask: Tensor | None, rows: Rows | None
    ) -> None:
        """Add one layer, whose last `tokens` keys are the garment's."""
        queries, keys = q.shape[-2], k.shape[-2]
        if queries * keys > self.LARGEST:
            return
        with without_autocast(q):
            logits = q.float() @ k.float().mT / q.shape[-1] ** 0.5
            if mask is not None:
                logits = logits + mask
            weights = logits.softmax(-1)[..., -tokens:].mean(1)
        size = (queries, tokens)
        self.sums[size] = self.sums.get(size, 0) + weights
        self.layers[size] = self.layers.get(size, 0) + 1

    def means(self) -> dict[tuple[int, int], Tensor]:
        """{(Q, M): weights (B, Q, M)}."""
        return {size: total / self.layers[size] for size, total in self.sums.items()}


_recording: list[AttentionMaps | GarmentReads] = []


def record_attention(maps: AttentionMaps | None = None):
    """A context that collects the attention maps of every `read_garment` in `maps`, or new ones."""
    return _recorded_by(AttentionMaps() if maps is None else maps)


def record_reads(reads: GarmentReads | None = None):
    """A context that collects queries and garment keys of every `read_garment` in `reads`, or new
    ones.
    """
    return _recorded_by(GarmentReads() if reads is None else reads)


@contextmanager
def _recorded_by(recorder: AttentionMaps | GarmentReads) -> Iterator[AttentionMaps | GarmentReads]:
    _recording.append(recorder)
    try:
        yield recorder
    finally:
        _recording.remove(recorder)


def token_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of the grid that this many tokens of a picture of this size fill.

    It is a level of a UNet over the picture's latents if their number fits one, otherwise a grid of
    the picture's proportions. None if they fit neither; a single token has no place.
    """
    if tokens == 1:
        return None
    level = level_grid(tokens, size)
    if level:
        return level
    height = round(math.sqrt(tokens * size[0] / size[1]))
    if height and tokens % height == 0:
        return height, tokens // height
    return None


def level_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of the level with this many tokens in a UNet over an input of this size.

    Each level halves both sides, rounding up. None if no level has this many.
    """
    height, width = size
    while height * width > tokens:
        height, width = (height + 1) // 2, (width + 1) // 2
    return (height, width) if height * width == tokens else None


# ---- image prompts ----


def image_prompt_attention(
    q: Tensor, k_text: Tensor, v_text: Tensor, k_image: Tensor, v_image: Tensor, scale: float = 1.0
) -> Tensor:
    """IP-Adapter's sum of two attentions (arXiv 2308.06721, Eq. 5), before the output projection.

        softmax(q k_text^T / sqrt d) v_text + scale softmax(q k_image^T / sqrt d) v_image

    q: (B, N, Q, d); keys and values: (B, N, L or n, d). The two softmaxes are separate: the picture
    takes nothing from the text's weights, and scale 0 leaves plain text attention.
    """
    text = F.scaled_dot_product_attention(q, k_text, v_text)
    return text + scale * F.scaled_dot_product_attention(q, k_image, v_image)


class ImagePromptProcessor(nn.Module):
    """A cross-attention layer whose context ends with image tokens, read by keys of their own.

    The new keys and values start as copies of the text's.
    """

    def __init__(self, attention: Attention, tokens: int, scale: float = 1.0):
        super().__init__()
        width, context = attention.to_k.weight.shape
        self.tokens = tokens
        self.scale = scale
        self.to_k_ip = nn.Linear(context, width, bias=False)
        self.to_v_ip = nn.Linear(context, width, bias=False)
        self.to_k_ip.weight.data.copy_(attention.to_k.weight.data)
        self.to_v_ip.weight.data.copy_(attention.to_v.weight.data)

    def __call__(
        self,
        attn: Attention,
        hidden_states,
        encoder_hidden_states,
        attention_mask=None,
        garment=None,
    ):
        """hidden_states (B, Q, D), encoder_hidden_states (B, L + n, C) -> (B, Q, D).

        garment is for self-attention layers: diffusers hands every layer the same arguments.
        """
        text = encoder_hidden_states[:, : -self.tokens]
        image = encoder_hidden_states[:, -self.tokens :]
        q = split_heads(attn.to_q(hidden_states), attn.heads)
        k, v = split_heads(attn.to_k(text), attn.heads), split_heads(attn.to_v(text), attn.heads)
        k_image = split_heads(self.to_k_ip(image), attn.heads)
        v_image = split_heads(self.to_v_ip(image), attn.heads)
        out = image_prompt_attention(q, k, v, k_image, v_image, self.scale)
        return project_out(attn, out)
