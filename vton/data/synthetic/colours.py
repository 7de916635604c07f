"""Colour and brightness of every sample point, by layer.

Functions write into `albedo` (N, 3), sRGB in [0, 1], and `shade` (N,), a factor; N runs over the
points of one band.
"""

from __future__ import annotations

import numpy as np

from vton.data.synthetic import shading, texture
from vton.data.synthetic.body import CROTCH, SIDES
from vton.data.synthetic.garment import Fitted
from vton.data.synthetic.head import HeadMap, face_colour
from vton.data.synthetic.layers import LOWER_LAYERS, SKIN_LABELS, UPPER_LAYERS, Layer, among
from vton.data.synthetic.maps import BodyMaps, pick
from vton.data.synthetic.profile import Profile
from vton.data.synthetic.shading import Lighting

# Trunk coordinates between which trouser cloth passes from trunk to leg coordinates.
_BLEND = (CROTCH, CROTCH + 0.25)
_WHOLE_ARM = 0.55  # torso lengths of cloth per unit of the arm coordinate
_WHOLE_LEG = 0.81  # and of the leg coordinate


def colour_skin(
    lighting: Lighting, maps: BodyMaps, flat: np.ndarray, albedo: np.ndarray, shade: np.ndarray
) -> None:
    """Neck, torso and limbs; shoes."""
    body = maps.body
    for layer in SKIN_LABELS:
        index = np.flatnonzero(flat == layer)
        if not index.size:
            continue
        albedo[index] = np.float32(body.appearance.skin)
        if layer == Layer.TORSO:  # darker below the chin
            v = maps.v.ravel()[index]
            depth = np.clip((-v - np.float32(0.02)) / np.float32(0.2), 0, 1)
            shade[index] = np.float32(1.0) - np.float32(0.22) * depth
            continue
        side, kind = layer.name.lower().split("_")
        limb = maps.limb(kind, side)
        along, across = pick(limb.window, index, maps.grid.shape[1], limb.along, limb.across)
        radius = body.arm_radius if kind == "arm" else body.leg_radius
        shade[index] = lighting.solid(across / radius(along))
    for side, _ in SIDES:
        index = np.flatnonzero(flat == Layer[f"{side.upper()}_SHOE"])
        albedo[index] = np.float32(body.appearance.shoes)


def colour_head(
    lighting: Lighting,
    maps: BodyMaps,
    head: HeadMap,
    flat: np.ndarray,
    albedo: np.ndarray,
    shade: np.ndarray,
) -> None:
    """Face, hair and sunglasses."""
    body = maps.body
    width = maps.grid.shape[1]
    for layer, brightness in ((Layer.BACK_HAIR, 0.82), (Layer.HAIR, 1.0)):
        index = np.flatnonzero(flat == layer)
        x, y = pick(head.window, index, width, head.x, head.y)
        albedo[index] = np.float32(body.appearance.hair)
        strands = np.sin(x * np.float32(95) + np.float32(3) * np.sin(y * np.float32(9)))
        shade[index] = np.float32(brightness) + np.float32(0.10) * strands
    albedo[flat == Layer.GLASSES] = np.float32((0.08, 0.08, 0.09))
    index = np.flatnonzero(flat == Layer.FACE)
    x, y = pick(head.window, index, width, head.x, head.y)
    albedo[index] = face_colour(body, x, y)
    shade[index] = lighting.solid(x / np.float32(body.head_size[0]))


def colour_garment(
    worn: Fitted,
    maps: BodyMaps,
    layers: np.ndarray,
    albedo: np.ndarray,
    shade: np.ndarray,
    lighting: Lighting | None,
) -> None:
    """Texture and, with a lighting, folds of every visible part of the garment."""
    garment = worn.garment
    flat = layers.ravel()
    for layer in UPPER_LAYERS if garment.upper else LOWER_LAYERS:
        index = np.flatnonzero(flat == layer)
        if not index.size:
            continue
        if layer == Layer.INSIDE:
            albedo[index] = np.float32(garment.texture.base) * np.float32(0.72)
            continue
        across, u, v, edge = cloth_coordinates(worn, maps, layer, index)
        if lighting is not None:
            row, column = np.divmod(index, maps.grid.shape[1])
            folds = lighting.folds(maps.grid.x[column], maps.grid.y[row])
            shade[index] = lighting.cloth(across, folds[0])
            u, v = shading.shifted(u, v, folds)
        sleeve = layer in (Layer.RIGHT_SLEEVE, Layer.LEFT_SLEEVE)
        if sleeve and garment.texture.sleeves is not None:
            albedo[index] = np.float32(garment.texture.sleeves)
        else:
            albedo[index] = texture.colour(garment.texture, u, v, printed=layer == Layer.UPPER)
        if garment.texture.trim is not None:
            albedo[index[edge]] = np.float32(garment.texture.trim)


def cloth_coordinates(worn: Fitted, maps: BodyMaps, layer: Layer, index: np.ndarray) -> tuple:
    """Position across the part (-1..1), cloth coordinates u and v, whether on a trimmed edge."""
    garment = worn.garment
    v = maps.v.ravel()[index]
    side = maps.side.ravel()[index]
    if layer in (Layer.UPPER, Layer.LOWER):
        across, u = worn.across(side, v)
        edge = v < garment.top_edge(np.abs(u)) + np.float32(0.04)
        if garment.upper:
            edge &= np.abs(u) < garment.neck_half + 0.02
        return across, u, v, edge
    name = layer.name.lower()
    side_name, sign = ("right", -1.0) if "right" in name else ("left", 1.0)
    limb = maps.limb("arm" if "sleeve" in name else "leg", side_name)
    along, across = pick(limb.window, index, maps.grid.shape[1], limb.along, limb.across)
    if "sleeve" in name:
        across = across / worn.sleeve(along)
        u = np.float32(sign * 0.31) + across * worn.cloth_sleeve(along)
        cuff = along > garment.sleeve_end - np.float32(0.09)
        return across, u, along * np.float32(_WHOLE_ARM), cuff
    across = across / worn.leg(along)
    leg_u = np.float32(sign * 0.165) + across * worn.cloth_leg(along)
    leg_v = np.float32(1) + along * np.float32(_WHOLE_LEG)
    trunk_u = worn.across(side, v)[1]
    start, end = _BLEND
    blend = np.clip((v - np.float32(start)) / np.float32(end - start), 0, 1)
    cuff = along > garment.leg_end - 0.05
    return across, trunk_u + blend * (leg_u - trunk_u), v + blend * (leg_v - v), cuff


def shadow_of_arms(
    maps: BodyMaps, radius: Profile, layers: np.ndarray, shade: np.ndarray, depth: float
) -> None:
    """Contact shadow of the arms, `radius` thick, on what lies behind them, except the backdrop."""
    shade = shade.reshape(layers.shape)
    for side, _ in SIDES:
        limb = maps.limb("arm", side)
        own = (Layer.BACKGROUND, Layer[f"{side.upper()}_ARM"], Layer[f"{side.upper()}_SLEEVE"])
        gap = np.maximum(limb.distance - radius(limb.along), 0)
        factor = 1 - np.float32(depth) * np.exp(gap * np.float32(-1 / 0.035))
        factor[among(layers[limb.window], own) | (maps.v[limb.window] < 0.25)] = 1
        shade[limb.window] *= factor
