"""Landmarks of an in-shop garment from its silhouette alone.

Rows of the upright mask are read outwards from the axis. A sleeve shows as background with garment
above it, its gap to the torso, whose corner is the armpit; legs show as the gap between them, whose
top is the crotch. What one side hides, the other side tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vton.data.derived import shapes
from vton.data.derived.figure import Line
from vton.data.derived.strip import read_strip
from vton.data.derived.upright import Upright

ARMPIT_DEPTH = 0.62  # usual height of an armpit below the shoulder tips, in widths of the chest
OVERLAP = 0.02  # by which torso and sleeve overlap, in widths: seams would show as cracks
# What reaches further out than this beyond the armpit, in torso half-widths, is a sleeve.
SLEEVE = 0.28
SMALLEST_LIMB = 0.03  # share of a half of the garment below which nothing counts as a limb


@dataclass(frozen=True)
class Limb:
    """A sleeve or a trouser leg. Points are x, y in pixels of the garment picture.

    root:   (2, 2) where it leaves the torso: outer end (shoulder tip, hip side) and inner end
            (armpit, crotch)
    line:   its centre line from between them to the open end
    at:     (N,) lengths along the line of its cross-sections; half: (N,) half-widths there
    region: (H, W) bool
    """

    root: np.ndarray
    line: Line
    at: np.ndarray
    half: np.ndarray
    region: np.ndarray


@dataclass(frozen=True)
class Silhouette:
    """A garment taken apart. Lengths in pixels of the garment picture.

    origin: (2,) point of the axis at shoulder height (tops, dresses) or at the top (trousers,
            skirts)
    across, down: (2,) unit vectors of the upright garment
    width:  across the chest just below the armpits (tops, dresses) or of the waistband (trousers,
            skirts)
    extent: lengths above and below the origin that the garment reaches
    spread: largest half-width of the body
    body:   (H, W) bool, the garment without its limbs
    limbs:  picture-left and picture-right; None where there is none
    """

    origin: np.ndarray
    across: np.ndarray
    down: np.ndarray
    width: float
    extent: tuple[float, float]
    spread: float
    body: np.ndarray
    limbs: tuple[Limb | None, Limb | None] = (None, None)


class Corner(NamedTuple):
    """A place on a half of the upright mask."""

    column: float  # distance from the axis
    row: float


def read_top(mask: np.ndarray) -> Silhouette | None:
    """Shoulder line, armpits and sleeves of a top or dress.

    mask: (H, W) bool. None for a mask too small to read.
    """
    view = Upright.of(mask)
    if view is None:
        return None
    hem = _hem(view.halves)
    left, right = (_gap_corner(half, hem) for half in view.halves)
    if left is None and right is None:
        return _sleeveless(view, hem)
    gaps = (left or right, right or left)
    edges = _torso_edges(view.halves, gaps, hem)
    armpits = []
    tips = []
    for half, edge, gap in zip(view.halves, edges, gaps, strict=True):
        armpit = _true_armpit(half, edge, gap)
        armpits.append(armpit)
        tips.append(_tip(half, armpit.column))
    shoulder = float(np.mean([tip.row for tip in tips]))
    width = 1 + sum(armpit.column for armpit in armpits)
    limbs = []
    body = mask.copy()
    for side in (0, 1):
        below = range(int(armpits[side].row) + 1, view.height)
        edge = [Corner(edges[side][row], row) for row in below]
        cut = [tips[side], armpits[side], *edge]
        sleeve = _sleeve(view, side, cut)
        limbs.append(sleeve)
        if sleeve is not None:
            body &= ~view.beyond(side, cut, OVERLAP * width)
    return _silhouette(view, shoulder, width, hem, body, tuple(limbs))


def read_bottom(mask: np.ndarray) -> Silhouette | None:
    """Waistband, crotch and legs of trousers or shorts; waistband and hem of a skirt.

    None for a mask too small to read.
    """
    view = Upright.of(mask)
    if view is None:
        return None
    widths = view.mask.sum(axis=1)
    waist = float(widths[: max(2, view.height // 25)].max())
    crotch = _crotch(view, widths)
    if crotch is None:
        return _silhouette(view, 0, waist, view.height - 1, mask)
    limbs = (_leg(view, 0, crotch), _leg(view, 1, crotch))
    body = mask & ~view.below(crotch + 0.04 * waist)
    return _silhouette(view, 0, waist, crotch, body, limbs)


def outer_edges(half: np.ndarray) -> np.ndarray:
    """(H,) distance of the outermost garment pixel of each row, 0 where there is none."""
    return np.where(half, np.arange(half.shape[1]) + 1, 0).max(axis=1)


def _silhouette(
    view: Upright,
    row: float,
    width: float,
    hem: int,
    body: np.ndarray,
    limbs: tuple[Limb | None, Limb | None] = (None, None),
) -> Silhouette:
    """Measures of the upright mask as those of the garment picture; `row` is the origin's."""
    spread = max(outer_edges(half[: hem + 1]).max() for half in view.halves)
    return Silhouette(
        origin=view.place(np.array([view.axis, row])),
        across=view.turn[:, 0] / view.scale,
        down=view.turn[:, 1] / view.scale,
        width=width * view.scale,
        extent=(row * view.scale, (hem - row) * view.scale),
        spread=spread * view.scale,
        body=body,
        limbs=limbs,
    )


