"""The pose backend `blaze`: BlazePose (Bazarevsky et al., arXiv 2006.10204), Google's own files.

A detector finds people by the middle of their hips and the circle around their body; a second
network reads 33 landmarks inside that circle, turned upright. Both run in LiteRT. The files come
with mediapipe 0.10.21 (Apache-2.0), whose pipeline this follows from its published graphs.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.special import expit

from vton.data import pose
from vton.data.sample import JOINTS
from vton.photos.backends import Facts
from vton.photos.extras import package
from vton.photos.fetched import weights_file
from vton.weights.photo_networks import DIGESTS

DETECTOR_SIZE, LANDMARK_SIZE = 224, 256  # px, of the square pictures that the networks read
STRIDES = ((8, 2), (16, 2), (32, 6))  # of the detector's grids, and anchors in each cell
CONFIDENT = 0.5  # probability from which a detection counts
OVERLAP = 0.3  # from which two detections are one person
PRESENT = 0.5  # probability of the landmark network that it sees a person at all
AROUND = 1.25  # the landmark network's square, relative to the circle around the body
HEAT_REACH = 3  # cells of a landmark's heat map that refine its place
HEAT_SURE = 0.5

# COCO's joints among the 33 landmarks; the neck is the middle of the shoulders.
FROM_BLAZE = {
    **{pose.NOSE: 0, 14: 5, 15: 2, 16: 8, 17: 7},
    **{pose.RIGHT_SHOULDER: 12, pose.RIGHT_ELBOW: 14, pose.RIGHT_WRIST: 16},
    **{pose.LEFT_SHOULDER: 11, pose.LEFT_ELBOW: 13, pose.LEFT_WRIST: 15},
    **{pose.RIGHT_HIP: 24, pose.RIGHT_KNEE: 26, pose.RIGHT_ANKLE: 28},
    **{pose.LEFT_HIP: 23, pose.LEFT_KNEE: 25, pose.LEFT_ANKLE: 27},
}


class Circle(NamedTuple):
    """A person: the middle of the hips, the body's radius (px of the photo), and the turn (radians,
    clockwise) of the body from upright.
    """

    x: float
    y: float
    radius: float
    turn: float


class Blaze:
    def __init__(self, where: str = ""):
        self.interpreter = package("ai_edge_litert.interpreter", "the pose backend blaze")
        self.paths = {}
        for name in ("pose_detection.tflite", "pose_landmark_full.tflite"):
            self.paths[name] = weights_file(name, where, "the pose backend blaze", DIGESTS[name])
        self.anchors = anchors()

    @cached_property
    def facts(self) -> Facts:
        name = "pose_landmark_full.tflite"
        return Facts(
            "blaze", str(self.paths[name]), "Apache-2.0 (Google, mediapipe)", DIGESTS[name]
        )

    def people(self, photo: Image.Image) -> list[np.ndarray]:
        people = []
        for circle in self.detect(photo):
            joints = self.landmarks(photo, circle)
            if joints is not None:
                people.append(joints)
        return people

    def detect(self, photo: Image.Image) -> list[Circle]:
        """Everybody in the photo, the surest first."""
        side = max(photo.size)
        square = Image.new("RGB", (side, side))
        left, top = (side - photo.width) // 2, (side - photo.height) // 2
        square.paste(photo, (left, top))
        small = square.resize((DETECTOR_SIZE, DETECTOR_SIZE), Image.Resampling.BILINEAR)
        picture = np.asarray(small, np.float32)[None] / 127.5 - 1
        outputs = self._run("pose_detection.tflite", picture)
        boxes = next(output for output in outputs if output.shape[-1] == 12)[0]
        scores = next(output for output in outputs if output.shape[-1] == 1)[0, :, 0]
        circles = []
        for row in decode(boxes, scores, self.anchors):
            hips, edge = row[4:6] * side - (left, top), row[6:8] * side - (left, top)
            radius = float(np.hypot(*(edge - hips)))
            turn = math.atan2(edge[0] - hips[0], hips[1] - edge[1])
            circles.append(Circle(float(hips[0]), float(hips[1]), radius, turn))
        return circles

    def landmarks(self, photo: Image.Image, circle: Circle) -> np.ndarray | None:
        """(18, 3) joints of the photo; None where the network sees nobody in the circle."""
        step = 2 * AROUND * circle.radius / LANDMARK_SIZE
        cos, sin = step * math.cos(circle.turn), step * math.sin(circle.turn)
        half = LANDMARK_SIZE / 2
        # From pixels of the square to pixels of the photo.
        matrix = np.array(
            [
                [cos, -sin, circle.x - half * cos + half * sin],
                [sin, cos, circle.y - half * sin - half * cos],
            ]
        )
        # Reduced first: the transformation samples points and would alias.
        shrink = max(1, int(step))
        source = photo.reduce(shrink) if shrink > 1 else photo
        square = source.transform(
            (LANDMARK_SIZE, LANDMARK_SIZE),
            Image.Transform.AFFINE,
            tuple((matrix / shrink).ravel()),
            Image.Resampling.BILINEAR,
        )
        picture = np.asarray(square, np.float32)[None] / 255
        outputs = self._run("pose_landmark_full.tflite", picture)
        by_shape = {output.shape[1:]: output[0] for output in outputs}
        if by_shape[(1,)][0] < PRESENT:
            return None
        raw = by_shape[(195,)].reshape(39, 5)
        places = refined(raw[:, :2] / LANDMARK_SIZE, by_shape[(64, 64, 39)]) * LANDMARK_SIZE
        inside = ((places >= 0) & (places <= LANDMARK_SIZE)).all(1)
        confidence = expit(raw[:, 3]) * inside
        points = places @ matrix[:, :2].T + matrix[:, 2]
        joints = np.zeros((JOINTS, 3), np.float32)
        for joint, landmark in FROM_BLAZE.items():
            joints[joint] = *points[landmark], confidence[landmark]
        shoulders = joints[[pose.RIGHT_SHOULDER, pose.LEFT_SHOULDER]]
        joints[pose.NECK] = *shoulders[:, :2].mean(0), shoulders[:, 2].min()
        return joints / np.float32([photo.width, photo.height, 1])

    def _run(self, name: str, picture: np.ndarray) -> list[np.ndarray]:
        interpreter = self._interpreters[name]
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture)
        interpreter.invoke()
        details = interpreter.get_output_details()
        return [interpreter.get_tensor(detail["index"]) for detail in details]

    @cached_property
    def _interpreters(self) -> dict:
        interpreters = {}
        for name, path in self.paths.items():
            interpreter = self.interpreter.Interpreter(model_path=str(path), num_threads=1)
            interpreter.allocate_tensors()
            interpreters[name] = interpreter
        return interpreters


def anchors() -> np.ndarray:
    """(2254, 2): centres x, y in [0, 1] of the detector's anchors, in the order of its rows."""
    centres = []
    for stride, count in STRIDES:
        cells = DETECTOR_SIZE // stride
        line = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(line, line, indexing="ij")
        centres.append(np.stack([x, y], -1).reshape(-1, 2).repeat(count, 0))
    return np.concatenate(centres)


