"""The garment as words: CLIP's tokens of it become pseudo-words in the prompt (Section 3.2).

A prompt has `WORD` N times behind the category. The text encoder embeds its tokens, the first of
these and those after it are overwritten by the adapter's N words, and only then are positions
added. Rows without such tokens are left alone, which is how text is dropped.
"""
# Shapes: B batch, P tokens of the CLIP tower, E its width, L tokens of the text, T their width,
# N words

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ByT5Tokenizer, CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from vton.data.ranges import to_unit
from vton.data.sample import Category
from vton.models.encoders import ClipImageEncoder, TextEncoder
from vton.models.precision import in_dtype_of, own_precision
from vton.processes import to_device

WORD = "$"
PADDING = 0  # id of the token that fills prompts up: Stable Diffusion 2's "!", and ByT5's padding
CATEGORY = {
    "upper_body": "an upper body garment",
    "lower_body": "a lower body garment",
    "dresses": "a dress",
}


class InversionAdapter(nn.Module):
    """CLIP's tokens (B, P, E) of a garment to N words (B, N, T).

    Encoder layers as the tower has them, the class token's norm, and three linear layers. Names are
    those of the released file.

    tower: whose heads, feed-forward width, activation and epsilon the layers share; output: N T.
    """

    def __init__(
        self,
        tower: CLIPVisionConfig,
        output: int,
        words: int = 16,
        layers: int = 1,
        dropout: float = 0.5,
        hidden: int | None = None,
    ):
        super().__init__()
        width = tower.hidden_size
        hidden = hidden or 4 * width
        self.words = words
        self.encoder_layers = nn.ModuleList(CLIPEncoderLayer(tower) for _ in range(layers))
        self.post_layernorm = nn.LayerNorm(width, eps=tower.layer_norm_eps)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, output),
        )

    def forward(self, states: Tensor, draws: Sequence[torch.Generator] | None = None) -> Tensor:
        """draws: whose row i decides the dropout of row i; None leaves it out, as in sampling."""
        x = in_dtype_of(self, states)
        for layer in self.encoder_layers:
            x = layer(x, None)
        x = self.post_layernorm(x[:, 0])
        for layer in self.layers:
            # nn.Dropout would draw from the global generator, which no resumed run gets back.
            if isinstance(layer, nn.Dropout):
                x = x if draws is None else dropped_out(x, layer.p, draws)
            else:
                x = layer(x)
        return x.unflatten(-1, (self.words, -1))


def dropped_out(x: Tensor, p: float, draws: Sequence[torch.Generator]) -> Tensor:
    """Dropout of (B, D), row i from draws[i]: zero with probability p, else divided by 1 - p."""
    kept = torch.stack([torch.rand(x.shape[1], generator=draw) for draw in draws]) >= p
    return x * to_device(kept, x.device).to(x.dtype) / (1 - p)


def clip_pixels(encoder: ClipImageEncoder, garment: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as the tower sees them: squashed, cut to bytes, normalised.

    Cutting, not rounding, is what the released code's CLIP processor did to pictures in [0, 1].
    """
    side = encoder.size
    square = F.interpolate(to_unit(garment), (side, side), mode="bilinear", antialias=True)
    bytes_ = (square.clamp(0, 1) * 255).floor()
    return encoder.normalise(bytes_ / 255)


# ---- prompts ----


def prompt(category: Category, words: int, separator: str = " ") -> str:
    """The prompt of a garment, with as many placeholders as the adapter makes words."""
    return f"a photo of a model wearing {CATEGORY[category]} {separator.join([WORD] * words)}"


class Prompter(nn.Module):
    """A text encoder that takes words from outside."""

    def __init__(self, text: TextEncoder, words: int):
        super().__init__()
        self.text = text
        self.words = words
        self.width = text.width
        # Bytes have tokens for blanks, too, and the words have to lie one beside the other.
        in_bytes = isinstance(text.tokenizer, ByT5Tokenizer)
        self.separator = "" if in_bytes else " "
        self.placeholder = text.tokenizer(WORD, add_special_tokens=False).input_ids[0]

    def ids(self, captions: Sequence[str]) -> Tensor:
        """(B, L) numbers of tokens, cut and padded with PADDING."""
        rows = []
        for caption in captions:
            row = self.text.tokenizer(caption, truncation=True, max_length=self.text.length)
            filling = self.text.length - len(row.input_ids)
            rows.append(list(row.input_ids) + [PADDING] * filling)
        return to_device(torch.tensor(rows), self.text.model.device)

    def fits(self) -> bool:
        """Whether every category's prompt keeps all of its placeholders."""
        prompts = [prompt(category, self.words, self.separator) for category in CATEGORY]
        for caption in prompts:
            row = self.text.tokenizer(caption, truncation=True, max_length=self.text.length)
            if list(row.input_ids).count(self.placeholder) != self.words:
                return False
        return True

    def forward(self, captions: Sequence[str]) -> Tensor:
        """States (B, L, T) of captions without words."""
        with own_precision(self.text.model):
            return self.text.model(self.ids(captions)).last_hidden_state

    def with_words(self, categories: Sequence[Category], words: Tensor) -> Tensor:
        """States (B, L, T) of the categories' prompts with words (B, N, T) in their places."""
        prompts = [prompt(category, self.words, self.separator) for category in categories]
        return encode_words(self.text.model, self.ids(prompts), words, self.placeholder)


def encode_words(model: nn.Module, ids: Tensor, words: Tensor, placeholder: int) -> Tensor:
    """Last hidden states (B, L, T) of a CLIP text model, with words (B, N, T) put into ids (B, L).

    The hook is this call's own: calls of one model from several threads would disturb each other.
    """

    def put_in(module, arguments, embedded):
        return put_words(embedded, ids, words, placeholder)

    handle = model.get_input_embeddings().register_forward_hook(put_in)
    try:
        with own_precision(model):
            return model(ids).last_hidden_state
    finally:
        handle.remove()


def put_words(embedded: Tensor, ids: Tensor, words: Tensor, placeholder: int) -> Tensor:
    """Embeddings (B, L, T) whose N places from a row's first placeholder on hold its words."""
    count = words.shape[1]
    places = torch.arange(ids.shape[1], device=ids.device) - first_place(ids, placeholder)[:, None]
    inside = (places >= 0) & (places < count) & (ids == placeholder).any(1, keepdim=True)
    index = places.clamp(0, count - 1)[..., None].expand(-1, -1, words.shape[2])
    return torch.where(inside[..., None], words.to(embedded.dtype).gather(1, index), embedded)


def first_place(ids: Tensor, placeholder: int) -> Tensor:
    """(B,) place of each row's first placeholder; 0 where there is none."""
    return (ids == placeholder).int().argmax(1)
