"""What a protocol does to a picture before anything is measured: size, JPEG, pasting back.

Pillow does all of it, because the published scripts used it. Pictures are uint8 tensors (3, h, w),
masks bool (1, h, w), sizes (height, width).
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vton.data.repaint import feathered as feathered_blend
from vton.metrics.protocol import Protocol


def truth(picture: Tensor, size: tuple[int, int], protocol: Protocol) -> Tensor:
    """The stored truth as the protocol compares it, at `size`."""
    return jpeg(resize(picture, size, protocol.resample), protocol.truth_jpeg)


def prediction(
    picture: Tensor,
    size: tuple[int, int],
    protocol: Protocol,
    person: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """A prediction as the protocol compares it, at `size`.

    Outside `mask`, if given, it becomes the `person`.
    """
    picture = resize(picture, size, protocol.resample)
    if mask is not None:
        person = resize(person, size, protocol.resample)
        picture = repaint(picture, person, mask, protocol.feathered)
    return jpeg(picture, protocol.prediction_jpeg)


def resize(picture: Tensor, size: tuple[int, int], resample: str) -> Tensor:
    """To `size` by one of Pillow's filters, antialiased and rounded once.

    A picture of that size stays as it is.
    """
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    height, width = size
    resized = to_image(picture).resize((width, height), Image.Resampling[resample.upper()])
    return from_image(resized)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, h, w) to (1, H, W), nearest neighbour.

    A mask that would vanish altogether keeps the pixels it touches.
    """
    values = mask[None].float()
    resized = F.interpolate(values, size, mode="nearest-exact") > 0
    if mask.any() and not resized.any():
        resized = F.adaptive_max_pool2d(values, size) > 0
    return resized[0]


def jpeg(picture: Tensor, quality: int) -> Tensor:
    """Compressed by Pillow (chroma 4:2:0) and read back; unchanged for quality 0."""
    if not quality:
        return picture
    stored = io.BytesIO()
    to_image(picture).save(stored, "JPEG", quality=quality)
    return from_image(Image.open(stored))


def repaint(painted: Tensor, person: Tensor, mask: Tensor, feathered: bool) -> Tensor:
    """`painted` inside the mask, `person` outside; both are of one size.

    feathered: CatVTON's blend through a blurred mask, not a hard edge.
    """
    mask = resize_mask(mask, painted.shape[-2:])
    if not feathered:
        return torch.where(mask, painted, person)
    return feathered_blend(painted, person, mask[0].to(torch.uint8) * 255)


def to_image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def from_image(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
