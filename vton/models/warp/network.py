"""LaDI-VTON's warping module (Morelli et al., ACM MM 2023, arXiv 2305.13501).

A thin-plate spline says where each pixel of a worn garment comes from, and a UNet repaints what no
single spline can bend. The first network matches the in-shop garment with the person by the
correlation of all pairs of places (Rocco et al., CVPR 2017, arXiv 1703.05593) and moves the points
of a lattice. The second reads its result.
"""
# Shapes: B batch, H W height and width of the pictures, h w of a feature map, N points of the
# lattice, J joints

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vton.data.sample import JOINTS
from vton.models.baselines import fill_hole
from vton.models.warp.config import TpsConfig, WarpConfig
from vton.models.warp.tps import ThinPlateSpline, lattice, warp

WHITE = 1.0
SURE = 2.0  # logit of the warp's own silhouette, which a correction starts from


class Warped(NamedTuple):
    """A garment on the person's canvas."""

    garment: Tensor  # (B, 3, H, W) in [-1, 1]
    silhouette: Tensor  # (B, 1, H, W): covered share of each pixel, or its logit


class FeatureExtractor(nn.Sequential):
    """(B, C, H, W) to (B, widths[-1], H / 2^n, W / 2^n), n = len(widths); norms follow ReLUs."""

    def __init__(self, channels: int, widths: tuple[int, ...]):
        layers: list[nn.Module] = []
        for width in widths:
            halving = nn.Conv2d(channels, width, 4, stride=2, padding=1)
            layers += [halving, nn.ReLU(), nn.BatchNorm2d(width)]
            channels = width
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(channels)]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        super().__init__(*layers)


def correlation(garment: Tensor, person: Tensor) -> Tensor:
    """Cosine of every pair of places: (B, C, h, w) and (B, C, h, w) to (B, w h, h, w).

    Channel x h + y of the result belongs to the place (x, y) of the garment, column by column; its
    own places are the person's.
    """
    garment = garment / (garment.square().sum(1, keepdim=True) + 1e-6).sqrt()
    person = person / (person.square().sum(1, keepdim=True) + 1e-6).sqrt()
    return torch.einsum("bcyx,bchw->bxyhw", garment, person).flatten(1, 2)


