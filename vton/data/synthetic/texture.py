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

# How often each kind occurs: on tops and dresses, and on trousers and skirts, which have no print.
KIND_SHARES = {
    "solid": (0.14, 0.46),
    "horizontal stripes": (0.12, 0.06),
    "vertical stripes": (0.10, 0.14),
    "diagonal stripes": (0.10, 0.08),
    "checks": (0.10, 0.12),
    "dots": (0.10, 0.06),
    "gradient": (0.08, 0.04),
    "blotches": (0.06, 0.04),
    "logo": (0.12, 0.0),
    "text": (0.08, 0.0),
}
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


def sample_texture(
    rng: np.random.Generator, *, feature: float, held_out: bool, lower: bool = False
) -> Texture:
    """A random texture. `feature` is the smallest allowed stripe or dot (torso lengths).

    Letters of held-out (test) textures never occur in training: their alphabet positions add up to
    an odd number.
    """
    shares = [on_lower if lower else on_upper for on_upper, on_lower in KIND_SHARES.values()]
    kind = str(rng.choice(list(KIND_SHARES), p=shares))
    base = _sample_colour(rng)
    accent = _sample_contrasting(rng, base)
    period = feature * rng.uniform(2.0, 3.6)
    duty = rng.uniform(0.4, 0.6)
    if kind == "dots":
        period = feature * rng.uniform(2.1, 3.0)
        duty = rng.uniform(0.27, 0.33)
    elif kind == "blotches":
        period = feature * rng.uniform(3.5, 5.0)
    angle = float(rng.choice([-1, 1]) * rng.uniform(0.5, 1.0))
    mark = ""
    mark_size = (0.0, 0.0)
    width = rng.uniform(0.30, 0.44)
    if kind == "logo":
        mark = str(rng.choice(GLYPHS))
        mark_size = (width, width)
    elif kind == "text":
        mark = _sample_letters(rng, held_out)
        mark_size = (min(0.17 * len(mark), 0.46), rng.uniform(0.20, 0.27))
    mark_centre = (rng.uniform(-0.03, 0.03), rng.uniform(0.34, 0.46))
    trim = _sample_contrasting(rng, base) if rng.random() < 0.18 else None
    sleeves = None
    if not lower and rng.random() < 0.12:
        sleeves = _sample_contrasting(rng, base)
    phase = (rng.random(), rng.random())
    return Texture(
        kind=kind,
        base=base,
        accent=accent,
        period=period,
        duty=duty,
        angle=angle,
        phase=phase,
        mark=mark,
        mark_centre=mark_centre,
        mark_size=mark_size,
        trim=trim,
        sleeves=sleeves,
    )


def colour(texture: Texture, u: np.ndarray, v: np.ndarray, *, printed: bool) -> np.ndarray:
    """Albedo (N, 3) float32 at the cloth coordinates u and v (N,).

    `printed` parts also carry the logo or letters.
    """
    base = np.float32(texture.base)
    accent = np.float32(texture.accent)
    share = _accent_share(texture, u, v)
    if share is None:
        out = np.repeat(base[None], u.size, axis=0)
    else:
        out = base + share[:, None] * (accent - base)
    if texture.mark and printed:
        out[_is_marked(texture, u, v)] = accent
    return out


