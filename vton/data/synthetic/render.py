"""Draws persons in outfits and product pictures, with exact labels: every pixel knows its layer and cloth coordinates.

Colours are averaged over `samples` x `samples` points per pixel; labels are those of the point at the pixel's centre.
Large pictures are drawn in bands of rows, which keeps the working set inside the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from vton.data import labels
from vton.data.synthetic import head, shading, texture
from vton.data.synthetic.body import ASPECT, CROTCH, L_TOE, R_TOE, SIDES, Body, Camera, mannequin
from vton.data.synthetic.garment import COLLAR_TOP, LOWER_TOP, MANNEQUIN, Fitted, Garment
from vton.data.synthetic.maps import BodyMaps, Grid, Limb
from vton.data.synthetic.profile import Profile
from vton.data.synthetic.shading import Backdrop, Lighting

SAMPLES = 3  # points per pixel side; odd, so that one of them is the centre
_BAND = 160_000  # sample points drawn at once
_BLEND = (CROTCH, CROTCH + 0.25)  # trunk coordinates between which trouser cloth passes from trunk to leg coordinates


_SHOULDERS = Profile.through([(0.0, -0.15), (0.11, -0.15), (0.12, -0.145), (0.31, -0.065), (0.7, 0.1)])  # v over |u|


class Layer(IntEnum):
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
_SKIN = {
    Layer.TORSO: labels.NECK, Layer.RIGHT_ARM: labels.RIGHT_ARM, Layer.LEFT_ARM: labels.LEFT_ARM,
    Layer.RIGHT_LEG: labels.RIGHT_LEG, Layer.LEFT_LEG: labels.LEFT_LEG,
}  # fmt: skip
_LABELS = {
    **_SKIN, Layer.BACK_HAIR: labels.HAIR, Layer.HAIR: labels.HAIR, Layer.FACE: labels.FACE,
    Layer.GLASSES: labels.SUNGLASSES, Layer.RIGHT_SHOE: labels.RIGHT_SHOE, Layer.LEFT_SHOE: labels.LEFT_SHOE,
}  # fmt: skip
_GARMENT_LABEL = {"top": labels.UPPER, "dress": labels.DRESS, "skirt": labels.SKIRT, "trousers": labels.PANTS}


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
    garment: np.ndarray  # (H, W, 3) uint8; visible part of the first garment in product light, on white
    garment_mask: np.ndarray  # (H, W) bool; where the first garment is visible


def draw(
    person: Person, outfits: Sequence[Sequence[Garment]], size: tuple[int, int], samples: int = SAMPLES
) -> list[Drawing]:
    """The same person in each outfit, at `size` (height, width). An outfit's first garment is the one to try on."""
    bands: list[list[tuple]] = [[] for _ in outfits]
    fitted = [_fit(outfit, person) for outfit in outfits]
    for rows in _bands(size, samples):
        grid = Grid.of(person.camera, size, samples, rows)
        maps = BodyMaps(person.body, grid)
        for outfit, parts in zip(fitted, bands, strict=True):
            parts.append(_draw_band(person, outfit, maps, samples))
    return [Drawing(*(np.concatenate(column) for column in zip(*parts, strict=True))) for parts in bands]


def _fit(outfit: Sequence[Garment], person: Person) -> list[Fitted]:
    lower = next((Fitted(garment, person.body) for garment in outfit if not garment.upper), None)
    over = None if person.tucked else lower
    return [Fitted(garment, person.body, over) if garment.upper else lower for garment in outfit]


