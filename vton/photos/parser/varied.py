"""Variations of training pictures: framing, outlines, hems, grounds, cloth, light, camera flaws.

Rendered persons are too smooth and too even. What real photographs vary is varied here far beyond
what they do, so that the network has to read shapes rather than the renderer's style.

Legend: B batch, H W height and width, P persons of a picture, J = 18 joints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vton.data import densepose, labels, pose

TURN = 0.22  # largest rotation, radians
STRETCH = 0.22  # log of the largest scale, along each axis apart by a third of it
SHIFT = 0.12  # of the picture
BEND = 0.02  # standard deviation of the outlines' displacement, of the picture
FLIPPED = 0.5
NEW_GROUND = 0.5  # share of pictures whose background is painted over
NEW_CLOTH = 0.35  # share of garments with another texture
UNCOLOURED = 0.4  # share of new cloths that are white, grey or black, as most real ones are
NEW_HEM = 0.3  # share of pictures in which the top ends elsewhere
HEMS = (0.55, 1.4)  # where, on the way from the neck to the hips
GREY, BLURRED, COVERED = 0.08, 0.35, 0.15  # shares of pictures
ARM_PARTS = (3, 4, *range(15, 23))  # hands and arms of DensePose
ARM_RIM = 2  # px around an arm that a sleeve may fill
CLOTH = (labels.UPPER, labels.DRESS, labels.SKIRT, labels.PANTS)


@dataclass
class Examples:
    """A batch of examples.

    picture: (B, 3, H, W) float in [0, 1]
    parse:   (B, H, W) int64
    parts:   (B, H, W) int64
    joints:  (B, P, J, 3), x and y in [0, 1], validity
    """

    picture: Tensor
    parse: Tensor
    parts: Tensor
    joints: Tensor


def varied(examples: Examples, generator: torch.Generator) -> Examples:
    """Other pictures with the annotations that belong to them."""
    draw = Draws(generator, len(examples.picture))
    examples = _mirrored(examples, draw.chance(FLIPPED))
    examples = _new_hem(examples, draw)
    examples = _moved(examples, draw)
    picture = _new_cloth(examples, draw)
    picture = _new_ground(picture, examples.parse == labels.BACKGROUND, draw)
    picture = _relit(picture, draw)
    return Examples(picture, examples.parse, examples.parts, examples.joints)


class Draws:
    """Random numbers, one set for each of `count` pictures."""

    def __init__(self, generator: torch.Generator, count: int):
        self.generator = generator
        self.count = count

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator)

    def chance(self, share: float) -> Tensor:
        """(B,) bool"""
        return torch.rand(self.count, generator=self.generator) < share

    def field(self, channels: int, cells: int, size: tuple[int, int]) -> Tensor:
        """(B, channels, H, W): smooth noise of unit variance at its `cells` x `cells` nodes."""
        coarse = self.normal(channels, cells, cells)
        return F.interpolate(coarse, size, mode="bicubic", align_corners=True)

    def rough(self, channels: int, size: tuple[int, int]) -> Tensor:
        """(B, channels, H, W): noise of three scales, in [-1, 1] mostly."""
        total = torch.zeros(())
        for cells in (3, 9, 30):
            total = total + self.field(channels, cells, size) * self.uniform(0, 1, 1, 1, 1)
        return total / 1.5


def _column(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _mirrored(examples: Examples, chosen: Tensor) -> Examples:
    mirror = torch.from_numpy(labels.MIRROR).long()
    part_mirror = torch.from_numpy(densepose.MIRROR).long()
    flipped = examples.joints[:, :, torch.from_numpy(pose.MIRROR)].clone()
    flipped[..., 0] = torch.where(flipped[..., 2] > 0, 1 - flipped[..., 0], 0)
    return Examples(
        torch.where(_column(chosen), examples.picture.flip(3), examples.picture),
        torch.where(chosen[:, None, None], mirror[examples.parse].flip(2), examples.parse),
        torch.where(chosen[:, None, None], part_mirror[examples.parts].flip(2), examples.parts),
        torch.where(_column(chosen), flipped, examples.joints),
    )


def _moved(examples: Examples, draw: Draws) -> Examples:
    """Turned, stretched, shifted and bent. What comes from outside repeats the picture's edge."""
    height, width = examples.parse.shape[1:]
    aspect = width / height
    angle = draw.uniform(-TURN, TURN)
    scale = draw.uniform(-STRETCH, STRETCH).exp()
    apart = draw.uniform(-STRETCH / 3, STRETCH / 3).exp()
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # From places of the new picture to places of the old one, both in [-1, 1].
    matrix = torch.stack([cos * apart, -sin / aspect, sin * aspect * apart, cos], 1).view(-1, 2, 2)
    shift = draw.uniform(-2 * SHIFT, 2 * SHIFT, 2)
    linear = torch.cat([matrix, shift[..., None]], 2)
    grid = F.affine_grid(linear, [draw.count, 1, height, width], align_corners=False)
    bend = draw.field(2, 6, (height, width)) * 2 * BEND * _column(draw.uniform(0, 1))
    grid = grid + bend.permute(0, 2, 3, 1)

    def at(values: Tensor, mode: str) -> Tensor:
        return F.grid_sample(values, grid, mode, padding_mode="border", align_corners=False)

    maps = torch.stack([examples.parse, examples.parts], 1).float()
    maps = at(maps, "nearest").long()
    old = examples.joints[..., :2] * 2 - 1
    inverse = torch.linalg.inv(matrix)[:, None]
    new = _times(inverse, old - shift[:, None, None])
    off = F.grid_sample(bend, new, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)
    new = _times(inverse, old - shift[:, None, None] - off) / 2 + 0.5
    inside = ((new > 0) & (new < 1)).all(-1, keepdim=True) & (examples.joints[..., 2:] > 0)
    joints = torch.cat([new, torch.ones_like(new[..., :1])], -1) * inside
    return Examples(at(examples.picture, "bilinear"), maps[:, 0], maps[:, 1], joints)


