"""The schema: a dataclass for each section of the configuration; every architecture adds its own.

Types also hold the bounds of numbers (bounds.py). `__post_init__` checks settings that depend on
each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

from vton.config.bounds import (
    Bounds,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveInts,
    Seed,
    check_bounds,
)
from vton.config.errors import ConfigError

ModelKind = Literal["architecture", "warp"]
DensePosePicture = Literal["colours", "labels"]
MaskRule = Literal[
    "safe",
    "viton_hd",
    "hr_viton",
    "cat_dm",
    "ladi",
    "dresscode_ref",
    "ootd",
    "leffa_hd",
    "leffa_dc",
    "hull",
    "box",
    "tryondiffusion",
]
# iou: of silhouettes, in tables with a learned warp. fd_dinov2, cmmd: of sets, like fid and kid.
# *_edge, *_texture: of the garment's edge, and of its inside. The last seven score garments one by
# one: vton/metrics/garment_scores.py.
Metric = Literal[
    "ssim",
    "psnr",
    "lpips",
    "dists",
    "fid",
    "kid",
    "iou",
    "fd_dinov2",
    "cmmd",
    "ssim_edge",
    "ssim_texture",
    "psnr_edge",
    "psnr_texture",
    "lpips_edge",
    "lpips_texture",
    "m_dino",
    "m_clip_i",
    "vton_iqa",
    "cami_u",
    "cami_s",
    "mp_lpips",
    "image_reward",
]


@dataclass
class TrainedConfig:
    """The base of all configs under vton/models, of architectures and of the learned warp.

    A cascade also has a field `stage`, one of CASCADE's names.
    """

    # Stages in the order of sampling, and the factor by which each enlarges the pictures of the
    # stage before it; see vton/runs/cascade.py.
    CASCADE: ClassVar[dict[str, int]] = {}

    kind: ClassVar[ModelKind]
    name: str = ""

    @property
    def upper_stage(self) -> str:
        """The stage if it enlarges the pictures of another one, else ""."""
        if not self.CASCADE:
            return ""
        first = next(iter(self.CASCADE))
        return "" if self.stage == first else self.stage

    @property
    def label(self) -> str:
        """The model's name in tables."""
        return f"{self.name}-{self.upper_stage}" if self.upper_stage else self.name


@dataclass
class LoraSettings:
    """Fine-tuning of the attention layers only, by low-rank matrices: vton/models/lora.py."""

    rank: NonNegativeInt = 0  # 0 = no LoRA: the model trains its own weights
    alpha: NonNegativeFloat = 0.0  # the matrices' product is scaled by alpha / rank; 0 = rank


@dataclass
class FlowLossConfig:
    """Leffa's loss on where attention reads the garment; see vton/models/flow.py.

    It works for every architecture with layers that read garment tokens that have places.
    """

    weight: NonNegativeFloat = 0.0  # 0 = off; the paper has 1e-3
    # the loss acts on samples with t below this share of objective.train_timesteps
    until: Fraction = 0.5
    temperature: PositiveFloat = 2.0  # of the softmax over garment tokens
    # the loss acts on layers whose height is at least this share of the picture's; 0 = all
    smallest_layer: NonNegativeFloat = 1 / 32
    # how the layers' losses are joined; sum: the paper's Eq. 4; mean: the code its authors showed
    over_layers: Literal["sum", "mean"] = "sum"
    # of pictures; square: the paper's Eq. 4; smooth_l1: the code its authors showed
    difference: Literal["square", "smooth_l1"] = "square"
    # mean: the heads' places are averaged before warping; apart: each head has its own warped
    # garment and loss
    heads: Literal["mean", "apart"] = "mean"
    # true: flow fields are enlarged to the picture's size; false: pictures are shrunk to theirs
    upsampled: bool = True
    # of interpolation: whether outermost tokens lie on the picture's corners. False moves a token
    # at the rim that reads its own place by up to half a token, as published
    align_corners: bool = False
    from_step: NonNegativeInt = 0  # first optimizer step with the loss; the paper adds it last


@dataclass
class ModelConfig(TrainedConfig):
    """The base of every architecture's own config."""

    kind: ClassVar[ModelKind] = "architecture"
    condition_dropout: Fraction = 0.1  # probability that a training sample loses all its conditions
    lora: LoraSettings = field(default_factory=LoraSettings)
    flow_loss: FlowLossConfig = field(default_factory=FlowLossConfig)


