"""Distances of pictures by the features of ImageNet classifiers: LPIPS, DISTS and VGG19's.

LPIPS and DISTS are metrics. DISTS is GarDiff's appearance loss too, and VGG19's features are part
of the learned warp's loss. Each network has its published weights where a file holds them, else
random ones that are always the same.

The metrics compare a prediction with a truth whose features were computed once. They can average
over a mask: their per-layer maps are weighted by the mask reduced to the layer's size by area.
"""
# Shapes: B batch, C channels and H W size of a layer

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchmetrics.functional.image as torchmetrics_image
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vgg import cfgs, make_layers

from vton.data.ranges import from_unit, to_unit
from vton.weights import metric_networks

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VGG_CHANNELS = (64, 128, 256, 512, 512)  # of the five stages of VGG16 and VGG19
VGG16_TAPS = (3, 8, 15, 22, 29)  # the last ReLU of each stage
VGG19_TAPS = (1, 6, 11, 20, 29)  # the first ReLU of each stage
# Constructors of torchvision, and the index of each ReLU or Fire module whose output is compared.
BACKBONES = {
    "alex": (models.alexnet, (1, 4, 7, 9, 11)),
    "vgg": (models.vgg16, VGG16_TAPS),
    "squeeze": (models.squeezenet1_1, (1, 4, 7, 9, 10, 11, 12)),
}
# torchmetrics' wheel holds the layer weights that the authors of LPIPS and DISTS learned.
CALIBRATION = Path(torchmetrics_image.__file__).parent


class Backbone(nn.Module):
    """A classifier's convolutions up to the last tapped layer; returns the output of each tap."""

    def __init__(self, features: nn.Sequential, taps: tuple[int, ...]):
        super().__init__()
        self.features = features[: taps[-1] + 1]
        self.taps = taps

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                outputs.append(x)
        return outputs


def classifier(name: str) -> Backbone:
    """The backbone of a classifier in BACKBONES."""
    constructor, taps = BACKBONES[name]
    return Backbone(constructor(weights=None).features, taps)


def vgg(plan: str, channels: tuple[int, ...], taps: tuple[int, ...]) -> Backbone:
    """torchvision's VGG16 (plan "D") or VGG19 ("E") with these channels in its five stages."""
    layers: list[int | str] = []
    stage = 0
    for entry in cfgs[plan]:
        if entry == "M":  # max pooling ends a stage
            layers.append("M")
            stage += 1
        else:
            layers.append(channels[stage])
    return Backbone(make_layers(layers), taps)


def draw_normal(module: nn.Module, seed: int) -> None:
    """He-normal filters and zero biases, from a generator of their own.

    The losses draw by this, the metrics by `metric_networks.randomise`. Other numbers would change
    the trainings and scores that were published with them.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            normal = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data.copy_(normal * (2 / fan_in) ** 0.5)
            layer.bias.data.zero_()


class Buffers(nn.Module):
    """Tensors that are in a module's state and move with it, but are no parameters."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(str(index), tensor.clone())

    def __iter__(self) -> Iterator[Tensor]:
        return self.buffers()


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, version 0.1 (Zhang et al. 2018, arXiv 1801.03924).

        d = sum_l mean_hw w_l . (f_l / |f_l| - g_l / |g_l|)^2          (Eq. 1)

    With a random backbone the calibrated w_l mean nothing. They are 1 then, the uncalibrated form
    of the paper.
    """

    def __init__(self, net: str, path: Path | None, seed: int):
        super().__init__()
        self.backbone = metric_networks.build(lambda: classifier(net), path, seed)
        self.register_buffer("shift", per_channel((-0.030, -0.088, -0.188)))
        self.register_buffer("scale", per_channel((0.458, 0.448, 0.450)))
        self.calibration = None
        if path is not None:
            file = CALIBRATION / "lpips_models" / f"{net}.pth"
            state = torch.load(file, map_location="cpu", weights_only=True)
            layers = range(len(self.backbone.taps))
            self.calibration = Buffers(state[f"lin{layer}.model.1.weight"] for layer in layers)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Pictures in [0, 1] (B, 3, H, W) to unit-length features per layer."""
        outputs = self.backbone((from_unit(pictures) - self.shift) / self.scale)
        return [layer / (layer.norm(dim=1, keepdim=True) + 1e-10) for layer in outputs]

    def distance(
        self, prediction: list[Tensor], truth: list[Tensor], mask: Tensor | None
    ) -> Tensor:
        """Distances (B,), smaller is better; mask (B, 1, H, W) or None for the whole picture."""
        weights = self.calibration or [None] * len(truth)
        total = 0.0
        for x, y, weight in zip(prediction, truth, weights, strict=True):
            difference = (x - y).square()
            if weight is not None:
                difference = difference * weight
            mean = masked_mean(difference.sum(1, keepdim=True), reduced(mask, x))
            total = total + mean[:, 0]
        return total


