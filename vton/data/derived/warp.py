"""The warped garment where none is on disk, by landmarks and thin-plate splines alone; and what any
source of it is.

A warp source takes the in-shop garment to the person's canvas. "geometric" reads the garment's
silhouette, lays its torso along the spine and each sleeve or leg along its own bones, one spline
per part, limbs in front. Lengths keep their proportion to the garment's width: a cropped top stays
cropped, a short sleeve ends at its fraction of the arm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vton.data.derived import shapes
from vton.data.derived.figure import FOREARM, SHANK, THIGH, UPPER_ARM, Figure, Line
from vton.data.derived.silhouette import Limb, Silhouette, read_bottom, read_top
from vton.data.derived.tps import WHITE, Part, covers, render, sample
from vton.data.sample import CATEGORIES, JOINTS, Category, DataError, TryOnBatch


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
        returns        (h, w, 3) uint8 on white, and (h, w) bool: where the garment lies, a subset of agnostic_mask
        """
        ...


_SOURCES: dict[str, Callable[[], WarpSource]] = {}


def register_warp(name: str) -> Callable[[Callable[[], WarpSource]], Callable[[], WarpSource]]:
    """Decorator for a class (or function without arguments) that makes a WarpSource.

    A learned warp needs a run folder and comes to the data module as an argument instead.
    """

    def add(factory: Callable[[], WarpSource]) -> Callable[[], WarpSource]:
        if name in _SOURCES:
            raise ValueError(
                f"warp source '{name}' is already registered by {_SOURCES[name].__name__}."
            )
        _SOURCES[name] = factory
        return factory

    return add


def warp_source(name: str) -> WarpSource:
    """The registered source of that name. Raises DataError that lists the known names."""
    if name not in _SOURCES:
        raise DataError(f"no warp source {name!r}, expected one of {', '.join(sorted(_SOURCES))}.")
    return _SOURCES[name]()


@register_warp("none")
class NoWarp:
    """White, with the agnostic mask as its mask: for models that bring their own correspondence."""

    def __call__(self, garment, garment_mask, joints, agnostic, agnostic_mask, category):
        return np.full((*agnostic_mask.shape, 3), WHITE, np.uint8), agnostic_mask.copy()


@dataclass(frozen=True)
class Proportions:
    """How garments sit on joints, in units of Figure.size. Joints lie inside the body, garments on
    its outline.
    """

    chest: float = 1.06  # width of a worn top below the armpits
    shoulder_lift: float = 0.18  # shoulder tips above the shoulder joints
    waist: float = 1.0  # width of a worn waistband
    waist_rise: float = 0.42  # waistband above the hip joints
    forearm: float = 0.2  # full width of a bare forearm
    hand: float = 0.2  # a hand's reach beyond the wrist
    # where along a sleeveless upper arm it begins to lie in front of the trunk
    bare_from: float = 0.8
    # a sleeve or leg that covers this fraction of its bones ends at wrist or ankle
    long_limb: float = 0.92


