"""The geometric warp: a garment put on a body by landmarks and thin-plate splines alone.

It reads the garment's silhouette, lays its torso along the spine and each sleeve or leg along its
own bones, one spline per part, limbs in front. Lengths keep their proportion to the garment's
width: a cropped top stays cropped, a short sleeve ends at its fraction of the arm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vton.data.boxes import bounding_box
from vton.data.derived import shapes
from vton.data.derived.figure import FOREARM, SHANK, THIGH, UPPER_ARM, Figure, Line
from vton.data.derived.silhouette import Limb, Silhouette, read_bottom, read_top
from vton.data.derived.tps import WHITE, Patch, bilinear, covers, render
from vton.data.sample import CATEGORIES, JOINTS, Category, DataError

SHORTEST_LIMB = 0.3  # in units of Figure.size: on shorter bones no sleeve is laid
OUTWARDS = (1, -1)  # side of a limb's normals that faces away from the trunk, picture-left first


@dataclass(frozen=True)
class Proportions:
    """How garments sit on joints, in units of Figure.size.

    Joints lie inside the body, garments on its outline.
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
class Placement:
    """The garment's frame on the body: its axis along the spine, its rows across it.

    spine:      through the middle of shoulders, hips, knees and ankles
    across:     (4, 2) unit vectors to the picture's right at these heights
    start:      length along the spine at which the silhouette's origin lies
    scale:      person px per garment px along the spine
    side_scale: the same across it; less for a person turned to the side
    """

    silhouette: Silhouette
    spine: Line
    across: np.ndarray
    start: float
    scale: float
    side_scale: float

    def height(self, points: np.ndarray) -> np.ndarray:
        """(N,) lengths along the spine of (N, 2) garment points."""
        return self.start + self.scale * ((points - self.silhouette.origin) @ self.silhouette.down)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) places on the person of (N, 2) garment points."""
        length = self.height(points)
        across_x = np.interp(length, self.spine.knots, self.across[:, 0])
        across_y = np.interp(length, self.spine.knots, self.across[:, 1])
        across = np.stack([across_x, across_y], axis=-1)
        aside = (points - self.silhouette.origin) @ self.silhouette.across
        return self.spine.at(length) + self.side_scale * aside[:, None] * across


class GeometricWarp:
    """Landmarks of the silhouette to joints of the body; a WarpSource.

    Where either cannot be read, the garment's bounding box is stretched to the mask's.
    """

    def __init__(self, proportions: Proportions | None = None):
        self.proportions = proportions or Proportions()

    def __call__(self, garment, garment_mask, joints, agnostic, agnostic_mask, category):
        _check(garment, garment_mask, joints, agnostic_mask, category)
        figure = Figure.of(joints)
        read = read_bottom if category == "lower_body" else read_top
        silhouette = read(garment_mask)
        if figure is not None and silhouette is not None:
            placement = self._place(figure, silhouette, category)
            patches = self.patches(figure, placement, category, agnostic_mask.shape)
            try:
                warped, mask = render(garment, garment_mask, patches, agnostic_mask)
            except np.linalg.LinAlgError:
                # Joints on one line or on one point: nothing to hang a garment on.
                mask = np.zeros_like(agnostic_mask)
            if mask.any():
                return warped, mask
        return fit_box(garment, garment_mask, agnostic_mask)

    def patches(
        self, figure: Figure, placement: Placement, category: Category, shape: tuple[int, int]
    ) -> list[Patch]:
        """The trunk, then its limbs. shape: (h, w) of the person's canvas."""
        sleeves = category != "lower_body"
        usual = figure.size * (UPPER_ARM + FOREARM if sleeves else THIGH + SHANK)
        bones = [Line(limb) for limb in (figure.arms if sleeves else figure.legs)]
        limbs = []
        cuffs = [0.0, 0.0]
        for side, limb in enumerate(placement.silhouette.limbs):
            if limb is None or bones[side].length <= SHORTEST_LIMB * figure.size:
                continue
            lengths = self._lay(limb, bones[side], usual, placement)
            limbs.append(
                _limb_patch(limb, OUTWARDS[side], bones[side], lengths, placement, shape, sleeves)
            )
            if sleeves:
                cuffs[side] = float(lengths[-1])
        visible = ~self.bare_arms(figure, cuffs, shape)
        return [_trunk_patch(placement, visible), *limbs]

    def bare_arms(self, figure: Figure, cuffs: list[float], shape: tuple[int, int]) -> np.ndarray:
        """(h, w) bool: what is bare of forearms and hands; as a rule it lies in front of the trunk.

        cuffs: lengths along each arm that sleeves cover. Only where the wrist was found: behind the
        back it rarely is.
        """
        own = self.proportions
        canvas = shapes.Canvas(shape)
        for cuff, arm, seen in zip(cuffs, figure.arms, figure.arms_seen, strict=True):
            _, elbow_seen, wrist_seen = seen
            if elbow_seen and wrist_seen:
                line = Line(arm)
                start = max(cuff, own.bare_from * line.knots[1])
                bare = np.linspace(start, line.length + own.hand * figure.size, 12)
                canvas.limb(line.at(bare), own.forearm * figure.size)
        return canvas.mask

    def _place(self, figure: Figure, silhouette: Silhouette, category: Category) -> Placement:
        own = self.proportions
        spine = Line(np.stack([figure.shoulders.mean(axis=0), *figure.legs.mean(axis=0)]))
        if category == "lower_body":
            width = own.waist
            start = spine.knots[1] - own.waist_rise * figure.size
        else:
            width = own.chest
            start = -own.shoulder_lift * figure.size
        scale = width * figure.size / silhouette.width
        left, right = figure.shoulders
        shown = float(np.linalg.norm(right - left)) / figure.size
        return Placement(silhouette, spine, _across(figure, spine), start, scale, scale * shown)

    def _lay(self, limb: Limb, bones: Line, usual: float, placement: Placement) -> np.ndarray:
        """(N,) lengths along the bones at which the limb's cross-sections lie.

        It begins where it leaves the trunk, a little below the joint. A limb seen shortened
        shortens its sleeve, and one that is almost covered is covered to its end. usual: length of
        such a limb seen from the side.
        """
        (root,) = placement(limb.line.points[:1])
        start = float(np.clip((root - bones.points[0]) @ bones.direction, 0, bones.length / 2))
        scale = placement.scale * min(1.0, bones.length / (0.8 * usual))
        covered = limb.at[-1] * scale / (bones.length - start)
        if covered > self.proportions.long_limb:
            scale = scale / covered
        return start + limb.at * scale


