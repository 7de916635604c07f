"""The configuration: dataclasses are the schema, YAML files pick values, dotted overrides come last.

`load("model=gardiff", "preset=tiny", "train.lr=1e-4")` joins, in this order,

    configs/default.yaml <- model/<name>.yaml <- preset/<name>.yaml <- the model file's own `presets.<preset>`
    <- data/<name>.yaml <- trainer/<name>.yaml <- row of ablation/<name>.yaml <- overrides

and checks the result against `ExperimentConfig`. Two kinds of model files say more: one with `modes`, chosen by
`model.mode=<mode>`, whose `modes.<mode>` comes after the file and the mode's own `presets.<preset>` after the file's;
and a cascade's with `stages.<model.stage>`, which acts just before `presets.<preset>`: what all presets of a stage
share, such as its size; the stage's own `presets.<preset>` comes after the file's. This module imports neither torch
nor lightning: `vton list` and `vton --help` stay fast.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from vton.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROUPS = {"model": "gardiff", "preset": "tiny", "data": "synthetic", "trainer": "cpu"}  # group -> default choice

ModelKind = Literal["architecture", "warp"]
MaskRule = Literal[
    "safe", "viton_hd", "hr_viton", "cat_dm", "ladi", "dresscode_ref", "ootd", "hull", "box", "tryondiffusion"
]
# iou: of silhouettes, in tables with a learned warp. The last four score garments for IMAGDressing's table and need
# networks of their own: vton/metrics/garment_scores.py.
Metric = Literal["ssim", "psnr", "lpips", "dists", "fid", "kid", "iou", "cami_u", "cami_s", "mp_lpips", "image_reward"]


class ConfigError(UserError):
    """A configuration that cannot be used. One line: the key, the problem, the nearest valid choice."""


LARGEST = sys.float_info.max  # infinity and NaN are beyond it, and integers that no float can be


def in_bounds(section: str, config: Any, **bounds: tuple[float, float]) -> None:
    """Raise ConfigError naming the first field of `config` that is not finite or outside its bounds, both inclusive.

    Of a field that holds several values each must lie inside.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple | list) else (value,):
            if not (low <= number <= high and abs(number) <= LARGEST):
                shown = list(value) if isinstance(value, tuple) else value
                wanted = f"at least {low}" if high == math.inf else f"in {low}..{high}"
                raise ConfigError(f"{section}{name}={shown} must be {wanted}.")


SOME, MORE, SHARE = (0, math.inf), (1, math.inf), (0, 1)  # bounds of counts, and of probabilities and fractions


@dataclass
class TrainedConfig:
    """What every config under vton/models extends. Only architectures are compared with each other.

    A cascade also has a field `stage`, one of CASCADE's names.
    """

    # Stages in the order of sampling, with how many times each enlarges the pictures of the one before; see cascade.py.
    CASCADE: ClassVar[dict[str, int]] = {}

    kind: ClassVar[ModelKind]
    name: str = ""

    @property
    def upper_stage(self) -> str:
        """The stage where it enlarges another one's pictures; "" for a cascade's first and for single networks."""
        return "" if not self.CASCADE or self.stage == next(iter(self.CASCADE)) else self.stage

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.name}-{self.upper_stage}" if self.upper_stage else self.name


@dataclass
class ModelConfig(TrainedConfig):
    """What every architecture's own config extends."""

    kind: ClassVar[ModelKind] = "architecture"
    condition_dropout: float = 0.1  # probability that a training sample loses all its conditions


