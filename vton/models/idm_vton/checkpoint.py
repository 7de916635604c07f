"""The published IDM-VTON: a diffusers folder of one subfolder per network, read into a run and
written again.

    unet/            TryonNet; with the Resampler (encoder_hid_proj.*) and the image keys and values
                     (...attn2.processor.to_k_ip.weight, to_v_ip.weight)
    unet_encoder/    GarmentNet
    image_encoder/  text_encoder/  text_encoder_2/  tokenizer/  tokenizer_2/  vae/  scheduler/  model_index.json

Only TryonNet is trained: a run holds its weights, and the other networks stay in the folder.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPVisionConfig

from vton.config import ExperimentConfig
from vton.diffusion.objective import Objective
from vton.errors import one_line
from vton.models.encoders import clip_image_encoder, text_encoder
from vton.models.idm_vton.building import published_arguments
from vton.models.idm_vton.config import IdmVtonConfig
from vton.models.settings import UNetConfig
from vton.models.unet import unet_arguments
from vton.weights.pretrained import (
    Published,
    WeightsError,
    hub_folder,
    load_state,
    read_json,
    read_weights_folder,
    setting,
)

PREFIX = "tryon.unet."
WEIGHTS = "diffusion_pytorch_model.safetensors"
HEADS = "_resampler_heads"  # diffusers skips entries with an underscore
NETWORKS = {
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "unet_encoder": ("diffusers", "UNet2DConditionModel"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "scheduler": ("diffusers", "DDPMScheduler"),
}


# ---- reading ----


def read_published(path: Path) -> Published:
    """TryonNet's weights and the settings that the folder's configuration files imply.

    A folder with weights alone (IDM-VTON-DC) counts as the published size, its frozen networks are
    those of preset=paper. Raises WeightsError naming the file that is absent, broken or of another
    model.
    """
    if not path.is_dir():
        raise WeightsError(
            f"{path} is a file; IDM-VTON is published as a diffusers folder that holds unet/."
        )
    folder = path / "unet" if (path / "unet").is_dir() else path
    weights = read_weights_folder(folder)
    lacking = [
        name for name in ("conv_in.weight", "encoder_hid_proj.latents") if name not in weights
    ]
    if lacking:
        raise WeightsError(
            f"{folder} holds no IDM-VTON TryonNet: its weights lack {' and '.join(lacking)}."
        )
    if (folder / "config.json").exists():
        settings = tryon_settings(folder, weights)
    elif weights["conv_in.weight"].shape[0] == 320:
        settings = []
    else:
        raise WeightsError(
            f"{folder} has no config.json and is not of the published size; put its config.json there."
        )
    settings += ["model.unet.pretrained=''", "model.image_prompt.pretrained=''"]
    if (path / "model_index.json").exists():
        settings += frozen_settings(path.resolve())
    return Published({PREFIX + name: tensor for name, tensor in weights.items()}, settings)


def tryon_settings(folder: Path, weights: dict[str, Tensor]) -> list[str]:
    """Shape of TryonNet from config.json, of its Resampler from the weights."""
    config = read_json(folder / "config.json")
    shape = unet_settings(published_arguments(config), "model.unet", folder)
    return shape + resampler_settings(weights, config, folder)


def unet_settings(arguments: dict, key: str, folder: Path) -> list[str]:
    """A UNet's arguments as our settings. Raises WeightsError for one that these cannot express."""
    blocks = arguments["down_block_types"]

    def per_level(name: str) -> list:
        value = arguments.get(name, 1)
        return list(value) if isinstance(value, list | tuple) else [value] * len(blocks)

    pooled, size_id_width = 0, arguments.get("addition_time_embed_dim") or 256
    if arguments.get("addition_embed_type") == "text_time":
        pooled = arguments["projection_class_embeddings_input_dim"] - 6 * size_id_width
    found = UNetConfig(
        widths=tuple(arguments["block_out_channels"]),
        attention=tuple(block.startswith("CrossAttn") for block in blocks),
        heads=tuple(per_level("attention_head_dim")),
        depth=tuple(per_level("transformer_layers_per_block")),
        layers=arguments.get("layers_per_block", 2),
        context=arguments["cross_attention_dim"],
        groups=arguments.get("norm_num_groups", 32),
        linear_projection=arguments.get("use_linear_projection", False),
        pooled=pooled,
        size_id_width=size_id_width,
    )
    check_expressible(arguments, found, folder)
    names = (
        "widths",
        "attention",
        "heads",
        "depth",
        "layers",
        "context",
        "groups",
        "linear_projection",
        "pooled",
        "size_id_width",
    )
    return [setting(f"{key}.{name}", getattr(found, name)) for name in names]


