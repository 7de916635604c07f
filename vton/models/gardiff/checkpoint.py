"""GarDiff's published files, in and out, and adapter files.

    unet.pth                flat stock UNet of 8 (December 2024) or 12 (July 2024) input channels
    unet_config.json        its diffusers configuration
    inversion_adapter.pth   empty; in July an unused layer vae2clip

The same folder or unet.pth alone is read. A UNet with `...attn2.processor.to_{k,v}_adapter.weight`,
and `image_proj.*` beside it, is the decoupled mode's. An adapter file holds no UNet but

    image_proj.{proj,norm}.*
    adapter_adapter.<i>.to_{k,v}_adapter.weight     or, in IP-Adapter's files, ip_adapter.<i>.to_{k,v}_ip.weight

where i counts all attention layers in the modules' order (down, up, mid), nested by section or
flat.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vton.config import ExperimentConfig
from vton.files import replacing
from vton.models.gardiff.released import DecoupledUNet
from vton.models.unet import attention_names, unet_shape
from vton.weights.pretrained import (
    PUBLISHED_METADATA,
    Published,
    WeightsError,
    load_state,
    read_checkpoint,
    read_json,
    read_safetensors,
    read_weights,
    setting,
    write_tensors,
)

UNET_FILE, CONFIG_FILE, INVERSION_FILE = "unet.pth", "unet_config.json", "inversion_adapter.pth"
STOCK_GROUPS = 32
HEAD = "image_proj."
IP_ADAPTER = {
    "ip_adapter": "adapter_adapter",
    "to_k_ip": "to_k_adapter",
    "to_v_ip": "to_v_adapter",
}  # theirs: ours


# ---- the released UNet ----


def read_published(path: Path) -> Published:
    """A released UNet's weights, and the settings that they imply: the mode by its input channels.

    Heads and norm groups are in no tensor: they come from unet_config.json where it lies beside the
    file, and are Stable Diffusion 1.5's otherwise. Raises WeightsError naming the file that is
    absent, broken or of another model.
    """
    file = path / UNET_FILE if path.is_dir() else path
    if path.is_dir():
        check_inversion_adapter(path / INVERSION_FILE)
    state = read_weights(file)
    mode = published_mode(state, file)
    try:
        shape = unet_shape(state)
    except (KeyError, IndexError) as error:
        raise WeightsError(
            f"{file}: not a complete UNet (no {error}); download the file again."
        ) from None
    if (file.parent / CONFIG_FILE).is_file():
        shape |= noted_shape(file.parent / CONFIG_FILE, len(shape["widths"]))
    elif any(width % STOCK_GROUPS for width in shape["widths"]):
        raise WeightsError(
            f"{file}: {STOCK_GROUPS} norm groups, which Stable Diffusion has, do not divide widths of "
            f"{shape['widths']}; put the UNet's configuration beside it as {CONFIG_FILE}."
        )
    context = shape["context"]
    channels = len(state["conv_out.weight"])
    settings = [f"model.mode={mode}", f"codec.channels={channels}", f"model.text.width={context}"]
    settings += [
        "model.unet.pretrained=''",
        *(setting(f"model.unet.{name}", value) for name, value in shape.items()),
    ]
    if mode == "decoupled":
        width = state[f"{HEAD}proj.weight"].shape[1]
        tokens = len(state[f"{HEAD}proj.weight"]) // context
        settings += [f"model.clip.projection={width}", f"model.decoupled.tokens={tokens}"]
    else:
        settings += [f"model.clip.projection={context}"]
    return Published({own_name(name): tensor for name, tensor in state.items()}, settings)


def published_mode(state: dict[str, Tensor], file: Path) -> str:
    """Which of the modes a flat UNet belongs to. Raises WeightsError if to none."""
    sections = {name.split(".")[0] for name in state}
    if "conv_in.weight" not in state and sections & {"adapter_adapter", "ip_adapter"}:
        raise WeightsError(
            f"{file} is an adapter without a UNet: train from it with model.mode=decoupled "
            f"model.decoupled.pretrained={file}."
        )
    if not {"conv_in.weight", "conv_out.weight"} <= set(state) or state["conv_in.weight"].ndim != 4:
        raise WeightsError(
            f"{file}: not GarDiff's UNet: it has no conv_in.weight and conv_out.weight; its first key is "
            f"{next(iter(state), 'absent: the file is empty')}."
        )
    inputs, channels = state["conv_in.weight"].shape[1], len(state["conv_out.weight"])
    adapted = any(".processor.to_k_adapter." in name for name in state)
    modes = {2 * channels: "decoupled" if adapted else "release", 3 * channels: "legacy12"}
    if inputs not in modes or (adapted and modes[inputs] != "decoupled"):
        raise WeightsError(
            f"{file}: not GarDiff's UNet: it reads {inputs} channels{' through an adapter' if adapted else ''}; "
            f"GarDiff has {2 * channels} (release, decoupled) or {3 * channels} (July 2024, without adapter)."
        )
    if adapted and f"{HEAD}proj.weight" not in state:
        raise WeightsError(
            f"{file} has an adapter's keys and values but no {HEAD}proj.weight, which makes its tokens."
        )
    return modes[inputs]


def check_inversion_adapter(file: Path) -> None:
    """Nothing in inversion_adapter.pth is used; anything but what is known to be unused raises
    WeightsError.
    """
    if not file.is_file():
        return
    unknown = [name for name in read_weights(file) if not name.startswith("vae2clip.")]
    if unknown:
        raise WeightsError(
            f"{file} holds weights that GarDiff's scripts do not read: {', '.join(unknown[:10])}; expected an empty "
            "mapping or vae2clip.weight and vae2clip.bias."
        )


def noted_shape(file: Path, levels: int) -> dict:
    """Heads per level and norm groups from a diffusers configuration, whose attention_head_dim
    counts heads.
    """
    config = read_json(file)
    found = {}
    if heads := config.get("attention_head_dim"):
        found["heads"] = heads if isinstance(heads, list) else [heads] * levels
    if groups := config.get("norm_num_groups"):
        found["groups"] = groups
    return found


def own_name(name: str) -> str:
    return f"network.{name}" if name.startswith(HEAD) else f"network.unet.{name}"


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The flat mapping again, as .pth or .safetensors by the target's suffix.

    Raises WeightsError for paper mode, and for networks trained along: a flat UNet has no place for
    either.
    """
    mode = config.model.mode
    if mode == "paper":
        raise WeightsError(
            "model.mode=paper has no published format: GarDiff released a stock UNet without the paper's adapter. Use "
            "the run folder's weights.safetensors."
        )
    unet = {}
    for name, tensor in state.items():
        plain = name.removeprefix("network.").removeprefix("unet.")
        if own_name(plain) != name:
            raise WeightsError(
                f"{target}: GarDiff's published format has no place for {name}, which this run trained; use the run "
                "folder's weights.safetensors."
            )
        unet[plain] = tensor
    if target.suffix == ".safetensors":
        write_tensors(target, unet, PUBLISHED_METADATA)
        return
    with replacing(target) as temporary:
        torch.save(unet, temporary)


