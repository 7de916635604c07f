"""Prepared photographs in memory, as a data set's folder: what reads a folder reads them too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vton.config import DataConfig
from vton.data.folder import Folder, PairFiles, Place, Split
from vton.data.images import Origin
from vton.data.pairs import Pair
from vton.data.sample import Category, DataError, Order
from vton.data.source import Source
from vton.photos.garment import PreparedGarment
from vton.photos.person import PreparedPerson

IN_MEMORY = Path("photo")  # stands for a file of it


class PreparedFolder(Folder):
    """One person and one garment, as an unpaired test pair.

    It always has the same ids, so that what is drawn depends on its seed alone.
    """

    crosschecked = False  # people may paint their masks where they like

    def __init__(
        self, person: PreparedPerson, garment: PreparedGarment, caption: str, config: DataConfig
    ):
        self.person = person
        self.garment = garment
        self.caption = caption
        self.root = IN_MEMORY
        self.config = config
        self.dataset = "photo"
        self.categories = (person.category,)
        names = ("person", "garment", "garment_mask", "parse", "keypoints", "agnostic_mask")
        self.parts = dict.fromkeys(names)
        if person.densepose is not None:
            self.parts["densepose"] = None

    def pairs(self, split: Split, order: Order) -> list[Pair]:
        return [Pair("person", "garment", self.person.category)]

    def lacks(self, split: Split, order: Order) -> str:
        return "" if (split, order) == ("test", "unpaired") else "photographs are test pairs only"

    def base(self, split: Split, category: Category) -> Source:
        return self.root

    def place(self, part: str, split: Split, order: Order) -> Place | None:
        return Place("photo", part) if part in self.parts else None

    def places(self, part: str, order: Order) -> tuple[Place, ...]:
        return (Place("photo", part),)

    def files(self, split: Split, order: Order, pair: Pair) -> PairFiles:
        return InMemory(self, split, order, pair)

    def read_labels(self, files: PairFiles, part: str, size: tuple[int, int] | None) -> np.ndarray:
        return self.person.parse

    def read_joints(self, path: Source, origin: Origin) -> np.ndarray:
        return self.person.joints

    def read_densepose(
        self, path: Source, origin: Origin, size: tuple[int, int] | None
    ) -> np.ndarray:
        return self.person.densepose

    def caption_file(self, split: Split, category: Category) -> Source:
        return self.root

    def annotation(self, split: Split, pair: Pair) -> str | None:
        return self.caption or None


@dataclass(frozen=True)
class InMemory(PairFiles):
    """The parts of the pair."""

    folder: PreparedFolder

    def path(self, part: str) -> Source | None:
        return IN_MEMORY if part in self.folder.parts else None

    def photo(self, part: str, size: tuple[int, int] | None = None) -> Image.Image | None:
        pictures = {
            "person": self.folder.person.picture,
            "garment": self.folder.garment.picture,
        }
        return pictures.get(part)

    def mask(self, part: str, size: tuple[int, int] | None) -> np.ndarray | None:
        masks = {
            "agnostic_mask": self.folder.person.mask,
            "garment_mask": self.folder.garment.mask,
        }
        return masks.get(part)

    def origin(self, part: str) -> Origin:
        return Origin("photo", "test", "person")

    def densepose(self, size: tuple[int, int] | None) -> np.ndarray | None:
        if self.folder.person.densepose is None:
            raise DataError("photo: there are no body parts.")
        return self.folder.person.densepose
