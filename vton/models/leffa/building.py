"""Leffa's two UNets as configured, and the weights that training starts from.

The paper starts both from Stable Diffusion 1.5's inpainting UNet. It reads 9 channels: latents,
mask, masked latents. The generative UNet's first layer is widened by zeros for the DensePose
picture, the reference UNet keeps the first four.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vton.errors import UserError
from vton.models.leffa.network import POSE_CHANNELS
from vton.models.settings import UNetConfig
from vton.models.unet import build_unet, read_unet_arguments, widen_input
from vton.weights.pretrained import load_state, network_folder, read_weights_folder
from vton.weights.unfilled import read_later, unfilled


def build_generative(
    config: UNetConfig, channels: int, aspect: float = 1.0
) -> UNet2DConditionModel:
    """The UNet over [z_t, mask, masked person, DensePose], of latents of `channels`.

    aspect: height / width of the pictures, for `unet.positions`. Raises UserError.
    """
    return _build(config, 2 * channels + 1 + POSE_CHANNELS, channels, "model.unet", aspect)


def build_reference(config: UNetConfig, channels: int, aspect: float = 1.0) -> UNet2DConditionModel:
    """The UNet over the garment's latents; aspect as in `build_generative`. Raises UserError."""
    return _build(config, channels, channels, "model.reference_unet", aspect)


def _build(
    config: UNetConfig, inputs: int, channels: int, key: str, aspect: float
) -> UNet2DConditionModel:
    """A UNet from `inputs` to `channels` channels: fresh, or from `config.pretrained`, whose first
    convolution is widened. key: of its settings, for messages.
    """
    if not config.pretrained:
        return build_unet(config, inputs, channels, key, aspect)
    folder = network_folder(config.pretrained, config.subfolder, f"{key}.pretrained")
    arguments = read_unet_arguments(folder)
    with unfilled():
        unet = UNet2DConditionModel(**arguments | {"in_channels": inputs, "out_channels": channels})
    if not read_later(config.trained):
        state = read_weights_folder(folder, torch.float32)
        if "conv_in.weight" in state:
            weight = state["conv_in.weight"]
            state["conv_in.weight"] = with_inputs(weight, inputs, channels, folder)
        load_state(unet, state, folder, torch.float32)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def with_inputs(weight: Tensor, inputs: int, channels: int, source: Path | str) -> Tensor:
    """conv_in of a UNet of c, 2c + 1 or 2c + 4 input channels as one of `inputs`.

    c = `channels`. All of them begin with the latents, the longer ones go on with mask, masked
    latents and pose: what is absent starts at zero, what is too much goes. Raises UserError.
    """
    text_to_image, inpainting = channels, 2 * channels + 1
    generative = inpainting + POSE_CHANNELS
    found = weight.shape[1]
    if found not in (text_to_image, inpainting, generative):
        raise UserError(
            f"{source}: conv_in.weight has {found} input channels; expected {text_to_image} (text "
            f"to image), {inpainting} (inpainting) or {generative} (Leffa)."
        )
    kept = weight[:, : min(found, inputs)]
    return widen_input(kept, inputs, {channel: channel for channel in range(kept.shape[1])})
