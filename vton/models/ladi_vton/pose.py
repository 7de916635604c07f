"""Joints as the heat maps that LaDI-VTON's UNet reads."""
# Shapes: B batch, J joints, H W picture, h w latents

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = torch.finfo(torch.float32).eps


def pose_maps(joints: Tensor, found: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """exp(-d^2 / sigma^2) of the distance to each joint, brought to a maximum of about 1.

    The divisor is sigma squared, not twice it. A joint between pixels, or just outside the picture,
    is raised to the same peak; one far outside fades out. In float64, returned as float32.

    joints: (B, J, 2), x and y in pixels; found: (B, J) bool, others are maps of zeros; size: H, W;
    sigma: px. Returns (B, J, H, W).
    """
    height, width = size
    x, y = joints.double().unbind(-1)
    across, down = bell(x, width, sigma), bell(y, height, sigma)
    maps = down[..., :, None] * across[..., None, :]
    maps = maps / (maps.amax((-2, -1), keepdim=True) + EPSILON)
    return (maps * found[..., None, None]).float()


def bell(place: Tensor, side: int, sigma: float) -> Tensor:
    """exp(-d^2 / sigma^2) along one side of the picture: places (B, J) in px to (B, J, side)."""
    pixels = torch.arange(side, device=place.device, dtype=place.dtype)
    return torch.exp(-((pixels - place[..., None]) ** 2) / sigma**2)


def pose_latents(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, J, H, W) at latent size (B, J, h, w), bilinear without antialiasing."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
