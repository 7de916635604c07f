"""diffusers' UNet2DConditionModel as two-UNet architectures use it: built from our settings, and read from inside.

A garment UNet is run for one thing only: what enters each self-attention, that is the output of each transformer
block's first LayerNorm (IDM-VTON and IMAGDressing-v1 alike). `garment_taps` runs a stock UNet and returns exactly this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from vton.models.pretrained import WeightsError, from_pretrained
from vton.models.settings import UNetConfig


def unet_arguments(config: UNetConfig, in_channels: int, out_channels: int) -> dict:
    """Constructor arguments of UNet2DConditionModel for the configured shape."""
    arguments = dict(
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=tuple(config.widths),
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
        mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=config.layers,
        attention_head_dim=tuple(config.heads),  # diffusers' name means the number of heads in this class
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


def build_unet(config: UNetConfig, in_channels: int, out_channels: int, key: str) -> UNet2DConditionModel:
    """The pretrained UNet where `config.pretrained` names one, else a fresh one of the configured shape.

    key: the configuration key, for messages. Raises WeightsError if the pretrained one has other channels or context.
    """
    if not config.pretrained:
        unet = UNet2DConditionModel(**unet_arguments(config, in_channels, out_channels))
    else:
        unet = from_pretrained(
            UNet2DConditionModel, config.pretrained, key=f"{key}.pretrained", subfolder=config.subfolder
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

    The modules' own order is down, up, mid: use `attention_processor_names` for published files that count in it.
    """
    names = [name for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)]
    place = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(names, key=lambda name: place[name.split(".")[0]])  # stable: keeps the order within


def attention_names(unet: nn.Module) -> list[str]:
    """Names of all attention layers in the order of modules (down, up, mid; attn1 before attn2).

    The place in this list is the number in IP-Adapter, FaceID and IMAGDressing files.
    """
    return [name for name, module in unet.named_modules() if isinstance(module, Attention)]


class _Enough(Exception):
    """Everything that was asked for has been computed."""


def garment_taps(
    unet: UNet2DConditionModel, sample: Tensor, t: Tensor | int, context: Tensor, whole: bool = False, **kwargs
) -> dict[str, Tensor]:
    """Run a garment UNet; {transformer block: normalised input of its self-attention (B, M, C)} in execution order.

    sample: (B, C, h, w); context: (B, L, D). The pass ends with the last tap, as nothing behind it is read; `whole`
    runs it to the end, with the same result. Values are collected from the layers' outputs while the hooks are set, so
    that recomputation under gradient checkpointing cannot overwrite them.
    """
    names = execution_order(unet)
    found: dict[str, Tensor] = {}

    def collect(name: str):
        def hook(module, arguments, output):
            found[name] = output
            if not whole and len(found) == len(names):
                raise _Enough

        return hook

    handles = [unet.get_submodule(f"{name}.norm1").register_forward_hook(collect(name)) for name in names]
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
    behind += [f"up_blocks.{block}.upsamplers.", f"up_blocks.{block}.attentions.{attention}.proj_out."]
    behind += [f"{last}.{part}." for part in ("attn1", "norm2", "attn2", "norm3", "ff")]
    behind += ["conv_norm_out.", "conv_out."]
    return [p for name, p in unet.named_parameters() if not name.startswith(tuple(behind))]


def same_garment(garments: Tensor, captions: Sequence[str] | None = None) -> Tensor:
    """(B,) int64: for each row the first row with the same garment picture (B, 3, H, W) and caption.

    What depends on the garment alone has to be computed only where row == same_garment[row].
    """
    first = []
    for row in range(len(garments)):
        same = (
            other for other in range(row)
            if first[other] == other
            and (captions is None or captions[other] == captions[row])
            and (garments.is_meta or torch.equal(garments[other], garments[row]))
        )  # fmt: skip
        first.append(next(same, row))
    return torch.tensor(first, device=garments.device)
