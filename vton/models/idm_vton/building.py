"""IDM-VTON's two UNets as configured, with the weights that the paper starts from.

TryonNet: a text-to-image or inpainting SDXL UNet whose first layer is widened, plus an IP-Adapter
file. GarmentNet: the SDXL base UNet without its added embedding.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from vton.models.idm_vton.config import IdmVtonConfig
from vton.models.idm_vton.network import TryonNet
from vton.models.resampler import Resampler
from vton.models.settings import UNetConfig
from vton.models.unet import attention_names, build_unet
from vton.weights.pretrained import (
    WeightsError,
    hub_folder,
    load_state,
    read_ip_adapter,
    read_json,
    read_weights_folder,
)


def build_tryon(
    config: IdmVtonConfig, channels: int, clip_width: int, aspect: float = 1.0
) -> TryonNet:
    """TryonNet over latents of `channels`, reading CLIP states of `clip_width`. Raises
    WeightsError.

    aspect: height / width of the pictures, for `unet.positions`.
    """
    inputs = 3 * channels + 1
    resampler = build_resampler(config, clip_width) if config.image_prompt.enabled else None
    source = config.unet.pretrained
    if not source:
        unet = build_unet(config.unet, inputs, channels, key="model.unet", aspect=aspect)
        tryon = TryonNet(unet, resampler, config.image_prompt.scale, config.null_features)
    else:
        folder = hub_folder(source, config.unet.subfolder, "model.unet.pretrained")
        unet = unet_from(
            folder, config.unet, "model.unet", in_channels=inputs, out_channels=channels
        )
        tryon = TryonNet(unet, resampler, config.image_prompt.scale, config.null_features)
        load_base(tryon, read_weights_folder(folder), channels, folder)
    if config.image_prompt.enabled and config.image_prompt.pretrained:
        load_image_prompt(tryon, image_prompt_file(config))
    return tryon


def build_resampler(config: IdmVtonConfig, clip_width: int) -> Resampler:
    """CLIP states of `clip_width` to image tokens, freshly."""
    return Resampler(
        width=config.resampler.width,
        depth=config.resampler.depth,
        heads=config.resampler.heads,
        head_width=config.resampler.head_width,
        queries=config.resampler.queries,
        input_width=clip_width,
        output_width=config.unet.context,
        factor=config.resampler.feed_forward,
    )


def build_garment_net(
    config: UNetConfig, channels: int, aspect: float = 1.0
) -> UNet2DConditionModel:
    """GarmentNet over latents of `channels`; aspect as in `build_tryon`. Raises WeightsError."""
    if not config.pretrained:
        return build_unet(config, channels, channels, key="model.garment_unet", aspect=aspect)
    folder = hub_folder(config.pretrained, config.subfolder, "model.garment_unet.pretrained")
    unet = unet_from(
        folder,
        config,
        "model.garment_unet",
        in_channels=channels,
        out_channels=channels,
        addition_embed_type=None,
    )
    load_state(unet, without_added_embedding(unet, read_weights_folder(folder)), folder)
    return unet


def unet_from(folder: Path, config: UNetConfig, key: str, **changed) -> UNet2DConditionModel:
    """An empty UNet of the shape in folder/config.json, with some arguments changed."""
    arguments = published_arguments(read_json(folder / "config.json")) | changed
    context = arguments["cross_attention_dim"]
    if context != config.context:
        raise WeightsError(
            f"{folder}/config.json has context width {context}, {key}.context is {config.context}."
        )
    unet = UNet2DConditionModel(**arguments)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def published_arguments(config: dict) -> dict:
    """UNet2DConditionModel's arguments in a published config.json.

    Left out: the averaging fields that the inpainting UNet's file inherited (decay, power, ...),
    and the image projection, which a stock UNet refuses and TryonNet adds itself.
    """
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    chosen = {name: value for name, value in config.items() if name in known}
    return chosen | {"encoder_hid_dim": None, "encoder_hid_dim_type": None}


def without_added_embedding(
    unet: UNet2DConditionModel, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """GarmentNet's weights without the pooled-text embedding that its file holds and its
    configuration turns off.
    """
    if unet.config.addition_embed_type is not None:
        return state
    return {name: tensor for name, tensor in state.items() if not name.startswith("add_embedding.")}


def load_base(tryon: TryonNet, state: dict[str, Tensor], channels: int, source: Path | str) -> None:
    """A published TryonNet, or a stock UNet whose lack of image-prompt weights is no error."""
    state = dict(state)
    if "conv_in.weight" in state:
        state["conv_in.weight"] = widen(state["conv_in.weight"], channels, source)
    if not any(name.startswith("encoder_hid_proj.") for name in state):
        own = tryon.unet.state_dict()
        state |= {name: own[name] for name in image_prompt_names(tryon)}
    load_state(tryon.unet, state, source)


def image_prompt_names(tryon: TryonNet) -> list[str]:
    """Parameters of the Resampler and of the image keys and values, as in `tryon.unet`'s state."""
    return [
        n
        for n in tryon.unet.state_dict()
        if n.startswith("encoder_hid_proj.") or ".processor.to_" in n
    ]


def widen(weight: Tensor, channels: int, source: Path | str) -> Tensor:
    """conv_in of a c, 2c + 1 or 3c + 1 channel UNet as one over x_t, mask, masked person, pose; the
    rest is zero.

    c = `channels`. The inpainting UNet has the first three in this order already. Raises
    WeightsError.
    """
    inputs = 3 * channels + 1
    if weight.shape[1] not in (channels, 2 * channels + 1, inputs):
        raise WeightsError(
            f"{source}: conv_in.weight has {weight.shape[1]} input channels; expected {channels} (text to image), "
            f"{2 * channels + 1} (inpainting) or {inputs} (IDM-VTON)."
        )
    wide = weight.new_zeros(weight.shape[0], inputs, *weight.shape[2:])
    wide[:, : weight.shape[1]] = weight
    return wide


def image_prompt_file(config: IdmVtonConfig) -> Path:
    """The IP-Adapter file that the configuration names."""
    where = Path(config.image_prompt.file)
    folder = hub_folder(
        config.image_prompt.pretrained,
        str(where.parent),
        "model.image_prompt.pretrained",
        only=where.name,
    )
    return folder / where.name


def load_image_prompt(tryon: TryonNet, path: Path) -> None:
    """Resampler and image keys/values from an IP-Adapter file (.bin nested by section, or flat).
    Raises WeightsError.

    Its number k in `ip_adapter.<k>.to_k_ip.weight` is the layer's place among all attention layers
    in module order (down, up, mid), which is not the order of execution.
    """
    sections = read_ip_adapter(path)
    load_state(tryon.unet.encoder_hid_proj, sections["image_proj"], path)
    processors = (tryon.unet.get_submodule(name).processor for name in attention_names(tryon.unet))
    numbered = nn.ModuleList(p if isinstance(p, nn.Module) else nn.Identity() for p in processors)
    load_state(numbered, sections["ip_adapter"], path)
