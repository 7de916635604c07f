"""Body joints of both data sets in one form, COCO-18 in [0, 1], and the one drawing of them.

VITON-HD stores OpenPose's BODY_25 in pixels of a 768x1024 canvas, DressCode COCO-18 in pixels of a
384x512 canvas, whatever the size of the picture file. Left and right are the person's.
"""

from __future__ import annotations

import colorsys
import json

import numpy as np
from PIL import Image, ImageDraw

from vton.data.images import RESTORE, RESTORE_OR_DROP, Origin
from vton.data.sample import JOINTS
from vton.data.shards import ShardError
from vton.data.source import Source

NAMES = (
    "nose",
    "neck",
    "right shoulder",
    "right elbow",
    "right wrist",
    "left shoulder",
    "left elbow",
    "left wrist",
    "right hip",
    "right knee",
    "right ankle",
    "left hip",
    "left knee",
    "left ankle",
    "right eye",
    "left eye",
    "right ear",
    "left ear",
)
NOSE, NECK = 0, 1
RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST = 2, 3, 4
LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 5, 6, 7
RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE = 8, 9, 10
LEFT_HIP, LEFT_KNEE, LEFT_ANKLE = 11, 12, 13
# From the trunk outwards, the person's right limb first.
ARMS = ((RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST), (LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST))
LEGS = ((RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE), (LEFT_HIP, LEFT_KNEE, LEFT_ANKLE))

# The joint that each joint becomes when the picture is mirrored.
MIRROR = np.array([0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16])

BODY_25 = 25  # OpenPose's joints
FROM_BODY_25 = np.array([*range(8), *range(9, 19)])  # without the mid hip and the feet

VITON_HD_CANVAS = (768, 1024)  # width, height
DRESSCODE_CANVAS = (384, 512)
FARTHEST = 1e6  # px; numbers beyond it, NaN among them, are no coordinates
# Of all found coordinates: up to it they are fractions, not pixels, which are not all in a corner.
LARGEST_FRACTION = 1.5
FEWEST_FRACTIONS = 3  # joints that show it; of fewer none may lie outside of 0..1

# Limbs and colours as OpenPose draws them, which is what pose-conditioned networks were trained on:
# a hue wheel of 18.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7)),  # shoulders and arms
    *((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),  # trunk and legs
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),  # head
)
LIMB_SHADE = 0.6  # limbs are darker than joints, as in OpenPose