@dataclass
class CodecConfig:
    """Pixels to latents and back."""

    name: Literal["identity", "linear", "kl"] = "kl"
    pretrained: str = ""  # kl: diffusers folder or hub id; "" builds it from the fields below and trains it first
    subfolder: str = "vae"
    patch: int = 4  # linear: side of a patch, px
    channels: int = 4  # linear and kl from scratch: latent channels
    widths: tuple[int, ...] = (128, 256, 512, 512)  # kl from scratch: channels per level; Stable Diffusion's by default
    layers: int = 2  # kl from scratch: ResNet blocks per level
    groups: int = 32  # kl from scratch: GroupNorm
    fit_images: int = 256  # linear: training pictures the basis is fitted on
    fit_steps: int = 2000  # kl from scratch: optimizer steps before the diffusion model starts

    def __post_init__(self):
        in_bounds("codec.", self, patch=MORE, channels=MORE, widths=MORE, layers=MORE, groups=MORE, fit_images=MORE,
                  fit_steps=MORE)  # fmt: skip
        if not self.widths:
            raise ConfigError("codec.widths=[] names no level.")


@dataclass
class ObjectiveConfig:
    """Noise schedule, what the network predicts and how the loss weighs it."""

    schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2", "continuous_cosine", "continuous_linear"] = (
        "scaled_linear"
    )
    train_timesteps: int = 1000  # continuous schedules: the t of pure noise
    beta_start: float = 0.00085  # this and beta_end: scaled_linear and linear only
    beta_end: float = 0.012
    max_log_snr: float = 15.0  # continuous schedules: log of signal power over noise power is clipped to +- this
    zero_terminal_snr: bool = False
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    loss_weight: Literal["uniform", "min_snr"] = "uniform"
    min_snr_gamma: float = 5.0
    timestep_power: float = 1.0  # t = T * u**(1/power), u uniform; above 1 favours noisy timesteps
    noise_offset: float = 0.0  # eps = n + offset m, n per value, m one draw per sample and channel

    def __post_init__(self):
        in_bounds("objective.", self, train_timesteps=MORE, beta_start=SHARE, beta_end=SHARE, min_snr_gamma=SOME,
                  timestep_power=SOME, noise_offset=SOME)  # fmt: skip
        if self.timestep_power <= 0:
            raise ConfigError(f"objective.timestep_power={self.timestep_power} must be positive.")
        if self.max_log_snr <= 0:
            raise ConfigError(f"objective.max_log_snr={self.max_log_snr} must be positive.")
        if self.continuous and self.zero_terminal_snr:
            raise ConfigError(
                f"objective.zero_terminal_snr=true rescales a table, which objective.schedule={self.schedule} has not; "
                "raise objective.max_log_snr for less signal at the end."
            )

    @property
    def continuous(self) -> bool:
        """Whether t is any number in [0, train_timesteps] instead of a whole one."""
        return self.schedule.startswith("continuous_")


@dataclass
class SamplerConfig:
    """How pictures are drawn. Every architecture goes through the same loop."""

    solver: Literal["ddim", "ddpm", "dpmpp_2m", "unipc"] = "ddim"
    steps: int = 50
    guidance: float = 1.0  # 1 = off: one network pass per step
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # fractions of the timestep range in which guidance acts
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    clip_sample: float = 0.0  # clamp the predicted clean sample to +-this; 0 = off
    dynamic_threshold: float = 0.0  # instead of it Imagen's: quantile of |clean sample| that becomes 1; 0 = off
    ddpm_variance: float = 0.0  # ddpm: 0 the lower bound of each step's variance, 1 the upper, in log space between
    zero_terminal_snr: bool | None = None  # null: as in training (objective.zero_terminal_snr)
    final_sigma: Literal["zero", "sigma_min"] = "zero"  # dpmpp_2m, unipc: noise level that the last step ends at

    def __post_init__(self):
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"sampler.guidance_interval={[low, high]} must satisfy 0 <= low <= high <= 1.")
        in_bounds("sampler.", self, steps=MORE, guidance=SOME, clip_sample=SOME)
        if not 0 <= self.dynamic_threshold <= 1 or not 0 <= self.ddpm_variance <= 1:
            raise ConfigError(
                f"sampler.dynamic_threshold={self.dynamic_threshold} and sampler.ddpm_variance={self.ddpm_variance} "
                "must be in [0, 1]."
            )
        if self.clip_sample not in (0, 1) and self.solver in ("dpmpp_2m", "unipc"):
            raise ConfigError(
                f"sampler.clip_sample={self.clip_sample}: {self.solver} can only clip to 1; use 0, 1, or solver ddim."
            )


