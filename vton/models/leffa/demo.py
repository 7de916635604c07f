"""What Leffa's published demo does to pictures before and after its networks.

Nothing here is needed for training or evaluation, which have their own (vton/data,
vton/metrics/prepare.py); `vton verify` compares it, and code of your own may use it. The demo's
mask rules are vton/data/derived/leffa_masks.py. Pictures are uint8 (H, W, 3), masks uint8 (H, W).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from vton.data.repaint import feathered


def on_white(picture: NDArray, size: tuple[int, int]) -> NDArray:
    """A picture scaled to fit into size (height, width), in the middle of a white one."""
    height, width = size
    scale = min(width / picture.shape[1], height / picture.shape[0])
    inner = (int(picture.shape[0] * scale), int(picture.shape[1] * scale))
    padded = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    padded[top : top + inner[0], left : left + inner[1]] = resize_cubic(picture, inner)
    return padded


def resize_cubic(picture: NDArray, size: tuple[int, int]) -> NDArray:
    """To (height, width), bicubic without a low-pass, as OpenCV's INTER_CUBIC."""
    channels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    resized = F.interpolate(channels, size, mode="bicubic", align_corners=False)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def resize_mask(mask: NDArray, size: tuple[int, int]) -> NDArray:
    """A mask in 0..255 at size (height, width) as 0 or 1."""
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return (np.asarray(resized) / np.float32(255) >= 0.5).astype(np.uint8)


def repaint(painted: NDArray, person: NDArray, mask: NDArray) -> NDArray:
    """`painted` inside the mask (0..255), `person` outside, blended over its blurred edge."""
    channels_first = [torch.from_numpy(picture).permute(2, 0, 1) for picture in (painted, person)]
    blend = feathered(*channels_first, torch.from_numpy(mask), parts=100)
    return blend.permute(1, 2, 0).numpy()