def check_expressible(arguments: dict, found: UNetConfig, folder: Path) -> None:
    """The network that our settings describe is the one that the file describes."""
    channels = {name: arguments[name] for name in ("in_channels", "out_channels")}
    ours = unet_arguments(found, channels["in_channels"], channels["out_channels"])
    with torch.device("meta"):
        ours = UNet2DConditionModel(**ours).config
        theirs = UNet2DConditionModel(**arguments).config
    silent = (
        "sample_size",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "addition_embed_type",
    )
    for name, value in theirs.items():
        if not name.startswith("_") and name not in silent and plain(value) != plain(ours[name]):
            raise WeightsError(
                f"{folder}/config.json: {name}={value} is not supported; expected {ours[name]}."
            )


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def resampler_settings(weights: dict[str, Tensor], config: dict, folder: Path) -> list[str]:
    """Sizes that the Resampler's tensors show.

    The number of heads is not among them. Published heads are 64 wide; ours are noted in
    config.json; for any other width the run's settings must say it (model.resampler.heads and
    head_width), else its shapes don't fit.
    """
    name = "encoder_hid_proj."
    try:
        queries, width = weights[name + "latents"].shape[1:]
        inner = weights[name + "layers.0.0.to_q.weight"].shape[0]
        feed_forward = weights[name + "layers.0.1.1.weight"].shape[0] // width
    except (KeyError, ValueError, IndexError):
        raise WeightsError(f"{folder}: its {name}* tensors are not those of a Resampler.") from None
    depth = len({key.split(".")[2] for key in weights if key.startswith(name + "layers.")})
    sizes = {"width": width, "depth": depth, "queries": queries, "feed_forward": feed_forward}
    heads = config.get(HEADS) or (inner // 64 if inner % 64 == 0 else None)
    if heads:
        sizes |= {"heads": heads, "head_width": inner // heads}
    return [setting(f"model.resampler.{key}", value) for key, value in sizes.items()]


def frozen_settings(path: Path) -> list[str]:
    """Where the frozen networks lie, and their shapes."""
    folders = {
        name: path / name
        for name in ("unet_encoder", "image_encoder", "text_encoder", "text_encoder_2", "vae")
    }
    absent = [name for name, folder in folders.items() if not (folder / "config.json").is_file()]
    if absent:
        raise WeightsError(
            f"{path} is incomplete: no config.json in {', '.join(absent)}. Fetch the whole repository."
        )
    garment = published_arguments(read_json(folders["unet_encoder"] / "config.json")) | {
        "addition_embed_type": None
    }
    settings = unet_settings(garment, "model.garment_unet", folders["unet_encoder"])
    settings += [
        *sourced("model.garment_unet", path, "unet_encoder"),
        "model.garment_unet.trained=false",
    ]
    clip = transformers_config(CLIPVisionConfig, folders["image_encoder"])
    settings += sourced("model.clip", path, "image_encoder") + encoder_settings("model.clip", clip)
    settings += [
        setting("model.clip.patch", clip.patch_size),
        setting("model.clip.image_size", clip.image_size),
        setting("model.clip.projection", clip.projection_dim),
    ]
    for key, suffix in (("model.text", ""), ("model.text_2", "_2")):
        text = transformers_config(CLIPTextConfig, folders[f"text_encoder{suffix}"])
        settings += sourced(key, path, f"text_encoder{suffix}") + encoder_settings(key, text)
        settings += [
            setting(f"{key}.tokenizer_subfolder", f"tokenizer{suffix}"),
            setting(f"{key}.vocabulary", text.vocab_size),
            setting(f"{key}.length", text.max_position_embeddings),
            setting(f"{key}.projection", text.projection_dim if suffix else 0),
        ]
    return [*settings, *codec_settings(path), *noise_settings(path)]


def codec_settings(path: Path) -> list[str]:
    vae = read_json(path / "vae" / "config.json")
    names = {
        "latent_channels": "channels",
        "block_out_channels": "widths",
        "layers_per_block": "layers",
        "norm_num_groups": "groups",
    }
    shape = [
        setting(f"codec.{ours}", vae[theirs]) for theirs, ours in names.items() if theirs in vae
    ]
    return ["codec.name=kl", *sourced("codec", path, "vae"), *shape]


def transformers_config(cls: type, folder: Path):
    try:
        return cls.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder}/config.json: {one_line(error)}") from None


def encoder_settings(key: str, config: CLIPVisionConfig | CLIPTextConfig) -> list[str]:
    sizes = {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp": config.intermediate_size,
        "activation": config.hidden_act,
        "trained": False,
    }
    return [setting(f"{key}.{name}", value) for name, value in sizes.items()]


def noise_settings(path: Path) -> list[str]:
    """The objective that the scheduler file describes, where there is one."""
    file = path / "scheduler" / "scheduler_config.json"
    if not file.exists():
        return []
    scheduler = DDPMScheduler.from_config(read_json(file)).config
    ours = {
        "objective.schedule": scheduler.beta_schedule,
        "objective.train_timesteps": scheduler.num_train_timesteps,
        "objective.beta_start": scheduler.beta_start,
        "objective.beta_end": scheduler.beta_end,
        "objective.prediction": scheduler.prediction_type,
        "objective.zero_terminal_snr": scheduler.rescale_betas_zero_snr,
        "sampler.spacing": scheduler.timestep_spacing,
    }
    return [setting(name, value) for name, value in ours.items()]


def sourced(key: str, path: Path, subfolder: str) -> list[str]:
    return [setting(f"{key}.pretrained", str(path)), setting(f"{key}.subfolder", subfolder)]


# ---- writing ----


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The same kind of folder from a run's weights; complete or not there at all.

    Networks that the run trained are written from `state`, the others copied from where the
    configuration finds them. Raises WeightsError for a codec that the format has no place for, and
    for a run without one of its networks.
    """
    model: IdmVtonConfig = config.model
    if not (model.garment_net and model.image_prompt.enabled):
        raise WeightsError(
            f"model.garment_net={model.garment_net} and model.image_prompt.enabled={model.image_prompt.enabled}: "
            "IDM-VTON's format has no place for a run without these networks."
        )
    if config.codec.name != "kl":
        raise WeightsError(
            f"codec.name={config.codec.name} has no place in IDM-VTON's format, which holds an AutoencoderKL "
            "(codec.name=kl)."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        folder = Path(temporary) / "folder"
        write_networks(folder, state, config)
        folder.replace(target)


def write_networks(folder: Path, state: dict[str, Tensor], config: ExperimentConfig) -> None:
    model: IdmVtonConfig = config.model
    tryon = part(state, PREFIX)
    channels, inputs = len(tryon["conv_out.weight"]), tryon["conv_in.weight"].shape[1]
    prompt = {
        "encoder_hid_dim": tryon["encoder_hid_proj.proj_in.weight"].shape[1],
        "encoder_hid_dim_type": "ip_image_proj",
        HEADS: model.resampler.heads,
    }
    write_unet(folder / "unet", tryon, unet_arguments(model.unet, inputs, channels), prompt)
    if garment := part(state, "garment_net."):
        write_unet(
            folder / "unet_encoder",
            garment,
            unet_arguments(model.garment_unet, channels, channels),
            {},
        )
    else:
        copy_part(
            model.garment_unet,
            model.garment_unet.subfolder,
            "model.garment_unet",
            folder / "unet_encoder",
        )
    if clip := part(state, "clip."):
        encoder = loaded(clip_image_encoder(model.clip), clip)
        encoder.tower.save_pretrained(folder / "image_encoder")
    else:
        copy_part(model.clip, model.clip.subfolder, "model.clip", folder / "image_encoder")
    for name, suffix in (("text", ""), ("text_2", "_2")):
        settings = getattr(model, name)
        if text := part(state, f"{name}."):
            encoder = loaded(text_encoder(settings), text)
            encoder.model.save_pretrained(folder / f"text_encoder{suffix}")
            encoder.tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        else:
            copy_part(
                settings, settings.subfolder, f"model.{name}", folder / f"text_encoder{suffix}"
            )
            copy_part(
                settings,
                settings.tokenizer_subfolder,
                f"model.{name}",
                folder / f"tokenizer{suffix}",
            )
    write_codec(config, folder / "vae")
    noise = Objective(config.objective).scheduler_config
    noise |= {"timestep_spacing": config.sampler.spacing, "steps_offset": 1, "clip_sample": False}
    DDPMScheduler.from_config(noise).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionXLInpaintPipeline"} | {
        name: list(kind) for name, kind in NETWORKS.items()
    }
    write_json(folder / "model_index.json", index)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, under their names without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def write_unet(folder: Path, state: dict[str, Tensor], arguments: dict, more: dict) -> None:
    folder.mkdir(parents=True)
    with torch.device("meta"):
        config = dict(UNet2DConditionModel(**arguments).config)
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    write_json(folder / "config.json", {"_class_name": "UNet2DConditionModel"} | config | more)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / WEIGHTS,
        {"format": "pt"},
    )


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def loaded(encoder: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    load_state(encoder, state, "the run's weights")
    return encoder


def copy_part(settings, subfolder: str, key: str, target: Path) -> None:
    """A frozen network's folder as it is. Raises WeightsError if the configuration names none."""
    if not settings.pretrained:
        raise WeightsError(
            f"{key} is neither in the run's weights nor anywhere else ({key}.pretrained is empty)."
        )
    shutil.copytree(hub_folder(settings.pretrained, subfolder, f"{key}.pretrained"), target)


def write_codec(config: ExperimentConfig, target: Path) -> None:
    """The pretrained autoencoder, or the one that the run trained."""
    if config.codec.pretrained:
        copy_part(config.codec, config.codec.subfolder, "codec", target)
        return
    own = Path(config.runs) / config.name / "codec"
    if not own.is_dir():
        raise WeightsError(f"The run's codec is not at {own}.")
    shutil.copytree(own, target, ignore=shutil.ignore_patterns("done", "quality.json"))
