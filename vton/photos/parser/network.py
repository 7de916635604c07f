"""The small parser: one network, three readings of a picture of a person.

Labels of `vton.data.labels`, DensePose body parts, and the 18 joints of COCO as maps of where each
may lie. An encoder of four levels, a decoder that adds their skips, and three heads. Under a
million weights, stored in half precision.

Legend: B batch, H W height and width of the picture it reads (128 x 96), J = 18 joints.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vton.data import densepose, labels
from vton.data.sample import JOINTS
from vton.errors import UserError
from vton.files import replacing

HEIGHT, WIDTH = 128, 96
SHIPPED = Path(__file__).with_name("parser.safetensors")
WIDTHS = (32, 64, 96, 128)  # channels of the levels, at 1/2, 1/4, 1/8 and 1/16 of the picture
DECODED = 48  # channels that the heads read, at 1/2
STRIDE = 2  # pixels of the picture per cell of a joint's map
REACH = 2  # cells around the likeliest one over which a joint's place is averaged


@dataclass(frozen=True)
class Reading:
    """What the network says of one picture.

    labels: (22, h, w) float, log-probabilities
    parts:  (25, h, w) float, log-probabilities of DensePose's parts
    joints: (J, 3) float, x and y in [0, 1] of the picture's width and height, and confidence 0 to 1
    """

    labels: Tensor
    parts: Tensor
    joints: np.ndarray


class SmallParser(nn.Module):
    """(B, 3, 128, 96) in [-1, 1] to logits of labels, parts and joints."""

    def __init__(self):
        super().__init__()
        a, b, c, d = WIDTHS
        self.stem = Unit(3, a, stride=2)
        self.level_1 = Residual(a)
        self.level_2 = nn.Sequential(Unit(a, b, stride=2), Residual(b), Residual(b))
        self.level_3 = nn.Sequential(Unit(b, c, stride=2), Residual(c), Wide(c))
        self.level_4 = nn.Sequential(Unit(c, d, stride=2), Wide(d), Wide(d), Wide(d))
        self.up_3 = Up(d, c, c)
        self.mix_3 = Wide(c)
        self.up_2 = Up(c, b, b)
        self.mix_2 = Residual(b)
        self.up_1 = Up(b, a, DECODED)
        self.mix_1 = Unit(DECODED, DECODED)
        self.labels = nn.Conv2d(DECODED, STRIDE**2 * labels.COUNT, 1)
        self.parts = nn.Conv2d(DECODED, densepose.COUNT, 1)
        self.places = nn.Conv2d(DECODED, JOINTS, 1)
        self.absent = nn.Linear(d, JOINTS)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of labels (B, 22, H, W), of parts (B, 25, H/2, W/2) and of joints.

        Those of joints are (B, J, 1 + H/2 * W/2): that it lies outside, then every cell.
        """
        x1 = self.level_1(self.stem(picture))
        x2 = self.level_2(x1)
        x3 = self.level_3(x2)
        x4 = self.level_4(x3)
        x = self.mix_3(self.up_3(x4, x3))
        x = self.mix_2(self.up_2(x, x2))
        x = self.mix_1(self.up_1(x, x1))
        label_maps = F.pixel_shuffle(self.labels(x), STRIDE)
        absent = self.absent(x4.mean((2, 3)))
        places = torch.cat([absent[..., None], self.places(x).flatten(2)], 2)
        return label_maps, self.parts(x), places


