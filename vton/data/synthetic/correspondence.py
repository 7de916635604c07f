"""Where in the in-shop picture each pixel of a worn garment comes from: what only a renderer knows.

Person and product picture are drawn from the same cloth coordinates. A pixel of the person is
looked up among the product picture's points of the same part of the garment: trunk, a sleeve, a
trouser leg. Nothing is stored for it: a rendered folder says what it was rendered from.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from vton.data.synthetic import shading
from vton.data.synthetic.catalogue import Catalogue, Defects, Entry
from vton.data.synthetic.colours import cloth_coordinates
from vton.data.synthetic.garment import Fitted, Garment
from vton.data.synthetic.head import HeadMap
from vton.data.synthetic.layers import (
    LOWER_LAYERS,
    UPPER_LAYERS,
    Layer,
    person_layers,
    product_layers,
)
from vton.data.synthetic.maps import BodyMaps, Grid
from vton.data.synthetic.render import Person, fit, product_body, product_camera
from vton.data.synthetic.writing import RENDERER_VERSION, STAMP

# Cloth further than this from any point of the product picture is not to be seen there: a part of
# it that an arm hides, or that a turned body shows. Torso lengths, about 1.5 px of 128.
HIDDEN = 0.03
POINTS = 600  # of the product picture over its height, at least


class Correspondence:
    """The true places of a rendered folder's pairs."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        self.entries = {entry.id: entry for entry in catalogue.entries}
        self.product_points = lru_cache(maxsize=256)(self._product_points)

    @classmethod
    def of(cls, root: Path | str) -> Correspondence | None:
        """That of a data set's folder; None where it was not rendered, or by another version."""
        try:
            stamp = json.loads((Path(root) / STAMP).read_text(encoding="utf-8"))
            if stamp.pop("renderer") != RENDERER_VERSION:
                return None
            size, defects = tuple(stamp.pop("size")), Defects(**stamp.pop("defects"))
            return cls(Catalogue(size=size, defects=defects, **stamp))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def places(self, person_id: str, garment_id: str) -> np.ndarray:
        """(H, W, 2) float32: x and y, in [0, 1] of the product picture's width and height, of what
        each pixel of the person in this garment shows of it.

        NaN where the person does not show the garment, or a part that the product picture hides.
        """
        entry, worn = self.entry(person_id), self.entry(garment_id)
        scene = self.catalogue.scene(entry)
        outfit = scene.outfit(None if worn.id == entry.id else self.catalogue.garment(worn))
        of_product = self.product_points(worn)
        places = np.full((*self.catalogue.size, 2), np.nan, np.float32)
        for layer, (index, cloth) in self.person_points(scene.person, outfit).items():
            if layer not in of_product:
                continue
            tree, where = of_product[layer]
            distance, nearest = tree.query(cloth, distance_upper_bound=HIDDEN)
            seen = np.isfinite(distance)
            places.reshape(-1, 2)[index[seen]] = where[nearest[seen]]
        return places

    def entry(self, name: str) -> Entry:
        """The entry of a person's or garment's id: DressCode's end with _0 and _1."""
        return self.entries.get(name) or self.entries[name.rpartition("_")[0]]

    def person_points(
        self, person: Person, outfit: tuple[Garment, ...]
    ) -> dict[Layer, tuple[np.ndarray, np.ndarray]]:
        """Flat indices of the pixels of each part of the first garment, and their cloth (N, 2)."""
        fitted = fit(outfit, person)
        size = self.catalogue.size
        grid = Grid.of(person.camera, size, 1, range(size[0]))
        maps = BodyMaps(person.body, grid)
        layers = person_layers(fitted, person.tucked, HeadMap.of(person.body, grid), maps)
        points = {}
        for layer, index, u, v in parts(fitted[0], maps, layers):
            row, column = np.divmod(index, grid.shape[1])
            folds = person.lighting.folds(grid.x[column], grid.y[row])
            points[layer] = (index, np.stack(shading.shifted(u, v, folds), 1))
        return points

    def _product_points(self, entry: Entry) -> dict[Layer, tuple[cKDTree, np.ndarray]]:
        """For each part of a product picture, its points by cloth coordinates, and their places."""
        garment = self.catalogue.garment(entry)
        body = product_body(garment)
        worn = Fitted(garment, body)
        height, width = self.catalogue.size
        samples = max(1, -(-POINTS // height))
        grid = Grid.of(product_camera(worn), (height, width), samples, range(height))
        maps = BodyMaps(body, grid)
        rows, columns = grid.shape
        points = {}
        for layer, index, u, v in parts(worn, maps, product_layers(worn, maps)):
            row, column = np.divmod(index, columns)
            where = np.stack([(column + 0.5) / columns, (row + 0.5) / rows], 1)
            points[layer] = (cKDTree(np.stack([u, v], 1)), where.astype(np.float32))
        return points


def parts(worn: Fitted, maps: BodyMaps, layers: np.ndarray):
    """Each visible part of a garment: its layer, flat indices (N,), cloth coordinates u, v (N,)."""
    for layer in UPPER_LAYERS if worn.garment.upper else LOWER_LAYERS:
        index = np.flatnonzero(layers.ravel() == layer)
        if index.size and layer != Layer.INSIDE:
            _, u, v, _ = cloth_coordinates(worn, maps, layer, index)
            yield layer, index, u, v
