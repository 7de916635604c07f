"""Parametric garments: outline, item names and texture.

The same parameters drive product picture and person. Lengths are trunk coordinates (0 neck, 1 hips,
1.82 knees) or limb coordinates (1 elbow or knee, 2 wrist or ankle).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vton.data.synthetic import texture
from vton.data.synthetic.body import CHEST, CROTCH, TRUNK_TOP, Body, mannequin
from vton.data.synthetic.profile import Profile
from vton.data.synthetic.texture import Texture

# Where sleeves end along the arm, and how often tops and dresses have them.
SLEEVES = {
    "none": (0.0, 0.0),
    "cap": (0.22, 0.32),
    "short": (0.48, 0.66),
    "elbow": (0.88, 1.05),
    "long": (1.82, 1.97),
}
TOP_SLEEVES = (0.18, 0.10, 0.36, 0.12, 0.24)
DRESS_SLEEVES = (0.34, 0.14, 0.24, 0.10, 0.18)
NECKLINES = ("round", "V", "square", "high")
# (|u|, v) of the mannequin's shoulder line, neck to shoulder.
SHOULDER_LINE = ((0.12, -0.17), (0.31, -0.085))
COLLAR_TOP = -0.245
LOWER_TOP = 0.75  # v of the waistband


@dataclass(frozen=True)
class Garment:
    """`kind` is top, trousers, skirt or dress. Unused parameters keep their defaults."""

    kind: str
    item: str  # name in captions and tags
    texture: Texture
    sleeve: str = "none"
    sleeve_end: float = 0.0  # along the arm
    sleeve_ease: float = 0.0  # beyond the arm's radius, torso lengths
    sleeve_flare: float = 0.0  # additional radius at the hem of a sleeve or trouser leg
    neckline: str = "round"
    neck_half: float = 0.16  # half-width of the neck hole
    neck_depth: float = 0.1
    shoulder_inset: float = 0.0  # narrower shoulders of sleeveless tops
    hem: float = 1.0
    fit: float = 0.2  # 0 follows the body, 1 hangs straight from the chest
    ease: float = 0.02  # beyond the body's silhouette
    flare: float = 0.0  # gain of half-width per trunk unit, below the waist
    leg_end: float = 0.0  # along the leg

    @property
    def category(self) -> str:
        return {"top": "upper_body", "dress": "dresses"}.get(self.kind, "lower_body")

    @property
    def upper(self) -> bool:
        """Covers shoulders and chest."""
        return self.kind in ("top", "dress")

    @property
    def trunk_range(self) -> tuple[float, float]:
        """Trunk coordinates between which the garment can lie."""
        if self.kind == "trousers":
            return LOWER_TOP, CROTCH
        return (COLLAR_TOP if self.upper else LOWER_TOP), self.hem

    @cached_property
    def top_edge(self) -> Profile:
        """v of the upper edge over |u|: neckline, then shoulder line (or the waistband)."""
        if not self.upper:
            return Profile.of(lambda u: np.full_like(u, LOWER_TOP), 0.0, 1.0)
        (u0, v0), (u1, v1) = SHOULDER_LINE

        def edge(u: np.ndarray) -> np.ndarray:
            line = np.interp(u, [u0, u1, 1.0], [v0, v1, v1 + 0.25]) - 0.006
            if self.neckline == "high":
                return np.where(u < 0.118, COLLAR_TOP, line)
            x = np.clip(u / self.neck_half, 0, 1)
            if self.neckline == "round":
                drop = np.sqrt(1 - x * x)
            elif self.neckline == "V":
                drop = 1 - x
            else:  # square
                drop = (x < 1) * 1.0
            start = np.interp(self.neck_half, [u0, u1], [v0, v1])
            return np.where(u < self.neck_half, start + (self.neck_depth - start) * drop, line)

        return Profile.of(edge, 0.0, 0.7)


class Fitted:
    """A garment on a body: its silhouettes, and the way from body to cloth coordinates.

    Cloth coordinates are those of the garment on the mannequin, in torso lengths. A garment worn
    `over` another one is at least as wide, so that changing it changes nothing outside the two.
    """

    def __init__(self, garment: Garment, body: Body, over: Fitted | None = None):
        self.garment, self.body, self.over = garment, body, over

    @cached_property
    def half(self) -> Profile:
        """Half-width of the trunk part over v."""
        own = self._half(self.body)
        if self.over is None:
            return own
        v = np.linspace(own.low, own.high, len(own.table), dtype=np.float32)
        # Below the waistband only; eased in, for a smooth outline.
        covered = np.clip((v - np.float32(LOWER_TOP)) * 8, 0, 1)
        lacking = np.maximum(self.over.outline(v) + np.float32(0.006) - own.table, 0)
        return Profile(own.low, own.high, own.table + covered * lacking)

    @cached_property
    def cloth_half(self) -> Profile:
        return self._half(MANNEQUIN)

    @cached_property
    def sleeve(self) -> Profile:
        """Radius of the sleeves over the arm coordinate."""
        return self._sleeve(self.body)

    @cached_property
    def cloth_sleeve(self) -> Profile:
        return self._sleeve(MANNEQUIN)

    @cached_property
    def leg(self) -> Profile:
        """Radius of the trouser legs over the leg coordinate."""
        return self._leg(self.body)

    @cached_property
    def cloth_leg(self) -> Profile:
        return self._leg(MANNEQUIN)

    def outline(self, v: np.ndarray) -> np.ndarray:
        """Half-width of everything the garment covers at v.

        Trousers reach to the outer edges of their legs.
        """
        half = self.half(v)
        if self.garment.kind != "trousers":
            return half
        gain = np.float32(float(self.leg.table.max() - self.body.leg_radius.table.max()))
        return np.maximum(half, self.body.half(v) + gain)

    def across(self, side: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position across the trunk part, -1 to 1 inside it, and the cloth coordinate u there."""
        across = side / self.half(v)
        front = across
        if self.body.yaw:
            front = across + np.float32(self.body.yaw) * (1 - across * across)
        return across, front * self.cloth_half(v)

    def _half(self, body: Body) -> Profile:
        garment = self.garment

        def width(v: np.ndarray) -> np.ndarray:
            worn = body.half(v.astype(np.float32)).astype(float)
            chest = float(body.half(np.float32([CHEST]))[0])
            straight = np.maximum(worn, np.where(v < 1, chest, 0))
            out = worn + (garment.fit * (straight - worn) if garment.upper else 0)
            eased = (v - 0.1) / 0.25 if garment.upper else (v - 0.6) / 0.4
            out += garment.ease * np.clip(eased, 0, 1)
            out -= garment.shoulder_inset * np.clip((0.34 - v) / 0.3, 0, 1)
            flare = garment.flare * np.clip(v - 0.72, 0, None)
            out += flare
            if garment.kind in ("skirt", "dress"):
                # It hangs from the hips, but never leaves a leg outside.
                hip = float(body.half(np.float32([1.0]))[0]) + garment.ease
                hang = hip * (1 - 0.05 * np.clip(v - 1, 0, None)) + flare
                out = np.where(v > 1, np.maximum(hang, worn + 0.02), out)
            return out

        return Profile.of(width, TRUNK_TOP, 2.9)

    def _sleeve(self, body: Body) -> Profile:
        garment = self.garment

        def radius(t: np.ndarray) -> np.ndarray:
            loose = garment.sleeve_ease * np.clip(0.35 + 0.65 * np.clip(t, 0, 1) / 0.35, 0, 1)
            flare = garment.sleeve_flare * np.clip(t / max(garment.sleeve_end, 0.1), 0, 1) ** 3
            return body.arm_radius(t.astype(np.float32)) + 0.010 + loose + flare

        return Profile.of(radius, -0.3, 2.4)

    def _leg(self, body: Body) -> Profile:
        garment = self.garment

        def radius(t: np.ndarray) -> np.ndarray:
            thigh = float(body.leg_radius(np.float32([0.1]))[0])
            worn = body.leg_radius(t.astype(np.float32)).astype(float)
            hanging = np.maximum(worn, np.where(t > 0.1, thigh * 0.92, 0))
            loose = garment.fit * (hanging - worn) + garment.ease
            return worn + loose + garment.sleeve_flare * np.clip(t - 0.8, 0, None)

        return Profile.of(radius, -0.3, 2.2)