class Unit(nn.Sequential):
    """Convolution, normalisation, activation."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.first = Unit(width, width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


class Wide(nn.Module):
    """A 7 x 7 look around, per channel, then a small network per pixel (as ConvNeXt's blocks)."""

    def __init__(self, width: int):
        super().__init__()
        self.around = nn.Conv2d(width, width, 7, 1, 3, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.ReLU(inplace=True), nn.Conv2d(2 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(self.around(x)))


class Up(nn.Module):
    """The coarser level enlarged and the finer one, brought to one width and added."""

    def __init__(self, coarse: int, fine: int, outputs: int):
        super().__init__()
        self.coarse = nn.Conv2d(coarse, outputs, 1, bias=False)
        self.fine = nn.Conv2d(fine, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        enlarged = F.interpolate(self.coarse(coarse), scale_factor=2, mode="bilinear")
        return F.relu(self.norm(enlarged + self.fine(fine)))


@torch.no_grad()
def read(network: SmallParser, pictures: list[Image.Image]) -> list[Reading]:
    """What the network says of RGB pictures of the shape 3:4, at its own size.

    Each picture is read together with its mirror image, and the two readings are averaged.
    """
    arrays = [np.asarray(picture.resize((WIDTH, HEIGHT), REDUCED)) for picture in pictures]
    batch = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
    of_both = network(torch.cat([batch, batch.flip(3)]))
    straight, mirrored = zip(*(part.chunk(2) for part in of_both), strict=True)
    label_maps = straight[0].log_softmax(1).exp() + _mirrored(mirrored[0], labels.MIRROR)
    part_maps = straight[1].log_softmax(1).exp() + _mirrored(mirrored[1], densepose.MIRROR)
    places = _probabilities(straight[2]) + _mirrored_places(mirrored[2])
    readings = []
    for of_labels, of_parts, of_joints in zip(label_maps, part_maps, places, strict=True):
        log_labels = (of_labels / 2).clamp_min(1e-6).log()
        log_parts = (of_parts / 2).clamp_min(1e-6).log()
        readings.append(Reading(log_labels, log_parts, _joints(of_joints.numpy() / 2)))
    return readings


REDUCED = Image.Resampling.BICUBIC  # which antialiases, as in training


def _mirrored(logits: Tensor, mirror: np.ndarray) -> Tensor:
    """Probabilities of a mirrored picture, as of the picture itself."""
    return logits.softmax(1)[:, torch.from_numpy(mirror).long()].flip(3)


def _probabilities(places: Tensor) -> Tensor:
    """(B, J, H/2, W/2): how likely each joint lies in each cell."""
    cells = places.softmax(2)[..., 1:]
    return cells.unflatten(2, (HEIGHT // STRIDE, WIDTH // STRIDE))


def _mirrored_places(places: Tensor) -> Tensor:
    from vton.data.pose import MIRROR

    return _probabilities(places)[:, torch.from_numpy(MIRROR)].flip(3)


def _joints(cells: np.ndarray) -> np.ndarray:
    """(J, h, w) probabilities to (J, 3): the mean place around the likeliest cell, and its share.

    The likeliest cell is that with the most probability around it, so that two half peaks side by
    side count as one.
    """
    joints = np.zeros((len(cells), 3), np.float32)
    height, width = cells.shape[1:]
    for joint, cell in enumerate(cells):
        row, column = np.unravel_index(np.argmax(_around(cell)), cell.shape)
        rows = slice(max(row - REACH, 0), row + REACH + 1)
        columns = slice(max(column - REACH, 0), column + REACH + 1)
        window = cell[rows, columns]
        share = window.sum()
        y = np.arange(height)[rows] @ window.sum(1) / share
        x = np.arange(width)[columns] @ window.sum(0) / share
        joints[joint] = (x + 0.5) / width, (y + 0.5) / height, share
    return joints


def _around(cell: np.ndarray) -> np.ndarray:
    """Sums over 3 x 3 cells."""
    padded = np.pad(cell, 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def save(network: SmallParser, path: Path, facts: dict[str, object]) -> None:
    """Write the weights in half precision, with the facts of their training as metadata."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensors[name] = tensor.half().contiguous()
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"training": json.dumps(facts, sort_keys=True)})


def load(path: Path) -> SmallParser:
    """The network of a file that `save` wrote. Raises UserError."""
    network = SmallParser()
    expected = network.state_dict()
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"{path} is no file of the small parser: {error}.") from None
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = tensor
        elif name not in tensors or tensors[name].shape != tensor.shape:
            raise UserError(
                f"{path} is no file of the small parser: {name} is missing or of another shape. "
                "Train it again with `vton prepare --train FILE`."
            )
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def facts(path: Path = SHIPPED) -> dict[str, object]:
    """How a file's weights were trained: seed, steps, pictures, commit of the renderer."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["training"])


@cache
def shipped() -> SmallParser:
    """The network that comes with the package."""
    return load(SHIPPED)
