"""Predicted pictures: the one rounding to uint8, and folders of `<pair_id>.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vton.data.sample import DataError

SHOWN = 10  # names listed in one error message
# folder below the pictures of a method that warps: white where the garment lies
SILHOUETTES = "silhouettes"


def to_uint8(image: Tensor) -> Tensor:
    """[-1, 1] to uint8, clamped and rounded to the nearest level. The only place where pictures are
    quantised.

    Truncation instead would darken every picture by half a level, which FID sees. Raises DataError
    for NaN or infinity, which have no level.
    """
    if not torch.isfinite(image).all():
        raise DataError(
            "A picture to be written holds NaN or infinite values: the model diverged or lost precision."
        )
    return image.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def as_pictures(masks: Tensor) -> Tensor:
    """Masks (B, 1, H, W) of 0 and 1 as black and white pictures (B, 3, H, W) in [-1, 1]."""
    return (2 * masks - 1).expand(-1, 3, -1, -1)


def write_pictures(folder: Path, pair_ids: Sequence[str], pictures: Tensor) -> None:
    """Store pictures (B, 3, H, W), uint8 or in [-1, 1], as `<pair_id>.png`. A duplicate overwrites
    its own file.
    """
    if pictures.dtype != torch.uint8:
        pictures = to_uint8(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    for pair_id, picture in zip(pair_ids, pictures.cpu().permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(picture).save(folder / f"{pair_id}.png", compress_level=1)


def refuse(problems: Sequence[str], where: str) -> None:
    """Raise one DataError that names the first of them, unless there are none. A single one takes
    one line.
    """
    if len(problems) == 1:
        raise DataError(f"1 problem with {where}: {problems[0]}")
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listed = "\n  ".join(problems[:SHOWN])
        raise DataError(f"{len(problems)} problems with {where}:\n  {listed}{more}")


class PictureFolder:
    """The pictures of one method: `folder(pair_ids)` loads them as uint8 (B, 3, H, W)."""

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
        found = {path.stem: path for path in sorted(self.folder.glob("*.png"))}
        wanted = set(pair_ids)
        problems = [f"missing {self.path(name)}" for name in sorted(wanted - set(found))]
        problems += [
            f"extra {found[name]} (not in the pair list)" for name in sorted(set(found) - wanted)
        ]
        for name in sorted(wanted & set(found)):
            try:
                with Image.open(found[name]) as picture:
                    problem = _problem(picture, size)
            except (OSError, UnidentifiedImageError) as error:
                problem = f"not readable: {error}"
            if problem:
                problems.append(f"{found[name]}: {problem}")
        refuse(problems, f"the predicted pictures in {self.folder}; write them again")

        if self.silhouettes:
            self.silhouettes.check(pair_ids, size)

    def path(self, pair_id: str) -> Path:
        return self.folder / f"{pair_id}.png"

    def __call__(self, pair_ids: Sequence[str]) -> Tensor:
        """uint8 (B, 3, H, W). Raises DataError naming the file that is missing, broken, not RGB or
        of another size.
        """
        pictures = [self._load(self.path(pair_id)) for pair_id in pair_ids]
        for pair_id, picture in zip(pair_ids, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                raise DataError(
                    f"{self.path(pair_id)} is {picture.shape[1]}x{picture.shape[0]} (width x height), but "
                    f"{self.path(pair_ids[0])} is {pictures[0].shape[1]}x{pictures[0].shape[0]}; write them again."
                )
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def _load(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as picture:
                problem = _problem(picture)
                pixels = np.asarray(picture)
        except (
            OSError,
            UnidentifiedImageError,
            SyntaxError,
        ) as error:  # Pillow raises SyntaxError for broken PNG chunks
            raise DataError(
                f"{path}: predicted picture not readable: {error}. Write it again."
            ) from error
        if problem:
            raise DataError(f"{path}: {problem}. Write it again.")
        return pixels


def _problem(picture: Image.Image, size: tuple[int, int] | None = None) -> str:
    if picture.mode != "RGB":
        return f"is a {picture.mode} picture, expected 8-bit RGB"
    if size is not None and (picture.height, picture.width) != tuple(size):
        return f"is {picture.width}x{picture.height} (width x height), expected {size[1]}x{size[0]}"
    return ""
