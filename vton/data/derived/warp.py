"""Sources of warped garments where none is on disk, by name.

A warp source takes the in-shop garment to the person's canvas. "geometric" does so by landmarks
and splines (geometric.py); "none" is for models that bring their own correspondence. A learned warp
needs a run folder and comes to the data module as an argument instead (vton.runs.warp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from vton.data.derived.geometric import GeometricWarp
from vton.data.derived.tps import WHITE
from vton.data.ranges import normalise, to_bytes
from vton.data.sample import Category, DataError, TryOnBatch


class WarpSource(Protocol):
    """What every source of warped garments looks like, learned or not."""

    def __call__(
        self,
        garment: np.ndarray,
        garment_mask: np.ndarray,
        joints: np.ndarray,
        agnostic: np.ndarray,
        agnostic_mask: np.ndarray,
        category: Category,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Warp one garment.

        garment:       (H, W, 3) uint8 on white; garment_mask: (H, W) bool, its silhouette
        joints:        (18, 3) COCO-18, x and y in pixels of the person's canvas, validity 0 or 1
        agnostic:      (h, w, 3) uint8, the person, black where agnostic_mask is set
        agnostic_mask: (h, w) bool on the person's canvas
        returns        (h, w, 3) uint8 on white, and (h, w) bool: where the garment lies, a subset
                       of agnostic_mask
        """
        ...


class NoWarp:
    """White, with the agnostic mask as its mask."""

    def __call__(self, garment, garment_mask, joints, agnostic, agnostic_mask, category):
        return np.full((*agnostic_mask.shape, 3), WHITE, np.uint8), agnostic_mask.copy()


_SOURCES: dict[str, Callable[[], WarpSource]] = {"none": NoWarp, "geometric": GeometricWarp}


def register_warp(name: str) -> Callable[[Callable[[], WarpSource]], Callable[[], WarpSource]]:
    """Decorator for a class (or function without arguments) that makes a WarpSource."""

    def add(factory: Callable[[], WarpSource]) -> Callable[[], WarpSource]:
        if name in _SOURCES:
            other = _SOURCES[name].__name__
            raise ValueError(f"warp source '{name}' is already registered by {other}.")
        _SOURCES[name] = factory
        return factory

    return add


def warp_source(name: str) -> WarpSource:
    """The registered source of that name. Raises DataError that lists the known names."""
    if name not in _SOURCES:
        raise DataError(f"no warp source {name!r}, expected one of {', '.join(sorted(_SOURCES))}.")
    return _SOURCES[name]()


def rewarped(batch: TryOnBatch, source: WarpSource) -> TryOnBatch:
    """The batch with its warped garments made by another source.

    They are what the data set itself would deliver.
    """
    height, width = batch.person.shape[-2:]
    device = batch.person.device
    garments = to_bytes(batch.garment).permute(0, 2, 3, 1).cpu().numpy()
    people = to_bytes(batch.agnostic).permute(0, 2, 3, 1).cpu().numpy()
    silhouettes = batch.garment_mask[:, 0].bool().cpu().numpy()
    masks = batch.agnostic_mask[:, 0].bool().cpu().numpy()
    joints = batch.keypoints.cpu().numpy() * np.float32([width, height, 1])
    people[masks] = 0
    pictures = []
    covered = []
    for row, category in enumerate(batch.category):
        warped, where = source(
            garments[row], silhouettes[row], joints[row], people[row], masks[row], category
        )
        pictures.append(torch.from_numpy(warped).permute(2, 0, 1))
        covered.append(torch.from_numpy(where & masks[row])[None])
    warped_mask = torch.stack(covered).to(device)
    warped_garment = torch.where(warped_mask, normalise(torch.stack(pictures).to(device)), 1.0)
    return replace(batch, warped_garment=warped_garment, warped_mask=warped_mask.float())
