"""Pictures on disk in the real data sets' own formats."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from vton.data import labels
from vton.data.boxes import bounding_box
from vton.data.synthetic.catalogue import Catalogue, Defects, Entry, Scene

PALETTES = {"viton_hd": labels.VITON_HD_PALETTE, "dresscode": labels.DRESSCODE_PALETTE}


class Writer:
    """Writes the files of one data set below `root`. Folders appear with their first file."""

    def __init__(self, root: Path, catalogue: Catalogue):
        self.root = root
        self.catalogue = catalogue
        self.defects = catalogue.defects

    def photo(self, path: str, picture: np.ndarray) -> None:
        """JPEG with 4:2:0 chroma.

        (H, W, 3) or gray (H, W) uint8, or a bool mask as 0 and 255.
        """
        image = Image.fromarray(_bytes(picture))
        self._save(path, image, quality=self.defects.jpeg_quality, subsampling="4:2:0")

    def picture(self, path: str, picture: np.ndarray | Image.Image) -> None:
        """Lossless PNG; bool masks become 0 and 255."""
        image = picture
        if isinstance(picture, np.ndarray):
            image = Image.fromarray(_bytes(picture))
        self._save(path, image, compress_level=4)

    def labels(self, path: str, parse: np.ndarray) -> None:
        """Parse map (H, W) in vton.data.labels, saved with the layout's ids and palette."""
        if self.catalogue.layout == "dresscode":
            parse = labels.TO_DRESSCODE[parse]
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
        """Every parameter of the scene.

        canvas: width and height on which the keypoint files live.
        """
        person = scene.person
        body = person.body
        content = asdict(entry) | {
            "seed": self.catalogue.seed,
            "size": list(self.catalogue.size),
            "keypoint_canvas": list(canvas),
            "garment": asdict(scene.garment),
            "companions": [asdict(garment) for garment in scene.companions],
            "person": {
                "joints": body.joints.round(5).tolist(),
                "yaw": float(body.yaw),
                "head": list(body.head),
                "looks": asdict(body.appearance),
                "camera": asdict(person.camera),
                "lighting": asdict(person.lighting),
                "backdrop": asdict(person.backdrop),
                "tucked": person.tucked,
            },
        }
        self.json(path, content)

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


def _bytes(picture: np.ndarray) -> np.ndarray:
    """A picture or mask as uint8; masks become 0 and 255."""
    return picture.astype(np.uint8) * 255 if picture.dtype == bool else picture


def defective_parse(parse: np.ndarray, defects: Defects, entry: Entry) -> np.ndarray:
    """The exact parse map with the chosen defects.

    They touch the file alone, not the masks derived from it.
    """
    if defects.skirt_as_pants:
        parse = np.where(parse == labels.SKIRT, np.uint8(labels.PANTS), parse)
    if entry.split == "test" and entry.position < defects.swapped_sides:
        parse = labels.MIRROR[parse]
    return smoothed(parse) if defects.smooth_parse else parse


def smoothed(parse: np.ndarray) -> np.ndarray:
    """A parse map with edges as VITON-HD's.

    Parsed at a quarter of the size, enlarged, and smoothed (Gaussian, sigma 3 px of 1024 rows)
    before the arg-max.
    """
    height, width = parse.shape
    present = np.unique(parse)
    coarse = parse[2::4, 2::4]
    scores = []
    for label in present:
        score = Image.fromarray((coarse == label).astype(np.float32))
        score = score.resize((width, height), Image.Resampling.BILINEAR)
        scores.append(ndimage.gaussian_filter(np.asarray(score), 3 * height / 1024))
    return present[np.argmax(scores, axis=0)]


def relative_box(mask: np.ndarray) -> dict[str, float]:
    """Left, top, width and height of what a mask sets, each in 0..1 of the picture."""
    box = bounding_box(mask)
    if box is None:
        return {"left": 0.0, "top": 0.0, "width": 0.0, "height": 0.0}
    height, width = mask.shape
    return {
        "left": round(box.left / width, 6),
        "top": round(box.top / height, 6),
        "width": round((box.right + 1 - box.left) / width, 6),
        "height": round((box.bottom + 1 - box.top) / height, 6),
    }
