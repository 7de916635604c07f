"""LPIPS and DISTS from features of ImageNet classifiers (or of the same networks with random
weights).

Both compare a prediction with a truth whose features were computed once, and both can average over
a mask: their per-layer maps are weighted by the mask reduced to the layer's size by area.
"""
# Shapes: B batch, C channels and H W size of a layer

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchmetrics.functional.image as torchmetrics_image
from torch import Tensor, nn
from torchvision import models

from vton.weights import metric_networks

# Constructors of torchvision, and the index of each ReLU or Fire module whose output is compared.
BACKBONES = {
    "alex": (models.alexnet, (1, 4, 7, 9, 11)),
    "vgg": (models.vgg16, (3, 8, 15, 22, 29)),
    "squeeze": (models.squeezenet1_1, (1, 4, 7, 9, 10, 11, 12)),
}
CALIBRATION = Path(
    torchmetrics_image.__file__
).parent  # torchmetrics' wheel holds both metrics' learned layer weights


class Backbone(nn.Module):
    """The convolutional part of a classifier up to its last compared layer; returns every compared
    layer's output.
    """

    def __init__(self, name: str):
        super().__init__()
        constructor, self.taps = BACKBONES[name]
        self.features = constructor(weights=None).features[: self.taps[-1] + 1]

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                outputs.append(x)
        return outputs


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018, arXiv 1801.03924, Eq. 1),
    version 0.1.

        d = sum_l mean_hw w_l . (f_l / |f_l| - g_l / |g_l|)^2

    With a random backbone the calibrated w_l mean nothing; they are 1, the paper's uncalibrated
    form.
    """

    def __init__(self, net: str, path: Path | None, seed: int):
        super().__init__()
        self.backbone = metric_networks.build(lambda: Backbone(net), path, seed)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.calibration = None
        if path is not None:
            state = torch.load(
                CALIBRATION / "lpips_models" / f"{net}.pth", map_location="cpu", weights_only=True
            )
            layers = [
                state[f"lin{index}.model.1.weight"] for index in range(len(self.backbone.taps))
            ]
            self.calibration = nn.ParameterList(
                nn.Parameter(layer, requires_grad=False) for layer in layers
            )

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Pictures in [0, 1] (B, 3, H, W) to unit-length features per layer."""
        outputs = self.backbone((2 * pictures - 1 - self.shift) / self.scale)
        return [layer / (layer.norm(dim=1, keepdim=True) + 1e-10) for layer in outputs]

    def distance(
        self, prediction: list[Tensor], truth: list[Tensor], mask: Tensor | None
    ) -> Tensor:
        """Distances (B,), smaller is better; mask (B, 1, H, W) or None for the whole picture."""
        total = 0.0
        for index, (x, y) in enumerate(zip(prediction, truth, strict=True)):
            difference = (x - y).square()
            if self.calibration is not None:
                difference = difference * self.calibration[index]
            weight = None if mask is None else F.interpolate(mask, x.shape[-2:], mode="area")
            total = total + masked_mean(difference.sum(1, keepdim=True), weight)[:, 0]
        return total


class L2Pool(nn.Module):
    """Root of the Hann-weighted local mean of squares: DISTS' replacement of max pooling, free of
    aliasing.
    """

    def forward(self, x: Tensor) -> Tensor:
        hann = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = (hann[:, None] * hann).expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


@dataclass
class Statistics:
    """Mean (B, C, 1, 1), deviations from it (B, C, H, W), variance (B, C) of one layer, and its
    weight map.
    """

    mean: Tensor
    deviation: Tensor
    variance: Tensor
    weight: Tensor | None


class DISTS(nn.Module):
    """Deep image structure and texture similarity (Ding et al. 2020, arXiv 2004.07728, Eq. 5 to 8).

        1 - sum_l sum_c alpha (2 m_x m_y + c) / (m_x^2 + m_y^2 + c) + beta (2 s_xy + c) / (s_x^2 +
        s_y^2 + c)

    over the picture itself and five layers of VGG16 with L2 pooling. Pictures whose shorter side
    exceeds `side` px are reduced to it, as in the authors' code. With a random VGG all alpha and
    beta are equal.
    """

    STABILISER = 1e-6

    def __init__(self, path: Path | None, seed: int, side: int):
        super().__init__()
        self.side = side
        self.backbone = metric_networks.build(lambda: Backbone("vgg"), path, seed)
        for index, layer in enumerate(self.backbone.features):
            if isinstance(layer, nn.MaxPool2d):
                self.backbone.features[index] = L2Pool()
        self.register_buffer("shift", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        channels = (3, 64, 128, 256, 512, 512)
        state = {
            "alpha": torch.ones(1, sum(channels), 1, 1),
            "beta": torch.ones(1, sum(channels), 1, 1),
        }
        if path is not None:
            state = torch.load(
                CALIBRATION / "dists_models" / "weights.pt", map_location="cpu", weights_only=True
            )
        total = state["alpha"].sum() + state["beta"].sum()
        self.alpha = _parameters(state["alpha"] / total, channels)
        self.beta = _parameters(state["beta"] / total, channels)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Pictures in [0, 1] (B, 3, H, W) to the layers compared, the picture first."""
        shorter = min(pictures.shape[-2:])
        if shorter > self.side:
            size = [round(length * self.side / shorter) for length in pictures.shape[-2:]]
            pictures = F.interpolate(
                pictures, size, mode="bilinear", align_corners=False, antialias=True
            )
        return [pictures, *self.backbone((pictures - self.shift) / self.scale)]

    @staticmethod
    def statistics(features: list[Tensor], mask: Tensor | None) -> list[Statistics]:
        """What the distance needs of each layer, over the whole picture or over mask (B, 1, H, W)."""
        layers = []
        for x in features:
            weight = None if mask is None else F.interpolate(mask, x.shape[-2:], mode="area")
            mean = masked_mean(x, weight)[:, :, None, None]
            deviation = x - mean
            layers.append(
                Statistics(mean, deviation, masked_mean(deviation.square(), weight), weight)
            )
        return layers

    def distance(self, prediction: list[Statistics], truth: list[Statistics]) -> Tensor:
        """Distances (B,), smaller is better."""
        similarity = 0.0
        for x, y, alpha, beta in zip(prediction, truth, self.alpha, self.beta, strict=True):
            covariance = masked_mean(x.deviation * y.deviation, y.weight)
            x_mean, y_mean = x.mean[:, :, 0, 0], y.mean[:, :, 0, 0]
            means = (2 * x_mean * y_mean + self.STABILISER) / (
                x_mean**2 + y_mean**2 + self.STABILISER
            )
            structure = (2 * covariance + self.STABILISER) / (
                x.variance + y.variance + self.STABILISER
            )
            similarity = similarity + (means * alpha + structure * beta).sum(1)
        return 1 - similarity


def masked_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of (B, C, H, W) over the picture, or over weight (B, 1, H, W): (B, C)."""
    if weight is None:
        return values.mean((2, 3))
    return (values * weight).sum((2, 3)) / weight.sum((2, 3))


def _parameters(vector: Tensor, channels: tuple[int, ...]) -> nn.ParameterList:
    parts = vector.flatten().split(channels)
    return nn.ParameterList(nn.Parameter(part.clone(), requires_grad=False) for part in parts)