def _times(matrix: Tensor, points: Tensor) -> Tensor:
    """(B, 1, 2, 2) times (B, P, J, 2)."""
    return torch.einsum("bpij,bqkj->bqki", matrix, points)


def _new_hem(examples: Examples, draw: Draws) -> Examples:
    """Tops that end elsewhere, from the ribs to the thighs, above something else.

    The renderer's waistbands are all at one height and its tops end there or near the hips, so that
    a network would learn where hems are instead of seeing them. Trunk and legs are painted anew
    above and below a line, also where a dress was. Pictures of two persons stay.
    """
    parse, joints = examples.parse, examples.joints
    height, width = parse.shape[1:]
    neck = joints[:, 0, pose.NECK]
    hips = joints[:, 0, [pose.RIGHT_HIP, pose.LEFT_HIP]]
    known = (neck[:, 2] > 0) & (hips[..., 2] > 0).all(1) & ~(joints[:, 1:, :, 2] > 0).any((1, 2))
    chosen = (draw.chance(NEW_HEM) & known)[:, None, None]
    rows = ((torch.arange(height) + 0.5) / height)[None, :, None]
    across = ((torch.arange(width) + 0.5) / width)[None, None] - neck[:, None, None, 0]
    neck_y, torso = neck[:, None, None, 1], (hips[..., 1].mean(1) - neck[:, 1])[:, None, None]
    line = neck_y + draw.uniform(*HEMS, 1, 1) * torso
    line = line + draw.uniform(-0.15, 0.15, 1, 1) * across + draw.uniform(-1, 2, 1, 1) * across**2
    arms = _dilated(_one_of(examples.parts, ARM_PARTS), ARM_RIM)
    trunk = _one_of(parse, CLOTH) & ~arms & chosen
    skirt = _one_of(parse, (labels.SKIRT, labels.DRESS)).sum((1, 2), keepdim=True)
    lower = torch.where(
        skirt > (parse == labels.PANTS).sum((1, 2), keepdim=True), labels.SKIRT, labels.PANTS
    )
    fresh = torch.where(trunk & (rows < line), labels.UPPER, parse)
    fresh = torch.where(trunk & (rows >= line), lower, fresh)
    # The sleeves of a dress are the top's now.
    fresh = torch.where(arms & chosen & (parse == labels.DRESS), labels.UPPER, fresh)
    picture = examples.picture
    roughness = draw.rough(3, (height, width))
    for label in CLOTH:
        where = chosen & (fresh == label)
        picture = torch.where(where[:, None], _cloth(roughness, draw), picture)
    return Examples(picture, fresh, examples.parts, examples.joints)


def _one_of(maps: Tensor, chosen: tuple[int, ...]) -> Tensor:
    return torch.isin(maps, torch.tensor(chosen))