def _limb(
    view: Upright, side: int, root: np.ndarray, pixels: np.ndarray, start: np.ndarray, region
) -> Limb:
    """A limb of the garment picture, from the pixels (h, w) of its half that belong to it.

    start: where its centre line begins. root, start: in columns and rows of the half.
    """
    rows, columns = np.nonzero(pixels)
    places = np.stack([columns, rows], axis=1).astype(float)
    line, at, half = read_strip(places, start, root[1])
    return Limb(
        root=view.outline(side, root),
        line=Line(view.outline(side, line)),
        at=at * view.scale,
        half=half * view.scale,
        region=region,
    )


# Tops and dresses.


def _hem(halves: Sequence[np.ndarray]) -> int:
    """Last row of the torso, read in the columns next to the axis, where no sleeve hangs."""
    typical = np.median([half.sum(axis=1).max() for half in halves])
    inner = min(max(2, int(0.3 * typical)), halves[0].shape[1])
    bottoms = []
    for half in halves:
        for column in half[:, :inner].T:
            if column.any():
                bottoms.append(np.flatnonzero(column)[-1])
    return int(np.median(bottoms))


def _gap_corner(half: np.ndarray, hem: int) -> Corner | None:
    """The corner of the gap under the sleeve, None without a sleeve that leaves the torso."""
    rows, columns = half.shape
    outwards = np.arange(columns)
    under = np.maximum.accumulate(half, axis=0) & ~half
    under[hem:] = False
    furthest = np.where(half, outwards, 0).max(axis=1)
    reach = np.maximum.accumulate(furthest)  # furthest garment pixel so far
    typical = np.median(half[: hem + 1].sum(axis=1))
    under &= reach[:, None] - outwards > SLEEVE * outwards
    under &= outwards > 0.3 * typical
    if not under.any():
        return None
    score = np.where(under, outwards[None] + np.arange(rows)[:, None], rows + columns)
    row, column = np.unravel_index(score.argmin(), score.shape)
    return Corner(int(column), int(row))


def _torso_edges(
    halves: Sequence[np.ndarray], gaps: Sequence[Corner], hem: int
) -> list[np.ndarray]:
    """Per side (H,) distance of the torso's edge from the axis below the armpit; NaN-free.

    A row without a gap (the sleeve lies against the torso) takes the other side's edge, else that
    of its neighbours.
    """
    left, right = (_gap_edges(half, gap, hem) for half, gap in zip(halves, gaps, strict=True))
    edges = []
    for own, other, gap in ((left, right, gaps[0]), (right, left, gaps[1])):
        edge = np.where(np.isnan(own), other, own)
        edge[: gap.row + 1] = gap.column
        known = np.flatnonzero(~np.isnan(edge))
        edges.append(np.interp(np.arange(len(edge)), known, edge[known]))
    return edges


def _gap_edges(half: np.ndarray, gap: Corner, hem: int) -> np.ndarray:
    """(H,) distance of the torso's edge where a gap shows it, NaN elsewhere."""
    last = float(gap.column)
    start = max(1, int(0.3 * gap.column))
    edges = np.full(half.shape[0], np.nan)
    for row in range(gap.row, hem + 1):
        background = ~half[row, start:]
        end = start + (background.argmax() if background.any() else len(background))
        if last - 0.25 * gap.column - 2 < end <= last + 2:  # else the run goes on into the sleeve
            edges[row] = last = end
    return edges