@dataclass(frozen=True)
class Place:
    """The garment's frame on the body: its axis along the spine, its rows across it."""

    silhouette: Silhouette
    spine: Line  # shoulders, hips, knees, ankles: the middle of each pair
    across: np.ndarray  # (4, 2) unit vectors to the picture's right at these heights
    start: float  # length along the spine at which the silhouette's origin lies
    scale: float  # person px per garment px along the spine
    side_scale: float  # the same across it; less for a person turned to the side

    def height(self, points: np.ndarray) -> np.ndarray:
        """(N,) lengths along the spine of (N, 2) garment points."""
        return self.start + self.scale * ((points - self.silhouette.origin) @ self.silhouette.down)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) places on the person of (N, 2) garment points."""
        length = self.height(points)
        across = np.stack(
            [np.interp(length, self.spine.knots, self.across[:, i]) for i in (0, 1)], axis=-1
        )
        aside = (points - self.silhouette.origin) @ self.silhouette.across
        return self.spine.at(length) + self.side_scale * aside[:, None] * across


@register_warp("geometric")
class GeometricWarp:
    """Landmarks of the silhouette to joints of the body; the bounding box where either cannot be
    read.
    """

    def __init__(self, proportions: Proportions | None = None):
        self.proportions = proportions or Proportions()

    def __call__(self, garment, garment_mask, joints, agnostic, agnostic_mask, category):
        _check(garment, garment_mask, joints, agnostic_mask, category)
        figure = Figure.of(joints)
        silhouette = (read_bottom if category == "lower_body" else read_top)(garment_mask)
        if figure is not None and silhouette is not None:
            parts = self.parts(
                figure, self._place(figure, silhouette, category), category, agnostic_mask.shape
            )
            try:
                warped, mask = render(garment, garment_mask, parts, agnostic_mask)
            except (
                np.linalg.LinAlgError
            ):  # joints on one line or on one point: nothing to hang a garment on
                mask = np.zeros_like(agnostic_mask)
            if mask.any():
                return warped, mask
        return fit_box(garment, garment_mask, agnostic_mask)

    def parts(
        self, figure: Figure, place: Place, category: Category, shape: tuple[int, int]
    ) -> list[Part]:
        """The trunk, then its limbs. shape: (h, w) of the person's canvas."""
        lower = category == "lower_body"
        bones = [Line(limb) for limb in (figure.legs if lower else figure.arms)]
        usual = figure.size * (THIGH + SHANK if lower else UPPER_ARM + FOREARM)
        laid = [
            self._lay(limb, line, usual, place)
            if limb is not None and line.length > 0.3 * figure.size
            else None
            for limb, line in zip(place.silhouette.limbs, bones, strict=True)
        ]
        cuffs = [0.0 if lower or lengths is None else float(lengths[-1]) for lengths in laid]
        parts = [_trunk_part(place, ~self.bare_arms(figure, cuffs, shape))]
        for side, lengths in enumerate(laid):
            if lengths is not None:
                limb = place.silhouette.limbs[side]
                parts.append(
                    _limb_part(limb, (1, -1)[side], bones[side], lengths, place, shape, not lower)
                )
        return parts

    def bare_arms(self, figure: Figure, cuffs: list[float], shape: tuple[int, int]) -> np.ndarray:
        """(h, w) bool: what is bare of forearms and hands. It lies in front of the trunk, as a
        rule.

        cuffs: lengths along each arm that sleeves cover. Only where the wrist was found: behind the
        back it rarely is.
        """
        drawing = shapes.Drawing(shape)
        own, size = self.proportions, figure.size
        for cuff, arm, seen in zip(cuffs, figure.arms, figure.arms_seen, strict=True):
            line = Line(arm)
            if seen[1:].all():
                bare = np.linspace(
                    max(cuff, own.bare_from * line.knots[1]), line.length + own.hand * size, 12
                )
                drawing.limb(line.at(bare), own.forearm * size)
        return drawing.mask

    def _place(self, figure: Figure, silhouette: Silhouette, category: Category) -> Place:
        own = self.proportions
        spine = Line(np.stack([figure.shoulders.mean(axis=0), *figure.legs.mean(axis=0)]))
        if category == "lower_body":
            width, start = own.waist, spine.knots[1] - own.waist_rise * figure.size
        else:
            width, start = own.chest, -own.shoulder_lift * figure.size
        scale = width * figure.size / silhouette.width
        shown = float(np.linalg.norm(figure.shoulders[1] - figure.shoulders[0])) / figure.size
        return Place(silhouette, spine, _across(figure, spine), start, scale, scale * shown)

    def _lay(self, limb: Limb, bones: Line, usual: float, place: Place) -> np.ndarray:
        """(N,) lengths along the bones at which the limb's cross-sections lie.

        It begins where it leaves the trunk, a little below the joint. A limb seen shortened
        shortens its sleeve, and one that is almost covered is covered to its end. usual: length of
        such a limb seen from the side.
        """
        start = float(
            np.clip(
                (place(limb.line.points[:1])[0] - bones.points[0]) @ bones.direction,
                0,
                bones.length / 2,
            )
        )
        scale = place.scale * min(1.0, bones.length / (0.8 * usual))
        covered = limb.at[-1] * scale / (bones.length - start)
        return start + limb.at * (
            scale / covered if covered > self.proportions.long_limb else scale
        )


def _limb_part(
    limb: Limb, outwards: int, bones: Line, lengths: np.ndarray, place: Place, shape, sleeve: bool
) -> Part:
    """The limb's root goes where the trunk takes it, its cross-sections along the bones.

    outwards: the side of the normals, 1 or -1, that faces away from the trunk. sleeve: its armpit
    rises with the arm.
    """
    centres, normals = bones.at(lengths), bones.normal(lengths, 0.15 * bones.length)
    source, source_normals = (
        limb.line.at(limb.at),
        limb.line.normal(limb.at, 0.15 * limb.line.length),
    )
    root = place(limb.root)
    if sleeve:
        root[1] = _raised_armpit(
            root, centres[0] - outwards * place.scale * limb.half[0] * normals[0]
        )
    person, garment = [root], [limb.root]
    for side in (-1, 0, 1):
        person.append(centres + side * place.scale * limb.half[:, None] * normals)
        garment.append(source + side * limb.half[:, None] * source_normals)
    aside = 1.3 * outwards * place.scale * limb.half[:, None] * normals
    tip = bones.at(lengths[-1] + 0.1 * (lengths[-1] - lengths[0])) - centres[-1]
    drawing = shapes.Drawing(shape)
    drawing.polygon(_ribbon(person[0], centres + aside, centres - aside, tip))
    return Part(limb.region, np.concatenate(person), np.concatenate(garment), drawing.mask)