@dataclass
class CodecConfig:
    """The codec, which turns pixels into latents and back."""

    name: Literal["identity", "linear", "kl"] = "kl"
    # kl: diffusers folder, hub id, or a checkpoint file of latent diffusion's code whose first
    # stage has the shape below; "" = built with the shape below, and trained first
    pretrained: str = ""
    subfolder: str = "vae"
    # kl: of weights and arithmetic. auto: train.precision, but fp32 if the run trains the codec or
    # its config.json says force_upcast, or its file is SDXL's
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    patch: PositiveInt = 4  # linear: side of a patch, px
    # latent channels; where a folder says them itself, `vton info` still counts with these
    channels: PositiveInt = 4
    # kl from scratch or a file: channels per level; Stable Diffusion's by default
    widths: PositiveInts = (128, 256, 512, 512)
    # kl from a file: factor of the latents, for files that do not show it (an autoencoder alone);
    # 0.18215 for Stable Diffusion 1 and 2, 0.13025 for SDXL. null: what the weights say
    scaling: Annotated[float | None, Bounds(0, open_low=True)] = None
    layers: PositiveInt = 2  # kl from scratch or a file: ResNet blocks per level
    groups: PositiveInt = 32  # kl from scratch or a file: GroupNorm
    fit_images: PositiveInt = 256  # linear: training pictures the basis is fitted on
    fit_steps: PositiveInt = 2000  # kl from scratch: steps before the diffusion model starts

    def __post_init__(self):
        if not self.widths:
            raise ConfigError("codec.widths=[] names no level; give the channels of one at least.")


@dataclass
class ObjectiveConfig:
    """The noise schedule, what the network predicts, and how the loss weights it."""

    schedule: Literal[
        "scaled_linear", "linear", "squaredcos_cap_v2", "continuous_cosine", "continuous_linear"
    ] = "scaled_linear"
    train_timesteps: PositiveInt = 1000  # continuous schedules: the t of pure noise
    beta_start: Fraction = 0.00085  # this and beta_end: scaled_linear and linear only
    beta_end: Fraction = 0.012
    # continuous schedules: log of signal power over noise power is clipped to +-this
    max_log_snr: PositiveFloat = 15.0
    # betas rescaled so that the last timestep is pure noise (arXiv 2305.08891)
    zero_terminal_snr: bool = False
    # what the network predicts; sample: clean latents
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    # weight of a sample's squared error; min_snr: arXiv 2303.09556
    loss_weight: Literal["uniform", "min_snr"] = "uniform"
    min_snr_gamma: NonNegativeFloat = 5.0  # min_snr: the signal-to-noise ratio is clipped to this
    # t = T * u**(1/power), u uniform; above 1 favours noisy timesteps
    timestep_power: PositiveFloat = 1.0
    # eps = n + noise_offset m; n is drawn per value, m per sample and channel
    noise_offset: NonNegativeFloat = 0.0

    def __post_init__(self):
        if self.continuous and self.zero_terminal_snr:
            raise ConfigError(
                "objective.zero_terminal_snr=true rescales a table, which "
                f"objective.schedule={self.schedule} does not have; raise objective.max_log_snr "
                "for less signal at the end."
            )
        if not self.continuous and self.schedule != "squaredcos_cap_v2":
            self._check_betas()

    def _check_betas(self):
        """Noise is added at every timestep, and leaves some of the signal."""
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(
                f"objective.beta_start={self.beta_start:g} and "
                f"objective.beta_end={self.beta_end:g} must satisfy 0 < beta_start <= beta_end < 1."
            )

    @property
    def continuous(self) -> bool:
        """Whether t is a real number in [0, train_timesteps] instead of an integer."""
        return self.schedule.startswith("continuous_")


