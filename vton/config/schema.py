"""The schema: a dataclass per section of the configuration. Each checks its own values; a model's
own extends these.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from vton.errors import UserError

ModelKind = Literal["architecture", "warp"]
MaskRule = Literal[
    "safe",
    "viton_hd",
    "hr_viton",
    "cat_dm",
    "ladi",
    "dresscode_ref",
    "ootd",
    "hull",
    "box",
    "tryondiffusion",
]
# iou: of silhouettes, in tables with a learned warp. The last four score garments for
# IMAGDressing's table and need networks of their own: vton/metrics/garment_scores.py.
Metric = Literal[
    "ssim",
    "psnr",
    "lpips",
    "dists",
    "fid",
    "kid",
    "iou",
    "cami_u",
    "cami_s",
    "mp_lpips",
    "image_reward",
]


class ConfigError(UserError):
    """A configuration that cannot be used. One line: the key, the problem, the nearest valid
    choice.
    """


def nearest(word: str, known: Sequence[str]) -> str:
    """'Did you mean ...?' for a mistyped name, or the list of known ones."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean: '{close[0]}'?" if close else f"Known: {', '.join(known)}."


LARGEST = sys.float_info.max  # infinity and NaN are beyond it, and integers that no float can be


def in_bounds(section: str, config: Any, **bounds: tuple[float, float]) -> None:
    """Raise ConfigError naming the first field of `config` that is not finite or outside its
    bounds, both inclusive.

    Of a field that holds several values each must lie inside.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple | list) else (value,):
            if not (low <= number <= high and abs(number) <= LARGEST):
                shown = list(value) if isinstance(value, tuple) else value
                wanted = f"at least {low}" if high == math.inf else f"in {low}..{high}"
                raise ConfigError(f"{section}{name}={shown} must be {wanted}.")


SOME, MORE, SHARE = (
    (0, math.inf),
    (1, math.inf),
    (0, 1),
)  # bounds of counts, and of probabilities and fractions


@dataclass
class TrainedConfig:
    """What every config under vton/models extends. Only architectures are compared with each other.

    A cascade also has a field `stage`, one of CASCADE's names.
    """

    # Stages in the order of sampling, with how many times each enlarges the pictures of the one
    # before; see cascade.py.
    CASCADE: ClassVar[dict[str, int]] = {}

    kind: ClassVar[ModelKind]
    name: str = ""

    @property
    def upper_stage(self) -> str:
        """The stage where it enlarges another one's pictures; "" for a cascade's first and for
        single networks.
        """
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
    # kl: diffusers folder or hub id; "" builds it from the fields below and trains it first
    pretrained: str = ""
    subfolder: str = "vae"
    patch: int = 4  # linear: side of a patch, px
    channels: int = 4  # linear and kl from scratch: latent channels
    widths: tuple[int, ...] = (
        128,
        256,
        512,
        512,
    )  # kl from scratch: channels per level; Stable Diffusion's by default
    layers: int = 2  # kl from scratch: ResNet blocks per level
    groups: int = 32  # kl from scratch: GroupNorm
    fit_images: int = 256  # linear: training pictures the basis is fitted on
    fit_steps: int = 2000  # kl from scratch: optimizer steps before the diffusion model starts

    def __post_init__(self):
        in_bounds(
            "codec.",
            self,
            patch=MORE,
            channels=MORE,
            widths=MORE,
            layers=MORE,
            groups=MORE,
            fit_images=MORE,
            fit_steps=MORE,
        )
        if not self.widths:
            raise ConfigError("codec.widths=[] names no level.")


@dataclass
class ObjectiveConfig:
    """Noise schedule, what the network predicts and how the loss weighs it."""

    schedule: Literal[
        "scaled_linear", "linear", "squaredcos_cap_v2", "continuous_cosine", "continuous_linear"
    ] = "scaled_linear"
    train_timesteps: int = 1000  # continuous schedules: the t of pure noise
    beta_start: float = 0.00085  # this and beta_end: scaled_linear and linear only
    beta_end: float = 0.012
    # continuous schedules: log of signal power over noise power is clipped to +- this
    max_log_snr: float = 15.0
    # betas rescaled so that the last timestep is pure noise (arXiv 2305.08891)
    zero_terminal_snr: bool = False
    # what the network says; sample: clean latents
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    # of a sample's squared error; min_snr: arXiv 2303.09556
    loss_weight: Literal["uniform", "min_snr"] = "uniform"
    min_snr_gamma: float = 5.0  # min_snr: where the signal-to-noise ratio is cut
    timestep_power: float = 1.0  # t = T * u**(1/power), u uniform; above 1 favours noisy timesteps
    noise_offset: float = 0.0  # eps = n + offset m, n per value, m one draw per sample and channel

    def __post_init__(self):
        in_bounds(
            "objective.",
            self,
            train_timesteps=MORE,
            beta_start=SHARE,
            beta_end=SHARE,
            min_snr_gamma=SOME,
            timestep_power=SOME,
            noise_offset=SOME,
        )
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

    # diffusers' schedulers; ddpm: DDIM with eta 1
    solver: Literal["ddim", "ddpm", "dpmpp_2m", "unipc"] = "ddim"
    steps: int = 50  # network evaluations per picture, twice as many with guidance
    guidance: float = 1.0  # 1 = off: one network pass per step
    guidance_interval: tuple[float, float] = (
        0.0,
        1.0,
    )  # fractions of the timestep range in which guidance acts
    # which timesteps; trailing begins at pure noise
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    clip_sample: float = 0.0  # clamp the predicted clean sample to +-this; 0 = off
    # instead of it Imagen's: quantile of |clean sample| that becomes 1; 0 = off
    dynamic_threshold: float = 0.0
    eta: float = 0.0  # ddim: noise of each step, 0 none, 1 as much as ddpm's lower variance
    # ddpm: 0 the lower bound of each step's variance, 1 the upper, in log space between
    ddpm_variance: float = 0.0
    zero_terminal_snr: bool | None = None  # null: as in training (objective.zero_terminal_snr)
    # dpmpp_2m, unipc: noise level that the last step ends at
    final_sigma: Literal["zero", "sigma_min"] = "zero"

    def __post_init__(self):
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"sampler.guidance_interval={[low, high]} must satisfy 0 <= low <= high <= 1."
            )
        in_bounds("sampler.", self, steps=MORE, guidance=SOME, clip_sample=SOME)
        in_bounds("sampler.", self, dynamic_threshold=SHARE, ddpm_variance=SHARE, eta=SHARE)
        if self.eta and self.solver != "ddim":
            raise ConfigError(
                f"sampler.eta={self.eta:g}: only solver=ddim takes it, not {self.solver}."
            )
        if self.clip_sample not in (0, 1) and self.solver in ("dpmpp_2m", "unipc"):
            raise ConfigError(
                f"sampler.clip_sample={self.clip_sample}: {self.solver} can only clip to 1; use 0, 1, or solver ddim."
            )


@dataclass
class AugmentConfig:
    """Training-time changes, drawn once per sample from (seed, place in the training stream)."""

    flip: float = 0.5  # probability of mirroring person and garment together (off for lettering)
    affine: float = 0.5  # probability of shifting and scaling everything on the person's canvas
    shift: float = 0.2  # fraction of the picture
    scale: tuple[float, float] = (0.8, 1.2)  # smallest, largest factor
    garment_affine: float = 0.5  # probability of shifting and scaling the in-shop garment alone
    # probability of one colour change shared by person and garment, before normalisation
    colour: float = 0.5
    brightness: float = 0.2  # this and the next three: torchvision's ColorJitter, 0 = unchanged
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05  # of the colour circle, at most 0.5
    mask_dilate_px: int = 0  # agnostic mask grown by 0..this many pixels (at the training size)
    box_mask: float = 0.0  # probability of the mask's bounding box instead of the mask

    def __post_init__(self):
        in_bounds(
            "data.augment.",
            self,
            flip=SHARE,
            affine=SHARE,
            shift=SHARE,
            scale=(0.01, 100),
            garment_affine=SHARE,
            colour=SHARE,
            brightness=SHARE,
            contrast=SHARE,
            saturation=SHARE,
            hue=(0, 0.5),
            mask_dilate_px=SOME,
            box_mask=SHARE,
        )
        if self.scale[0] > self.scale[1]:
            raise ConfigError(
                f"data.augment.scale={list(self.scale)} must name the smaller one first."
            )


@dataclass
class SyntheticConfig:
    """The rendered data set: written once below data.root, then read like any real folder."""

    # whose folders, categories and pair lists
    layout: Literal["viton_hd", "dresscode"] = "viton_hd"
    train: int = 512  # pairs; dresscode: per category
    test: int = 64  # the same
    seed: int = 0  # of people and garments
    workers: int = 2  # renderer processes

    def __post_init__(self):
        in_bounds("data.synthetic.", self, train=MORE, test=MORE, seed=SOME, workers=MORE)


@dataclass
class DataConfig:
    # which folders to expect; set by data=NAME
    name: Literal["synthetic", "viton_hd", "dresscode"] = "synthetic"
    root: str = ""  # folder, plain or of shards, or URL of shards; "" = $VTON_DATA/<name>, data/<name> without VTON_DATA
    shards_kept: str = ""  # folder that keeps what is fetched from a URL; "" = ~/.cache/vton/shards
    size: tuple[int, int] = (
        512,
        384,
    )  # height, width in px; pictures of both data sets are 4 high and 3 wide
    pad: bool = False  # keep the pictures at that shape in a size of another shape, on white; false: stretch them to it
    category: Literal["all", "upper_body", "lower_body", "dresses"] = "all"
    limit_train: int = 0  # use only so many training pairs, spread over the list; 0 = all; never more than there are
    limit_test: int = 0  # at most so many for validation and evaluation, spread likewise; 0 = all
    # auto: the folder's mask where there is one
    mask_source: Literal["auto", "folder", "derive"] = "auto"
    mask_rule: MaskRule = "safe"  # for derived masks; see vton/data/derived/agnostic.py
    # auto: the folder's warp where there is one, else geometric; learned: the run in warp_run
    warp_source: Literal["auto", "folder", "geometric", "learned", "none"] = "auto"
    warp_run: str = ""  # run folder of a trained warp (vton train model=warp)
    warp_folder: str = ""  # name of the folder with warped garments; "" = the known names
    warp_folder_unpaired: str = ""  # the same for unpaired test pairs
    warp_key: Literal["person", "garment"] = "person"  # what names the warp files
    densepose: bool = False  # deliver the DensePose picture; then it is a required part
    person_caption: str = "model is wearing {}"  # {} = the garment's annotation
    garment_caption: str = "a photo of {}"
    caption_fallback: str = "shirts"  # annotation of a garment that has none
    # fallback: caption_fallback for every garment
    caption_source: Literal["folder", "fallback"] = "folder"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    cache: Literal["none", "memory"] = "none"  # memory: keep decoded samples, for sets that fit
    encoded: str = ""  # folder of latents and embeddings computed ahead (vton data cache); "" = compute them every time
    workers: int = 4  # loader processes
    pin_memory: bool = True  # on machines with a GPU
    check: bool = True  # walk the folder for broken required files before training

    def __post_init__(self):
        in_bounds("data.", self, limit_train=SOME, limit_test=SOME, workers=SOME)
        if min(self.size) < 16:
            raise ConfigError(
                f"data.size={list(self.size)}: height and width in pixels, at least 16 each."
            )
        if (self.warp_source == "learned") != bool(self.warp_run):
            raise ConfigError(
                f"data.warp_source={self.warp_source} and data.warp_run={self.warp_run!r} do not belong together: a "
                "learned warp is data.warp_source=learned data.warp_run=FOLDER, the run of `vton train model=warp`."
            )
        for name in ("person_caption", "garment_caption"):
            if "{}" not in getattr(self, name):
                raise ConfigError(
                    f"data.{name}={getattr(self, name)!r} lacks {{}}, the place of the annotation."
                )

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the photographs: `size`, or with `pad` the largest 4:3 that it holds."""
        height, width = self.size
        return (
            (min(height, width * 4 // 3), min(width, height * 3 // 4))
            if self.pad
            else (height, width)
        )

    def unpadded(self) -> DataConfig:
        """The same pictures without what `pad` puts around them."""
        return replace(self, size=self.picture_size, pad=False)


@dataclass
class TrainConfig:
    steps: int = 10_000  # optimizer steps
    batch_size: int = 16  # per device
    accumulate: int = 1  # batches per optimizer step
    lr: float = 1e-4  # of AdamW, after warm-up
    warmup_steps: int = 500  # in which the learning rate rises from 0
    schedule: Literal["constant", "cosine"] = "constant"  # after warm-up
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    weight_decay: float = 0.01  # AdamW's
    grad_clip: float = 1.0  # norm; 0 = off
    ema: float = 0.9999  # decay of the average over trained parameters; 0 = off
    # of arithmetic (autocast); weights and moments stay float32
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    log_every: int = 50  # steps
    # a step whose loss or gradient is not: end the run, or count it
    non_finite: Literal["stop", "skip"] = "stop"
    checkpoint_every: int = 1000  # steps
    keep_last: int = 1  # checkpoints that stay, the newest; above 1 also as last_<step>.ckpt
    keep_best: int = 1  # the same by the held-out score, best_<step>.ckpt
    # steps between looks at held-out pairs: pictures, val/ scores, best.ckpt; 0 = never
    picture_every: int = 1000
    pictures: int = 8  # rows of that grid
    val_pairs: int = 32  # held-out pairs behind the val/ scalars

    def __post_init__(self):
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "log_every",
            "checkpoint_every",
            "keep_last",
            "keep_best",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be at least 1.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"train.ema={self.ema} must be in [0, 1).")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"train.betas={list(self.betas)} must be in [0, 1).")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"train.lr={self.lr} must be positive.")
        in_bounds(
            "train.",
            self,
            warmup_steps=SOME,
            weight_decay=SOME,
            grad_clip=SOME,
            picture_every=SOME,
            pictures=MORE,
            val_pairs=MORE,
        )


