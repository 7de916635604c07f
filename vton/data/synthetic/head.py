"""Head: face with features, hair, sunglasses.

Coordinates are relative to the head's centre and roll.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vton.data.synthetic.body import Body
from vton.data.synthetic.maps import Grid

f32 = np.float32  # the picture is drawn in single precision
_REACH = 0.34  # of hair to either side of the head's centre
_HAIR_TOP = -0.34


@dataclass(frozen=True)
class HeadMap:
    """Head coordinates and masks inside a window of the grid."""

    window: tuple[slice, slice]
    x: np.ndarray  # (h, w), positive towards the person's left
    y: np.ndarray  # (h, w), down
    face: np.ndarray
    hair: np.ndarray
    back_hair: np.ndarray
    glasses: np.ndarray
    crown: np.ndarray  # skull with its hair

    @classmethod
    def of(cls, body: Body, grid: Grid) -> HeadMap:
        appearance = body.appearance
        cx, cy, roll = body.head
        a, b = body.head_size
        bottom = cy + max(appearance.hair_length, b) + 0.12
        window = grid.window(cx - _REACH, cx + _REACH, cy + _HAIR_TOP, bottom)
        dx = grid.x[None, window[1]] - f32(cx)
        dy = grid.y[window[0], None] - f32(cy)
        cos = f32(np.cos(roll))
        sin = f32(np.sin(roll))
        x = dx * cos + dy * sin
        y = dy * cos - dx * sin

        jaw = f32(a) * (1 - f32(0.22) * np.clip(y / f32(b), 0, 1) ** 2)
        face = (x / jaw) ** 2 + (y / f32(b)) ** 2 <= 1
        crown = (x / f32(a + 0.035)) ** 2 + ((y + f32(0.03)) / f32(b + 0.03)) ** 2 <= 1

        turned = x - f32(0.5 * body.head_turn)
        aside = np.abs(turned)
        hairline = y < f32(-0.115) - f32(1.2) * (turned * turned) + f32(0.9) * aside**1.5
        temples = f32(0.10 if appearance.hair_length > 0.25 else -0.02)
        sides = (aside > f32(a - 0.030)) & (y < temples)
        hair = crown & (hairline | (sides & (y < 0.1)))
        if appearance.hair_in_front:
            wave = f32(0.012) * np.sin(y * f32(22))
            middle = np.abs(x) - f32(0.175) - wave - f32(0.05) * np.clip(y, 0, 1)
            end = f32(appearance.hair_length) - f32(1.5) * (np.abs(x) - f32(0.2)) ** 2
            hair |= (np.abs(middle) < f32(0.052)) & (y > -0.1) & (y < end)
        width = f32(a + 0.035) + f32(0.05) * np.clip(y * f32(2.5), 0, 1)
        end = f32(appearance.hair_length) - f32(1.2) * x * x
        back_hair = crown | ((np.abs(x) < width) & (y > -0.05) & (y < end))

        eyes = np.abs(np.abs(x - f32(0.8 * body.head_turn)) - f32(0.066)) < f32(0.052)
        glasses = face & eyes & (np.abs(y + f32(0.04)) < f32(0.036)) & appearance.sunglasses
        return cls(window, x, y, face, hair, back_hair, glasses, crown)


def face_colour(body: Body, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Albedo of the face (N, 3): brows, eyes, nose and mouth, moved sideways by the head's turn."""
    appearance = body.appearance
    skin = f32(appearance.skin)
    out = np.repeat(skin[None], x.size, axis=0)
    x = x - f32(0.8 * body.head_turn)
    side = np.abs(x) - f32(0.066)
    brow = (np.abs(side) < 0.038) & (np.abs(y + f32(0.083) - f32(3) * side * side) < 0.008)
    out[brow] = f32(appearance.hair) * f32(0.8)
    eye = (side / f32(0.033)) ** 2 + ((y + f32(0.04)) / f32(0.016)) ** 2 < 1
    out[eye] = f32((0.93, 0.92, 0.9))
    out[eye & (np.abs(side) < 0.014)] = f32(appearance.iris)
    nostrils = np.abs(np.abs(x - f32(0.2 * body.head_turn)) - f32(0.016)) < 0.008
    nose = nostrils & (np.abs(y - f32(0.042)) < 0.008)
    out[nose] = skin * f32(0.72)
    mouth = (x / f32(0.052)) ** 2 + ((y - f32(0.11)) / f32(0.020)) ** 2 < 1
    out[mouth] = f32(appearance.lips)
    return out
