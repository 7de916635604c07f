"""TryOnDiffusion's settings. Each default has its source:

P the paper, S its appendix, I Imagen (arXiv 2205.11487), which it follows, or D our decision, for a
reason that vton/models/tryondiffusion/README.md gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from vton.config import (
    Bounds,
    ConfigError,
    Fraction,
    ModelConfig,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveInts,
)
from vton.models.settings import check_levels


@dataclass
class ParallelUNetConfig:
    """Both UNets of a Parallel-UNet; the defaults are those of 128x128 (P, Fig. 2)."""

    widths: PositiveInts = (128, 256, 512, 1024)  # channels per level
    # person units per level, in the encoder and again in the decoder
    blocks: PositiveInts = (3, 4, 6, 7)
    # garment units likewise; the decoder ends at the last level with attention
    garment_blocks: PositiveInts = (3, 4, 6, 7)
    # levels whose person units have self- and cross-attention
    attention: tuple[bool, ...] = (False, False, True, True)
    # attention: the garment UNet's features, read by cross-attention (P). concatenation: the
    # segmented garment beside z_t in the person UNet's head, neither garment UNet nor
    # cross-attention (S, Table 4, ablation 1).
    correspondence: Literal["attention", "concatenation"] = "attention"
    heads: PositiveInt = 8  # I
    embedding: PositiveInt = 512  # D: width E of the vector that FiLM reads
    pose_width: PositiveInt = 512  # D: width P of the pose tokens
    sinusoid: PositiveInt = 128  # D: channels of the code of timesteps and noise levels
    # P/I: before the block's first norm; norm2: behind its second
    film: Literal["pre", "norm2"] = "pre"
    # D: of what decoders take over from the encoder; Imagen's is 1/sqrt(2)
    skip_scale: PositiveFloat = 1.0
    # D: a level's last features, or those of the unit of equal number
    garment_map: Literal["stage", "block"] = "stage"
    # Not in the paper: amplitude of a position code on queries and keys, with keys starting equal
    # to queries and orthogonal values and outputs. In a short training from scratch attention finds
    # no correspondence without it.
    positions: NonNegativeFloat = 0.0
    # Not in the paper either: convolutions start at gain 1, those of 1x1 orthogonal, and z_t is
    # read at a tenth, so that pictures pass the network from the first step on. torch's own initial
    # values make them fainter by the block.
    start_awake: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self):
        check_levels(self, "widths", "blocks", "garment_blocks", "attention")
        check_widths(self.widths)
        check_sinusoid("A Parallel-UNet", self.sinusoid)
        if self.correspondence == "attention" and not any(self.attention):
            raise ConfigError(
                "A Parallel-UNet without attention at any level would never see the garment."
            )
        for width in (*self.attended(self.widths), self.pose_width):
            if width % self.heads:
                raise ConfigError(
                    f"A Parallel-UNet's heads={self.heads} must divide its attention width {width}."
                )
            if self.positions and width % 4:
                raise ConfigError(
                    f"A position code needs attention widths divisible by 4, not {width}."
                )
        person, garment = self.attended(self.blocks), self.attended(self.garment_blocks)
        if self.garment_map == "block" and person != garment:
            raise ConfigError(
                "garment_map=block needs as many garment_blocks as blocks where there is "
                f"attention; there they are {garment} and {person}."
            )

    def attended(self, values: tuple[int, ...]) -> list[int]:
        """The values, of one per level, of the levels with attention."""
        pairs = zip(values, self.attention, strict=True)
        return [value for value, attention in pairs if attention]

    @property
    def last_attention(self) -> int:
        """The highest resolution with attention: where the garment UNet's decoder ends."""
        return self.attention.index(True)


@dataclass
class EfficientUNetConfig:
    """Imagen's Efficient-UNet without any attention (I; P for leaving out the attention)."""

    widths: PositiveInts = (128, 256, 512, 1024)
    blocks: PositiveInts = (2, 4, 8, 8)
    embedding: PositiveInt = 512
    sinusoid: PositiveInt = 128
    film: Literal["pre", "norm2"] = "pre"
    skip_scale: PositiveFloat = 2**-0.5  # I
    gradient_checkpointing: bool = False

    def __post_init__(self):
        check_levels(self, "widths", "blocks")
        check_widths(self.widths)
        check_sinusoid("An Efficient-UNet", self.sinusoid)


def check_widths(widths: tuple[int, ...]) -> None:
    """Raise ConfigError unless a UNet's layers can be normalised in groups at these widths."""
    for width in widths:
        divisor = 4
        if width > 64:  # a decoder's norm is over two joined maps of this width
            divisor = 16
        if width > 128:
            divisor = 32
        if width % divisor:
            raise ConfigError(
                f"A UNet's width {width} cannot be normalised in min(32, width / 4) groups: use "
                "multiples of 4, above 64 of 16, above 128 of 32."
            )
    if list(widths) != sorted(widths):
        raise ConfigError(f"A UNet's widths={list(widths)} must not fall.")


