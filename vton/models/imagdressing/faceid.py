"""IP-Adapter FaceID-Plus as a plug-in: identity tokens, and low-rank shifts of all attention.

    self-attention:   q, k, v, out  <-  W x + s_self A x
    cross-attention:  q, k, v, out  <-  W x + s_cross A x
                      Attn(q, k_text, v_text) + s Attn(q, K_id e, V_id e)

The garment's keys and values have no A. Parameter names are those of the published files.

Legend: B batch, n identity tokens, D context width, S CLIP tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from vton.models.precision import in_dtype_of
from vton.models.resampler import IP_ADAPTER_HEAD, Perceiver
from vton.models.unet import attention_names


class LowRank(nn.Module):
    """A x = up(down(x)), without the usual alpha / rank."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class FaceLayer(nn.Module):
    """What FaceID adds to one attention layer."""

    def __init__(self, attention: Attention, rank: int):
        super().__init__()
        self.to_q_lora = LowRank(attention.to_q, rank)
        self.to_k_lora = LowRank(attention.to_k, rank)
        self.to_v_lora = LowRank(attention.to_v, rank)
        self.to_out_lora = LowRank(attention.to_out[0], rank)
        if attention.is_cross_attention:
            width, context = attention.to_k.weight.shape
            self.to_k_ip = nn.Linear(context, width, bias=False)
            self.to_v_ip = nn.Linear(context, width, bias=False)


class FaceProjector(nn.Module):
    """Identity vector and CLIP states of the face crop to n tokens."""

    def __init__(self, id_width: int, hidden: int, tokens: int, width: int, perceiver: Perceiver):
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Sequential(
            nn.Linear(id_width, hidden), nn.GELU(), nn.Linear(hidden, tokens * width)
        )
        self.norm = nn.LayerNorm(width)
        self.perceiver_resampler = perceiver

    def forward(self, embedding: Tensor, clip: Tensor, shortcut: float | None = None) -> Tensor:
        """embedding (B, id_width), clip (B, S, width) -> (B, n, D).

        shortcut: PlusV2's queries + shortcut * result; None: the result alone.
        """
        embedding = in_dtype_of(self.proj, embedding)
        queries = self.norm(self.proj(embedding).unflatten(-1, (self.tokens, -1)))
        refined = self.perceiver_resampler(clip, queries)
        return refined if shortcut is None else queries + shortcut * refined


class FaceID(nn.Module):
    """A FaceID-Plus file's networks, and its scales, which may be changed between samples.

    layers: by number among the UNet's attention layers, in module order.
    cut_text: parity with the released scripts, in which samples without a face lose their last n
    text tokens, taken for identity tokens.
    """

    def __init__(
        self,
        image_proj: FaceProjector,
        layers: list[FaceLayer],
        *,
        scale: float = 0.9,
        self_lora: float = 0.2,
        cross_lora: float = 0.2,
        shortcut: float | None = None,
        cut_text: bool = False,
    ):
        super().__init__()
        self.image_proj = image_proj
        self.ip_adapter = nn.ModuleList(layers)
        self.scale = scale
        self.self_lora = self_lora
        self.cross_lora = cross_lora
        self.shortcut = shortcut
        self.cut_text = cut_text

    @classmethod
    def shaped(cls, shapes: Mapping[str, Tensor], unet: UNet2DConditionModel, **settings) -> FaceID:
        """A FaceID of the shape that a file's tensors have, for the attention layers of `unet`.

        Raises KeyError for other tensors.
        """

        def size(name: str, dimension: int = 0) -> int:
            return shapes[name].shape[dimension]

        width = size("image_proj.norm.weight")
        perceiver = "image_proj.perceiver_resampler"
        layers = f"{perceiver}.layers."
        numbers = {name.split(".")[3] for name in shapes if name.startswith(layers)}
        projector = FaceProjector(
            id_width=size("image_proj.proj.0.weight", 1),
            hidden=size("image_proj.proj.0.weight"),
            tokens=size("image_proj.proj.2.weight") // width,
            width=width,
            perceiver=Perceiver(
                width=width,
                depth=len(numbers),
                heads=max(1, size(f"{layers}0.0.to_q.weight") // IP_ADAPTER_HEAD),
                head_width=IP_ADAPTER_HEAD,
                input_width=size(f"{perceiver}.proj_in.weight", 1),
                output_width=size(f"{perceiver}.proj_out.weight"),
                factor=size(f"{layers}0.1.1.weight") // width,
            ),
        )
        rank = size("ip_adapter.0.to_q_lora.down.weight")
        face_layers = [FaceLayer(unet.get_submodule(name), rank) for name in attention_names(unet)]
        return cls(projector, face_layers, **settings)


class Lora(NamedTuple):
    """The low-rank shifts of one layer and their weight, (B, 1, 1)."""

    layer: FaceLayer
    scale: Tensor


class Identity(NamedTuple):
    """What the attention layers of one call read of the faces."""

    face: FaceID
    tokens: Tensor  # (B, n, D)
    scale: Tensor  # (B,), as the following
    self_lora: Tensor
    cross_lora: Tensor

    def in_self_attention(self, number: int) -> Lora:
        return Lora(self.face.ip_adapter[number], self.self_lora.view(-1, 1, 1))

    def in_cross_attention(self, number: int) -> Lora:
        return Lora(self.face.ip_adapter[number], self.cross_lora.view(-1, 1, 1))


def project(attention: Attention, part: str, x: Tensor, lora: Lora | None) -> Tensor:
    """W x, or W x + scale A x with a LoRA; part: to_q, to_k, to_v or to_out."""
    linear = attention.to_out[0] if part == "to_out" else getattr(attention, part)
    if lora is None:
        return linear(x)
    shift = getattr(lora.layer, f"{part}_lora")
    return linear(x) + lora.scale.to(x.dtype) * shift(x)
