"""Rendered people and garments as photographs, for tests."""

from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image

from vton.data.synthetic.body import ASPECT, Camera
from vton.data.synthetic.catalogue import Catalogue
from vton.data.synthetic.render import draw_person, draw_product

SIZE = (512, 384)
SEED = 4242  # not the seed that the parser has learned from


@cache
def catalogue(layout="viton_hd"):
    return Catalogue(layout, SIZE, 2, 8, SEED)


@cache
def scene(place, layout="viton_hd", category="upper_body"):
    return catalogue(layout).scene(catalogue(layout).of("test", category)[place])


@cache
def person(place=0, camera=None, layout="viton_hd", category="upper_body"):
    """A rendered drawing; camera: another framing (scale, x, y) than the layout's."""
    own = scene(place, layout, category)
    shown = own.person
    if camera is not None:
        shown = replace(shown, camera=Camera(camera[0], ASPECT * camera[1], camera[2]))
    (drawing,) = draw_person(shown, [own.outfit()], SIZE)
    return drawing


def photo(*arguments, **options):
    return Image.fromarray(person(*arguments, **options).picture)


@cache
def _product(place, category):
    layout = "viton_hd" if category == "upper_body" else "dresscode"
    return draw_product(scene(place, layout, category).garment, SIZE)


def garment(place=0, ground=(255, 255, 255), category="upper_body"):
    """A garment's photograph on a ground of one colour, and its silhouette."""
    picture, silhouette = _product(place, category)
    colours = np.where(silhouette[..., None], picture, np.uint8(ground))
    return Image.fromarray(colours.astype(np.uint8)), silhouette


def beside(*photos):
    """Photographs side by side."""
    return Image.fromarray(np.concatenate([np.asarray(one) for one in photos], 1))
