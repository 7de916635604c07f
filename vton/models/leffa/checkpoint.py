"""Leffa's published files, virtual_tryon.pth and virtual_tryon_dc.pth: one flat mapping of

    vae.*               the AutoencoderKL, in diffusers' current names
    unet_encoder.*      the reference UNet, 4 input channels
    unet.*              the generative UNet, 12 input channels

Both UNets have all names of diffusers' UNet2DConditionModel. Nothing reads their attn2.to_*, nor
what lies behind the reference UNet's last feature, so files may lack these. Heads and norm groups
are in no tensor: they are Stable Diffusion 1.5's where the sizes are, else overrides say them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vton.config import ExperimentConfig
from vton.errors import UserError
from vton.models.codecs import is_fitted, run_codec
from vton.models.ldm import for_stable_diffusion
from vton.models.leffa.network import POSE_CHANNELS
from vton.models.settings import UNetConfig
from vton.models.unet import read_by_taps, unet_arguments, unet_shape
from vton.weights.pretrained import below, read_weights
from vton.weights.published import PublishedWeights, settings_of, write_mapping

UNET, REFERENCE, VAE = "unet.", "unet_encoder.", "vae."
OUR_REFERENCE = "reference_unet."
STOCK = UNetConfig()  # Stable Diffusion 1.5


# ---- in ----


def read_published(path: Path) -> PublishedWeights:
    """A released file's weights, the settings that they imply, and its codec. Raises UserError."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; Leffa is published as one file, virtual_tryon.pth.")
    tensors = read_weights(path)
    unet, reference = split_networks(tensors, path)
    shape = shared_shape(unet, path)
    unet, reference = complete(unet, shape, path), complete(reference, shape, path)
    state = {UNET + name: tensor for name, tensor in unet.items()}
    state |= {OUR_REFERENCE + name: tensor for name, tensor in reference.items()}
    settings = settings_of("model", {"pretrained": ""})
    settings += settings_of("model.unet", {"pretrained": ""} | shape)
    settings += settings_of("model.reference_unet", {"pretrained": ""} | shape)
    vae = below(tensors, VAE)
    if vae:
        settings += settings_of("codec", {"name": "kl", "pretrained": ""} | vae_shape(vae, path))
    unknown = [] if "heads" in shape else ["model.unet.heads", "model.reference_unet.heads"]
    halves = {VAE + name: x for name, x in vae.items() if x.dtype != torch.float32}
    return PublishedWeights(state, settings, halves, undetermined=unknown, codec=vae)


def read_networks(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Generative and reference UNet of a published file or of a run's weights.safetensors.

    Raises UserError.
    """
    unet, reference = split_networks(read_weights(path), path)
    shape = shared_shape(unet, path)
    return complete(unet, shape, path), complete(reference, shape, path)


def split_networks(
    tensors: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both UNets by diffusers' names. Raises UserError for a file of another model."""
    unet = below(tensors, UNET)
    reference = below(tensors, REFERENCE) or below(tensors, OUR_REFERENCE)
    for prefix, state in ((UNET, unet), (REFERENCE, reference)):
        if "conv_in.weight" not in state:
            first = next(iter(tensors), "absent: the file is empty")
            raise UserError(
                f"{source}: not a Leffa checkpoint: it has no {prefix}conv_in.weight; its first "
                f"key is {first}."
            )
    channels = reference["conv_in.weight"].shape[1]
    expected = 2 * channels + 1 + POSE_CHANNELS
    found = unet["conv_in.weight"].shape[1]
    if found != expected:
        raise UserError(
            f"{source}: not a Leffa checkpoint for try-on: {UNET}conv_in reads {found} channels "
            f"and {REFERENCE}conv_in {channels}; expected {expected} and {channels} (12 and 4 as "
            "published)."
        )
    return unet, reference


def shared_shape(unet: Mapping[str, Tensor], source: Path) -> dict:
    """The fields of UNetConfig that the generative UNet's tensors show, alike in both UNets."""
    context = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    unread = {context: torch.empty(0, STOCK.context)} if context not in unet else {}
    try:
        return unet_shape({**unet, **unread})
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{source}: its {UNET}* is incomplete (no {error}); download the file again."
        ) from None


def complete(state: dict[str, Tensor], shape: dict, source: Path) -> dict[str, Tensor]:
    """The state with zeros for tensors that nothing reads, where the file has left them out."""
    inputs, outputs = state["conv_in.weight"].shape[1], outputs_of(state)
    with torch.device("meta"):
        undecided = {"heads": [1] * len(shape["widths"]), "groups": 1}  # they decide no shape
        settings = UNetConfig(**shape | undecided)
        stock = UNet2DConditionModel(**unet_arguments(settings, inputs, outputs))
    tail = set()
    if inputs == outputs:  # the reference UNet
        read = {id(parameter) for parameter in read_by_taps(stock)}
        tail = {name for name, p in stock.named_parameters() if id(p) not in read}
    filled = dict(state)
    for name, tensor in stock.state_dict().items():
        if name not in state and (".attn2.to_" in name or name in tail):
            filled[name] = torch.zeros(tensor.shape, dtype=state["conv_in.weight"].dtype)
    return filled


def outputs_of(state: Mapping[str, Tensor]) -> int:
    """Output channels; a reference UNet, which may lack conv_out, has as many as it reads."""
    if "conv_out.weight" in state:
        return len(state["conv_out.weight"])
    return state["conv_in.weight"].shape[1]


def vae_shape(state: Mapping[str, Tensor], source: Path) -> dict:
    """The fields of CodecConfig that an AutoencoderKL's tensors show. Raises UserError."""
    try:
        blocks = {name.split(".")[2] for name in state if name.startswith("encoder.down_blocks.")}
        first = "encoder.down_blocks.0.resnets."
        layers = {name.split(".")[4] for name in state if name.startswith(first)}
        widths = []
        for level in range(len(blocks)):
            widths.append(len(state[f"encoder.down_blocks.{level}.resnets.0.conv1.bias"]))
        channels = state["decoder.conv_in.weight"].shape[1]
    except KeyError as error:
        raise UserError(
            f"{source}: its {VAE}* is incomplete (no {error}); download the file again."
        ) from None
    return {"channels": channels, "widths": widths, "layers": len(layers)}


# ---- out ----


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The released layout again, with the run's codec, for the factor that the released code has.

    Raises UserError for a run with a frozen UNet or with a codec that the format has no place for.
    """
    names = {UNET: UNET, OUR_REFERENCE: REFERENCE}
    tensors = {}
    for name, tensor in state.items():
        ours, _, rest = name.partition(".")
        tensors[names[f"{ours}."] + rest] = tensor
    for ours, theirs in names.items():
        if not any(name.startswith(theirs) for name in tensors):
            raise UserError(
                f"{target}: Leffa's published format needs {ours}*, which this run did not train "
                f"(model.{ours}trained=false)."
            )
    if config.codec.name != "kl":
        raise UserError(
            f"codec.name={config.codec.name} has no place in Leffa's format, which holds an "
            "AutoencoderKL (codec.name=kl)."
        )
    folder = Path(config.runs) / config.name / "codec"
    if is_fitted(config.codec) and not folder.is_dir():
        raise UserError(f"The run's codec is not at {folder}.")
    codec = run_codec(config.codec, folder)
    vae = for_stable_diffusion(codec.vae.state_dict(), codec.scaling)
    write_mapping(target, {VAE + name: x for name, x in vae.items()} | extra | tensors)
