"""IMAGDressing-v1's networks as configured, with the weights that the paper starts from."""

from __future__ import annotations

import math
from pathlib import Path

from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

from vton.config import ConfigError
from vton.models.imagdressing.config import ControlConfig, ProjectorConfig
from vton.models.imagdressing.control import Control
from vton.models.resampler import Resampler
from vton.models.settings import UNetConfig
from vton.models.unet import build_unet, execution_order
from vton.weights.pretrained import from_pretrained, hub_folder, load_state, read_ip_adapter


def build_projector(config: ProjectorConfig, clip_width: int, context: int) -> Resampler:
    """CLIP states to tokens of width `context`. Raises WeightsError."""
    projector = Resampler(
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        head_width=config.head_width,
        queries=config.queries,
        input_width=clip_width,
        output_width=context,
        factor=config.feed_forward,
    )
    if config.pretrained:
        file = Path(config.file)
        folder = hub_folder(
            config.pretrained, str(file.parent), "model.projector.pretrained", only=file.name
        )
        load_state(projector, read_ip_adapter(folder / file.name)["image_proj"], folder / file.name)
    return projector


def build_dressing_unet(config: UNetConfig, channels: int, aspect: float) -> UNet2DConditionModel:
    """The text-to-image UNet over latents of `channels`; pictures of height / width = `aspect`.
    Raises WeightsError.

    From scratch its first layer starts quiet. Noisy latents are all that it reads, and at full size
    they drown what ControlNets and garment bring, for a thousand steps of a short training.
    """
    unet = build_unet(config, channels, channels, "model.unet", aspect)
    if not config.pretrained:
        unet.conv_in.weight.data *= 0.1
    return unet


def build_control(
    config: ControlConfig, unet: UNet2DConditionModel, factor: int, key: str, fresh: bool = False
) -> Control:
    """A ControlNet whose pictures are `factor` times the latents' size. Raises ConfigError if they
    cannot be.

    fresh: `unet` is not pretrained, so that a ControlNet that is trained along need not start at
    zero to protect it.
    """
    if config.pretrained:
        net = from_pretrained(
            ControlNetModel, config.pretrained, key=f"{key}.pretrained", subfolder=config.subfolder
        )
    else:
        widths = tuple(config.embedding)[: halvings(factor, config, key) + 1]
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
        for name in execution_order(net):  # from_unet copies weights, and a position code has none
            net.get_submodule(name).pos_embed = unet.get_submodule(name).pos_embed
        if fresh and config.trained:
            start_awake(net)
    control = Control(net, config.scale, config.start, config.end)
    if control.factor != factor:
        raise ConfigError(
            f"{key}.pretrained={config.pretrained} takes pictures of {control.factor} times the latents' size, but the "
            f"codec's factor is {factor}."
        )
    return control


def start_awake(net: ControlNetModel) -> None:
    """Outputs that do not start at zero, and convolutions of the picture that keep its size.

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
    if 2**count != factor or count >= len(config.embedding):
        raise ConfigError(
            f"{key}.embedding has {len(config.embedding)} widths, which fit codec factors 1 to "
            f"{2 ** (len(config.embedding) - 1)} that are powers of two; the codec's factor is {factor}."
        )
    return count
