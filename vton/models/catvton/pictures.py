"""How CatVTON's released pipeline brings single photographs to its size, by Pillow's Lanczos.

The person is cut to the target's shape about its centre; the garment is fitted into it on white.
Data sets here are read by vton/data instead; these are for inputs that should equal the release's.
Sizes are (height, width).
"""

from __future__ import annotations

from PIL import Image

Size = tuple[int, int]


def crop_to(picture: Image.Image, size: Size) -> Image.Image:
    """The largest part of the target's shape, cut out of the middle, then resized."""
    height, width = size
    own_width, own_height = picture.size
    if own_width * height < width * own_height:
        cut = (own_width, own_width * height // width)
    else:
        cut = (own_height * width // height, own_height)
    left, top = (own_width - cut[0]) // 2, (own_height - cut[1]) // 2
    right, bottom = (own_width + cut[0]) // 2, (own_height + cut[1]) // 2
    part = picture.crop((left, top, right, bottom))
    return part.resize((width, height), Image.Resampling.LANCZOS)


def fit_into(picture: Image.Image, size: Size) -> Image.Image:
    """All of the picture, as large as it fits, in the middle of white."""
    height, width = size
    own_width, own_height = picture.size
    if own_width * height < width * own_height:
        inner = (own_width * height // own_height, height)
    else:
        inner = (width, own_height * width // own_width)
    fitted = picture.resize(inner, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(fitted, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas
