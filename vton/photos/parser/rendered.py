"""The pictures that the small parser learns from: rendered persons, garments and empty grounds.

Persons are framed in many ways, from the whole body far away to the trunk alone, since
photographs are. Some pictures show two persons, some a garment without one, some neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vton.data import labels
from vton.data.pose import FROM_BODY_25
from vton.data.sample import CATEGORIES, JOINTS
from vton.data.synthetic.body import ASPECT, Camera
from vton.data.synthetic.catalogue import Catalogue, Scene
from vton.data.synthetic.parts import body_parts
from vton.data.synthetic.people import sample_camera
from vton.data.synthetic.render import Person, draw_person, draw_product

KINDS = {
    "viton_hd": 0.34,
    "dresscode": 0.20,
    "free": 0.27,
    "two": 0.07,
    "product": 0.09,
    "none": 0.03,
}
SAMPLES = 3  # points per pixel side; odd, so that labels are those of centres
ITEM_LABELS = {
    "top": labels.UPPER,
    "dress": labels.DRESS,
    "skirt": labels.SKIRT,
    "trousers": labels.PANTS,
}


@dataclass(frozen=True)
class Example:
    """A picture with its annotations. Of two persons both count.

    picture: (H, W, 3) uint8
    parse:   (H, W) uint8, labels of vton.data.labels
    parts:   (H, W) uint8, DensePose parts
    joints:  (persons, J, 3) float32, x and y in [0, 1], validity 0 or 1
    """

    picture: np.ndarray
    parse: np.ndarray
    parts: np.ndarray
    joints: np.ndarray


class Rendered:
    """Example number i of a seed; depends on nothing else. size: height, width."""

    def __init__(self, seed: int, count: int, size: tuple[int, int]):
        per_category = -(-count // len(CATEGORIES))
        self.seed = seed
        self.count = count
        self.size = size
        self.catalogue = Catalogue("dresscode", size, per_category, 2, seed)
        self.entries = self.catalogue.of("train")

    def example(self, index: int) -> Example:
        rng = np.random.default_rng((self.seed, index))
        # Neighbours in the order of entries share their category: spread.
        entry = self.entries[index * 7919 % len(self.entries)]
        scene = self.catalogue.scene(entry)
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        if kind == "product":
            return self._product(scene)
        if kind == "none":
            return self._empty(scene)
        if kind == "two":
            other = self.catalogue.scene(self.entries[int(rng.integers(len(self.entries)))])
            return self._two(scene, other, rng)
        camera = _free_camera(rng) if kind == "free" else sample_camera(rng, str(kind))
        return self._person(_with_camera(scene, camera))

    def _person(self, scene: Scene) -> Example:
        (drawing,) = draw_person(scene.person, [scene.outfit()], self.size, SAMPLES)
        parts, _ = body_parts(scene.person, self.size)
        joints = joints_of(scene.person)
        return Example(drawing.picture, drawing.parse, parts, joints[None])

    def _two(self, scene: Scene, other: Scene, rng: np.random.Generator) -> Example:
        """Two persons side by side, the second one in front."""
        scale = rng.uniform(0.16, 0.26)
        top = scale * rng.uniform(0.8, 1.3)
        apart = rng.uniform(0.17, 0.25)
        left = Camera(scale, ASPECT / 2 - apart, top)
        right = Camera(scale * rng.uniform(0.9, 1.1), ASPECT / 2 + apart, top)
        behind = self._person(_with_camera(scene, left))
        front = self._person(_with_camera(other, right))
        seen = front.parse > 0
        return Example(
            np.where(seen[..., None], front.picture, behind.picture),
            np.where(seen, front.parse, behind.parse),
            np.where(seen, front.parts, behind.parts),
            np.concatenate([behind.joints, front.joints]),
        )

    def _product(self, scene: Scene) -> Example:
        picture, silhouette = draw_product(scene.garment, self.size, SAMPLES)
        parse = np.where(silhouette, np.uint8(ITEM_LABELS[scene.garment.kind]), np.uint8(0))
        return Example(picture, parse, np.zeros_like(parse), np.zeros((1, JOINTS, 3), np.float32))

    def _empty(self, scene: Scene) -> Example:
        """The backdrop alone: the person stands far outside the picture."""
        return self._person(_with_camera(scene, Camera(0.3, 9.0, 9.0)))


def joints_of(person: Person) -> np.ndarray:
    """(J, 3) float32 joints as the sample's: x and y in [0, 1], validity 0 or 1."""
    points = person.camera.to_canvas(person.body.joints[FROM_BODY_25], 1, 1)
    inside = ((points > 0) & (points < 1)).all(1)
    return np.column_stack([np.where(inside[:, None], points, 0), inside]).astype(np.float32)


def _free_camera(rng: np.random.Generator) -> Camera:
    """From the whole body at a distance to the trunk alone, anywhere in the picture."""
    scale = float(np.exp(rng.uniform(np.log(0.15), np.log(0.5))))
    highest = 0.7 * scale  # of the neck: the head is in the picture
    top = rng.uniform(highest, max(highest + 0.08, 0.95 - 2.9 * scale))
    return Camera(scale, ASPECT / 2 + rng.uniform(-0.16, 0.16), top)


def _with_camera(scene: Scene, camera: Camera) -> Scene:
    return replace(scene, person=replace(scene.person, camera=camera))
