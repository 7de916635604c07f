"""The warped garment where none is on disk: no training, landmarks and thin-plate splines only.

A warp source takes the in-shop garment to the person's canvas. "geometric" reads the garment's silhouette, lays its
torso along the spine and each sleeve or leg along its own bones, one spline per part, limbs in front. Lengths keep
their proportion to the garment's width: a cropped top stays cropped, a short sleeve ends at its fraction of the arm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vton.data import shapes
from vton.data.figure import Figure, Line
from vton.data.sample import JOINTS, Category, DataError
from vton.data.silhouette import Limb, Silhouette, read_bottom, read_top
from vton.data.tps import sample, thin_plate_spline

WHITE = 255


class WarpSource(Protocol):
    """What every source of warped garments looks like, learned or not."""

    def __call__(
        self,
        garment: np.ndarray,
        garment_mask: np.ndarray,
        joints: np.ndarray,
        agnostic_mask: np.ndarray,
        category: Category,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Warp one garment.

        garment:       (H, W, 3) uint8 on white; garment_mask: (H, W) bool, its silhouette
        joints:        (18, 3) COCO-18, x and y in pixels of the person's canvas, validity 0 or 1
        agnostic_mask: (h, w) bool on the person's canvas
        returns        (h, w, 3) uint8 on white, and (h, w) bool: where the garment lies, a subset of agnostic_mask
        """
        ...


_SOURCES: dict[str, Callable[[], WarpSource]] = {}


def register_warp(name: str) -> Callable[[Callable[[], WarpSource]], Callable[[], WarpSource]]:
    """Decorator for a class (or function without arguments) that makes a WarpSource, e.g. a learned warp."""

    def add(factory: Callable[[], WarpSource]) -> Callable[[], WarpSource]:
        if name in _SOURCES:
            raise ValueError(f"warp source '{name}' is already registered by {_SOURCES[name].__name__}.")
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

    def __call__(self, garment, garment_mask, joints, agnostic_mask, category):
        return np.full((*agnostic_mask.shape, 3), WHITE, np.uint8), agnostic_mask.copy()


@dataclass(frozen=True)
class Proportions:
    """How garments sit on joints, in units of Figure.size. Joints lie inside the body, garments on its outline."""

    chest: float = 1.1  # armpit to armpit of a worn top
    shoulder_lift: float = 0.2  # shoulder tips above the shoulder joints
    hips: float = 1.1  # width of worn trousers at the crotch
    crotch_drop: float = 0.15  # crotch below the hip joints
    waist: float = 0.95  # width of a skirt's waistband
    waist_rise: float = 0.45  # waistband above the hip joints
    long_sleeve: float = 0.85  # a limb that covers this fraction of its bones ends at wrist or ankle


@dataclass(frozen=True)
class Part:
    """One spline: garment pixels `region`, control points on the person and in the garment, and where it may show."""

    region: np.ndarray  # (H, W) bool in the garment picture
    person: np.ndarray  # (N, 2)
    garment: np.ndarray  # (N, 2)
    envelope: np.ndarray | None = None  # (M, 2) polygon on the person; a spline folds back far from its points


