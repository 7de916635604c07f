"""Small data set folders written by hand, in both layouts, from one drawn figure.

Files are as the archives name them.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from vton.config import DataConfig
from vton.data import densepose, labels
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.record import Record

SIZE = (96, 72)  # height, width of the pictures
# COCO-18 as x, y in fractions of the picture. The person's left is on the right of the picture.
JOINTS = np.array(
    [
        *((0.50, 0.12), (0.50, 0.22)),  # nose, neck
        *((0.38, 0.25), (0.30, 0.38), (0.24, 0.50)),  # right arm
        *((0.62, 0.25), (0.72, 0.34), (0.82, 0.42)),  # left arm
        *((0.43, 0.54), (0.42, 0.72), (0.41, 0.90)),  # right leg
        *((0.57, 0.54), (0.58, 0.72), (0.60, 0.92)),  # left leg
        *((0.48, 0.10), (0.52, 0.10), (0.45, 0.11), (0.55, 0.11)),  # eyes, ears
    ]
)
MISSING = 17  # the left ear is not found, as in many real files
TO_DRESSCODE = {int(ours): atr for atr, ours in enumerate(labels.FROM_DRESSCODE)}
# Label, DensePose part, joints, width in fractions of the height.
SEGMENTS = (
    (labels.RIGHT_LEG, 11, (9, 10), 0.07),
    (labels.LEFT_LEG, 12, (12, 13), 0.07),
    (labels.PANTS, 7, (8, 9), 0.10),
    (labels.PANTS, 8, (11, 12), 0.10),
    (labels.RIGHT_ARM, 20, (3, 4), 0.05),
    (labels.LEFT_ARM, 19, (6, 7), 0.05),
    (labels.UPPER, 16, (2, 3), 0.07),
    (labels.UPPER, 15, (5, 6), 0.07),
)
SKIN, HAIR, WALL = (224, 180, 150), (60, 40, 30), (180, 190, 200)


def figure(seed: int, size: tuple[int, int] = SIZE) -> dict[str, np.ndarray]:
    """A person as photograph, parse map (our labels) and DensePose parts.

    The garment colour depends on the seed.
    """
    height, width = size
    points = [(x * width, y * height) for x, y in JOINTS]
    photo = Image.new("RGB", (width, height), WALL)
    parse = Image.new("L", (width, height))
    parts = Image.new("L", (width, height))
    top = colour(seed)
    paint = {labels.PANTS: (40, 50, 90), labels.UPPER: top}

    def draw(shape: str, where, label: int, part: int, rgb, **kwargs) -> None:
        for image, value in ((photo, rgb), (parse, label), (parts, part)):
            getattr(ImageDraw.Draw(image), shape)(where, fill=value, **kwargs)

    for label, part, (start, end), share in SEGMENTS:
        bone = [points[start], points[end]]
        draw("line", bone, label, part, paint.get(label, SKIN), width=round(share * height))
    torso = [points[2], points[5], points[11], points[8]]
    draw("polygon", torso, labels.UPPER, 2, top)
    (x, y), r = points[0], 0.06 * height
    draw("ellipse", [x - r, y - r, x + r, y + r], labels.FACE, 23, SKIN)
    draw("rectangle", [x - r, y - r, x + r, y - r / 2], labels.HAIR, 24, HAIR)
    return {"photo": np.array(photo), "parse": np.array(parse), "parts": np.array(parts)}


def colour(seed: int) -> tuple[int, int, int]:
    return tuple(int(c) for c in np.random.default_rng(seed).integers(30, 200, 3))


def garment(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """In-shop picture on white and its silhouette; asymmetric, with a white print inside."""
    height, width = size
    mask = np.zeros(size, dtype=bool)
    mask[height // 5 : -height // 5, width // 4 : -width // 4] = True
    mask[height // 5 : height // 2, width // 8 : width // 4] = True  # one sleeve only
    photo = np.full((*size, 3), 255, dtype=np.uint8)
    photo[mask] = colour(seed)
    photo[height // 2 : height // 2 + 6, width // 2 : width // 2 + 6] = 255
    return photo, mask


def write_viton_hd(
    root: Path, train: int = 4, test: int = 4, size: tuple[int, int] = SIZE, **names: str
) -> Path:
    """A VITON-HD folder with everything but captions.

    `names` renames folders, such as parse="image-parse".
    """
    folders = {"parse": "image-parse-v3", "keypoints": "openpose_json"} | names
    for split, first, count in (("train", 0, train), ("test", 1000, test)):
        base = root / split
        ids = [f"{number:05d}_00" for number in range(first, first + count)]
        for seed, name in enumerate(ids, start=first):
            person = figure(seed, size)
            cloth, mask = garment(seed, size)
            save(base / "image" / f"{name}.jpg", person["photo"])
            save(base / "cloth" / f"{name}.jpg", cloth)
            save(base / "cloth-mask" / f"{name}.jpg", mask * np.uint8(255))
            save(base / folders["parse"] / f"{name}.png", person["parse"], labels.VITON_HD_PALETTE)
            save(base / "image-densepose" / f"{name}.jpg", densepose.COLOURS[person["parts"]])
            write_json(base / folders["keypoints"] / f"{name}_keypoints.json", body_25())
        shifted = ids[1:] + ids[:1]
        lines = [f"{person}.jpg {other}.jpg\n" for person, other in zip(ids, shifted, strict=True)]
        (root / f"{split}_pairs.txt").write_text("".join(lines))
    return root


def write_dresscode(
    root: Path, count: int = 2, size: tuple[int, int] = SIZE, masks: bool = True
) -> Path:
    """A DressCode folder with root lists.

    It has `count` training and `count` test pairs per category.
    """
    lists: dict[str, list[str]] = {}
    for index, category in enumerate(("upper_body", "lower_body", "dresses")):
        base = root / category
        start = 2 * count * index
        ids = [f"{number:06d}" for number in range(start, start + 2 * count)]
        train = ids[:count]
        test = ids[count:]
        for name in ids:
            person = figure(int(name), size)
            cloth, mask = garment(int(name), size)
            atr = np.vectorize(TO_DRESSCODE.get)(person["parse"]).astype(np.uint8)
            save(base / "images" / f"{name}_0.jpg", person["photo"])
            save(base / "images" / f"{name}_1.jpg", cloth)
            if masks:
                save(base / "masks" / f"{name}_1.png", mask * np.uint8(255))
            save(base / "label_maps" / f"{name}_4.png", atr, labels.DRESSCODE_PALETTE)
            save(base / "dense" / f"{name}_5.png", person["parts"])
            write_json(base / "keypoints" / f"{name}_2.json", coco_18())
        pairs = {
            "train_pairs": [(name, name) for name in train],
            "test_pairs_paired": [(name, name) for name in test],
            "test_pairs_unpaired": [(test[i], test[i - 1]) for i in reversed(range(count))],
        }
        for name, listed in pairs.items():
            rows = [f"{person}_0.jpg\t{other}_1.jpg" for person, other in listed]
            (base / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows))
            lists.setdefault(name, []).extend(f"{row}\t{index}\n" for row in rows)
    for name, rows in lists.items():
        (root / f"{name}.txt").write_text("".join(rows))
    return root


def with_names_in_several_categories(root: Path, count: int) -> Path:
    """The folder that `write_dresscode` wrote with `count`, numbered anew in each category."""
    for category, first in (("lower_body", 2 * count), ("dresses", 4 * count)):
        for path in sorted((root / category).rglob("0*")):
            number = int(path.name[:6])
            path.rename(path.with_name(f"{number - first:06d}{path.name[6:]}"))
        for path in (root / category).glob("*.txt"):
            lines = path.read_text().split()
            names = [f"{int(name[:6]) - first:06d}{name[6:]}" for name in lines]
            rows = zip(names[::2], names[1::2], strict=True)
            path.write_text("".join(f"{person}\t{garment}\n" for person, garment in rows))
    for path in root.glob("*.txt"):
        path.unlink()
    return root


def body_25(joints: np.ndarray = JOINTS, missing: tuple[int, ...] = (MISSING,)) -> dict:
    """OpenPose's file: BODY_25 in pixels of 768x1024, missing joints 0,0,0."""
    rows = np.column_stack([joints * (768, 1024), np.full(18, 0.9)])
    rows[list(missing)] = 0
    body = np.zeros((25, 3))
    body[[*range(8), *range(9, 19)]] = rows
    body[8] = (384, 550, 0.9)  # the mid hip, which COCO-18 lacks
    body[19:] = (11, 22, 0.9)  # feet, likewise
    person = {"person_id": [-1], "pose_keypoints_2d": body.ravel().tolist()}
    return {"version": 1.3, "people": [person]}


