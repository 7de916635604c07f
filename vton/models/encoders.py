"""CLIP's image and text encoders, with which architectures read garments and captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vton.config import ConfigError
from vton.data.ranges import to_unit
from vton.models.precision import own_precision
from vton.models.rows import select_rows
from vton.models.settings import ClipConfig, TextConfig
from vton.processes import to_device
from vton.weights.pretrained import from_pretrained

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipNormalisation(nn.Module):
    """Takes CLIP's statistics from pictures (B, 3, H, W) in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def _apply(self, fn, recurse=True):
        """Move the statistics; they stay what they are, in float32."""
        super()._apply(fn, recurse)
        self.mean = torch.tensor(CLIP_MEAN, device=self.mean.device).view(3, 1, 1)
        self.std = torch.tensor(CLIP_STD, device=self.std.device).view(3, 1, 1)
        return self

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


class ClipImageEncoder(nn.Module):
    """A CLIP vision tower that takes pictures in [-1, 1] of any size.

    The picture is fitted to the tower's square, antialiased, and normalised with CLIP's statistics.
    fit="squash" gives up the aspect ratio and keeps the whole picture. fit="crop" is CLIP's own way
    (shorter side resized, centre cut out), which loses a quarter of a 3:4 picture's height.
    """

    def __init__(self, tower: CLIPVisionModelWithProjection, fit: str = "squash"):
        super().__init__()
        self.tower = tower
        self.fit = fit
        self.size = tower.config.image_size
        self.width = tower.config.hidden_size
        self.normalise = ClipNormalisation()

    def pixels(self, image_B3HW: Tensor) -> Tensor:
        """What the tower sees: (B, 3, size, size)."""
        image = to_unit(image_B3HW)
        if self.fit == "squash":
            square = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)
        else:
            shorter = min(image.shape[-2:])
            size = [side * self.size // shorter for side in image.shape[-2:]]
            image = F.interpolate(image, size, mode="bicubic", antialias=True)
            square = center_crop(image, self.size)
        return self.normalise(square.clamp(0, 1))

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """(B, 1 + patches, width): the class token and every patch after the last layer."""
        return self.run(self.pixels(image_B3HW)).last_hidden_state

    def penultimate(self, image_B3HW: Tensor) -> Tensor:
        """(B, 1 + patches, width): the same before the last layer, as IP-Adapter-Plus reads it."""
        return self.read(self.pixels(image_B3HW))

    def read(self, pixels: Tensor) -> Tensor:
        """`penultimate` of what `pixels` returns; zeros are a picture of CLIP's mean colour."""
        return self.run(pixels, output_hidden_states=True).hidden_states[-2]

    def pooled(self, image_B3HW: Tensor) -> Tensor:
        """(B, 1, projection width): CLIP's summary of the picture."""
        return self.run(self.pixels(image_B3HW)).image_embeds[:, None]

    def run(self, pixels: Tensor, **options):
        """The tower's outputs, in the dtype of its weights where that is a half precision."""
        with own_precision(self.tower):
            return self.tower(pixels, **options)

    def read_by(self, output: str) -> list[nn.Parameter]:
        """Parameters that an output depends on: "pooled", "last" (of forward) or "penultimate"."""
        vision = self.tower.vision_model
        unread: list[nn.Module] = []
        if output != "pooled":
            unread += [vision.post_layernorm, self.tower.visual_projection]
        if output == "penultimate":
            unread.append(vision.encoder.layers[-1])
        return parameters_without(self, unread)


def center_crop(image: Tensor, size: int) -> Tensor:
    """The middle size x size pixels of (B, C, H, W); torchvision's may round a margin up."""
    top = (image.shape[-2] - size) // 2
    left = (image.shape[-1] - size) // 2
    return image[..., top : top + size, left : left + size]


def clip_image_encoder(
    config: ClipConfig, key: str = "model.clip", dtype: torch.dtype = torch.float32
) -> ClipImageEncoder:
    """From the folder or hub id in `config.pretrained`, in dtype, else freshly initialised."""
    if config.pretrained:
        source = {"subfolder": config.subfolder} if config.subfolder else {}
        tower = from_pretrained(
            CLIPVisionModelWithProjection,
            config.pretrained,
            key=f"{key}.pretrained",
            dtype=dtype,
            **source,
        )
        return ClipImageEncoder(tower, config.fit)
    shape = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        patch_size=config.patch,
        image_size=config.image_size,
        hidden_act=config.activation,
        projection_dim=config.projection,
    )
    return ClipImageEncoder(CLIPVisionModelWithProjection(shape), config.fit)


