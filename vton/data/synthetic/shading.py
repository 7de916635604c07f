"""Light and folds on the person, and the backdrop.

All belong to the person's seed, never to the garment.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

_FOLD_SHADE = np.float32(0.13)  # depth of the folds' light and dark
_FOLD_SHIFT = np.float32(0.009)  # how far folds displace the cloth, torso lengths
DARKEST, BRIGHTEST = 0.55, 1.18  # bounds of the multiplicative shading: colours keep their category


@dataclass(frozen=True)
class Lighting:
    """Direction of the light and the waves that make up the folds."""

    light: float  # -1 from the picture's left, 1 from its right
    # (k_x, k_y, phase) of four waves, radians per torso length
    waves: tuple[tuple[float, float, float], ...]

    def folds(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two smooth fields in [-1, 1] at body coordinates (N,).

        Bent waves, as cloth under tension shows.
        """
        phases = []
        for kx, ky, phase in self.waves:
            phases.append(np.float32(kx) * x + np.float32(ky) * y + np.float32(phase))
        first, second, third, bend = phases
        warp = np.sin(bend)
        a = np.sin(first + np.float32(1.5) * warp)
        b = np.sin(second + np.float32(1.2) * a)
        c = np.sin(third - np.float32(1.3) * warp)
        down = np.float32(0.55) * a + np.float32(0.45) * b
        across = np.float32(0.6) * c + np.float32(0.4) * b
        return down, across

    def cloth(self, across: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """Brightness of cloth; `across` runs from -1 to 1 over the part's width."""
        return self.solid(across) + _FOLD_SHADE * folds

    def solid(self, across: np.ndarray) -> np.ndarray:
        """Brightness of a rounded, smooth surface."""
        edge = across * across
        slope = np.float32(0.09 * self.light) * across
        return np.float32(1.03) + slope - np.float32(0.20) * edge * edge


def shifted(
    u: np.ndarray, v: np.ndarray, folds: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Cloth coordinates displaced by the folds."""
    down, across = folds
    return u + _FOLD_SHIFT * across, v + _FOLD_SHIFT * down


def sample_lighting(rng: np.random.Generator) -> Lighting:
    """A random light and random folds."""
    wavelengths = (
        rng.uniform(0.22, 0.34),
        rng.uniform(0.14, 0.24),
        rng.uniform(0.3, 0.5),
        rng.uniform(0.5, 0.9),
    )
    waves = []
    for wavelength in wavelengths:
        angle = rng.uniform(-0.9, 0.9) + (np.pi / 2 if rng.random() < 0.4 else 0)
        k = 2 * np.pi / wavelength
        phase = float(rng.uniform(0, 2 * np.pi))
        waves.append((float(k * np.cos(angle)), float(k * np.sin(angle)), phase))
    return Lighting(float(rng.uniform(-1, 1)), tuple(waves))


@dataclass(frozen=True)
class Backdrop:
    """Flat, a gradient, or either with a few simple shapes behind the person."""

    top: tuple[float, float, float]
    bottom: tuple[float, float, float]
    # kind ("ellipse" or "box"), centre x, y, half-width, half-height, colour
    shapes: tuple[tuple[str, float, float, float, float, tuple[float, float, float]], ...]

    def colour(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """sRGB (N, 3) at picture positions: x and y in [0, 1] of width and height."""
        top = np.float32(self.top)
        bottom = np.float32(self.bottom)
        out = top + y[:, None] * (bottom - top)
        for kind, centre_x, centre_y, width, height, colour in self.shapes:
            dx = (x - np.float32(centre_x)) / np.float32(width)
            dy = (y - np.float32(centre_y)) / np.float32(height)
            if kind == "ellipse":
                inside = dx * dx + dy * dy < 1
            else:
                inside = np.maximum(np.abs(dx), np.abs(dy)) < 1
            out[inside] = np.float32(colour)
        return out


def sample_backdrop(rng: np.random.Generator) -> Backdrop:
    """A random backdrop."""
    kind = rng.choice(["flat", "gradient", "shapes"], p=[0.45, 0.3, 0.25])
    top = bottom = _sample_pale(rng)
    if kind != "flat":
        bottom = np.clip(np.array(top) + rng.uniform(-0.16, 0.16), 0, 1)
        bottom = tuple(bottom.tolist())
    shapes = []
    if kind == "shapes":
        for _ in range(rng.integers(1, 4)):
            form = str(rng.choice(["ellipse", "box"]))
            x = rng.random()
            y = rng.random()
            width = rng.uniform(0.08, 0.35)
            height = rng.uniform(0.08, 0.35)
            shapes.append((form, x, y, width, height, _sample_pale(rng)))
    return Backdrop(top, bottom, tuple(shapes))


def _sample_pale(rng: np.random.Generator) -> tuple[float, float, float]:
    """A bright colour of low saturation."""
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.22), rng.uniform(0.68, 0.97))