def decode(boxes: np.ndarray, scores: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Detections (n, 12), the surest first: x, y, width, height, then four points, in [0, 1].

    Overlapping ones are averaged by their scores, as mediapipe does.
    """
    scores = expit(scores.clip(-100, 100))
    chosen = scores >= CONFIDENT
    rows = boxes[chosen] / DETECTOR_SIZE
    rows[:, :2] += anchors[chosen]
    rows[:, 4:] += np.tile(anchors[chosen], 4)
    scores = scores[chosen]
    found = []
    left = list(np.argsort(-scores))
    while left:
        same = [row for row in left if _overlap(rows[left[0]], rows[row]) > OVERLAP]
        found.append(np.average(rows[same], axis=0, weights=scores[same]))
        left = [row for row in left if row not in same]
    return np.array(found).reshape(-1, 12)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    low = np.maximum(first[:2] - first[2:4] / 2, second[:2] - second[2:4] / 2)
    high = np.minimum(first[:2] + first[2:4] / 2, second[:2] + second[2:4] / 2)
    shared = np.prod(np.maximum(high - low, 0))
    return float(shared / (first[2:4].prod() + second[2:4].prod() - shared))


def refined(places: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Landmarks (39, 2) in [0, 1], moved to the mean of their heat maps (h, w, 39) nearby."""
    height, width, _ = heat.shape
    moved = places.copy()
    for landmark, (x, y) in enumerate(places):
        column, row = int(x * width), int(y * height)
        if not (0 <= column < width and 0 <= row < height):
            continue
        rows = slice(max(row - HEAT_REACH, 0), row + HEAT_REACH + 1)
        columns = slice(max(column - HEAT_REACH, 0), column + HEAT_REACH + 1)
        weights = expit(heat[rows, columns, landmark])
        if weights.max() >= HEAT_SURE:
            total = weights.sum()
            moved[landmark] = (
                np.arange(width)[columns] @ weights.sum(0) / total / width,
                np.arange(height)[rows] @ weights.sum(1) / total / height,
            )
    return moved