def _raised_armpit(root: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """(2,) the armpit of a raised arm: the place on the armhole, from tip to armpit, nearest to the
    sleeve's inside.
    """
    along = root[1] - root[0]
    share = (inner - root[0]) @ along / max(along @ along, 1e-6)
    return root[0] + float(np.clip(share, 0.3, 1.0)) * along


def _across(figure: Figure, spine: Line) -> np.ndarray:
    """(4, 2) unit vectors to the picture's right at shoulders, hips, knees and ankles."""
    pairs = [figure.shoulders[1] - figure.shoulders[0], figure.hips[1] - figure.hips[0]]
    rows = [pair / max(np.linalg.norm(pair), 1e-6) for pair in pairs]
    legs = -spine.normal(spine.knots[2:], 1.0)
    return np.concatenate([rows, legs])


def _trunk_part(place: Place, visible: np.ndarray) -> Part:
    """Torso, pelvis or skirt: a lattice over the garment's frame."""
    silhouette = place.silhouette
    above, below = silhouette.extent
    side = max(silhouette.spread, silhouette.width / 2)
    u, v = np.meshgrid(np.linspace(-side, side, 3), np.linspace(-above, below, 7))
    points = (
        silhouette.origin
        + u.reshape(-1, 1) * silhouette.across
        + v.reshape(-1, 1) * silhouette.down
    )
    return Part(silhouette.body, place(points), points, visible)


def _ribbon(root: np.ndarray, outer: np.ndarray, inner: np.ndarray, tip: np.ndarray) -> np.ndarray:
    """Polygon around a limb: its root made wider, both sides, and `tip` beyond its end."""
    centre = root.mean(axis=0)
    root = centre + 2 * (root - centre)
    return np.vstack([root[:1], outer, outer[-1] + tip, inner[-1] + tip, inner[::-1], root[1:]])


def fit_box(
    garment: np.ndarray, garment_mask: np.ndarray, agnostic_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The garment's bounding box stretched to the agnostic mask's: always works, knows nothing of
    the pose.
    """
    warped, mask = (
        np.full((*agnostic_mask.shape, 3), WHITE, np.uint8),
        np.zeros(agnostic_mask.shape, bool),
    )
    source, target = shapes.bounding_box(garment_mask), shapes.bounding_box(agnostic_mask)
    if source is None or target is None:
        return warped, mask
    left, top, right, bottom = target
    xs = np.linspace(source[0], source[2], right - left + 1, dtype=np.float32)
    ys = np.linspace(source[1], source[3], bottom - top + 1, dtype=np.float32)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)
    window = (slice(top, bottom + 1), slice(left, right + 1))
    inside = covers(garment_mask, grid) & agnostic_mask[window]
    warped[window][inside] = np.rint(sample(garment.astype(np.float32), grid[inside]))
    mask[window] = inside
    return warped, mask


def rewarped(batch: TryOnBatch, source: WarpSource) -> TryOnBatch:
    """The batch with its warped garments made by another source; what the data set itself would
    deliver.
    """
    height, width = batch.person.shape[-2:]
    garments, people = (_bytes(picture) for picture in (batch.garment, batch.agnostic))
    silhouettes, masks = (
        mask[:, 0].bool().cpu().numpy() for mask in (batch.garment_mask, batch.agnostic_mask)
    )
    joints = batch.keypoints.cpu().numpy() * np.float32([width, height, 1])
    people[masks] = 0
    rows = zip(garments, silhouettes, joints, people, masks, batch.category, strict=True)
    warped, covered = (np.stack(part) for part in zip(*(source(*row) for row in rows), strict=True))
    covered = torch.from_numpy(covered & masks).to(batch.person.device)[:, None]
    pictures = torch.from_numpy(warped).to(batch.person.device).permute(0, 3, 1, 2) / 127.5 - 1
    return replace(
        batch, warped_garment=torch.where(covered, pictures, 1.0), warped_mask=covered.float()
    )


def _bytes(pictures: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] that were bytes before, as (B, H, W, 3) uint8."""
    return ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _check(garment, garment_mask, joints, agnostic_mask, category) -> None:
    if garment.ndim != 3 or garment.shape[2] != 3 or garment.dtype != np.uint8:
        raise DataError(
            f"warp: garment is {garment.dtype} {garment.shape}, expected uint8 (H, W, 3)."
        )
    if garment_mask.shape != garment.shape[:2] or garment_mask.dtype != bool:
        raise DataError(
            f"warp: garment mask is {garment_mask.dtype} {garment_mask.shape}, expected bool (H, W)."
        )
    if joints.shape != (JOINTS, 3) or not np.isfinite(joints).all():
        raise DataError(f"warp: joints are {joints.shape}, expected finite {(JOINTS, 3)}.")
    if agnostic_mask.ndim != 2 or agnostic_mask.dtype != bool:
        raise DataError(
            f"warp: agnostic mask is {agnostic_mask.dtype} {agnostic_mask.shape}, expected bool (h, w)."
        )
    if category not in CATEGORIES:
        raise DataError(f"warp: category {category!r}, expected one of {', '.join(CATEGORIES)}.")
