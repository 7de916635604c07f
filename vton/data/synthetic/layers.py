"""Which layer every sample point shows: hair, skin, clothes and limbs, painted back to front."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from vton.data import labels
from vton.data.synthetic.body import CROTCH, L_TOE, R_TOE, SIDES, Body
from vton.data.synthetic.garment import COLLAR_TOP, LOWER_TOP, MANNEQUIN, Fitted
from vton.data.synthetic.head import HeadMap
from vton.data.synthetic.maps import BodyMaps, Grid
from vton.data.synthetic.profile import Profile

# v of the undressed shoulders over |u|.
_SHOULDERS = Profile.through(
    [(0.0, -0.15), (0.11, -0.15), (0.12, -0.145), (0.31, -0.065), (0.7, 0.1)]
)


class Layer(IntEnum):
    """What a sample point shows, back to front."""

    BACKGROUND = 0
    BACK_HAIR = 1
    RIGHT_LEG = 2
    LEFT_LEG = 3
    RIGHT_SHOE = 4
    LEFT_SHOE = 5
    TORSO = 6
    LOWER = 7
    LOWER_RIGHT = 8
    LOWER_LEFT = 9
    UPPER = 10
    FACE = 11
    HAIR = 12
    GLASSES = 13
    RIGHT_ARM = 14
    RIGHT_SLEEVE = 15
    LEFT_ARM = 16
    LEFT_SLEEVE = 17
    INSIDE = 18  # back of the garment seen through the neck hole; product pictures only


UPPER_LAYERS = (Layer.UPPER, Layer.RIGHT_SLEEVE, Layer.LEFT_SLEEVE, Layer.INSIDE)
LOWER_LAYERS = (Layer.LOWER, Layer.LOWER_RIGHT, Layer.LOWER_LEFT)
SKIN_LABELS = {
    Layer.TORSO: labels.NECK,
    Layer.RIGHT_ARM: labels.RIGHT_ARM,
    Layer.LEFT_ARM: labels.LEFT_ARM,
    Layer.RIGHT_LEG: labels.RIGHT_LEG,
    Layer.LEFT_LEG: labels.LEFT_LEG,
}
_LABELS = {
    **SKIN_LABELS,
    Layer.BACK_HAIR: labels.HAIR,
    Layer.HAIR: labels.HAIR,
    Layer.FACE: labels.FACE,
    Layer.GLASSES: labels.SUNGLASSES,
    Layer.RIGHT_SHOE: labels.RIGHT_SHOE,
    Layer.LEFT_SHOE: labels.LEFT_SHOE,
}
_GARMENT_LABEL = {
    "top": labels.UPPER,
    "dress": labels.DRESS,
    "skirt": labels.SKIRT,
    "trousers": labels.PANTS,
}


def label_table(outfit: Sequence[Fitted]) -> np.ndarray:
    """Label of vton.data.labels for every layer (len(Layer),) uint8."""
    table = np.zeros(len(Layer), np.uint8)
    for layer, label in _LABELS.items():
        table[layer] = label
    for worn in outfit:
        layers = UPPER_LAYERS if worn.garment.upper else LOWER_LAYERS
        table[list(layers)] = _GARMENT_LABEL[worn.garment.kind]
    return table


def person_layers(
    outfit: Sequence[Fitted], tucked: bool, face: HeadMap, maps: BodyMaps
) -> np.ndarray:
    """Layer of every sample point (h, w) uint8, painted back to front.

    tucked: tops end at the waistband.
    """
    body = maps.body
    layers = np.zeros(maps.grid.shape, np.uint8)
    upper = lower = None
    for worn in outfit:
        if worn.garment.upper:
            upper = worn
        else:
            lower = worn
    _paint(layers, face.window, face.back_hair, Layer.BACK_HAIR)
    for side, _ in SIDES:
        limb = maps.limb("leg", side)
        skin = (limb.distance <= body.leg_radius(limb.along)) & (limb.along < 2.1)
        _paint(layers, limb.window, skin, Layer[f"{side.upper()}_LEG"])
        window, shoe, _ = shoe_mask(body, side, maps.grid)
        _paint(layers, window, shoe, Layer[f"{side.upper()}_SHOE"])
    layers[trunk_skin(body, maps)] = Layer.TORSO
    if lower is not None:
        _paint_lower(layers, lower, maps)
    if upper is not None:
        cloth = _trunk_cloth(upper, maps)
        if tucked and lower is not None:
            cloth &= maps.v < LOWER_TOP
        layers[cloth] = Layer.UPPER
    _paint(layers, face.window, face.face, Layer.FACE)
    _paint(layers, face.window, face.hair, Layer.HAIR)
    _paint(layers, face.window, face.glasses, Layer.GLASSES)
    for side in body.arm_order:
        _paint_arm(layers, side, upper, maps)
    return layers


def product_layers(worn: Fitted, maps: BodyMaps) -> np.ndarray:
    """Layer of every sample point (h, w) uint8 of a product picture: the garment alone."""
    garment = worn.garment
    layers = np.zeros(maps.grid.shape, np.uint8)
    if not garment.upper:
        _paint_lower(layers, worn, maps)
        return layers
    if garment.neckline != "high":
        u = np.abs(worn.across(maps.side, maps.v)[1])
        start = garment.top_edge(np.float32([garment.neck_half + 0.01]))[0]
        back_edge = start + 0.02 - 0.02 * (u / garment.neck_half) ** 2
        hole = (u < garment.neck_half) & (maps.v > back_edge)
        layers[hole & (maps.v <= garment.top_edge(u))] = Layer.INSIDE
    layers[_trunk_cloth(worn, maps)] = Layer.UPPER
    for side, _ in SIDES:
        _paint_arm(layers, side, worn, maps, skin=False)
    return layers


def among(layers: np.ndarray, chosen: Sequence[Layer]) -> np.ndarray:
    """Where one of the chosen layers is seen."""
    table = np.zeros(len(Layer), bool)
    table[list(chosen)] = True
    return table[layers]


def _paint(layers: np.ndarray, window: tuple[slice, slice], mask: np.ndarray, layer: Layer) -> None:
    np.copyto(layers[window], np.uint8(layer), where=mask)


def _trunk_cloth(worn: Fitted, maps: BodyMaps) -> np.ndarray:
    """Where the trunk part of a garment lies (h, w)."""
    garment = worn.garment
    body = worn.body
    v = maps.v
    across, u = worn.across(maps.side, v)
    hem = v <= garment.hem + np.float32(0.025) * across * across
    cloth = (np.abs(across) <= 1) & (v >= garment.top_edge(np.abs(u))) & hem
    if garment.upper and garment.neckline == "high":
        collar = np.abs(maps.side - _neck_x(body, maps.grid)[:, None]) <= body.neck_radius + 0.014
        cloth |= collar & (v >= COLLAR_TOP) & (v < 0)
    return cloth


def _neck_x(body: Body, grid: Grid) -> np.ndarray:
    """x of the neck's axis over the rows, relative to the trunk's centre line."""
    base = -body.yaw * float(body.half(np.float32([0.0]))[0]) * 0.6
    lean = np.clip(-grid.y / -body.head[1], 0, 1).astype(np.float32)
    return (base + (body.head[0] - base) * lean).astype(np.float32)


def trunk_skin(body: Body, maps: BodyMaps) -> np.ndarray:
    """Neck, shoulders and torso of the undressed body."""
    across = maps.side / body.half(maps.v)
    u = np.abs(across) * MANNEQUIN.half(maps.v)
    skin = (np.abs(across) <= 1) & (maps.v >= _SHOULDERS(u)) & (maps.v <= CROTCH)
    neck = np.abs(maps.side - _neck_x(body, maps.grid)[:, None]) <= body.neck_radius
    neck &= (maps.grid.y[:, None] > body.head[1]) & (maps.v < 0.05)
    return skin | neck


def _paint_lower(layers: np.ndarray, worn: Fitted, maps: BodyMaps) -> None:
    garment = worn.garment
    if garment.kind == "skirt":
        layers[_trunk_cloth(worn, maps)] = Layer.LOWER
        return
    low, high = garment.trunk_range
    for side, sign in SIDES:
        limb = maps.limb("leg", side)
        cloth = (limb.distance <= worn.leg(limb.along)) & (limb.along <= garment.leg_end)
        cloth &= maps.v[limb.window] > low
        own_half = maps.side[limb.window] * np.float32(sign) >= 0
        _paint(layers, limb.window, cloth & own_half, Layer[f"LOWER_{side.upper()}"])
    across, _ = worn.across(maps.side, maps.v)
    # Beside the crotch the legs themselves are the outline.
    width = np.where(maps.v <= 1, np.float32(1), np.float32(0.6))
    layers[(np.abs(across) <= width) & (maps.v >= low) & (maps.v <= high)] = Layer.LOWER


def _paint_arm(
    layers: np.ndarray, side: str, upper: Fitted | None, maps: BodyMaps, skin: bool = True
) -> None:
    """One arm, in front of the torso except above the armhole.

    There the trunk's cloth or skin goes first. The armhole runs from the tip of the shoulder to
    where the inner edge of the arm leaves the trunk.
    """
    body = maps.body
    limb = maps.limb("arm", side)
    v = maps.v[limb.window]
    sleeved = upper is not None and upper.garment.sleeve != "none"
    skin_radius = body.arm_radius(limb.along)
    radius = upper.sleeve(limb.along) if sleeved else skin_radius
    opening = np.clip((v - np.float32(0.03)) * np.float32(1 / 0.29), 0, 1)
    armhole = radius * opening * opening * (3 - 2 * opening)
    inner = limb.across if side == "right" else -limb.across
    before = (limb.along < 0.02) | (inner > armhole)
    trunk = among(layers[limb.window], (Layer.UPPER, Layer.TORSO, Layer.INSIDE))
    behind = trunk & before & (v < 0.32) & (limb.along < 0.9)
    if skin:
        bare = (limb.distance <= skin_radius) & ~behind
        _paint(layers, limb.window, bare, Layer[f"{side.upper()}_ARM"])
    if sleeved:
        cloth = (limb.distance <= radius) & (limb.along <= upper.garment.sleeve_end)
        _paint(layers, limb.window, cloth & ~behind, Layer[f"{side.upper()}_SLEEVE"])


def shoe_mask(
    body: Body, side: str, grid: Grid
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Window, where the shoe lies in it, and the position from ankle (0) to toe (1)."""
    toe = body.joints[R_TOE if side == "right" else L_TOE]
    ankle = body.limb("leg", side)[2]
    window = grid.window(ankle[0] - 0.3, ankle[0] + 0.3, ankle[1] - 0.1, ankle[1] + 0.4)
    x = grid.x[None, window[1]] - ankle[0]
    y = grid.y[window[0], None] - ankle[1] - 0.07
    axis = toe - ankle
    length = float(np.hypot(*axis))
    dx, dy = axis / length
    along = np.clip(x * dx + y * dy, 0, length)
    shoe = np.hypot(x - along * dx, y - along * dy) <= 0.066
    return window, shoe, along / length