@dataclass
class AugmentConfig:
    """Training-time changes, drawn once per sample from (seed, epoch, index)."""

    flip: float = 0.5  # probability of mirroring person and garment together (off for lettering)
    affine: float = 0.5  # probability of shifting and scaling everything on the person's canvas
    shift: float = 0.2  # fraction of the picture
    scale: tuple[float, float] = (0.8, 1.2)
    garment_affine: float = 0.5  # probability of shifting and scaling the in-shop garment alone
    colour: float = 0.5  # probability of one colour change shared by person and garment, before normalisation
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    mask_dilate_px: int = 0  # agnostic mask grown by 0..this many pixels (at the training size)
    box_mask: float = 0.0  # probability of the mask's bounding box instead of the mask

    def __post_init__(self):
        in_bounds("data.augment.", self, flip=SHARE, affine=SHARE, shift=SHARE, scale=(0.01, 100), garment_affine=SHARE,
                  colour=SHARE, brightness=SHARE, contrast=SHARE, saturation=SHARE, hue=(0, 0.5), mask_dilate_px=SOME,
                  box_mask=SHARE)  # fmt: skip
        if self.scale[0] > self.scale[1]:
            raise ConfigError(f"data.augment.scale={list(self.scale)} must name the smaller one first.")


@dataclass
class SyntheticConfig:
    """The rendered data set: written once below data.root, then read like any real folder."""

    layout: Literal["viton_hd", "dresscode"] = "viton_hd"
    train: int = 512  # pairs; dresscode: per category
    test: int = 64
    seed: int = 0
    workers: int = 2  # renderer processes

    def __post_init__(self):
        in_bounds("data.synthetic.", self, train=MORE, test=MORE, seed=SOME, workers=MORE)