def draw_product(garment: Garment, size: tuple[int, int], samples: int = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """The in-shop picture (H, W, 3) uint8 on white, evenly lit, and its silhouette (H, W) bool."""
    body = mannequin({"long": 0.24, "elbow": 0.36}.get(garment.sleeve, 0.46))
    worn = Fitted(garment, body)
    camera = _product_camera(worn)
    pictures, masks = [], []
    for rows in _bands(size, samples):
        maps = BodyMaps(body, Grid.of(camera, size, samples, rows))
        layers = _product_layers(worn, maps)
        albedo = np.ones((layers.size, 3), np.float32)
        shade = np.ones(layers.size, np.float32)
        _colour_garment(worn, maps, layers, albedo, shade, None)
        if garment.sleeve != "none":
            _shadow_of_arms(maps, worn.sleeve, layers, shade, 0.14)
        pictures.append(_average(albedo * shade[:, None], maps.grid.shape, samples))
        masks.append(layers[samples // 2 :: samples, samples // 2 :: samples] != Layer.BACKGROUND)
    return np.concatenate(pictures), np.concatenate(masks)


def _bands(size: tuple[int, int], samples: int) -> list[range]:
    height, width = size
    step = max(1, _BAND // (width * samples * samples))
    return [range(start, min(start + step, height)) for start in range(0, height, step)]


def _average(colours: np.ndarray, shape: tuple[int, int], samples: int) -> np.ndarray:
    """Box filter over each pixel's sample points -> (rows, columns, 3) uint8."""
    colours = colours.reshape(*shape, 3)
    total = sum(colours[i::samples, j::samples] for i in range(samples) for j in range(samples))
    return (np.clip(total / samples**2, 0, 1) * 255 + 0.5).astype(np.uint8)


def _draw_band(person: Person, outfit: Sequence[Fitted], maps: BodyMaps, samples: int) -> tuple:
    body, grid = person.body, maps.grid
    layers, face = _person_layers(person, outfit, maps)
    albedo = np.empty((layers.size, 3), np.float32)
    shade = np.ones(layers.size, np.float32)
    flat = layers.ravel()

    index = np.flatnonzero(flat == Layer.BACKGROUND)
    row, column = np.divmod(index, grid.shape[1])
    camera = person.camera
    across = (camera.scale * grid.x + np.float32(camera.x)) / np.float32(ASPECT)
    down = camera.scale * grid.y + np.float32(camera.y)
    albedo[index] = person.backdrop.colour(across[column].astype(np.float32), down[row].astype(np.float32))

    _colour_skin(person, maps, flat, albedo, shade)
    head.colour(body, person.lighting, grid, face, flat, albedo, shade)
    for worn in outfit:
        _colour_garment(worn, maps, layers, albedo, shade, person.lighting)
    # Of the bare arms, whatever the sleeves: other clothes keep their shading when the garment changes.
    _shadow_of_arms(maps, body.arm_radius, layers, shade, 0.30)
    np.clip(shade, shading.DARKEST, shading.BRIGHTEST, out=shade)

    centre = layers[samples // 2 :: samples, samples // 2 :: samples]
    target = _among(flat, UPPER_LAYERS if outfit[0].garment.upper else LOWER_LAYERS)
    flat_lit = np.where(target[:, None], albedo, np.float32(1))
    return (
        _average(albedo * shade[:, None], grid.shape, samples),
        _label_table(outfit)[centre],
        _average(flat_lit, grid.shape, samples),
        np.ascontiguousarray(target.reshape(grid.shape)[samples // 2 :: samples, samples // 2 :: samples]),
    )


def _label_table(outfit: Sequence[Fitted]) -> np.ndarray:
    table = np.zeros(len(Layer), np.uint8)
    for layer, label in _LABELS.items():
        table[layer] = label
    for garment in (worn.garment for worn in outfit):
        table[list(UPPER_LAYERS if garment.upper else LOWER_LAYERS)] = _GARMENT_LABEL[garment.kind]
    return table


# ---- which layer is seen


def _person_layers(person: Person, outfit: Sequence[Fitted], maps: BodyMaps) -> tuple[np.ndarray, head.HeadMap]:
    """Layer of every sample point (h, w) uint8, painted back to front."""
    body = person.body
    layers = np.zeros(maps.grid.shape, np.uint8)
    face = head.HeadMap.of(body, maps.grid)
    upper = next((worn for worn in outfit if worn.garment.upper), None)
    lower = next((worn for worn in outfit if not worn.garment.upper), None)
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
        if person.tucked and lower is not None:
            cloth &= maps.v < LOWER_TOP
        layers[cloth] = Layer.UPPER
    _paint(layers, face.window, face.face, Layer.FACE)
    _paint(layers, face.window, face.hair, Layer.HAIR)
    _paint(layers, face.window, face.glasses, Layer.GLASSES)
    for side in ("right", "left") if body.right_arm_first else ("left", "right"):
        _paint_arm(layers, side, upper, body, maps)
    return layers, face


def _product_layers(worn: Fitted, maps: BodyMaps) -> np.ndarray:
    garment = worn.garment
    layers = np.zeros(maps.grid.shape, np.uint8)
    if not garment.upper:
        _paint_lower(layers, worn, maps)
        return layers
    if garment.neckline != "high":
        u = np.abs(worn.across(maps.side, maps.v)[1])
        start = garment.top_edge(np.float32([garment.neck_half + 0.01]))[0]
        hole = (u < garment.neck_half) & (maps.v > start + 0.02 - 0.02 * (u / garment.neck_half) ** 2)
        layers[hole & (maps.v <= garment.top_edge(u))] = Layer.INSIDE
    layers[_trunk_cloth(worn, maps)] = Layer.UPPER
    for side, _ in SIDES:
        _paint_arm(layers, side, worn, worn.body, maps, skin=False)
    return layers


def _among(layers: np.ndarray, chosen: Sequence[Layer]) -> np.ndarray:
    """Where one of the chosen layers is seen."""
    table = np.zeros(len(Layer), bool)
    table[list(chosen)] = True
    return table[layers]


def _paint(layers: np.ndarray, window: tuple[slice, slice], mask: np.ndarray, layer: Layer) -> None:
    np.copyto(layers[window], np.uint8(layer), where=mask)


def _trunk_cloth(worn: Fitted, maps: BodyMaps) -> np.ndarray:
    garment, body, v = worn.garment, worn.body, maps.v
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
    return skin | (neck & (maps.grid.y[:, None] > body.head[1]) & (maps.v < 0.05))


def _paint_lower(layers: np.ndarray, worn: Fitted, maps: BodyMaps) -> None:
    garment = worn.garment
    if garment.kind == "skirt":
        layers[_trunk_cloth(worn, maps)] = Layer.LOWER
        return
    low, high = garment.trunk_range
    for side, sign in SIDES:
        limb = maps.limb("leg", side)
        own_half = maps.side[limb.window] * np.float32(sign) >= 0
        cloth = (limb.distance <= worn.leg(limb.along)) & (limb.along <= garment.leg_end) & (maps.v[limb.window] > low)
        _paint(layers, limb.window, cloth & own_half, Layer[f"LOWER_{side.upper()}"])
    across, _ = worn.across(maps.side, maps.v)
    # Beside the crotch the legs themselves are the outline.
    width = np.where(maps.v <= 1, np.float32(1), np.float32(0.6))
    layers[(np.abs(across) <= width) & (maps.v >= low) & (maps.v <= high)] = Layer.LOWER


def _paint_arm(
    layers: np.ndarray, side: str, upper: Fitted | None, body: Body, maps: BodyMaps, skin: bool = True
) -> None:
    """One arm, in front of the torso except above the armhole, where the trunk's cloth or skin goes first.

    The armhole runs from the tip of the shoulder to where the inner edge of the arm leaves the trunk.
    """
    limb = maps.limb("arm", side)
    sleeved = upper is not None and upper.garment.sleeve != "none"
    skin_radius = body.arm_radius(limb.along)
    radius = upper.sleeve(limb.along) if sleeved else skin_radius
    v = maps.v[limb.window]
    opening = np.clip((v - np.float32(0.03)) * np.float32(1 / 0.29), 0, 1)
    inner = limb.across if side == "right" else -limb.across
    before = (limb.along < 0.02) | (inner > radius * opening * opening * (3 - 2 * opening))
    trunk = _among(layers[limb.window], (Layer.UPPER, Layer.TORSO, Layer.INSIDE))
    behind = trunk & before & (v < 0.32) & (limb.along < 0.9)
    if skin:
        _paint(layers, limb.window, (limb.distance <= skin_radius) & ~behind, Layer[f"{side.upper()}_ARM"])
    if sleeved:
        cloth = (limb.distance <= radius) & (limb.along <= upper.garment.sleeve_end)
        _paint(layers, limb.window, cloth & ~behind, Layer[f"{side.upper()}_SLEEVE"])


def shoe_mask(body: Body, side: str, grid: Grid) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Window, where the shoe lies in it, and the position from ankle (0) to toe (1)."""
    toe = body.joints[R_TOE if side == "right" else L_TOE]
    ankle = body.limb("leg", side)[2]
    window = grid.window(ankle[0] - 0.3, ankle[0] + 0.3, ankle[1] - 0.1, ankle[1] + 0.4)
    x, y = grid.x[None, window[1]] - ankle[0], grid.y[window[0], None] - ankle[1] - 0.07
    axis = toe - ankle
    length = float(np.hypot(*axis))
    dx, dy = axis / length
    along = np.clip(x * dx + y * dy, 0, length)
    return window, np.hypot(x - along * dx, y - along * dy) <= 0.066, along / length


# ---- colours


def _colour_skin(person: Person, maps: BodyMaps, flat: np.ndarray, albedo: np.ndarray, shade: np.ndarray) -> None:
    body, lighting = person.body, person.lighting
    for layer in _SKIN:
        index = np.flatnonzero(flat == layer)
        if not index.size:
            continue
        albedo[index] = np.float32(body.looks.skin)
        if layer == Layer.TORSO:
            v = maps.v.ravel()[index]
            shade[index] = np.float32(1.0) - np.float32(0.22) * np.clip((-v - np.float32(0.02)) / np.float32(0.2), 0, 1)
            continue
        side, kind = layer.name.lower().split("_")
        along, across = _pick(maps.limb(kind, side), index, maps.grid.shape[1])
        radius = body.arm_radius if kind == "arm" else body.leg_radius
        shade[index] = lighting.solid(across / radius(along))
    for side, _ in SIDES:
        index = np.flatnonzero(flat == Layer[f"{side.upper()}_SHOE"])
        albedo[index] = np.float32(body.looks.shoes)


def _pick(limb: Limb, index: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across a limb at flat indices of the band."""
    row, column = np.divmod(index, width)
    local = (row - limb.window[0].start) * (limb.window[1].stop - limb.window[1].start) + column - limb.window[1].start
    return limb.along.ravel()[local], limb.across.ravel()[local]


def _colour_garment(
    worn: Fitted, maps: BodyMaps, layers: np.ndarray, albedo: np.ndarray, shade: np.ndarray, lighting: Lighting | None
) -> None:
    """Texture and, with a lighting, folds of every visible part of the garment."""
    garment, flat = worn.garment, layers.ravel()
    for layer in UPPER_LAYERS if garment.upper else LOWER_LAYERS:
        index = np.flatnonzero(flat == layer)
        if not index.size:
            continue
        if layer == Layer.INSIDE:
            albedo[index] = np.float32(garment.texture.base) * np.float32(0.72)
            continue
        across, u, v, edge = _cloth_coordinates(worn, maps, layer, index)
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


def _cloth_coordinates(worn: Fitted, maps: BodyMaps, layer: Layer, index: np.ndarray) -> tuple:
    """Position across the part (-1..1), cloth coordinates u and v, and whether the point lies on a trimmed edge."""
    garment = worn.garment
    v, side = maps.v.ravel()[index], maps.side.ravel()[index]
    if layer in (Layer.UPPER, Layer.LOWER):
        across, u = worn.across(side, v)
        edge = v < garment.top_edge(np.abs(u)) + np.float32(0.04)
        if garment.upper:
            edge &= np.abs(u) < garment.neck_half + 0.02
        return across, u, v, edge
    name = layer.name.lower()
    side_name, sign = ("right", -1.0) if "right" in name else ("left", 1.0)
    limb = maps.limb("arm" if "sleeve" in name else "leg", side_name)
    along, across = _pick(limb, index, maps.grid.shape[1])
    if "sleeve" in name:
        across = across / worn.sleeve(along)
        u = np.float32(sign * 0.31) + across * worn.cloth_sleeve(along)
        return across, u, along * np.float32(0.55), along > garment.sleeve_end - np.float32(0.09)
    across = across / worn.leg(along)
    leg_u = np.float32(sign * 0.165) + across * worn.cloth_leg(along)
    trunk_u = worn.across(side, v)[1]
    blend = np.clip((v - np.float32(_BLEND[0])) / np.float32(_BLEND[1] - _BLEND[0]), 0, 1)
    u = trunk_u + blend * (leg_u - trunk_u)
    return across, u, v + blend * (np.float32(1) + along * np.float32(0.81) - v), along > garment.leg_end - 0.05


def _shadow_of_arms(maps: BodyMaps, radius: Profile, layers: np.ndarray, shade: np.ndarray, depth: float) -> None:
    """Contact shadow of the arms, `radius` thick, on what lies behind them, except the backdrop."""
    shade = shade.reshape(layers.shape)
    for side, _ in SIDES:
        limb = maps.limb("arm", side)
        own = (Layer.BACKGROUND, Layer[f"{side.upper()}_ARM"], Layer[f"{side.upper()}_SLEEVE"])
        gap = np.maximum(limb.distance - radius(limb.along), 0)
        factor = 1 - np.float32(depth) * np.exp(gap * np.float32(-1 / 0.035))
        factor[_among(layers[limb.window], own) | (maps.v[limb.window] < 0.25)] = 1
        shade[limb.window] *= factor


def _product_camera(worn: Fitted) -> Camera:
    """Centres the garment and lets it fill nine tenths of the picture's width or height."""
    step = 0.03
    grid = Grid(np.arange(-1.3, 1.3, step, np.float32), np.arange(-0.4, 3.0, step, np.float32))
    rows, columns = np.nonzero(_product_layers(worn, BodyMaps(worn.body, grid)))
    top, bottom = float(grid.y[rows.min()]), float(grid.y[rows.max()])
    left, right = float(grid.x[columns.min()]), float(grid.x[columns.max()])
    scale = min(0.90 * ASPECT / (right - left), 0.90 / (bottom - top))
    return Camera(scale, ASPECT / 2 - scale * (left + right) / 2, 0.5 - scale * (top + bottom) / 2)