def _accent_share(texture: Texture, u: np.ndarray, v: np.ndarray) -> np.ndarray | None:
    """Share of the accent colour (N,), or None for plain cloth."""
    phase_u, phase_v = texture.phase
    period = np.float32(texture.period)
    duty = np.float32(texture.duty)
    if texture.kind in ("solid", "logo", "text"):
        return None
    if texture.kind == "gradient":
        return np.clip((v + np.float32(0.1)) * np.float32(0.9), 0, 1)
    if texture.kind == "dots":
        a = u / period + np.float32(phase_u)
        b = v / period + np.float32(phase_v)
        row = np.floor(b)
        a += np.float32(0.5) * (row % 2)  # every second row is shifted by half a period
        a = a - np.floor(a) - np.float32(0.5)
        b = b - row - np.float32(0.5)
        return (a * a + b * b < duty * duty).astype(np.float32)
    if texture.kind == "blotches":
        k = np.float32(2 * np.pi) / period
        bend_u = np.float32(1.3) * np.sin(k * v * np.float32(0.9))
        bend_v = np.float32(1.3) * np.sin(k * u * np.float32(0.8))
        a = np.sin(k * u + np.float32(6.28 * phase_u) + bend_u)
        b = np.sin(k * v + np.float32(6.28 * phase_v) + bend_v)
        return (a * b > np.float32(0.12)).astype(np.float32)
    if texture.kind == "checks":
        across = _stripes(v / period + phase_v, duty)
        along = _stripes(u / period + phase_u, duty)
        return np.float32(0.5) * (across + along)
    if texture.kind == "horizontal stripes":
        return _stripes(v / period + np.float32(phase_v), duty)
    if texture.kind == "vertical stripes":
        return _stripes(u / period + np.float32(phase_u), duty)
    oblique = u * np.float32(np.cos(texture.angle)) + v * np.float32(np.sin(texture.angle))
    return _stripes(oblique / period + np.float32(phase_u), duty)


def _stripes(position: np.ndarray, duty: np.float32) -> np.ndarray:
    return (position - np.floor(position) < duty).astype(np.float32)


def _is_marked(texture: Texture, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the print lies (N,) bool."""
    bitmap_of = _letter_bitmap if texture.kind == "text" else _glyph_bitmap
    bitmap = bitmap_of(texture.mark)
    height, width = bitmap.shape
    centre_u, centre_v = texture.mark_centre
    size_u, size_v = texture.mark_size
    column = ((u - centre_u) / size_u + 0.5) * width
    row = ((v - centre_v) / size_v + 0.5) * height
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    hit = np.zeros(u.shape, bool)
    hit[inside] = bitmap[row[inside].astype(np.int32), column[inside].astype(np.int32)]
    return hit


@lru_cache(maxsize=64)
def _letter_bitmap(letters: str) -> np.ndarray:
    """(H, W) bool, as large as the letters are."""
    font = ImageFont.load_default(size=_GLYPH_SIDE)
    left, top, right, bottom = font.getbbox(letters, stroke_width=8)
    picture = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(picture).text((-left, -top), letters, fill=255, font=font, stroke_width=8)
    return np.asarray(picture) >= 128


@lru_cache(maxsize=len(GLYPHS))
def _glyph_bitmap(name: str) -> np.ndarray:
    """The glyph on a square of _GLYPH_SIDE pixels."""
    axis = (np.arange(_GLYPH_SIDE) + 0.5) / _GLYPH_SIDE * 2 - 1
    x = axis[None, :]
    y = axis[:, None]
    radius = np.hypot(x, y)
    if name == "disc":
        return radius < 0.95
    if name == "ring":
        return (radius < 0.98) & (radius > 0.52)
    if name == "star":
        turn = np.arctan2(x, -y)
        # 0 at a tip, pi/5 in a notch
        spoke = np.abs((turn + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
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


def _sample_letters(rng: np.random.Generator, held_out: bool) -> str:
    word = rng.integers(len(_LETTERS), size=rng.integers(2, 4)).tolist()
    if sum(word) % 2 != int(held_out):
        word[-1] += 1 if word[-1] + 1 < len(_LETTERS) else -1
    return "".join(_LETTERS[place] for place in word)


def _sample_colour(rng: np.random.Generator) -> Colour:
    if rng.random() < 0.22:
        neutral = np.array(_NEUTRALS[rng.integers(len(_NEUTRALS))])
        shade = np.clip(neutral + rng.uniform(-0.04, 0.04, 3), 0.08, 0.92)
        return tuple(shade.tolist())
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.45, 0.95), rng.uniform(0.40, 0.92))


def _sample_contrasting(rng: np.random.Generator, base: Colour) -> Colour:
    """A colour that stays apart from `base` after shading: far in RGB and in brightness."""
    luma = np.array([0.299, 0.587, 0.114])
    while True:
        other = _sample_colour(rng)
        difference = np.array(other) - np.array(base)
        if np.linalg.norm(difference) > 0.45 and abs(difference @ luma) > 0.22:
            return other
