"""LaDI-VTON's networks as configured, with the weights that they start from."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from vton.config import ConfigError
from vton.errors import UserError
from vton.models.codecs import Codec
from vton.models.encoders import ClipImageEncoder, text_encoder
from vton.models.ladi_vton.config import AdapterConfig, EmascConfig, LadiVtonConfig
from vton.models.ladi_vton.emasc import EMASC, has_skips, skip_channels
from vton.models.ladi_vton.network import LadiUNet, input_channels
from vton.models.ladi_vton.words import InversionAdapter, Prompter
from vton.models.settings import UNetConfig
from vton.models.unet import build_unet, widen_input
from vton.weights.pretrained import from_pretrained, load_state, read_weights
from vton.weights.unfilled import unfilled


def build_network(model: LadiVtonConfig, latent_channels: int, aspect: float) -> LadiUNet:
    """aspect: height / width of the pictures. Raises UserError."""
    inputs = input_channels(latent_channels, model.garment_input == "warped")
    if model.unet.pretrained:
        unet = load_base_unet(model.unet, inputs, latent_channels)
    else:
        unet = build_unet(model.unet, inputs, latent_channels, key="model.unet", aspect=aspect)
    return LadiUNet(unet, model.garment_rate)


def load_base_unet(config: UNetConfig, inputs: int, latent_channels: int) -> UNet2DConditionModel:
    """The inpainting UNet that `config.pretrained` names, widened.

    Raises UserError if it is no inpainting UNet or has another context width.
    """
    base = from_pretrained(
        UNet2DConditionModel,
        config.pretrained,
        key="model.unet.pretrained",
        trained=True,
        subfolder=config.subfolder,
    )
    expected = (2 * latent_channels + 1, config.context)
    found = (base.config.in_channels, base.config.cross_attention_dim)
    if found != expected:
        raise UserError(
            f"model.unet.pretrained={config.pretrained} reads {found[0]} channels and tokens of "
            f"width {found[1]}; LaDI-VTON starts from an inpainting UNet of {expected[0]} channels "
            f"and model.unet.context={expected[1]}."
        )
    with unfilled():
        unet = UNet2DConditionModel.from_config(base.config, in_channels=inputs)
    state = dict(base.state_dict())
    state["conv_in.weight"] = widen_base(state["conv_in.weight"], inputs)
    load_state(unet, state, config.pretrained, torch.float32)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def widen_base(weight: Tensor, inputs: int) -> Tensor:
    """conv_in of an inpainting UNet for `inputs` channels, of which the first are its own.

    The others start at zero: the widened UNet computes what the base did, whatever they hold.
    """
    return widen_input(weight, inputs, {channel: channel for channel in range(weight.shape[1])})


def build_prompter(model: LadiVtonConfig, dtype: torch.dtype) -> Prompter:
    """dtype: of a pretrained text encoder.

    Raises ConfigError if a prompt does not hold all words.
    """
    prompter = Prompter(text_encoder(model.text, dtype=dtype), model.adapter.words)
    if model.prompt == "words" and not prompter.fits():
        raise ConfigError(
            f"model.adapter.words={model.adapter.words} do not fit into the prompt, which has "
            f"model.text.length={prompter.text.length} tokens; use fewer words."
        )
    return prompter


def build_adapter(
    config: AdapterConfig, clip: ClipImageEncoder, text_width: int
) -> InversionAdapter:
    """Raises UserError for a file of another shape."""
    adapter = InversionAdapter(
        clip.tower.config,
        output=config.words * text_width,
        words=config.words,
        layers=config.layers,
        dropout=config.dropout,
    )
    start_from(adapter, config.pretrained)
    return adapter


def build_emasc(config: EmascConfig, codec: Codec) -> EMASC:
    """Raises ConfigError for a codec that has nothing to lead around, UserError for a file of
    another shape.
    """
    if not has_skips(codec):
        raise ConfigError(
            "codec.name=identity keeps every pixel, so that EMASC has nothing to bring back: set "
            "model.emasc.kind=none, or codec.name=kl."
        )
    emasc = EMASC(skip_channels(codec), config.kind)
    start_from(emasc, config.pretrained)
    return emasc


def start_from(network: nn.Module, file: str) -> None:
    """Load a file in the released format; "" leaves the network as it is."""
    if file and next(network.parameters()).device != torch.device("meta"):
        path = Path(file).expanduser()
        load_state(network, read_weights(path), path)
