"""The published IDM-VTON: a diffusers folder of one subfolder per network, in and out.

    unet/            TryonNet; with the Resampler (encoder_hid_proj.*) and the image keys and values
                     (...attn2.processor.to_k_ip.weight, to_v_ip.weight)
    unet_encoder/    GarmentNet
    image_encoder/  text_encoder/  text_encoder_2/  tokenizer/  tokenizer_2/  vae/  scheduler/
    model_index.json

Only TryonNet is trained: an imported run holds its weights, and the other networks stay in the
folder, which the run's settings name.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from diffusers import DDPMScheduler
from torch import Tensor, nn

from vton.config import ExperimentConfig
from vton.diffusion.objective import Objective
from vton.diffusion.solvers import SCHEDULE_KEYS, check_scheduler
from vton.errors import UserError
from vton.models.encoders import clip_image_encoder, text_encoder
from vton.models.hub_settings import (
    clip_settings,
    codec_settings,
    noise_settings,
    source_settings,
    text_settings,
    unet_settings,
)
from vton.models.idm_vton.config import IdmVtonConfig
from vton.models.resampler import IP_ADAPTER_HEAD, resampler_shape
from vton.models.settings import ClipConfig, TextConfig, UNetConfig
from vton.models.unet import read_unet_arguments, unet_arguments, write_unet
from vton.weights.pretrained import (
    PUBLISHED_METADATA,
    below,
    hub_folder,
    load_state,
    network_folder,
    read_json,
    read_weights_folder,
    write_json,
    write_tensors,
)
from vton.weights.published import PublishedWeights, settings_of

TRYON = "tryon.unet."  # our names of TryonNet's tensors begin with it
RESAMPLER = "encoder_hid_proj."
HEADS = "_resampler_heads"  # in config.json; diffusers skips entries with an underscore
INFERENCE_CAPTION = "model is wearing a {}"  # of the released inference scripts
PUBLISHED_WIDTH = 320  # of TryonNet's first level
NETWORKS = {
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "unet_encoder": ("diffusers", "UNet2DConditionModel"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "scheduler": ("diffusers", "DDPMScheduler"),
}


# ---- in ----


def read_published(path: Path) -> PublishedWeights:
    """TryonNet's weights and the settings that the folder's configuration files imply.

    A folder with weights alone (IDM-VTON-DC) counts as the published size, and its frozen networks
    are those of preset=paper. Raises UserError naming the file that is absent, broken or of
    another model.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is a file; IDM-VTON is published as a diffusers folder that holds unet/."
        )
    folder = path / "unet" if (path / "unet").is_dir() else path
    weights = read_weights_folder(folder)
    required = ("conv_in.weight", f"{RESAMPLER}latents")
    lacking = [name for name in required if name not in weights]
    if lacking:
        raise UserError(
            f"{folder} holds no IDM-VTON TryonNet: its weights lack {' and '.join(lacking)}."
        )
    settings = tryon_settings(folder, weights)
    settings += settings_of("data", {"person_caption": INFERENCE_CAPTION})
    if (path / "model_index.json").exists():
        settings += frozen_settings(path.resolve())
    return PublishedWeights({TRYON + name: tensor for name, tensor in weights.items()}, settings)


def tryon_settings(folder: Path, weights: dict[str, Tensor]) -> list[str]:
    """Shape of TryonNet from config.json, and of its Resampler from the weights."""
    fresh = settings_of("model", {"unet.pretrained": "", "image_prompt.pretrained": ""})
    if (folder / "config.json").exists():
        config = read_json(folder / "config.json")
        shape = unet_settings("model.unet", read_unet_arguments(folder), folder)
        return fresh + shape + resampler_settings(weights, config, folder)
    if weights["conv_in.weight"].shape[0] == PUBLISHED_WIDTH:
        return fresh
    raise UserError(
        f"{folder} has no config.json and is not of the published size; put its config.json there."
    )


