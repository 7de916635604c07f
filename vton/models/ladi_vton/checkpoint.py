"""LaDI-VTON's published files, in and out.

    unet_<dataset>.pth                  UNet2DConditionModel of 31 channels, 27 without garment
    inversion_adapter_<dataset>.pth     the adapter
    emasc_<dataset>.pth                 EMASC, linear or nonlinear
    unet_config.json                    the UNet's diffusers configuration, where heads or norm
                                        groups are not Stable Diffusion's

of https://github.com/miccunifi/ladi-vton/releases (CC BY-NC 4.0); its training scripts write the
same with a step's number. A folder with one file of each kind is read, or the UNet's file with
those of its ending beside it. The warping module's file is vton/models/warp/checkpoint.py's.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from vton.config import ExperimentConfig
from vton.data.sample import JOINTS
from vton.errors import UserError
from vton.files import write_atomically
from vton.models.ladi_vton.network import input_channels
from vton.models.settings import UNetConfig
from vton.models.unet import unet_arguments, unet_shape
from vton.weights.pretrained import read_json, read_weights
from vton.weights.published import PublishedWeights, settings_of, write_mapping

# Their file names up to the data set, and how our names begin.
PREFIXES = {
    "unet": "network.unet.",
    "inversion_adapter": "adapter.",
    "emasc": "emasc.",
}
SUFFIXES = (".pth", ".safetensors")
CONFIG_FILE = "unet_config.json"
DATASETS = {"viton_hd": "vitonhd", "dresscode": "dresscode"}
HEAD_WIDTH = 64  # of Stable Diffusion 2
SD1_HEADS = 8  # at every level
GROUPS = 32


# ---- in ----


def read_published(path: Path) -> PublishedWeights:
    """The three networks, and the settings that they imply.

    Raises UserError naming the file that is absent, broken or of another model.
    """
    state: dict[str, Tensor] = {}
    states: dict[str, dict[str, Tensor]] = {}
    files = published_files(path)
    for kind, file in files.items():
        states[kind] = read_weights(file)
        for name, tensor in states[kind].items():
            state[PREFIXES[kind] + name] = tensor
    settings = unet_settings(states["unet"], files["unet"])
    context = states["unet"][CONTEXT_KEY].shape[1]
    settings += adapter_settings(states["inversion_adapter"], files["inversion_adapter"], context)
    settings += emasc_settings(states["emasc"], files["emasc"])
    return PublishedWeights(state, settings)


def published_files(path: Path) -> dict[str, Path]:
    """One file of each kind. Raises UserError where one is missing or there is a choice."""
    if path.is_dir():
        return {kind: only_file(path, kind) for kind in PREFIXES}
    if not path.name.startswith("unet"):
        raise UserError(
            f"{path}: name LaDI-VTON's UNet, unet_<dataset>.pth, or the folder that holds it."
        )
    files = {kind: path.with_name(kind + path.name.removeprefix("unet")) for kind in PREFIXES}
    for file in files.values():
        if not file.is_file():
            raise UserError(f"{file} does not exist; {path.name} is nothing without it.")
    return files


def only_file(folder: Path, kind: str) -> Path:
    found = [file for file in sorted(folder.glob(f"{kind}_*")) if file.suffix in SUFFIXES]
    if not found:
        raise UserError(f"{folder} holds no {kind}_<dataset>.pth; download it there.")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{folder} holds {names}; import one UNet's file instead of the folder.")
    return found[0]


CONTEXT_KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def unet_settings(state: dict[str, Tensor], file: Path) -> list[str]:
    """Shape of the UNet, and whether it reads a garment."""
    try:
        shape = unet_shape(state)
        inputs, channels = state["conv_in.weight"].shape[1], len(state["conv_out.weight"])
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{file}: not a complete UNet (no {error}); download the file again."
        ) from None
    garments = {input_channels(channels, garment): garment for garment in (True, False)}
    if inputs not in garments:
        known = " or ".join(map(str, garments))
        raise UserError(
            f"{file}: not LaDI-VTON's UNet: it reads {inputs} channels, expected {known} (noise, "
            f"mask, masked person, {JOINTS} joints, garment)."
        )
    shape |= heads_and_groups(shape, file)
    garment = "warped" if garments[inputs] else "none"
    settings = settings_of("codec", {"channels": channels})
    settings += settings_of("model", {"garment_input": garment, "text.width": shape["context"]})
    return settings + settings_of("model.unet", {"pretrained": ""} | shape)


def heads_and_groups(shape: dict, file: Path) -> dict:
    """What is in no tensor: of the configuration beside the file, else of Stable Diffusion."""
    beside = file.parent / CONFIG_FILE
    if beside.is_file():
        config = read_json(beside)
        heads = config.get("attention_head_dim", SD1_HEADS)  # counts heads in this class
        if not isinstance(heads, list):
            heads = [heads] * len(shape["widths"])
        return {"heads": heads, "groups": config.get("norm_num_groups", GROUPS)}
    if any(width % HEAD_WIDTH for width in shape["widths"]):
        raise UserError(
            f"{file}: widths of {shape['widths']} are not Stable Diffusion's; put the UNet's "
            f"configuration beside it as {CONFIG_FILE}."
        )
    return {"heads": stock_heads(shape["widths"], shape["linear_projection"]), "groups": GROUPS}


def stock_heads(widths: list[int], linear_projection: bool) -> list[int]:
    """Stable Diffusion 2 has linear projections and heads of one width, 1 has as many heads at
    every level.
    """
    if linear_projection:
        return [width // HEAD_WIDTH for width in widths]
    return [SD1_HEADS] * len(widths)


def adapter_settings(state: dict[str, Tensor], file: Path, context: int) -> list[str]:
    """Words, layers, and the CLIP tower's width; its heads are in no tensor."""
    numbers = {name.split(".")[1] for name in state if name.startswith("encoder_layers.")}
    try:
        width = len(state["post_layernorm.weight"])
        hidden, outputs = len(state["layers.0.weight"]), len(state["layers.6.weight"])
        shape = {"width": width}
        if numbers:
            shape["mlp"] = len(state["encoder_layers.0.mlp.fc1.bias"])
    except KeyError as error:
        raise UserError(f"{file}: not an inversion adapter (no {error}).") from None
    if hidden != 4 * width or outputs % context:
        raise UserError(
            f"{file}: an inversion adapter of width {width} with {hidden} hidden values and "
            f"{outputs} outputs; expected {4 * width}, and words of the UNet's context {context}."
        )
    settings = settings_of("model.adapter", {"words": outputs // context, "layers": len(numbers)})
    return settings_of("model.clip", shape) + settings


def emasc_settings(state: dict[str, Tensor], file: Path) -> list[str]:
    """Linear or nonlinear, and the widths of the VAE."""
    nonlinear = "conv.0.2.weight" in state
    last = "2.weight" if nonlinear else "weight"
    try:
        count = len({name.split(".")[1] for name in state})
        added = [len(state[f"conv.{number}.{last}"]) for number in range(count)]
    except (KeyError, IndexError) as error:
        raise UserError(f"{file}: not EMASC's weights (no {error}).") from None
    if count < 2:
        raise UserError(f"{file}: EMASC of {count} skips; an autoencoder has at least 2.")
    kind = "nonlinear" if nonlinear else "linear"
    return settings_of("model.emasc", {"kind": kind}) + settings_of("codec", {"widths": added[:-1]})


# ---- out ----


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """A folder with the three files.

    Raises UserError for runs that the format has no place for: with networks that the authors
    freeze, or without one of the three.
    """
    files: dict[str, dict[str, Tensor]] = {kind: {} for kind in PREFIXES}
    for name, tensor in state.items():
        for kind, prefix in PREFIXES.items():
            if name.startswith(prefix):
                files[kind][name.removeprefix(prefix)] = tensor
                break
        else:
            raise UserError(
                f"{target}: LaDI-VTON's published format has no place for {name}, which this run "
                "trained; use the run folder's weights.safetensors."
            )
    for kind, tensors in files.items():
        if not tensors:
            raise UserError(
                f"{target}: this run has no weights of its own for {kind}_<dataset>.pth; use the "
                "run folder's weights.safetensors."
            )
    if config.codec.name != "kl":
        raise UserError(
            f"{target}: LaDI-VTON's EMASC is an autoencoder's, this run's codec is "
            f"{config.codec.name}; use the run folder's weights.safetensors."
        )
    target.mkdir(parents=True, exist_ok=True)
    dataset = DATASETS.get(config.data.name, config.data.name)
    for kind, tensors in files.items():
        write_mapping(target / f"{kind}_{dataset}.pth", tensors)
    write_unet_config(target, config)


def write_unet_config(target: Path, config: ExperimentConfig) -> None:
    """The UNet's configuration, where its heads or norm groups are not Stable Diffusion's."""
    unet: UNetConfig = config.model.unet
    heads = stock_heads(list(unet.widths), unet.linear_projection)
    if list(unet.heads) == heads and unet.groups == GROUPS:
        return
    channels = config.codec.channels
    inputs = input_channels(channels, config.model.garment_input == "warped")
    arguments = unet_arguments(unet, inputs, channels)
    write_atomically(target / CONFIG_FILE, json.dumps(arguments, indent=2) + "\n")
