"""One photograph of a garment, made ready: its silhouette, and the garment alone on white."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vton.data import labels, pose
from vton.data.boxes import bounding_box
from vton.photos import reading
from vton.photos.backends import Networks
from vton.photos.errors import PhotoError
from vton.photos.framing import SAME_SHAPE, visible
from vton.photos.grounds import PLAUSIBLE
from vton.photos.person import LEAST_SIDE, SIZE
from vton.photos.small import CERTAIN

FILLS = 0.9  # share of the picture's width or height that the garment takes up
SMALLEST = 0.35  # a garment that takes up less than this of its picture is cut out and enlarged
A_FACE = 0.003  # share of the picture
RECTANGLE = 0.97  # share of its box from which something opaque is a whole picture, no garment


@dataclass
class PreparedGarment:
    """A garment as an in-shop picture.

    picture: RGB at `size`, the garment on white
    mask:    (H, W) bool silhouette
    """

    picture: Image.Image
    mask: np.ndarray
    warnings: list[str] = field(default_factory=list)


def prepare_garment(
    photo: Image.Image, networks: Networks, *, size: tuple[int, int] = SIZE
) -> PreparedGarment:
    """Find the garment of a photograph and put it on white.

    photo: upright RGB, or RGBA as `reading.in_rgb` gives it. size: height, width of the picture.
    Raises PhotoError, saying what is wrong with the photograph and what to do.
    """
    if min(photo.size) < LEAST_SIDE:
        raise PhotoError(
            "garment",
            f"the garment's photo is {photo.width}x{photo.height}; at least {LEAST_SIDE} pixels a "
            "side are needed. Use the original picture, not a thumbnail.",
        )
    silhouette = None
    if photo.mode == "RGBA":
        silhouette = outlined(photo.getchannel("A"))
        photo = reading.on_white(photo)
    _require_nobody(photo, networks)
    if silhouette is None:
        silhouette = networks.garment_mask.silhouette(photo)
    warnings = []
    if max(photo.size) < size[0] / 3:
        warnings.append(f"the garment's photo is small ({photo.width}x{photo.height})")
    edges = [silhouette[0], silhouette[-1], silhouette[:, 0], silhouette[:, -1]]
    if max(edge.mean() for edge in edges) > 0.3:
        warnings.append("the garment reaches the edge of its photo: a part of it may be missing")
    picture, mask = on_white(photo, silhouette, size)
    return PreparedGarment(picture, mask, warnings)


def outlined(alpha: Image.Image) -> np.ndarray | None:
    """(H, W) bool: the garment that a picture's transparency outlines.

    None where it outlines none: a picture with a transparent margin or rounded corners.
    """
    mask = np.asarray(alpha) >= 128
    if not PLAUSIBLE[0] < mask.mean() < PLAUSIBLE[1]:
        return None
    return mask if mask[bounding_box(mask).slices].mean() < RECTANGLE else None


def on_white(
    photo: Image.Image, silhouette: np.ndarray, size: tuple[int, int]
) -> tuple[Image.Image, np.ndarray]:
    """The garment on white at `size` (height, width), and its silhouette there.

    A photo of the picture's shape that the garment fills keeps its frame; otherwise the garment is
    centred.
    """
    height, width = size
    box = bounding_box(silhouette)
    tall, wide = box.bottom + 1 - box.top, box.right + 1 - box.left
    share = max(tall / photo.height, wide / photo.width)
    same_shape = abs(photo.width / photo.height / (width / height) - 1) < SAME_SHAPE
    if same_shape and share >= SMALLEST:
        x0, y0, scale = 0.0, 0.0, height / photo.height
    else:
        scale = FILLS * min(width / wide, height / tall)
        x0 = (box.left + box.right + 1) / 2 - width / scale / 2
        y0 = (box.top + box.bottom + 1) / 2 - height / scale / 2
    soft = Image.fromarray(silhouette.astype(np.uint8) * 255)
    white = Image.new("RGB", photo.size, "white")
    cut = Image.composite(photo, white, soft)
    return (
        _placed(cut, (x0, y0), scale, size, 255),
        np.asarray(_placed(soft, (x0, y0), scale, size, 0)) >= 128,
    )


def _placed(
    image: Image.Image,
    corner: tuple[float, float],
    scale: float,
    size: tuple[int, int],
    ground: int,
) -> Image.Image:
    """The part of an image from `corner` on, scaled to fill `size`; `ground` beyond its edges."""
    height, width = size
    x0, y0 = corner
    inside = visible((x0, y0, x0 + width / scale, y0 + height / scale), image.size)
    left, top = round((inside[0] - x0) * scale), round((inside[1] - y0) * scale)
    right, bottom = round((inside[2] - x0) * scale), round((inside[3] - y0) * scale)
    part_size = (max(1, right - left), max(1, bottom - top))
    part = image.resize(part_size, Image.Resampling.BICUBIC, inside)
    canvas = Image.new(image.mode, (width, height), (ground,) * len(image.getbands()))
    canvas.paste(part, (left, top))
    return canvas


def _require_nobody(photo: Image.Image, networks: Networks) -> None:
    """Raise PhotoError where a person wears the garment: a face, and joints of a head below it."""
    for joints in networks.pose.people(photo):
        head = joints[[pose.NOSE, 14, 15], 2]
        shoulders = joints[[pose.RIGHT_SHOULDER, pose.LEFT_SHOULDER], 2]
        if head.max() < CERTAIN or shoulders.min() < CERTAIN:
            continue
        parse = networks.parser.parse(photo, np.zeros((len(joints), 3), np.float32))
        if (parse == labels.FACE).mean() > A_FACE:
            raise PhotoError(
                "garment",
                "a person is in the garment's photo. Use a picture of the garment alone: laid "
                "flat, on a hanger, or from a shop's page.",
            )