@register_warp("geometric")
class GeometricWarp:
    """Landmarks of the silhouette to joints of the body; the bounding box where either cannot be read."""

    def __init__(self, proportions: Proportions | None = None):
        self.proportions = proportions or Proportions()

    def __call__(self, garment, garment_mask, joints, agnostic_mask, category):
        _check(garment, garment_mask, joints, agnostic_mask)
        parts = self.parts(garment_mask, joints, category)
        if parts:
            warped, mask = _render(garment, parts, agnostic_mask)
            if mask.any():
                return warped, mask
        return fit_box(garment, garment_mask, agnostic_mask)

    def parts(self, garment_mask: np.ndarray, joints: np.ndarray, category: Category) -> list[Part]:
        """Back to front; empty where the body or the silhouette cannot be read."""
        figure = Figure.of(joints)
        silhouette = (read_bottom if category == "lower_body" else read_top)(garment_mask)
        if figure is None or silhouette is None:
            return []
        place = self._frame(figure, silhouette, category)
        parts = [_body_part(silhouette, place)]
        lower = category == "lower_body"
        for side, bones in enumerate(figure.legs if lower else figure.arms):
            limb = silhouette.limbs[side]
            if limb is not None:
                scale = (self.proportions.hips if lower else self.proportions.chest) * figure.size / silhouette.width
                start = self.proportions.crotch_drop * figure.size if lower else 0.0
                parts.append(self._limb_part(limb, side, Line(bones), scale, start, place))
        return parts

    def _frame(self, figure: Figure, silhouette: Silhouette, category: Category) -> Callable:
        """A function from (N, 2) garment points to (N, 2) places on the person, along spine and across it."""
        own = self.proportions
        spine = Line(np.stack([figure.shoulders.mean(axis=0), *figure.legs.mean(axis=0)]))
        torso = spine.knots()[1]
        if category != "lower_body":
            width, start = own.chest, -own.shoulder_lift * figure.size
        elif silhouette.limbs[0] is not None:
            width, start = own.hips, torso + own.crotch_drop * figure.size
        else:
            width, start = own.waist, torso - own.waist_rise * figure.size
        directions = _across(figure, spine)
        down_scale = width * figure.size / silhouette.width
        shown = np.linalg.norm(figure.shoulders[1] - figure.shoulders[0]) / figure.size
        side_scale = down_scale * (1.0 if category == "lower_body" else shown)

        def place(points: np.ndarray) -> np.ndarray:
            offset = points - silhouette.origin
            length = start + down_scale * (offset @ silhouette.down)
            across = np.stack([np.interp(length, spine.knots(), directions[:, i]) for i in (0, 1)], axis=-1)
            return spine.at(length) + side_scale * (offset @ silhouette.across)[:, None] * across

        return place

    def _limb_part(self, limb: Limb, side: int, bones: Line, scale: float, start: float, place: Callable) -> Part:
        """The limb's root goes where the body takes it, its cross-sections along the bones."""
        reach = bones.length - start
        covered = limb.at[-1] * scale / reach
        stretch = 1 / covered if covered > self.proportions.long_sleeve else 1.0
        smooth = 0.15 * bones.length
        lengths = start + limb.at * scale * stretch
        centres, normals = bones.at(lengths), bones.normal(lengths, smooth)
        source, source_normals = limb.line.at(limb.at), limb.line.normal(limb.at, 0.15 * limb.line.length)
        person, garment = [place(limb.root)], [limb.root]
        for aside in (-1, 0, 1):
            person.append(centres + aside * scale * limb.half[:, None] * normals)
            garment.append(source + aside * limb.half[:, None] * source_normals)
        outwards = (1, -1)[side] * 1.3 * scale * limb.half[:, None] * normals
        tip = bones.at(lengths[-1] + 0.1 * scale * limb.at[-1]) - centres[-1]
        envelope = _ribbon(person[0], centres + outwards, centres - outwards, tip)
        return Part(limb.region, np.concatenate(person), np.concatenate(garment), envelope)


def _across(figure: Figure, spine: Line) -> np.ndarray:
    """(4, 2) unit vectors to the picture's right at shoulders, hips, knees and ankles."""
    pairs = [figure.shoulders[1] - figure.shoulders[0], figure.hips[1] - figure.hips[0]]
    rows = [pair / max(np.linalg.norm(pair), 1e-6) for pair in pairs]
    legs = -spine.normal(spine.knots()[2:], 1.0)
    return np.concatenate([rows, legs])


def _body_part(silhouette: Silhouette, place: Callable) -> Part:
    """Torso, pelvis or skirt: a lattice over the garment's frame."""
    above, below = silhouette.extent
    side = max(silhouette.spread, silhouette.width / 2)
    u, v = np.meshgrid(np.linspace(-side, side, 3), np.linspace(-above, below, 7))
    points = silhouette.origin + u.reshape(-1, 1) * silhouette.across + v.reshape(-1, 1) * silhouette.down
    return Part(silhouette.body, place(points), points)