MANNEQUIN = mannequin(0.0)


def sample_top(rng: np.random.Generator, *, feature: float, held_out: bool = False) -> Garment:
    """A random top."""
    sleeve = str(rng.choice(list(SLEEVES), p=TOP_SLEEVES))
    parts = _sample_upper_parts(rng, sleeve)
    if sleeve == "none":
        item = "tank top"
    elif sleeve == "cap":
        item = "top"
    else:
        item = str(rng.choice(["T-shirt", "blouse", "shirt"], p=[0.6, 0.25, 0.15]))
    if sleeve == "long" and item == "T-shirt":
        item = "sweater"
    return Garment(
        kind="top",
        item=item,
        texture=texture.sample_texture(rng, feature=feature, held_out=held_out),
        hem=rng.uniform(0.88, 1.14),
        fit=rng.uniform(0.1, 1.0),
        ease=rng.uniform(0.015, 0.05),
        flare=float(rng.choice([0.0, 0.12], p=[0.75, 0.25])),
        **parts,
    )


def sample_dress(rng: np.random.Generator, *, feature: float, held_out: bool = False) -> Garment:
    """A random dress."""
    sleeve = str(rng.choice(list(SLEEVES), p=DRESS_SLEEVES))
    return Garment(
        kind="dress",
        item="dress",
        texture=texture.sample_texture(rng, feature=feature, held_out=held_out),
        hem=rng.uniform(1.42, 2.35),
        fit=rng.uniform(0.0, 0.4),
        ease=rng.uniform(0.015, 0.04),
        flare=float(rng.choice([0.02, rng.uniform(0.12, 0.28)])),
        **_sample_upper_parts(rng, sleeve),
    )