class L2Pool(nn.Module):
    """Root of the Hann-weighted local mean of squares: DISTS' pooling, free of aliasing."""

    def __init__(self):
        super().__init__()
        hann = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(hann, hann), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 3, 3)
        mean = F.conv2d(x**2, kernel, stride=2, padding=1, groups=channels)
        return (mean + 1e-12).sqrt()


@dataclass
class Statistics:
    """What DISTS compares of one layer."""

    mean: Tensor  # (B, C, 1, 1)
    deviation: Tensor  # (B, C, H, W), from the mean
    variance: Tensor  # (B, C)
    weight: Tensor | None  # (B, 1, H, W), the mask at the layer's size


class DISTS(nn.Module):
    """Deep image structure and texture similarity (Ding et al. 2020, arXiv 2004.07728).

        1 - sum_l sum_c alpha (2 m_x m_y + c) / (m_x^2 + m_y^2 + c)
                         + beta (2 s_xy + c) / (s_x^2 + s_y^2 + c)          (Eq. 5 to 8)

    over the picture itself and five layers of VGG16 with L2 pooling. It has two forms, whose values
    differ by rounding. As a loss, `forward` compares whole pictures. As a metric, `distance`
    compares `statistics`, which are of `features` and may be under a mask.

    path: VGG16's published weights; None: random ones, with alpha and beta all equal.
    side: pictures whose shorter side is longer are reduced to it, as in the authors' code.
    channels: of VGG16's stages, for small runs; other than its own need random weights.
    """

    def __init__(
        self,
        path: Path | None,
        seed: int,
        side: int | None = None,
        channels: tuple[int, ...] = VGG_CHANNELS,
    ):
        super().__init__()
        self.side = side
        self.backbone = metric_networks.build(lambda: vgg("D", channels, VGG16_TAPS), path, seed)
        for index, layer in enumerate(self.backbone.features):
            if isinstance(layer, nn.MaxPool2d):
                self.backbone.features[index] = L2Pool()
        self.register_buffer("shift", per_channel(IMAGENET_MEAN))
        self.register_buffer("scale", per_channel(IMAGENET_STD))
        self.channels = (3, *channels)
        if path is None:
            equal = torch.ones(sum(self.channels))
            self.calibrate(equal, equal)
        else:
            file = CALIBRATION / "dists_models" / "weights.pt"
            state = torch.load(file, map_location="cpu", weights_only=True)
            self.calibrate(state["alpha"], state["beta"])

    def calibrate(self, alpha: Tensor, beta: Tensor) -> None:
        """Take the channels' weights, of any common scale, for all layers one after the other."""
        device = self.shift.device
        total = alpha.sum() + beta.sum()
        self.alpha = Buffers((alpha / total).flatten().to(device).split(self.channels))
        self.beta = Buffers((beta / total).flatten().to(device).split(self.channels))

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Pictures in [0, 1] (B, 3, H, W) to the layers compared, the picture first."""
        shorter = min(pictures.shape[-2:])
        if self.side is not None and shorter > self.side:
            size = [round(length * self.side / shorter) for length in pictures.shape[-2:]]
            pictures = F.interpolate(
                pictures, size, mode="bilinear", align_corners=False, antialias=True
            )
        return [pictures, *self.backbone((pictures - self.shift) / self.scale)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (B,) of whole pictures (B, 3, H, W) in [0, 1]; gradients pass through."""
        layers = zip(self.features(x), self.features(y), self.alpha, self.beta, strict=True)
        similarity = 0.0
        for fx, fy, alpha, beta in layers:
            fx, fy = fx.float(), fy.float()  # differences of squares cancel in bfloat16
            mx, my = fx.mean((2, 3)), fy.mean((2, 3))
            vx, vy = fx.var((2, 3), correction=0), fy.var((2, 3), correction=0)
            covariance = (fx * fy).mean((2, 3)) - mx * my
            means = agreement(mx * my, mx**2, my**2)
            structure = agreement(covariance, vx, vy)
            similarity = similarity + (alpha * means + beta * structure).sum(1)
        return 1 - similarity

    @staticmethod
    def statistics(features: list[Tensor], mask: Tensor | None) -> list[Statistics]:
        """What `distance` needs of each layer, over the whole picture or over mask (B, 1, H, W)."""
        layers = []
        for x in features:
            weight = reduced(mask, x)
            mean = masked_mean(x, weight)[:, :, None, None]
            deviation = x - mean
            variance = masked_mean(deviation.square(), weight)
            layers.append(Statistics(mean, deviation, variance, weight))
        return layers

    def distance(self, prediction: list[Statistics], truth: list[Statistics]) -> Tensor:
        """Distances (B,), smaller is better."""
        similarity = 0.0
        for x, y, alpha, beta in zip(prediction, truth, self.alpha, self.beta, strict=True):
            mx, my = x.mean[:, :, 0, 0], y.mean[:, :, 0, 0]
            covariance = masked_mean(x.deviation * y.deviation, y.weight)
            means = agreement(mx * my, mx**2, my**2)
            structure = agreement(covariance, x.variance, y.variance)
            similarity = similarity + (alpha * means + beta * structure).sum(1)
        return 1 - similarity


