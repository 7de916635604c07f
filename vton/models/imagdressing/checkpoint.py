"""IMAGDressing-v1's published files: the garment checkpoint, FaceID-Plus files, IP-Adapter's
projector.

The checkpoint is a DeepSpeed model-states file: a mapping whose `module` holds

    ref_unet.*                                  the garment UNet, diffusers' names
    proj.*                                      the projector
    adapter_modules.<n>.to_{k,v}_ref.weight     W'k, W'v of attention layer n (down, up, mid; attn1 before attn2)
    unet.*                                      a copy of the base UNet that nobody reads; kept for export
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vton.config import ExperimentConfig
from vton.files import replacing
from vton.models.imagdressing.faceid import FaceID
from vton.models.imagdressing.network import Dresser, GarmentAdapter
from vton.models.resampler import Resampler
from vton.models.unet import unet_shape
from vton.weights.pretrained import (
    PUBLISHED_METADATA,
    Published,
    WeightsError,
    load_state,
    read_checkpoint,
    read_ip_adapter,
    read_safetensors,
    setting,
    write_tensors,
)

PARTS = {
    "ref_unet.": "garment_unet",
    "proj.": "projector",
    "adapter_modules.": "adapter",
}  # theirs: ours


def read_published(path: Path) -> Published:
    """The released .pt, its `module` alone, or the same as safetensors. Raises WeightsError."""
    parts, extra = split_published(read_module(path), path)
    state = {
        f"{part}.{name}": tensor
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }
    try:
        settings = unet_settings(parts["garment_unet"]) + projector_settings(parts["projector"])
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(
            f"{path}: ref_unet or proj is incomplete ({error}); download the file again."
        ) from None
    return Published(state, settings, extra)


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The released layout again, with `extra` where it was; a .safetensors target gets the bare
    mapping.

    Networks that the released file has no place for (a trained base UNet, ControlNet or encoder)
    raise WeightsError, and so does a run without one of the file's own.
    """
    theirs = {ours: prefix for prefix, ours in PARTS.items()}
    module = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part not in theirs:
            raise WeightsError(
                f"{target}: IMAGDressing's published format has no place for '{part}', which this run trained "
                f"(model.{part}.trained); use the run folder's weights.safetensors."
            )
        module[theirs[part] + rest] = tensor
    absent = theirs.keys() - {name.partition(".")[0] for name in state}
    if absent:
        raise WeightsError(
            f"{target}: IMAGDressing's published format needs {', '.join(sorted(absent))}; "
            "this run was trained without (model.image_branch, model.attention)."
        )
    module |= extra
    if target.suffix == ".safetensors":
        write_tensors(target, module, PUBLISHED_METADATA)
        return
    with replacing(target) as temporary:
        torch.save({"module": module}, temporary)


def read_module(path: Path) -> dict[str, Tensor]:
    """The flat mapping of a checkpoint in any of its forms. Raises WeightsError."""
    if path.is_dir():
        raise WeightsError(
            f"{path} is a folder; IMAGDressing-v1 is published as one file, IMAGDressing-v1_512.pt."
        )
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    module = content.get("module", content) if isinstance(content, dict) else content
    if (
        not isinstance(module, dict)
        or not module
        or not all(isinstance(x, Tensor) for x in module.values())
    ):
        raise WeightsError(
            f"{path}: expected a mapping from names to tensors, bare or under 'module'."
        )
    return module