def _ribbon(root: np.ndarray, outer: np.ndarray, inner: np.ndarray, tip: np.ndarray) -> np.ndarray:
    """Polygon around a limb: its root made wider, both sides, and `tip` beyond its end."""
    centre = root.mean(axis=0)
    root = centre + 1.6 * (root - centre)
    return np.vstack([root[:1], outer, outer[-1] + tip, inner[-1] + tip, inner[::-1], root[1:]])


def _render(garment: np.ndarray, parts: list[Part], agnostic_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = agnostic_mask.shape
    warped, mask = np.full((height, width, 3), WHITE, np.uint8), np.zeros((height, width), bool)
    colours = garment.astype(np.float32)
    step = max(2.0, height / 48)
    for part in parts:
        box = _reach(part, agnostic_mask.shape)
        if box is None:
            continue
        left, top, right, bottom = box
        window = (slice(top, bottom), slice(left, right))
        grid = thin_plate_spline(part.person, part.garment, box, step=step)
        inside = sample(part.region.astype(np.float32), grid, 0.0) > 0.5
        inside &= agnostic_mask[window]
        if part.envelope is not None:
            drawing = shapes.Drawing(agnostic_mask.shape)
            drawing.polygon(part.envelope)
            inside &= drawing.mask[window]
        warped[window][inside] = np.rint(sample(colours, grid[inside], WHITE))
        mask[window] |= inside
    return warped, mask


def _reach(part: Part, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The control points' box with a margin, cut to the canvas; None outside of it."""
    low, high = part.person.min(axis=0), part.person.max(axis=0)
    margin = 0.25 * (high - low) + 2
    left, top = np.maximum(np.floor(low - margin), 0).astype(int)
    right, bottom = np.minimum(np.ceil(high + margin) + 1, [shape[1], shape[0]]).astype(int)
    return (left, top, right, bottom) if left < right and top < bottom else None


def fit_box(garment: np.ndarray, garment_mask: np.ndarray, agnostic_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The garment's bounding box stretched to the agnostic mask's: always works, knows nothing of the pose."""
    warped, mask = np.full((*agnostic_mask.shape, 3), WHITE, np.uint8), np.zeros(agnostic_mask.shape, bool)
    source, target = shapes.bounding_box(garment_mask), shapes.bounding_box(agnostic_mask)
    if source is None or target is None:
        return warped, mask
    left, top, right, bottom = target
    xs = np.linspace(source[0], source[2], right - left + 1, dtype=np.float32)
    ys = np.linspace(source[1], source[3], bottom - top + 1, dtype=np.float32)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)
    window = (slice(top, bottom + 1), slice(left, right + 1))
    inside = (sample(garment_mask.astype(np.float32), grid, 0.0) > 0.5) & agnostic_mask[window]
    warped[window][inside] = np.rint(sample(garment.astype(np.float32), grid[inside], WHITE))
    mask[window] = inside
    return warped, mask


def _check(garment, garment_mask, joints, agnostic_mask) -> None:
    if garment.ndim != 3 or garment.shape[2] != 3 or garment.dtype != np.uint8:
        raise DataError(f"warp: garment is {garment.dtype} {garment.shape}, expected uint8 (H, W, 3).")
    if garment_mask.shape != garment.shape[:2] or garment_mask.dtype != bool:
        raise DataError(f"warp: garment mask is {garment_mask.dtype} {garment_mask.shape}, expected bool (H, W).")
    if joints.shape != (JOINTS, 3):
        raise DataError(f"warp: joints are {joints.shape}, expected {(JOINTS, 3)}.")
    if agnostic_mask.ndim != 2 or agnostic_mask.dtype != bool:
        raise DataError(f"warp: agnostic mask is {agnostic_mask.dtype} {agnostic_mask.shape}, expected bool (h, w).")
