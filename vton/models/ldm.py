"""Names of CompVis' latent diffusion code (arXiv 2112.10752) and diffusers' names, both ways.

Checkpoints of the time before diffusers, and what was trained from them, keep a UNet, its
autoencoder and its encoders in one file. Modules of the two libraries compute the same; only names
differ, and the shape of the autoencoder's attention, whose linear layers are 1 x 1 convolutions in
latent diffusion.

A `Names` lists pairs of module names, (latent diffusion's, diffusers'). The longest one that a
tensor's name begins with decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from vton.errors import UserError
from vton.weights.pretrained import below, read_checkpoint, read_safetensors, safetensors_header

FIRST_STAGE = "first_stage_model."  # of the autoencoder's tensors in a whole checkpoint
# Of what an autoencoder's own training adds: its discriminator's loss, and averages or their count.
AUTOENCODER_TRAINING = ("loss.", "model_ema.")
SECTION = "state_dict"  # of the tensors in the file of a training
# The factor that brings latents to about unit variance: of Stable Diffusion 1 and 2, and of SDXL.
SD_SCALING, SDXL_SCALING = 0.18215, 0.13025
TEXT_ENCODERS = {"cond_stage_model.": SD_SCALING, "conditioner.": SDXL_SCALING}
# Beginnings of `modelspec.architecture` in a safetensors header (Stability AI's ModelSpec).
ARCHITECTURES = {
    "stable-diffusion-v1": SD_SCALING,
    "stable-diffusion-v2": SD_SCALING,
    "stable-diffusion-xl-v1": SDXL_SCALING,
}
OWN_STATISTICS = ("edm_mean", "edm_std")  # of Playground 2.5's latents, beside SDXL's names

Names = list[tuple[str, str]]
Place = tuple[str, str]

RESNET = {  # of the UNet; the autoencoder's have diffusers' names but for one
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


class UNetStructure(NamedTuple):
    """What the names of a UNet's modules depend on."""

    layers: int  # ResNet blocks per level
    attention: tuple[bool, ...]  # which levels have transformer blocks


# ---- names ----


