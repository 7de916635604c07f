"""diffusers' UNet2DConditionModel, built from our settings and read from inside.

Two-UNet architectures run a garment UNet for one thing only: what enters each self-attention, that
is the output of each transformer block's first LayerNorm. `garment_taps` runs a stock UNet and
returns exactly this.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from safetensors.torch import save_file
from torch import Tensor, nn

from vton.config import ConfigError
from vton.errors import UserError
from vton.models.compiling import is_compiled
from vton.models.precision import in_dtype_of, own_precision
from vton.models.settings import UNetConfig
from vton.processes import to_device
from vton.weights.pretrained import PUBLISHED_METADATA, from_pretrained, read_json, write_json

# What the configuration of every published UNet says.
SHAPING = (
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "block_out_channels",
    "down_block_types",
    "up_block_types",
)

# ---- building ----


def build_unet(
    config: UNetConfig,
    in_channels: int,
    out_channels: int,
    key: str,
    aspect: float = 1.0,
    dtype: torch.dtype = torch.float32,
    train_all: bool = True,
) -> UNet2DConditionModel:
    """The UNet that `config.pretrained` names, else a fresh one of the configured shape.

    key: the configuration key, for messages
    aspect: height / width of the pictures, for `config.positions`
    dtype: of pretrained weights
    train_all: False if only a part of a trained UNet learns

    Raises UserError if the pretrained UNet has other channels or another context width.
    """
    if config.pretrained:
        trained = config.trained and train_all
        unet = pretrained_unet(config, in_channels, out_channels, key, dtype, trained)
    else:
        unet = UNet2DConditionModel(**unet_arguments(config, in_channels, out_channels))
        if config.positions:
            add_position_codes(unet, config.positions, aspect)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def pretrained_unet(
    config: UNetConfig,
    in_channels: int,
    out_channels: int,
    key: str,
    dtype: torch.dtype,
    trained: bool,
) -> UNet2DConditionModel:
    """The UNet that `config.pretrained` names; arguments as in `build_unet`.

    trained: whether all of its weights learn. Raises UserError if it has other channels or another
    context width.
    """
    unet = from_pretrained(
        UNet2DConditionModel,
        config.pretrained,
        key=f"{key}.pretrained",
        dtype=dtype,
        trained=trained,
        subfolder=config.subfolder,
    )
    inputs, outputs = unet.config.in_channels, unet.config.out_channels
    context = unet.config.cross_attention_dim
    if (inputs, outputs, context) != (in_channels, out_channels, config.context):
        raise UserError(
            f"{key}.pretrained={config.pretrained} has {inputs} input and {outputs} output "
            f"channels and context width {context}; expected {in_channels}, {out_channels} and "
            f"{config.context}."
        )
    return unet


def unet_arguments(config: UNetConfig, in_channels: int, out_channels: int) -> dict:
    """Constructor arguments of UNet2DConditionModel for the configured shape."""
    down, up = [], []
    for attention in config.attention:
        down.append("CrossAttnDownBlock2D" if attention else "DownBlock2D")
        up.insert(0, "CrossAttnUpBlock2D" if attention else "UpBlock2D")
    arguments = dict(
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=tuple(config.widths),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=config.layers,
        # In this class diffusers' name means the number of heads.
        attention_head_dim=tuple(config.heads),
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


def read_unet_arguments(folder: Path) -> dict:
    """`published_arguments` of folder/config.json. Raises UserError unless it describes a UNet."""
    file = folder / "config.json"
    config = read_json(file)
    lacking = [name for name in SHAPING if config.get(name) is None]
    if lacking:
        raise UserError(
            f"{file} describes {config.get('_class_name', 'another network')}, not a "
            f"UNet2DConditionModel with {', '.join(lacking)}; name the folder of the UNet."
        )
    return published_arguments(config)


def published_arguments(config: dict) -> dict:
    """UNet2DConditionModel's arguments in a published config.json.

    Two kinds of entries are left out: those that the constructor does not know, such as the
    averaging fields that an inpainting UNet's file inherited (decay, power, ...), and the image
    projection, which a stock UNet refuses.
    """
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    arguments = {name: value for name, value in config.items() if name in known}
    return arguments | {"encoder_hid_dim": None, "encoder_hid_dim_type": None}


def unet_shape(state: Mapping[str, Tensor]) -> dict:
    """The fields of UNetConfig that a UNet2DConditionModel's tensors show.

    The numbers of heads and of norm groups are in no tensor. Heads are given where they follow from
    a Stable Diffusion whose tokens have this width (`stock_heads`); groups are left out. Raises
    KeyError if the state is incomplete.
    """

    def count(prefix: str) -> int:
        """How many different numbers follow the prefix."""
        numbers = {name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)}
        return len(numbers)

    widths, attention, depth = [], [], []
    for level in range(count("down_blocks.")):
        widths.append(len(state[f"down_blocks.{level}.resnets.0.conv1.bias"]))
        blocks = count(f"down_blocks.{level}.attentions.0.transformer_blocks.")
        attention.append(count(f"down_blocks.{level}.attentions.0.") > 0)
        depth.append(blocks or 1)
    middle = "mid_block.attentions.0."
    shape = {
        "widths": widths,
        "attention": attention,
        "depth": depth,
        "layers": count("down_blocks.0.resnets."),
        "context": state[f"{middle}transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "linear_projection": state[f"{middle}proj_in.weight"].ndim == 2,
    }
    heads = stock_heads(widths, shape["context"])
    return shape | ({"heads": heads} if heads else {})


def stock_heads(widths: Sequence[int], context: int) -> list[int]:
    """Attention heads per level of a Stable Diffusion; [] where they do not follow.

    Version 1 has tokens of 768 and 8 heads in each level, version 2 tokens of 1024 and heads of
    width 64. Networks of other sizes may have any number.
    """
    if context == 768 and all(width % 8 == 0 for width in widths):
        return [8] * len(widths)
    if context == 1024 and all(width % 64 == 0 for width in widths):
        return [width // 64 for width in widths]
    return []


def write_unet(
    folder: Path, state: Mapping[str, Tensor], arguments: dict, more: dict | None = None
) -> None:
    """Write a UNet's weights and config.json as hub-format folders hold them.

    arguments: the constructor's; more: further entries of config.json.
    """
    folder.mkdir(parents=True)
    with torch.device("meta"):
        complete = UNet2DConditionModel(**arguments).config
    config = {"_class_name": "UNet2DConditionModel"}
    config |= {name: value for name, value in complete.items() if not name.startswith("_")}
    write_json(folder / "config.json", config | (more or {}))
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, folder / "diffusion_pytorch_model.safetensors", PUBLISHED_METADATA)


def widen_input(weight: Tensor, inputs: int, places: Mapping[int, int]) -> Tensor:
    """A first convolution (C, n, 3, 3) for `inputs` channels: channel places[k] reads what k did.

    All other weights are zero, so that the wider network computes what the narrow one did.
    """
    wide = weight.new_zeros(len(weight), inputs, *weight.shape[2:])
    for old, new in places.items():
        wide[:, new] = weight[:, old]
    return wide


# ---- position code ----


class PositionCode(nn.Module):
    """Adds each token's place to it: sines and cosines of its row and column. No parameters.

    Tokens (B, M, D) are those of a grid, row by row, whose height / width is nearest to `aspect`.
    Places run from 0 to 1 along each side of the picture, so that grids of two sizes compare. The
    longest waves are two pictures long, the shortest an eighth of one.
    """

    def __init__(self, width: int, amplitude: float, aspect: float):
        super().__init__()
        if width % 4:
            raise ConfigError(f"A position code needs widths divisible by 4, not {width}.")
        self.amplitude = amplitude
        self.aspect = aspect
        waves = width // 4
        self.frequencies = [math.pi * 16 ** (k / max(waves - 1, 1)) for k in range(waves)]

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.code(tokens.shape[1], tokens.device).to(tokens.dtype)

    def code(self, count: int, device: torch.device) -> Tensor:
        """(M, D): of M = `count` tokens."""
        heights = [height for height in range(1, count + 1) if count % height == 0]
        rows = min(heights, key=lambda height: abs(height * height / count - self.aspect))
        y, x = self.waves(rows, device), self.waves(count // rows, device)
        y = y[:, None].expand(-1, len(x), -1)
        x = x[None].expand(len(y), -1, -1)
        return self.amplitude * torch.cat([y, x], 2).flatten(0, 1)

    def waves(self, count: int, device: torch.device) -> Tensor:
        """(count, D / 2): of places along one side."""
        frequencies = torch.tensor(self.frequencies, device=device)
        places = (torch.arange(count, device=device) + 0.5) / count
        phases = places[:, None] * frequencies
        return torch.cat([phases.sin(), phases.cos()], 1)


def add_position_codes(unet: UNet2DConditionModel, amplitude: float, aspect: float) -> None:
    """Let a fresh UNet's attention layers know their tokens' places, and start by reading there.

    Keys start equal to queries, so that a token first reads its own place, in a garment's features
    too; values and outputs start orthogonal, so that what is read arrives undiminished.
    """
    for name in execution_order(unet):
        block = unet.get_submodule(name)
        # diffusers adds `pos_embed` to what the block's attention layers read.
        block.pos_embed = PositionCode(block.norm1.normalized_shape[0], amplitude, aspect)
        with torch.no_grad():
            block.attn1.to_k.weight.copy_(block.attn1.to_q.weight)
            nn.init.orthogonal_(block.attn1.to_v.weight)
            nn.init.orthogonal_(block.attn1.to_out[0].weight)


# ---- names of layers ----


def execution_order(unet: UNet2DConditionModel) -> list[str]:
    """Names of all transformer blocks as a forward pass meets them: down, mid, up.

    The modules' own order is down, up, mid, which published files count in: see `attention_names`.
    """
    sections = {"down_blocks": [], "mid_block": [], "up_blocks": []}
    for name, module in unet.named_modules():
        if isinstance(module, BasicTransformerBlock):
            sections[name.split(".")[0]].append(name)
    return sections["down_blocks"] + sections["mid_block"] + sections["up_blocks"]


def attention_names(unet: nn.Module) -> list[str]:
    """Names of all attention layers in the order of modules (down, up, mid; attn1 before attn2).

    The place in this list is the number in IP-Adapter, FaceID and IMAGDressing files.
    """
    return [name for name, module in unet.named_modules() if isinstance(module, Attention)]


def numbered_processors(unet: nn.Module) -> nn.ModuleList:
    """The processors of all attention layers, each under its number in `attention_names`.

    Processors without weights have an Identity in their place.
    """
    processors = nn.ModuleList()
    for name in attention_names(unet):
        processor = unet.get_submodule(name).processor
        processors.append(processor if isinstance(processor, nn.Module) else nn.Identity())
    return processors


# ---- a garment UNet's features ----


class _LastTap(Exception):
    """Everything that was asked for has been computed."""


def garment_taps(
    unet: UNet2DConditionModel,
    sample: Tensor,
    t: Tensor | int,
    context: Tensor,
    full_pass: bool = False,
    **kwargs,
) -> dict[str, Tensor]:
    """Run a garment UNet; {transformer block: normalised input of its self-attention, (B, M, C)}.

    sample: (B, C, h, w); context: (B, L, D); blocks in execution order. The pass stops at the last
    tap, since nothing behind it is read; `full_pass` runs it to the end, with the same result.
    Hooks collect the values and are removed after the pass, so recomputation under gradient
    checkpointing cannot overwrite them. A UNet stored in half precision computes in it.
    """
    names = execution_order(unet)
    taps: dict[str, Tensor] = {}

    def collect(name: str, tap: Tensor) -> None:
        taps[name] = tap
        if not full_pass and len(taps) == len(names):
            raise _LastTap

    def after_norm(name: str):
        position = unet.get_submodule(name).pos_embed

        def hook(_, arguments, output: Tensor) -> None:
            collect(name, position(output) if position else output)

        return hook

    def before_attention(name: str):
        return torch.compiler.disable(lambda _, arguments: collect(name, arguments[0]))

    handles = []
    for name in names:
        block = unet.get_submodule(name)
        if is_compiled(block):  # the norm is part of what was compiled, the attention is not
            handles.append(block.attn1.register_forward_pre_hook(before_attention(name)))
        else:
            handles.append(block.norm1.register_forward_hook(after_norm(name)))
    try:
        with own_precision(unet):
            read = None if context is None else in_dtype_of(unet, context)
            at = to_device(t, sample.device) if isinstance(t, Tensor) else t
            unet(in_dtype_of(unet, sample), at, read, **kwargs)
    except _LastTap:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return taps


def read_by_taps(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """The parameters that `garment_taps` depends on: all but those behind the last tap."""
    last = execution_order(unet)[-1]  # e.g. up_blocks.3.attentions.2.transformer_blocks.0
    _, block, _, attention, _, _ = last.split(".")
    behind = [f"{last}.{part}." for part in ("attn1", "norm2", "attn2", "norm3", "ff")]
    behind.append(f"up_blocks.{block}.attentions.{attention}.proj_out.")
    behind.append(f"up_blocks.{block}.upsamplers.")
    for later in range(int(block) + 1, len(unet.up_blocks)):
        behind.append(f"up_blocks.{later}.")
    behind += ["conv_norm_out.", "conv_out."]
    return [p for name, p in unet.named_parameters() if not name.startswith(tuple(behind))]