@dataclass
class TrainerConfig:
    """What goes to lightning.Trainer."""

    name: str = "cpu"
    accelerator: Literal["cpu", "gpu", "auto"] = "auto"  # auto: a GPU where there is one
    devices: int = 1  # per node; -1 = all
    nodes: int = 1  # machines
    # fsdp: FSDP2; deepspeed: ZeRO stage 2
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    deterministic: bool = False  # GPUs: algorithms that repeat bit by bit, slower; CPUs do anyway
    threads: int = 0  # torch CPU threads; 0 = torch's default

    def __post_init__(self):
        in_bounds("trainer.", self, nodes=MORE, threads=SOME)
        if self.devices != -1:
            in_bounds("trainer.", self, devices=MORE)

    def replicated(self) -> TrainerConfig:
        """The same devices with the whole model on each: sampling sends them different numbers of
        batches.
        """
        return replace(
            self, strategy="ddp" if self.strategy in ("fsdp", "deepspeed") else self.strategy
        )


@dataclass
class EvalConfig:
    # vton/metrics/protocol.py
    protocol: Literal["exact", "ladi_compat", "catvton_compat", "hrviton_compat"] = "exact"
    orders: tuple[Literal["paired", "unpaired"], ...] = ("paired", "unpaired")
    batch_size: int = 16  # pictures drawn and scored together, per device
    seed: int = 0  # of the sampling noise
    baselines: bool = True  # rows for what needs no learning, and for the warp below
    warp: str = ""  # run folder of a trained warp that gets a baseline row; "" = data.warp_run, if that is given
    shuffled: bool = True  # the control row: garments exchanged between samples
    chain: bool = True  # cascades: sample one stage after another; false: this one alone, on the reduced truth
    metrics: tuple[Metric, ...] = ("ssim", "psnr", "lpips", "dists", "fid", "kid", "iou")
    # Null: as the protocol says (vton/metrics/protocol.py). Rows name what was changed, and tables
    # refuse to mix.
    size: tuple[int, int] | None = None  # height, width of the comparison
    repaint: bool | None = None  # paste the person's own picture outside the agnostic mask
    lpips_net: Literal["alex", "vgg", "squeeze"] | None = None
    kid_subsets: int | None = None  # how many random subsets KID is the mean over
    kid_subset_size: int | None = None  # pictures in each; at most as many as there are
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
            raise ConfigError(
                f"eval.size={list(self.size)}: height and width in pixels, at least 16 each."
            )