@dataclass
class DataConfig:
    name: Literal["synthetic", "viton_hd", "dresscode"] = "synthetic"
    root: str = (
        ""  # folder, plain or of shards, or URL of shards; "" = $VTON_DATA/<name>, data/<name> without VTON_DATA
    )
    shards_kept: str = ""  # folder that keeps what is fetched from a URL; "" = ~/.cache/vton/shards
    size: tuple[int, int] = (512, 384)  # height, width in px; both datasets are 4:3
    pad: bool = False  # keep the pictures at 4:3 in a size of another shape, on white; false: stretch them to it
    category: Literal["all", "upper_body", "lower_body", "dresses"] = "all"
    limit_train: int = 0  # use only so many training pairs, spread over the list; 0 = all; never more than there are
    limit_test: int = 0  # at most so many for validation and evaluation, spread likewise; 0 = all
    mask_source: Literal["auto", "folder", "derive"] = "auto"  # auto: the folder's mask where there is one
    mask_rule: MaskRule = "safe"  # for derived masks; see vton/data/agnostic.py
    # auto: the folder's warp where there is one, else geometric; learned: the run in warp_run
    warp_source: Literal["auto", "folder", "geometric", "learned", "none"] = "auto"
    warp_run: str = ""  # run folder of a trained warp (vton train model=warp)
    warp_folder: str = ""  # name of the folder with warped garments; "" = the known names
    warp_folder_unpaired: str = ""
    warp_key: Literal["person", "garment"] = "person"  # what names the warp files
    densepose: bool = False  # deliver the DensePose picture; then it is a required part
    person_caption: str = "model is wearing {}"  # {} = the garment's annotation
    garment_caption: str = "a photo of {}"
    caption_fallback: str = "shirts"  # annotation of a garment that has none
    caption_source: Literal["folder", "fallback"] = "folder"  # fallback: caption_fallback for every garment
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    cache: Literal["none", "memory"] = "none"  # memory: keep decoded samples, for sets that fit
    encoded: str = ""  # folder of latents and embeddings computed ahead (vton data cache); "" = compute them every time
    workers: int = 4  # loader processes
    pin_memory: bool = True
    check: bool = True  # walk the folder for broken required files before training

    def __post_init__(self):
        in_bounds("data.", self, limit_train=SOME, limit_test=SOME, workers=SOME)
        if min(self.size) < 16:
            raise ConfigError(f"data.size={list(self.size)}: height and width in pixels, at least 16 each.")
        if (self.warp_source == "learned") != bool(self.warp_run):
            raise ConfigError(
                f"data.warp_source={self.warp_source} and data.warp_run={self.warp_run!r} do not belong together: a "
                "learned warp is data.warp_source=learned data.warp_run=FOLDER, the run of `vton train model=warp`."
            )
        for name in ("person_caption", "garment_caption"):
            if "{}" not in getattr(self, name):
                raise ConfigError(f"data.{name}={getattr(self, name)!r} lacks {{}}, the place of the annotation.")

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the photographs: `size`, or with `pad` the largest 4:3 that it holds."""
        height, width = self.size
        return (min(height, width * 4 // 3), min(width, height * 3 // 4)) if self.pad else (height, width)

    def unpadded(self) -> DataConfig:
        """The same pictures without what `pad` puts around them."""
        return replace(self, size=self.picture_size, pad=False)


@dataclass
class TrainConfig:
    steps: int = 10_000  # optimizer steps
    batch_size: int = 16  # per device
    accumulate: int = 1  # batches per optimizer step
    lr: float = 1e-4
    warmup_steps: int = 500
    schedule: Literal["constant", "cosine"] = "constant"  # after warm-up
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    grad_clip: float = 1.0  # norm; 0 = off
    ema: float = 0.9999  # decay of the average over trained parameters; 0 = off
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    log_every: int = 50  # steps
    non_finite: Literal["stop", "skip"] = "stop"  # a step whose loss or gradient is not: end the run, or count it
    checkpoint_every: int = 1000  # steps
    keep_last: int = 1  # checkpoints that stay, the newest; above 1 also as last_<step>.ckpt
    keep_best: int = 1  # the same by the held-out score, best_<step>.ckpt
    picture_every: int = 1000  # steps between grids of fixed held-out samples; 0 = never
    pictures: int = 8  # rows of that grid
    val_pairs: int = 32  # held-out pairs behind the val/ scalars

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep_last", "keep_best"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be at least 1.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"train.ema={self.ema} must be in [0, 1).")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"train.betas={list(self.betas)} must be in [0, 1).")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"train.lr={self.lr} must be positive.")
        in_bounds("train.", self, warmup_steps=SOME, weight_decay=SOME, grad_clip=SOME, picture_every=SOME,
                  pictures=MORE, val_pairs=MORE)  # fmt: skip


@dataclass
class TrainerConfig:
    """What goes to lightning.Trainer."""

    name: str = "cpu"
    accelerator: Literal["cpu", "gpu", "auto"] = "auto"
    devices: int = 1  # per node; -1 = all
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"  # fsdp: FSDP2; deepspeed: ZeRO stage 2
    deterministic: bool = False
    threads: int = 0  # torch CPU threads; 0 = torch's default

    def __post_init__(self):
        in_bounds("trainer.", self, nodes=MORE, threads=SOME)
        if self.devices != -1:
            in_bounds("trainer.", self, devices=MORE)

    def replicated(self) -> TrainerConfig:
        """The same devices with the whole model on each: sampling sends them different numbers of batches."""
        return replace(self, strategy="ddp" if self.strategy in ("fsdp", "deepspeed") else self.strategy)


@dataclass
class EvalConfig:
    protocol: Literal["exact", "ladi_compat", "catvton_compat", "hrviton_compat"] = "exact"
    orders: tuple[Literal["paired", "unpaired"], ...] = ("paired", "unpaired")
    batch_size: int = 16
    seed: int = 0
    baselines: bool = True  # rows for what needs no learning, and for the warp below
    warp: str = ""  # run folder of a trained warp that gets a baseline row; "" = data.warp_run, if that is given
    shuffled: bool = True  # the control row: garments exchanged between samples
    chain: bool = True  # cascades: sample one stage after another; false: this one alone, on the reduced truth
    metrics: tuple[Metric, ...] = ("ssim", "psnr", "lpips", "dists", "fid", "kid", "iou")
    # Null: as the protocol says (vton/metrics/protocol.py). Rows name what was changed, and tables refuse to mix.
    size: tuple[int, int] | None = None  # height, width of the comparison
    repaint: bool | None = None  # paste the person's own picture outside the agnostic mask
    lpips_net: Literal["alex", "vgg", "squeeze"] | None = None
    kid_subsets: int | None = None
    kid_subset_size: int | None = None
    weights: str = ""  # folder of pretrained metric networks; "": $VTON_METRIC_WEIGHTS, else `vton weights`' own
    pictures: int = 8  # rows of the grid

    def __post_init__(self):
        if not self.orders:
            raise ConfigError("eval.orders=[] names no order; use [paired], [unpaired] or both.")
        in_bounds("eval.", self, pictures=MORE, seed=SOME)
        for name in ("batch_size", "kid_subsets", "kid_subset_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"eval.{name}={value} must be at least 1.")
        if self.size is not None and min(self.size) < 16:
            raise ConfigError(f"eval.size={list(self.size)}: height and width in pixels, at least 16 each.")


@dataclass
class CompareConfig:
    """What `vton compare` and `vton ablate` hold equal between their runs; see vton/comparison.py."""

    budget: Literal["steps", "flops"] = "steps"  # of each run: optimizer steps, or training FLOPs
    steps: int = 0  # budget=steps; 0 = train.steps of the preset
    tflop: float = 0.0  # budget=flops: forward and backward of all steps, on each device
    seeds: tuple[int, ...] = (0,)  # of training: as many runs of each method
    models: tuple[str, ...] = ()  # vton compare: these architectures; () = every registered one
    equal: tuple[str, ...] = ()  # further settings of all runs, as overrides
    results: str = "results"  # folder that holds one folder with rows, table and pictures per comparison

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"compare.seeds={list(self.seeds)} must name at least one seed, each once.")
        if len(set(self.models)) < len(self.models):
            raise ConfigError(f"compare.models={list(self.models)} must name each architecture once.")
        if self.steps < 0 or self.tflop < 0:
            raise ConfigError(f"compare.steps={self.steps} and compare.tflop={self.tflop} must not be negative.")
        if self.budget == "flops" and not self.tflop:
            raise ConfigError("compare.budget=flops needs compare.tflop, the training TFLOP of each run.")


@dataclass
class ExperimentConfig:
    model: Any = field(default_factory=ModelConfig)  # the registered model's own dataclass
    codec: CodecConfig = field(default_factory=CodecConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    preset: str = "tiny"
    ablation: str = ""  # <file>/<row> of configs/ablation
    seed: int = 0
    runs: str = "runs"  # folder that holds the run folders
    name: str = ""  # run folder; "" = <model>-<data>-<preset>[-<row>]; a cascade's upper stages lie in it, by name

    def __post_init__(self):
        in_bounds("", self, seed=(0, 2**32 - 1))  # what numpy takes
        if hasattr(self.model, "condition_dropout"):
            in_bounds("model.", self.model, condition_dropout=SHARE)
        strategy, precision = self.trainer.strategy, self.train.precision
        if strategy == "fsdp" and precision == "fp16":
            raise ConfigError("train.precision=fp16 scales its loss, which trainer.strategy=fsdp cannot; use bf16.")
        kept = (self.train.non_finite, self.train.keep_last, self.train.keep_best)
        if strategy == "deepspeed" and (precision == "fp16" or kept != ("stop", 1, 1)):
            raise ConfigError(
                "trainer.strategy=deepspeed needs train.precision=bf16 or fp32, train.non_finite=stop, "
                "train.keep_last=1 and train.keep_best=1; otherwise use trainer.strategy=fsdp."
            )
        if not self.objective.continuous and self.sampler.steps > self.objective.train_timesteps:
            raise ConfigError(
                f"sampler.steps={self.sampler.steps} is more than objective.train_timesteps="
                f"{self.objective.train_timesteps}."
            )
        if self.objective.continuous and (self.sampler.spacing != "trailing" or self.sampler.zero_terminal_snr):
            raise ConfigError(
                f"objective.schedule={self.objective.schedule} is sampled on the even grid from pure noise to 0: set "
                f"sampler.spacing=trailing (found {self.sampler.spacing}) and leave sampler.zero_terminal_snr null."
            )
        rescaled = self.sampler.zero_terminal_snr
        rescaled = self.objective.zero_terminal_snr if rescaled is None else rescaled
        if rescaled and self.objective.prediction == "epsilon" and self.sampler.spacing != "leading":
            raise ConfigError(
                f"sampler.spacing={self.sampler.spacing} starts where zero_terminal_snr leaves pure noise, from which "
                "objective.prediction=epsilon cannot recover a sample; use leading, or v_prediction or sample."
            )


def choices(group: str) -> list[str]:
    """Names of the YAML files of a group: model, preset, data, trainer or ablation."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def load(*overrides: str) -> ExperimentConfig:
    """The experiment that the overrides describe.

    `model=`, `preset=`, `data=`, `trainer=` and `ablation=` choose files; every other override is a dotted key.
    Raises ConfigError with one line that names the key and its nearest neighbour.
    """
    from vton import registry

    chosen, dotted = _split(overrides)
    if chosen["ablation"]:
        dotted = [*_ablation_row(chosen["ablation"]), *dotted]
    layers = [_read(CONFIGS / "default.yaml")]
    model = _read(_file("model", chosen["model"]))
    presets, modes, stages = (model.pop(part, {}) for part in ("presets", "modes", "stages"))
    given = _dotted(dotted)
    mode = modes.get(_name(given, "model.mode"), {})
    mode_presets = mode.pop("presets", {})
    layers += [model, mode, _read(_file("preset", chosen["preset"]))]
    own_presets = len(layers)
    layers += [of.get(chosen["preset"], {}) for of in (presets, mode_presets)]
    past_presets = len(layers)
    layers += [_read(_file(group, chosen[group])) for group in ("data", "trainer")]
    layers.append(given)
    layers.append({"preset": chosen["preset"], "ablation": chosen["ablation"]})
    layers.append({"model": {"name": chosen["model"]}, "trainer": {"name": chosen["trainer"]}})
    model_class = registry.config_class(chosen["model"])
    if stages:
        asked = [_name(OmegaConf.create(layer), "model.stage") for layer in layers]
        stage = next((stage for stage in reversed(asked) if stage), model_class().stage)
        settings = stages.get(stage, {})
        stage_presets = settings.pop("presets", {})
        layers.insert(past_presets, stage_presets.get(chosen["preset"], {}))
        layers.insert(own_presets, settings)
    config = _checked(model_class, layers)
    if not config.name:
        row = f"-{chosen['ablation'].replace('/', '-')}" if chosen["ablation"] else ""
        config.name = f"{config.model.name}-{config.data.name}-{config.preset}{row}"
    return config


