"""IMAGDressing-v1's published files: the garment checkpoint, FaceID-Plus files, faces.

The checkpoint is a DeepSpeed model-states file: a mapping whose `module` holds

    ref_unet.*                                  the garment UNet, diffusers' names
    proj.*                                      the projector
    adapter_modules.<n>.to_{k,v}_ref.weight     W'k, W'v of attention layer n
    unet.*                                      a copy of the base UNet that nobody reads

where n counts down, up, mid, and attn1 before attn2. The copy is kept for export.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from vton.config import ExperimentConfig
from vton.errors import UserError
from vton.models.imagdressing.faceid import FaceID
from vton.models.imagdressing.network import Dresser, GarmentAdapter
from vton.models.resampler import IP_ADAPTER_HEAD, Resampler, resampler_shape
from vton.models.unet import unet_shape
from vton.weights.pretrained import load_state, read_checkpoint, read_ip_adapter, read_safetensors
from vton.weights.published import PublishedWeights, settings_of, write_mapping

OUR_NAMES = {"ref_unet": "garment_unet", "proj": "projector", "adapter_modules": "adapter"}
THEIR_NAMES = {ours: theirs for theirs, ours in OUR_NAMES.items()}
# Of the released try-on script, which names no garment.
SCRIPT_PROMPTS = {
    "prompt": "A beautiful model",
    "negative_prompt": "bare, naked, nude, undressed, monochrome, lowres, bad anatomy, "
    "worst quality, low quality",
}


# ---- the garment checkpoint, in ----


def read_published(path: Path) -> PublishedWeights:
    """The released .pt, its `module` alone, or the same as safetensors. Raises UserError."""
    networks, extra = split_published(read_module(path), path)
    try:
        settings = both_unets_settings(networks["garment_unet"])
        settings += projector_settings(networks["projector"])
        settings += settings_of("model", SCRIPT_PROMPTS)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"{path}: ref_unet or proj is incomplete ({error}); download the file again."
        ) from None
    state = {}
    for network, tensors in networks.items():
        for name, tensor in tensors.items():
            state[f"{network}.{name}"] = tensor
    undetermined = []
    if not any(setting.startswith("model.unet.heads=") for setting in settings):
        undetermined = ["model.unet.heads", "model.garment_unet.heads"]
    return PublishedWeights(state, settings, extra, undetermined)


def read_module(path: Path) -> dict[str, Tensor]:
    """The flat mapping of a checkpoint in any of its forms. Raises UserError."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; IMAGDressing-v1 is published as one file, IMAGDressing-v1_512.pt."
        )
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    module = content.get("module", content) if isinstance(content, dict) else None
    values = module.values() if isinstance(module, dict) else []
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise UserError(
            f"{path}: expected a mapping from names to tensors, bare or under 'module'."
        )
    return module