def _dilated(mask: Tensor, by: int) -> Tensor:
    """(B, H, W) bool, grown by so many pixels."""
    return F.max_pool2d(mask[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0


def _cloth(roughness: Tensor, draw: Draws, light: Tensor | float = 0.9) -> Tensor:
    """(B, 3, H, W) a cloth in each picture. light: of the folds that it keeps."""
    grey = draw.uniform(0, 1, 1, 1, 1) + draw.uniform(-0.04, 0.04, 3, 1, 1)
    colour = torch.where(_column(draw.chance(UNCOLOURED)), grey, draw.uniform(0.02, 1, 3, 1, 1))
    rough = roughness * _column(draw.uniform(-0.35, 0.35) * draw.chance(0.6))
    return colour * light + rough


def _new_cloth(examples: Examples, draw: Draws) -> Tensor:
    """Garments in another colour, plain or rough, that keep a part of their shading."""
    picture = examples.picture
    size = examples.parse.shape[1:]
    roughness = draw.rough(3, size)
    for label in CLOTH:
        chosen = draw.chance(NEW_CLOTH)
        fresh = _cloth(roughness, draw, 0.7 + 0.45 * picture.mean(1, keepdim=True))
        where = (examples.parse == label)[:, None] & _column(chosen)
        picture = torch.where(where, fresh, picture)
    return picture


def _new_ground(picture: Tensor, ground: Tensor, draw: Draws) -> Tensor:
    """Plain, uneven or cluttered grounds, white ones often; some with pieces of other pictures."""
    size = ground.shape[1:]
    colour = torch.where(
        _column(draw.chance(0.45)), draw.uniform(0.88, 1, 1, 1, 1), draw.uniform(0, 1, 3, 1, 1)
    )
    uneven = draw.field(1, 3, size) * _column(draw.uniform(0, 0.12))
    clutter = draw.rough(3, size) * _column(draw.uniform(0, 0.5) * draw.chance(0.3))
    fresh = colour + uneven + clutter
    foreign = picture.roll(1, 0).flip(2)
    fresh = torch.where(_column(draw.chance(0.12)), foreign, fresh)
    return torch.where(ground[:, None] & _column(draw.chance(NEW_GROUND)), fresh, picture)


def _relit(picture: Tensor, draw: Draws) -> Tensor:
    """Light, colour cast, blur, noise and a covering patch."""
    size = picture.shape[2:]
    blurred = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, 1)
    picture = torch.where(_column(draw.chance(BLURRED)), blurred, picture)
    picture = picture + draw.field(1, 4, size) * _column(draw.uniform(0, 0.08))
    cast = draw.uniform(-0.1, 0.1, 3, 1, 1)
    contrast = draw.uniform(0.65, 1.3, 1, 1, 1)
    mean = picture.mean((1, 2, 3), keepdim=True)
    picture = (picture - mean) * contrast + mean + draw.uniform(-0.15, 0.15, 1, 1, 1) + cast
    picture = picture.clamp(0.0, 1.0) ** draw.uniform(-0.35, 0.35, 1, 1, 1).exp()
    grey = picture.mean(1, keepdim=True).expand_as(picture)
    picture = torch.where(_column(draw.chance(GREY)), grey, picture)
    picture = picture + draw.normal(3, *size) * _column(draw.uniform(0, 0.04))
    return _covered(picture, draw).clamp(0, 1)


def _covered(picture: Tensor, draw: Draws) -> Tensor:
    """Some pictures with a plain box over a small part of them."""
    height, width = picture.shape[2:]
    rows = torch.linspace(0, 1, height)[None, None, :, None]
    columns = torch.linspace(0, 1, width)[None, None, None]
    inside = (rows - draw.uniform(0, 1, 1, 1, 1)).abs() < draw.uniform(0.02, 0.09, 1, 1, 1)
    inside = inside & (
        (columns - draw.uniform(0, 1, 1, 1, 1)).abs() < draw.uniform(0.02, 0.12, 1, 1, 1)
    )
    return torch.where(inside & _column(draw.chance(COVERED)), draw.uniform(0, 1, 3, 1, 1), picture)


def pixels(examples: Examples) -> Tensor:
    """(B, 3, H, W) in [-1, 1], rounded to bytes as a photograph's are."""
    return (examples.picture * 255).round() / 127.5 - 1


def heat(joints: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """(B, J, 1 + h * w) probabilities: that no person has the joint, and where it lies.

    joints: (B, P, J, 3). size: h, w, in cells. sigma: in cells.
    """
    height, width = size
    y = torch.arange(height) + 0.5
    x = torch.arange(width) + 0.5
    valid = joints[..., 2] > 0  # (B, P, J)
    down = torch.exp(-((y - joints[..., 1, None] * height) ** 2) / (2 * sigma**2))
    across = torch.exp(-((x - joints[..., 0, None] * width) ** 2) / (2 * sigma**2))
    maps = down[..., :, None] * across[..., None, :] / (2 * math.pi * sigma**2)
    maps = (maps * valid[..., None, None]).sum(1).flatten(2)  # (B, J, h * w)
    absent = (~valid.any(1)).float()[..., None]
    maps = torch.cat([absent, maps], 2)
    return maps / maps.sum(2, keepdim=True).clamp_min(1e-6)
