"""Pictures on disk in the real data sets' own formats."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from vton.data import labels
from vton.data.labels import FROM_DRESSCODE, NECK, PANTS, SKIRT
from vton.data.synthetic.catalogue import Catalogue, Defects, Entry, Scene

PALETTES = {"viton_hd": labels.VITON_HD_PALETTE, "dresscode": labels.DRESSCODE_PALETTE}
_TO_DRESSCODE = np.zeros(labels.COUNT, np.uint8)
_TO_DRESSCODE[FROM_DRESSCODE] = np.arange(len(FROM_DRESSCODE), dtype=np.uint8)
_TO_DRESSCODE[NECK] = _TO_DRESSCODE[labels.FACE]  # one label for face and neck


class Writer:
    """Writes the files of one data set below `root`. Folders appear with their first file."""

    def __init__(self, root: Path, catalogue: Catalogue):
        self.root, self.catalogue, self.defects = root, catalogue, catalogue.defects

    def photo(self, path: str, picture: np.ndarray) -> None:
        """(H, W, 3) or gray (H, W) uint8, or a bool mask as 0 and 255, as JPEG with 4:2:0 chroma."""
        if picture.dtype == bool:
            picture = picture.astype(np.uint8) * 255
        self._save(
            path, Image.fromarray(picture), quality=self.defects.jpeg_quality, subsampling="4:2:0"
        )

    def picture(self, path: str, image: np.ndarray | Image.Image) -> None:
        """Lossless PNG; bool masks become 0 and 255."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image.astype(np.uint8) * 255 if image.dtype == bool else image)
        self._save(path, image, compress_level=4)

    def labels(self, path: str, parse: np.ndarray) -> None:
        """Parse map (H, W) in vton.data.labels, saved with the layout's ids and palette."""
        if self.catalogue.layout == "dresscode":
            parse = _TO_DRESSCODE[parse]
        image = Image.fromarray(parse)
        if not self.defects.gray_palette:
            image.putpalette(PALETTES[self.catalogue.layout])
        self._save(path, image, compress_level=4)

    def json(self, path: str, content) -> None:
        self.text(path, json.dumps(content))

    def text(self, path: str, content: str) -> None:
        target = self._target(path)
        if target is not None:
            target.write_text(content, encoding="utf-8", newline="\n")

    def arrays(self, path: str, **arrays: np.ndarray) -> None:
        target = self._target(path)
        if target is not None:
            np.savez_compressed(target, **arrays)

    def meta(self, path: str, entry: Entry, scene: Scene, canvas: tuple[int, int]) -> None:
        """Every parameter of the scene. `canvas`: width and height on which the keypoint files
        live.
        """
        person, body = scene.person, scene.person.body
        self.json(
            path,
            {
                **asdict(entry),
                "seed": self.catalogue.seed,
                "size": list(self.catalogue.size),
                "keypoint_canvas": list(canvas),
                "garment": asdict(scene.garment),
                "companions": [asdict(garment) for garment in scene.companions],
                "person": {
                    "joints": body.joints.round(5).tolist(),
                    "yaw": float(body.yaw),
                    "head": list(body.head),
                    "looks": asdict(body.looks),
                    "camera": asdict(person.camera),
                    "lighting": asdict(person.lighting),
                    "backdrop": asdict(person.backdrop),
                    "tucked": person.tucked,
                },
            },
        )

    def _save(self, path: str, image: Image.Image, **options) -> None:
        target = self._target(path)
        if target is not None:
            image.save(target, **options)

    def _target(self, path: str) -> Path | None:
        if path == self.defects.missing_file:
            return None
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def defective_parse(parse: np.ndarray, defects: Defects, entry: Entry) -> np.ndarray:
    """The exact parse map with the chosen defects. They touch the file alone, not the masks derived
    from it.
    """
    if defects.skirt_as_pants:
        parse = np.where(parse == SKIRT, np.uint8(PANTS), parse)
    if entry.split == "test" and entry.position < defects.swapped_sides:
        parse = labels.MIRROR[parse]
    return smoothed(parse) if defects.smooth_parse else parse


def smoothed(parse: np.ndarray) -> np.ndarray:
    """Edges as VITON-HD's: parsed at a quarter of the size, enlarged, smoothed (Gaussian, sigma 3
    px of 1024 rows) before the arg-max.
    """
    height, width = parse.shape
    present, coarse = np.unique(parse), parse[2::4, 2::4]
    scores = []
    for label in present:
        score = Image.fromarray((coarse == label).astype(np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        scores.append(ndimage.gaussian_filter(np.asarray(score), 3 * height / 1024))
    return present[np.argmax(scores, axis=0)]


def bounding_box(mask: np.ndarray) -> list[float]:
    """Left, top, width, height of a mask, each in 0..1 of the picture."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return [0.0, 0.0, 0.0, 0.0]
    height, width = mask.shape
    box = (
        columns[0] / width,
        rows[0] / height,
        (columns[-1] + 1 - columns[0]) / width,
        (rows[-1] + 1 - rows[0]) / height,
    )
    return [round(float(value), 6) for value in box]