def upper_stages(*overrides: str) -> list[ExperimentConfig]:
    """The other stages of the cascade that the overrides load the first of; none where dotted keys or an ablation do.

    A size, a width or a row of an ablation is one stage's own, which `model.stage` chooses.
    """
    chosen, dotted = _split(overrides)
    if dotted or chosen["ablation"]:
        return []
    first = load(*overrides).model
    return [load(*overrides, f"model.stage={stage}") for stage in first.CASCADE if stage != first.stage]


def load_shared(*overrides: str) -> ExperimentConfig:
    """What experiments of all architectures start from: `load` without anything that is the model's own.

    Its `model` and `name` are empty; overrides below `model.` are left out. Raises ConfigError as `load` does.
    """
    chosen, dotted = _split(overrides)
    layers = [_read(CONFIGS / "default.yaml")]
    layers += [_read(_file(group, chosen[group])) for group in ("preset", "data", "trainer")]
    layers.append(_dotted([override for override in dotted if not override.startswith("model.")]))
    layers.append({"preset": chosen["preset"], "trainer": {"name": chosen["trainer"]}})
    return _checked(ModelConfig, layers)


@dataclass(frozen=True)
class Ablation:
    """The rows of one published table, configs/ablation/<model>.yaml:

    source: paper and table
    rows: name of the row -> settings in which it differs from the model's own, {} for none
    """

    source: str
    rows: dict[str, list[str]]  # name -> overrides