def unet_names(structure: UNetStructure) -> Names:
    """The names of a UNet2DConditionModel, with those of its encoder half among them."""
    layers, attention = structure
    levels = len(attention)
    names = [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("middle_block.1", "mid_block.attentions.0"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
        *_resnet("middle_block.0", "mid_block.resnets.0"),
        *_resnet("middle_block.2", "mid_block.resnets.1"),
    ]
    for level in range(levels):
        first = 1 + (layers + 1) * level
        for j in range(layers):
            names += _resnet(f"input_blocks.{first + j}.0", f"down_blocks.{level}.resnets.{j}")
            names.append((f"input_blocks.{first + j}.1", f"down_blocks.{level}.attentions.{j}"))
        downsampler = f"down_blocks.{level}.downsamplers.0.conv"
        names.append((f"input_blocks.{first + layers}.0.op", downsampler))
    for up, has_attention in enumerate(reversed(attention)):
        first = (layers + 1) * up
        for j in range(layers + 1):
            names += _resnet(f"output_blocks.{first + j}.0", f"up_blocks.{up}.resnets.{j}")
            if has_attention:
                names.append((f"output_blocks.{first + j}.1", f"up_blocks.{up}.attentions.{j}"))
        place = f"output_blocks.{first + layers}.{1 + has_attention}.conv"
        names.append((place, f"up_blocks.{up}.upsamplers.0.conv"))
    return names


def autoencoder_names(levels: int, layers: int) -> Names:
    """The names of an AutoencoderKL. diffusers counts the decoder's levels backwards."""
    names = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    for half, blocks in (("encoder", layers), ("decoder", layers + 1)):
        names += [
            (f"{half}.conv_in", f"{half}.conv_in"),
            (f"{half}.conv_out", f"{half}.conv_out"),
            (f"{half}.norm_out", f"{half}.conv_norm_out"),
            (f"{half}.mid.block_1", f"{half}.mid_block.resnets.0"),
            (f"{half}.mid.block_2", f"{half}.mid_block.resnets.1"),
        ]
        for theirs, ours in ATTENTION.items():
            names.append((f"{half}.mid.attn_1.{theirs}", f"{half}.mid_block.attentions.0.{ours}"))
        for level in range(levels):
            down = half == "encoder"
            theirs = f"{half}.{'down' if down else 'up'}.{level}"
            place = f"down_blocks.{level}" if down else f"up_blocks.{levels - 1 - level}"
            ours = f"{half}.{place}"
            sampler = "downsample" if down else "upsample"
            names.append((f"{theirs}.{sampler}.conv", f"{ours}.{sampler}rs.0.conv"))
            for j in range(blocks):
                block, resnet = f"{theirs}.block.{j}", f"{ours}.resnets.{j}"
                names.append((f"{block}.nin_shortcut", f"{resnet}.conv_shortcut"))
                names.append((block, resnet))
    return names


def _resnet(theirs: str, ours: str) -> Iterable[Place]:
    for their_part, our_part in RESNET.items():
        yield f"{theirs}.{their_part}", f"{ours}.{our_part}"


def to_diffusers(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Latent diffusion's tensors under diffusers' names. Raises KeyError for an unknown name."""
    return _renamed(state, dict(names))


def to_ldm(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """diffusers' tensors under latent diffusion's names. Raises KeyError for an unknown name."""
    return _renamed(state, {ours: theirs for theirs, ours in names})


def _renamed(state: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        module = name
        while module not in modules:
            module, dot, _ = module.rpartition(".")
            if not dot:
                raise KeyError(name)
        renamed[modules[module] + name[len(module) :]] = tensor
    return renamed


# ---- the autoencoder's attention ----

_ATTENTION_WEIGHT = re.compile(r"mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")


def autoencoder_to_diffusers(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """`to_diffusers`, and 1 x 1 convolutions of attention as linear layers."""
    renamed = to_diffusers(state, names)
    for name, tensor in renamed.items():
        if _ATTENTION_WEIGHT.search(name) and tensor.ndim == 4:
            renamed[name] = tensor[:, :, 0, 0]
    return renamed


def autoencoder_to_ldm(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """`to_ldm`, and linear layers of attention as 1 x 1 convolutions."""
    convolutions = {}
    for name, tensor in state.items():
        is_weight = _ATTENTION_WEIGHT.search(name)
        convolutions[name] = tensor[:, :, None, None] if is_weight else tensor
    return to_ldm(convolutions, names)


# ---- the autoencoder's latents ----


def for_stable_diffusion(state: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """An autoencoder, in either library's names, as one for Stable Diffusion's scaling factor.

    scaling: its own. For formats that hold no factor and mean that one. The last layer before the
    latents and the first behind them take up the ratio: scaled latents and pictures stay what they
    are, up to rounding. With Stable Diffusion's factor every tensor stays as it is.
    """
    changed = dict(state)
    ratio = scaling / SD_SCALING
    if ratio == 1:
        return changed
    channels = state["post_quant_conv.weight"].shape[1]
    weight, bias = state["quant_conv.weight"].clone(), state["quant_conv.bias"].clone()
    weight[:channels] *= ratio  # the mean; the rest is the log of the variance
    bias[:channels] *= ratio
    bias[channels:] += 2 * math.log(ratio)
    changed |= {"quant_conv.weight": weight, "quant_conv.bias": bias}
    changed["post_quant_conv.weight"] = state["post_quant_conv.weight"] / ratio
    return changed


# ---- files ----


def read_ldm_checkpoint(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, a Lightning checkpoint's or plain.

    prefix: as of `read_safetensors`; torch files are read when tensors are used. Raises UserError
    naming the file.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path, prefix=prefix)
    content = read_checkpoint(path)
    state = content.get(SECTION, content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"{path}: expected a mapping from names to tensors, or its {SECTION}.")
    return state


def read_autoencoder(path: Path) -> dict[str, Tensor]:
    """An autoencoder from a whole checkpoint, or from its own file. Raises UserError."""
    state = read_ldm_checkpoint(path, FIRST_STAGE)
    return autoencoder_of(below(state, FIRST_STAGE) or state)


def latent_scaling(path: Path) -> float | None:
    """The factor of an autoencoder's latents, as far as its file shows it.

    It is in no tensor, and Stable Diffusion's and SDXL's autoencoders have the same names and
    shapes. The text encoders in a whole checkpoint tell them apart, and so does the architecture in
    a safetensors header. None: the file has neither. Raises UserError naming a file that cannot be
    read, or whose latents are normalised by more than a factor.
    """
    if path.suffix == ".safetensors":
        names, metadata = safetensors_header(path)
    else:
        names, metadata = list(read_ldm_checkpoint(path)), {}
    if any(name in OWN_STATISTICS for name in names):
        raise UserError(
            f"{path}: its latents have a mean and spread of their own (edm_mean, edm_std), which "
            "are not supported; use SDXL's autoencoder."
        )
    for prefix, scaling in TEXT_ENCODERS.items():
        if any(name.startswith(prefix) for name in names):
            return scaling
    architecture = metadata.get("modelspec.architecture", "")
    for beginning, scaling in ARCHITECTURES.items():
        if architecture.startswith(beginning):
            return scaling
    return None


def autoencoder_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's tensors without what its training adds."""
    return {name: x for name, x in state.items() if not name.startswith(AUTOENCODER_TRAINING)}


# ---- structures ----


def unet_structure(state: Mapping[str, Tensor]) -> UNetStructure:
    """The structure of a UNet, or its encoder half, with latent diffusion's names.

    Raises ValueError if no downsampler is found.
    """
    downsamplers = _numbers(state, r"input_blocks\.(\d+)\.0\.op\.weight$")
    if not downsamplers:
        raise ValueError("no input_blocks.*.0.op.weight")
    layers, levels = downsamplers[0] - 1, len(downsamplers) + 1
    transformers = _numbers(state, r"input_blocks\.(\d+)\.1\.norm\.weight$")
    attention = [1 + (layers + 1) * level in transformers for level in range(levels)]
    return UNetStructure(layers, tuple(attention))


def autoencoder_shape(state: Mapping[str, Tensor]) -> dict:
    """AutoencoderKL's widths, layers and latent channels that the tensors show.

    The number of norm groups is in no tensor. Raises KeyError if the state is incomplete.
    """
    levels = _numbers(state, r"encoder\.down\.(\d+)\.block\.0\.conv1\.bias$")
    widths = [len(state[f"encoder.down.{level}.block.0.conv1.bias"]) for level in levels]
    layers = _numbers(state, r"encoder\.down\.0\.block\.(\d+)\.conv1\.bias$")
    channels = state["post_quant_conv.weight"].shape[1]
    return {"widths": widths, "layers": len(layers), "channels": channels}


def _numbers(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The number in every name that the pattern matches, ascending."""
    matches = (re.match(pattern, name) for name in state)
    return sorted({int(match[1]) for match in matches if match})
