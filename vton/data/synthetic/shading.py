"""Light and folds on the person, and the backdrop. All belong to the person's seed, never to the
garment.
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
    waves: tuple[
        tuple[float, float, float], ...
    ]  # (k_x, k_y, phase) of four waves, radians per torso length

    def folds(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two smooth fields in [-1, 1] at body coordinates (N,): bent waves, as cloth under tension
        shows.
        """
        first, second, third, bend = (
            np.float32(kx) * x + np.float32(ky) * y + np.float32(phase)
            for kx, ky, phase in self.waves
        )
        warp = np.sin(bend)
        a = np.sin(first + np.float32(1.5) * warp)
        b = np.sin(second + np.float32(1.2) * a)
        c = np.sin(third - np.float32(1.3) * warp)
        return np.float32(0.55) * a + np.float32(0.45) * b, np.float32(0.6) * c + np.float32(
            0.4
        ) * b

    def cloth(self, across: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """Brightness of cloth; `across` runs from -1 to 1 over the part's width."""
        return self.solid(across) + _FOLD_SHADE * folds

    def solid(self, across: np.ndarray) -> np.ndarray:
        """Brightness of a rounded, smooth surface."""
        edge = across * across
        return (
            np.float32(1.03)
            + np.float32(0.09 * self.light) * across
            - np.float32(0.20) * edge * edge
        )


def shifted(
    u: np.ndarray, v: np.ndarray, folds: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Cloth coordinates displaced by the folds."""
    return u + _FOLD_SHIFT * folds[1], v + _FOLD_SHIFT * folds[0]


def sample_lighting(rng: np.random.Generator) -> Lighting:
    waves = []
    for wavelength in (
        rng.uniform(0.22, 0.34),
        rng.uniform(0.14, 0.24),
        rng.uniform(0.3, 0.5),
        rng.uniform(0.5, 0.9),
    ):
        angle = rng.uniform(-0.9, 0.9) + (np.pi / 2 if rng.random() < 0.4 else 0)
        k = 2 * np.pi / wavelength
        waves.append(
            (float(k * np.cos(angle)), float(k * np.sin(angle)), float(rng.uniform(0, 2 * np.pi)))
        )
    return Lighting(float(rng.uniform(-1, 1)), tuple(waves))


@dataclass(frozen=True)
class Backdrop:
    """Flat, a gradient, or either with a few simple shapes behind the person."""

    top: tuple[float, float, float]
    bottom: tuple[float, float, float]
    shapes: tuple[
        tuple[str, float, float, float, float, tuple[float, float, float]], ...
    ]  # kind, x, y, w, h, colour

    def colour(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """sRGB (N, 3) at picture positions: x and y in [0, 1] of width and height."""
        top, bottom = np.float32(self.top), np.float32(self.bottom)
        out = top + y[:, None] * (bottom - top)
        for kind, cx, cy, w, h, shade in self.shapes:
            dx, dy = (x - np.float32(cx)) / np.float32(w), (y - np.float32(cy)) / np.float32(h)
            inside = (
                dx * dx + dy * dy < 1
                if kind == "ellipse"
                else np.maximum(np.abs(dx), np.abs(dy)) < 1
            )
            out[inside] = np.float32(shade)
        return out


def sample_backdrop(rng: np.random.Generator) -> Backdrop:
    def pale() -> tuple[float, float, float]:
        return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.22), rng.uniform(0.68, 0.97))

    kind = rng.choice(["flat", "gradient", "shapes"], p=[0.45, 0.3, 0.25])
    top = pale()
    bottom = (
        top
        if kind == "flat"
        else tuple(float(c) for c in np.clip(np.array(top) + rng.uniform(-0.16, 0.16), 0, 1))
    )
    shapes = []
    if kind == "shapes":
        for _ in range(rng.integers(1, 4)):
            form = str(rng.choice(["ellipse", "box"]))
            shapes.append(
                (
                    form,
                    rng.random(),
                    rng.random(),
                    rng.uniform(0.08, 0.35),
                    rng.uniform(0.08, 0.35),
                    pale(),
                )
            )
    return Backdrop(top, bottom, tuple(shapes))
