"""Captions and tags of rendered garments, from their parameters."""

from __future__ import annotations

import colorsys

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
_HUES = (
    (0.04, "red"),
    (0.10, "orange"),
    (0.18, "yellow"),
    (0.44, "green"),
    (0.53, "turquoise"),
    (0.70, "blue"),
    (0.80, "purple"),
    (0.95, "pink"),
    (1.01, "red"),
)


def colour_name(colour: tuple[float, float, float]) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    if value < 0.22:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.80 else "gray"
    name = next(name for bound, name in _HUES if hue < bound)
    return "brown" if name in ("orange", "red") and value < 0.55 else name


def tags(garment: Garment) -> dict[str, str | None]:
    """IDM-VTON's eleven tags; None where a tag does not apply."""
    printed = "stripe" if "stripes" in garment.texture.kind else _PRINTS[garment.texture.kind]
    length = garment.leg_end if garment.kind == "trousers" else garment.hem
    long_from = {"top": 1.05, "dress": 1.9, "skirt": 1.9, "trousers": 1.0}[garment.kind]
    values = {
        "item": garment.item,
        "colors": colour_name(garment.texture.base),
        "prints": printed,
        "length": "long" if length > long_from else "normal",
        "fit": "loose" if garment.fit > 0.6 else "slim" if garment.fit < 0.3 else "normal",
        "shape": "flared" if garment.flare > 0.1 or garment.sleeve_flare > 0.02 else "straight",
    }
    if garment.upper:
        values |= {"sleeveLength": _SLEEVES[garment.sleeve], "neckLine": garment.neckline}
    return {name: values.get(name) for name in TAGS}


def caption(garment: Garment) -> str:
    """Two to seven words, such as "red stripe short sleeve V neck T-shirt"."""
    found = tags(garment)
    words = [found["colors"], found["prints"] if found["prints"] != "solid" else None]
    if garment.upper:
        words.append(
            "sleeveless" if garment.sleeve == "none" else f"{found['sleeveLength']} sleeve"
        )
        words.append(f"{garment.neckline} neck")
    return " ".join(word for word in (*words, garment.item) if word)