def coco_18(joints: np.ndarray = JOINTS, missing: tuple[int, ...] = (MISSING,)) -> dict:
    """DressCode's file: pixels of 384x512, missing joints -1,-1,0,-1.

    The fourth number is no joint id.
    """
    rows = [[x * 384, y * 512, 0.9, float(i)] for i, (x, y) in enumerate(joints)]
    for joint in missing:
        rows[joint] = [-1.0, -1.0, 0.0, -1.0]
    return {"keypoints": rows}


def save(path: Path, array: np.ndarray, palette: bytes | None = None) -> None:
    """Save a uint8 picture; with a palette, a palette picture of indices.

    JPEG as the archives have it: quality 95.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette)
    options = {"quality": 95} if path.suffix == ".jpg" else {}
    image.save(path, **options)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def config(name: str, root: Path, **settings) -> DataConfig:
    """Settings for these folders: read at the stored size, by the derived mask, in this process."""
    defaults = {"size": SIZE, "workers": 0}
    return DataConfig(name=name, root=str(root), **(defaults | settings))


def one_record(root: Path) -> Record:
    """The training record of a VITON-HD folder written to `root`."""
    folder = open_folder(config("viton_hd", write_viton_hd(root, train=1, test=1), densepose=True))
    return TryOnDataset(folder, "train", "paired").record(0)


def same_record(one: Record, other: Record) -> bool:
    """Whether two records are equal, joints up to rounding; names the part that is not."""
    for name, value in vars(one).items():
        expected = getattr(other, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected), name
        elif isinstance(value, np.ndarray):
            np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=name)
        else:
            assert value == expected, name
    return True
