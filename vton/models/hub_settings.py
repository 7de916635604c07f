"""Settings of ours from the configuration files of hub-format folders, for imports.

Each function but `other_prediction` reads one subfolder of a diffusers folder and returns overrides
of the configuration (`vton.weights.published.settings_of`). All raise UserError naming the file
that is absent, broken or describes what our settings cannot.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPVisionConfig

from vton.config import ExperimentConfig, ObjectiveConfig, SamplerConfig
from vton.diffusion.objective import Objective
from vton.diffusion.solvers import check_scheduler
from vton.errors import UserError, one_line
from vton.models.settings import UNetConfig
from vton.models.unet import unet_arguments
from vton.weights.pretrained import hub_file, read_json
from vton.weights.published import settings_of

# Arguments of UNet2DConditionModel that may differ without changing the network.
WITHOUT_EFFECT = (
    "sample_size",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "addition_embed_type",
)


def source_settings(key: str, path: Path, subfolder: str) -> list[str]:
    """Where a network is loaded from."""
    return settings_of(key, {"pretrained": str(path), "subfolder": subfolder})


# ---- UNets ----


def unet_settings(key: str, arguments: dict, folder: Path) -> list[str]:
    """A UNet's shape from UNet2DConditionModel's arguments in folder/config.json."""
    shape = configured_shape(arguments)
    check_expressible(arguments, shape, folder)
    return settings_of(key, shape)


def configured_shape(arguments: dict) -> dict:
    """The fields of UNetConfig that these arguments set."""
    blocks = arguments["down_block_types"]

    def per_level(name: str, default: int) -> list:
        value = arguments.get(name, default)  # diffusers' own defaults
        return list(value) if isinstance(value, list | tuple) else [value] * len(blocks)

    pooled = 0
    size_id_width = arguments.get("addition_time_embed_dim") or 256
    if arguments.get("addition_embed_type") == "text_time":
        pooled = arguments["projection_class_embeddings_input_dim"] - 6 * size_id_width
    return {
        "widths": list(arguments["block_out_channels"]),
        "attention": [block.startswith("CrossAttn") for block in blocks],
        "heads": per_level("attention_head_dim", 8),
        "depth": per_level("transformer_layers_per_block", 1),
        "layers": arguments.get("layers_per_block", 2),
        "context": arguments["cross_attention_dim"],
        "groups": arguments.get("norm_num_groups", 32),
        "linear_projection": arguments.get("use_linear_projection", False),
        "pooled": pooled,
        "size_id_width": size_id_width,
    }


def check_expressible(arguments: dict, shape: dict, folder: Path) -> None:
    """Raise UserError unless our settings describe the network that the file describes."""
    inputs, outputs = arguments["in_channels"], arguments["out_channels"]
    with torch.device("meta"):
        ours = UNet2DConditionModel(**unet_arguments(UNetConfig(**shape), inputs, outputs)).config
        theirs = UNet2DConditionModel(**arguments).config
    for name, value in theirs.items():
        if name.startswith("_") or name in WITHOUT_EFFECT:
            continue
        if not alike(value, ours[name]):
            raise UserError(
                f"{folder}/config.json: {name}={value} is not supported; expected {ours[name]}."
            )


def alike(theirs, ours) -> bool:
    """JSON has lists where code has tuples, Stable Diffusion 1.5 one number for all levels, and
    SDXL null for switches that are off.
    """
    if theirs is None and ours is False:
        return True
    if not isinstance(ours, list | tuple):
        return theirs == ours
    if not isinstance(theirs, list | tuple):
        theirs = [theirs] * len(ours)
    return list(theirs) == list(ours)


# ---- encoders ----


def clip_settings(key: str, path: Path, subfolder: str) -> list[str]:
    """A CLIP vision tower's source and shape; frozen."""
    config = transformers_config(CLIPVisionConfig, path / subfolder)
    shape = encoder_shape(config) | {
        "patch": config.patch_size,
        "image_size": config.image_size,
        "projection": config.projection_dim,
    }
    return source_settings(key, path, subfolder) + settings_of(key, shape)


def text_settings(
    key: str, path: Path, subfolder: str, tokenizer: str, projects: bool
) -> list[str]:
    """A CLIP text encoder's source and shape; frozen. projects: it makes a pooled vector too."""
    config = transformers_config(CLIPTextConfig, path / subfolder)
    shape = encoder_shape(config) | {
        "tokenizer_subfolder": tokenizer,
        "vocabulary": config.vocab_size,
        "length": config.max_position_embeddings,
        "projection": config.projection_dim if projects else 0,
    }
    return source_settings(key, path, subfolder) + settings_of(key, shape)


def encoder_shape(config: CLIPVisionConfig | CLIPTextConfig) -> dict:
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp": config.intermediate_size,
        "activation": config.hidden_act,
        "trained": False,
    }


def transformers_config(cls: type, folder: Path):
    try:
        return cls.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json: {one_line(error)}") from None


# ---- codec and noise ----


def codec_settings(path: Path, subfolder: str) -> list[str]:
    """An AutoencoderKL's source and shape."""
    vae = read_json(path / subfolder / "config.json")
    ours = {
        "latent_channels": "channels",
        "block_out_channels": "widths",
        "layers_per_block": "layers",
        "norm_num_groups": "groups",
    }
    shape = {"name": "kl"}
    for name, value in vae.items():
        if name in ours:
            shape[ours[name]] = value
    return source_settings("codec", path, subfolder) + settings_of("codec", shape)


def other_prediction(config: ExperimentConfig) -> str:
    """What to say of a pretrained UNet that predicts something else than the run's; "" if nothing.

    Stable Diffusion 2.1 (v) and its base (epsilon) have the same tensors: only the scheduler's file
    beside them tells. Nothing is said where that is not on this machine.
    """
    wanted = config.objective.prediction
    for name, part in vars(config.model).items():
        if not isinstance(part, UNetConfig) or not part.pretrained:
            continue
        file = hub_file(part.pretrained, "scheduler", "scheduler_config.json")
        found = read_json(file).get("prediction_type", "epsilon") if file else wanted
        if found != wanted:
            return (
                f"model.{name}.pretrained={part.pretrained} predicts {found}, says its "
                f"scheduler_config.json, but objective.prediction={wanted}: training would first "
                f"have to unlearn that. Check the folder, or set objective.prediction={found}."
            )
    return ""


def noise_settings(folder: Path) -> list[str]:
    """The objective and the ancestral sampler that folder/scheduler_config.json describes; nothing
    where it is absent. Raises UserError for what they cannot be.
    """
    file = folder / "scheduler_config.json"
    if not file.exists():
        return []
    try:
        scheduler = DDPMScheduler.from_config(read_json(file)).config
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(f"{file}: {one_line(error)}") from None
    objective = {
        "schedule": scheduler.beta_schedule,
        "train_timesteps": scheduler.num_train_timesteps,
        "beta_start": scheduler.beta_start,
        "beta_end": scheduler.beta_end,
        "prediction": scheduler.prediction_type,
        "zero_terminal_snr": scheduler.rescale_betas_zero_snr,
    }
    sampler = {
        "spacing": scheduler.timestep_spacing,
        "clip_sample": float(scheduler.clip_sample_range) if scheduler.clip_sample else 0.0,
    }
    ours = SamplerConfig(solver="ddpm", **sampler)
    check_scheduler(scheduler, ours, Objective(ObjectiveConfig(**objective)), f"{file}: ")
    return settings_of("objective", objective) + settings_of("sampler", sampler)
