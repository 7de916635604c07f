"""The backends that come with the package: labels, people and body parts from the small parser.

For rendered pictures and simple studio photographs of one person; see `docs/photos.md` for figures.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from vton.data import labels, pose
from vton.data.boxes import bounding_box
from vton.data.sample import Category
from vton.files import file_digest
from vton.photos.backends import OWN_LICENCE, Facts
from vton.photos.framing import Frame, centred
from vton.photos.parser import network as networks
from vton.photos.parser.network import HEIGHT, SHIPPED, WIDTH, Reading, SmallParser, read

HEADS = (labels.FACE, labels.HAIR, labels.SUNGLASSES, labels.HAT)
HEAD = (pose.NOSE, 14, 15, 16, 17)
SHOULDERS = (pose.RIGHT_SHOULDER, pose.LEFT_SHOULDER)
HIPS = (pose.RIGHT_HIP, pose.LEFT_HIP)
CERTAIN = 0.3  # probability from which a joint counts as found
A_PERSON = 0.3  # `likelihood` from which there is somebody
A_HEAD = 0.2  # size of a head, relative to the largest one, from which it is another person's
A_BODY = 0.12  # likewise of a body
SURE = 0.8  # `likelihood` from which other ways to hold the photograph are not tried
TURNED = 1.3  # how much likelier a person has to be in the turned photograph
FAVOUR = 6.0  # how much likelier the garment to replace is taken to be: none of it may stay
CHEST = (0.1, 0.6)  # of the way from shoulders to hips: where a top or a dress is told
LOWEST_HEM, HIGHEST_BAND = 1.35, 0.55  # of tops and of trousers, on that way
WAIST = 0.9  # of that way
MARGIN = 0.08  # around a found person in the picture that is read again, of its height


class _Small:
    """What the three backends share: the weights, and what is recorded of them."""

    def __init__(self, where: str = ""):
        self.path = Path(where) if where else SHIPPED

    @cached_property
    def network(self) -> SmallParser:
        return networks.shipped() if self.path == SHIPPED else networks.load(self.path)

    @cached_property
    def facts(self) -> Facts:
        source = "vton" if self.path == SHIPPED else str(self.path)
        return Facts("small", source, OWN_LICENCE, file_digest(self.path))

    def read(self, picture: Image.Image) -> Reading:
        (reading,) = read(self.network, [picture])
        return reading


class SmallLabels(_Small):
    """Parser."""

    def parse(
        self, picture: Image.Image, joints: np.ndarray, category: Category | None = None
    ) -> np.ndarray:
        maps = one_garment_each(self.read(picture).labels, joints)
        if category is not None:
            rows = _rows_of(category, joints, maps.shape[1])
            maps[list(labels.GARMENT_LABELS[category]), rows] += np.log(FAVOUR)
        return likeliest(maps, picture)


class SmallParts(_Small):
    """DensePose's parts, as the renderer draws them: a flat stand-in for its charts."""

    def parts(self, picture: Image.Image) -> np.ndarray:
        return likeliest(self.read(picture).parts, picture)


class SmallPose(_Small):
    """People and joints."""

    def people(self, photo: Image.Image) -> list[np.ndarray]:
        frame = centred(WIDTH / HEIGHT, (0, 0, *photo.size))
        whole = frame.cut(photo, (HEIGHT, WIDTH))
        reading = self.read(whole)
        turns = 0
        best = likelihood(reading)
        if best < SURE:
            for other in (1, 2, 3):
                turned_photo = turned(photo, other)
                own = centred(WIDTH / HEIGHT, (0, 0, *turned_photo.size))
                candidate = self.read(own.cut(turned_photo, (HEIGHT, WIDTH)))
                found = likelihood(candidate)
                if found > max(A_PERSON, TURNED * best):
                    turns, best, reading, frame = other, found, candidate, own
        if best < A_PERSON:
            return []
        photo = turned(photo, turns)
        people = []
        regions = bodies(reading.labels.argmax(0).numpy())
        for region in regions:
            closer = _around(region, frame)
            if not closer.shows(photo.size):  # seen in the padding around a narrow photo
                continue
            joints = closer.to_photo(
                self.read(closer.cut(photo, (HEIGHT, WIDTH))).joints, photo.size
            )
            people.append(turned_back(joints, turns))
        if not regions:  # joints without a body to see: a part of somebody
            people = [turned_back(frame.to_photo(reading.joints, photo.size), turns)]
        return people


