"""Image encoders that several architectures read garments with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vton.models.pretrained import from_pretrained

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipImageEncoder(nn.Module):
    """A CLIP vision tower that takes pictures in [-1, 1] of any size.

    The picture is resized to a square (aspect ratio not kept, antialiased) and normalised with CLIP's statistics.
    """

    def __init__(self, tower: CLIPVisionModelWithProjection):
        super().__init__()
        self.tower = tower
        self.size = tower.config.image_size
        self.width = tower.config.hidden_size
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def pixels(self, image_B3HW: Tensor) -> Tensor:
        """What the tower sees: (B, 3, size, size)."""
        square = F.interpolate((image_B3HW + 1) / 2, (self.size, self.size), mode="bilinear", antialias=True)
        return (square.clamp(0, 1) - self.mean) / self.std

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """(B, 1 + patches, width): the class token and every patch after the last layer."""
        return self.tower(self.pixels(image_B3HW)).last_hidden_state

    def pooled(self, image_B3HW: Tensor) -> Tensor:
        """(B, 1, projection width): CLIP's summary of the picture."""
        return self.tower(self.pixels(image_B3HW)).image_embeds[:, None]


def clip_image_encoder(config) -> ClipImageEncoder:
    """From a transformers folder or hub id where `config.pretrained` names one, else freshly initialised.

    config: has pretrained, width, layers, heads, mlp, patch, image_size and activation.
    """
    if config.pretrained:
        tower = from_pretrained(CLIPVisionModelWithProjection, config.pretrained, key="model.clip.pretrained")
        return ClipImageEncoder(tower)
    shape = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        patch_size=config.patch,
        image_size=config.image_size,
        hidden_act=config.activation,
        projection_dim=min(config.width, 1024),
    )
    return ClipImageEncoder(CLIPVisionModelWithProjection(shape))
