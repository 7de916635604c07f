"""Which persons and garments a rendered data set holds, who wears what, and who is paired with
whom.

Everything follows from (seed, split, category, position): the test set does not depend on the
number of training pairs, and no file depends on the order or the process in which it is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from vton.data.synthetic import body, garment, shading
from vton.data.synthetic.garment import Garment
from vton.data.synthetic.render import Person

CATEGORIES = ("upper_body", "lower_body", "dresses")
SPLITS = ("train", "test")
LAYOUTS = ("viton_hd", "dresscode")
_PERSON, _GARMENT, _COMPANION, _PAIRS, _ANNOTATION, _LISTS = range(6)  # streams of random numbers
_SCALE = {
    "viton_hd": 0.385,
    "dresscode": 0.295,
}  # torso length over picture height, mean of body.camera
_FINEST_PX, _AT_HEIGHT = 4.5, 128  # smallest stripe or dot, so that textures survive small pictures

Layout = Literal["viton_hd", "dresscode"]


@dataclass(frozen=True)
class Defects:
    """Deliberate imperfections, each one of the real data sets' or of files people bring. Off by
    default, except for JPEG, which both data sets use. Counts take the first samples of the test
    split (of each category).
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
        return (other or self.garment, *self.companions)


@dataclass(frozen=True)
class Catalogue:
    """All entries of one rendered data set. `train` and `test` count pairs, for DressCode per
    category.
    """

    layout: Layout
    size: tuple[int, int]  # height, width
    train: int
    test: int
    seed: int
    defects: Defects = field(default_factory=Defects)

    @property
    def categories(self) -> tuple[str, ...]:
        return CATEGORIES[:1] if self.layout == "viton_hd" else CATEGORIES

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Training before test, and within a split upper, lower, dresses, as DressCode numbers
        them.
        """
        name = "{:05d}_00" if self.layout == "viton_hd" else "{:06d}"
        found = []
        for split, count in zip(SPLITS, (self.train, self.test), strict=True):
            for category in self.categories:
                found += [
                    Entry(name.format(len(found) + i), split, category, i) for i in range(count)
                ]
        return tuple(found)

    def of(self, split: str, category: str | None = None) -> list[Entry]:
        return [
            entry
            for entry in self.entries
            if entry.split == split and category in (None, entry.category)
        ]

    def generator(
        self, stream: int, split: str, category: str, position: int = 0
    ) -> np.random.Generator:
        key = (
            self.seed,
            LAYOUTS.index(self.layout),
            SPLITS.index(split),
            CATEGORIES.index(category),
            position,
            stream,
        )
        return np.random.default_rng(key)

    def annotation_generator(self, entry: Entry) -> np.random.Generator:
        return self.generator(_ANNOTATION, entry.split, entry.category, entry.position)

    def list_generator(self, split: str, category: str) -> np.random.Generator:
        return self.generator(_LISTS, split, category)

    def scene(self, entry: Entry) -> Scene:
        rng = self.generator(_PERSON, entry.split, entry.category, entry.position)
        person = Person(
            body=body.sample(rng),
            camera=body.camera(rng, self.layout),
            lighting=shading.sample_lighting(rng),
            backdrop=shading.sample_backdrop(rng),
            # A top over the waistband would change its outline with the trousers or skirt to try
            # on.
            tucked=bool(rng.random() < 0.25) or entry.category == "lower_body",
        )
        rng = self.generator(_COMPANION, entry.split, entry.category, entry.position)
        companions = {
            "upper_body": (garment.sample_lower,),
            "lower_body": (garment.sample_top,),
            "dresses": (),
        }
        options = self._garment_options(entry)
        return Scene(
            person,
            self.garment(entry),
            tuple(sample(rng, **options) for sample in companions[entry.category]),
        )

    def garment(self, entry: Entry) -> Garment:
        rng = self.generator(_GARMENT, entry.split, entry.category, entry.position)
        sample = {
            "upper_body": garment.sample_top,
            "lower_body": garment.sample_lower,
            "dresses": garment.sample_dress,
        }[entry.category]
        return sample(rng, **self._garment_options(entry))

    def _garment_options(self, entry: Entry) -> dict:
        return {
            "feature": _FINEST_PX / _AT_HEIGHT / _SCALE[self.layout],
            "held_out": entry.split == "test",
        }

    @cached_property
    def _others(self) -> dict[str, Entry]:
        """For every id the entry whose garment the unpaired order takes: one cycle through each
        category.
        """
        found = {}
        for split in SPLITS:
            for category in self.categories:
                group = self.of(split, category)
                cycle = self.generator(_PAIRS, split, category).permutation(len(group))
                found |= {
                    group[a].id: group[b] for a, b in zip(cycle, np.roll(cycle, -1), strict=True)
                }
                if split == "test":
                    found |= {entry.id: entry for entry in group[: self.defects.paired_in_unpaired]}
        return found

    def other(self, entry: Entry) -> Entry:
        """Whose garment `entry` tries on in unpaired order. Without defects never its own, given
        two entries.
        """
        return self._others[entry.id]
