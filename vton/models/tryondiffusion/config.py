"""TryOnDiffusion's settings. Defaults are the paper's, its appendix's or Imagen's; where all three
are silent, ours.

The source of each is given as P (paper), S (its appendix), I (Imagen, arXiv 2205.11487, which it
follows) or D (our decision, for a reason that vton/models/tryondiffusion/README.md gives).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

from vton.config import ConfigError, ModelConfig


@dataclass
class ParallelUNetConfig:
    """Both UNets of a Parallel-UNet; the defaults are those of 128x128 (P, Fig. 2)."""

    widths: tuple[int, ...] = (128, 256, 512, 1024)  # channels per level
    blocks: tuple[int, ...] = (
        3,
        4,
        6,
        7,
    )  # person units per level, in the encoder and again in the decoder
    garment_blocks: tuple[int, ...] = (
        3,
        4,
        6,
        7,
    )  # the decoder's only down to the last level with attention
    attention: tuple[bool, ...] = (
        False,
        False,
        True,
        True,
    )  # levels whose person units have self- and cross-attention
    # attention: the garment UNet's features, read by cross-attention (P). concatenation: the
    # segmented garment beside z_t in the person UNet's head, neither garment UNet nor
    # cross-attention (S, Table 4, ablation 1).
    correspondence: Literal["attention", "concatenation"] = "attention"
    heads: int = 8  # I
    embedding: int = 512  # D: width E of the vector that FiLM reads
    pose_width: int = 512  # D: width P of the pose tokens
    sinusoid: int = 128  # D: channels of the code of timesteps and noise levels
    # P/I: before the block's first norm; norm2: behind its second
    film: Literal["pre", "norm2"] = "pre"
    skip_scale: float = 1.0  # D: of what decoders take over from the encoder; Imagen's is 1/sqrt(2)
    # D: a level's last features, or those of the unit of equal number
    garment_map: Literal["stage", "block"] = "stage"
    # Not in the paper: amplitude of a position code on queries and keys, with keys starting equal
    # to queries and orthogonal values and outputs. In a short training from scratch attention finds
    # no correspondence without it.
    positions: float = 0.0
    # Not in the paper either: convolutions start at gain 1, those of 1x1 orthogonal, and z_t is
    # read at a tenth, so that pictures pass the network from the first step on. torch's own initial
    # values make them fainter by the block.
    start_awake: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self):
        check_levels(self, "widths", "blocks", "garment_blocks", "attention")
        check_widths(self.widths, self.skip_scale)
        if self.correspondence == "attention" and not any(self.attention):
            raise ConfigError(
                "A Parallel-UNet without attention at any level would never see the garment."
            )
        attended = [
            width for width, attention in zip(self.widths, self.attention, strict=True) if attention
        ]
        for width in (*attended, self.pose_width):
            if width % self.heads:
                raise ConfigError(
                    f"A Parallel-UNet's heads={self.heads} must divide its attention width {width}."
                )
            if self.positions and width % 4:
                raise ConfigError(
                    f"A position code needs attention widths divisible by 4, not {width}."
                )
        if self.sinusoid % 2:
            raise ConfigError(
                f"A Parallel-UNet's sinusoid={self.sinusoid} must be even: sines and cosines."
            )
        unequal = [
            level
            for level, attention in enumerate(self.attention)
            if attention and self.blocks[level] != self.garment_blocks[level]
        ]
        if self.garment_map == "block" and unequal:
            raise ConfigError(
                f"garment_map=block needs as many garment_blocks as blocks where there is attention; level {unequal[0]}"
                f" has {self.garment_blocks[unequal[0]]} and {self.blocks[unequal[0]]}."
            )

    @property
    def last_attention(self) -> int:
        """The highest resolution with attention: where the garment UNet's decoder ends."""
        return self.attention.index(True)


@dataclass
class EfficientUNetConfig:
    """Imagen's Efficient-UNet without any attention (I; P for leaving out the attention)."""

    widths: tuple[int, ...] = (128, 256, 512, 1024)
    blocks: tuple[int, ...] = (2, 4, 8, 8)
    embedding: int = 512
    sinusoid: int = 128
    film: Literal["pre", "norm2"] = "pre"
    skip_scale: float = 2**-0.5  # I
    gradient_checkpointing: bool = False

    def __post_init__(self):
        check_levels(self, "widths", "blocks")
        check_widths(self.widths, self.skip_scale)
        if self.sinusoid % 2:
            raise ConfigError(
                f"An Efficient-UNet's sinusoid={self.sinusoid} must be even: sines and cosines."
            )


def check_levels(config, *names: str) -> None:
    counts = {name: len(getattr(config, name)) for name in names}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(
            f"A UNet's settings describe different numbers of levels ({found}); give one value each."
        )
    blocks = [name for name in names if name.endswith("blocks") and min(getattr(config, name)) < 1]
    if blocks:
        raise ConfigError(
            f"A UNet's {blocks[0]}={list(getattr(config, blocks[0]))} must be at least 1 at every level."
        )


