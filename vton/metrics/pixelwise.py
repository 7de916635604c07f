"""SSIM and PSNR per picture, over the whole picture or over a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vton.metrics.protocol import Protocol


def masked_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of (B, C, H, W) over the picture, or over weight (B, 1, H, W): (B, C)."""
    if weight is None:
        return values.mean((2, 3))
    return (values * weight).sum((2, 3)) / weight.sum((2, 3))


def ssim(prediction: Tensor, truth: Tensor, weight: Tensor | None, protocol: Protocol) -> Tensor:
    """Structural similarity (Wang et al. 2004) of pictures in [0, 1], averaged over RGB and the mask: (B,)."""
    _, similarity = structural_similarity_index_measure(
        prediction, truth, sigma=protocol.ssim_sigma, data_range=1.0, reduction="none", return_full_image=True
    )
    return masked_mean(similarity, weight).mean(1)


def psnr(prediction: Tensor, truth: Tensor, weight: Tensor | None, protocol: Protocol) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], per picture, identical ones at the protocol's cap: (B,).

    The mean over a set is the mean of these, not the ratio of the pooled error: one failure does not hide the rest.
    """
    error = masked_mean((prediction.double() - truth.double()).square(), weight).mean(1)
    return (-10 * torch.log10(error)).clamp(max=protocol.psnr_cap)
