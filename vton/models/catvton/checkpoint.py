"""CatVTON's published weights, in and out.

    <variant>/attention/model.safetensors   the self-attention layers alone: 80 tensors
    unet/                                   a whole UNet as a diffusers folder (DeCo-VTON)

Tensors of the attention file are named by their place in a list of every submodule whose name
contains `attn1`, in the order of modules: down, up, mid. A layer has eight entries there (itself,
to_q, to_k, to_v, to_out, to_out.0, to_out.1 and its processor), so layer k stands at 8k. A tensor
that occurs several times is stored under the first name; files with further ones are accepted.

The attention file does not hold the UNet around its layers: a run imported from it starts from
`model.unet.pretrained` whenever it is built.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vton.config import ExperimentConfig
from vton.errors import UserError
from vton.models.catvton.config import CatvtonConfig
from vton.models.hub_settings import unet_settings
from vton.models.unet import read_unet_arguments, unet_arguments, unet_shape, write_unet
from vton.weights.pretrained import (
    below,
    hub_folder,
    read_weights,
    read_weights_folder,
)
from vton.weights.published import PublishedWeights, settings_of, write_mapping

UNET = "unet."  # our names of the UNet's tensors begin with it
ENTRIES = 8  # of a layer in the file's list
HEADS = 8  # of every layer of Stable Diffusion 1.5; no tensor shows their number
# A layer's tensors as the file names them first, relative to 8k.
STORED = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
# Their names at later places after 8k, where the same tensors occur again.
REPEATED = {
    "to_q.weight": {1: "weight"},
    "to_k.weight": {2: "weight"},
    "to_v.weight": {3: "weight"},
    "to_out.0.weight": {4: "0.weight", 5: "weight"},
    "to_out.0.bias": {4: "0.bias", 5: "bias"},
}
SECTIONS = ("down_blocks", "up_blocks", "mid_block")  # of a UNet, in the order of modules
NUMBERED = re.compile(r"(\d+)\.(.+)")
FILES = ("attention/model.safetensors", "model.safetensors")  # below a variant's folder


# ---- names of layers ----


def layer_names(levels: int, attention: Sequence[bool], layers: int) -> list[str]:
    """Names of the self-attention layers in the order of modules, for a UNet of this shape with one
    transformer block in each attention.
    """
    names = []
    for level in range(levels):
        if attention[level]:
            names += [f"down_blocks.{level}.attentions.{layer}" for layer in range(layers)]
    for level in range(levels):
        if attention[levels - 1 - level]:
            names += [f"up_blocks.{level}.attentions.{layer}" for layer in range(layers + 1)]
    names.append("mid_block.attentions.0")
    return [f"{name}.transformer_blocks.0.attn1" for name in names]


def names_of(shape: dict) -> list[str]:
    """`layer_names` of what `attention_shape` found."""
    return layer_names(len(shape["widths"]), shape["attention"], shape["layers"])


def numbered(layers: Sequence[str]) -> dict[str, str]:
    """{the file's name: ours} of every tensor of these layers, given in the order of modules."""
    names = {}
    for number, layer in enumerate(layers):
        for part in STORED:
            names[f"{ENTRIES * number}.{part}"] = f"{layer}.{part}"
    return names


def in_order(state: Iterable[str]) -> list[str]:
    """The self-attention layers of these parameters, in the order of modules."""
    blocks = {name.rpartition(".attn1.")[0] for name in state}
    return [f"{block}.attn1" for block in sorted(blocks, key=place)]


def place(block: str) -> list[int]:
    """What sorts names of transformer blocks in the order of modules."""
    section, *parts = block.split(".")
    return [SECTIONS.index(section), *(int(part) for part in parts if part.isdigit())]


def attention_shape(widths: Sequence[int]) -> dict:
    """The UNet's shape, as fields of UNetConfig, from the widths of its numbered layers.

    Every level but the last has attention, as in Stable Diffusion 1.5. Raises ValueError where no
    such UNet has layers of these widths.
    """
    count = len(widths)
    for attended in range(1, count):
        layers, rest = divmod(count - 1 - attended, 2 * attended)
        if rest or layers < 1:
            continue
        levels = [widths[level * layers] for level in range(attended)] + [widths[-1]]
        expected = []
        for level in range(attended):
            expected += [levels[level]] * layers
        for level in reversed(range(attended)):
            expected += [levels[level]] * (layers + 1)
        if [*expected, levels[-1]] == list(widths):
            return {
                "widths": levels,
                "attention": [True] * attended + [False],
                "heads": [HEADS] * (attended + 1),
                "depth": [1] * (attended + 1),
                "layers": layers,
            }
    raise ValueError(f"no UNet has self-attention layers of widths {list(widths)}")


# ---- in ----


def read_published(path: Path) -> PublishedWeights:
    """An attention file, the folder that holds one, or a whole UNet.

    Raises UserError naming the file that is absent, broken or of another model.
    """
    if path.is_dir():
        for name in FILES:
            if (path / name).is_file():
                return read_attention(read_weights(path / name), path / name)
        variants = sorted(file.parent.parent.name for file in path.glob(f"*/{FILES[0]}"))
        if variants:
            raise UserError(
                f"{path} holds several variants; import the folder of one: {', '.join(variants)}."
            )
        folder = path / "unet" if (path / "unet").is_dir() else path
        return read_unet(read_weights_folder(folder), folder)
    state = read_weights(path)
    if "conv_in.weight" in state:
        return read_unet(state, path)
    return read_attention(state, path)


def read_attention(state: Mapping[str, Tensor], path: Path) -> PublishedWeights:
    """The attention layers by our names, and the shape of the UNet that they belong to."""
    stored, repeated = first_names(state, path)
    numbers = sorted({int(name.split(".")[0]) for name in stored})
    missing = []
    for number in numbers:
        missing += [f"{number}.{part}" for part in STORED if f"{number}.{part}" not in stored]
    if not numbers or numbers != list(range(0, ENTRIES * len(numbers), ENTRIES)) or missing:
        raise UserError(
            f"{path}: not CatVTON's attention layers; expected tensors 0.to_q.weight to "
            f"120.to_out.0.bias, five of every eighth number. "
            f"Lacking: {', '.join(missing[:5]) or 'whole layers'}."
        )
    widths = [len(stored[f"{number}.to_q.weight"]) for number in numbers]
    try:
        shape = attention_shape(widths)
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from None
    ours = {UNET + name: stored[key] for key, name in numbered(names_of(shape)).items()}
    settings = settings_of("model", {"trained": "attention"}) + settings_of("model.unet", shape)
    return PublishedWeights(ours, settings, repeated)


def first_names(
    state: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors under their first names, and those that the file holds under other ones.

    Raises UserError for names of another kind, and for tensors that differ from their first.
    """
    stored: dict[str, Tensor] = {}
    repeated: dict[str, Tensor] = {}
    for name, tensor in state.items():
        first = first_name(name)
        if first is None:
            raise UserError(
                f"{path}: not CatVTON's attention layers; {name} is no tensor of theirs."
            )
        if first != name:
            repeated[name] = tensor
        if first in stored and not torch.equal(stored[first], tensor):
            raise UserError(f"{path}: {name} and {first} are one tensor, but differ.")
        stored[first] = tensor
    return stored, repeated


def first_name(name: str) -> str | None:
    """The first name of a tensor in the file's list; None where it has none."""
    match = NUMBERED.fullmatch(name)
    if not match:
        return None
    number, part = int(match[1]), match[2]
    layer, entry = ENTRIES * (number // ENTRIES), number % ENTRIES
    for first in STORED:
        if (entry == 0 and part == first) or REPEATED[first].get(entry) == part:
            return f"{layer}.{first}"
    return None


def read_unet(state: dict[str, Tensor], source: Path) -> PublishedWeights:
    """A whole UNet; its shape from config.json beside the weights, else from its tensors."""
    lacking = [name for name in ("conv_in.weight", "conv_out.bias") if name not in state]
    if lacking:
        raise UserError(f"{source} holds no UNet: its weights lack {' and '.join(lacking)}.")
    outputs, inputs = len(state["conv_out.bias"]), state["conv_in.weight"].shape[1]
    if inputs not in (2 * outputs, 2 * outputs + 1):
        raise UserError(
            f"{source}: conv_in.weight has {inputs} input channels; expected {2 * outputs + 1}: "
            "noisy latents, mask, and latents of masked person and garment; or one less without "
            "mask."
        )
    file = (source if source.is_dir() else source.parent) / "config.json"
    if file.exists():
        shape = unet_settings("model.unet", read_unet_arguments(file.parent), file.parent)
    else:
        try:
            shape = settings_of("model.unet", unet_shape(state))
        except KeyError as error:
            raise UserError(f"{source}: not a whole UNet; it lacks {error}.") from None
    settings = settings_of(
        "model", {"trained": "unet", "unet.pretrained": "", "mask": inputs > 2 * outputs}
    )
    return PublishedWeights({UNET + name: x for name, x in state.items()}, [*settings, *shape])


# ---- out ----


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """What the run trained: the attention file, or a diffusers folder of the whole UNet.

    A target without suffix becomes a variant's folder, which the authors' loader expects around the
    file. extra: the imported file's further names of the same tensors. Raises UserError for a run
    that the formats have no place for.
    """
    model: CatvtonConfig = config.model
    own = below(state, UNET)
    if len(own) < len(state):
        raise UserError(
            "The run trained its text encoder, which CatVTON's formats have no place for."
        )
    if model.trained == "attention":
        tensors = extra | attention_file(own)
        if not target.suffix:
            target = target / FILES[0]
            target.parent.mkdir(parents=True, exist_ok=True)
        write_mapping(target, tensors)
    elif model.trained == "unet":
        write_folder(target, own, model)
    else:
        raise UserError(
            f"model.trained={model.trained}: CatVTON publishes its attention layers alone, or a "
            "whole UNet."
        )


def attention_file(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The attention layers under their numbers. Raises UserError where these could not be read."""
    names = in_order(state)
    try:
        shape = attention_shape([len(state[f"{name}.to_q.weight"]) for name in names])
        readable = names == names_of(shape)
    except ValueError:
        readable = False
    if not readable:
        raise UserError(
            "CatVTON's attention file numbers the layers of a UNet with one transformer block in "
            f"each attention and attention in every level but the last; this run has {names}."
        )
    return {key: state[name] for key, name in numbered(names).items()}


def write_folder(target: Path, state: Mapping[str, Tensor], model: CatvtonConfig) -> None:
    """unet/ with weights and config.json; complete or not there at all."""
    channels, inputs = len(state["conv_out.bias"]), state["conv_in.weight"].shape[1]
    if model.unet.pretrained:
        source = hub_folder(model.unet.pretrained, model.unet.subfolder, "model.unet.pretrained")
        arguments = read_unet_arguments(source)
    else:
        arguments = unet_arguments(model.unet, inputs, channels)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        folder = Path(temporary) / "folder"
        write_unet(folder / "unet", state, arguments)
        folder.replace(target)
