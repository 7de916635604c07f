"""The published StableVITON: one checkpoint in latent diffusion's names, in and out.

    model.diffusion_model.*         UNet; warp_flow_blks.N.* and warp_zero_convs.N.* beside it are
                                    the zero cross-attention at position N
    control_model.*                 spatial encoder; its cond_first_block.0 reads the garment
    cond_stage_model.*              CLIP tower (transformer.vision_model.*), mapper.resblocks.*,
                                    final_ln
    proj_out.*  learnable_vector    the context token
    first_stage_model.*             autoencoder
    lastzc.*                        an unused convolution
    betas, alphas_cumprod, ...      the schedule

It is a torch file with these under `state_dict`, or a plain mapping. What a run freezes stays in
the file, which the run's settings name; so does the autoencoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vton.config import CodecConfig, ExperimentConfig, ObjectiveConfig
from vton.errors import UserError
from vton.models.codecs import build_codec, file_scaling, load_codec
from vton.models.ldm import (
    FIRST_STAGE,
    SECTION,
    Names,
    UNetStructure,
    autoencoder_names,
    autoencoder_of,
    autoencoder_shape,
    autoencoder_to_ldm,
    for_stable_diffusion,
    read_autoencoder,
    read_ldm_checkpoint,
    to_diffusers,
    to_ldm,
    unet_names,
    unet_structure,
)
from vton.models.stableviton.config import StableVitonConfig
from vton.models.unet import unet_shape, widen_input
from vton.weights.pretrained import below
from vton.weights.published import PublishedWeights, settings_of, write_mapping

UNET = "model.diffusion_model."
CONTROL = "control_model."
CLIP = "cond_stage_model.transformer.vision_model"
MAPPER = "cond_stage_model.mapper.resblocks"
FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
# What nothing reads: a convolution, a buffer of old transformers, and the schedule.
POSITION_IDS = f"{CLIP}.embeddings.position_ids"
LAST_CONVOLUTION = ("lastzc.weight", "lastzc.bias")
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
)
UNUSED = frozenset((*LAST_CONVOLUTION, POSITION_IDS, *SCHEDULE))
CLIP_HEAD = 64  # width of a head in OpenAI's towers


class Sections(NamedTuple):
    """A checkpoint's tensors."""

    networks: dict[str, Tensor]  # under our names: unet.*, encoder.*, garment_blocks.*, ...
    autoencoder: dict[str, Tensor]  # in latent diffusion's names, without prefix
    unused: dict[str, Tensor]  # as they are called in the file
    structure: UNetStructure


# ---- names ----


def checkpoint_names(structure: UNetStructure) -> Names:
    """Modules of a checkpoint without its autoencoder, (their name, ours)."""
    names = [
        (f"{CONTROL}cond_first_block.0", "encoder.conv_hint"),
        (CLIP, "clip.tower"),
        (MAPPER, "clip.mapper"),
        ("cond_stage_model.final_ln", "clip.final_ln"),
        ("proj_out", "token.proj_out"),
        ("learnable_vector", "token.learnable_vector"),
    ]
    for theirs, ours in unet_names(structure):
        names.append((UNET + theirs, f"unet.{ours}"))
        if not theirs.startswith("out"):  # output_blocks and the output layers
            names.append((CONTROL + theirs, f"encoder.{ours}"))
    for position in range((len(structure.attention) - 1) * (structure.layers + 1)):
        block = f"garment_blocks.{position}"
        names.append((f"{UNET}warp_flow_blks.{position}", f"{block}.transformer"))
        names.append((f"{UNET}warp_zero_convs.{position}", f"{block}.zero"))
    return names


def read_sections(path: Path) -> Sections:
    """The sections of StableVITON's checkpoint, or of Paint-by-Example's, which lacks two networks.

    Raises UserError naming the file if it is absent, broken or of another model.
    """
    return sections_of(read_ldm_checkpoint(path), path)


