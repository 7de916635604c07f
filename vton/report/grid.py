"""Grids of try-on pictures: one pair a row, labelled columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vton.data.sample import TryOnBatch
from vton.metrics.pictures import to_uint8

MARGIN = 6  # px between pictures
LEAST_HEIGHT = 256  # px; smaller pictures are enlarged by a whole factor
LABEL = 16  # px, font size
HEADER = 2 * LABEL  # px, above the first row
PAPER = (255, 255, 255)
INK = (40, 40, 40)


def try_on_grid(
    batch: TryOnBatch, *outputs: Tensor, titles: Sequence[str] = ("output",)
) -> np.ndarray:
    """Person, garment, agnostic, outputs, and the truth where there is one: uint8 (H, W, 3).

    outputs: (B, 3, H, W) in [-1, 1], one for each of `titles`
    """
    columns = {"person": batch.person, "garment": batch.garment, "agnostic": batch.agnostic}
    columns |= dict(zip(titles, outputs, strict=True))
    if batch.truth is not None and batch.order[0] == "unpaired":
        columns["truth"] = batch.truth  # in paired order the person is the truth
    rows = list(zip(*map(as_images, columns.values()), strict=True))
    return np.asarray(picture_grid(rows, list(columns)))


def as_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures (B, 3, H, W) in [-1, 1] as images."""
    pixels = to_uint8(pictures).cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in pixels]


def picture_grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Pictures of one size below their column's title; small ones are enlarged (bicubic).

    Raises ValueError when a row does not have one picture for each title, or sizes differ.
    """
    width, height = _common_size(rows, titles)
    factor = max(1, math.ceil(LEAST_HEIGHT / height))
    width *= factor
    height *= factor
    canvas = (
        len(titles) * (width + MARGIN) + MARGIN,
        HEADER + len(rows) * (height + MARGIN),
    )
    grid = Image.new("RGB", canvas, PAPER)
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(LABEL)
    for column, title in enumerate(titles):
        left = MARGIN + column * (width + MARGIN)
        shown = _shortened(title, width, font)
        draw.text((left + width / 2, HEADER / 2), shown, INK, font, anchor="mm")
        for line, row in enumerate(rows):
            picture = row[column].convert("RGB")
            if factor > 1:
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            grid.paste(picture, (left, HEADER + line * (height + MARGIN)))
    return grid


def _common_size(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> tuple[int, int]:
    """(width, height) of all pictures."""
    lengths = set(map(len, rows))
    if lengths != {len(titles)}:
        raise ValueError(f"{len(titles)} titles, but rows of {sorted(lengths)} pictures")
    sizes = {picture.size for row in rows for picture in row}
    if len(sizes) != 1:
        raise ValueError(f"a grid's pictures must be of one size, got {sorted(sizes)}")
    return sizes.pop()


def _shortened(title: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The title, or its end behind an ellipsis where it is wider than its column."""
    shown = title
    while font.getlength(shown) > width and len(shown) > 2:
        shown = "…" + shown.lstrip("…")[1:]
    return shown
