"""Drawing binary masks on a person, with every length given for a canonical height.

The mask rules of the literature state their constants in pixels of 768x1024 or 384x512 pictures.
`Skeleton` holds the scale of the picture at hand, so that rules read like their papers and work at
any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from vton.data.pose import LEFT_SHOULDER, RIGHT_SHOULDER

Coordinates = Sequence[float]  # x, y


class Skeleton:
    """Joints of one person on one canvas.

    joints: (18, 3) x, y in pixels of the canvas and validity; an invalid joint is never read.
    shape:  (H, W) of the canvas.
    """

    def __init__(self, joints: np.ndarray, shape: tuple[int, int]):
        self.xy = np.asarray(joints[:, :2], dtype=float)
        self.valid = joints[:, 2] > 0
        self.height, self.width = shape

    def px(self, length: float, per: int = 1024) -> float:
        """A length that a paper gives for pictures `per` pixels high, in pixels of this canvas."""
        return length * self.height / per

    def has(self, *joints: int) -> bool:
        return bool(self.valid[list(joints)].all())

    def chain(self, joints: Iterable[int]) -> np.ndarray:
        """(N, 2) points of a limb from its root to the last joint before the first missing one."""
        points = []
        for joint in joints:
            if not self.valid[joint]:
                break
            points.append(self.xy[joint])
        return np.array(points).reshape(-1, 2)

    def canvas(self) -> Canvas:
        return Canvas((self.height, self.width))

    @cached_property
    def shoulder_width(self) -> float | None:
        """Distance between the shoulders in pixels, or None where one is missing."""
        if not self.has(RIGHT_SHOULDER, LEFT_SHOULDER):
            return None
        return float(np.linalg.norm(self.xy[RIGHT_SHOULDER] - self.xy[LEFT_SHOULDER]))

    @cached_property
    def below_shoulders(self) -> np.ndarray:
        """(H, W) bool: below the line through both shoulders, moved up by 20 px of 512.

        Needs both shoulders.
        """
        x0, y0 = self.xy[RIGHT_SHOULDER]
        x1, y1 = self.xy[LEFT_SHOULDER]
        slope = 0.0  # seen from the side the line is upright: take a level one
        if abs(x1 - x0) > 1:
            slope = (y1 - y0) / (x1 - x0)
        columns = np.arange(self.width)
        line = (y0 + y1) / 2 + slope * (columns - (x0 + x1) / 2) - self.px(20, per=512)
        return np.arange(self.height)[:, None] > line[None]


class Canvas:
    """A binary picture to draw on; full widths and radii in pixels."""

    def __init__(self, shape: tuple[int, int]):
        self._image = Image.new("L", (shape[1], shape[0]))
        self._draw = ImageDraw.Draw(self._image)

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool of what has been drawn so far."""
        return np.asarray(self._image) > 0

    def polygon(self, points: Iterable[Coordinates]) -> None:
        self._draw.polygon(_tuples(points), fill=255, outline=255)

    def ellipse(self, centre: Coordinates, rx: float, ry: float | None = None) -> None:
        """Half-axes rx and ry; a disc without ry."""
        x, y = map(float, centre)
        ry = rx if ry is None else ry
        self._draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=255)

    def box(self, left: float, top: float, right: float, bottom: float) -> None:
        self._draw.rectangle([float(left), float(top), float(right), float(bottom)], fill=255)

    def line(self, points: Iterable[Coordinates], width: float) -> None:
        """Polyline with flat ends.

        Pillow's own `joint` curves leave gaps, so callers round joints with ellipses.
        """
        points = _tuples(points)
        if len(points) > 1:
            self._draw.line(points, fill=255, width=max(1, round(width)))

    def curve(self, points: Iterable[Coordinates], width: int) -> None:
        """Polyline with Pillow's own rounded joints, as several published rules draw it."""
        self._draw.line(_tuples(points), fill=255, width=width, joint="curve")

    def ring(self, centre: Coordinates, radius: float, width: int) -> None:
        """Circle whose line goes inwards from the radius."""
        x, y = map(float, centre)
        circle = [x - radius, y - radius, x + radius, y + radius]
        self._draw.arc(circle, 0, 360, fill=255, width=width)

    def limb(self, points: Iterable[Coordinates], width: float) -> None:
        """Polyline with a disc on every point."""
        points = list(points)
        self.line(points, width)
        for point in points:
            self.ellipse(point, width / 2)


def _tuples(points: Iterable[Coordinates]) -> list[tuple[float, float]]:
    """Points as Pillow takes them."""
    return [(float(x), float(y)) for x, y in points]


def dilate(mask: np.ndarray, reach: float) -> np.ndarray:
    """Mask grown by `reach` pixels to each side with a box.

    n rounds of a k x k box, as papers have it, are one of reach n (k - 1) / 2.
    """
    radius = int(np.ceil(reach - 1e-6))
    if radius <= 0:
        return mask
    grown = ndimage.maximum_filter(mask.view(np.uint8), size=2 * radius + 1, mode="constant")
    return grown.view(bool)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Mask with every hole filled that does not touch the border (4-connected background).

    As scipy's binary_fill_holes, in half its time.
    """
    regions, _ = ndimage.label(~mask)
    outside = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    return mask | ~np.isin(regions, outside)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 8-connected region of the mask; an empty mask stays empty."""
    regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    return regions == sizes.argmax()


def convex_hull(mask: np.ndarray) -> np.ndarray:
    """Filled convex hull of the mask; a mask without area is returned as it is."""
    rows = np.flatnonzero(mask.any(axis=1))
    left = mask[rows].argmax(axis=1)
    right = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    points = np.concatenate([np.stack([left, rows], 1), np.stack([right, rows], 1)])
    try:
        hull = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):  # fewer than three points, or all on one line
        return mask
    canvas = Canvas(mask.shape)
    canvas.polygon(hull)
    return canvas.mask | mask
