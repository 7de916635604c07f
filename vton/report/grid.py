"""Grids of try-on pictures: one pair a row, labelled columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vton.data.sample import TryOnBatch
from vton.metrics.pictures import to_uint8

MARGIN = 6  # px between pictures
LEAST_HEIGHT = 256  # px; smaller pictures are enlarged by a whole factor
LABEL = 16  # px, font size
PAPER, INK = (255, 255, 255), (40, 40, 40)


def try_on_grid(
    batch: TryOnBatch, *outputs: Tensor, titles: Sequence[str] = ("output",)
) -> np.ndarray:
    """Person, garment, agnostic, the outputs of one or several methods, truth where there is one:
    uint8 (H, W, 3).

    outputs: (B, 3, H, W) in [-1, 1], one for each of `titles`
    """
    columns = {"person": batch.person, "garment": batch.garment, "agnostic": batch.agnostic}
    columns |= dict(zip(titles, outputs, strict=True))
    if batch.truth is not None and batch.order[0] == "unpaired":
        columns["truth"] = batch.truth  # in paired order the person is the truth
    pictures = [to_uint8(column).cpu().permute(0, 2, 3, 1).numpy() for column in columns.values()]
    rows = [[Image.fromarray(column[index]) for column in pictures] for index in range(len(batch))]
    return np.asarray(picture_grid(rows, list(columns)))


def picture_grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Pictures of one size, a row each, below their column's title. Small ones are enlarged
    (bicubic).

    Raises ValueError when a row does not have one picture for each title, or sizes differ.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(
            f"{len(titles)} titles, but rows of {sorted({len(row) for row in rows})} pictures"
        )
    sizes = {picture.size for row in rows for picture in row}
    if len(sizes) != 1:
        raise ValueError(f"a grid's pictures must be of one size, got {sorted(sizes)}")
    width, height = sizes.pop()
    factor = max(1, -(-LEAST_HEIGHT // height))
    width, height = width * factor, height * factor
    font = ImageFont.load_default(LABEL)
    top = 2 * LABEL
    grid = Image.new(
        "RGB", (len(titles) * (width + MARGIN) + MARGIN, top + len(rows) * (height + MARGIN)), PAPER
    )
    draw = ImageDraw.Draw(grid)
    for column, title in enumerate(titles):
        left = MARGIN + column * (width + MARGIN)
        draw.text(
            (left + width / 2, top / 2), _shortened(title, width, font), INK, font, anchor="mm"
        )
        for index, row in enumerate(rows):
            picture = row[column].convert("RGB")
            if factor > 1:
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            grid.paste(picture, (left, top + index * (height + MARGIN)))
    return grid


def _shortened(title: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The title, or its end behind an ellipsis where it is wider than its column."""
    shown = title
    while font.getlength(shown) > width and len(shown) > 2:
        shown = "…" + shown.lstrip("…")[1:]
    return shown
