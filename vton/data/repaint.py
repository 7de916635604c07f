"""CatVTON's and Leffa's paste-back: the person's own picture outside a blurred mask."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor


def feathered(painted: Tensor, person: Tensor, mask: Tensor, parts: int = 50) -> Tensor:
    """(3, H, W) uint8: `painted` where the mask (H, W) uint8 is 255, `person` where it is 0.

    Pillow's Gaussian blurs the mask with a radius of the height by `parts` (CatVTON: 50, Leffa:
    100), made odd, and the blend is truncated, not rounded.
    """
    radius = painted.shape[-2] // parts | 1
    blurred = Image.fromarray(mask.numpy()).filter(ImageFilter.GaussianBlur(radius))
    share = torch.from_numpy(np.array(blurred)).double() / 255
    return (person * (1 - share) + painted * share).to(torch.uint8)
