"""Draws persons in outfits and product pictures, with exact labels.

Every pixel knows its layer and cloth coordinates. Colours are averaged over `samples` x `samples`
points per pixel; labels are those of the point at the pixel's centre. Large pictures are drawn in
bands of rows, which keeps the working set inside the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vton.data.synthetic import shading
from vton.data.synthetic.body import ASPECT, Body, Camera, mannequin
from vton.data.synthetic.colours import colour_garment, colour_head, colour_skin, shadow_of_arms
from vton.data.synthetic.garment import Fitted, Garment
from vton.data.synthetic.head import HeadMap
from vton.data.synthetic.layers import (
    LOWER_LAYERS,
    UPPER_LAYERS,
    Layer,
    among,
    label_table,
    person_layers,
    product_layers,
)
from vton.data.synthetic.maps import BodyMaps, Grid
from vton.data.synthetic.shading import Backdrop, Lighting

SAMPLES = 3  # points per pixel side; odd, so that one of them is the centre
_BAND = 160_000  # sample points drawn at once
# How far the mannequin's arms are spread, radians; less for long sleeves.
_ARM_ANGLE = 0.46
_ARM_ANGLES = {"long": 0.24, "elbow": 0.36}


@dataclass(frozen=True)
class Person:
    """Everything that stays when the garment changes."""

    body: Body
    camera: Camera
    lighting: Lighting
    backdrop: Backdrop
    tucked: bool  # tops are worn inside trousers or skirt


@dataclass(frozen=True)
class Drawing:
    """One picture with its exact annotations."""

    picture: np.ndarray  # (H, W, 3) uint8
    parse: np.ndarray  # (H, W) uint8 in vton.data.labels
    garment: np.ndarray  # (H, W, 3) uint8; the first garment's visible part, evenly lit, on white
    garment_mask: np.ndarray  # (H, W) bool; where the first garment is visible


def draw_person(
    person: Person,
    outfits: Sequence[Sequence[Garment]],
    size: tuple[int, int],
    samples: int = SAMPLES,
) -> list[Drawing]:
    """The same person in each outfit, at `size` (height, width).

    An outfit's first garment is the one to try on.
    """
    fitted = [fit(outfit, person) for outfit in outfits]
    bands: list[list[tuple]] = [[] for _ in outfits]
    for rows in _bands(size, samples):
        grid = Grid.of(person.camera, size, samples, rows)
        maps = BodyMaps(person.body, grid)
        for outfit, of_outfit in zip(fitted, bands, strict=True):
            of_outfit.append(_draw_band(person, outfit, maps, samples))
    drawings = []
    for of_outfit in bands:
        picture, parse, garment, garment_mask = zip(*of_outfit, strict=True)
        drawings.append(
            Drawing(
                picture=np.concatenate(picture),
                parse=np.concatenate(parse),
                garment=np.concatenate(garment),
                garment_mask=np.concatenate(garment_mask),
            )
        )
    return drawings


def fit(outfit: Sequence[Garment], person: Person) -> list[Fitted]:
    """The garments on the person; a top that is not tucked in is worn over what is below it."""
    lower = None
    for garment in outfit:
        if not garment.upper:
            lower = Fitted(garment, person.body)
    over = None if person.tucked else lower
    return [Fitted(garment, person.body, over) if garment.upper else lower for garment in outfit]


def draw_product(
    garment: Garment, size: tuple[int, int], samples: int = SAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """The in-shop picture (H, W, 3) uint8 on white, evenly lit, and its silhouette (H, W) bool."""
    body = product_body(garment)
    worn = Fitted(garment, body)
    camera = product_camera(worn)
    pictures = []
    masks = []
    for rows in _bands(size, samples):
        maps = BodyMaps(body, Grid.of(camera, size, samples, rows))
        layers = product_layers(worn, maps)
        albedo = np.ones((layers.size, 3), np.float32)
        shade = np.ones(layers.size, np.float32)
        colour_garment(worn, maps, layers, albedo, shade, None)
        if garment.sleeve != "none":
            shadow_of_arms(maps, worn.sleeve, layers, shade, 0.14)
        pictures.append(_average(albedo * shade[:, None], maps.grid.shape, samples))
        masks.append(_centres(layers, samples) != Layer.BACKGROUND)
    return np.concatenate(pictures), np.concatenate(masks)


def product_body(garment: Garment) -> Body:
    """The mannequin that shows a garment in its product picture."""
    return mannequin(_ARM_ANGLES.get(garment.sleeve, _ARM_ANGLE))


def _bands(size: tuple[int, int], samples: int) -> list[range]:
    height, width = size
    step = max(1, _BAND // (width * samples * samples))
    return [range(start, min(start + step, height)) for start in range(0, height, step)]


def _average(colours: np.ndarray, shape: tuple[int, int], samples: int) -> np.ndarray:
    """Box filter over each pixel's sample points -> (rows, columns, 3) uint8."""
    colours = colours.reshape(*shape, 3)
    total = sum(colours[i::samples, j::samples] for i in range(samples) for j in range(samples))
    return (np.clip(total / samples**2, 0, 1) * 255 + 0.5).astype(np.uint8)


