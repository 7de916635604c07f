"""Textures of garments: what a try-on has to carry over from the in-shop picture to the person.

A texture is a function of cloth coordinates (u across, v along; unit: one torso length, neck to
hips), so the in-shop picture, the person and the warped garment all show the very same cloth.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = (
    "solid",
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "checks",
    "dots",
    "gradient",
    "blotches",
    "logo",
    "text",
)
_SHARES = np.array([0.14, 0.12, 0.10, 0.10, 0.10, 0.10, 0.08, 0.06, 0.12, 0.08])
_LOWER_SHARES = np.array(
    [0.46, 0.06, 0.14, 0.08, 0.12, 0.06, 0.04, 0.04, 0.0, 0.0]
)  # no print on trousers and skirts
GLYPHS = (
    "disc",
    "ring",
    "star",
    "triangle",
    "diamond",
    "cross",
    "heart",
    "bolt",
    "moon",
    "hexagon",
)
_GLYPH_SIDE = 256  # bitmap side, px; finer than any drawing of it
_LETTERS = "ABCDEFGHJKLMNOPRSTUVWXYZ"
_NEUTRALS = (
    (0.90, 0.90, 0.88),
    (0.13, 0.13, 0.15),
    (0.50, 0.51, 0.53),
    (0.13, 0.17, 0.33),
    (0.80, 0.71, 0.56),
)

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Texture:
    """Colours are sRGB in [0, 1]; lengths are torso lengths; angles are radians."""

    kind: str
    base: Colour
    accent: Colour
    period: float  # of stripes, checks, dots and blotches
    # share of a stripe period in the accent colour; dot radius as a share of the period
    duty: float
    angle: float  # of diagonal stripes, against the vertical
    phase: tuple[float, float]  # of the pattern, in periods
    mark: str  # glyph name or letters; "" without a print
    mark_centre: tuple[float, float]  # u, v of the print's centre
    mark_size: tuple[float, float]  # width and height of the print
    trim: Colour | None  # colour of collar and cuffs; None = as the cloth
    sleeves: Colour | None  # plain contrast sleeves; None = as the cloth


def sample(
    rng: np.random.Generator, *, feature: float, held_out: bool, lower: bool = False
) -> Texture:
    """A random texture. `feature` is the smallest allowed stripe or dot (torso lengths).

    Letters of held-out (test) textures never occur in training: their alphabet positions add up to
    an odd number.
    """
    kind = str(rng.choice(KINDS, p=_LOWER_SHARES if lower else _SHARES))
    base = _sample_colour(rng)
    accent = _contrasting(rng, base)
    period, duty = feature * rng.uniform(2.0, 3.6), rng.uniform(0.4, 0.6)
    if kind == "dots":
        period, duty = feature * rng.uniform(2.1, 3.0), rng.uniform(0.27, 0.33)
    elif kind == "blotches":
        period = feature * rng.uniform(3.5, 5.0)
    angle = float(rng.choice([-1, 1]) * rng.uniform(0.5, 1.0))
    mark, size = "", (0.0, 0.0)
    width = rng.uniform(0.30, 0.44)
    if kind == "logo":
        mark, size = str(rng.choice(GLYPHS)), (width, width)
    elif kind == "text":
        mark = _letters(rng, held_out)
        size = (min(0.17 * len(mark), 0.46), rng.uniform(0.20, 0.27))
    centre = (rng.uniform(-0.03, 0.03), rng.uniform(0.34, 0.46))
    trim = _contrasting(rng, base) if rng.random() < 0.18 else None
    sleeves = _contrasting(rng, base) if not lower and rng.random() < 0.12 else None
    phase = (rng.random(), rng.random())
    return Texture(
        kind, base, accent, period, duty, angle, phase, mark, centre, size, trim, sleeves
    )


def colour(texture: Texture, u: np.ndarray, v: np.ndarray, *, printed: bool) -> np.ndarray:
    """Albedo (N, 3) float32 at the cloth coordinates u and v (N,). `printed` parts also carry the
    logo or letters.
    """
    base, accent = np.float32(texture.base), np.float32(texture.accent)
    share = _share(texture, u, v)
    out = (
        np.repeat(base[None], u.size, axis=0)
        if share is None
        else base + share[:, None] * (accent - base)
    )
    if texture.mark and printed:
        out[_mark(texture, u, v)] = accent
    return out


def _share(texture: Texture, u: np.ndarray, v: np.ndarray) -> np.ndarray | None:
    """Share of the accent colour (N,), or None for plain cloth."""
    (pu, pv), period, duty = texture.phase, np.float32(texture.period), np.float32(texture.duty)
    if texture.kind in ("solid", "logo", "text"):
        return None
    if texture.kind == "gradient":
        return np.clip((v + np.float32(0.1)) * np.float32(0.9), 0, 1)
    if texture.kind == "dots":
        a, b = u / period + np.float32(pu), v / period + np.float32(pv)
        row = np.floor(b)
        a += np.float32(0.5) * (row % 2)  # every second row is shifted by half a period
        a, b = a - np.floor(a) - np.float32(0.5), b - row - np.float32(0.5)
        return (a * a + b * b < duty * duty).astype(np.float32)
    if texture.kind == "blotches":
        k = np.float32(2 * np.pi) / period
        a = np.sin(
            k * u + np.float32(6.28 * pu) + np.float32(1.3) * np.sin(k * v * np.float32(0.9))
        )
        b = np.sin(
            k * v + np.float32(6.28 * pv) + np.float32(1.3) * np.sin(k * u * np.float32(0.8))
        )
        return (a * b > np.float32(0.12)).astype(np.float32)
    if texture.kind == "checks":
        return np.float32(0.5) * (_stripes(v / period + pv, duty) + _stripes(u / period + pu, duty))
    if texture.kind == "horizontal stripes":
        return _stripes(v / period + np.float32(pv), duty)
    if texture.kind == "vertical stripes":
        return _stripes(u / period + np.float32(pu), duty)
    along = u * np.float32(np.cos(texture.angle)) + v * np.float32(np.sin(texture.angle))
    return _stripes(along / period + np.float32(pu), duty)


def _stripes(position: np.ndarray, duty: np.float32) -> np.ndarray:
    return (position - np.floor(position) < duty).astype(np.float32)


def _mark(texture: Texture, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the print lies (N,) bool."""
    bitmap = _letter_bitmap(texture.mark) if texture.kind == "text" else _glyph_bitmap(texture.mark)
    height, width = bitmap.shape
    column = ((u - texture.mark_centre[0]) / texture.mark_size[0] + 0.5) * width
    row = ((v - texture.mark_centre[1]) / texture.mark_size[1] + 0.5) * height
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    hit = np.zeros(u.shape, bool)
    hit[inside] = bitmap[row[inside].astype(np.int32), column[inside].astype(np.int32)]
    return hit