def one_garment_each(log_probabilities: Tensor, joints: np.ndarray) -> Tensor:
    """Log-probabilities (22, h, w) of labels with one garment at the chest, and one below it.

    Pixel by pixel a top and a dress, or trousers and a skirt, are easily taken for each other. Of
    a whole person it is clear which of them there is; the other one's probability goes to it, or
    below a top to what is likelier there.
    """
    probabilities = log_probabilities.exp()
    chest = _rows(probabilities, joints, CHEST)
    top, dress = (chest[label].sum() for label in (labels.UPPER, labels.DRESS))
    if dress > top:
        probabilities = _moved_to(probabilities, labels.DRESS, (labels.UPPER, labels.SKIRT))
        return probabilities.clamp_min(1e-6).log()
    trousers, skirt = (probabilities[label].sum() for label in (labels.PANTS, labels.SKIRT))
    below, other = labels.PANTS, labels.SKIRT
    if skirt > trousers:
        below, other = other, below
    probabilities = _moved_to(probabilities, below, (other,))
    # A dress at the chest is the top, lower down it is what is worn there.
    rows = torch.arange(probabilities.shape[1]) / probabilities.shape[1]
    above = (rows < _waist(joints)).float()[:, None]
    probabilities[labels.UPPER] += probabilities[labels.DRESS] * above
    probabilities[below] += probabilities[labels.DRESS] * (1 - above)
    probabilities[labels.DRESS] = 0
    return probabilities.clamp_min(1e-6).log()


def _rows_of(category: Category, joints: np.ndarray, height: int) -> slice:
    """The rows in which a garment of the category may lie: a top not far below the hips."""
    shoulders, hips = _heights(joints)
    if category == "dresses" or shoulders is None or hips is None:
        return slice(0, height)
    torso = hips - shoulders
    if category == "upper_body":
        return slice(0, round((shoulders + LOWEST_HEM * torso) * height))
    return slice(max(0, round((shoulders + HIGHEST_BAND * torso) * height)), height)


def _moved_to(probabilities: Tensor, label: int, others: tuple[int, ...]) -> Tensor:
    """With the probability of other labels given to one."""
    moved = probabilities.clone()
    moved[label] += moved[list(others)].sum(0)
    moved[list(others)] = 0
    return moved


def _rows(maps: Tensor, joints: np.ndarray, share: tuple[float, float]) -> Tensor:
    """The rows of (channels, h, w) maps between two shares of the way from shoulders to hips.

    All of them where the joints do not say where that is.
    """
    shoulders, hips = _heights(joints)
    if shoulders is None or hips is None or hips <= shoulders:
        return maps
    height = maps.shape[1]
    first, last = (round((shoulders + part * (hips - shoulders)) * height) for part in share)
    rows = maps[:, max(first, 0) : max(last, first + 1)]
    return rows if rows.shape[1] else maps


def _waist(joints: np.ndarray) -> float:
    """How far down the waist is, as a share of the picture's height; 0 where nothing says it."""
    shoulders, hips = _heights(joints)
    if hips is None:
        return 0.0
    return hips if shoulders is None else shoulders + WAIST * (hips - shoulders)


def _heights(joints: np.ndarray) -> tuple[float | None, float | None]:
    """Of shoulders and hips, in shares of the picture's height."""
    found = []
    for pair in ((pose.RIGHT_SHOULDER, pose.LEFT_SHOULDER), (pose.RIGHT_HIP, pose.LEFT_HIP)):
        valid = joints[list(pair)]
        valid = valid[valid[:, 2] > 0, 1]
        found.append(float(valid.mean()) if len(valid) else None)
    return found[0], found[1]