def sections_of(state: Mapping[str, Tensor], path: Path) -> Sections:
    """The networks, the autoencoder and the unused tensors of a checkpoint.

    Raises UserError naming the file if it is of another model, or incomplete.
    """
    if FIRST_LAYER not in state:
        first = next(iter(state), "absent: the file is empty")
        raise UserError(
            f"{path}: not StableVITON's checkpoint: it has no {FIRST_LAYER}; its first key is "
            f"{first}."
        )
    networks, autoencoder, unused = {}, {}, {}
    for name, tensor in state.items():
        if name in UNUSED or name.startswith("model_ema."):
            unused[name] = tensor
        elif name.startswith(FIRST_STAGE):
            autoencoder[name.removeprefix(FIRST_STAGE)] = tensor
        else:
            networks[name] = tensor
    try:
        structure = unet_structure(below(state, UNET))
        networks = to_diffusers(networks, checkpoint_names(structure))
    except ValueError as error:
        raise UserError(f"{path}: not a complete UNet ({error}).") from None
    except KeyError as error:
        raise UserError(f"{path}: not StableVITON's checkpoint: it has {error.args[0]}.") from None
    return Sections(networks, autoencoder_of(autoencoder), unused, structure)


def widened_unet(networks: dict[str, Tensor], inputs: int, path: Path) -> dict[str, Tensor]:
    """The networks with a UNet of 3c + 1 input channels: c new ones, the last, are zero where it
    is Paint-by-Example's.

    inputs: 3c + 1. Raises UserError for a UNet with any other number of channels.
    """
    weight = networks["unet.conv_in.weight"]
    known, narrow = weight.shape[1], 2 * (inputs - 1) // 3 + 1
    if known not in (narrow, inputs):
        raise UserError(
            f"{path}: its UNet has {known} input channels; expected {narrow} (Paint-by-Example) or "
            f"{inputs} (StableVITON)."
        )
    wide = widen_input(weight, inputs, {channel: channel for channel in range(known)})
    return networks | {"unet.conv_in.weight": weight if known == inputs else wide}


# ---- in ----


