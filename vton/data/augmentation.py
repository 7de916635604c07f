"""Training-time changes of records.

They act on all parts of a record at once, before normalisation. Every number comes from one
generator seeded by (seed, position in the training stream), so that a resumed or re-sharded run
changes each sample in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vton.config import AugmentConfig
from vton.data import densepose, labels, pose
from vton.data.boxes import Size, bounding_box
from vton.data.record import Record
from vton.data.sample import CANVAS

LABEL_MIRROR = torch.from_numpy(labels.MIRROR)
PART_MIRROR = torch.from_numpy(densepose.MIRROR)
# Of RGB; Y is luminance.
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class Move:
    """Scaling about the centre, then a shift in fractions of width and height."""

    scale: float
    right: float
    down: float


@dataclass(frozen=True)
class ColourChange:
    """Factors on brightness, contrast and saturation, and a turn of the hue circle."""

    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True)
class Changes:
    """What happens to one training sample."""

    flip: bool
    person: Move | None
    garment: Move | None
    colour: ColourChange | None
    dilate_px: int
    box: bool

    @classmethod
    def draw(cls, config: AugmentConfig, seed: int, position: int) -> Changes:
        """The changes of a place in the training stream.

        Every number is drawn whether used or not, so that switching one kind of change off leaves
        the others as they were.
        """
        rng = np.random.default_rng((seed % 2**63, position))
        flip, affine, garment_affine, colour, box = rng.random(5)
        person_move = _draw_move(config, rng)
        garment_move = _draw_move(config, rng)
        colour_change = _draw_colour_change(config, rng)
        dilate_px = rng.integers(config.mask_dilate_px, endpoint=True)
        return cls(
            flip=bool(flip < config.flip),
            person=person_move if affine < config.affine else None,
            garment=garment_move if garment_affine < config.garment_affine else None,
            colour=colour_change if colour < config.colour else None,
            dilate_px=int(dilate_px),
            box=bool(box < config.box_mask),
        )


CHANGED = {  # fields of a sample that each setting of AugmentConfig may change
    "flip": (*CANVAS, "garment", "garment_mask"),
    "affine": CANVAS,
    "garment_affine": ("garment", "garment_mask"),
    "colour": ("person", "agnostic", "garment", "warped_garment", "truth", "person_other"),
    "mask_dilate_px": ("agnostic", "agnostic_mask"),
    "box_mask": ("agnostic", "agnostic_mask"),
}


def changed_by(config: AugmentConfig, fields: Sequence[str]) -> list[str]:
    """The settings in use that may change one of these fields of a sample."""
    settings = []
    for name, changed in CHANGED.items():
        if getattr(config, name) and not set(changed).isdisjoint(fields):
            settings.append(name)
    return settings


def augment(record: Record, changes: Changes) -> Record:
    """A changed copy of the record; `record` itself stays as it is."""
    if changes.flip:
        record = flip(record)
    if changes.person:
        record = move_person(record, changes.person)
    if changes.garment:
        record = move_garment(record, changes.garment)
    if changes.colour:
        record = change_colour(record, changes.colour)
    if changes.dilate_px:
        record = replace(record, agnostic_mask=_dilated(record.agnostic_mask, changes.dilate_px))
    if changes.box:
        record = replace(record, agnostic_mask=_filled_box(record.agnostic_mask))
    return record


def flip(record: Record) -> Record:
    """Person and garment mirrored; joints, labels and DensePose parts exchange left and right."""
    mirrored = {}
    for name, value in vars(record).items():
        if isinstance(value, Tensor) and name != "colour":
            mirrored[name] = value.flip(-1)
    mirrored["parse"] = LABEL_MIRROR[mirrored["parse"].int()]
    if record.densepose is not None:
        mirrored["densepose"] = PART_MIRROR[mirrored["densepose"].int()]
    return replace(record, **mirrored, joints=pose.mirror(record.joints))


def move_person(record: Record, move: Move) -> Record:
    """Everything on the person's canvas scaled and shifted; joints that leave it become invalid.

    What comes in from outside repeats the edge, in photograph, labels and masks alike. Studio walls
    go on as walls, and all parts stay in agreement; reflection would add limbs that no keypoint
    describes, and a constant a hard frame. The record is returned unchanged where the region to
    repaint would leave the picture.
    """
    grid = _grid(move, record.size)
    moved = {}
    maps = _present(
        record, ("parse", "agnostic_mask", "warped_mask", "truth_garment_mask", "densepose")
    )
    planes = torch.cat([value.view(1, *record.size).float() for value in maps.values()])
    planes = _sample(planes, grid, "nearest")
    for (name, value), plane in zip(maps.items(), planes, strict=True):
        moved[name] = plane.to(value.dtype).view_as(value)
    if not moved["agnostic_mask"].any():
        return record
    photos = _present(record, ("person", "warped_garment", "truth", "person_other"))
    planes = torch.cat([_unit(photo) for photo in photos.values()])
    planes = _bytes(_sample(planes, grid, "bilinear"))
    moved |= zip(photos, planes.split(3), strict=True)
    joints = record.joints.copy()
    joints[:, :2] = (joints[:, :2] - 0.5) * move.scale + 0.5 + np.float32([move.right, move.down])
    return replace(record, **moved, joints=pose.drop_outside(joints))


def move_garment(record: Record, move: Move) -> Record:
    """The in-shop garment alone scaled and shifted, on its own background colour.

    That is white, or VITON-HD's near white.
    """
    grid = _grid(move, record.size)
    garment_mask = _sample(record.garment_mask.float(), grid, "nearest", "zeros") > 0
    if not garment_mask.any() or record.garment_mask.all():
        return record
    garment = _unit(record.garment)
    background = garment[:, ~record.garment_mask[0]].median(dim=1).values[:, None, None]
    moved = background + _sample(garment - background, grid, "bilinear", "zeros")
    return replace(record, garment=_bytes(moved.clamp(0, 1)), garment_mask=garment_mask)


def change_colour(record: Record, change: ColourChange) -> Record:
    """One colour change for person, garment, warped garment and truth, made where floats are made.

    It is a function of the single pixel, so that a garment keeps looking alike on the hanger and on
    the body.
    """
    matrix, offset = _colour_matrix(change)
    return replace(record, colour=torch.cat([matrix, offset], dim=1))


def _dilated(mask: Tensor, pixels: int) -> Tensor:
    """A mask (1, H, W) bool grown by a square to each side."""
    return functional.max_pool2d(mask.float(), 2 * pixels + 1, 1, pixels) > 0


def _filled_box(mask: Tensor) -> Tensor:
    """The bounding box of a mask (1, H, W) bool, filled; an empty mask stays empty."""
    box = bounding_box(mask[0])
    filled = torch.zeros_like(mask)
    if box is not None:
        filled[:, *box.slices] = True
    return filled


def _draw_move(config: AugmentConfig, rng: np.random.Generator) -> Move:
    right, down = rng.uniform(-config.shift, config.shift, 2).tolist()
    return Move(float(rng.uniform(*config.scale)), right, down)


def _draw_colour_change(config: AugmentConfig, rng: np.random.Generator) -> ColourChange:
    spread = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    *gains, hue = rng.uniform(-spread, spread).tolist()
    brightness, contrast, saturation = (max(0.0, 1 + gain) for gain in gains)
    return ColourChange(brightness, contrast, saturation, hue)


def _colour_matrix(change: ColourChange) -> tuple[Tensor, Tensor]:
    """(3, 3) and (3, 1): the change as one linear map of RGB in [0, 1], clamped once at the end.

    Brightness and saturation as in torchvision. Contrast is about mid grey, not about each
    picture's own mean, which would part garment and person. Hue turns the chroma plane (YIQ), which
    keeps luminance.
    """
    angle = 2 * np.pi * change.hue
    cosine = np.cos(angle)
    sine = np.sin(angle)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    hue = np.linalg.inv(YIQ) @ turn @ YIQ
    saturation = change.saturation * np.eye(3) + (1 - change.saturation) * YIQ[0]
    matrix = hue @ saturation * (change.contrast * change.brightness)
    offset = np.full((3, 1), 0.5 - 0.5 * change.contrast)
    return torch.from_numpy(matrix).float(), torch.from_numpy(offset).float()


def _grid(move: Move, size: Size) -> Tensor:
    """Where each output pixel is read from, in the [-1, 1] coordinates of grid_sample.

    This is the inverse of the move.
    """
    inverse = torch.tensor([[[1, 0, -2 * move.right], [0, 1, -2 * move.down]]]) / move.scale
    # A row and a column tell all of it, as nothing turns.
    height, width = size
    row = functional.affine_grid(inverse, [1, 1, 1, width], align_corners=False)
    column = functional.affine_grid(inverse, [1, 1, height, 1], align_corners=False)
    grid = torch.empty(1, height, width, 2)
    grid[..., 0], grid[..., 1] = row[..., 0], column[..., 1]
    return grid


def _sample(planes: Tensor, grid: Tensor, mode: str, padding: str = "border") -> Tensor:
    return functional.grid_sample(
        planes[None], grid, mode=mode, padding_mode=padding, align_corners=False
    )[0]


def _present(record: Record, names: Sequence[str]) -> dict[str, Tensor]:
    """The named parts that the record has, by name."""
    parts = {name: getattr(record, name) for name in names}
    return {name: value for name, value in parts.items() if value is not None}


def _unit(image: Tensor) -> Tensor:
    """Picture as float in [0, 1]."""
    return image / 255


def _bytes(image: Tensor) -> Tensor:
    """A picture in [0, 1], which is overwritten, as uint8, for loaders to hand over."""
    return image.mul_(255).round_().to(torch.uint8)