def ablation(name: str) -> Ablation:
    """The table of that name. Raises ConfigError naming file and row."""
    path = _file("ablation", name)
    content = OmegaConf.to_container(_read(path))
    if set(content) != {"source", "rows"} or not isinstance(content["source"], str) or not content["rows"]:
        raise ConfigError(f"{path}: expected `source`, a line on where the table stands, and `rows`, name: settings.")
    for row, settings in content["rows"].items():
        if not re.fullmatch(r"[\w+.-]+", str(row)):
            raise ConfigError(f"{path}: row '{row}' becomes a folder; use letters, digits and _ + . - only.")
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: row '{row}' must hold settings, {{}} for none, not {settings!r}.")
    rows = {str(row): [as_override(*item) for item in flatten(settings).items()] for row, settings in
            content["rows"].items()}  # fmt: skip
    return Ablation(content["source"], rows)


def as_override(key: str, value: Any) -> str:
    """`key=value` as the command line takes it; JSON is YAML."""
    return f"{key}={json.dumps(value)}"


def flatten(tree: dict, prefix: str = "") -> dict:
    """{'a': {'b': 1}} -> {'a.b': 1}; sequences become tuples so that YAML's lists compare equal to tuples."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def load_file(path: Path, *overrides: str) -> ExperimentConfig:
    """A resolved config.yaml of a run folder, with dotted overrides on top. Raises ConfigError."""
    from vton import registry

    if not Path(path).is_file():
        raise ConfigError(f"No run configuration at {path}.")
    stored = _read(Path(path))
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"'{override}' is not of the form key=value.")
    given = _dotted(overrides)
    try:
        name = _name(stored, "model.name")
        if not name:
            raise ConfigError("no model.name: not a run's config.yaml.")
        return _checked(registry.config_class(name), [stored, given])
    except ConfigError as error:
        if any(str(error).startswith(override.partition("=")[0]) for override in overrides):
            raise
        raise ConfigError(f"{path}: {error}") from None


def to_yaml(config: ExperimentConfig) -> str:
    """The resolved configuration as YAML; `load_file` reads it back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def data_root(data: DataConfig) -> str:
    """The data set's folder or URL: data.root, else $VTON_DATA/<name>, else data/<name>."""
    if data.root:
        return os.path.expanduser(data.root).rstrip("/")
    return f"{os.environ.get('VTON_DATA', 'data').rstrip('/')}/{data.name}"


