"""Head: face with features, hair, sunglasses. Coordinates are relative to the head's centre and
roll.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vton.data.synthetic.body import Body
from vton.data.synthetic.maps import Grid

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
        looks, (cx, cy, roll), (a, b) = body.looks, body.head, body.head_size
        bottom = cy + max(looks.hair_length, b) + 0.12
        window = grid.window(cx - _REACH, cx + _REACH, cy + _HAIR_TOP, bottom)
        dx, dy = grid.x[None, window[1]] - np.float32(cx), grid.y[window[0], None] - np.float32(cy)
        cos, sin = np.float32(np.cos(roll)), np.float32(np.sin(roll))
        x, y = dx * cos + dy * sin, dy * cos - dx * sin
        jaw = np.float32(a) * (1 - np.float32(0.22) * np.clip(y / np.float32(b), 0, 1) ** 2)
        face = (x / jaw) ** 2 + (y / np.float32(b)) ** 2 <= 1
        turned = x - np.float32(0.5 * body.head_turn)
        crown = (x / np.float32(a + 0.035)) ** 2 + (
            (y + np.float32(0.03)) / np.float32(b + 0.03)
        ) ** 2 <= 1
        hairline = (
            y
            < np.float32(-0.115)
            - np.float32(1.2) * (turned * turned)
            + np.float32(0.9) * np.abs(turned) ** 1.5
        )
        long_hair = looks.hair_length > 0.25
        sides = (np.abs(turned) > np.float32(a - 0.030)) & (
            y < np.float32(0.10 if long_hair else -0.02)
        )
        hair = crown & (hairline | (sides & (y < 0.1)))
        if looks.hair_in_front:
            wave = np.float32(0.012) * np.sin(y * np.float32(22))
            lock = np.abs(
                np.abs(x) - np.float32(0.175) - wave - np.float32(0.05) * np.clip(y, 0, 1)
            ) < np.float32(0.052)
            hair |= (
                lock
                & (y > -0.1)
                & (
                    y
                    < np.float32(looks.hair_length)
                    - np.float32(1.5) * (np.abs(x) - np.float32(0.2)) ** 2
                )
            )
        width = np.float32(a + 0.035) + np.float32(0.05) * np.clip(y * np.float32(2.5), 0, 1)
        back = crown | (
            (np.abs(x) < width)
            & (y > -0.05)
            & (y < np.float32(looks.hair_length) - np.float32(1.2) * x * x)
        )
        eyes = np.abs(
            np.abs(x - np.float32(0.8 * body.head_turn)) - np.float32(0.066)
        ) < np.float32(0.052)
        glasses = (
            face & eyes & (np.abs(y + np.float32(0.04)) < np.float32(0.036)) & looks.sunglasses
        )
        return cls(window, x, y, face, hair, back, glasses, crown)


def face_colour(body: Body, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Albedo of the face (N, 3): brows, eyes, nose and mouth, moved sideways by the head's turn."""
    looks = body.looks
    skin = np.float32(looks.skin)
    out = np.repeat(skin[None], x.size, axis=0)
    x = x - np.float32(0.8 * body.head_turn)
    side = np.abs(x) - np.float32(0.066)
    brow = (np.abs(side) < 0.038) & (
        np.abs(y + np.float32(0.083) - np.float32(3) * side * side) < 0.008
    )
    out[brow] = np.float32(looks.hair) * np.float32(0.8)
    eye = (side / np.float32(0.033)) ** 2 + ((y + np.float32(0.04)) / np.float32(0.016)) ** 2 < 1
    out[eye] = np.float32((0.93, 0.92, 0.9))
    out[eye & (np.abs(side) < 0.014)] = np.float32(looks.iris)
    nose = (np.abs(np.abs(x - np.float32(0.2 * body.head_turn)) - np.float32(0.016)) < 0.008) & (
        np.abs(y - np.float32(0.042)) < 0.008
    )
    out[nose] = skin * np.float32(0.72)
    mouth = (x / np.float32(0.052)) ** 2 + ((y - np.float32(0.11)) / np.float32(0.020)) ** 2 < 1
    out[mouth] = np.float32(looks.lips)
    return out