def random_dists(channels: tuple[int, ...], seed: int = 0) -> DISTS:
    """DISTS for a loss without published weights: a texture distance on fixed random features."""
    dists = DISTS(None, seed, channels=channels)
    draw_normal(dists.backbone, seed)
    return dists


class PerceptualLoss(nn.Module):
    """Weighted L1 of VGG19's features (Johnson et al. 2016) with the weights of pix2pixHD.

    path: VGG19's published weights; None: random ones. channels: as in DISTS.
    """

    WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
    SIDE = 256  # px, shorter side that pictures are brought to

    def __init__(self, path: Path | None, seed: int = 0, channels: tuple[int, ...] = VGG_CHANNELS):
        super().__init__()
        self.backbone = metric_networks.build(lambda: vgg("E", channels, VGG19_TAPS), path, seed)
        if path is None:
            draw_normal(self.backbone, seed)
        self.register_buffer("shift", per_channel(IMAGENET_MEAN))
        self.register_buffer("scale", per_channel(IMAGENET_STD))

    def features(self, picture: Tensor) -> list[Tensor]:
        """Pictures in [-1, 1] (B, 3, H, W) to the layers compared."""
        shorter = min(picture.shape[-2:])
        size = [side * self.SIDE // shorter for side in picture.shape[-2:]]  # as torchvision cuts
        picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
        return self.backbone((to_unit(picture) - self.shift) / self.scale)

    def forward(self, picture: Tensor, truth: Tensor) -> Tensor:
        """A scalar for pictures (B, 3, H, W) in [-1, 1]."""
        loss = picture.new_zeros(())
        layers = zip(self.features(picture), self.features(truth), self.WEIGHTS, strict=True)
        for x, y, weight in layers:
            loss = loss + weight * F.l1_loss(x, y)
        return loss


def agreement(product: Tensor, x_square: Tensor, y_square: Tensor) -> Tensor:
    """(2 x y + c) / (x^2 + y^2 + c): 1 where x equals y, as in SSIM."""
    stabiliser = 1e-6
    return (2 * product + stabiliser) / (x_square + y_square + stabiliser)


def reduced(mask: Tensor | None, layer: Tensor) -> Tensor | None:
    """The mask at a layer's size, by area."""
    return None if mask is None else F.interpolate(mask, layer.shape[-2:], mode="area")


def masked_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of (B, C, H, W) over the picture, or over weight (B, 1, H, W): (B, C)."""
    if weight is None:
        return values.mean((2, 3))
    return (values * weight).sum((2, 3)) / weight.sum((2, 3))


def per_channel(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)