def nearest(word: str, known: Sequence[str]) -> str:
    """'Did you mean ...?' for a mistyped name, or the list of known ones."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean: '{close[0]}'?" if close else f"Known: {', '.join(known)}."


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    chosen, dotted = {**GROUPS, "ablation": ""}, []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{override}' is not of the form key=value.")
        if key in chosen:
            chosen[key] = value
        else:
            dotted.append(override)
    return chosen, dotted


def _file(group: str, name: str) -> Path:
    known = choices(group)
    if name not in known:
        raise ConfigError(f"{group}={name}: no such {group}. {nearest(name, known)}")
    return CONFIGS / group / f"{name}.yaml"


def _dotted(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        key = override.partition("=")[0]
        if key in ("model.name", "trainer.name"):
            raise ConfigError(f"{override}: a file of configs/ is chosen by {key.partition('.')[0]}=.")
    try:
        content = OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"Cannot read the overrides {' '.join(overrides)[:200]}: {_first_line(error)}") from None
    return _without_gaps(content)


def _without_gaps(content: DictConfig, where: str = "") -> DictConfig:
    """The same. Raises ConfigError for OmegaConf's ???, which it would pass over as if the key were not there."""
    for key, value in flatten(OmegaConf.to_container(content)).items():
        if value == "???":
            raise ConfigError(f"{where}{key}=???: give it a value, or leave the key out.")
    return content


