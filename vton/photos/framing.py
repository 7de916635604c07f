"""How a photograph is cut: the part of it that a layout's own photographs would show.

VITON-HD shows a person from the head to the middle of the thighs, DressCode from the nose to the
feet. What is cut is remembered as a `Frame`, so that a drawn picture can be pasted back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from vton.data import pose
from vton.data.derived.figure import THIGH, TORSO

Box = tuple[float, float, float, float]  # left, top, right, bottom
Layout = Literal["viton_hd", "dresscode"]

# Of each layout's own photographs: the torso (neck to middle of the hips) and the neck's height, as
# shares of the picture's height; a photograph whose torso lies in the range is not cut.
TORSOS = {"viton_hd": 0.385, "dresscode": 0.295}
NECKS = {"viton_hd": 0.31, "dresscode": 0.115}
LIKE_OURS = {"viton_hd": (0.33, 0.47), "dresscode": (0.25, 0.35)}
SAME_SHAPE = 0.015  # relative difference of aspect ratios that counts as none
SEAM = 0.02  # width of the feathered seam around what is pasted back, of the picture's height


@dataclass(frozen=True)
class Frame:
    """A rectangle of a photograph, in its pixels. It may reach beyond the photograph's edges."""

    left: float
    top: float
    width: float
    height: float

    def to_frame(self, joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Joints (J, 3) in [0, 1] of a photograph, as in [0, 1] of the frame.

        size: width, height of the photograph.
        """
        moved = joints.copy()
        moved[:, 0] = (joints[:, 0] * size[0] - self.left) / self.width
        moved[:, 1] = (joints[:, 1] * size[1] - self.top) / self.height
        return moved

    def to_photo(self, joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The inverse of `to_frame`."""
        moved = joints.copy()
        moved[:, 0] = (joints[:, 0] * self.width + self.left) / size[0]
        moved[:, 1] = (joints[:, 1] * self.height + self.top) / size[1]
        return moved

    @property
    def box(self) -> Box:
        return self.left, self.top, self.left + self.width, self.top + self.height

    def shows(self, size: tuple[int, int]) -> bool:
        """Whether a pixel at least of a photograph of size (width, height) lies in the frame."""
        left, top, right, bottom = visible(self.box, size)
        return right - left >= 1 and bottom - top >= 1

    def cut(self, photo: Image.Image, size: tuple[int, int]) -> Image.Image:
        """What the frame shows, at `size` (height, width). Beyond its edges the photo repeats them.

        The frame must show something of the photo, see `shows`.

        The edges are repeated blurred, so that they do not draw stripes.
        """
        inside = visible(self.box, photo.size)
        height, width = size
        if inside == self.box:
            return photo.resize((width, height), Image.Resampling.BICUBIC, self.box)
        # The visible part at its place, then the edges outwards.
        x = [round((side - self.left) / self.width * width) for side in (inside[0], inside[2])]
        y = [round((side - self.top) / self.height * height) for side in (inside[1], inside[3])]
        x[1], y[1] = max(x[1], x[0] + 1), max(y[1], y[0] + 1)
        part = photo.resize((x[1] - x[0], y[1] - y[0]), Image.Resampling.BICUBIC, inside)
        around = ((y[0], height - y[1]), (x[0], width - x[1]))
        padded = np.pad(np.asarray(part), (*around, (0, 0)), mode="edge")
        smooth = ndimage.uniform_filter(padded, (height // 16, width // 12, 0), mode="nearest")
        smooth[y[0] : y[1], x[0] : x[1]] = padded[y[0] : y[1], x[0] : x[1]]
        return Image.fromarray(smooth)

    def paste(self, photo: Image.Image, drawn: Image.Image, mask: np.ndarray) -> Image.Image:
        """The photograph with what was drawn put back at its place and resolution.

        drawn: a picture of the frame. mask: (h, w) bool, where it was repainted. Around the mask
        photograph and drawing fade into each other, and beyond that every pixel is the photo's.
        """
        soft = feathered(mask)
        left, top = int(np.floor(self.left)), int(np.floor(self.top))
        width = int(np.ceil(self.left + self.width)) - left
        height = int(np.ceil(self.top + self.height)) - top
        box = (
            (left - self.left) / self.width * drawn.width,
            (top - self.top) / self.height * drawn.height,
            (left + width - self.left) / self.width * drawn.width,
            (top + height - self.top) / self.height * drawn.height,
        )
        picture = _stretched(drawn, (width, height), box)
        share = drawn.width / soft.width, drawn.height / soft.height
        alpha_box = (box[0] / share[0], box[1] / share[1], box[2] / share[0], box[3] / share[1])
        alpha = _stretched(soft, (width, height), alpha_box)
        result = photo.copy()
        result.paste(picture, (left, top), alpha)
        return result


def feathered(mask: np.ndarray) -> Image.Image:
    """(h, w) bool as a grey picture: 255 inside, falling to 0 over SEAM of the height outside."""
    width = max(1.0, SEAM * mask.shape[0])
    distance = ndimage.distance_transform_edt(~mask)
    rise = np.clip(1 - distance / width, 0, 1)
    smooth = rise * rise * (3 - 2 * rise)
    return Image.fromarray((255 * smooth).round().astype(np.uint8))


def _stretched(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """A box of an image, which may reach a pixel beyond it, at a size (width, height)."""
    x0, y0, x1, y1 = box
    step_x, step_y = (x1 - x0) / size[0], (y1 - y0) / size[1]
    if step_x > 1 or step_y > 1:  # reduced: the filter has to average
        return image.resize(size, Image.Resampling.BICUBIC, visible(box, image.size))
    matrix = (step_x, 0, x0, 0, step_y, y0)
    grown = image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    # Beyond the edge the transformation gives black; a pixel of it would show as a line.
    if x0 >= 0 and y0 >= 0 and x1 <= image.width and y1 <= image.height:
        return grown
    return image.resize(size, Image.Resampling.BICUBIC, visible(box, image.size))


def visible(box: Box, size: tuple[int, int]) -> Box:
    """The part of a box that lies in a picture of size (width, height)."""
    left, top, right, bottom = box
    return max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])


def person_frame(joints: np.ndarray, size: tuple[int, int], layout: Layout, aspect: float) -> Frame:
    """The frame of a person in a layout's manner.

    joints: (J, 3) in [0, 1] of the photograph with validity; neck or both shoulders must be valid.
    size: width, height of the photograph. aspect: width over height of the layout's pictures.
    """
    width, height = size
    neck, torso = trunk(joints * np.float32([width, height, 1]))
    own_shape = abs(width / height / aspect - 1) < SAME_SHAPE
    low, high = LIKE_OURS[layout]
    if own_shape and low <= torso / height <= high:
        return Frame(0, 0, width, height)
    tall = torso / TORSOS[layout]
    wide = tall * aspect
    left, top = float(neck[0]) - wide / 2, float(neck[1]) - NECKS[layout] * tall
    frame = Frame(left, top, wide, tall)
    return _inside(frame, size)


def _inside(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame moved into the photograph as far as it fits, along each axis."""

    def moved(start: float, length: float, whole: int) -> float:
        if length >= whole:
            return (whole - length) / 2
        return min(max(start, 0.0), whole - length)

    left = moved(frame.left, frame.width, size[0])
    # Heads matter more than what is below: a frame that is too tall keeps its top.
    top = frame.top
    if frame.height < size[1]:
        top = moved(frame.top, frame.height, size[1])
    return Frame(left, top, frame.width, frame.height)


def trunk(joints: np.ndarray) -> tuple[np.ndarray, float]:
    """Where the neck is, and how long the torso, in the units of the joints.

    What is not valid follows from what is: the torso from the shoulders or the thighs, the neck
    from shoulders or hips. Without any of them the length is 0.
    """
    neck = _middle(joints, [pose.NECK])
    shoulders = joints[[pose.RIGHT_SHOULDER, pose.LEFT_SHOULDER]]
    if neck is None:
        neck = _middle(joints, [pose.RIGHT_SHOULDER, pose.LEFT_SHOULDER])
    hips = _middle(joints, [pose.RIGHT_HIP, pose.LEFT_HIP])
    lengths = [0.0]
    if neck is not None and hips is not None:
        lengths.append(float(np.linalg.norm(hips - neck)))
    if (shoulders[:, 2] > 0).all():
        across = float(np.linalg.norm(shoulders[0, :2] - shoulders[1, :2]))
        # Somebody turned sideways shows less of the shoulders than of the torso.
        lengths.append(0.8 * TORSO * across)
    for hip, knee, _ in pose.LEGS:
        if neck is None and joints[hip, 2] > 0 and joints[knee, 2] > 0:
            thigh = float(np.linalg.norm(joints[hip, :2] - joints[knee, :2]))
            lengths.append(TORSO / THIGH * thigh)
    torso = max(lengths)
    if neck is None:
        neck = np.zeros(2) if hips is None else hips - (0, torso)
    return neck, torso


def _middle(joints: np.ndarray, chosen: list[int]) -> np.ndarray | None:
    """The mean place of those that are valid."""
    found = joints[chosen]
    found = found[found[:, 2] > 0, :2]
    return found.mean(0) if len(found) else None


def centred(aspect: float, box: Box) -> Frame:
    """The smallest frame of an aspect ratio around a box (left, top, right, bottom), centred."""
    left, top, right, bottom = box
    tall = max(bottom - top, (right - left) / aspect)
    wide = tall * aspect
    return Frame((left + right - wide) / 2, (top + bottom - tall) / 2, wide, tall)