def likelihood(reading: Reading) -> float:
    """How likely the picture shows a person upright: the mean of head, neck, shoulders and hips.

    Joints in the wrong order, hips above the neck, count nothing.
    """
    confidence = reading.joints[:, 2]
    shares = [confidence[list(joints)].max() for joints in (HEAD, (pose.NECK,), SHOULDERS, HIPS)]
    neck, hips = reading.joints[pose.NECK], reading.joints[list(HIPS)]
    upside_down = hips[:, 2].max() > CERTAIN and hips[:, 1].mean() < neck[1]
    return 0.0 if upside_down else float(np.mean(shares))


def likeliest(log_probabilities: Tensor, picture: Image.Image) -> np.ndarray:
    """(channels, h, w) to the likeliest channel (H, W) uint8 at the picture's size."""
    size = (picture.height, picture.width)
    height = log_probabilities.shape[1]
    # Channels that no pixel comes near to cannot win between them.
    near = (log_probabilities.amax((1, 2)) > np.log(0.2)).nonzero()[:, 0]
    chosen = log_probabilities[near][None]
    enlarged = F.interpolate(chosen, size, mode="bilinear" if height <= size[0] else "area")
    return near[enlarged[0].argmax(0)].to(torch.uint8).numpy()


def bodies(parse: np.ndarray) -> list[np.ndarray]:
    """(H, W) bool of each person in a parse map.

    Separate bodies with a head each, and bodies that touch, divided between their heads. A single
    body counts without a head too.
    """
    regions, count = ndimage.label(parse > 0, np.ones((3, 3)))
    if not count:
        return []
    areas = np.bincount(regions.ravel())[1:]
    heads, head_count = ndimage.label(_closed(np.isin(parse, HEADS)), np.ones((3, 3)))
    places = []
    for head in range(1, head_count + 1):
        where = heads == head
        if (parse[where] == labels.FACE).any():
            places.append((int(where.sum()), where))
    largest = max((area for area, _ in places), default=0)
    places = [where for area, where in places if area >= A_HEAD * largest]
    found = []
    for region in np.argsort(-areas) + 1:
        if areas[region - 1] < A_BODY * areas.max():
            break
        body = regions == region
        own = [where for where in places if (where & body).any()]
        if len(own) == 1 or (not own and not found and not places):
            found.append(body)
        elif own:
            centres = [np.flatnonzero(where.any(0)).mean() for where in own]
            columns = np.arange(parse.shape[1])
            nearest = np.argmin([np.abs(columns - centre) for centre in centres], 0)
            found += [body & (nearest == place) for place in range(len(own))]
    return found


def _closed(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_closing(mask, np.ones((3, 3)))


def _around(region: np.ndarray, frame: Frame) -> Frame:
    """A frame around a region of what another frame shows, with a margin."""
    box = bounding_box(region)
    height, width = region.shape
    margin = MARGIN * (box.bottom - box.top + 1)
    left = frame.left + (box.left - margin) / width * frame.width
    right = frame.left + (box.right + 1 + margin) / width * frame.width
    top = frame.top + (box.top - margin) / height * frame.height
    bottom = frame.top + (box.bottom + 1 + margin) / height * frame.height
    return centred(WIDTH / HEIGHT, (left, top, right, bottom))


def turned(photo: Image.Image, turns: int) -> Image.Image:
    """Turned anticlockwise by so many quarters."""
    return photo.rotate(90 * turns, expand=True) if turns else photo


def turned_back(joints: np.ndarray, turns: int) -> np.ndarray:
    """Joints of a photograph that `turned` turned, as of the photograph itself."""
    joints = joints.copy()
    for _ in range(turns):  # a quarter clockwise: up becomes right
        joints[:, :2] = np.column_stack([1 - joints[:, 1], joints[:, 0]])
    return joints
