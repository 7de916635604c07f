"""Resizing, normalisation and padding, which happen nowhere else.

Photographs are resized by Pillow's bicubic filter, which antialiases; labels by nearest neighbour;
masks stay binary.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vton.data import densepose, labels, pose
from vton.data.boxes import Size, margins
from vton.data.captions import DEFAULT_TEMPLATES, Templates
from vton.data.compact import EVERYTHING, CompactSample, Fields, parts_of
from vton.data.record import Record, picture
from vton.data.sample import DataError, TryOnSample

PHOTOS = ("person", "garment", "warped_garment", "truth", "person_other")  # of a record


def resize_photo(image: Image.Image, size: Size) -> np.ndarray:
    """RGB picture as (H, W, 3) uint8 of the given size, antialiased."""
    return np.array(image.resize(size[::-1], Image.Resampling.BICUBIC))


def resize_labels(label_map: np.ndarray, size: Size) -> np.ndarray:
    """(h, w) uint8 labels to (H, W), by nearest neighbour, so that no new label appears."""
    return np.array(Image.fromarray(label_map).resize(size[::-1], Image.Resampling.NEAREST))


def resize_silhouette(mask: np.ndarray, size: Size) -> np.ndarray:
    """(h, w) bool to (H, W) bool: a pixel is set if at least half of its area is."""
    return _area(mask, size) >= 128


def resize_repaint(mask: np.ndarray, size: Size) -> np.ndarray:
    """(h, w) bool to (H, W) bool: a pixel is set if any of its area is, so that no rim of the old
    garment stays.
    """
    return _area(mask, size) > 0


def _area(mask: np.ndarray, size: Size) -> np.ndarray:
    """The share of each pixel's area that is set, times 255."""
    # In float: with 8 bits, a single set pixel of a large area would be rounded away.
    image = Image.fromarray(mask.astype(np.float32) * 255)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX))


def to_sample(
    record: Record, position: int = -1, templates: Templates = DEFAULT_TEMPLATES
) -> TryOnSample:
    """The record as models see it: normalised, with the parts that follow from others.

    Raises DataError if it breaks the contract (TryOnSample.check).
    """
    return to_compact(record, position, templates).expanded().check()


def to_compact(
    record: Record,
    position: int = -1,
    templates: Templates = DEFAULT_TEMPLATES,
    wanted: Fields = EVERYTHING,
) -> CompactSample:
    """The wanted fields of the record as models see it, still in bytes.

    Raises DataError if there is nothing to paint.
    """
    pair = record.pair
    values = {
        "index": record.index,
        "dataset": record.dataset,
        "person_id": pair.person_id,
        "garment_id": pair.garment_id,
        "order": record.order,
        "category": pair.category,
        "position": position,
        **templates.captions(record.annotation),
    }
    if not record.agnostic_mask.any():
        raise DataError(
            f"{record.dataset} {record.order} {pair.id}: agnostic_mask is empty: nothing to paint. "
            "Run `make data-check`."
        )
    tensors = {}
    for name in parts_of(wanted):
        part = _made(record, name)
        if part is not None:
            tensors[name] = part
    return CompactSample(values, tensors, wanted, record.colour, record.inner)


def _made(record: Record, name: str) -> Tensor | None:
    """A part of a compact sample, None if the record lacks it."""
    if name == "keypoints":
        return torch.from_numpy(record.joints)
    if name == "pose_map":
        return picture(pose.draw_skeleton(record.joints, record.size))
    if name == "densepose" and record.densepose is not None:
        return picture(densepose.PICTURES[record.densepose_as](record.densepose.numpy()))
    if name == "truth_garment_mask" and record.order == "paired":
        worn = torch.tensor(labels.GARMENT_LABELS[record.pair.category], dtype=torch.uint8)
        return torch.isin(record.parse, worn)[None]
    return getattr(record, name)


def pad(record: Record, size: Size) -> Record:
    """The record with margins around it, at height and width `size`.

    Margins are white in pictures and background in label maps, and lie outside all masks. Joints
    move with their pixels. Padding comes after augmentation, so margins are the same in every
    sample.
    """
    if size == record.size:
        return record
    padded = {}
    for name, value in vars(record).items():
        if name in PHOTOS and value is not None:
            padded[name] = pad_picture(value, size)
        elif isinstance(value, Tensor) and name != "colour":
            padded[name] = functional.pad(value, margins(record.size, size))
    left, _, top, _ = margins(record.size, size)
    pixels = record.joints[:, :2] * np.float32(record.size[::-1]) + (left, top)
    joints = record.joints.copy()
    joints[:, :2] = pixels / np.float32(size[::-1])
    joints = np.where(record.joints[:, 2:] > 0, joints, 0)
    return replace(record, **padded, joints=joints, inner=record.size)


def pad_picture(picture: Tensor, size: Size) -> Tensor:
    """(..., h, w) uint8, or float in [0, 1], to (..., H, W) with white margins around it."""
    white = 255 if picture.dtype == torch.uint8 else 1.0
    return functional.pad(picture, margins(tuple(picture.shape[-2:]), size), value=white)


def unpad_picture(picture: Tensor, size: Size) -> Tensor:
    """(..., H, W) to (..., h, w): the picture without the margins of `pad_picture`."""
    left, _, top, _ = margins(size, tuple(picture.shape[-2:]))
    return picture[..., top : top + size[0], left : left + size[1]]
