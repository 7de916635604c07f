"""IDM-VTON's two UNets as configured, with the weights that the paper starts from.

TryonNet: a text-to-image or inpainting SDXL UNet whose first layer is widened, plus an IP-Adapter
file. GarmentNet: the SDXL base UNet without its added embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vton.errors import UserError
from vton.models.idm_vton.config import IdmVtonConfig, ImagePromptConfig
from vton.models.idm_vton.network import TryonNet
from vton.models.resampler import build_resampler
from vton.models.settings import UNetConfig
from vton.models.unet import build_unet, numbered_processors, read_unet_arguments, widen_input
from vton.weights.pretrained import (
    hub_folder,
    load_state,
    network_folder,
    read_ip_adapter,
    read_weights_folder,
)
from vton.weights.unfilled import read_later, unfilled


def build_tryon(
    config: IdmVtonConfig,
    channels: int,
    clip_width: int,
    aspect: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> TryonNet:
    """TryonNet over latents of `channels`, reading CLIP states of `clip_width`.

    aspect: height / width of the pictures, for `unet.positions`; dtype: of pretrained UNet weights.
    Raises UserError.
    """
    prompt = config.image_prompt
    if not config.unet.pretrained:
        inputs = 3 * channels + 1  # x_t, mask, masked person, pose
        unet = build_unet(config.unet, inputs, channels, key="model.unet", aspect=aspect)
        tryon = around(unet, config, clip_width)
    else:
        with unfilled() as left:
            tryon = load_tryon(config, channels, clip_width, dtype)
        if read_later(trained=True):
            return tryon
        if left.among(tryon) and not prompt.pretrained:  # the image prompt's, which start freshly
            tryon = load_tryon(config, channels, clip_width, dtype)
    if prompt.enabled and prompt.pretrained:
        load_image_prompt(tryon, image_prompt_file(prompt))
    return tryon


def around(unet: UNet2DConditionModel, config: IdmVtonConfig, clip_width: int) -> TryonNet:
    """TryonNet with a fresh Resampler and fresh image keys and values where it has any."""
    resampler = None
    if config.image_prompt.enabled:
        resampler = build_resampler(config.resampler, clip_width, config.unet.context)
    return TryonNet(unet, resampler, config.image_prompt.scale, config.null_features)


def load_tryon(
    config: IdmVtonConfig, channels: int, clip_width: int, dtype: torch.dtype
) -> TryonNet:
    """TryonNet with the UNet that `unet.pretrained` names, in dtype. Raises UserError."""
    source, subfolder = config.unet.pretrained, config.unet.subfolder
    folder = network_folder(source, subfolder, "model.unet.pretrained")
    inputs = 3 * channels + 1
    unet = empty_unet(folder, config.unet, "model.unet", in_channels=inputs, out_channels=channels)
    tryon = around(unet, config, clip_width)
    if not read_later(trained=True):
        load_base(tryon, read_weights_folder(folder, dtype), channels, folder, dtype)
    return tryon


def build_garment_net(
    config: UNetConfig, channels: int, aspect: float = 1.0, dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """GarmentNet over latents of `channels`; aspect as in `build_tryon`; pretrained weights in
    dtype. Raises UserError.
    """
    key = "model.garment_unet"
    if not config.pretrained:
        return build_unet(config, channels, channels, key=key, aspect=aspect)
    folder = network_folder(config.pretrained, config.subfolder, f"{key}.pretrained")
    with unfilled():
        unet = empty_unet(
            folder,
            config,
            key,
            in_channels=channels,
            out_channels=channels,
            addition_embed_type=None,
        )
    if not read_later(config.trained):
        state = without_added_embedding(unet, read_weights_folder(folder, dtype))
        load_state(unet, state, folder, dtype)
    return unet


def empty_unet(folder: Path, config: UNetConfig, key: str, **changed) -> UNet2DConditionModel:
    """A fresh UNet of the shape in folder/config.json, with some arguments changed."""
    arguments = read_unet_arguments(folder) | changed
    context = arguments["cross_attention_dim"]
    if context != config.context:
        raise UserError(
            f"{folder}/config.json has context width {context}, {key}.context is {config.context}."
        )
    unet = UNet2DConditionModel(**arguments)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def without_added_embedding(
    unet: UNet2DConditionModel, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """GarmentNet's weights without the embedding of pooled text, which its configuration turns off.

    Its published file holds it nevertheless.
    """
    if unet.config.addition_embed_type is not None:
        return state
    return {name: x for name, x in state.items() if not name.startswith("add_embedding.")}


def load_base(
    tryon: TryonNet,
    state: dict[str, Tensor],
    channels: int,
    source: Path | str,
    dtype: torch.dtype,
) -> None:
    """A published TryonNet, or a stock UNet whose lack of image-prompt weights is no error.

    Without them the Resampler stays as it was drawn, and image keys and values start as copies of
    the text's. A TryonNet without image prompt leaves a published one's aside.
    """
    own = tryon.unet.state_dict()
    state = {name: x for name, x in state.items() if name in own or not of_image_prompt(name)}
    if "conv_in.weight" in state:
        state["conv_in.weight"] = widen_to_tryon(state["conv_in.weight"], channels, source)
    if not any(map(of_image_prompt, state)):
        for name, tensor in own.items():
            text = name.replace(".processor.to_k_ip.", ".to_k.")
            text = text.replace(".processor.to_v_ip.", ".to_v.")
            if text != name and text in state:
                state[name] = state[text].clone()
            elif of_image_prompt(name):
                state[name] = tensor
    load_state(tryon.unet, state, source, dtype)


def of_image_prompt(name: str) -> bool:
    return name.startswith("encoder_hid_proj.") or ".processor.to_" in name


def widen_to_tryon(weight: Tensor, channels: int, source: Path | str) -> Tensor:
    """conv_in of a c, 2c + 1 or 3c + 1 channel UNet as one over x_t, mask, masked person and pose.

    c = `channels`. The inpainting UNet has the first three in this order already; what is absent
    starts at zero. Raises UserError.
    """
    inputs = weight.shape[1]
    text_to_image, inpainting, tryon = channels, 2 * channels + 1, 3 * channels + 1
    if inputs not in (text_to_image, inpainting, tryon):
        raise UserError(
            f"{source}: conv_in.weight has {inputs} input channels; expected {text_to_image} (text "
            f"to image), {inpainting} (inpainting) or {tryon} (IDM-VTON)."
        )
    return widen_input(weight, tryon, {channel: channel for channel in range(inputs)})


def image_prompt_file(config: ImagePromptConfig) -> Path:
    """The IP-Adapter file that the configuration names."""
    file = Path(config.file)
    key = "model.image_prompt.pretrained"
    return hub_folder(config.pretrained, str(file.parent), key, only=[file.name]) / file.name


def load_image_prompt(tryon: TryonNet, path: Path) -> None:
    """Resampler and image keys/values from an IP-Adapter file. Raises UserError."""
    sections = read_ip_adapter(path)
    load_state(tryon.unet.encoder_hid_proj, sections["image_proj"], path)
    load_state(numbered_processors(tryon.unet), sections["ip_adapter"], path)
