"""Landmarks of an in-shop garment from its silhouette alone.

Rows of the upright mask are read outwards from the axis. A sleeve shows as background with garment
above it, its gap to the torso, whose corner is the armpit; legs show as the gap between them, whose
top is the crotch. What one side hides, the other side tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial

from vton.data.derived import shapes
from vton.data.derived.figure import Line
from vton.data.derived.upright import Upright

SECTIONS = 6  # cross-sections of a limb, besides its root
ARMPIT_DEPTH = 0.62  # usual height of an armpit below the shoulder tips, in widths of the chest
OVERLAP = 0.02  # by which torso and sleeve overlap, in widths: seams would show as cracks
# what reaches further out than this beyond the armpit, in torso half-widths, is a sleeve
SLEEVE = 0.28


@dataclass(frozen=True)
class Limb:
    """A sleeve or a trouser leg. Points are x, y in pixels of the garment picture.

    root:   (2, 2) where it leaves the torso: outer end (shoulder tip, hip side) and inner end (armpit, crotch)
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
    width:  across the chest just below the armpits (tops, dresses) or of the waistband (trousers, skirts)
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


def read_top(mask: np.ndarray) -> Silhouette | None:
    """Shoulder line, armpits and sleeves of a top or dress. mask: (H, W) bool. None for a mask too
    small to read.
    """
    view = Upright.of(mask)
    if view is None:
        return None
    halves = view.halves
    hem = _hem(halves)
    armpits = [_armpit(half, hem) for half in halves]
    if armpits[0] is None and armpits[1] is None:
        return _sleeveless(view, hem)
    armpits = [own or other for own, other in zip(armpits, armpits[::-1], strict=True)]
    edges = _torso_edges(halves, armpits, hem)
    armpits = [
        _true_armpit(half, edge, gap)
        for half, edge, gap in zip(halves, edges, armpits, strict=True)
    ]
    tips = [_tip(half, column) for half, (column, _) in zip(halves, armpits, strict=True)]
    shoulder = float(np.mean([row for _, row in tips]))
    width = 1 + sum(column for column, _ in armpits)
    limbs, body = [], mask.copy()
    for side in (0, 1):
        below = range(int(armpits[side][1]) + 1, view.height)
        cut = [tips[side], armpits[side], *((edges[side][row], row) for row in below)]
        limb = _sleeve(view, side, tips[side], armpits[side], cut)
        limbs.append(limb)
        if limb is not None:
            body &= ~view.beyond(side, cut, OVERLAP * width)
    return _silhouette(view, shoulder, width, hem, body, tuple(limbs))


