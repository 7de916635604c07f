"""StableVITON's networks as configured, with the weights that they start from.

All start from one checkpoint file: the public code's own, or Paint-by-Example's, whose UNet is
widened by the DensePose picture and whose encoder half the spatial encoder begins as a copy of.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from vton.errors import UserError
from vton.models.settings import ClipConfig
from vton.models.stableviton.checkpoint import read_sections, widened_unet
from vton.models.stableviton.config import StableVitonConfig
from vton.models.stableviton.network import (
    AddedFeature,
    ContextToken,
    GarmentEmbedding,
    SpatialEncoder,
    ZeroCrossAttention,
)
from vton.models.unet import build_unet
from vton.weights.pretrained import below, copy_all, load_state
from vton.weights.unfilled import read_later, unfilled


class Networks(NamedTuple):
    unet: UNet2DConditionModel
    embedding: GarmentEmbedding
    token: ContextToken
    encoder: SpatialEncoder | None  # None: the CLIP token is all of the garment
    garment_blocks: nn.ModuleDict  # by position, which is their names

    def named(self) -> dict[str, nn.Module]:
        networks = {
            "unet": self.unet,
            "clip": self.embedding,
            "token": self.token,
            "encoder": self.encoder,
            "garment_blocks": self.garment_blocks,
        }
        return {name: network for name, network in networks.items() if network is not None}


def build_networks(
    model: StableVitonConfig,
    channels: int,
    aspect: float,
    frozen_dtype: torch.dtype = torch.float32,
) -> Networks:
    """All networks over latents of `channels`, with weights where the configuration names a file.

    aspect: height / width of the pictures, for `unet.positions`; frozen_dtype: of weights from the
    file that are not trained. Raises UserError.
    """
    if not model.pretrained:
        return new_networks(model, channels, aspect)
    path = Path(model.pretrained).expanduser()
    if not path.is_file():
        raise UserError(
            f"model.pretrained={path}: no such file. Give the checkpoint to start from, or "
            "model.pretrained='' to start from scratch."
        )
    with unfilled():
        networks = new_networks(model, channels, aspect)
    state = widened_unet(read_sections(path).networks, 3 * channels + 1, path)
    has_encoder = any(name.startswith("encoder.") for name in state)
    if not has_encoder and not read_later(trained=True):
        networks = new_networks(model, channels, aspect)  # what the file lacks starts freshly
        state = from_paint_by_example(networks, state)

    trained = {"unet": model.unet.trained, "clip": model.clip.trained}
    for name, network in networks.named().items():
        is_trained = trained.get(name, True)
        if not read_later(is_trained):
            dtype = torch.float32 if is_trained else frozen_dtype
            part = copy_all(below(state, f"{name}."), dtype)
            load_state(network, part, f"{path} ({name})", dtype)
    return networks


def new_networks(model: StableVitonConfig, channels: int, aspect: float) -> Networks:
    """All networks of the configured shapes. channels: of latents; aspect: height / width."""
    networks = Networks(
        unet=new_unet(model, channels, aspect),
        embedding=new_embedding(model.clip, model.mapper_layers, model.mapper_heads),
        token=ContextToken(model.clip.width, model.unet.context),
        encoder=None,
        garment_blocks=nn.ModuleDict(),
    )
    if model.garment != "token":
        encoder = SpatialEncoder(new_unet(model, channels, aspect), channels)
        networks = networks._replace(encoder=encoder, garment_blocks=new_blocks(model, aspect))
    return networks


# ---- fresh networks ----


def new_unet(model: StableVitonConfig, channels: int, aspect: float) -> UNet2DConditionModel:
    inputs = 3 * channels + 1  # z_t, agnostic, keep mask, DensePose
    return build_unet(model.unet, inputs, channels, key="model.unet", aspect=aspect)


def new_embedding(config: ClipConfig, layers: int, heads: int) -> GarmentEmbedding:
    """The garment's encoder. layers, heads: of the mapper behind CLIP's tower."""
    shape = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        patch_size=config.patch,
        image_size=config.image_size,
        hidden_act=config.activation,
    )
    return GarmentEmbedding(CLIPVisionModel(shape), layers, heads)


def new_blocks(model: StableVitonConfig, aspect: float) -> nn.ModuleDict:
    """What reads the garment before the decoder's blocks, by position: 0 is the first block of the
    second lowest level.
    """
    unet, blocks = model.unet, nn.ModuleDict()
    for place in places(unet.widths, unet.layers):
        if not model.levels[place.level]:
            continue
        if model.garment == "added":
            block = AddedFeature(place.width, place.garment_width)
        else:
            heads = unet.heads[place.level]
            block = ZeroCrossAttention(
                place.position, place.width, place.garment_width, heads, unet.groups
            )
            if unet.gradient_checkpointing:
                block.transformer.enable_gradient_checkpointing()
            if unet.positions:
                block.add_positions(unet.positions, aspect)
        blocks[str(place.position)] = block
    return blocks


class Place(NamedTuple):
    """Where the decoder may read the garment."""

    position: int
    level: int
    width: int  # of the decoder's feature
    garment_width: int  # of the spatial encoder's, which is that of the skip connection


def places(widths: tuple[int, ...], layers: int) -> list[Place]:
    """Before each block of the decoder, the lowest level's left out; in order of execution."""
    found = []
    for level in reversed(range(len(widths) - 1)):
        for j in range(layers + 1):
            width = widths[level + 1] if j == 0 else widths[level]
            garment_width = widths[level] if j < layers else widths[max(level - 1, 0)]
            found.append(Place(len(found), level, width, garment_width))
    return found


# ---- weights to start from ----


def from_paint_by_example(networks: Networks, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """StableVITON's start from Paint-by-Example's tensors, as far as it is known.

    The spatial encoder is a copy of the UNet's encoder half whose hint is zero; what reads it stays
    as it was initialised.
    """
    state = dict(state)
    if networks.encoder is not None:
        for name, tensor in networks.encoder.state_dict().items():
            state[f"encoder.{name}"] = state.get(f"unet.{name}", tensor)
    for name, tensor in networks.garment_blocks.state_dict().items():
        state[f"garment_blocks.{name}"] = tensor
    return state