def split_published(
    module: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Our networks' states by our names, and everything else.

    Raises UserError if a network is absent.
    """
    networks: dict[str, dict[str, Tensor]] = {name: {} for name in OUR_NAMES.values()}
    extra = {}
    for name, tensor in module.items():
        network, _, rest = name.partition(".")
        if network in OUR_NAMES:
            networks[OUR_NAMES[network]][rest] = tensor
        else:
            extra[name] = tensor
    absent = [f"{THEIR_NAMES[name]}.*" for name, state in networks.items() if not state]
    if absent:
        raise UserError(
            f"{source}: not an IMAGDressing-v1 checkpoint: it has no {', '.join(absent)}; "
            f"its first key is {next(iter(module))}."
        )
    return networks, extra


def both_unets_settings(state: Mapping[str, Tensor]) -> list[str]:
    """The shape of the garment UNet as settings of both UNets. Raises KeyError."""
    shape = unet_shape(state)
    return [
        *settings_of("codec", {"channels": state["conv_in.weight"].shape[1]}),
        *settings_of("model.text", {"width": shape["context"]}),
        *settings_of("model.unet", shape),
        *settings_of("model.garment_unet", shape),
    ]


def projector_settings(state: Mapping[str, Tensor]) -> list[str]:
    """The projector's shape as settings. Raises KeyError, ValueError or IndexError."""
    shape = resampler_shape(state)
    sizes = {name: shape[name] for name in ("width", "depth", "queries", "feed_forward")}
    sizes |= split_in_heads(shape["inner"])
    clip = settings_of("model.clip", {"width": shape["input_width"]})
    return clip + settings_of("model.projector", sizes)


def split_in_heads(inner: int) -> dict[str, int]:
    """Number and width of the heads that share the inner width."""
    return {"heads": max(1, inner // IP_ADAPTER_HEAD), "head_width": min(IP_ADAPTER_HEAD, inner)}


# ---- the garment checkpoint, out ----


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The released layout again, with `extra`; a .safetensors target gets the bare mapping.

    Networks that the released file has no place for (a trained base UNet, ControlNet or encoder)
    raise UserError, and so does a run without one of the file's own.
    """
    module = {}
    written = set()
    for name, tensor in state.items():
        network, _, rest = name.partition(".")
        if network not in THEIR_NAMES:
            raise UserError(
                f"{target}: IMAGDressing's published format has no place for '{network}', which "
                f"this run trained (model.{network}.trained); use the run folder's "
                "weights.safetensors."
            )
        module[f"{THEIR_NAMES[network]}.{rest}"] = tensor
        written.add(network)
    absent = sorted(THEIR_NAMES.keys() - written)
    if absent:
        raise UserError(
            f"{target}: IMAGDressing's published format needs {', '.join(absent)}; "
            "this run was trained without (model.image_branch, model.attention)."
        )
    write_mapping(target, module | extra, section="module")


# ---- networks from files, for code of your own; see README.md ----


def load_dresser(path: Path, unet: UNet2DConditionModel, **plugins) -> Dresser:
    """The released weights around a dressing UNet: SD 1.5's or a community model's of its shape.

    Device and dtype are those of `unet`. plugins: `controls` and `face` of Dresser. Raises
    UserError.
    """
    states, _ = split_published(read_module(Path(path)), path)
    try:
        shape = resampler_shape(states["projector"])
    except KeyError as error:
        raise UserError(f"{path}: proj is incomplete: no {error}.") from None
    projector = Resampler(
        width=shape["width"],
        depth=shape["depth"],
        queries=shape["queries"],
        input_width=shape["input_width"],
        output_width=shape["output_width"],
        factor=shape["feed_forward"],
        **split_in_heads(shape["inner"]),
    )
    networks = {
        "garment_unet": UNet2DConditionModel.from_config(unet.config),
        "projector": projector,
        "adapter": GarmentAdapter(unet),
    }
    for name, network in networks.items():
        load_state(network, states[name], path)
        in_manner_of(unet, network)
    return Dresser(unet, **networks, **plugins)


def load_faceid(path: Path, unet: UNet2DConditionModel, **settings) -> FaceID:
    """A FaceID-Plus or PlusV2 file for the attention layers of `unet`.

    Device and dtype are those of `unet`. settings: scales, shortcut, cut_text. Raises UserError for
    other files, FaceID without Plus among them.
    """
    state = {}
    for section, tensors in read_ip_adapter(Path(path)).items():
        for name, tensor in tensors.items():
            state[f"{section}.{name}"] = tensor
    try:
        face = FaceID.shaped(state, unet, **settings)
    except KeyError as error:
        raise UserError(f"{path}: not a FaceID-Plus file for SD 1.5: no {error}.") from None
    load_state(face, state, path)
    return in_manner_of(unet, face).requires_grad_(False)


def in_manner_of(unet: UNet2DConditionModel, network: nn.Module) -> nn.Module:
    """The network in evaluation mode, on the UNet's device and in its dtype."""
    # diffusers' own `to` warns of layers to be kept in float32, of which these have none.
    return nn.Module.to(network, unet.device, unet.dtype).eval()


def read_face(path: Path) -> tuple[Tensor, Tensor]:
    """A person's identity vector `id_embeds` (D,) and CLIP states `clip_hidden` (S, width).

    Raises UserError.
    """
    tensors = read_safetensors(path)
    if not {"id_embeds", "clip_hidden"} <= set(tensors):
        raise UserError(
            f"{path}: expected the tensors id_embeds and clip_hidden, found {', '.join(tensors)}."
        )
    return tensors["id_embeds"].float(), tensors["clip_hidden"].float()
