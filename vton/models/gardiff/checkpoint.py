"""Starting GarDiff from a public text-to-image UNet, whose first layer has fewer input channels."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vton.models.pretrained import WeightsError, from_pretrained, load_state
from vton.models.settings import UNetConfig


def load_base_unet(config: UNetConfig, latent_channels: int) -> UNet2DConditionModel:
    """The base UNet widened to [x_t, x_w, x_a]. Raises WeightsError if it is not a 4- or 9-channel UNet."""
    base = from_pretrained(
        UNet2DConditionModel, config.pretrained, key="model.unet.pretrained", subfolder=config.subfolder
    )
    if base.config.cross_attention_dim != config.context:
        raise WeightsError(
            f"model.unet.pretrained={config.pretrained} has context width {base.config.cross_attention_dim}, "
            f"model.unet.context is {config.context}."
        )
    unet = UNet2DConditionModel.from_config(dict(base.config) | {"in_channels": 3 * latent_channels})
    state = base.state_dict()
    state["conv_in.weight"] = widen(state["conv_in.weight"], latent_channels)
    load_state(unet, state, config.pretrained)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def widen(weight: Tensor, channels: int) -> Tensor:
    """conv_in (C, 4 or 9, 3, 3) to (C, 12, 3, 3) in the order x_t, x_w, x_a.

    x_t keeps the base's weights. An inpainting UNet's masked-image channels (5-8) become x_a; its mask channel (4) is
    dropped. Everything else starts at zero, so that the widened network computes what the base did.
    """
    if weight.shape[1] not in (channels, 2 * channels + 1):
        raise WeightsError(
            f"conv_in.weight has {weight.shape[1]} input channels, expected {channels} or its inpainting form."
        )
    wide = torch.zeros(weight.shape[0], 3 * channels, *weight.shape[2:], dtype=weight.dtype)
    wide[:, :channels] = weight[:, :channels]
    if weight.shape[1] == 2 * channels + 1:
        wide[:, 2 * channels :] = weight[:, channels + 1 :]
    return wide