class Regression(nn.Module):
    """Correlation (B, h w, h, w) to a lattice's points (B, N, 2) in (-1, 1), at first unmoved."""

    def __init__(self, size: tuple[int, int], widths: tuple[int, ...], side: int):
        super().__init__()
        height, width = size
        layers: list[nn.Module] = []
        channels = height * width
        for index, out in enumerate(widths):
            if index < 2:
                conv = nn.Conv2d(channels, out, 4, stride=2, padding=1)
            else:
                conv = nn.Conv2d(channels, out, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.conv = nn.Sequential(*layers)
        points = lattice(side)
        self.linear = nn.Linear(channels * (height // 4) * (width // 4), points.numel())
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(points.atanh().flatten())

    def forward(self, correlation: Tensor) -> Tensor:
        return self.linear(self.conv(correlation).flatten(1)).tanh().unflatten(1, (-1, 2))


class TpsWarp(nn.Module):
    """The spline of a pair. Works at config.size, whatever the size of its pictures."""

    def __init__(self, config: TpsConfig):
        super().__init__()
        self.size = config.size
        self.positions = config.positions
        code = 2 if config.positions else 0
        self.garment_features = FeatureExtractor(3 + code, config.widths)
        self.person_features = FeatureExtractor(3 + JOINTS + code, config.widths)
        halved = tuple(side // 2 ** len(config.widths) for side in config.size)
        self.regression = Regression(halved, config.regression, config.points)
        self.spline = ThinPlateSpline(*config.size, config.points)

    def forward(self, garment: Tensor, person: Tensor) -> Tensor:
        """garment (B, 3, H, W), person (B, 3 + J, H, W): see WarpNetwork -> points (B, N, 2)."""
        garment, person = self.reduced(garment), self.reduced(person)
        if self.positions:
            garment, person = with_positions(garment), with_positions(person)
        garment = self.garment_features(garment)
        person = self.person_features(person)
        return self.regression(correlation(garment, person))

    def reduced(self, picture: Tensor) -> Tensor:
        """The picture at the size that correspondence is computed at."""
        return picture if picture.shape[-2:] == self.size else resized(picture, self.size)

    def grid(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """The points' sampling grid (B, H, W, 2): that of config.size, brought to size (H, W)."""
        device = "cuda" if points.is_cuda else "cpu"
        # Half precision would ruin the spline's ill-conditioned system.
        with torch.autocast(device, enabled=False):
            grid = self.spline(points.float())
        if size == self.size:
            return grid
        return resized(grid.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)


class DoubleConv(nn.Sequential):
    """Twice convolution, norm and ReLU; no biases, which the norm would remove."""

    def __init__(self, channels: int, middle: int, out: int):
        layers: list[nn.Module] = []
        for before, after in ((channels, middle), (middle, out)):
            conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class Refinement(nn.Module):
    """A plain UNet (Ronneberger et al. 2015): max pooling down, bilinear up, skips first."""

    def __init__(self, channels: int, out: int, widths: tuple[int, ...]):
        super().__init__()
        self.first = DoubleConv(channels, widths[0], widths[0])
        self.down = nn.ModuleList(DoubleConv(above, own, own) for above, own in pairwise(widths))
        self.up = nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(len(widths) - 1)):
            joined = widths[level] + below
            above = widths[max(level - 1, 0)]
            self.up.append(DoubleConv(joined, joined // 2, above))
            below = above
        self.last = nn.Conv2d(below, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, H, W), without a final activation."""
        x = self.first(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        for up in self.up:
            skip = skips.pop()
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=True)
            x = up(torch.cat([skip, x], dim=1))
        return self.last(x)


class WarpNetwork(nn.Module):
    """The spline, then the refinement where one has been trained."""

    def __init__(self, config: WarpConfig):
        super().__init__()
        self.heat_sigma = config.heat_sigma
        self.corrects = config.refinement.correction
        read, painted = (5, 4) if self.corrects else (3, 3)
        self.tps = TpsWarp(config.tps)
        self.refinement = Refinement(3 + JOINTS + read, painted, config.refinement.widths)
        if self.corrects:
            nn.init.zeros_(self.refinement.last.weight)
            nn.init.zeros_(self.refinement.last.bias)
        # Whether the refinement was ever trained.
        self.register_buffer("refined", torch.zeros((), dtype=torch.bool))

    def person(self, agnostic: Tensor, keypoints: Tensor) -> Tensor:
        """(B, 3 + J, H, W), what both networks see: the agnostic picture and joints' heat maps."""
        heat = heat_maps(keypoints, agnostic.shape[-2:], self.heat_sigma)
        return torch.cat([agnostic, heat], dim=1)

    def coarse(self, garment: Tensor, garment_mask: Tensor, points: Tensor) -> Warped:
        """The garment and its silhouette through the spline of these points."""
        grid = self.tps.grid(points, garment.shape[-2:])
        silhouette = F.grid_sample(garment_mask, grid, align_corners=False)
        return Warped(warp(garment, grid), silhouette)

    def refine(self, coarse: Warped, person: Tensor, agnostic_mask: Tensor) -> Warped:
        """The repainted picture, not clamped, and the silhouette.

        A refinement that corrects makes logits of the silhouette; any other leaves it as it is.
        """
        if not self.corrects:
            picture = self.refinement(torch.cat([person, coarse.garment], dim=1))
            return Warped(picture, coarse.silhouette)
        cloth = without_end(coarse)
        read = torch.cat([person, agnostic_mask, cloth, coarse.silhouette], dim=1)
        correction = self.refinement(read)
        logits = SURE * (2 * coarse.silhouette - 1)
        return Warped(cloth + correction[:, :3], logits + correction[:, 3:])

    def forward(
        self,
        garment: Tensor,
        garment_mask: Tensor,
        agnostic: Tensor,
        agnostic_mask: Tensor,
        keypoints: Tensor,
    ) -> Warped:
        """The garment on white, and 1 where it lies inside the agnostic mask, else 0.

        This is what a WarpSource of the data answers. Arguments as the fields of TryOnBatch.
        """
        person = self.person(agnostic, keypoints)
        picture, silhouette = self.coarse(garment, garment_mask, self.tps(garment, person))
        covered = silhouette >= 0.5
        if self.refined.is_meta or self.refined:
            picture, logits = self.refine(Warped(picture, silhouette), person, agnostic_mask)
            covered = logits > 0 if self.corrects else covered
        covered = covered & (agnostic_mask > 0)
        return Warped(torch.where(covered, picture.clamp(-1, 1), WHITE), covered.to(garment.dtype))


def without_end(warped: Warped) -> Tensor:
    """The garment (B, 3, H, W) with its colours continued beyond its silhouette.

    Cloth may be missing there, and around the silhouette the background has mixed in.
    """
    cloth = (warped.silhouette > 0.9).to(warped.garment.dtype)
    return fill_hole(warped.garment, 1 - cloth)


def heat_maps(keypoints: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """exp(-d^2 / sigma^2) of the distance to each joint, (B, J, H, W); 0 for joints not found.

    keypoints: (B, J, 3), x and y in [0, 1] and validity. sigma: in pixels of a picture 512 high.
    """
    height, width = size
    sigma = sigma * height / 512
    x, y, valid = keypoints.unbind(-1)
    across, down = bell(x, width, sigma), bell(y, height, sigma)
    return valid[..., None, None] * down[..., None] * across[..., None, :]


def bell(place: Tensor, side: int, sigma: float) -> Tensor:
    """exp(-d^2 / sigma^2) along one side of a picture: places (B, J) in [0, 1] to (B, J, side)."""
    pixels = torch.arange(side, device=place.device)
    return torch.exp(-(((pixels - place[..., None] * side) / sigma) ** 2))


def with_positions(picture: Tensor) -> Tensor:
    """Two more channels: x and y of each pixel, -1 to 1."""
    height, width = picture.shape[-2:]
    y = torch.linspace(-1, 1, height, device=picture.device)
    x = torch.linspace(-1, 1, width, device=picture.device)
    code = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return torch.cat([picture, code.to(picture.dtype).expand(len(picture), -1, -1, -1)], dim=1)


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) at another size, bilinear, antialiased where it shrinks."""
    return F.interpolate(picture, size, mode="bilinear", antialias=True)
