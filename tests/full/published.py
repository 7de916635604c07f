"""Published checkpoints at full size from random weights, each in its authors' format."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from tests.models.hub_folders import autoencoder, filled, on_meta, write_base_weights
from vton.cost.meta import on_meta as module_on_meta
from vton.models.catvton.checkpoint import in_order, numbered
from vton.models.idm_vton.checkpoint import NETWORKS
from vton.models.ladi_vton.checkpoint import PREFIXES
from vton.models.ldm import UNetStructure, autoencoder_names, autoencoder_to_ldm, to_ldm
from vton.models.stableviton.checkpoint import checkpoint_names, unused_tensors
from vton.models.unet import unet_arguments
from vton.weights.pretrained import PUBLISHED_METADATA, write_tensors

# Each takes a folder to write to and the configuration of the paper preset. It returns what `vton
# import` is given: the path, and overrides that name the base weights which the format leaves out.


def publish_gardiff(folder: Path, config) -> tuple[Path, list[str]]:
    """unet.pth of the December release, and SD 1.5, CLIP ViT-L/14 beside it."""
    given = write_base_weights(config, folder / "base")
    channels = config.codec.channels
    unet = on_meta(
        lambda: UNet2DConditionModel(**unet_arguments(config.model.unet, 2 * channels, channels))
    )
    torch.save(filled(unet, 3).state_dict(), folder / "unet.pth")
    return folder / "unet.pth", [line for line in given if not line.startswith("model.unet.")]


def publish_idm_vton(folder: Path, config) -> tuple[Path, list[str]]:
    """The authors' folder: nine subfolders and model_index.json."""
    write_base_weights(config, folder / "base")
    base, published = folder / "base", folder / "idm"
    published.mkdir()
    places = {
        "vae/vae": "vae",
        "garment_unet/unet": "unet_encoder",
        "clip": "image_encoder",
        "text/text_encoder": "text_encoder",
        "text/tokenizer": "tokenizer",
        "text_2/text_encoder": "text_encoder_2",
        "text_2/tokenizer": "tokenizer_2",
        "unet/unet": "unet",
    }
    for source, target in places.items():
        (base / source).rename(published / target)
    for weights in (published / "unet").glob("*.safetensors"):
        weights.unlink()
    tryon = module_on_meta(config).tryon.unet
    state = filled(tryon, 5).state_dict()
    write_tensors(
        published / "unet" / "diffusion_pytorch_model.safetensors", state, PUBLISHED_METADATA
    )
    arguments = unet_arguments(config.model.unet, 13, 4)
    (published / "unet" / "config.json").write_text(json.dumps(arguments))
    (published / "model_index.json").write_text(json.dumps(dict(NETWORKS)))
    shutil.rmtree(base)
    return published, []


def publish_imagdressing(folder: Path, config) -> tuple[Path, list[str]]:
    """The DeepSpeed file, and SD 1.5, ViT-H/14 and the inpainting ControlNet beside it."""
    given = write_base_weights(config, folder / "base")
    module = module_on_meta(config)
    names = {"garment_unet": "ref_unet", "projector": "proj", "adapter": "adapter_modules"}
    content = {}
    for ours, theirs in names.items():
        for name, tensor in filled(getattr(module, ours), 4).state_dict().items():
            content[f"{theirs}.{name}"] = tensor
    torch.save({"module": content}, folder / "IMAGDressing-v1_512.pt")
    return folder / "IMAGDressing-v1_512.pt", given


def publish_catvton(folder: Path, config) -> tuple[Path, list[str]]:
    """The self-attention layers of one variant, float32, and SD 1.5 inpainting and the VAE."""
    given = write_base_weights(config, folder / "base")
    state = float_state(module_on_meta(config).unet, 3)
    attention = {name: tensor for name, tensor in state.items() if ".attn1." in name}
    published = {}
    for theirs, ours in numbered(in_order(attention)).items():
        published[theirs] = attention[ours]
    path = folder / "vitonhd-16k-512" / "attention" / "model.safetensors"
    path.parent.mkdir(parents=True)
    write_tensors(path, published, PUBLISHED_METADATA)
    return path, given


def publish_leffa(folder: Path, config) -> tuple[Path, list[str]]:
    """virtual_tryon.pth: both UNets and the VAE in float32."""
    module = module_on_meta(config)
    content = {}
    networks = {
        "vae": autoencoder(config.codec),
        "unet_encoder": module.reference_unet,
        "unet": module.unet,
    }
    for seed, (name, network) in enumerate(networks.items()):
        for key, tensor in float_state(network, seed).items():
            content[f"{name}.{key}"] = tensor
    torch.save(content, folder / "virtual_tryon.pth")
    return folder / "virtual_tryon.pth", []


def publish_ladi_vton(folder: Path, config) -> tuple[Path, list[str]]:
    """The three files of the release, float32; SD 2 inpainting's VAE and text encoder, and CLIP
    ViT-H/14 beside them.
    """
    given = write_base_weights(config, folder / "base")
    module = module_on_meta(config)
    for kind, prefix in PREFIXES.items():
        network = module.get_submodule(prefix.rstrip("."))
        torch.save(float_state(network, 4), folder / f"{kind}_vitonhd.pth")
    return folder, [line for line in given if not line.startswith("model.unet.")]


def publish_stableviton(folder: Path, config) -> tuple[Path, list[str]]:
    """One checkpoint in latent diffusion's names, the VAE and the schedule's buffers within."""
    module = module_on_meta(config)
    networks = {}
    for name, network in module.networks().items():
        if name != "codec":
            for key, tensor in float_state(network, 5).items():
                networks[f"{name}.{key}"] = tensor
    unet = config.model.unet
    structure = UNetStructure(unet.layers, tuple(unet.attention))
    content = to_ldm(networks, checkpoint_names(structure))
    vae = autoencoder(config.codec)
    names = autoencoder_names(len(vae.config.block_out_channels), vae.config.layers_per_block)
    for name, tensor in autoencoder_to_ldm(float_state(vae, 6), names).items():
        content[f"first_stage_model.{name}"] = tensor
    content |= unused_tensors(networks, config.objective)
    torch.save({"state_dict": content}, folder / "VITONHD.ckpt")
    return folder / "VITONHD.ckpt", []


def start_weights(folder: Path, config) -> list[str]:
    """What training starts from, as the overrides that name it."""
    if config.model.name != "stableviton":
        return write_base_weights(config, folder / "base")
    path, _ = publish_stableviton(folder, config)  # UNet and encoder start from one file
    return [f"model.pretrained={path}", f"codec.pretrained={path}"]


def float_state(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random weights of a network of the meta device, float32."""
    state = filled(network, seed).state_dict()
    return {name: tensor.float() for name, tensor in state.items()}


# The writer, the settings that the files are of, and GiB that sampling may take at most.
PUBLISHED = {
    "gardiff": (publish_gardiff, ["model.mode=release"], 8),
    "imagdressing": (publish_imagdressing, [], 8),
    "idm_vton": (publish_idm_vton, [], 20),
    "catvton": (publish_catvton, [], 8),
    "leffa": (publish_leffa, [], 8),
    "ladi_vton": (publish_ladi_vton, [], 8),
    "stableviton": (publish_stableviton, [], 8),
}