def read_bottom(mask: np.ndarray) -> Silhouette | None:
    """Waistband, crotch and legs of trousers or shorts; waistband and hem of a skirt. None for a
    mask too small.
    """
    view = Upright.of(mask)
    if view is None:
        return None
    widths = view.mask.sum(axis=1)
    waist = float(widths[: max(2, view.height // 25)].max())
    crotch = _crotch(view, widths)
    if crotch is None:
        return _silhouette(view, 0, waist, view.height - 1, mask)
    limbs = tuple(_leg(view, side, crotch) for side in (0, 1))
    body = mask & ~view.below(crotch + 0.04 * waist)
    return _silhouette(view, 0, waist, crotch, body, limbs)


def _silhouette(
    view: Upright, row: float, width: float, hem: int, body, limbs=(None, None)
) -> Silhouette:
    """Measures of the upright mask as those of the garment picture; `row` is the origin's."""
    across, down = (view.turn[:, i] / view.scale for i in (0, 1))
    spread = max(outer_edges(half[: hem + 1]).max() for half in view.halves)
    return Silhouette(
        view.place(np.array([view.axis, row])),
        across,
        down,
        width * view.scale,
        (row * view.scale, (hem - row) * view.scale),
        spread * view.scale,
        body,
        limbs,
    )


def _hem(halves: list[np.ndarray]) -> int:
    """Last row of the torso, read in the columns next to the axis, where no sleeve hangs."""
    inner = max(2, int(0.3 * np.median([half.sum(axis=1).max() for half in halves])))
    inner = min(inner, halves[0].shape[1])
    bottoms = [
        half.shape[0] - 1 - half[::-1, column].argmax()
        for half in halves
        for column in range(inner)
        if half[:, column].any()
    ]
    return int(np.median(bottoms))


def _armpit(half: np.ndarray, hem: int) -> tuple[int, int] | None:
    """(distance from the axis, row) of the corner under the sleeve, or None without a sleeve that
    leaves the torso.
    """
    rows, columns = half.shape
    outwards = np.arange(columns)
    under = np.maximum.accumulate(half, axis=0) & ~half
    under[hem:] = False
    reach = np.maximum.accumulate(
        np.where(half, outwards, 0).max(axis=1)
    )  # furthest garment pixel so far
    typical = np.median(half[: hem + 1].sum(axis=1))
    under &= (reach[:, None] - outwards > SLEEVE * outwards) & (outwards > 0.3 * typical)
    if not under.any():
        return None
    score = np.where(under, outwards[None] + np.arange(rows)[:, None], rows + columns)
    row, column = np.unravel_index(score.argmin(), score.shape)
    return int(column), int(row)


def _torso_edges(halves, armpits, hem: int) -> list[np.ndarray]:
    """Per side (H,) distance of the torso's edge from the axis below the armpit; NaN-free.

    A row without a gap (the sleeve lies against the torso) takes the other side's edge, else that
    of its neighbours.
    """
    read = [_gap_edges(half, armpit, hem) for half, armpit in zip(halves, armpits, strict=True)]
    edges = []
    for own, other, (column, row) in zip(read, read[::-1], armpits, strict=True):
        edge = np.where(np.isnan(own), other, own)
        edge[: row + 1] = column
        known = np.flatnonzero(~np.isnan(edge))
        edges.append(np.interp(np.arange(len(edge)), known, edge[known]))
    return edges


def _true_armpit(
    half: np.ndarray, edge: np.ndarray, corner: tuple[int, int]
) -> tuple[float, float]:
    """(distance from the axis, row) of the armpit itself, given the corner of the gap; `edge` gains
    what lies between.

    A hanging sleeve touches the torso down to a gap that begins well below the armpit, where the
    torso has narrowed. The armpit is then put at its usual height on the torso's edge, prolonged
    upwards.
    """
    column, row = corner
    shoulder = _tip(half, column)[1]
    usual = shoulder + ARMPIT_DEPTH * (2 * column + 1)
    rows = np.arange(row + 1, min(row + max(4, round(0.6 * column)), len(edge)))
    if row <= usual + 1 or len(rows) < 4:
        return float(column), float(row)
    slope = float(np.clip(-np.polyfit(rows, edge[rows], 1)[0], 0, 0.3))
    between = np.arange(max(int(usual), 0), row + 1)
    edge[between] = column + slope * (row - between)
    return float(edge[between[0]]), float(between[0])


def _gap_edges(half: np.ndarray, armpit: tuple[int, int], hem: int) -> np.ndarray:
    last, start = float(armpit[0]), max(1, int(0.3 * armpit[0]))
    edges = np.full(half.shape[0], np.nan)
    for row in range(armpit[1], hem + 1):
        gap = ~half[row, start:]
        end = start + (gap.argmax() if gap.any() else len(gap))
        if (
            last - 0.25 * armpit[0] - 2 < end <= last + 2
        ):  # otherwise the run goes on into the sleeve
            edges[row] = last = end
    return edges


def _tip(half: np.ndarray, column: float) -> tuple[float, float]:
    """(distance, row) of the shoulder tip: the top of the garment above the armpit, a little
    further out.
    """
    column = min(round(1.03 * column), half.shape[1] - 1)
    window = half[:, max(column - 1, 0) : column + 2]
    return float(column), float(np.median([window[:, i].argmax() for i in range(window.shape[1])]))


def _sleeve(view: Upright, side: int, tip, armpit, cut) -> Limb | None:
    """The sleeve of one side; None where too little lies beyond the cut."""
    half = view.halves[side]
    rows = np.arange(view.height)
    cut_rows, cut_columns = [row for _, row in cut], [column for column, _ in cut]
    boundary = np.interp(rows, cut_rows, cut_columns)
    beyond = shapes.largest_component(half & (np.arange(half.shape[1]) > boundary[:, None]))
    if beyond.sum() <= 0.03 * half.sum():
        return None
    root = np.array([tip, armpit], dtype=float)
    # The arm's axis starts where the shoulder joint lies: on the armhole, nearer to its upper end.
    joint = root[0] + 0.4 * (root[1] - root[0])
    ys, xs = np.nonzero(beyond)
    line, at, width = _strip(np.stack([xs, ys], axis=1).astype(float), joint, root[1])
    region = view.full & view.beyond(side, cut, -OVERLAP * 2 * armpit[0])
    return _limb(view, side, root, line, at, width, region)


def _strip(
    pixels: np.ndarray, start: np.ndarray, inner: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre line, lengths of cross-sections and half-widths of a strip of pixels that leaves
    `start`.

    Sections begin where the strip is whole, that is past the inner end of its root.
    """
    direction = pixels.mean(axis=0) - start
    direction /= max(np.linalg.norm(direction), 1e-6)
    normal = np.array([-direction[1], direction[0]])
    along, aside = (pixels - start) @ direction, (pixels - start) @ normal
    off_centre = np.abs(aside - np.median(aside))
    middle = off_centre <= np.median(
        off_centre
    )  # corners of a slanted cuff reach further than its middle
    end = max(float(np.percentile(along[middle], 99)), 1.0)
    begin = float(np.clip((inner - start) @ direction, 0.15 * end, 0.8 * end))
    centre, half = _profile(along, aside, begin, end)
    places = (
        np.linspace(begin, end, SECTIONS)
        if end - begin > half(end)
        else np.array([(begin + end) / 2, end])
    )
    points = start + np.outer(places, direction) + np.outer(centre(places), normal)
    line = np.vstack([start, points])
    return (
        line,
        np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum(),
        np.maximum(half(places), 1.0),
    )


def _profile(along, aside, begin: float, end: float) -> tuple[Polynomial, Polynomial]:
    """Centre and half-width of a strip as functions of the length along it.

    Fitted, because oblique ends and folds make single slices unreliable; a strip about as wide as
    long gets no curve.
    """
    edges = np.linspace(begin, end, SECTIONS + 1)
    slices = np.digitize(along, edges[1:-1])
    slices[along < begin] = -1
    rows = []
    for i in range(SECTIONS):
        inside = aside[slices == i]
        if len(inside) >= 3:
            low, high = np.percentile(inside, [3, 97])
            rows.append(
                ((edges[i] + edges[i + 1]) / 2, (low + high) / 2, (high - low) / 2 / 0.94 + 0.5)
            )
    if len(rows) < 3:
        return Polynomial([0.0]), Polynomial([float(np.percentile(np.abs(aside), 90))])
    places, centres, halves = np.array(rows[:-1] if len(rows) > 3 else rows).T
    degree = 2 if end - begin > 3 * halves.mean() else 1
    fit = Polynomial.fit
    return fit(places, centres, degree), fit(places, halves, 1)


def _limb(view: Upright, side: int, root, line, at, half, region) -> Limb:
    return Limb(
        view.outline(side, root),
        Line(view.outline(side, line)),
        at * view.scale,
        half * view.scale,
        region,
    )


def _sleeveless(view: Upright, hem: int) -> Silhouette:
    """A top without sleeves hangs from its straps or, strapless, from the chest."""
    edges = np.mean([outer_edges(half) for half in view.halves], axis=0)
    rows = np.arange(view.height)
    reached = np.flatnonzero(
        rows >= 1.6 * edges
    )  # the chest lies about 1.6 of its half-widths below the shoulders
    chest = float(edges[min(reached[0] if len(reached) else hem, hem)])
    upper = edges[: max(2, int(0.6 * chest))]
    if (
        upper[len(upper) // 20 :].min() > 0.88 * chest
    ):  # as wide as the chest from the first rows on: strapless
        shoulder = -1.2 * chest
    else:
        row = int((upper > 0.9 * upper.max()).argmax())
        shoulder = row + 0.35 * max(
            chest - upper[row], 0
        )  # shoulders slope down towards their tips
    return _silhouette(view, shoulder, 2 * chest + 1, hem, view.full)


def outer_edges(half: np.ndarray) -> np.ndarray:
    """(H,) distance of the outermost garment pixel of each row, 0 where there is none."""
    return np.where(half, np.arange(half.shape[1]) + 1, 0).max(axis=1)


def _crotch(view: Upright, widths: np.ndarray) -> int | None:
    """Row where the legs part, or None for a skirt."""
    centre = np.any([half[:, :1].any(axis=1) for half in view.halves], axis=0)
    filled = np.flatnonzero(centre)
    crotch = int(filled[-1]) if len(filled) else 0
    if view.height - 1 - crotch < 0.06 * view.height:
        return None
    hips = float(widths[: max(2, view.height // 3)].max())
    if (
        crotch > 1.1 * hips
    ):  # legs that touch part further down: a rise is about 0.75 of the flat hip width
        crotch = int(0.75 * hips)
    return max(crotch, 2)


def _leg(view: Upright, side: int, crotch: int) -> Limb | None:
    half = view.halves[side]
    part = half.copy()
    part[:crotch] = False
    part = shapes.largest_component(part)
    if part.sum() <= 0.03 * half.sum():
        return None
    root = np.array([(float(half[crotch].sum()), crotch), (0.0, crotch)])
    ys, xs = np.nonzero(part)
    line, at, halves = _strip(np.stack([xs, ys], axis=1).astype(float), root.mean(axis=0), root[1])
    return _limb(
        view, side, root, line, at, halves, view.full & view.below(crotch - 0.04 * root[0, 0], side)
    )