def _hue(index: int) -> tuple[int, int, int]:
    """Colour `index` of the hue wheel."""
    red, green, blue = colorsys.hsv_to_rgb(index / JOINTS, 1, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


COLOURS = tuple(map(_hue, range(JOINTS)))  # of each joint, and of the limb of that number


def read_body_25(path: Source, origin: Origin) -> np.ndarray:
    """(18, 3) float32 joints of a VITON-HD file: x and y in [0, 1], validity 0 or 1.

    Nobody found (an empty `people` list, true of a few official files) gives 18 invalid joints. Of
    several people the one with the highest summed confidence counts. Raises DataError.
    """
    people = _read_list(path, origin, "people")
    if not people:
        return np.zeros((JOINTS, 3), np.float32)
    bodies = [_body(person, path, origin) for person in people]
    body = max(bodies, key=lambda joints: joints[:, 2].sum())
    return _normalised(body[FROM_BODY_25], VITON_HD_CANVAS, path, origin)


def read_coco_18(path: Source, origin: Origin) -> np.ndarray:
    """(18, 3) float32 joints of a DressCode file, as `read_body_25`.

    The fourth number of a joint is not a joint id.
    """
    rows = _read_list(path, origin, "keypoints")
    if len(rows) != JOINTS or not all(isinstance(row, list) and len(row) >= 3 for row in rows):
        raise origin.error("keypoints are not 18 rows of x, y, confidence", path, RESTORE)
    table = [_numbers(row[:3], path, origin) for row in rows]
    return _normalised(np.stack(table), DRESSCODE_CANVAS, path, origin)


def draw_skeleton(joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: coloured limbs and joints on black.

    joints: (18, 3) as in TryOnSample.keypoints. size: height, width. Limbs with an invalid end are
    left out.
    """
    height, width = size
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    points = [(x * width, y * height) for x, y in joints[:, :2].tolist()]
    valid = joints[:, 2] > 0
    for limb, (start, end) in enumerate(LIMBS):
        if valid[start] and valid[end]:
            shade = tuple(round(LIMB_SHADE * channel) for channel in COLOURS[limb])
            draw.line([points[start], points[end]], fill=shade, width=max(1, round(height / 64)))
    radius = max(0.5, height / 128)
    for joint in np.flatnonzero(valid):
        x, y = points[joint]
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=COLOURS[joint])
    return np.array(image)


def mirror(joints: np.ndarray) -> np.ndarray:
    """Joints of the mirrored picture: x from the other side, left and right exchanged."""
    flipped = joints[MIRROR].copy()
    flipped[:, 0] = np.where(flipped[:, 2] > 0, 1 - flipped[:, 0], 0)
    return flipped


def drop_outside(joints: np.ndarray) -> np.ndarray:
    """Joints with those outside the picture made invalid: (0, 0, 0)."""
    x, y, valid = joints.T
    inside = (valid > 0) & (x > 0) & (y > 0) & (x <= 1) & (y <= 1)
    return np.where(inside[:, None], joints, 0).astype(np.float32)


def _normalised(
    joints: np.ndarray, canvas: tuple[int, int], path: Source, origin: Origin
) -> np.ndarray:
    """Rows of x, y in pixels of the canvas and confidence as x, y in [0, 1] and validity.

    Raises DataError for coordinates that are fractions of the picture already.
    """
    found = joints[(joints[:, 2] > 0) & (joints[:, :2] != 0).any(axis=1), :2]
    few = 0 < len(found) < FEWEST_FRACTIONS and found.min() >= 0 and found.max() <= 1
    if few or (len(found) >= FEWEST_FRACTIONS and np.abs(found).max() <= LARGEST_FRACTION):
        size = "{}x{}".format(*canvas)
        problem = f"keypoints lie between 0 and {np.abs(found).max():.2g}, not in pixels of {size}"
        raise origin.error(problem, path, f"Multiply x by {canvas[0]} and y by {canvas[1]}.")
    # Missing is 0,0,0 in VITON-HD and -1,-1,0 in DressCode, whose cropped heads are "present" at
    # y = 0.
    return drop_outside(np.column_stack([joints[:, :2] / canvas, joints[:, 2] > 0]))


def _read_list(path: Source, origin: Origin, key: str) -> list:
    """The list under one key of a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise origin.error("keypoints are missing", path, RESTORE_OR_DROP) from None
    except ShardError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise origin.error(f"keypoints cannot be read: {error}", path, RESTORE) from None
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise origin.error(f"keypoints have no list '{key}'", path, RESTORE)
    return content[key]


def _body(person: object, path: Source, origin: Origin) -> np.ndarray:
    """(25, 3) x, y and confidence of one entry of `people`."""
    numbers = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
    is_list = isinstance(numbers, list)
    if not is_list or len(numbers) != 3 * BODY_25:
        count = f"{len(numbers)} numbers" if is_list else "no list"
        problem = f"pose_keypoints_2d has {count}, expected {3 * BODY_25} (BODY_25)"
        raise origin.error(problem, path, "Use OpenPose's BODY_25 model.")
    return _numbers(numbers, path, origin).reshape(BODY_25, 3)


def _numbers(values: list, path: Source, origin: Origin) -> np.ndarray:
    # numpy would take "1.5" and true for numbers, and a list of lists for a table of another shape.
    for value in values:
        if type(value) not in (int, float) or not abs(value) < FARTHEST:
            problem = f"keypoints hold {repr(value)[:40]}, which is no coordinate"
            raise origin.error(problem, path, RESTORE)
    return np.array(values, dtype=np.float64)