class TextEncoder(nn.Module):
    """Captions to tokens for cross-attention, and to one pooled vector by encoders that project."""

    def __init__(
        self, tokenizer, model: CLIPTextModel | CLIPTextModelWithProjection, penultimate: bool
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model
        self.penultimate = penultimate
        self.width = model.config.hidden_size
        self.length = model.config.max_position_embeddings

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, length, width), and pooled vectors (B, projection) or None."""
        with own_precision(self.model):
            output = self.model(self.ids(captions), output_hidden_states=self.penultimate)
        tokens = output.hidden_states[-2] if self.penultimate else output.last_hidden_state
        return tokens, getattr(output, "text_embeds", None)

    def encode_distinct(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The same as `forward`, but equal captions are encoded once."""
        different = list(dict.fromkeys(captions))
        rows = [different.index(caption) for caption in captions]
        tokens, pooled = self(different)
        if pooled is not None:
            pooled = select_rows(pooled, rows)
        return select_rows(tokens, rows), pooled

    def ids(self, captions: Sequence[str]) -> Tensor:
        """(B, length) numbers of tokens: captions are padded and cut to `length`."""
        encoded = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        return to_device(encoded.input_ids, self.model.device)

    def begin(self) -> Tensor:
        """(1, 1, width): the token at place 0. The encoder is causal, so no caption changes it."""
        with own_precision(self.model):
            return self.model(self.ids([""])[:, :1]).last_hidden_state

    def read_parameters(self) -> list[nn.Parameter]:
        """Parameters that the result depends on."""
        if isinstance(self.model, CLIPTextModelWithProjection) or not self.penultimate:
            return list(self.parameters())
        return parameters_without(
            self, [self.model.encoder.layers[-1], self.model.final_layer_norm]
        )


def text_encoder(
    config: TextConfig, key: str = "model.text", dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """From the hub-format folder in `config.pretrained`, in dtype, else fresh, reading bytes.

    Raises ConfigError for a vocabulary that cannot hold the bytes.
    """
    kind = CLIPTextModelWithProjection if config.projection else CLIPTextModel
    if config.pretrained:
        key = f"{key}.pretrained"
        tokenizer = from_pretrained(
            AutoTokenizer, config.pretrained, key=key, subfolder=config.tokenizer_subfolder
        )
        model = from_pretrained(
            kind, config.pretrained, key=key, dtype=dtype, subfolder=config.subfolder
        )
        return TextEncoder(tokenizer, model, config.penultimate)
    tokenizer = ByT5Tokenizer()
    if config.vocabulary < len(tokenizer):
        raise ConfigError(
            f"{key}.vocabulary={config.vocabulary} must be at least {len(tokenizer)}, "
            "bytes and marks."
        )
    shape = CLIPTextConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.length,
        hidden_act=config.activation,
        projection_dim=config.projection or config.width,
        bos_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return TextEncoder(tokenizer, kind(shape), config.penultimate)


def parameters_without(module: nn.Module, parts: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The module's parameters without those of some of its parts."""
    left_out: set[int] = set()
    for part in parts:
        left_out |= {id(parameter) for parameter in part.parameters()}
    return [parameter for parameter in module.parameters() if id(parameter) not in left_out]
