"""GarDiff's appearance loss: DISTS and Sobel edges inside the warped garment (Eq. 8 to 10)."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from vton.data.ranges import to_unit
from vton.models.gardiff.config import AppearanceConfig
from vton.models.perceptual import DISTS, VGG_CHANNELS, random_dists
from vton.models.precision import without_autocast
from vton.processes import to_device
from vton.weights.metric_networks import for_loss

log = logging.getLogger(__name__)


def appearance_loss(
    prediction: Tensor,
    truth: Tensor,
    mask: Tensor,
    dists: DISTS | None,
    high_frequency: bool = True,
) -> Tensor:
    """Eq. 8 and 9 summed, a scalar; dists None and high_frequency False leave their part out.

    Pictures (B, 3, H, W) in [-1, 1]; mask (B, 1, H, W) in {0, 1}, where the warped garment lies.
    """
    loss = prediction.new_zeros(())
    if dists is not None:
        loss = loss + dists(to_unit(prediction) * mask, to_unit(truth) * mask).mean()
    if high_frequency:
        loss = loss + high_frequency_loss(prediction, truth, mask)
    return loss


def high_frequency_loss(prediction: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Eq. 9: mean over all elements of ((|S(prediction)| - |S(truth)|) m)^2; ranges as above."""
    return (((sobel_magnitude(prediction) - sobel_magnitude(truth)) * mask) ** 2).mean()


def sobel_magnitude(image: Tensor) -> Tensor:
    """sqrt(gx^2 + gy^2 + 1e-12) per channel; the constant keeps gradients finite on flat areas."""
    gx, gy = sobel(image)
    return (gx**2 + gy**2 + 1e-12).sqrt()


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical Sobel responses of every channel, (B, C, H, W), not normalised.

    The border is continued by its own pixels.
    """
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernel = to_device(kernel, image.device).to(image.dtype)
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")

    def response(kernel: Tensor) -> Tensor:
        channels = image.shape[1]
        return F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)

    with without_autocast(image):  # half precision rounds to half a level of 8 bits
        return response(kernel), response(kernel.T)


def build_dists(config: AppearanceConfig) -> DISTS:
    """DISTS for the loss: with published weights where a folder has them, else with random ones.

    Warns of random weights where published ones would fit.
    """
    channels = tuple(config.dists_channels)
    if channels == VGG_CHANNELS:
        path = for_loss("vgg", config.dists_weights, "model.appearance.dists_weights")
        if path is not None:
            return DISTS(path, seed=0)
        log.warning(
            "Appearance loss: DISTS runs on fixed random VGG16 features. "
            "`make weights` fetches the real ones."
        )
    return random_dists(channels)
