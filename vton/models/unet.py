"""diffusers' UNet2DConditionModel as two-UNet architectures use it: built from our settings, and
read from inside.

A garment UNet is run for one thing only: what enters each self-attention, that is the output of
each transformer block's first LayerNorm (IDM-VTON and IMAGDressing-v1 alike). `garment_taps` runs a
stock UNet and returns exactly this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from vton.config import ConfigError
from vton.models.settings import UNetConfig
from vton.weights.pretrained import WeightsError, from_pretrained


def unet_arguments(config: UNetConfig, in_channels: int, out_channels: int) -> dict:
    """Constructor arguments of UNet2DConditionModel for the configured shape."""
    arguments = dict(
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=tuple(config.widths),
        down_block_types=tuple(
            "CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention
        ),
        up_block_types=tuple(
            "CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)
        ),
        mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=config.layers,
        attention_head_dim=tuple(
            config.heads
        ),  # diffusers' name means the number of heads in this class
        transformer_layers_per_block=tuple(config.depth),
        cross_attention_dim=config.context,
        norm_num_groups=config.groups,
        use_linear_projection=config.linear_projection,
    )
    if config.pooled:  # SDXL: pooled text and six size ids join the time embedding
        arguments |= dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=config.size_id_width,
            projection_class_embeddings_input_dim=config.pooled + 6 * config.size_id_width,
        )
    return arguments


def unet_shape(state: Mapping[str, Tensor]) -> dict:
    """The fields of UNetConfig that a UNet2DConditionModel's tensors show, and Stable Diffusion's 8
    heads per level.

    Neither the number of heads nor that of norm groups is in the tensors. Raises KeyError if the
    state is incomplete.
    """

    def count(prefix: str) -> int:
        """How many different numbers follow the prefix."""
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    levels = range(count("down_blocks."))
    attention = [f"down_blocks.{i}.attentions.0." for i in levels]
    block = "mid_block.attentions.0."
    return {
        "widths": [len(state[f"down_blocks.{i}.resnets.0.conv1.bias"]) for i in levels],
        "attention": [any(name.startswith(prefix) for name in state) for prefix in attention],
        "heads": [8 for _ in levels],
        "depth": [count(f"{prefix}transformer_blocks.") or 1 for prefix in attention],
        "layers": count("down_blocks.0.resnets."),
        "context": state[f"{block}transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "linear_projection": state[f"{block}proj_in.weight"].ndim == 2,
    }


class PositionCode(nn.Module):
    """Adds each token's place to it: sines and cosines of its row and column, (B, M, D) -> (B, M,
    D), no parameters.

    Places run from 0 to 1 along each side of the picture, so that tokens of two sizes are
    comparable; the waves are from two pictures to an eighth of one long. Row-major tokens of a grid
    with height / width nearest to `aspect`.
    """

    def __init__(self, width: int, amplitude: float, aspect: float):
        super().__init__()
        if width % 4:
            raise ConfigError(f"A position code needs widths divisible by 4, not {width}.")
        self.amplitude, self.aspect = amplitude, aspect
        self.frequencies = [math.pi * 16 ** (k / max(width // 4 - 1, 1)) for k in range(width // 4)]

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.code(tokens.shape[1], tokens.device).to(tokens.dtype)

    def code(self, count: int, device: torch.device) -> Tensor:
        """(M, D): of M = `count` tokens."""
        rows = min(
            (h for h in range(1, count + 1) if count % h == 0),
            key=lambda h: abs(h * h / count - self.aspect),
        )
        frequencies = torch.tensor(self.frequencies, device=device)
        y, x = (
            ((torch.arange(n, device=device) + 0.5) / n)[:, None] * frequencies
            for n in (rows, count // rows)
        )
        y, x = (torch.cat([place.sin(), place.cos()], 1) for place in (y, x))
        code = torch.cat([y[:, None].expand(-1, len(x), -1), x[None].expand(len(y), -1, -1)], 2)
        return self.amplitude * code.flatten(0, 1)


def know_places(unet: UNet2DConditionModel, amplitude: float, aspect: float) -> None:
    """Let the attention layers of a fresh UNet know where their tokens are, and start by reading
    what is there.

    Keys start equal to queries, so that a token first reads its own place, in a garment's features
    too; values and outputs start orthogonal, so that what is read arrives undiminished.
    """
    for name in execution_order(unet):
        block = unet.get_submodule(name)
        block.pos_embed = PositionCode(
            block.norm1.normalized_shape[0], amplitude, aspect
        )  # diffusers' own seam
        with torch.no_grad():
            block.attn1.to_k.weight.copy_(block.attn1.to_q.weight)
            nn.init.orthogonal_(block.attn1.to_v.weight)
            nn.init.orthogonal_(block.attn1.to_out[0].weight)


def build_unet(
    config: UNetConfig, in_channels: int, out_channels: int, key: str, aspect: float = 1.0
) -> UNet2DConditionModel:
    """The pretrained UNet where `config.pretrained` names one, else a fresh one of the configured
    shape.

    key: the configuration key, for messages; aspect: height / width of the pictures, for
    `config.positions`. Raises WeightsError if the pretrained one has other channels or context.
    """
    if not config.pretrained:
        unet = UNet2DConditionModel(**unet_arguments(config, in_channels, out_channels))
        if config.positions:
            know_places(unet, config.positions, aspect)
    else:
        unet = from_pretrained(
            UNet2DConditionModel,
            config.pretrained,
            key=f"{key}.pretrained",
            subfolder=config.subfolder,
        )
        found = (unet.config.in_channels, unet.config.out_channels, unet.config.cross_attention_dim)
        if found != (in_channels, out_channels, config.context):
            raise WeightsError(
                f"{key}.pretrained={config.pretrained} has {found[0]} input and {found[1]} output channels and context "
                f"width {found[2]}; expected {in_channels}, {out_channels} and {config.context}."
            )
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def execution_order(unet: UNet2DConditionModel) -> list[str]:
    """Names of all transformer blocks as a forward pass meets them: down, mid, up.

    The modules' own order is down, up, mid: use `attention_processor_names` for published files
    that count in it.
    """
    names = [
        name for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)
    ]
    place = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(
        names, key=lambda name: place[name.split(".")[0]]
    )  # stable: keeps the order within


def attention_names(unet: nn.Module) -> list[str]:
    """Names of all attention layers in the order of modules (down, up, mid; attn1 before attn2).

    The place in this list is the number in IP-Adapter, FaceID and IMAGDressing files.
    """
    return [name for name, module in unet.named_modules() if isinstance(module, Attention)]


class _Enough(Exception):
    """Everything that was asked for has been computed."""


def garment_taps(
    unet: UNet2DConditionModel,
    sample: Tensor,
    t: Tensor | int,
    context: Tensor,
    whole: bool = False,
    **kwargs,
) -> dict[str, Tensor]:
    """Run a garment UNet; {transformer block: normalised input of its self-attention (B, M, C)} in
    execution order.

    sample: (B, C, h, w); context: (B, L, D). The pass ends with the last tap, as nothing behind it
    is read; `whole` runs it to the end, with the same result. Values are collected from the layers'
    outputs while the hooks are set, so that recomputation under gradient checkpointing cannot
    overwrite them.
    """
    names = execution_order(unet)
    found: dict[str, Tensor] = {}

    def collect(name: str):
        place = unet.get_submodule(name).pos_embed

        def hook(module, arguments, output):
            found[name] = place(output) if place else output
            if not whole and len(found) == len(names):
                raise _Enough

        return hook

    handles = [
        unet.get_submodule(f"{name}.norm1").register_forward_hook(collect(name)) for name in names
    ]
    try:
        unet(sample, t, context, **kwargs)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def read_by_taps(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """The parameters that `garment_taps` depends on: all but those behind the last tap."""
    last = execution_order(unet)[-1]  # e.g. up_blocks.3.attentions.2.transformer_blocks.0
    _, block, _, attention, _, _ = last.split(".")
    behind = [f"up_blocks.{later}." for later in range(int(block) + 1, len(unet.up_blocks))]
    behind += [
        f"up_blocks.{block}.upsamplers.",
        f"up_blocks.{block}.attentions.{attention}.proj_out.",
    ]
    behind += [f"{last}.{part}." for part in ("attn1", "norm2", "attn2", "norm3", "ff")]
    behind += ["conv_norm_out.", "conv_out."]
    return [p for name, p in unet.named_parameters() if not name.startswith(tuple(behind))]


def same_garment(garments: Tensor, captions: Sequence[str] | None = None) -> Tensor:
    """(B,) int64: for each row the first row with the same garment picture (B, 3, H, W) and
    caption.

    What depends on the garment alone has to be computed only where row == same_garment[row].
    """
    first = []
    for row in range(len(garments)):
        same = (
            other
            for other in range(row)
            if first[other] == other
            and (captions is None or captions[other] == captions[row])
            and (garments.is_meta or torch.equal(garments[other], garments[row]))
        )
        first.append(next(same, row))
    return torch.tensor(first, device=garments.device)