def read_published(path: Path) -> PublishedWeights:
    """The weights that the public script trains, and the settings that the file implies.

    UNet, CLIP tower with mapper, and autoencoder stay in the file. Heads and norm groups are in no
    tensor: they are those of the published size, or overrides say them. Raises UserError naming the
    file that is absent, broken or of another model.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; StableVITON is published as one checkpoint file.")
    sections = read_sections(path)
    if not any(name.startswith("encoder.") for name in sections.networks):
        raise UserError(
            f"{path} holds no spatial encoder ({CONTROL}*): it is a checkpoint to start from "
            "(model.pretrained), not a trained StableVITON."
        )
    try:
        # Not resolved: what the hub's cache links to has no suffix.
        settings = published_settings(sections, path.absolute())
    except (KeyError, IndexError) as error:
        raise UserError(f"{path}: incomplete: no {error.args[0]}.") from None
    frozen = ("unet.", "clip.")
    state = {name: x for name, x in sections.networks.items() if not name.startswith(frozen)}
    undetermined = []
    if "heads" not in unet_shape(below(sections.networks, "unet.")):
        undetermined = ["model.unet.heads"]
    return PublishedWeights(state, settings, sections.unused, undetermined)


def published_settings(sections: Sections, path: Path) -> list[str]:
    """The settings that the checkpoint's tensors show, as overrides."""
    networks = sections.networks
    tower = below(networks, "clip.tower.")
    patch = tower["embeddings.patch_embedding.weight"].shape[-1]
    width = len(tower["embeddings.class_embedding"])
    patches_per_side = math.isqrt(len(tower["embeddings.position_embedding.weight"]) - 1)
    clip = {
        "width": width,
        "layers": count(tower, "encoder.layers."),
        "heads": max(1, width // CLIP_HEAD),
        "mlp": len(tower["encoder.layers.0.mlp.fc1.bias"]),
        "patch": patch,
        "image_size": patches_per_side * patch,
        "activation": "quick_gelu",
        "trained": False,
    }
    unet = unet_shape(below(networks, "unet.")) | {"trained": False}
    model = {
        "pretrained": str(path),
        "mapper_layers": count(networks, "clip.mapper."),
        "levels": [True] * (len(unet["widths"]) - 1) + [False],
    }
    codec = {"name": "kl", "pretrained": str(path)} | autoencoder_shape(sections.autoencoder)
    return [
        *settings_of("model", model),
        *settings_of("model.unet", unet),
        *settings_of("model.clip", clip),
        *settings_of("codec", codec),
    ]


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow the prefix."""
    return len({name.split(".")[0] for name in below(state, prefix)})


# ---- out ----


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The same kind of file from a run's weights: .safetensors, or a torch file with `state_dict`.

    What the run froze is copied from the file that it started from. Raises UserError for a run that
    the format has no place for.
    """
    require_format(config)
    model: StableVitonConfig = config.model
    structure = UNetStructure(model.unet.layers, tuple(model.unet.attention))
    networks = frozen_networks(model, state) | state
    tensors = to_ldm(networks, checkpoint_names(structure))
    for name, tensor in run_autoencoder(config).items():
        tensors[FIRST_STAGE + name] = tensor
    tensors |= extra or unused_tensors(networks, config.objective)
    write_mapping(target, tensors, section=SECTION)


def require_format(config: ExperimentConfig) -> None:
    """Raise UserError for a run that a checkpoint of the public code cannot express."""
    model: StableVitonConfig = config.model
    published = [True] * (len(model.levels) - 1) + [False]
    needed = {
        "codec.name": (config.codec.name, "kl"),
        "objective.prediction": (config.objective.prediction, "epsilon"),
        "objective.schedule": (config.objective.schedule, "scaled_linear"),
        "objective.zero_terminal_snr": (config.objective.zero_terminal_snr, False),
        "model.garment": (model.garment, "cross_attention"),
        "model.encoder_input": (model.encoder_input, "all"),
        "model.levels": (list(model.levels), published),
    }
    for key, (value, wanted) in needed.items():
        if value != wanted:
            raise UserError(
                f"{key}={value} has no place in StableVITON's format, which means {key}={wanted}."
            )


def frozen_networks(model: StableVitonConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """UNet and CLIP branch, as far as the run did not train them, from where it found them."""
    missing = tuple(part for part in ("unet.", "clip.") if not below(state, part))
    if not missing:
        return {}
    if not model.pretrained:
        raise UserError(
            f"{' and '.join(missing)} are neither in the run's weights nor anywhere else "
            "(model.pretrained is empty)."
        )
    path = Path(model.pretrained).expanduser()
    inputs = state["encoder.conv_in.weight"].shape[1]
    networks = widened_unet(read_sections(path).networks, inputs, path)
    return {name: tensor for name, tensor in networks.items() if name.startswith(missing)}


def run_autoencoder(config: ExperimentConfig) -> dict[str, Tensor]:
    """The run's autoencoder in latent diffusion's names, for the public code's scaling factor."""
    codec: CodecConfig = config.codec
    file = Path(codec.pretrained).expanduser()
    if codec.pretrained and file.is_file():
        return for_stable_diffusion(read_autoencoder(file), file_scaling(codec, file))
    own = Path(config.runs) / config.name / "codec"
    vae = (build_codec(codec) if codec.pretrained else load_codec(codec, own)).vae
    shape = vae.config
    names = autoencoder_names(len(shape.block_out_channels), shape.layers_per_block)
    return for_stable_diffusion(autoencoder_to_ldm(vae.state_dict(), names), shape.scaling_factor)


def unused_tensors(networks: Mapping[str, Tensor], objective: ObjectiveConfig) -> dict[str, Tensor]:
    """What the public code's strict loading asks for, although nothing reads it."""
    channels = len(networks["unet.conv_out.bias"])
    positions = len(networks["clip.tower.embeddings.position_embedding.weight"])
    return {
        "lastzc.weight": torch.zeros(channels, channels, 1, 1),
        "lastzc.bias": torch.zeros(channels),
        POSITION_IDS: torch.arange(positions)[None],
        **schedule_buffers(objective),
    }


def schedule_buffers(objective: ObjectiveConfig) -> dict[str, Tensor]:
    """Latent diffusion's buffers of a scaled-linear schedule: (T,) float32, computed in float64."""
    start, end = objective.beta_start**0.5, objective.beta_end**0.5
    betas = torch.linspace(start, end, objective.train_timesteps, dtype=torch.float64) ** 2
    alphas = 1 - betas
    abar = alphas.cumprod(0)
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    variance = betas * (1 - before) / (1 - abar)
    buffers = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - abar),
        "logvar": torch.zeros_like(betas),
    }
    return {name: buffer.float() for name, buffer in buffers.items()}