@dataclass
class CompareConfig:
    """What `vton compare` and `vton ablate` hold equal between their runs; see
    vton/commands/compare.py.
    """

    budget: Literal["steps", "flops"] = "steps"  # of each run: optimizer steps, or training FLOPs
    steps: int = 0  # budget=steps; 0 = train.steps of the preset
    tflop: float = 0.0  # budget=flops: forward and backward of all steps, on each device
    seeds: tuple[int, ...] = (0,)  # of training: as many runs of each method
    models: tuple[str, ...] = ()  # vton compare: these architectures; () = every registered one
    equal: tuple[str, ...] = ()  # further settings of all runs, as overrides
    # folder that holds one folder with rows, table and pictures per comparison
    results: str = "results"

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(
                f"compare.seeds={list(self.seeds)} must name at least one seed, each once."
            )
        if len(set(self.models)) < len(self.models):
            raise ConfigError(
                f"compare.models={list(self.models)} must name each architecture once."
            )
        if self.steps < 0 or self.tflop < 0:
            raise ConfigError(
                f"compare.steps={self.steps} and compare.tflop={self.tflop} must not be negative."
            )
        if self.budget == "flops" and not self.tflop:
            raise ConfigError(
                "compare.budget=flops needs compare.tflop, the training TFLOP of each run."
            )


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
    preset: str = "tiny"  # file of configs/preset
    ablation: str = ""  # <file>/<row> of configs/ablation
    seed: int = 0  # of training: first weights, order of samples, noise, dropouts, augmentation
    runs: str = "runs"  # folder that holds the run folders
    name: str = ""  # run folder; "" = <model>-<data>-<preset>[-<row>]; a cascade's upper stages lie in it, by name

    def __post_init__(self):
        in_bounds("", self, seed=(0, 2**32 - 1))  # what numpy takes
        if hasattr(self.model, "condition_dropout"):
            in_bounds("model.", self.model, condition_dropout=SHARE)
        strategy, precision = self.trainer.strategy, self.train.precision
        if strategy == "fsdp" and precision == "fp16":
            raise ConfigError(
                "train.precision=fp16 scales its loss, which trainer.strategy=fsdp cannot; use bf16."
            )
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
        if self.objective.continuous and (
            self.sampler.spacing != "trailing" or self.sampler.zero_terminal_snr
        ):
            raise ConfigError(
                f"objective.schedule={self.objective.schedule} is sampled on the even grid from pure noise to 0: set "
                f"sampler.spacing=trailing (found {self.sampler.spacing}) and leave sampler.zero_terminal_snr null."
            )
        rescaled = self.sampler.zero_terminal_snr
        rescaled = self.objective.zero_terminal_snr if rescaled is None else rescaled
        if (
            rescaled
            and self.objective.prediction == "epsilon"
            and self.sampler.spacing != "leading"
        ):
            raise ConfigError(
                f"sampler.spacing={self.sampler.spacing} starts where zero_terminal_snr leaves pure noise, from which "
                "objective.prediction=epsilon cannot recover a sample; use leading, or v_prediction or sample."
            )
