"""What the learned warp is trained with besides L1: the lattice's order and VGG19's features."""
# Shapes: B batch, N = side^2 points of the lattice

from __future__ import annotations

import logging

from torch import Tensor

from vton.models.perceptual import VGG_CHANNELS, PerceptualLoss
from vton.models.warp.config import PerceptualConfig
from vton.weights.metric_networks import for_loss

log = logging.getLogger(__name__)

UNEVEN, BENT = 0.08, 0.02  # floors below which the constraint rests


def order_loss(points: Tensor) -> Tensor:
    """LaDI-VTON's second-order constraint on neighbours in a lattice (B, N, 2), rows first.

    A scalar, rx + ry + cx + cy + rg + cg. With s the steps from a point to the next along rows (r)
    and columns (c), rx, ry, cx and cy are |s_{i+1}^2 - s_i^2|, each floored and averaged; rg and cg
    are the floored sums of |s_i x s_{i+1}|. The released code takes rg and cg from the first sample
    of a batch alone; here they are every sample's.
    """
    side = round(points.shape[1] ** 0.5)
    rows = points.unflatten(1, (side, side))
    total = points.new_zeros(len(points))
    for lines in (rows, rows.transpose(1, 2)):
        steps = lines.diff(dim=2)  # (B, side, side - 1, 2)
        uneven = steps.square().diff(dim=2).abs().clamp(min=UNEVEN)
        before, after = steps[:, :, :-1], steps[:, :, 1:]
        cross = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
        bent = cross.abs().sum((1, 2)).clamp(min=BENT)
        total = total + uneven.mean((1, 2)).sum(-1) + bent
    return total.mean()


def build_perceptual(config: PerceptualConfig) -> PerceptualLoss:
    """VGG19's distance: with published weights where a folder has them, else with random ones.

    Warns of random weights where published ones would fit.
    """
    channels = tuple(config.channels)
    path = None
    if channels == VGG_CHANNELS:
        path = for_loss("vgg19", config.weights, "model.perceptual.weights")
        if path is None:
            log.warning(
                "Perceptual loss: VGG19 runs on fixed random weights. "
                "`vton weights vgg19` fetches the real ones."
            )
    return PerceptualLoss(path, channels=channels)