def _name(content: DictConfig, key: str) -> str:
    """The value of a key that decides which settings are read; "" where it is not given. Raises ConfigError."""
    try:
        value = OmegaConf.select(content, key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {_first_line(error)}") from None
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{key}={value} is not a name.")
    return value or ""


def _ablation_row(choice: str) -> list[str]:
    name, _, row = choice.partition("/")
    rows = ablation(name).rows
    if row not in rows:
        raise ConfigError(f"ablation={choice}: no row '{row}'. {nearest(row, list(rows))}")
    return rows[row]


def _read(path: Path) -> DictConfig:
    try:
        content = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {_first_line(error)}") from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}.")
    return _without_gaps(content, f"{path}: ")


@functools.cache  # half of the time of a load; merging copies it
def _schema(model_class: type[TrainedConfig]) -> DictConfig:
    schema = OmegaConf.structured(ExperimentConfig)
    schema.model = OmegaConf.structured(model_class)
    return schema


def _checked(model_class: type[TrainedConfig], layers: Sequence[Any]) -> ExperimentConfig:
    try:
        return OmegaConf.to_object(OmegaConf.merge(_schema(model_class), *layers))
    except ConfigKeyError as error:
        known = [field.name for field in fields(error.object_type)] if is_dataclass(error.object_type) else []
        *_, group, key = ["", *str(error.full_key).split(".")]
        where = f" in '{group}'" if group else ""
        raise ConfigError(f"{error.full_key}: no key '{key}'{where}. {nearest(key, known)}") from None
    # TypeError: its word for keys below a list; OverflowError: an integer that no float can be.
    except (OmegaConfBaseException, TypeError, OverflowError) as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{key}: {_first_line(error)}" if key else _refused(model_class, layers, error)) from None
    except RecursionError:
        raise ConfigError("The settings refer to each other without end.") from None


def _refused(model_class: type[TrainedConfig], layers: Sequence[Any], error: Exception) -> str:
    """What to say for an error that OmegaConf raises without a key: the first setting that does not fit by itself."""

    def misfit(content: Any) -> Exception | None:
        try:
            OmegaConf.merge(_schema(model_class), content)
        except (OmegaConfBaseException, TypeError, OverflowError) as error:
            return error

    for layer in filter(misfit, layers):
        for key, value in flatten(OmegaConf.to_container(OmegaConf.create(layer))).items():
            alone = OmegaConf.create()
            OmegaConf.update(alone, key, value)
            if found := misfit(alone):
                reason = _first_line(found).replace("$VALUE_TYPE", type(value).__name__).replace("$VALUE", str(value))
                return f"{key}: {reason}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
