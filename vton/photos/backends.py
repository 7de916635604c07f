"""Networks that read photographs, by name, behind one small interface for each task.

    parser        `small` (comes with the package), `fashn`, `segformer`
    pose          `small`, `blaze`, `vitpose`
    densepose     `none`, `small`, `torchscript`
    garment mask  `auto` (white ground, then an even one), `network`

A backend is named NAME or NAME:WHERE. WHERE is a folder or file, or a hub id with an optional
@revision. All but the small ones need the extra `photo` or weights of their own, and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import numpy as np
from PIL import Image

from vton.config import ConfigError, nearest
from vton.data.sample import Category


@dataclass(frozen=True)
class Facts:
    """Where a network comes from, for `prepare.json`."""

    name: str
    source: str  # file, folder, or hub id with revision
    licence: str
    digest: str  # SHA-256 of its weights, "" where it has none


class Parser(Protocol):
    """Tells what every pixel of a person's picture shows."""

    facts: Facts

    def parse(
        self, picture: Image.Image, joints: np.ndarray, category: Category | None = None
    ) -> np.ndarray:
        """(H, W) uint8, labels of vton.data.labels, at the picture's size.

        joints: (18, 3) in [0, 1] with validity, for what a network does not tell apart. category:
        of the garment that must not be missed where it is uncertain; None for none
        """


class Pose(Protocol):
    """Finds people and their joints."""

    facts: Facts

    def people(self, photo: Image.Image) -> list[np.ndarray]:
        """(18, 3) of each person, COCO's joints: x and y in [0, 1] of the photo, and confidence."""


class Densepose(Protocol):
    """Tells DensePose's body parts."""

    facts: Facts

    def parts(self, picture: Image.Image) -> np.ndarray:
        """(H, W) uint8 part ids in 0..24, at the picture's size."""


class GarmentMask(Protocol):
    """Finds the garment in a picture of it."""

    facts: Facts

    def silhouette(self, picture: Image.Image) -> np.ndarray:
        """(H, W) bool. Raises PhotoError where the garment cannot be told from its ground."""


# Class of each backend, imported only when it is asked for.
BACKENDS: dict[str, dict[str, str]] = {
    "parser": {
        "small": "small:SmallLabels",
        "fashn": "segformer:Fashn",
        "segformer": "segformer:Segformer",
    },
    "pose": {"small": "small:SmallPose", "blaze": "blaze:Blaze", "vitpose": "vitpose:VitPose"},
    "densepose": {"small": "small:SmallParts", "torchscript": "torchscript:TorchScript"},
    "garment mask": {"auto": "grounds:Grounds", "network": "salient:Salient"},
}
NONE = "none"  # no DensePose


@dataclass(frozen=True)
class Networks:
    """The networks that a preparation uses. Each is anything with the interface of its task."""

    parser: Parser
    pose: Pose
    densepose: Densepose | None
    garment_mask: GarmentMask

    @classmethod
    def named(
        cls,
        parser: str = "small",
        pose: str = "small",
        densepose: str = NONE,
        garment_mask: str = "auto",
    ) -> Networks:
        """The backends of these names. Raises UserError: unknown name, missing weights or extra."""
        return cls(
            backend("parser", parser),
            backend("pose", pose),
            None if densepose == NONE else backend("densepose", densepose),
            backend("garment mask", garment_mask),
        )

    @property
    def facts(self) -> dict[str, Facts]:
        """Of every network, by its task."""
        used = {"parser": self.parser, "pose": self.pose, "garment mask": self.garment_mask}
        if self.densepose is not None:
            used["densepose"] = self.densepose
        return {task: network.facts for task, network in used.items()}

    @property
    def licences(self) -> list[str]:
        """A line for each network that comes with terms of its own."""
        lines = []
        for task, facts in self.facts.items():
            if facts.licence != OWN_LICENCE:
                lines.append(f"{task} {facts.name}: {facts.licence}")
        return lines


OWN_LICENCE = "Apache-2.0, as this project"


def backend(task: str, named: str):
    """The backend NAME or NAME:WHERE of a task. Raises UserError."""
    name, _, where = named.partition(":")
    known = BACKENDS[task]
    if name not in known:
        names = [*known, NONE] if task == "densepose" else list(known)
        raise ConfigError(f"{name}: no such {task} backend. {nearest(name, names)}")
    module, _, class_name = known[name].partition(":")
    make: Callable = getattr(import_module(f"vton.photos.{module}"), class_name)
    return make(where)
