"""Inception v3 in the form FID is defined on: the 2015 TensorFlow graph, before its classifier.

It differs from torchvision's network, whose blocks it reuses, in its pooling: averages leave out
the padding, and the last block pools by maximum. Parameter names are those of
`pt_inception-2015-12-05-6726825d.pth`. Heusel et al. 2017 (arXiv 1706.08500) for FID; Naeem et al.
2020 (arXiv 2002.09797) for features of random networks.
"""
# Shapes: B batch, S side of the square the network sees

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as blocks


def resize_to_square(pictures: Tensor, side: int, style: str = "torchmetrics") -> Tensor:
    """Pictures as one of the tools that compute FID resizes them.

    pictures: uint8 or float (B, 3, H, W) in [0, 255]; returns float (B, 3, S, S) in [0, 255]

    torchmetrics:   bilinear, antialiased
    clean_fid:      bicubic, antialiased, Pillow's kernel, unrounded, clipped
                    (Parmar et al. 2022, arXiv 2104.11222)
    torch_fidelity: TensorFlow 1's bilinear, not antialiased; pixel i is read at i * H / S
    """
    pictures = pictures.float()
    if style == "torch_fidelity":
        rows = _tensorflow_bilinear(pictures, side, axis=2)
        return _tensorflow_bilinear(rows, side, axis=3)
    mode = {"torchmetrics": "bilinear", "clean_fid": "bicubic"}[style]
    resized = F.interpolate(pictures, (side, side), mode=mode, align_corners=False, antialias=True)
    return resized.clamp(0, 255)


def _tensorflow_bilinear(pictures: Tensor, side: int, axis: int) -> Tensor:
    """Pictures (B, 3, H, W) resized along one axis."""
    length = pictures.shape[axis]
    place = torch.arange(side, device=pictures.device) * (length / side)
    first = place.long()
    share = (place - first).view([-1, 1] if axis == 2 else [1, -1])
    before = pictures.index_select(axis, first)
    after = pictures.index_select(axis, (first + 1).clamp(max=length - 1))
    return before + (after - before) * share


def garment_crops(pictures: Tensor, mask: Tensor, side: int, style: str = "torchmetrics") -> Tensor:
    """The garments alone, grey outside the mask and cropped to the mask's bounding box.

    pictures: uint8 (B, 3, H, W)
    mask:     (B, 1, H, W), nowhere empty
    returns   float (B, 3, S, S) in [0, 255], resized as `resize_to_square` does

    Grey is 128, which the network sees as 0.
    """
    crops = []
    for picture, inside in zip(pictures, mask, strict=True):
        crops.append(resize_to_square(garment_crop(picture, inside)[None], side, style))
    return torch.cat(crops)


def garment_crop(picture: Tensor, mask: Tensor) -> Tensor:
    """The bounding box of a mask (1, H, W) in a picture (3, H, W), grey outside the mask."""
    inside = mask[0] > 0
    grey = torch.where(inside, picture, 128)
    rows = inside.any(1).nonzero()[:, 0]
    columns = inside.any(0).nonzero()[:, 0]
    return grey[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class Inception(nn.Module):
    """float (B, 3, S, S) in [0, 255] to features (B, 2048)."""

    def __init__(self):
        super().__init__()
        conv = blocks.BasicConv2d
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.Mixed_5b = BlockA(192, pool_features=32)
        self.Mixed_5c = BlockA(256, pool_features=64)
        self.Mixed_5d = BlockA(288, pool_features=64)
        self.Mixed_6a = blocks.InceptionB(288)
        self.Mixed_6b = BlockC(768, channels_7x7=128)
        self.Mixed_6c = BlockC(768, channels_7x7=160)
        self.Mixed_6d = BlockC(768, channels_7x7=160)
        self.Mixed_6e = BlockC(768, channels_7x7=192)
        self.Mixed_7a = blocks.InceptionD(768)
        self.Mixed_7b = BlockE(1280)
        self.Mixed_7c = BlockE(2048, pool=lambda x: F.max_pool2d(x, 3, stride=1, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 128) / 128
        x = _through(x, self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3)
        x = F.max_pool2d(x, 3, stride=2)
        x = _through(x, self.Conv2d_3b_1x1, self.Conv2d_4a_3x3)
        x = F.max_pool2d(x, 3, stride=2)
        x = _through(x, self.Mixed_5b, self.Mixed_5c, self.Mixed_5d)
        x = _through(x, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e)
        x = _through(x, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c)
        return x.mean((2, 3))


class BlockA(blocks.InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            _through(x, self.branch5x5_1, self.branch5x5_2),
            _through(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3),
            self.branch_pool(_average(x)),
        ]


class BlockC(blocks.InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        double = (self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3)
        return [
            self.branch1x1(x),
            _through(x, self.branch7x7_1, self.branch7x7_2, self.branch7x7_3),
            _through(x, *double, self.branch7x7dbl_4, self.branch7x7dbl_5),
            self.branch_pool(_average(x)),
        ]


class BlockE(blocks.InceptionE):
    def __init__(self, in_channels: int, pool=None):
        super().__init__(in_channels)
        self.pool = pool or _average

    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch3x3_1(x)
        double = _through(x, self.branch3x3dbl_1, self.branch3x3dbl_2)
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(single), self.branch3x3_2b(single)], 1),
            torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1),
            self.branch_pool(self.pool(x)),
        ]


def _through(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
