"""Size, padding, normalisation and training-time changes: the only place that does any of them.

Photographs are resized by Pillow's bicubic filter, which antialiases; labels by nearest neighbour;
masks stay binary. Augmentation acts on all parts of a record at once, before normalisation, and
draws everything from one generator seeded by (seed, position in the training stream), so that a
resumed or re-sharded run changes each sample in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vton.config import AugmentConfig
from vton.data import densepose, labels, pose
from vton.data.captions import Templates
from vton.data.record import Record, picture
from vton.data.sample import TryOnSample

Size = tuple[int, int]  # height, width

GARMENT_LABELS = {
    name: torch.tensor(ids, dtype=torch.uint8) for name, ids in labels.GARMENT_LABELS.items()
}
LABEL_MIRROR = torch.from_numpy(labels.MIRROR)
YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)  # of RGB; Y is luminance
PART_MIRROR = torch.from_numpy(densepose.MIRROR)


def resize_photo(image: Image.Image, size: Size) -> np.ndarray:
    """RGB picture as (H, W, 3) uint8 of the given size, antialiased."""
    return np.array(image.resize(size[::-1], Image.Resampling.BICUBIC))


def resize_labels(label_map: np.ndarray, size: Size) -> np.ndarray:
    """(h, w) uint8 labels as (H, W), nearest neighbour: no new label appears."""
    return np.array(Image.fromarray(label_map).resize(size[::-1], Image.Resampling.NEAREST))


def resize_silhouette(mask: np.ndarray, size: Size) -> np.ndarray:
    """(h, w) bool as (H, W) bool: set where at least half of the pixel's area is."""
    return _area(mask, size) >= 128


def resize_repaint(mask: np.ndarray, size: Size) -> np.ndarray:
    """(h, w) bool as (H, W) bool: set where any of the pixel's area is, so that no rim of the old
    garment stays.
    """
    return _area(mask, size) > 0


def normalise(image: Tensor) -> Tensor:
    """uint8 in [0, 255] or float in [0, 1] to float32 in [-1, 1]."""
    return image / 127.5 - 1 if image.dtype == torch.uint8 else image * 2 - 1


def to_sample(
    record: Record, position: int = -1, templates: Templates = Templates()
) -> TryOnSample:
    """The record as models see it: normalised, with the parts that follow from others. Raises
    DataError (`check`).
    """
    pair, paired = record.pair, record.order == "paired"
    person = normalise(record.person)
    truth, truth_mask = record.truth, record.truth_garment_mask
    if paired:
        truth_mask = torch.isin(record.parse, GARMENT_LABELS[pair.category])[None]
    warped = torch.where(record.warped_mask, normalise(record.warped_garment), 1.0)
    return TryOnSample(
        index=record.index,
        dataset=record.dataset,
        person_id=pair.person,
        garment_id=pair.garment,
        order=record.order,
        category=pair.category,
        position=position,
        **templates.captions(record.annotation),
        person=person,
        agnostic=person * ~record.agnostic_mask,
        agnostic_mask=record.agnostic_mask.float(),
        garment=normalise(record.garment),
        garment_mask=record.garment_mask.float(),
        warped_garment=warped,
        warped_mask=record.warped_mask.float(),
        pose_map=normalise(picture(pose.draw_skeleton(record.joints, record.size))),
        keypoints=torch.from_numpy(record.joints),
        parse=record.parse.long(),
        densepose=None
        if record.densepose is None
        else normalise(picture(densepose.draw(record.densepose.numpy()))),
        truth=person if paired else None if truth is None else normalise(truth),
        truth_garment_mask=None if truth_mask is None else truth_mask.float(),
    ).check()


def pad(record: Record, size: Size) -> Record:
    """The record in the middle of `size`: white around pictures, background around labels, nothing
    to paint.

    Joints move with their pixels. Comes after augmentation, so that the margins are the same in
    every sample.
    """
    if size == record.size:
        return record
    pictures = [
        name
        for name in ("person", "garment", "warped_garment", "truth")
        if getattr(record, name) is not None
    ]
    padded = {name: pad_picture(getattr(record, name), size) for name in pictures}
    (left, right, top, bottom), (height, width) = margins(record.size, size), size
    for name, value in vars(record).items():
        if isinstance(value, Tensor) and name not in padded:
            padded[name] = functional.pad(value, (left, right, top, bottom))
    joints = record.joints.copy()
    joints[:, :2] = (joints[:, :2] * np.float32(record.size[::-1]) + (left, top)) / np.float32(
        (width, height)
    )
    joints = np.where(record.joints[:, 2:] > 0, joints, 0)
    return replace(record, **padded, joints=joints)


