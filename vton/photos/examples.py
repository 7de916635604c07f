"""An example pair, drawn by the renderer: a person as in a photograph, and a garment on grey paper.

`data/examples/` holds the two pictures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from vton.data.synthetic.body import ASPECT, Camera
from vton.data.synthetic.catalogue import Catalogue
from vton.data.synthetic.render import draw_person, draw_product

SEED, PERSON, GARMENT = 7, 3, 5
HEIGHT, WIDTH = 1024, 768


def person_picture() -> Image.Image:
    """Somebody from head to knee, a little to the side of a photograph in landscape."""
    catalogue = Catalogue("viton_hd", (HEIGHT, WIDTH), 8, 8, SEED)
    scene = catalogue.scene(catalogue.of("test")[PERSON])
    camera = Camera(0.30, ASPECT / 2, 0.30)
    person = replace(scene.person, camera=camera)
    (drawing,) = draw_person(person, [scene.outfit()], (HEIGHT, WIDTH))
    return Image.fromarray(drawing.picture)


def garment_picture() -> Image.Image:
    """A top on unevenly lit grey paper."""
    catalogue = Catalogue("viton_hd", (HEIGHT, WIDTH), 8, 8, SEED)
    scene = catalogue.scene(catalogue.of("test")[GARMENT])
    picture, silhouette = draw_product(scene.garment, (HEIGHT, WIDTH))
    down = np.linspace(212, 190, HEIGHT)[:, None]
    across = np.linspace(8, -8, WIDTH)[None]
    noise = np.random.default_rng(SEED).normal(0, 1.2, (HEIGHT, WIDTH))
    paper = np.clip(down + across + noise, 0, 255)
    paper = np.repeat(paper[..., None], 3, 2).astype(np.uint8)
    return Image.fromarray(np.where(silhouette[..., None], picture, paper))