def check_sinusoid(network: str, sinusoid: int) -> None:
    if sinusoid % 2:
        raise ConfigError(f"{network}'s sinusoid={sinusoid} must be even: sines and cosines.")


def parallel_256() -> ParallelUNetConfig:
    """S, Fig. 8: one more level, attention at 16x16 only, fewer garment blocks at 32x32."""
    return ParallelUNetConfig(
        widths=(128, 128, 256, 512, 1024),
        blocks=(2, 3, 4, 7, 7),
        garment_blocks=(2, 3, 4, 6, 7),
        attention=(False, False, False, False, True),
    )


@dataclass
class NoiseAugmentationConfig:
    """Noise on every conditional image, with its level embedded (P).

    A level s in [0, 1] is a time of the curve: image <- alpha_s image + sigma_s noise. Level 0 adds
    nothing. Training draws levels uniformly, sampling has constant ones (P).
    """

    # D: the stage's own objective.schedule
    curve: Literal["schedule", "cosine", "linear"] = "schedule"
    # training draws from here, per image and sample; [0, 0] = off
    levels: tuple[float, float] = (0.0, 1.0)
    # D: the range of the low-resolution picture alone; null = levels
    lowres_levels: tuple[float, float] | None = None
    # levels at sampling; the paper found its own by grid search and does not give them
    agnostic: Fraction = 0.0
    garment: Fraction = 0.0
    lowres: Fraction = 0.0

    def __post_init__(self):
        for name in ("levels", "lowres_levels"):
            low, high = getattr(self, name) or (0, 1)
            if not 0 <= low <= high <= 1:
                raise ConfigError(
                    f"model.augmentation.{name}={[low, high]} must satisfy 0 <= low <= high <= 1."
                )

    def training_range(self, image: str) -> tuple[float, float]:
        """What training draws the levels of agnostic, garment or lowres from."""
        if image == "lowres" and self.lowres_levels:
            return self.lowres_levels
        return self.levels


@dataclass
class TryOnDiffusionConfig(ModelConfig):
    CASCADE: ClassVar[dict[str, int]] = {"base": 1, "sr256": 2, "sr1024": 4}  # P

    name: str = "tryondiffusion"
    # which network of the cascade this run is about
    stage: Literal["base", "sr256", "sr1024"] = "base"
    base: ParallelUNetConfig = field(default_factory=ParallelUNetConfig)
    sr256: ParallelUNetConfig = field(default_factory=parallel_256)
    sr1024: EfficientUNetConfig = field(default_factory=EfficientUNetConfig)
    # S, Table 4, ablation 2: two base networks in sequence, the first from the garment to the
    # garment as worn, the second from this to the picture. D: both in one run, see README.md
    warp_first: bool = False
    augmentation: NoiseAugmentationConfig = field(default_factory=NoiseAugmentationConfig)
    # 17: COCO's, which the paper's pose estimator finds; 18: with the neck, as the data has them
    keypoints: int = 17
    # D: a third number per keypoint; without it missing joints are just zeros
    visibility: bool = False
    # D: null = zeros, as flat garments have no pose
    garment_pose: Literal["constant"] | None = None
    garment_pose_constant: float = 0.5  # garment_pose=constant: x and y of every joint
    # D: colour of what is blanked, in [-1, 1]; 0 is also what condition dropout leaves
    agnostic_fill: Annotated[float, Bounds(-1, 1)] = 0.0
    # D: colour around the segmented garment
    garment_fill: Annotated[float, Bounds(-1, 1)] = 0.0
    # D: antialiased reduction of training pictures
    lowres_filter: Literal["area", "bicubic"] = "area"
    crop_px: PositiveInt = 256  # sr1024: side of the training crops (P)
    # D: learning rate of the embeddings and of FiLM's linear layers relative to train.lr. They
    # scale every channel of every block by the pose; in a short training at a high rate they move
    # faster than what they modulate
    modulation_lr: PositiveFloat = 1.0
    # P: the null condition drops the low-resolution picture too, as it is a conditional image
    drop_lowres: bool = True
    # D: it drops the embedding of the noise levels too
    drop_levels: bool = False
    # sampling steps whose garment features are made in one pass; exact, memory grows with it
    garment_steps: PositiveInt = 8
    # keep the null branch's garment features of every step between pictures; exact
    null_table: bool = True

    def __post_init__(self):
        if self.warp_first and self.stage != "base":
            raise ConfigError(
                "model.warp_first=true puts two base networks in sequence; "
                f"model.stage={self.stage} stays as it is: leave it false there."
            )
        if self.keypoints not in (17, 18):
            raise ConfigError(
                f"model.keypoints={self.keypoints}: the data has COCO's 18 joints; use 17 or 18."
            )
        reduction = 2 ** len(self.sr1024.widths)
        if self.crop_px % reduction:
            raise ConfigError(
                f"model.crop_px={self.crop_px} must be a multiple of {reduction}, by "
                "which model.sr1024 reduces pictures."
            )