def _limb_patch(
    limb: Limb,
    outwards: int,
    bones: Line,
    lengths: np.ndarray,
    placement: Placement,
    shape: tuple[int, int],
    sleeve: bool,
) -> Patch:
    """The limb's root goes where the trunk takes it, its cross-sections along the bones.

    outwards: the side of the normals, 1 or -1, that faces away from the trunk. sleeve: its armpit
    rises with the arm.
    """
    centres = bones.at(lengths)
    normals = bones.normal(lengths, 0.15 * bones.length)
    source = limb.line.at(limb.at)
    source_normals = limb.line.normal(limb.at, 0.15 * limb.line.length)
    root = placement(limb.root)
    if sleeve:
        inside = centres[0] - outwards * placement.scale * limb.half[0] * normals[0]
        root[1] = _raised_armpit(root, inside)
    person = [root]
    garment = [limb.root]
    for side in (-1, 0, 1):
        person.append(centres + side * placement.scale * limb.half[:, None] * normals)
        garment.append(source + side * limb.half[:, None] * source_normals)
    aside = 1.3 * outwards * placement.scale * limb.half[:, None] * normals
    tip = bones.at(lengths[-1] + 0.1 * (lengths[-1] - lengths[0])) - centres[-1]
    canvas = shapes.Canvas(shape)
    canvas.polygon(_ribbon(root, centres + aside, centres - aside, tip))
    return Patch(limb.region, np.concatenate(person), np.concatenate(garment), canvas.mask)