def _centres(points: np.ndarray, samples: int) -> np.ndarray:
    """The sample points, of (h, w), that are at the centres of pixels."""
    return points[samples // 2 :: samples, samples // 2 :: samples]


def _draw_band(person: Person, outfit: Sequence[Fitted], maps: BodyMaps, samples: int) -> tuple:
    """A band of rows of every part of a Drawing, in its order."""
    grid = maps.grid
    face = HeadMap.of(person.body, grid)
    layers = person_layers(outfit, person.tucked, face, maps)
    flat = layers.ravel()
    albedo = np.empty((layers.size, 3), np.float32)
    shade = np.ones(layers.size, np.float32)

    index = np.flatnonzero(flat == Layer.BACKGROUND)
    albedo[index] = _backdrop_colour(person, grid, index)
    colour_skin(person.lighting, maps, flat, albedo, shade)
    colour_head(person.lighting, maps, face, flat, albedo, shade)
    for worn in outfit:
        colour_garment(worn, maps, layers, albedo, shade, person.lighting)
    # Of the bare arms, whatever the sleeves: other clothes keep their shading when the garment
    # changes.
    shadow_of_arms(maps, person.body.arm_radius, layers, shade, 0.30)
    np.clip(shade, shading.DARKEST, shading.BRIGHTEST, out=shade)

    target = among(layers, UPPER_LAYERS if outfit[0].garment.upper else LOWER_LAYERS)
    evenly_lit = np.where(target.reshape(-1, 1), albedo, np.float32(1))
    return (
        _average(albedo * shade[:, None], grid.shape, samples),
        label_table(outfit)[_centres(layers, samples)],
        _average(evenly_lit, grid.shape, samples),
        np.ascontiguousarray(_centres(target, samples)),
    )


def _backdrop_colour(person: Person, grid: Grid, index: np.ndarray) -> np.ndarray:
    """Colour (N, 3) of the backdrop at flat indices of sample points."""
    row, column = np.divmod(index, grid.shape[1])
    camera = person.camera
    across = (camera.scale * grid.x + np.float32(camera.x)) / np.float32(ASPECT)
    down = camera.scale * grid.y + np.float32(camera.y)
    return person.backdrop.colour(across[column].astype(np.float32), down[row].astype(np.float32))


def product_camera(worn: Fitted) -> Camera:
    """Centres the garment and lets it fill nine tenths of the picture's width or height."""
    step = 0.03
    grid = Grid(np.arange(-1.3, 1.3, step, np.float32), np.arange(-0.4, 3.0, step, np.float32))
    rows, columns = np.nonzero(product_layers(worn, BodyMaps(worn.body, grid)))
    top, bottom = float(grid.y[rows.min()]), float(grid.y[rows.max()])
    left, right = float(grid.x[columns.min()]), float(grid.x[columns.max()])
    scale = min(0.90 * ASPECT / (right - left), 0.90 / (bottom - top))
    return Camera(scale, ASPECT / 2 - scale * (left + right) / 2, 0.5 - scale * (top + bottom) / 2)
