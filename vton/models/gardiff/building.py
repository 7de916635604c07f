"""GarDiff's networks as configured, with the weights that they start from."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vton.config import ConfigError
from vton.diffusion.denoiser import Denoiser
from vton.errors import UserError
from vton.models.gardiff.checkpoint import load_adapter
from vton.models.gardiff.config import GarDiffConfig
from vton.models.gardiff.network import GarDiffUNet
from vton.models.gardiff.released import DecoupledUNet, LegacyUNet, ReleasedUNet, check_token_width
from vton.models.settings import UNetConfig
from vton.models.unet import build_unet, widen_input
from vton.weights.pretrained import from_pretrained, load_state
from vton.weights.unfilled import unfilled

# How many groups of latent channels a mode's UNet reads, x_t first, and which of them an inpainting
# base knows as its masked image.
INPUTS = {"paper": (3, 2), "release": (2, 1), "decoupled": (2, 1), "legacy12": (3, 1)}


def build_network(
    model: GarDiffConfig, latent_shape: tuple[int, int, int], clip_width: int, clip_projection: int
) -> Denoiser:
    """The mode's network over latents (c, h, w), reading CLIP states and summaries of these widths.

    Raises UserError, and ConfigError where the picture's size does not fit the mode.
    """
    channels, height, width = latent_shape
    if model.mode in ("release", "legacy12"):
        check_token_width((height, width), model.unet.context)
    unet = build_base_unet(model, channels, aspect=height / width)
    if model.mode == "release":
        return ReleasedUNet(unet, learned_begin=model.text.trained)
    if model.mode == "legacy12":
        return LegacyUNet(unet, learned_begin=model.text.trained, blend_steps=model.blend_steps)
    if model.mode == "decoupled":
        settings = model.decoupled
        network = DecoupledUNet(unet, clip_projection, settings.tokens, settings.scale)
        if settings.pretrained:
            load_adapter(network, Path(settings.pretrained))
        return network
    by_channel = model.vae_tokens == "channels"
    if not by_channel and (height % 2 or width % 2):
        raise ConfigError(
            f"model.vae_tokens=patches needs latents of even height and width; data.size makes "
            f"{height}x{width}."
        )
    return GarDiffUNet(
        unet,
        clip_width=clip_width if model.clip_tokens == "all" else clip_projection,
        vae_width=(height // 2) * (width // 2) if by_channel else 4 * channels,
        adapter=model.adapter,
        mask_branches=model.mask_branches,
        branches=model.branches,
        vae_tokens=model.vae_tokens,
    )


def build_base_unet(model: GarDiffConfig, channels: int, aspect: float) -> UNet2DConditionModel:
    groups, person = INPUTS[model.mode]
    if model.unet.pretrained:
        return load_base_unet(model.unet, channels, groups, person)
    return build_unet(model.unet, groups * channels, channels, key="model.unet", aspect=aspect)


def load_base_unet(
    config: UNetConfig, latent_channels: int, groups: int = 3, person: int = 2
) -> UNet2DConditionModel:
    """The base UNet widened to `groups` times the latents' channels, as `widen` does.

    Raises UserError if it is not a 4- or 9-channel UNet or has another context width.
    """
    base = from_pretrained(
        UNet2DConditionModel,
        config.pretrained,
        key="model.unet.pretrained",
        trained=True,
        subfolder=config.subfolder,
    )
    context = base.config.cross_attention_dim
    if context != config.context:
        raise UserError(
            f"model.unet.pretrained={config.pretrained} has context width {context}, "
            f"model.unet.context is {config.context}."
        )
    with unfilled():  # by keyword: what config.json left out is dropped from the mapping
        unet = UNet2DConditionModel.from_config(base.config, in_channels=groups * latent_channels)
    state = dict(base.state_dict())
    weight, source = state["conv_in.weight"], f"model.unet.pretrained={config.pretrained}"
    state["conv_in.weight"] = widen(weight, latent_channels, groups, person, source)
    load_state(unet, state, config.pretrained, torch.float32)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def widen(
    weight: Tensor, channels: int, groups: int = 3, person: int = 2, source: str = "the UNet"
) -> Tensor:
    """conv_in (C, 4 or 9, 3, 3) to (C, 4 groups, 3, 3); the paper's groups are x_t, x_w, x_a.

    x_t keeps the base's weights. An inpainting UNet's masked-image channels (5-8) go to group
    number `person`, its mask channel (4) is dropped. Everything else starts at zero, so that the
    widened network computes what the base did.
    """
    inputs = weight.shape[1]
    if inputs not in (channels, 2 * channels + 1):
        raise UserError(
            f"{source}: conv_in.weight has {inputs} input channels; expected {channels} (text to "
            f"image) or {2 * channels + 1} (inpainting)."
        )
    places = {channel: channel for channel in range(channels)}
    if inputs > channels:
        for channel in range(channels):
            places[channels + 1 + channel] = person * channels + channel
    return widen_input(weight, groups * channels, places)