def check_widths(widths: tuple[int, ...], skip_scale: float) -> None:
    for width in widths:
        if (
            width % 4 or (width > 64 and width % 16) or (width > 128 and width % 32)
        ):  # decoders join two of a width
            raise ConfigError(
                f"A UNet's width {width} cannot be normalised in min(32, width / 4) groups: use multiples of 4, above "
                "64 of 16, above 128 of 32."
            )
    if any(b < a for a, b in pairwise(widths)) or skip_scale <= 0:
        raise ConfigError(
            f"A UNet's widths={list(widths)} must not fall and skip_scale={skip_scale:g} be positive."
        )


def parallel_256() -> ParallelUNetConfig:
    """S, Fig. 8: one more level, attention at 16x16 only, six garment blocks beside seven person
    blocks at 32x32.
    """
    return ParallelUNetConfig(
        widths=(128, 128, 256, 512, 1024),
        blocks=(2, 3, 4, 7, 7),
        garment_blocks=(2, 3, 4, 6, 7),
        attention=(False, False, False, False, True),
    )


@dataclass
class NoiseAugmentationConfig:
    """Noise on every conditional image, with its level embedded (P; P for uniform levels and
    constants at sampling).

    A level s in [0, 1] is a time of the curve: image <- alpha_s image + sigma_s noise. Level 0 adds
    nothing.
    """

    # D: the stage's own objective.schedule
    curve: Literal["schedule", "cosine", "linear"] = "schedule"
    levels: tuple[float, float] = (
        0.0,
        1.0,
    )  # training draws uniformly from here, per image and sample; [0, 0] = off
    # D: the range of the low-resolution picture alone; null = levels
    lowres_levels: tuple[float, float] | None = None
    # levels at sampling; the paper found its by grid search and does not give them
    agnostic: float = 0.0
    garment: float = 0.0
    lowres: float = 0.0

    def __post_init__(self):
        for name in ("levels", "lowres_levels"):
            low, high = getattr(self, name) or (0, 1)
            if not 0 <= low <= high <= 1:
                raise ConfigError(
                    f"model.augmentation.{name}={[low, high]} must satisfy 0 <= low <= high <= 1."
                )
        for name in ("agnostic", "garment", "lowres"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"model.augmentation.{name}={getattr(self, name)} must be in [0, 1]."
                )

    def training_range(self, image: str) -> tuple[float, float]:
        """What training draws the levels of agnostic, garment or lowres from."""
        return self.lowres_levels if image == "lowres" and self.lowres_levels else self.levels


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
    # garment as worn, the second from this to the picture. Both in one run: D, see README.md.
    warp_first: bool = False
    augmentation: NoiseAugmentationConfig = field(default_factory=NoiseAugmentationConfig)
    keypoints: int = 17  # 17: COCO's, which the paper's pose estimator finds; 18: with the neck, as the data has them
    # D: a third number per keypoint; without it missing joints are just zeros
    visibility: bool = False
    # D: null = zeros, as flat garments have no pose
    garment_pose: Literal["constant"] | None = None
    garment_pose_constant: float = 0.5  # garment_pose=constant: x and y of every joint
    # D: colour of what is blanked, in [-1, 1]; 0 is also what condition dropout leaves
    agnostic_fill: float = 0.0
    garment_fill: float = 0.0  # D: colour around the segmented garment
    # D: antialiased reduction of training pictures
    lowres_filter: Literal["area", "bicubic"] = "area"
    crop_px: int = 256  # sr1024: side of the training crops (P)
    # D: learning rate of the embeddings and of FiLM's linear layers relative to train.lr. They
    # scale every channel of every block by the pose; in a short training at a high rate they move
    # faster than what they modulate.
    modulation_lr: float = 1.0
    drop_lowres: bool = True  # the null condition drops the low-resolution picture too (P: it is a conditional image)
    drop_levels: bool = False  # D: the null condition drops the embedding of the noise levels too
    # sampling steps whose garment features are made in one pass; exact, memory grows with it
    garment_steps: int = 8
    # keep the null branch's garment features of every step between pictures; exact
    null_table: bool = True

    def __post_init__(self):
        if self.warp_first and self.stage != "base":
            raise ConfigError(
                f"model.warp_first=true puts two base networks in sequence; model.stage={self.stage} stays as it is: "
                "leave it false there."
            )
        if self.keypoints not in (17, 18):
            raise ConfigError(
                f"model.keypoints={self.keypoints}: the data has COCO's 18 joints; use 17 or 18."
            )
        for name in ("agnostic_fill", "garment_fill"):
            if not -1 <= getattr(self, name) <= 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must be in [-1, 1].")
        if self.modulation_lr <= 0:
            raise ConfigError(f"model.modulation_lr={self.modulation_lr:g} must be positive.")
        if self.garment_steps < 1:
            raise ConfigError(f"model.garment_steps={self.garment_steps} must be at least 1.")
        if self.crop_px < 1 or self.crop_px % 2 ** len(self.sr1024.widths):
            raise ConfigError(
                f"model.crop_px={self.crop_px} must be a positive multiple of {2 ** len(self.sr1024.widths)}, by which "
                "model.sr1024 reduces pictures."
            )
