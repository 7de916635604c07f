"""Prepared persons and garments as the files of an official layout: VITON-HD's or DressCode's.

Masks are derived from the full label set before the layout's own numbering loses some of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vton.data import labels, pose
from vton.data.densepose import draw_parts
from vton.data.derived.agnostic import agnostic_image
from vton.data.derived.published_masks import agnostic_parse
from vton.data.pose import DRESSCODE_CANVAS, FROM_BODY_25, VITON_HD_CANVAS, draw_skeleton
from vton.data.sample import CATEGORIES, JOINTS, Category
from vton.data.synthetic.files import PALETTES
from vton.photos.framing import Layout
from vton.photos.garment import PreparedGarment
from vton.photos.person import PreparedPerson, valid_pixels

QUALITY = 95  # of JPEGs, as in both data sets
MID_HIP = 8  # of BODY_25


class Files:
    """Writes the files of one layout below a folder, and returns what was written."""

    def __init__(self, root: Path, layout: Layout):
        self.root = root
        self.layout = layout

    def person(self, id_: str, category: Category, person: PreparedPerson) -> list[str]:
        write = self._viton_hd_person if self.layout == "viton_hd" else self._dresscode_person
        return write(id_, category, person)

    def garment(self, id_: str, category: Category, garment: PreparedGarment) -> list[str]:
        if self.layout == "viton_hd":
            return [
                self._photo(f"test/cloth/{id_}.jpg", garment.picture),
                self._photo(f"test/cloth-mask/{id_}.jpg", _grey(garment.mask)),
            ]
        return [
            self._photo(f"{category}/images/{id_}_1.jpg", garment.picture),
            self._picture(f"{category}/masks/{id_}_1.png", _grey(garment.mask)),
        ]

    def lists(
        self, pairs: Sequence[tuple[str, str, Category]], captions: dict[tuple[str, Category], str]
    ) -> list[str]:
        """Pair lists and captions. pairs: ids of person and garment, and the category."""
        if self.layout == "viton_hd":
            lines = [f"{person}.jpg {garment}.jpg\n" for person, garment, _ in pairs]
            entries = [_tag_entry(id_, caption) for (id_, _), caption in captions.items()]
            return [
                self._text("test_pairs.txt", "".join(lines)),
                self._text("test/vitonhd_test_tagged.json", json.dumps({"data": entries})),
            ]
        written = []
        root_lines = []
        for number, category in enumerate(CATEGORIES):
            own = [pair for pair in pairs if pair[2] == category]
            lines = [f"{person}_0.jpg\t{garment}_1.jpg" for person, garment, _ in own]
            root_lines += [f"{line}\t{number}\n" for line in lines]
            if not own:
                continue
            text = "".join(f"{line}\n" for line in lines)
            written.append(self._text(f"{category}/test_pairs_unpaired.txt", text))
            of_category = [
                f"{id_}_1.jpg {caption}\n"
                for (id_, of_garment), caption in captions.items()
                if of_garment == category
            ]
            written.append(self._text(f"{category}/dc_caption.txt", "".join(of_category)))
        written.append(self._text("test_pairs_unpaired.txt", "".join(root_lines)))
        self._complete_categories({category for _, _, category in pairs})
        return written

    def _complete_categories(self, used: set[Category]) -> None:
        """Folders for a category without pictures, where others are read together."""
        if len(used) < 2:
            return
        parts = {part.name for category in used for part in (self.root / category).iterdir()}
        for category in CATEGORIES:
            for part in parts:
                if not Path(part).suffix:
                    (self.root / category / part).mkdir(parents=True, exist_ok=True)

    def _viton_hd_person(self, id_: str, category: Category, person: PreparedPerson) -> list[str]:
        picture = np.asarray(person.picture)
        size = picture.shape[:2]
        joints = valid_pixels(person.joints, size)
        mask = np.repeat(person.mask[..., None], 3, axis=2)
        stripped = labels.TO_VITON_HD[agnostic_parse(person.parse, joints)]
        written = [
            self._photo(f"test/image/{id_}.jpg", person.picture),
            self._labels(f"test/image-parse-v3/{id_}.png", labels.TO_VITON_HD[person.parse]),
            self._labels(f"test/image-parse-agnostic-v3.2/{id_}.png", stripped),
            self._photo(
                f"test/agnostic-v3.2/{id_}.jpg",
                Image.fromarray(agnostic_image(picture, person.mask)),
            ),
            self._picture(f"test/agnostic-mask/{id_}_mask.png", _grey(mask)),
            self._text(
                f"test/openpose_json/{id_}_keypoints.json",
                json.dumps(openpose(person.joints, person.confidence)),
            ),
            self._picture(
                f"test/openpose_img/{id_}_rendered.png",
                Image.fromarray(draw_skeleton(person.joints, size)),
            ),
        ]
        if person.densepose is not None:
            drawn = Image.fromarray(draw_parts(person.densepose))
            written.append(self._photo(f"test/image-densepose/{id_}.jpg", drawn))
        return written

    def _dresscode_person(self, id_: str, category: Category, person: PreparedPerson) -> list[str]:
        size = (person.picture.height, person.picture.width)
        rows = dresscode_rows(person.joints, person.confidence)
        written = [
            self._photo(f"{category}/images/{id_}_0.jpg", person.picture),
            self._labels(f"{category}/label_maps/{id_}_4.png", labels.TO_DRESSCODE[person.parse]),
            self._text(f"{category}/keypoints/{id_}_2.json", json.dumps({"keypoints": rows})),
            self._photo(
                f"{category}/skeletons/{id_}_5.jpg",
                Image.fromarray(draw_skeleton(person.joints, size)),
            ),
            self._picture(f"{category}/agnostic_masks/{id_}_0.png", _grey(person.mask)),
        ]
        if person.densepose is not None:
            drawn = Image.fromarray(draw_parts(person.densepose))
            written.append(self._photo(f"{category}/image-densepose/{id_}_0.jpg", drawn))
            parts = Image.fromarray(person.densepose)
            written.append(self._picture(f"{category}/dense/{id_}_5.png", parts))
        return written

    def _photo(self, path: str, image: Image.Image) -> str:
        image.save(self._target(path), quality=QUALITY, subsampling="4:2:0")
        return path

    def _picture(self, path: str, image: Image.Image) -> str:
        image.save(self._target(path), compress_level=4)
        return path

    def _labels(self, path: str, ids: np.ndarray) -> str:
        image = Image.fromarray(ids)
        image.putpalette(PALETTES[self.layout])
        return self._picture(path, image)

    def _text(self, path: str, content: str) -> str:
        self._target(path).write_text(content, encoding="utf-8", newline="\n")
        return path

    def _target(self, path: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def openpose(joints: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """VITON-HD's keypoint file: BODY_25 in pixels of its canvas. Feet, face and hands are absent.

    joints: (18, 3) in [0, 1] with validity; confidence: (18,)
    """
    table = np.zeros((pose.BODY_25, 3))
    valid = joints[:, 2] > 0
    table[FROM_BODY_25, :2] = joints[:, :2] * VITON_HD_CANVAS
    table[FROM_BODY_25, 2] = np.maximum(confidence, 1e-3)
    table[FROM_BODY_25] *= valid[:, None]
    hips = table[[9, 12]]
    if (hips[:, 2] > 0).all():
        table[MID_HIP] = hips.mean(0)
    person = {"person_id": [-1], "pose_keypoints_2d": table.round(4).ravel().tolist()}
    for part, count in (("face", 70), ("hand_left", 21), ("hand_right", 21)):
        person[f"{part}_keypoints_2d"] = [0.0] * (3 * count)
    for part in ("pose", "face", "hand_left", "hand_right"):
        person[f"{part}_keypoints_3d"] = []
    return {"version": 1.3, "people": [person]}


def dresscode_rows(joints: np.ndarray, confidence: np.ndarray) -> list[list[float]]:
    """DressCode's 18 rows [x, y, confidence, running index] on its canvas.

    -1, -1, 0, -1 says that a joint is missing.
    """
    rows = []
    found = 0
    for joint in range(JOINTS):
        x, y, valid = joints[joint].tolist()
        if not valid:
            rows.append([-1.0, -1.0, 0.0, -1.0])
            continue
        score = max(float(confidence[joint]), 1e-3)
        place = (round(x * DRESSCODE_CANVAS[0], 3), round(y * DRESSCODE_CANVAS[1], 3))
        rows.append([*place, round(score, 4), float(found)])
        found += 1
    return rows


def _tag_entry(id_: str, caption: str) -> dict[str, Any]:
    """A garment's entry of VITON-HD's tag file; the whole caption is its item."""
    return {
        "file_name": f"{id_}.jpg",
        "category_name": "TOPS",
        "tag_info": [{"tag_name": "item", "tag_category": caption}],
        "image": {},
    }


def _grey(mask: np.ndarray) -> Image.Image:
    """A bool mask as 0 and 255."""
    return Image.fromarray(mask.astype(np.uint8) * 255)