# ---- adapter files ----


def read_adapter(path: Path) -> dict[str, dict[str, Tensor]]:
    """{"image_proj": ..., "adapter_adapter": ...} with GarDiff's names. Raises WeightsError for
    other files.
    """
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    sections = adapter_sections(content if isinstance(content, dict) else {})
    if not all(sections.values()):
        raise WeightsError(
            f"{path}: not an adapter file; expected the sections image_proj and adapter_adapter."
        )
    return sections


def adapter_sections(content: dict) -> dict[str, dict[str, Tensor]]:
    """The two sections, empty where absent, of a mapping nested or flat, in GarDiff's or
    IP-Adapter's names.
    """
    sections: dict[str, dict[str, Tensor]] = {"image_proj": {}, "adapter_adapter": {}}
    for name, value in content.items():
        section, _, rest = str(name).partition(".")
        section = IP_ADAPTER.get(section, section)
        if section in sections:
            entries = {rest: value} if rest else value
            sections[section] |= {renamed(key): tensor for key, tensor in entries.items()}
    return sections


def renamed(name: str) -> str:
    return ".".join(IP_ADAPTER.get(part, part) for part in name.split("."))


def load_adapter(network: DecoupledUNet, path: Path) -> None:
    """Projection head, keys and values from an adapter file. Raises WeightsError."""
    fill_adapter(network, read_adapter(path), path)


def fill_adapter(
    network: DecoupledUNet, sections: dict[str, dict[str, Tensor]], source: Path
) -> None:
    load_state(network.image_proj, sections["image_proj"], source)
    processors = (
        network.unet.get_submodule(name).processor for name in attention_names(network.unet)
    )
    numbered = nn.ModuleList(p if isinstance(p, nn.Module) else nn.Identity() for p in processors)
    load_state(numbered, sections["adapter_adapter"], source)
