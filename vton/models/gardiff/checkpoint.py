"""GarDiff's published files, in and out, and adapter files.

    unet.pth                flat stock UNet of 8 (December 2024) or 12 (July 2024) input channels
    unet_config.json        its diffusers configuration
    inversion_adapter.pth   empty; in July an unused layer vae2clip

The folder or unet.pth alone is read. A UNet with `...attn2.processor.to_{k,v}_adapter.weight`, and
`image_proj.*` beside it, is the decoupled mode's.

An adapter file holds no UNet but the following, nested by section or flat, where i counts all
attention layers in the modules' order (down, up, mid):

    image_proj.{proj,norm}.*
    adapter_adapter.<i>.to_{k,v}_adapter.weight     GarDiff's names
    ip_adapter.<i>.to_{k,v}_ip.weight               the same in IP-Adapter's
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vton.config import ExperimentConfig
from vton.errors import UserError
from vton.models.gardiff.released import DecoupledUNet
from vton.models.unet import numbered_processors, unet_shape
from vton.weights.pretrained import (
    load_state,
    read_checkpoint,
    read_json,
    read_safetensors,
    read_weights,
    sections_of,
)
from vton.weights.published import PublishedWeights, settings_of, write_mapping

UNET_FILE = "unet.pth"
CONFIG_FILE = "unet_config.json"
INVERSION_FILE = "inversion_adapter.pth"
STOCK_GROUPS = 32  # of Stable Diffusion's norms
HEAD = "image_proj."
ADDED_KEYS = ".processor.to_k_adapter."  # in the names of the decoupled mode's added keys


# ---- the released UNet, in ----


def read_published(path: Path) -> PublishedWeights:
    """A released UNet's weights, and the settings that they imply: the mode by its input channels.

    Heads and norm groups are in no tensor. They come from unet_config.json where it lies beside the
    file. Without it the heads follow from the Stable Diffusion whose tokens have this width, or
    have to be given. Raises UserError naming the file that is absent, broken or of another model.
    """
    file = path
    if path.is_dir():
        file = path / UNET_FILE
        check_inversion_adapter(path / INVERSION_FILE)
    state = read_weights(file)
    mode = published_mode(state, file)
    shape = published_shape(state, file)
    settings = published_settings(state, mode, shape)
    ours = {our_name(name): x for name, x in state.items()}
    undetermined = [] if "heads" in shape else ["model.unet.heads"]
    return PublishedWeights(ours, settings, undetermined=undetermined)


def published_mode(state: dict[str, Tensor], file: Path) -> str:
    """Which of the modes a flat UNet belongs to. Raises UserError if to none."""
    check_is_unet(state, file)
    inputs, channels = state["conv_in.weight"].shape[1], len(state["conv_out.weight"])
    adapted = any(ADDED_KEYS in name for name in state)
    if adapted and f"{HEAD}proj.weight" not in state:
        raise UserError(
            f"{file} has an adapter's keys and values but no {HEAD}proj.weight, "
            "which makes its tokens."
        )
    if inputs == 2 * channels:
        return "decoupled" if adapted else "release"
    if inputs == 3 * channels and not adapted:
        return "legacy12"
    through = " through an adapter" if adapted else ""
    raise UserError(
        f"{file}: not GarDiff's UNet: it reads {inputs} channels{through}; GarDiff has "
        f"{2 * channels} (release, decoupled) or {3 * channels} (July 2024, without adapter)."
    )


def check_is_unet(state: dict[str, Tensor], file: Path) -> None:
    """Raise UserError naming the file unless it holds a diffusers UNet."""
    sections = {name.split(".")[0] for name in state}
    if "conv_in.weight" not in state and sections & {"adapter_adapter", "ip_adapter"}:
        raise UserError(
            f"{file} is an adapter without a UNet: train from it with model.mode=decoupled "
            f"model.decoupled.pretrained={file}."
        )
    if not {"conv_in.weight", "conv_out.weight"} <= set(state) or state["conv_in.weight"].ndim != 4:
        first = next(iter(state), "absent: the file is empty")
        raise UserError(
            f"{file}: not GarDiff's UNet: it has no conv_in.weight and conv_out.weight; its first "
            f"key is {first}."
        )


def published_shape(state: dict[str, Tensor], file: Path) -> dict:
    """The fields of UNetConfig that the tensors and the configuration beside the file show."""
    try:
        shape = unet_shape(state)
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{file}: not a complete UNet (no {error}); download the file again."
        ) from None
    beside = file.parent / CONFIG_FILE
    if beside.is_file():
        return shape | shape_in_config(beside, levels=len(shape["widths"]))
    if any(width % STOCK_GROUPS for width in shape["widths"]):
        raise UserError(
            f"{file}: {STOCK_GROUPS} norm groups, which Stable Diffusion has, do not divide widths "
            f"of {shape['widths']}; put the UNet's configuration beside it as {CONFIG_FILE}."
        )
    return shape


def shape_in_config(file: Path, levels: int) -> dict:
    """Heads per level and norm groups, where a diffusers configuration states them."""
    config = read_json(file)
    shape = {}
    heads = config.get("attention_head_dim")  # counts heads in this class
    if heads:
        shape["heads"] = heads if isinstance(heads, list) else [heads] * levels
    if config.get("norm_num_groups"):
        shape["groups"] = config["norm_num_groups"]
    return shape


def published_settings(state: dict[str, Tensor], mode: str, shape: dict) -> list[str]:
    """The settings that a published file's tensors show, as overrides. shape: of its UNet."""
    context = shape["context"]
    settings = settings_of("codec", {"channels": len(state["conv_out.weight"])})
    settings += settings_of("model", {"mode": mode, "text.width": context})
    settings += settings_of("model.unet", {"pretrained": ""} | shape)
    if mode == "decoupled":
        width, tokens = state[f"{HEAD}proj.weight"].shape[1], len(state[f"{HEAD}proj.weight"])
        settings += settings_of("model", {"clip.projection": width})
        settings += settings_of("model.decoupled", {"tokens": tokens // context})
    else:
        settings += settings_of("model", {"clip.projection": context})
    if mode == "release":  # what its weights were used with, see README.md
        settings += settings_of("model", {"clip_rescale": "release"})
    return settings


def check_inversion_adapter(file: Path) -> None:
    """Raise UserError if inversion_adapter.pth holds anything but what is known to be unused."""
    if not file.is_file():
        return
    unknown = [name for name in read_weights(file) if not name.startswith("vae2clip.")]
    if unknown:
        raise UserError(
            f"{file} holds weights that GarDiff's scripts do not read: {', '.join(unknown[:10])}; "
            "expected an empty mapping or vae2clip.weight and vae2clip.bias."
        )


def our_name(name: str) -> str:
    return f"network.{name}" if name.startswith(HEAD) else f"network.unet.{name}"


# ---- the released UNet, out ----


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The flat mapping again, as .pth or .safetensors by the target's suffix.

    Raises UserError for paper mode, and for networks trained along: a flat UNet has no place for
    either.
    """
    if config.model.mode == "paper":
        raise UserError(
            "model.mode=paper has no published format: GarDiff released a stock UNet without the "
            "paper's adapter. Use the run folder's weights.safetensors."
        )
    unet = {}
    for name, tensor in state.items():
        their_name = name.removeprefix("network.").removeprefix("unet.")
        if our_name(their_name) != name:
            raise UserError(
                f"{target}: GarDiff's published format has no place for {name}, which this run "
                "trained; use the run folder's weights.safetensors."
            )
        unet[their_name] = tensor
    write_mapping(target, unet)


# ---- adapter files ----


def load_adapter(network: DecoupledUNet, path: Path) -> None:
    """Projection head, keys and values from an adapter file. Raises UserError."""
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    head, layers = adapter_sections(content)
    if not head or not layers:
        raise UserError(
            f"{path}: not an adapter file; expected the sections image_proj and adapter_adapter."
        )
    fill_adapter(network, head, layers, path)


def adapter_sections(content: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Projection head, and layers' keys and values by GarDiff's names; empty where absent."""
    sections = sections_of(content, ("image_proj", "adapter_adapter", "ip_adapter"))
    layers = {}
    for name, tensor in (sections["adapter_adapter"] | sections["ip_adapter"]).items():
        layers[name.replace("_ip.", "_adapter.")] = tensor
    return sections["image_proj"], layers


def fill_adapter(
    network: DecoupledUNet, head: dict[str, Tensor], layers: dict[str, Tensor], source: Path
) -> None:
    load_state(network.image_proj, head, source)
    load_state(numbered_processors(network.unet), layers, source)
