"""GarDiff's appearance loss: DISTS and Sobel edges inside the warped garment (paper, Eq. 8 to 10).

DISTS (Ding et al., arXiv 2004.07728) is here a loss: of whole pictures, at their size, in narrow
variants for small runs. The metric of the same name weighs features by masks:
vton/models/perceptual.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vton.models.perceptual import CALIBRATION

VGG16_CHANNELS = (64, 128, 256, 512, 512)
VGG16_CONVOLUTIONS = (2, 2, 3, 3, 3)


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical Sobel responses of every channel, (B, C, H, W), replicate padding,
    not normalised.
    """
    kernel = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    channels = image.shape[1]
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return tuple(
        F.conv2d(padded, k.expand(channels, 1, 3, 3), groups=channels) for k in (kernel, kernel.T)
    )


def sobel_magnitude(image: Tensor) -> Tensor:
    """sqrt(gx^2 + gy^2 + 1e-12) per channel; the constant keeps the gradient finite on flat areas."""
    gx, gy = sobel(image)
    return (gx**2 + gy**2 + 1e-12).sqrt()


def high_frequency_loss(prediction: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Eq. 9: mean over all elements of ((|S(prediction)| - |S(truth)|) m)^2; pictures in [-1, 1],
    mask (B, 1, H, W).
    """
    return (((sobel_magnitude(prediction) - sobel_magnitude(truth)) * mask) ** 2).mean()


class L2Pool(nn.Module):
    """Square, 3x3 Hanning blur with stride 2, root: DISTS' replacement for max pooling."""

    def __init__(self, channels: int):
        super().__init__()
        window = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer(
            "filter", torch.outer(window, window).expand(channels, 1, 3, 3).clone()
        )

    def forward(self, x: Tensor) -> Tensor:
        return (
            F.conv2d(x**2, self.filter, stride=2, padding=1, groups=len(self.filter)) + 1e-12
        ).sqrt()


class DISTS(nn.Module):
    """1 - sum over channels of alpha l(x, y) + beta s(x, y): luminance and structure of VGG
    features.

    channels: of the five VGG stages; the raw picture is a sixth feature set of 3 channels. Frozen.
    """

    def __init__(self, channels: tuple[int, ...] = VGG16_CHANNELS):
        super().__init__()
        self.channels = (3, *channels)
        index, width = 0, 3
        for stage, (out, count) in enumerate(
            zip(channels, VGG16_CONVOLUTIONS, strict=True), start=1
        ):
            layers = nn.ModuleDict()  # keys are the layer numbers of torchvision's VGG16
            if stage > 1:
                layers[str(index)] = L2Pool(width)
                index += 1
            for _ in range(count):
                layers[str(index)] = nn.Conv2d(width, out, 3, padding=1)
                index, width = index + 2, out  # a ReLU follows each convolution
            self.add_module(f"stage{stage}", layers)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.register_buffer("alpha", torch.ones(1, sum(self.channels), 1, 1))
        self.register_buffer("beta", torch.ones(1, sum(self.channels), 1, 1))
        self.requires_grad_(False)

    def features(self, image: Tensor) -> list[Tensor]:
        """The picture in [0, 1] and the five stages after ReLU."""
        maps, x = [image], (image - self.mean) / self.std
        for stage in range(1, len(self.channels)):
            for layer in self.get_submodule(f"stage{stage}").values():
                x = layer(x) if isinstance(layer, L2Pool) else F.relu(layer(x))
            maps.append(x)
        return maps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) distances of pictures (B, 3, H, W) in [0, 1]; 0 = same."""
        total = self.alpha.sum() + self.beta.sum()
        alphas, betas = (
            w.flatten().split(self.channels) for w in (self.alpha / total, self.beta / total)
        )
        similarity = 0.0
        for fx, fy, alpha, beta in zip(
            self.features(x), self.features(y), alphas, betas, strict=True
        ):
            mx, my = fx.mean((2, 3)), fy.mean((2, 3))
            vx, vy = fx.var((2, 3), correction=0), fy.var((2, 3), correction=0)
            covariance = (fx * fy).mean((2, 3)) - mx * my
            luminance = (2 * mx * my + 1e-6) / (mx**2 + my**2 + 1e-6)
            structure = (2 * covariance + 1e-6) / (vx + vy + 1e-6)
            similarity = similarity + (alpha * luminance + beta * structure).sum(1)
        return 1 - similarity


def published_dists(vgg16: dict[str, Tensor]) -> DISTS:
    """DISTS with torchvision's VGG16 and the authors' channel weights, which torchmetrics' wheel
    holds.
    """
    model = DISTS()
    state = dict(model.state_dict())
    for key in state:
        if key.startswith("stage") and not key.endswith("filter"):
            state[key] = vgg16[f"features.{key.split('.', 1)[1]}"]
    weights = torch.load(
        CALIBRATION / "dists_models" / "weights.pt", map_location="cpu", weights_only=True
    )
    model.load_state_dict(
        state | {name: weight.reshape(1, -1, 1, 1) for name, weight in weights.items()}
    )
    return model


def random_dists(channels: tuple[int, ...], seed: int = 0) -> DISTS:
    """DISTS on fixed random features (He-initialised): a texture distance that needs no download."""
    model, generator = DISTS(channels), torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data = (
                torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            )
            module.bias.data.zero_()
    return model


def appearance_loss(
    prediction: Tensor,
    truth: Tensor,
    mask: Tensor,
    dists: DISTS | None,
    high_frequency: bool = True,
) -> Tensor:
    """Eq. 8 and 9 summed. Pictures (B, 3, H, W) in [-1, 1], mask (B, 1, H, W) = warped garment."""
    loss = prediction.new_zeros(())
    if dists is not None:
        loss = loss + dists((prediction + 1) / 2 * mask, (truth + 1) / 2 * mask).mean()
    if high_frequency:
        loss = loss + high_frequency_loss(prediction, truth, mask)
    return loss
