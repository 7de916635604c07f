"""What a rendered data set holds: persons and garments, who wears what, and the unpaired pairs.

Everything follows from (seed, split, category, position): the test set does not depend on the
number of training pairs, and no file depends on the order or the process in which it is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from vton.data.sample import CATEGORIES
from vton.data.synthetic import garment, people, shading
from vton.data.synthetic.garment import Garment
from vton.data.synthetic.render import Person

SPLITS = ("train", "test")
LAYOUTS = ("viton_hd", "dresscode")
_PERSON, _GARMENT, _COMPANION, _PAIRS, _ANNOTATION, _LISTS = range(6)  # streams of random numbers

# Torso length over picture height, the mean of people.sample_camera.
_SCALE = {"viton_hd": 0.385, "dresscode": 0.295}
_FINEST_PX, _AT_HEIGHT = 4.5, 128  # smallest stripe or dot, so that textures survive small pictures

# How the garment to try on is drawn, and what else is worn.
_GARMENT_SAMPLERS = {
    "upper_body": garment.sample_top,
    "lower_body": garment.sample_lower,
    "dresses": garment.sample_dress,
}
_COMPANION_SAMPLERS = {"upper_body": garment.sample_lower, "lower_body": garment.sample_top}

Layout = Literal["viton_hd", "dresscode"]


@dataclass(frozen=True)
class Defects:
    """Deliberate imperfections, each one of the real data sets' or of files people bring.

    Off by default, except for JPEG, which both data sets use. Counts take the first samples of the
    test split (of each category).
    """

    jpeg_quality: int = 95
    empty_people: int = 0  # VITON-HD: keypoint files in which nobody was found
    missing_joints: float = 0.0  # probability that an elbow or wrist was not found, all splits
    untagged: int = 0  # garments without tags or caption
    gray_palette: bool = False  # parse maps saved as plain gray pictures
    smooth_parse: bool = False  # parse edges smoothed as VITON-HD's: not pixel accurate
    swapped_sides: int = 0  # parse maps whose left and right arms and legs are exchanged
    skirt_as_pants: bool = False  # every skirt labelled trousers
    paired_in_unpaired: int = 0  # lines of the unpaired list that are paired after all
    no_agnostic: bool = False  # older archives: no agnostic mask, picture and parse folders
    old_names: bool = False  # VITON-HD's first generation of folder names
    missing_file: str = ""  # this file, named relative to the root, is left out


@dataclass(frozen=True)
class Entry:
    """One person with the garment worn, under the id both have."""

    id: str  # five digits and _00 (VITON-HD) or six digits (DressCode)
    split: str
    category: str
    position: int  # within split and category


@dataclass(frozen=True)
class Scene:
    """What an entry shows."""

    person: Person
    garment: Garment
    companions: tuple[Garment, ...]  # what else is worn

    def outfit(self, other: Garment | None = None) -> tuple[Garment, ...]:
        """All that is worn, the garment to try on first; with `other` in its place."""
        return (other or self.garment, *self.companions)


@dataclass(frozen=True)
class Catalogue:
    """All entries of one rendered data set.

    `train` and `test` count pairs, for DressCode per category.
    """

    layout: Layout
    size: tuple[int, int]  # height, width
    train: int
    test: int
    seed: int
    defects: Defects = field(default_factory=Defects)
    other_clothes: bool = False  # also a picture of every person in the unpaired garment

    @property
    def categories(self) -> tuple[str, ...]:
        return CATEGORIES[:1] if self.layout == "viton_hd" else CATEGORIES

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Training before test, and within a split by category, as DressCode numbers them."""
        name = "{:05d}_00" if self.layout == "viton_hd" else "{:06d}"
        entries: list[Entry] = []
        for split, count in (("train", self.train), ("test", self.test)):
            for category in self.categories:
                for position in range(count):
                    entries.append(Entry(name.format(len(entries)), split, category, position))
        return tuple(entries)

    def of(self, split: str, category: str | None = None) -> list[Entry]:
        """The entries of a split, of one category or of all."""
        entries = [entry for entry in self.entries if entry.split == split]
        if category is None:
            return entries
        return [entry for entry in entries if entry.category == category]

    def scene(self, entry: Entry) -> Scene:
        rng = self._generator(_PERSON, entry.split, entry.category, entry.position)
        person = Person(
            body=people.sample_body(rng),
            camera=people.sample_camera(rng, self.layout),
            lighting=shading.sample_lighting(rng),
            backdrop=shading.sample_backdrop(rng),
            # A top over the waistband would change its outline with the trousers or skirt to try
            # on.
            tucked=bool(rng.random() < 0.25) or entry.category == "lower_body",
        )
        companions = ()
        if entry.category in _COMPANION_SAMPLERS:
            rng = self._generator(_COMPANION, entry.split, entry.category, entry.position)
            sample = _COMPANION_SAMPLERS[entry.category]
            companions = (sample(rng, **self._garment_options(entry)),)
        return Scene(person, self.garment(entry), companions)

    def garment(self, entry: Entry) -> Garment:
        rng = self._generator(_GARMENT, entry.split, entry.category, entry.position)
        sample = _GARMENT_SAMPLERS[entry.category]
        return sample(rng, **self._garment_options(entry))

    def other(self, entry: Entry) -> Entry:
        """The entry whose garment `entry` tries on in unpaired order.

        Without defects, and with at least two entries, it is never `entry` itself.
        """
        return self._others[entry.id]

    def annotation_generator(self, entry: Entry) -> np.random.Generator:
        return self._generator(_ANNOTATION, entry.split, entry.category, entry.position)

    def list_generator(self, split: str, category: str) -> np.random.Generator:
        return self._generator(_LISTS, split, category)

    def _generator(
        self, stream: int, split: str, category: str, position: int = 0
    ) -> np.random.Generator:
        layout_number = LAYOUTS.index(self.layout)
        split_number = SPLITS.index(split)
        category_number = CATEGORIES.index(category)
        return np.random.default_rng(
            (self.seed, layout_number, split_number, category_number, position, stream)
        )

    def _garment_options(self, entry: Entry) -> dict:
        return {
            "feature": _FINEST_PX / _AT_HEIGHT / _SCALE[self.layout],
            "held_out": entry.split == "test",
        }

    @cached_property
    def _others(self) -> dict[str, Entry]:
        """For every id the entry whose garment the unpaired order takes.

        One cycle through each category.
        """
        others: dict[str, Entry] = {}
        for split in SPLITS:
            for category in self.categories:
                group = self.of(split, category)
                cycle = self._generator(_PAIRS, split, category).permutation(len(group))
                for place, following in zip(cycle, np.roll(cycle, -1), strict=True):
                    others[group[place].id] = group[following]
                if split == "test":
                    for entry in group[: self.defects.paired_in_unpaired]:
                        others[entry.id] = entry
        return others