@lru_cache(maxsize=64)
def _letter_bitmap(letters: str) -> np.ndarray:
    font = ImageFont.load_default(size=_GLYPH_SIDE)
    left, top, right, bottom = font.getbbox(letters, stroke_width=8)
    picture = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(picture).text((-left, -top), letters, fill=255, font=font, stroke_width=8)
    return np.asarray(picture) >= 128


@lru_cache(maxsize=len(GLYPHS))
def _glyph_bitmap(name: str) -> np.ndarray:
    """The glyph on a square of _GLYPH_SIDE pixels."""
    axis = (np.arange(_GLYPH_SIDE) + 0.5) / _GLYPH_SIDE * 2 - 1
    x, y = axis[None, :], axis[:, None]
    radius, turn = np.hypot(x, y), np.arctan2(x, -y)
    if name == "disc":
        return radius < 0.95
    if name == "ring":
        return (radius < 0.98) & (radius > 0.52)
    if name == "star":
        spoke = np.abs(
            (turn + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5
        )  # 0 at a tip, pi/5 in a notch
        return radius * np.cos(spoke) + 0.95 * radius * np.sin(spoke) * 2.1 < 0.98
    if name == "triangle":
        return (y < 0.8) & (y > 2 * np.abs(x) * 0.95 - 0.95)
    if name == "diamond":
        return np.abs(x) / 0.75 + np.abs(y) < 1
    if name == "cross":
        return ((np.abs(x) < 0.32) | (np.abs(y) < 0.32)) & (np.maximum(np.abs(x), np.abs(y)) < 0.95)
    if name == "heart":
        a, b = x * 1.15, -y * 1.15 + 0.1
        return (a * a + b * b - 0.85) ** 3 - 1.3 * a * a * b**3 < 0
    if name == "bolt":
        upper = (y < 0.15) & (x + 0.55 * y > -0.55) & (x + 0.55 * y < 0.15)
        lower = (y > -0.15) & (x + 0.55 * y > -0.15) & (x + 0.55 * y < 0.55)
        return (upper | lower) & (np.abs(y) < 0.97)
    if name == "moon":
        return (radius < 0.95) & (np.hypot(x - 0.45, y + 0.1) > 0.72)
    return np.maximum(np.abs(x) * 0.866 + np.abs(y) * 0.5, np.abs(y)) < 0.85  # hexagon


def _letters(rng: np.random.Generator, held_out: bool) -> str:
    word = [int(i) for i in rng.integers(len(_LETTERS), size=rng.integers(2, 4))]
    if sum(word) % 2 != int(held_out):
        word[-1] += 1 if word[-1] + 1 < len(_LETTERS) else -1
    return "".join(_LETTERS[i] for i in word)


def _sample_colour(rng: np.random.Generator) -> Colour:
    if rng.random() < 0.22:
        shade = np.clip(
            np.array(_NEUTRALS[rng.integers(len(_NEUTRALS))]) + rng.uniform(-0.04, 0.04, 3),
            0.08,
            0.92,
        )
        return tuple(float(c) for c in shade)
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.45, 0.95), rng.uniform(0.40, 0.92))


def _contrasting(rng: np.random.Generator, base: Colour) -> Colour:
    """A colour that stays apart from `base` after shading: far in RGB and in brightness."""
    luma = np.array([0.299, 0.587, 0.114])
    while True:
        other = _sample_colour(rng)
        difference = np.array(other) - np.array(base)
        if np.linalg.norm(difference) > 0.45 and abs(difference @ luma) > 0.22:
            return other
