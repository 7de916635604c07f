"""Hub folders as the published ones are: half precision inside and in config.json, and beside the
weights what else such folders hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from vton.config import CodecConfig, ExperimentConfig, load
from vton.models.codecs import small_autoencoder
from vton.models.encoders import clip_image_encoder, text_encoder
from vton.models.idm_vton.building import build_tryon
from vton.models.idm_vton.config import IdmVtonConfig
from vton.models.idm_vton.network import TryonNet
from vton.models.imagdressing.building import copied_encoder
from vton.models.imagdressing.config import ControlConfig
from vton.models.resampler import build_resampler
from vton.models.settings import ClipConfig, TextConfig, UNetConfig
from vton.models.unet import numbered_processors, unet_arguments

NORMS = (nn.LayerNorm, nn.GroupNorm)
STEMS = ("diffusion_pytorch_model", "model")
FORMS = ("half", "variant", "sharded", "pickle")


def as_published(folder: Path, form: str = "half") -> None:
    """Make every network below `folder` what its published counterpart looks like.

    half: float16, as SDXL's encoders are; variant: `.fp16.safetensors` alone; sharded: two files
    and their index; pickle: `.bin` alone. Copies that must not be read lie beside all of them.
    """
    for weights in sorted(folder.rglob("*.safetensors")):
        if weights.stem in STEMS:
            rewrite(weights, form)
    for config in folder.rglob("config.json"):
        settings = json.loads(config.read_text())
        if "architectures" in settings:  # transformers takes the dtype over from here
            settings |= {"dtype": "float16", "torch_dtype": "float16"}
            config.write_text(json.dumps(settings))


def rewrite(weights: Path, form: str) -> None:
    state = {name: tensor.half() for name, tensor in load_file(weights).items()}
    folder, stem = weights.parent, weights.stem
    weights.unlink()
    if form == "variant":
        save_file(state, folder / f"{stem}.fp16.safetensors", {"format": "pt"})
    elif form == "sharded":
        shard(state, folder, stem)
    elif form == "pickle":
        pickled = "pytorch_model" if stem == "model" else stem
        torch.save(state, folder / f"{pickled}.bin")
    else:
        save_file(state, weights, {"format": "pt"})
    wrong = {"not.a.weight": torch.zeros(1)}
    save_file(wrong, folder / f"{stem}.non_ema.safetensors", {"format": "pt"})
    save_file(wrong, folder / f"{stem}_ema.safetensors", {"format": "pt"})
    if form == "half":
        torch.save(wrong, folder / f"{stem}.bin")
    for name in ("model.onnx", "openvino_model.bin", "openvino_model.xml", "flax_model.msgpack"):
        (folder / name).write_bytes(b"another framework's")


def shard(state: dict[str, torch.Tensor], folder: Path, stem: str) -> None:
    names = sorted(state)
    half = len(names) // 2
    places = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"{stem}-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


# ---- whole sets of base weights, random ----


def write_base_weights(config: ExperimentConfig, root: Path) -> list[str]:
    """Every network that a paper preset starts from, in the sizes of `config`, as float16 hub
    folders below root; returns the overrides that name them.

    Weights are random. config: of one of the architectures, whose `pretrained` are ignored.
    """
    model = config.model
    paper = load(f"model={model.name}", "preset=paper").model
    overrides = []

    def source(key: str, folder: Path, **more: str) -> None:
        settings = {"pretrained": str(folder), **more}
        overrides.extend(f"{key}.{name}={value or repr('')}" for name, value in settings.items())

    codec = root / "vae"
    save(autoencoder(config.codec), codec / "vae", seed=1)
    source("codec", codec, subfolder="vae")
    channels = config.codec.channels
    for seed, (name, settings) in enumerate(sorted(vars(model).items()), 2):
        key, folder = f"model.{name}", root / name
        if isinstance(settings, UNetConfig):
            base = getattr(paper, name).pretrained
            inputs = 2 * channels + 1 if "inpaint" in base else channels
            network = on_meta(lambda s=settings, i=inputs: plain_unet(s, channels, i))
            save(network, folder / "unet", seed)
            source(key, folder, subfolder="unet")
            overrides.append(f"{key}.positions=0")
        elif isinstance(settings, ClipConfig):
            plain = replace(settings, pretrained="")
            save(on_meta(lambda s=plain: clip_image_encoder(s).tower), folder, seed)
            source(key, folder, subfolder="")
        elif isinstance(settings, TextConfig):
            plain = replace(settings, pretrained="")
            encoder = on_meta(lambda s=plain: text_encoder(s))
            save(encoder.model, folder / "text_encoder", seed)
            encoder.tokenizer.save_pretrained(folder / "tokenizer")
            source(key, folder, subfolder="text_encoder", tokenizer_subfolder="tokenizer")
        elif isinstance(settings, ControlConfig) and settings.enabled:
            unet = on_meta(lambda: plain_unet(model.unet, channels))
            fresh = replace(settings, pretrained="")
            halvings = len(config.codec.widths) - 1
            network = on_meta(lambda u=unet, s=fresh, h=halvings: copied_encoder(s, u, h))
            save(network, folder, seed)
            source(key, folder, subfolder="")
    if hasattr(model, "resampler"):
        tryon = on_meta(lambda: plain_tryon(model, channels))
        write_ip_adapter(root / "ip", tryon.unet.encoder_hid_proj, numbered_processors(tryon.unet))
        source("model.image_prompt", root, file="ip/adapter.safetensors")
    if hasattr(model, "projector"):
        projector = on_meta(
            lambda: build_resampler(model.projector, model.clip.width, model.garment_unet.context)
        )
        write_ip_adapter(root / "ip", projector, numbered_processors(projector))
        source("model.projector", root, file="ip/adapter.safetensors")
    return overrides


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def autoencoder(config: CodecConfig) -> AutoencoderKL:
    network = on_meta(lambda: small_autoencoder(config))
    network.register_to_config(force_upcast=False)
    return network


def plain_unet(
    settings: UNetConfig, channels: int, inputs: int | None = None
) -> UNet2DConditionModel:
    return UNet2DConditionModel(**unet_arguments(settings, inputs or channels, channels))


def plain_tryon(model: IdmVtonConfig, channels: int) -> TryonNet:
    fresh = replace(
        model,
        unet=replace(model.unet, pretrained="", positions=0.0),
        image_prompt=replace(model.image_prompt, pretrained=""),
    )
    return build_tryon(fresh, channels, model.clip.width)


def save(network: nn.Module, folder: Path, seed: int) -> None:
    """A network of the meta device with random float16 weights, as its library saves it."""
    filled(network, seed).save_pretrained(folder)


def filled(network: nn.Module, seed: int) -> nn.Module:
    """On the CPU in float16, of weights that keep the size of what passes. Drawing billions takes
    minutes, so that one million draws are repeated.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2**20, generator=generator).half()
    nn.Module.to(network, torch.float16)
    network.to_empty(device="cpu")
    norms = {name for name, part in network.named_modules() if isinstance(part, NORMS)}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            owner, _, kind = name.rpartition(".")
            if owner in norms and kind == "weight":
                parameter.fill_(1)
            elif kind == "bias":
                parameter.zero_()
            else:
                fan_in = max(1, parameter[0].numel())
                repeats = math.ceil(parameter.numel() / len(draws))
                values = draws.repeat(repeats) if repeats > 1 else draws
                values = values[: parameter.numel()].view(parameter.shape)
                parameter.copy_(values).mul_(0.7 * fan_in**-0.5)
        for name, buffer in network.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.numel()).view(buffer.shape))
    return network


def write_ip_adapter(folder: Path, projector: nn.Module, layers: nn.Module) -> None:
    """An IP-Adapter file with its sections, flat."""
    state = {}
    for section, network in (("image_proj", projector), ("ip_adapter", layers)):
        for name, tensor in filled(network, 7).state_dict().items():
            state[f"{section}.{name}"] = tensor
    if not any(name.startswith("ip_adapter.") for name in state):
        state["ip_adapter.1.to_k_ip.weight"] = torch.zeros(1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter.safetensors", {"format": "pt"})
