"""Settings of the learned warp. Defaults are LaDI-VTON's.

Sources: arXiv 2305.13501, Section 3.1, and the released code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from vton.config import (
    Bounds,
    ConfigError,
    ModelKind,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInts,
    TrainedConfig,
)


@dataclass
class TpsConfig:
    """The network that moves a lattice of control points."""

    size: tuple[int, int] = (256, 192)  # height, width in px that correspondence is computed at
    # channels of the extractors' convolutions, each halving the picture
    widths: PositiveInts = (64, 128, 256, 512)
    # channels of the regression's, the first two halving
    regression: PositiveInts = (512, 256, 128, 64)
    points: Annotated[int, Bounds(3)] = 5  # side of the lattice
    positions: bool = False  # the extractors also read each pixel's x and y; ours, see the README
    order_weight: NonNegativeFloat = 0.01  # of the second-order constraint on the lattice

    def __post_init__(self):
        reduction = 2 ** len(self.widths)
        smallest = 4 * reduction
        if min(self.size) < smallest or any(side % reduction for side in self.size):
            raise ConfigError(
                f"model.tps.size={list(self.size)}: {len(self.widths)} model.tps.widths halve it "
                f"as often, so both sides must be multiples of {reduction}, at least {smallest}."
            )
        if len(self.regression) < 2:
            raise ConfigError(
                f"model.tps.regression={list(self.regression)} must have at least 2 entries."
            )


@dataclass
class RefinementConfig:
    """The UNet that repaints the warped garment."""

    widths: PositiveInts = (64, 128, 256, 512, 512)  # channels per level
    # It reads the silhouette too, and paints a correction of both instead of a new picture; ours,
    # see the README.
    correction: bool = False


@dataclass
class PerceptualConfig:
    """VGG19's part in the refinement's loss."""

    weight: NonNegativeFloat = 0.25
    # folder with VGG19's; "" = $VTON_METRIC_WEIGHTS, `vton weights`' folder, else random
    weights: str = ""
    # of its five stages; others than VGG19's have fixed random weights
    channels: PositiveInts = (64, 128, 256, 512, 512)


@dataclass
class WarpConfig(TrainedConfig):
    kind: ClassVar[ModelKind] = "warp"
    name: str = "warp"
    # What the spline bends: the in-shop garment, or its geometric warp
    # (data.warp_source=geometric); the latter is ours, see the README.
    start: Literal["garment", "geometric"] = "garment"
    tps: TpsConfig = field(default_factory=TpsConfig)
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    heat_sigma: PositiveFloat = 9.0  # of the joints' heat maps, px of a picture 512 high
    # Optimizer steps of the spline alone, before the refinement learns on it frozen; 0 = both at
    # once. With train.steps no larger, the spline is all there is. A count and not a share, so that
    # a longer train.steps continues a run.
    tps_steps: NonNegativeInt = 36_400