def pad_picture(picture: Tensor, size: Size) -> Tensor:
    """(..., h, w) uint8 or float in [0, 1] in the middle of white (..., H, W)."""
    white = 255 if picture.dtype == torch.uint8 else 1.0
    return functional.pad(picture, margins(tuple(picture.shape[-2:]), size), value=white)


def unpad_picture(picture: Tensor, size: Size) -> Tensor:
    """(..., H, W) -> (..., h, w): what `pad_picture` put in the middle."""
    left, _, top, _ = margins(size, tuple(picture.shape[-2:]))
    return picture[..., top : top + size[0], left : left + size[1]]


def margins(inner: Size, outer: Size) -> tuple[int, int, int, int]:
    """Pixels left, right, above and below a picture in the middle of another; an odd one goes right
    and below.
    """
    down, right = outer[0] - inner[0], outer[1] - inner[1]
    return right // 2, right - right // 2, down // 2, down - down // 2


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
        """The changes of a place in the training stream. Every number is drawn whether used or not,
        so that switching one kind of change off leaves the others as they were.
        """
        rng = np.random.default_rng((seed % 2**63, position))
        flip, affine, garment_affine, colour, box = rng.random(5)
        person_move, garment_move = _draw_move(config, rng), _draw_move(config, rng)
        spread = np.array([config.brightness, config.contrast, config.saturation, config.hue])
        change = rng.uniform(-spread, spread).tolist()
        dilate_px = rng.integers(config.mask_dilate_px, endpoint=True)
        return cls(
            flip=bool(flip < config.flip),
            person=person_move if affine < config.affine else None,
            garment=garment_move if garment_affine < config.garment_affine else None,
            colour=ColourChange(*(max(0.0, 1 + x) for x in change[:3]), change[3])
            if colour < config.colour
            else None,
            dilate_px=int(dilate_px),
            box=bool(box < config.box_mask),
        )


CANVAS = (
    "person",
    "agnostic",
    "agnostic_mask",
    "warped_garment",
    "warped_mask",
    "pose_map",
    "keypoints",
    "parse",
    "densepose",
    "truth",
    "truth_garment_mask",
)
CHANGED = {  # fields of a sample that each setting of AugmentConfig may change
    "flip": (*CANVAS, "garment", "garment_mask"),
    "affine": CANVAS,
    "garment_affine": ("garment", "garment_mask"),
    "colour": ("person", "agnostic", "garment", "warped_garment", "truth"),
    "mask_dilate_px": ("agnostic", "agnostic_mask"),
    "box_mask": ("agnostic", "agnostic_mask"),
}


def changed_by(config: AugmentConfig, fields: Sequence[str]) -> list[str]:
    """The settings in use that may change one of these fields of a sample."""
    return [
        name
        for name, changed in CHANGED.items()
        if getattr(config, name) and not set(changed).isdisjoint(fields)
    ]


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
        grown = functional.max_pool2d(
            record.agnostic_mask.float(), 2 * changes.dilate_px + 1, 1, changes.dilate_px
        )
        record = replace(record, agnostic_mask=grown > 0)
    if changes.box:
        record = replace(record, agnostic_mask=_box(record.agnostic_mask))
    return record


def flip(record: Record) -> Record:
    """Person and garment mirrored; joints, labels and DensePose parts exchange left and right."""
    mirrored = {
        name: value.flip(-1) for name, value in vars(record).items() if isinstance(value, Tensor)
    }
    mirrored["parse"] = LABEL_MIRROR[mirrored["parse"].int()]
    if record.densepose is not None:
        mirrored["densepose"] = PART_MIRROR[mirrored["densepose"].int()]
    return replace(record, **mirrored, joints=pose.mirror(record.joints))


