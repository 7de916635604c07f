"""Image-prompt cross-attention (IP-Adapter, arXiv 2308.06721, Eq. 5): text and picture tokens read by one query.

Legend: B batch, N heads, d head width, Q queries, D = N d, L text tokens, n image tokens, C context width.
"""

from __future__ import annotations

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B, N, L, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, N, L, d) -> (B, L, D)."""
    return x.transpose(1, 2).flatten(2)


def as_slice(rows: list[int]) -> list[int] | slice:
    """Rows of a batch, as a slice where they are consecutive, which copies nothing."""
    start, stop = rows[0], rows[-1] + 1
    return slice(start, stop) if rows == list(range(start, stop)) else rows


def image_prompt_attention(
    q: Tensor, k_text: Tensor, v_text: Tensor, k_image: Tensor, v_image: Tensor, scale: float = 1.0
) -> Tensor:
    """softmax(q k_text^T / sqrt d) v_text + scale softmax(q k_image^T / sqrt d) v_image, both sums in one output.

    q: (B, N, Q, d); keys and values: (B, N, L or n, d). Two separate softmaxes: the picture takes nothing from the
    text's weights, and scale 0 leaves plain text attention.
    """
    text = F.scaled_dot_product_attention(q, k_text, v_text)
    return text + scale * F.scaled_dot_product_attention(q, k_image, v_image)


class ImagePromptProcessor(nn.Module):
    """A cross-attention layer whose context ends with `tokens` image tokens, read through their own keys and values.

    Text and image attention share the layer's queries; their sum goes through its output projection once. The new
    keys and values start as copies of the text's.
    """

    def __init__(self, attention: Attention, tokens: int, scale: float = 1.0):
        super().__init__()
        width, context = attention.to_k.weight.shape
        self.tokens, self.scale = tokens, scale
        self.to_k_ip = nn.Linear(context, width, bias=False)
        self.to_v_ip = nn.Linear(context, width, bias=False)
        self.to_k_ip.weight.data.copy_(attention.to_k.weight.data)
        self.to_v_ip.weight.data.copy_(attention.to_v.weight.data)

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states, attention_mask=None, garment=None):
        """hidden_states (B, Q, D), encoder_hidden_states (B, L + n, C) -> (B, Q, D).

        garment is for self-attention layers: diffusers hands every layer the same arguments.
        """
        text, image = encoder_hidden_states[:, : -self.tokens], encoder_hidden_states[:, -self.tokens :]
        q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        projected = (q, k, v, self.to_k_ip(image), self.to_v_ip(image))
        out = image_prompt_attention(*(split_heads(x, attn.heads) for x in projected), self.scale)
        return attn.to_out[1](attn.to_out[0](merge_heads(out)))