@dataclass
class SamplerConfig:
    """How pictures are drawn. Every architecture goes through the same loop."""

    # diffusers' schedulers; ddpm: DDIM with eta 1; plms: the pseudo linear multistep method of
    # latent diffusion's scripts (arXiv 2202.09778), whose first step takes a second evaluation
    solver: Literal["ddim", "ddpm", "dpmpp_2m", "unipc", "plms"] = "ddim"
    steps: PositiveInt = 50  # network evaluations per picture, twice as many with guidance
    guidance: NonNegativeFloat = 1.0  # 1 = off: one network pass per step
    # how far the standard deviation of a guided prediction is brought back to that of the
    # conditional one (arXiv 2305.08891): 0 not at all, 1 all the way; Leffa extrapolates
    guidance_rescale: NonNegativeFloat = 0.0
    # guidance acts between these fractions of the timestep range
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    # the timesteps of the steps; trailing and trained begin at pure noise, trained takes even
    # quantiles of the timesteps that training draws (objective.timestep_power)
    spacing: Literal["leading", "trailing", "linspace", "trained"] = "leading"
    clip_sample: NonNegativeFloat = 0.0  # clamp the predicted clean sample to +-this; 0 = off
    # Imagen's alternative: the quantile of |clean sample| that is scaled to 1; 0 = off
    dynamic_threshold: Fraction = 0.0
    eta: Fraction = 0.0  # ddim: noise of each step, 0 none, 1 as much as ddpm's lower variance
    # ddpm: variance of each step; 0 its lower bound, 1 the upper one, between them in log space
    ddpm_variance: Fraction = 0.0
    zero_terminal_snr: bool | None = None  # null: as in training (objective.zero_terminal_snr)
    # dpmpp_2m, unipc: the noise level at which the last step ends
    final_sigma: Literal["zero", "sigma_min"] = "zero"

    def __post_init__(self):
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"sampler.guidance_interval={[low, high]} must satisfy 0 <= low <= high <= 1."
            )
        if self.eta and self.solver != "ddim":
            raise ConfigError(
                f"sampler.eta={self.eta:g}: only solver=ddim takes it, not {self.solver}."
            )
        if self.clip_sample not in (0, 1) and self.solver in ("dpmpp_2m", "unipc"):
            raise ConfigError(
                f"sampler.clip_sample={self.clip_sample}: {self.solver} can only clip to 1; "
                "use 0, 1, or solver ddim."
            )
        if self.solver == "plms" and (self.clip_sample or self.dynamic_threshold):
            raise ConfigError(
                f"sampler.clip_sample={self.clip_sample:g} and "
                f"sampler.dynamic_threshold={self.dynamic_threshold:g}: plms bounds no clean "
                "sample; use 0 for both, or solver ddim."
            )


@dataclass
class AugmentConfig:
    """Changes to training samples, drawn from (seed, place in the training stream)."""

    # probability of mirroring person and garment together; 0 keeps lettering readable
    flip: Fraction = 0.5
    affine: Fraction = 0.5  # probability of shifting and scaling everything on the person's canvas
    shift: Fraction = 0.2  # fraction of the picture
    # smallest, largest factor
    scale: Annotated[tuple[float, float], Bounds(0.01, 100)] = (0.8, 1.2)
    garment_affine: Fraction = 0.5  # probability of shifting and scaling the in-shop garment alone
    # probability of one colour change shared by person and garment, before normalisation
    colour: Fraction = 0.5
    brightness: Fraction = 0.2  # this and the next three: as in torchvision's ColorJitter; 0 = off
    contrast: Fraction = 0.2
    saturation: Fraction = 0.2
    hue: Annotated[float, Bounds(0, 0.5)] = 0.05  # of the colour circle
    # the agnostic mask grows by a random number of pixels up to this, at the training size
    mask_dilate_px: NonNegativeInt = 0
    box_mask: Fraction = 0.0  # probability of the mask's bounding box instead of the mask

    def __post_init__(self):
        smallest, largest = self.scale
        if smallest > largest:
            raise ConfigError(
                f"data.augment.scale={list(self.scale)} must name the smaller one first."
            )


@dataclass
class SyntheticConfig:
    """The rendered data set: written once below data.root, then read like any real folder."""

    # the data set whose folders, categories and pair lists it has
    layout: Literal["viton_hd", "dresscode"] = "viton_hd"
    train: PositiveInt = 512  # training pairs; dresscode: per category
    test: PositiveInt = 64  # test pairs; dresscode: per category
    seed: NonNegativeInt = 0  # of people and garments
    # also render every person in another garment, for data.person_other
    other_clothes: bool = False
    workers: PositiveInt = 2  # renderer processes


