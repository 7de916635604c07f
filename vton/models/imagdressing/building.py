"""IMAGDressing-v1's networks as configured, with the weights that the paper starts from."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

from vton.config import ConfigError
from vton.models.imagdressing.config import ControlConfig, ProjectorConfig
from vton.models.imagdressing.control import Control
from vton.models.resampler import Resampler, build_resampler
from vton.models.settings import UNetConfig
from vton.models.unet import build_unet, execution_order
from vton.weights.pretrained import from_pretrained, hub_folder, load_state, read_ip_adapter


def build_projector(config: ProjectorConfig, clip_width: int, context: int) -> Resampler:
    """CLIP states to tokens of width `context`. Raises UserError."""
    projector = build_resampler(config, clip_width, context)
    if config.pretrained:
        file = Path(config.file)
        key = "model.projector.pretrained"
        path = hub_folder(config.pretrained, str(file.parent), key, only=[file.name]) / file.name
        load_state(projector, read_ip_adapter(path)["image_proj"], path)
    return projector


def build_dressing_unet(
    config: UNetConfig, channels: int, aspect: float, dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """The text-to-image UNet over latents of `channels`, for pictures of height / width = `aspect`;
    pretrained weights in dtype.

    From scratch its first layer starts quiet. Noisy latents are all that it reads, and at full size
    they drown what ControlNets and garment bring, for a thousand steps of a short training. Raises
    UserError.
    """
    unet = build_unet(config, channels, channels, "model.unet", aspect, dtype)
    if not config.pretrained:
        unet.conv_in.weight.data *= 0.1
    return unet


def build_control(
    config: ControlConfig,
    unet: UNet2DConditionModel,
    factor: int,
    key: str,
    fresh: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Control:
    """A ControlNet whose pictures are `factor` times the latents' size; pretrained weights in
    dtype.

    fresh: `unet` is not pretrained, so that a ControlNet that is trained along need not start at
    zero to protect it. Raises ConfigError if the pictures cannot be of that size.
    """
    if config.pretrained:
        net = from_pretrained(
            ControlNetModel,
            config.pretrained,
            key=f"{key}.pretrained",
            dtype=dtype,
            trained=config.trained,
            subfolder=config.subfolder,
        )
    else:
        net = copied_encoder(config, unet, halvings(factor, config, key))
        if fresh and config.trained:
            init_nonzero_outputs(net)
    control = Control(net, config.scale, config.start, config.end)
    if control.factor != factor:
        raise ConfigError(
            f"{key}.pretrained={config.pretrained} takes pictures of {control.factor} times the "
            f"latents' size, but the codec's factor is {factor}."
        )
    return control


def copied_encoder(
    config: ControlConfig, unet: UNet2DConditionModel, halvings: int
) -> ControlNetModel:
    """A ControlNet that starts as a copy of the UNet's encoder."""
    widths = tuple(config.embedding)[: halvings + 1]
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    for name in execution_order(net):  # from_unet copies weights, and a position code has none
        net.get_submodule(name).pos_embed = unet.get_submodule(name).pos_embed
    return net


def init_nonzero_outputs(net: ControlNetModel) -> None:
    """Let a ControlNet's outputs start away from zero, and its picture keep its size on the way.

    With PyTorch's own initialisation each convolution and SiLU leaves about 0.3 of a small signal.
    """
    for layer in net.controlnet_cond_embedding.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        layer.reset_parameters()


def halvings(factor: int, config: ControlConfig, key: str) -> int:
    """How often the picture is halved on its way to latent size."""
    count = int(math.log2(factor))
    most = len(config.embedding) - 1
    if 2**count != factor or count > most:
        raise ConfigError(
            f"{key}.embedding has {len(config.embedding)} widths, which fit codec factors 1 to "
            f"{2**most} that are powers of two; the codec's factor is {factor}."
        )
    return count
