"""What a warp is trained with: the second-order constraint on the spline's lattice, and VGG's
perceptual distance.
"""
# Shapes: B batch, N = side^2 points of the lattice

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vgg import make_layers

UNEVEN, BENT = 0.08, 0.02  # floors below which the constraint rests
VGG19_CHANNELS = (64, 128, 256, 512, 512)
VGG19_CONVOLUTIONS = (2, 2, 4, 4, 1)  # of each stage, up to the last layer that is compared
VGG19_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
VGG19_SIDE = 256  # px, shorter side that pictures are brought to


def order_loss(points: Tensor) -> Tensor:
    """LaDI-VTON's constraint on neighbours in a lattice (B, N, 2), rows first: rx + ry + cx + cy +
    rg + cg, a scalar.

    rx, ry (along rows) and cx, cy (along columns) are |s_{i+1}^2 - s_i^2| of successive steps s,
    each floored and averaged; rg and cg the floored sums of |cross product| of successive steps.
    The released code takes rg and cg from the first sample of a batch alone; here they are every
    sample's.
    """
    side = round(points.shape[1] ** 0.5)
    rows = points.unflatten(1, (side, side))
    total = points.new_zeros(len(points))
    for lines in (rows, rows.transpose(1, 2)):
        steps = lines.diff(dim=2)  # (B, side, side - 1, 2)
        uneven = steps.square().diff(dim=2).abs()
        before, after = steps[:, :, :-1], steps[:, :, 1:]
        bent = (before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]).abs()
        total = (
            total + uneven.clamp(min=UNEVEN).mean((1, 2)).sum(-1) + bent.sum((1, 2)).clamp(min=BENT)
        )
    return total.mean()


class PerceptualLoss(nn.Module):
    """Weighted L1 of VGG19's features after the first ReLU of each stage (Johnson et al. 2016;
    weights of pix2pixHD).

    channels: of the five stages. Frozen.
    """

    def __init__(self, channels: tuple[int, ...] = VGG19_CHANNELS):
        super().__init__()
        plan: list[int | str] = []
        for width, count in zip(channels, VGG19_CONVOLUTIONS, strict=True):
            plan += [width] * count + ["M"]
        self.features = make_layers(plan[:-1])  # keys are the layer numbers of torchvision's VGG19
        self.compared = [
            index + 1
            for index, layer in enumerate(self.features)
            if self._begins_stage(index, layer)
        ]
        self.register_buffer(
            "mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False
        )
        self.requires_grad_(False)

    def _begins_stage(self, index: int, layer: nn.Module) -> bool:
        before = self.features[index - 1] if index else None
        return isinstance(layer, nn.Conv2d) and (before is None or isinstance(before, nn.MaxPool2d))

    def forward(self, picture: Tensor, truth: Tensor) -> Tensor:
        """A scalar for pictures (B, 3, H, W) in [-1, 1]."""
        x, y = (self._prepared(image) for image in (picture, truth))
        loss, weights = picture.new_zeros(()), iter(VGG19_WEIGHTS)
        for index, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if index in self.compared:
                loss = loss + next(weights) * F.l1_loss(x, y)
        return loss

    def _prepared(self, image: Tensor) -> Tensor:
        scale = VGG19_SIDE / min(image.shape[-2:])
        size = [round(side * scale) for side in image.shape[-2:]]
        image = F.interpolate(image, size, mode="bilinear", antialias=True)
        return ((image + 1) / 2 - self.mean) / self.std


def published_perceptual(vgg19: dict[str, Tensor]) -> PerceptualLoss:
    """With torchvision's VGG19."""
    loss = PerceptualLoss()
    loss.load_state_dict({name: vgg19[name] for name in loss.state_dict()})
    return loss


def random_perceptual(channels: tuple[int, ...], seed: int = 0) -> PerceptualLoss:
    """With fixed random features (He-initialised): a texture distance that needs no download."""
    loss, generator = PerceptualLoss(channels), torch.Generator().manual_seed(seed)
    for layer in loss.features:
        if isinstance(layer, nn.Conv2d):
            scale = (2 / layer.weight[0].numel()) ** 0.5
            layer.weight.data = scale * torch.randn(layer.weight.shape, generator=generator)
            layer.bias.data.zero_()
    return loss