@dataclass
class DataConfig:
    """Which pairs are read, and what is derived from them."""

    # the data set, which decides the folders to expect; set by data=NAME
    name: Literal["synthetic", "viton_hd", "dresscode"] = "synthetic"
    # folder of files or shards, or URL of shards; "" = $VTON_DATA/<name>, or data/<name> without it
    root: str = ""
    # folder that keeps shards fetched from a URL; "" = ~/.cache/vton/shards
    shards_kept: str = ""
    # height, width in px; pictures of both data sets are 4:3 (height:width)
    size: Annotated[tuple[int, int], Bounds(16)] = (512, 384)
    # for sizes of another shape. true: keep 4:3, with white margins; false: stretch the pictures
    pad: bool = False
    category: Literal["all", "upper_body", "lower_body", "dresses"] = "all"
    # number of training pairs, spread over the list; 0 = all; more than there are is an error
    limit_train: NonNegativeInt = 0
    # most test pairs for validation and evaluation, spread over the list; 0 = all
    limit_test: NonNegativeInt = 0
    # auto: the folder's mask if it has one, otherwise derived
    mask_source: Literal["auto", "folder", "derive"] = "auto"
    mask_rule: MaskRule = "safe"  # for derived masks; see vton/data/derived/agnostic.py
    # auto: the folder's warp if it has one (real data), otherwise geometric; learned: that of
    # warp_run
    warp_source: Literal["auto", "folder", "geometric", "learned", "none"] = "auto"
    warp_run: str = ""  # run folder of a trained warp (vton train model=warp)
    warp_folder: str = ""  # name of the folder with warped garments; "" = the known names
    warp_folder_unpaired: str = ""  # the same for unpaired test pairs
    warp_key: Literal["person", "garment"] = "person"  # whose id the names of warp files have
    densepose: bool = False  # read the DensePose picture, which is then required
    # colours: the parts in Parula colours; labels: their ids 0..24 as grey levels, which
    # Leffa's weights for DressCode read
    densepose_as: DensePosePicture = "colours"
    # read the picture of the person in other clothes, for training without masks; then required
    person_other: bool = False
    person_caption: str = "model is wearing {}"  # {} = the garment's annotation
    garment_caption: str = "a photo of {}"
    caption_fallback: str = "shirts"  # annotation of tops that have none
    caption_fallback_lower: str = "pants"  # annotation of trousers and skirts that have none
    caption_fallback_dresses: str = "dresses"  # annotation of dresses that have none
    # fallback: every garment gets the fallback of its category
    caption_source: Literal["folder", "fallback"] = "folder"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    cache: Literal["none", "memory"] = "none"  # memory: keep decoded samples, if they all fit
    # names of pair lists in the root; "" = the known names (vton/data/viton_hd.py, dresscode.py)
    list_train: str = ""
    list_paired: str = ""
    list_unpaired: str = ""
    # parquet tables: columns that have none of the known names (vton/data/tables.py), such as
    # [person=photo, garment=product, test=validation]
    columns: tuple[str, ...] = ()
    # folder of latents and embeddings computed ahead (vton data cache); "" = compute every time
    encoded: str = ""
    workers: NonNegativeInt = 4  # loader processes
    pin_memory: bool = True  # on machines with a GPU
    check: bool = True  # look for broken required files before training

    def __post_init__(self):
        if (self.warp_source == "learned") != bool(self.warp_run):
            raise ConfigError(
                f"data.warp_source={self.warp_source} and data.warp_run={self.warp_run!r} do not "
                "belong together: a learned warp is data.warp_source=learned data.warp_run=FOLDER, "
                "the run of `vton train model=warp`."
            )
        for name in ("person_caption", "garment_caption"):
            caption = getattr(self, name)
            if "{}" not in caption:
                raise ConfigError(
                    f"data.{name}={caption!r} lacks {{}}, the place of the annotation."
                )

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the photographs: `size`, or with `pad` the largest 4:3 in it."""
        height, width = self.size
        if self.pad:
            return min(height, width * 4 // 3), min(width, height * 3 // 4)
        return height, width

    def unpadded(self) -> DataConfig:
        """The same configuration without the margins of `pad`."""
        return replace(self, size=self.picture_size, pad=False)


@dataclass
class TrainConfig:
    """Length, optimizer and precision of training, and what is written in its course."""

    steps: PositiveInt = 10_000  # optimizer steps
    # run folder whose weights training starts from, such as that of an import; "" = the weights
    # that the model's settings name
    start_from: str = ""
    batch_size: PositiveInt = 16  # per device; with global_batch, the most per device
    accumulate: PositiveInt = 1  # batches per optimizer step; with global_batch, computed from it
    # samples per optimizer step over all devices; 0 = batch_size x accumulate x devices
    global_batch: NonNegativeInt = 0
    # adamw8bit: AdamW with moments of 8 bits; muon: orthogonalised momentum for weights of hidden
    # layers, AdamW for the rest
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    lr: PositiveFloat = 1e-4  # learning rate after warm-up
    warmup_steps: NonNegativeInt = 500  # steps in which the learning rate rises from 0
    schedule: Literal["constant", "cosine"] = "constant"  # after warm-up
    betas: Annotated[tuple[float, float], Bounds(0, 1, open_high=True)] = (0.9, 0.999)  # AdamW's
    weight_decay: NonNegativeFloat = 0.01
    grad_clip: NonNegativeFloat = 1.0  # norm; 0 = off
    # decay of the moving average of trained parameters; 0 = off
    ema: Annotated[float, Bounds(0, 1, open_high=True)] = 0.9999
    # of arithmetic (autocast) and of frozen networks; trained weights and moments stay float32; see
    # vton/models/precision.py
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    log_every: PositiveInt = 50  # steps
    # at a loss or gradient that is not finite: stop the run, or skip the step and count it
    non_finite: Literal["stop", "skip"] = "stop"
    checkpoint_every: PositiveInt = 1000  # steps
    # number of newest checkpoints that are kept; above 1 also as last_<step>.ckpt
    keep_last: PositiveInt = 1
    # number of checkpoints with the best held-out scores that are kept; above 1 also as
    # best_<step>.ckpt
    keep_best: PositiveInt = 1
    # steps between drawings of held-out pairs, for pictures, val/ scores and best.ckpt; 0 = never
    picture_every: NonNegativeInt = 1000
    pictures: PositiveInt = 8  # rows of the grid of these pictures
    val_pairs: PositiveInt = 32  # held-out pairs behind the val/ scalars


@dataclass
class TrainerConfig:
    """The settings of lightning.Trainer."""

    name: str = "cpu"
    accelerator: Literal["cpu", "gpu"] = "cpu"  # gpu: CUDA
    devices: int = 1  # per node; -1 = all
    nodes: PositiveInt = 1  # machines
    # fsdp: FSDP2; deepspeed: ZeRO stage 2
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    # GPUs: only algorithms that repeat bit by bit, which are slower; on CPUs they always do
    deterministic: bool = False
    # compile the networks' repeated blocks, for training and sampling: takes minutes at the start,
    # and makes steps on GPUs faster
    compile: bool = False
    threads: NonNegativeInt = 0  # torch CPU threads; 0 = torch's default

    def __post_init__(self):
        if self.devices < 1 and self.devices != -1:
            raise ConfigError(
                f"trainer.devices={self.devices} must be at least 1, or -1 for all of them."
            )

    def replicated(self) -> TrainerConfig:
        """The same devices with the whole model on each, for sampling.

        Devices may sample different numbers of batches, which sharded strategies do not allow.
        """
        if self.strategy in ("fsdp", "deepspeed"):
            return replace(self, strategy="ddp")
        return self


@dataclass
class EvalConfig:
    """What is sampled and scored.

    Settings that are null follow the protocol (vton/metrics/protocol.py). Rows name those that were
    changed, and tables refuse to mix them.
    """

    protocol: Literal["exact", "ladi_compat", "catvton_compat", "hrviton_compat"] = "exact"
    orders: tuple[Literal["paired", "unpaired"], ...] = ("paired", "unpaired")
    batch_size: PositiveInt = 16  # pictures that are drawn and scored together, per device
    # of arithmetic and weights in sampling; null: train.precision
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    seed: NonNegativeInt = 0  # of the sampling noise
    baselines: bool = True  # rows for methods without learning, and for the warp below
    # run folder of a trained warp that gets a baseline row; "" = data.warp_run, if that is set
    warp: str = ""
    shuffled: bool = True  # the control row: garments are exchanged between samples
    shuffled_pairs: NonNegativeInt = 0  # pairs of the control row, spread over the list; 0 = all
    # cascades: sample one stage after the other; false: only this stage, from the reduced truth
    chain: bool = True
    metrics: tuple[Metric, ...] = ("ssim", "psnr", "lpips", "dists", "fid", "kid", "iou")
    # height and width at which pictures are compared
    size: Annotated[tuple[int, int] | None, Bounds(16)] = None
    repaint: bool | None = None  # paste the person's own picture outside the agnostic mask
    lpips_net: Literal["alex", "vgg", "squeeze"] | None = None
    # number of random subsets whose mean KID is
    kid_subsets: Annotated[int | None, Bounds(1)] = None
    # most pictures in each subset
    kid_subset_size: Annotated[int | None, Bounds(1)] = None
    # folder of pretrained metric networks; "" = $VTON_METRIC_WEIGHTS, else that of `vton weights`
    weights: str = ""
    pictures: PositiveInt = 8  # rows of the picture grids
    # number of rendered pairs on which to measure how far from the true place attention reads the
    # garment, by layer and step; 0 = none
    places: NonNegativeInt = 0

    def __post_init__(self):
        if not self.orders:
            raise ConfigError("eval.orders=[] names no order; use [paired], [unpaired] or both.")
        if not self.metrics:
            raise ConfigError("eval.metrics=[] names no metric; leave it out for the usual ones.")
        for name in ("orders", "metrics"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"eval.{name}={list(values)} must name each once.")


@dataclass
class CompareConfig:
    """The runs of `vton compare` and `vton ablate`, and what they hold equal: see
    vton/commands/comparison.py.
    """

    budget: Literal["steps", "flops"] = "steps"  # of each run: optimizer steps, or training FLOPs
    steps: NonNegativeInt = 0  # budget=steps: optimizer steps; 0 = train.steps of the preset
    # budget=flops: TFLOP of forward and backward passes of all steps, on each device
    tflop: NonNegativeFloat = 0.0
    # training seeds; every method has a run for each
    seeds: Annotated[tuple[int, ...], Bounds(0, 2**32 - 1)] = (0,)
    models: tuple[str, ...] = ()  # vton compare: the architectures; () = every registered one
    equal: tuple[str, ...] = ()  # further settings of all runs, as overrides
    # folder with a folder of rows, tables and pictures for each comparison
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
        if self.budget == "flops" and not self.tflop:
            raise ConfigError(
                "compare.budget=flops needs compare.tflop, the training TFLOP of each run."
            )


@dataclass
class ExperimentConfig:
    """One experiment: all sections, and the settings that belong to none of them."""

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
    # of training: initial weights, order of samples, noise, dropouts, augmentation
    seed: Seed = 0
    runs: str = "runs"  # folder that holds the run folders
    # name of the run folder; "" = <model>-<data>-<preset>[-<row>]; the folders of a cascade's upper
    # stages are in it, named by stage
    name: str = ""

    @property
    def lora_rank(self) -> int:
        """model.lora.rank; 0 = no LoRA."""
        return self.model.lora.rank if isinstance(self.model, ModelConfig) else 0

    def __post_init__(self):
        check_bounds(self)
        self._check_name()
        self._check_strategy()
        self._check_sampling()

    def _check_name(self):
        parts = PurePath(self.name).parts
        if self.name and (not parts or ".." in parts or PurePath(self.name).is_absolute()):
            raise ConfigError(
                f"name={self.name} must name a folder below runs={self.runs}; set runs to keep "
                "runs elsewhere."
            )

    def _check_strategy(self):
        strategy, precision = self.trainer.strategy, self.train.precision
        if strategy == "fsdp" and precision == "fp16":
            raise ConfigError(
                "train.precision=fp16 scales its loss, which trainer.strategy=fsdp cannot; "
                "use bf16."
            )
        kept = (self.train.non_finite, self.train.keep_last, self.train.keep_best)
        if self.lora_rank and strategy in ("fsdp", "deepspeed"):
            raise ConfigError(
                f"model.lora.rank={self.lora_rank} trains so few weights that sharding gains "
                f"nothing; use trainer.strategy=ddp instead of {strategy}."
            )
        if strategy == "deepspeed" and (precision == "fp16" or kept != ("stop", 1, 1)):
            raise ConfigError(
                "trainer.strategy=deepspeed needs train.precision=bf16 or fp32, "
                "train.non_finite=stop, train.keep_last=1 and train.keep_best=1; "
                "otherwise use trainer.strategy=fsdp."
            )

    def _check_sampling(self):
        objective, sampler = self.objective, self.sampler
        if objective.continuous:
            if sampler.spacing not in ("trailing", "trained") or sampler.zero_terminal_snr:
                raise ConfigError(
                    f"objective.schedule={objective.schedule} is sampled from pure noise to 0: set "
                    "sampler.spacing=trailing for even steps, or trained "
                    f"(found {sampler.spacing}), and leave sampler.zero_terminal_snr null."
                )
        else:
            self._check_steps()
        rescaled = sampler.zero_terminal_snr
        if rescaled is None:
            rescaled = objective.zero_terminal_snr
        if rescaled and objective.prediction == "epsilon" and self.starts_at_last_timestep():
            raise ConfigError(
                f"sampler.spacing={sampler.spacing} with sampler.steps={sampler.steps} starts "
                "where zero_terminal_snr leaves pure noise, from which "
                "objective.prediction=epsilon cannot recover a sample; use leading and another "
                "number of steps, or v_prediction or sample."
            )
        if sampler.spacing == "trained":
            self._check_trained_spacing(rescaled)
        if sampler.solver == "plms":
            self._check_plms(rescaled)

    def _check_steps(self):
        """diffusers' leading spacing counts from 1, and multistep solvers go through one timestep
        more than they have steps; none may come twice or lie beyond the table.
        """
        objective, sampler = self.objective, self.sampler
        multistep = sampler.solver in ("dpmpp_2m", "unipc")
        most = objective.train_timesteps
        if sampler.spacing == "leading":
            most -= 2 if multistep else 1
        elif sampler.spacing == "linspace" and multistep:
            most -= 1
        if sampler.steps > most:
            raise ConfigError(
                f"sampler.steps={sampler.steps} is more than objective.train_timesteps="
                f"{objective.train_timesteps} allows with sampler.solver={sampler.solver} and "
                f"sampler.spacing={sampler.spacing}: at most {most}."
            )

    def starts_at_last_timestep(self) -> bool:
        """Whether sampling starts at the last timestep of training. diffusers' leading spacing
        counts whole strides from 1: 30 of 1,000 start at 958, but 500 at 999.
        """
        sampler, total = self.sampler, self.objective.train_timesteps
        if sampler.spacing != "leading":
            return True
        if sampler.solver in ("dpmpp_2m", "unipc"):
            strides, stride = sampler.steps, total // (sampler.steps + 1)
        else:
            strides, stride = sampler.steps - 1, total // sampler.steps
        return 1 + strides * stride == total - 1

    def _check_trained_spacing(self, rescaled: bool):
        objective, sampler = self.objective, self.sampler
        if not objective.continuous and rescaled != objective.zero_terminal_snr:
            raise ConfigError(
                "sampler.spacing=trained samples with the noise levels of training; leave "
                "sampler.zero_terminal_snr null."
            )
        last = 1 - (1 - 1 / sampler.steps) ** (1 / objective.timestep_power)
        if not objective.continuous and last * objective.train_timesteps < 1:
            raise ConfigError(
                f"sampler.steps={sampler.steps} are too many for sampler.spacing=trained with "
                f"objective.timestep_power={objective.timestep_power:g}: near pure noise they fall "
                "on the same timestep."
            )

    def _check_plms(self, rescaled: bool):
        """diffusers' scheduler only supports the schedules and predictions of its time."""
        objective = self.objective
        own_times = objective.continuous or self.sampler.spacing == "trained"
        if own_times or rescaled or objective.prediction == "sample":
            raise ConfigError(
                f"sampler.solver=plms: objective.schedule={objective.schedule}, zero terminal SNR "
                f"{'on' if rescaled else 'off'} and objective.prediction={objective.prediction}; "
                "plms needs a table of timesteps in even steps, no zero terminal SNR, and epsilon "
                "or v_prediction. Use solver ddim."
            )