def move_person(record: Record, move: Move) -> Record:
    """Everything on the person's canvas scaled and shifted; joints that leave it become invalid.

    What comes in from outside repeats the edge, in photograph, labels and masks alike: studio walls
    go on as walls and all parts stay in agreement, whereas reflection would add limbs that no
    keypoint describes and a constant a hard frame. The record is returned unchanged where the
    region to repaint would leave the picture.
    """
    photos = [
        name for name in ("person", "warped_garment", "truth") if getattr(record, name) is not None
    ]
    flat = ("parse", "agnostic_mask", "warped_mask", "truth_garment_mask", "densepose")
    flat = [name for name in flat if getattr(record, name) is not None]
    grid = _grid(move, record.size)
    maps = torch.cat([getattr(record, name).view(1, *record.size).float() for name in flat])
    maps = dict(zip(flat, _sample(maps, grid, "nearest"), strict=True))
    if not maps["agnostic_mask"].any():
        return record
    moved = {
        name: maps[name].to(getattr(record, name).dtype).view_as(getattr(record, name))
        for name in flat
    }
    colours = _sample(
        torch.cat([_unit(getattr(record, name)) for name in photos]), grid, "bilinear"
    )
    moved |= dict(zip(photos, colours.split(3), strict=True))
    joints = record.joints.copy()
    joints[:, :2] = (joints[:, :2] - 0.5) * move.scale + 0.5 + np.float32([move.right, move.down])
    return replace(record, **moved, joints=pose.drop_outside(joints))


def move_garment(record: Record, move: Move) -> Record:
    """The in-shop garment alone scaled and shifted, on its own background colour: white, or
    VITON-HD's near white.
    """
    grid = _grid(move, record.size)
    garment_mask = _sample(record.garment_mask.float(), grid, "nearest", "zeros") > 0
    if not garment_mask.any() or record.garment_mask.all():
        return record
    garment = _unit(record.garment)
    background = garment[:, ~record.garment_mask[0]].median(dim=1).values[:, None, None]
    return replace(
        record,
        garment=(background + _sample(garment - background, grid, "bilinear", "zeros")).clamp(0, 1),
        garment_mask=garment_mask,
    )


def change_colour(record: Record, change: ColourChange) -> Record:
    """One colour change for person, garment, warped garment and truth, each a function of the
    single pixel, so that a garment keeps looking alike on the hanger and on the body. The white
    around the in-shop garment stays white.
    """
    matrix, offset = _colour_matrix(change)
    changed = {}
    for name in ("person", "garment", "warped_garment", "truth"):
        image = getattr(record, name)
        if image is not None:
            pixels = torch.addmm(offset, matrix, _unit(image).view(3, -1))
            changed[name] = pixels.clamp_(0, 1).view_as(image)
    changed["garment"] = torch.where(record.garment_mask, changed["garment"], _unit(record.garment))
    return replace(record, **changed)


def _draw_move(config: AugmentConfig, rng: np.random.Generator) -> Move:
    right, down = rng.uniform(-config.shift, config.shift, 2).tolist()
    return Move(float(rng.uniform(*config.scale)), right, down)


def _colour_matrix(change: ColourChange) -> tuple[Tensor, Tensor]:
    """(3, 3) and (3, 1): the change as one linear map of RGB in [0, 1], clamped once at the end.

    Brightness and saturation as in torchvision; contrast about mid grey, not about each picture's
    own mean, which would part garment and person; hue as a turn of the chroma plane (YIQ), which
    keeps luminance.
    """
    angle = 2 * np.pi * change.hue
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    hue = np.linalg.inv(YIQ) @ turn @ YIQ
    saturation = change.saturation * np.eye(3) + (1 - change.saturation) * YIQ[0]
    matrix = hue @ saturation * (change.contrast * change.brightness)
    offset = np.full((3, 1), 0.5 - 0.5 * change.contrast)
    return torch.from_numpy(matrix).float(), torch.from_numpy(offset).float()


def _grid(move: Move, size: Size) -> Tensor:
    """Where each output pixel is read from: the inverse of the move, in the [-1, 1] coordinates of
    grid_sample.
    """
    inverse = torch.tensor([[[1, 0, -2 * move.right], [0, 1, -2 * move.down]]]) / move.scale
    return functional.affine_grid(inverse, [1, 1, *size], align_corners=False)


def _sample(planes: Tensor, grid: Tensor, mode: str, padding: str = "border") -> Tensor:
    return functional.grid_sample(
        planes[None], grid, mode=mode, padding_mode=padding, align_corners=False
    )[0]


def _unit(image: Tensor) -> Tensor:
    """Picture as float in [0, 1]."""
    return image / 255 if image.dtype == torch.uint8 else image


def _box(mask: Tensor) -> Tensor:
    rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
    box = torch.zeros_like(mask)
    box[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return box


def _area(mask: np.ndarray, size: Size) -> np.ndarray:
    # A float picture: in 8 bits a single pixel of a large area would round to nothing.
    image = Image.fromarray(mask.astype(np.float32) * 255).resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(image)