def sample_lower(rng: np.random.Generator, *, feature: float, held_out: bool = False) -> Garment:
    """Random trousers, shorts or a skirt."""
    cloth = texture.sample_texture(rng, feature=feature, held_out=held_out, lower=True)
    item = str(rng.choice(["trousers", "shorts", "skirt"], p=[0.5, 0.18, 0.32]))
    if item == "skirt":
        return Garment(
            kind="skirt",
            item=item,
            texture=cloth,
            hem=rng.uniform(1.45, 2.3),
            fit=0.0,
            ease=rng.uniform(0.015, 0.035),
            flare=float(rng.choice([0.0, rng.uniform(0.12, 0.32)])),
        )
    leg_end = rng.uniform(0.35, 0.75) if item == "shorts" else rng.uniform(1.72, 1.98)
    fit = rng.uniform(0.0, 0.75)
    ease = rng.uniform(0.012, 0.03)
    flare = 0.0
    if item == "trousers":
        flare = float(rng.choice([0.0, rng.uniform(0.03, 0.08)]))
    return Garment(
        kind="trousers",
        item=item,
        texture=cloth,
        leg_end=leg_end,
        fit=fit,
        ease=ease,
        sleeve_flare=flare,
    )


def _sample_upper_parts(rng: np.random.Generator, sleeve: str) -> dict:
    """Sleeves and neckline of a top or dress."""
    neckline = str(rng.choice(NECKLINES, p=[0.44, 0.26, 0.14, 0.16]))
    neck_half = rng.uniform(0.15, 0.21)
    depths = {
        "round": rng.uniform(-0.10, 0.05),
        "V": rng.uniform(0.05, 0.24),
        "square": rng.uniform(-0.02, 0.10),
    }
    parts = {
        "neckline": neckline,
        "neck_half": neck_half,
        "neck_depth": depths.get(neckline, 0.0),
        "sleeve": sleeve,
        "sleeve_end": float(rng.uniform(*SLEEVES[sleeve])),
    }
    if sleeve == "none":
        parts["shoulder_inset"] = rng.uniform(0.02, 0.07)
    else:
        parts["sleeve_ease"] = rng.uniform(0.008, 0.05)
        flare = rng.uniform(0.02, 0.06)
        parts["sleeve_flare"] = float(rng.choice([0.0, flare], p=[0.75, 0.25]))
    return parts