def split_published(
    module: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Our networks' states by name, and everything else. Raises WeightsError if a network is
    absent.
    """
    parts: dict[str, dict[str, Tensor]] = {ours: {} for ours in PARTS.values()}
    extra = {}
    for name, tensor in module.items():
        prefix = f"{name.partition('.')[0]}."
        if prefix in PARTS:
            parts[PARTS[prefix]][name.removeprefix(prefix)] = tensor
        else:
            extra[name] = tensor
    absent = [prefix + "*" for prefix, ours in PARTS.items() if not parts[ours]]
    if absent:
        raise WeightsError(
            f"{source}: not an IMAGDressing-v1 checkpoint: it has no {', '.join(absent)}; "
            f"its first key is {next(iter(module))}."
        )
    return parts, extra


def unet_settings(state: Mapping[str, Tensor]) -> list[str]:
    """The shape of the garment UNet as settings of both UNets. Raises KeyError if the state is
    incomplete.
    """
    shape, channels = unet_shape(state), state["conv_in.weight"].shape[1]
    return [f"codec.channels={channels}", f"model.text.width={shape['context']}"] + [
        setting(f"model.{unet}.{name}", value)
        for unet in ("unet", "garment_unet")
        for name, value in shape.items()
    ]


def projector_settings(state: Mapping[str, Tensor]) -> list[str]:
    """The projector's shape as settings. Raises KeyError."""
    shape = projector_shape(state)
    settings = [
        f"model.clip.width={shape.pop('input_width')}",
        f"model.projector.feed_forward={shape.pop('factor')}",
    ]
    shape.pop("output_width")  # is the UNets' context
    return settings + [f"model.projector.{name}={value}" for name, value in shape.items()]


def projector_shape(state: Mapping[str, Tensor], head_width: int = 64) -> dict[str, int]:
    """Arguments of Resampler. The tensors tell all but the width of a head; IP-Adapter's is 64.
    Raises KeyError.
    """
    _, queries, width = state["latents"].shape
    inner = state["layers.0.0.to_q.weight"].shape[0]
    return {
        "width": width,
        "depth": len({name.split(".")[1] for name in state if name.startswith("layers.")}),
        "heads": max(1, inner // head_width),
        "head_width": min(head_width, inner),
        "queries": queries,
        "input_width": state["proj_in.weight"].shape[1],
        "output_width": state["proj_out.weight"].shape[0],
        "factor": state["layers.0.1.1.weight"].shape[0] // width,
    }


def load_dresser(path: Path, unet: UNet2DConditionModel, **plugins) -> Dresser:
    """The released weights around a dressing UNet: SD 1.5's or a community model's of its shape.

    plugins: `controls` and `face` of Dresser. Raises WeightsError.
    """
    parts, _ = split_published(read_module(Path(path)), path)
    try:
        projector = Resampler(**projector_shape(parts["projector"]))
    except KeyError as error:
        raise WeightsError(f"{path}: proj is incomplete: no {error}.") from None
    networks = {
        "garment_unet": UNet2DConditionModel.from_config(unet.config),
        "projector": projector,
        "adapter": GarmentAdapter(unet),
    }
    for name, network in networks.items():
        load_state(network, parts[name], path)
        network.to(unet.device, unet.dtype).eval()
    return Dresser(unet, **networks, **plugins)


def load_faceid(path: Path, unet: UNet2DConditionModel, **settings) -> FaceID:
    """A FaceID-Plus or PlusV2 file for the attention layers of `unet`; settings: scales, shortcut,
    cut_text.

    Raises WeightsError for other files, FaceID without Plus among them.
    """
    sections = read_ip_adapter(Path(path))
    state = {
        f"{section}.{name}": tensor
        for section, tensors in sections.items()
        for name, tensor in tensors.items()
    }
    try:
        face = FaceID.shaped(state, unet, **settings)
    except KeyError as error:
        raise WeightsError(f"{path}: not a FaceID-Plus file for SD 1.5: no {error}.") from None
    load_state(face, state, path)
    return face.eval().requires_grad_(False)


def read_face(path: Path) -> tuple[Tensor, Tensor]:
    """A person's identity vector `id_embeds` (D,) and CLIP states `clip_hidden` (S, width). Raises
    WeightsError.
    """
    tensors = read_safetensors(path)
    if not {"id_embeds", "clip_hidden"} <= set(tensors):
        raise WeightsError(
            f"{path}: expected the tensors id_embeds and clip_hidden, found {', '.join(tensors)}."
        )
    return tensors["id_embeds"].float(), tensors["clip_hidden"].float()