def _raised_armpit(root: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(2,) the armpit of a raised arm.

    The place on the armhole, from tip to armpit, nearest to the sleeve's inside.
    """
    along = root[1] - root[0]
    share = (inside - root[0]) @ along / max(along @ along, 1e-6)
    return root[0] + float(np.clip(share, 0.3, 1.0)) * along


def _ribbon(root: np.ndarray, outer: np.ndarray, inner: np.ndarray, tip: np.ndarray) -> np.ndarray:
    """Polygon around a limb: its root made wider, both sides, and `tip` beyond its end."""
    centre = root.mean(axis=0)
    root = centre + 2 * (root - centre)
    return np.vstack([root[:1], outer, outer[-1] + tip, inner[-1] + tip, inner[::-1], root[1:]])


def _across(figure: Figure, spine: Line) -> np.ndarray:
    """(4, 2) unit vectors to the picture's right at shoulders, hips, knees and ankles."""
    rows = []
    for left, right in (figure.shoulders, figure.hips):
        rows.append((right - left) / max(np.linalg.norm(right - left), 1e-6))
    legs = -spine.normal(spine.knots[2:], 1.0)
    return np.concatenate([rows, legs])


def _trunk_patch(placement: Placement, visible: np.ndarray) -> Patch:
    """Torso, pelvis or skirt: a lattice over the garment's frame."""
    silhouette = placement.silhouette
    above, below = silhouette.extent
    side = max(silhouette.spread, silhouette.width / 2)
    u, v = np.meshgrid(np.linspace(-side, side, 3), np.linspace(-above, below, 7))
    across = u.reshape(-1, 1) * silhouette.across
    down = v.reshape(-1, 1) * silhouette.down
    points = silhouette.origin + across + down
    return Patch(silhouette.body, placement(points), points, visible)


def fit_box(
    garment: np.ndarray, garment_mask: np.ndarray, agnostic_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The garment's bounding box stretched to the agnostic mask's.

    Always works, and knows nothing of the pose. Arguments and result as WarpSource's.
    """
    warped = np.full((*agnostic_mask.shape, 3), WHITE, np.uint8)
    mask = np.zeros(agnostic_mask.shape, bool)
    source = bounding_box(garment_mask)
    target = bounding_box(agnostic_mask)
    if source is None or target is None:
        return warped, mask
    width = target.right - target.left + 1
    height = target.bottom - target.top + 1
    xs = np.linspace(source.left, source.right, width, dtype=np.float32)
    ys = np.linspace(source.top, source.bottom, height, dtype=np.float32)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)
    inside = covers(garment_mask, grid) & agnostic_mask[target.slices]
    colours = bilinear(garment.astype(np.float32), grid[inside])
    warped[target.slices][inside] = np.rint(colours)
    mask[target.slices] = inside
    return warped, mask


def _check(garment, garment_mask, joints, agnostic_mask, category) -> None:
    """Raise DataError for arguments of a wrong type, shape or name."""
    problem = ""
    if garment.ndim != 3 or garment.shape[2] != 3 or garment.dtype != np.uint8:
        problem = f"garment is {garment.dtype} {garment.shape}, expected uint8 (H, W, 3)"
    elif garment_mask.shape != garment.shape[:2] or garment_mask.dtype != bool:
        kind = f"{garment_mask.dtype} {garment_mask.shape}"
        problem = f"garment mask is {kind}, expected bool (H, W)"
    elif joints.shape != (JOINTS, 3) or not np.isfinite(joints).all():
        problem = f"joints are {joints.shape}, expected finite {(JOINTS, 3)}"
    elif agnostic_mask.ndim != 2 or agnostic_mask.dtype != bool:
        kind = f"{agnostic_mask.dtype} {agnostic_mask.shape}"
        problem = f"agnostic mask is {kind}, expected bool (h, w)"
    elif category not in CATEGORIES:
        problem = f"category {category!r}, expected one of {', '.join(CATEGORIES)}"
    if problem:
        raise DataError(f"warp: {problem}.")
