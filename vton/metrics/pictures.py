"""Predicted pictures: the one rounding to uint8, and folders of `<pair_id>.png`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vton.data.decoding import ANIMATED, BROKEN, FORMATS, animated
from vton.data.sample import CATEGORIES, DataError
from vton.errors import one_line

SHOWN = 10  # problems listed in one error message
# Folder below the pictures of a method that warps: white where the garment lies.
SILHOUETTES = "silhouettes"


def to_uint8(image: Tensor) -> Tensor:
    """[-1, 1] to uint8, clamped and rounded to the nearest level.

    Pictures are quantised nowhere else. Truncation would darken every picture by half a level,
    which FID sees. Raises DataError for NaN or infinity, which have no level.
    """
    if not torch.isfinite(image).all():
        raise DataError(
            "A picture to be written holds NaN or infinite values: the model diverged or lost "
            "precision. Try train.precision=fp32, or an earlier checkpoint."
        )
    return image.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def as_pictures(masks: Tensor) -> Tensor:
    """Masks (B, 1, H, W) of 0 and 1 as black and white pictures (B, 3, H, W) in [-1, 1]."""
    return (2 * masks - 1).expand(-1, 3, -1, -1)


def write_pictures(folder: Path, pair_ids: Sequence[str], pictures: Tensor) -> None:
    """Store pictures (B, 3, H, W), uint8 or in [-1, 1], as `<pair_id>.png`.

    Ids that begin with their category go to a folder of that name. A pair that comes twice
    overwrites its own file.
    """
    if pictures.dtype != torch.uint8:
        pictures = to_uint8(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = pictures.cpu().permute(0, 2, 3, 1).numpy()
    for pair_id, array in zip(pair_ids, arrays, strict=True):
        path = folder / f"{pair_id}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(path, compress_level=1)


def require_none(problems: Sequence[str], where: str) -> None:
    """Raise one DataError that names the first of the problems, unless there are none."""
    if not problems:
        return
    if len(problems) == 1:
        raise DataError(f"1 problem with {where}: {problems[0]}")
    lines = [f"{len(problems)} problems with {where}:", *problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"and {len(problems) - SHOWN} more")
    raise DataError("\n  ".join(lines))


class PictureFolder:
    """The pictures of one method, `<pair_id>.png`."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @property
    def silhouettes(self) -> PictureFolder | None:
        """Where the garments lie in these pictures; None for methods that do not warp."""
        folder = self.folder / SILHOUETTES
        return PictureFolder(folder) if folder.is_dir() else None

    def check(self, pair_ids: Sequence[str], size: tuple[int, int]) -> None:
        """Raise one DataError that names every missing, extra, unreadable or wrongly sized picture.

        Silhouettes are checked likewise. Only headers are read here; a picture that breaks off in
        the middle is named when it is loaded.
        """
        wanted = set(pair_ids)
        there = set(self.names())
        problems = [f"missing {self.path(name)}" for name in sorted(wanted - there)]
        for name in sorted(there - wanted):
            problems.append(f"extra {self.path(name)} (not in the pair list)")
        for name in sorted(wanted & there):
            problem = _problem_in_header(self.path(name), size)
            if problem:
                problems.append(f"{self.path(name)}: {problem}")
        require_none(problems, f"the predicted pictures in {self.folder}; write them again")

        if self.silhouettes is not None:
            self.silhouettes.check(pair_ids, size)

    def names(self) -> Iterator[str]:
        """Names of the pictures there, those in folders of categories with the category."""
        for place in (self.folder, *(self.folder / category for category in CATEGORIES)):
            for path in place.glob("*.png"):
                yield path.relative_to(self.folder).with_suffix("").as_posix()

    def path(self, pair_id: str) -> Path:
        return self.folder / f"{pair_id}.png"

    def read(self, pair_ids: Sequence[str]) -> Tensor:
        """The pairs' pictures, uint8 (B, 3, H, W).

        Raises DataError naming the file that is missing, broken, not RGB or of another size.
        """
        pictures = [self._load(self.path(pair_id)) for pair_id in pair_ids]
        height, width = pictures[0].shape[:2]
        for pair_id, picture in zip(pair_ids, pictures, strict=True):
            tall, wide = picture.shape[:2]
            if (tall, wide) != (height, width):
                raise DataError(
                    f"{self.path(pair_id)} is {wide}x{tall} (width x height), "
                    f"but {self.path(pair_ids[0])} is {width}x{height}; write them again."
                )
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def _load(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path, formats=FORMATS) as picture:
                problem = _problem(picture)
                pixels = np.asarray(picture)
        except BROKEN as error:
            raise DataError(
                f"{path}: predicted picture not readable: {one_line(error)}. Write it again."
            ) from error
        if problem:
            raise DataError(f"{path}: {problem}. Write it again.")
        return pixels


def _problem_in_header(path: Path, size: tuple[int, int]) -> str:
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return _problem(picture, size)
    except BROKEN as error:
        return f"not readable: {one_line(error)}"


def _problem(picture: Image.Image, size: tuple[int, int] | None = None) -> str:
    if animated(picture):
        return ANIMATED
    if picture.mode != "RGB":
        return f"is a {picture.mode} picture, expected 8-bit RGB"
    if size is not None and (picture.height, picture.width) != tuple(size):
        height, width = size
        return f"is {picture.width}x{picture.height} (width x height), expected {width}x{height}"
    return ""
