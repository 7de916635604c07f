"""Captions and tags of rendered garments, from their parameters."""

from __future__ import annotations

import colorsys
from bisect import bisect_right

from vton.data.synthetic.garment import Garment

TAGS = (
    "item",
    "details",
    "looks",
    "colors",
    "prints",
    "textures",
    "sleeveLength",
    "length",
    "neckLine",
    "fit",
    "shape",
)
_PRINTS = {
    "solid": "solid",
    "logo": "graphic",
    "text": "lettering",
    "dots": "dots",
    "checks": "check",
    "gradient": "gradient",
    "blotches": "camouflage",
}
_SLEEVES = {
    "none": "sleeveless",
    "cap": "cap",
    "short": "short",
    "elbow": "cropped",
    "long": "long",
}
# Names of the hues, and where each gives way to the next.
_HUES = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "red")
_HUE_BOUNDS = (0.04, 0.10, 0.18, 0.44, 0.53, 0.70, 0.80, 0.95)
# Where a garment is long: its hem in trunk coordinates, or the end of its legs in leg coordinates.
_LONG_FROM = {"top": 1.05, "dress": 1.9, "skirt": 1.9, "trousers": 1.0}


def colour_name(colour: tuple[float, float, float]) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    if value < 0.22:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.80 else "gray"
    name = _HUES[bisect_right(_HUE_BOUNDS, hue)]
    return "brown" if name in ("orange", "red") and value < 0.55 else name


def tags(garment: Garment) -> dict[str, str | None]:
    """IDM-VTON's eleven tags; None where a tag does not apply."""
    end = garment.leg_end if garment.kind == "trousers" else garment.hem
    flared = garment.flare > 0.1 or garment.sleeve_flare > 0.02
    values = {
        "item": garment.item,
        "colors": colour_name(garment.texture.base),
        "prints": _print_name(garment.texture.kind),
        "length": "long" if end > _LONG_FROM[garment.kind] else "normal",
        "fit": _fit_name(garment.fit),
        "shape": "flared" if flared else "straight",
    }
    if garment.upper:
        values["sleeveLength"] = _SLEEVES[garment.sleeve]
        values["neckLine"] = garment.neckline
    return {name: values.get(name) for name in TAGS}


def garment_caption(garment: Garment) -> str:
    """Two to seven words, such as "red stripe short sleeve V neck T-shirt"."""
    values = tags(garment)
    words = [values["colors"]]
    if values["prints"] != "solid":
        words.append(values["prints"])
    if garment.upper:
        sleeveless = garment.sleeve == "none"
        words.append("sleeveless" if sleeveless else f"{values['sleeveLength']} sleeve")
        words.append(f"{garment.neckline} neck")
    return " ".join([*words, garment.item])


def _print_name(kind: str) -> str:
    return "stripe" if "stripes" in kind else _PRINTS[kind]


def _fit_name(fit: float) -> str:
    if fit > 0.6:
        return "loose"
    return "slim" if fit < 0.3 else "normal"