def resampler_settings(weights: dict[str, Tensor], config: dict, folder: Path) -> list[str]:
    """Sizes that the Resampler's tensors show.

    The number of heads is not among them. Published heads are IP-Adapter's; ours are noted in
    config.json. For any other width the run's settings must say it (model.resampler.heads and
    head_width), else its shapes don't fit.
    """
    try:
        shape = resampler_shape(below(weights, RESAMPLER))
    except (KeyError, ValueError, IndexError):
        raise UserError(
            f"{folder}: its {RESAMPLER}* tensors are not those of a Resampler."
        ) from None
    sizes = {name: shape[name] for name in ("width", "depth", "queries", "feed_forward")}
    heads = config.get(HEADS)
    if not heads and shape["inner"] % IP_ADAPTER_HEAD == 0:
        heads = shape["inner"] // IP_ADAPTER_HEAD
    if heads:
        sizes |= {"heads": heads, "head_width": shape["inner"] // heads}
    return settings_of("model.resampler", sizes)


def frozen_settings(path: Path) -> list[str]:
    """Where the frozen networks lie, and their shapes."""
    needed = ("unet_encoder", "image_encoder", "text_encoder", "text_encoder_2", "vae")
    absent = [name for name in needed if not (path / name / "config.json").is_file()]
    if absent:
        raise UserError(
            f"{path} is incomplete: no config.json in {', '.join(absent)}. "
            "Fetch the whole repository."
        )
    garment = read_unet_arguments(path / "unet_encoder")
    garment["addition_embed_type"] = None  # its file has the embedding, its code turns it off
    return [
        *unet_settings("model.garment_unet", garment, path / "unet_encoder"),
        *source_settings("model.garment_unet", path, "unet_encoder"),
        *settings_of("model.garment_unet", {"trained": False}),
        *clip_settings("model.clip", path, "image_encoder"),
        *text_settings("model.text", path, "text_encoder", "tokenizer", projects=False),
        *text_settings("model.text_2", path, "text_encoder_2", "tokenizer_2", projects=True),
        *codec_settings(path, "vae"),
        *noise_settings(path / "scheduler"),
    ]


# ---- out ----


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The same kind of folder from a run's weights; complete or not there at all.

    Networks that the run trained are written from `state`, the others copied from where the
    configuration finds them. Raises UserError for a codec or timesteps that the format has no place
    for, and for a run without one of its networks.
    """
    model: IdmVtonConfig = config.model
    if not (model.garment_net and model.image_prompt.enabled):
        raise UserError(
            f"model.garment_net={model.garment_net} and model.image_prompt.enabled="
            f"{model.image_prompt.enabled}: IDM-VTON's format has no place for a run without these "
            "networks."
        )
    if config.codec.name != "kl":
        raise UserError(
            f"codec.name={config.codec.name} has no place in IDM-VTON's format, which holds an "
            "AutoencoderKL (codec.name=kl)."
        )
    if config.objective.schedule.startswith("continuous") or config.sampler.spacing == "trained":
        raise UserError(
            f"objective.schedule={config.objective.schedule}, sampler.spacing="
            f"{config.sampler.spacing}: IDM-VTON's format holds a diffusers scheduler, which "
            "knows neither continuous times nor spacing=trained."
        )
    published_scheduler(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        folder = Path(temporary) / "folder"
        write_networks(folder, state, config)
        folder.replace(target)


def write_networks(folder: Path, state: dict[str, Tensor], config: ExperimentConfig) -> None:
    """Write every network of the pipeline, and its index, in the hub's layout."""
    model: IdmVtonConfig = config.model
    channels = len(state[f"{TRYON}conv_out.weight"])
    write_tryon(below(state, TRYON), model, channels, folder / "unet")
    garment = below(state, "garment_net.")
    write_garment_net(garment, model.garment_unet, channels, folder / "unet_encoder")
    write_clip(below(state, "clip."), model.clip, folder / "image_encoder")
    write_text(below(state, "text."), model.text, "model.text", folder, suffix="")
    write_text(below(state, "text_2."), model.text_2, "model.text_2", folder, suffix="_2")
    write_codec(config, folder / "vae")
    published_scheduler(config).save_pretrained(folder / "scheduler")
    index: dict = {"_class_name": "StableDiffusionXLInpaintPipeline"}
    for name, (library, class_name) in NETWORKS.items():
        index[name] = [library, class_name]
    for name in ("tokenizer", "tokenizer_2"):
        index[name] = ["transformers", tokenizer_class(folder / name)]
    write_json(folder / "model_index.json", index)


def write_tryon(
    state: dict[str, Tensor], model: IdmVtonConfig, channels: int, folder: Path
) -> None:
    inputs = state["conv_in.weight"].shape[1]
    image_prompt = {
        "encoder_hid_dim": state[f"{RESAMPLER}proj_in.weight"].shape[1],
        "encoder_hid_dim_type": "ip_image_proj",
        HEADS: model.resampler.heads,
    }
    write_unet(folder, state, unet_arguments(model.unet, inputs, channels), image_prompt)


def write_garment_net(
    state: dict[str, Tensor], settings: UNetConfig, channels: int, folder: Path
) -> None:
    """Without SDXL's added embedding in its configuration: the authors' code calls it without."""
    if state:
        write_unet(folder, state, unet_arguments(settings, channels, channels))
        return
    copy_network(settings, "model.garment_unet", folder)
    config = read_json(folder / "config.json")
    if config.get("addition_embed_type") is not None:
        write_json(folder / "config.json", config | {"addition_embed_type": None})


def write_clip(state: dict[str, Tensor], settings: ClipConfig, folder: Path) -> None:
    if state:
        encoder = loaded(clip_image_encoder(settings), state)
        encoder.tower.save_pretrained(folder)
    else:
        copy_network(settings, "model.clip", folder)


def write_text(
    state: dict[str, Tensor], settings: TextConfig, key: str, folder: Path, suffix: str
) -> None:
    """text_encoder<suffix>/ and tokenizer<suffix>/."""
    encoder_folder = folder / f"text_encoder{suffix}"
    tokenizer_folder = folder / f"tokenizer{suffix}"
    if state:
        encoder = loaded(text_encoder(settings), state)
        encoder.model.save_pretrained(encoder_folder)
        file = encoder_folder / "model.safetensors"
        write_tensors(file, published_text(encoder.model), PUBLISHED_METADATA)
        encoder.tokenizer.save_pretrained(tokenizer_folder)
    else:
        copy_network(settings, key, encoder_folder)
        source, subfolder = settings.pretrained, settings.tokenizer_subfolder
        shutil.copytree(hub_folder(source, subfolder, f"{key}.pretrained"), tokenizer_folder)


def tokenizer_class(folder: Path) -> str:
    """The class of a saved tokenizer: CLIP's, or that of bytes, which runs from scratch read."""
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    return settings.get("tokenizer_class", "CLIPTokenizer")


def published_text(model: nn.Module) -> dict[str, Tensor]:
    """A text encoder's tensors under the names that all published ones have. transformers from 5 on
    writes some without their beginning; it reads both, older ones draw what they do not find.
    """
    named = {}
    for name, tensor in model.state_dict().items():
        whole = name.startswith(("text_model.", "text_projection."))
        named[name if whole else f"text_model.{name}"] = tensor
    return named


def write_codec(config: ExperimentConfig, folder: Path) -> None:
    """The pretrained autoencoder, or the one that the run trained."""
    if config.codec.pretrained:
        copy_network(config.codec, "codec", folder)
        return
    own = Path(config.runs) / config.name / "codec"
    if not own.is_dir():
        raise UserError(f"The run's codec is not at {own}.")
    shutil.copytree(own, folder, ignore=shutil.ignore_patterns("done", "quality.json"))


def published_scheduler(config: ExperimentConfig) -> DDPMScheduler:
    """The scheduler that samples as the run does. Raises UserError where there is none."""
    sampler = replace(config.sampler, solver="ddpm", eta=0.0)
    objective = Objective(config.objective)
    # Not from_config, which drops what the objective's own scheduler has by default.
    scheduler = DDPMScheduler(
        **{key: objective.scheduler_config[key] for key in SCHEDULE_KEYS},
        rescale_betas_zero_snr=config.objective.zero_terminal_snr,
        timestep_spacing=sampler.spacing,
        steps_offset=1,
        clip_sample=sampler.clip_sample > 0,
        clip_sample_range=sampler.clip_sample or 1.0,
    )
    check_scheduler(scheduler.config, sampler, objective, "IDM-VTON's format: the scheduler's ")
    return scheduler


def loaded(encoder: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    load_state(encoder, state, "the run's weights")
    return encoder


def copy_network(settings, key: str, target: Path) -> None:
    """A frozen network's folder as it is. Raises UserError if the configuration names none."""
    if not settings.pretrained:
        raise UserError(
            f"{key} is neither in the run's weights nor anywhere else ({key}.pretrained is empty)."
        )
    source, subfolder = settings.pretrained, settings.subfolder
    shutil.copytree(network_folder(source, subfolder, f"{key}.pretrained"), target)