def _true_armpit(half: np.ndarray, edge: np.ndarray, gap: Corner) -> Corner:
    """The armpit itself, given the corner of the gap; `edge` gains what lies between.

    A hanging sleeve touches the torso down to a gap that begins well below the armpit, where the
    torso has narrowed. The armpit is then put at its usual height on the torso's edge, prolonged
    upwards.
    """
    column, row = gap
    shoulder = _tip(half, column).row
    usual = shoulder + ARMPIT_DEPTH * (2 * column + 1)
    rows = np.arange(row + 1, min(row + max(4, round(0.6 * column)), len(edge)))
    if row <= usual + 1 or len(rows) < 4:
        return Corner(float(column), float(row))
    slope = float(np.clip(-np.polyfit(rows, edge[rows], 1)[0], 0, 0.3))
    between = np.arange(max(int(usual), 0), row + 1)
    edge[between] = column + slope * (row - between)
    return Corner(float(edge[between[0]]), float(between[0]))


def _tip(half: np.ndarray, column: float) -> Corner:
    """The shoulder tip: the top of the garment above the armpit, a little further out."""
    middle = min(round(1.03 * column), half.shape[1] - 1)
    window = half[:, max(middle - 1, 0) : middle + 2]
    return Corner(float(middle), float(np.median(window.argmax(axis=0))))


def _sleeve(view: Upright, side: int, cut: list[Corner]) -> Limb | None:
    """The sleeve of one side; None where too little lies beyond the cut.

    cut: from the shoulder tip to the armpit, then down the torso's edge.
    """
    half = view.halves[side]
    rows = np.arange(view.height)
    cut_columns, cut_rows = zip(*cut, strict=True)
    boundary = np.interp(rows, cut_rows, cut_columns)
    beyond = shapes.largest_component(half & (np.arange(half.shape[1]) > boundary[:, None]))
    if beyond.sum() <= SMALLEST_LIMB * half.sum():
        return None
    tip, armpit = cut[:2]
    root = np.array([tip, armpit], dtype=float)
    # The arm's axis starts where the shoulder joint lies: on the armhole, nearer to its upper end.
    joint = root[0] + 0.4 * (root[1] - root[0])
    region = view.full & view.beyond(side, cut, -OVERLAP * 2 * armpit.column)
    return _limb(view, side, root, beyond, joint, region)


def _sleeveless(view: Upright, hem: int) -> Silhouette:
    """A top without sleeves hangs from its straps or, strapless, from the chest."""
    edges = np.mean([outer_edges(half) for half in view.halves], axis=0)
    rows = np.arange(view.height)
    # The chest lies about 1.6 of its half-widths below the shoulders.
    reached = np.flatnonzero(rows >= 1.6 * edges)
    chest_row = reached[0] if len(reached) else hem
    chest = float(edges[min(chest_row, hem)])
    upper = edges[: max(2, int(0.6 * chest))]
    strapless = upper[len(upper) // 20 :].min() > 0.88 * chest  # as wide as the chest at once
    if strapless:
        shoulder = -1.2 * chest
    else:
        row = int((upper > 0.9 * upper.max()).argmax())
        # Shoulders slope down towards their tips.
        shoulder = row + 0.35 * max(chest - upper[row], 0)
    return _silhouette(view, shoulder, 2 * chest + 1, hem, view.full)


# Trousers and skirts.


def _crotch(view: Upright, widths: np.ndarray) -> int | None:
    """Row where the legs part, or None for a skirt."""
    centre = np.any([half[:, :1].any(axis=1) for half in view.halves], axis=0)
    filled = np.flatnonzero(centre)
    crotch = int(filled[-1]) if len(filled) else 0
    if view.height - 1 - crotch < 0.06 * view.height:
        return None
    hips = float(widths[: max(2, view.height // 3)].max())
    if crotch > 1.1 * hips:
        # Legs that touch part further down: a rise is about 0.75 of the flat hip width.
        crotch = int(0.75 * hips)
    return max(crotch, 2)


def _leg(view: Upright, side: int, crotch: int) -> Limb | None:
    """The leg of one side; None where too little lies below the crotch."""
    half = view.halves[side]
    part = half.copy()
    part[:crotch] = False
    part = shapes.largest_component(part)
    if part.sum() <= SMALLEST_LIMB * half.sum():
        return None
    root = np.array([(float(half[crotch].sum()), crotch), (0.0, crotch)])
    region = view.full & view.below(crotch - 0.04 * root[0, 0], side)
    return _limb(view, side, root, part, root.mean(axis=0), region)
