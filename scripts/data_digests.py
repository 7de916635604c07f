"""Digests of rendered files, and of the samples, masks and warps made from them.

They show that a change of the data code changed no byte:

    python scripts/data_digests.py write before.json  # on the commit before the change
    python scripts/data_digests.py check before.json  # on the commit after it, the same machine

Rendered files: both layouts, with and without defects, one digest for each folder of files.
Samples: every split and order, plain, augmented and padded. Masks and warps: every rule and source
on every test pair. The digests hold on one kind of processor and one version of Pillow and numpy
only, which is why this is a script and not a test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
from torch import Tensor

from vton.config import AugmentConfig, DataConfig, MaskRule, SyntheticConfig
from vton.data import synthetic, transforms
from vton.data.augmentation import Changes, augment
from vton.data.dataset import TryOnDataset, dataset_root, open_folder
from vton.data.derived.agnostic import agnostic_mask
from vton.data.derived.warp import warp_source

LAYOUTS = ("viton_hd", "dresscode")
SIZE = (128, 96)
SPLITS = (("train", "paired"), ("test", "paired"), ("test", "unpaired"))
DEFECTS = synthetic.Defects(
    jpeg_quality=80,
    empty_people=1,
    missing_joints=0.3,
    untagged=1,
    gray_palette=True,
    smooth_parse=True,
    swapped_sides=1,
    skirt_as_pants=True,
    paired_in_unpaired=1,
    old_names=True,
)
BUSY = AugmentConfig(flip=0.5, affine=1, garment_affine=1, colour=1, mask_dilate_px=3, box_mask=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("file", type=Path, help="JSON file of digests")
    args = parser.parse_args()

    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layout in LAYOUTS:
            digests |= rendered(layout, Path(folder))
            digests |= read_back(layout, Path(folder))
    if args.action == "write":
        args.file.write_text(json.dumps(digests, indent=1) + "\n")
        return
    expected = json.loads(args.file.read_text())
    different = [name for name in expected | digests if expected.get(name) != digests.get(name)]
    for name in different:
        print(f"different: {name}")
    print(f"{len(digests)} digests, {len(different)} differ.")
    sys.exit(bool(different))


def rendered(layout: str, folder: Path) -> dict[str, str]:
    """The files of two rendered sets, by the folder they lie in."""
    files: dict[str, hashlib._Hash] = {}
    for kind, defects in (("plain", None), ("defects", DEFECTS)):
        root = folder / layout / kind
        synthetic.write(
            root, layout=layout, size=SIZE, train=4, test=6, seed=7, workers=1, defects=defects
        )
        for path in sorted(root.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder)
                where = name.parent.as_posix() if len(name.parts) > 3 else name.as_posix()
                digest = files.setdefault(f"rendered {where}", hashlib.sha256())
                digest.update(name.as_posix().encode() + path.read_bytes())
    return {name: digest.hexdigest() for name, digest in files.items()}


def read_back(layout: str, folder: Path) -> dict[str, str]:
    """Samples, masks and warps of a rendered set that the data module would read."""
    settings = SyntheticConfig(layout=layout, train=6, test=8, seed=3, workers=1)
    digests = {}
    for warp in ("geometric", "folder", "none"):
        config = DataConfig(
            root=str(folder), size=SIZE, densepose=True, warp_source=warp, synthetic=settings
        )
        root = dataset_root(config)
        synthetic.ensure(root, layout=layout, size=SIZE, train=6, test=8, seed=3, workers=1)
        for split, order in SPLITS:
            pairs = TryOnDataset(open_folder(config), split, order)
            name = f"samples {layout} {warp} {split} {order}"
            plain, augmented, padded = (hashlib.sha256() for _ in range(3))
            for index in range(len(pairs)):
                record = pairs.record(index)
                changed = augment(record, Changes.draw(BUSY, 1, index))
                update(plain, pairs[index])
                update(augmented, transforms.to_sample(changed))
                update(padded, transforms.to_sample(transforms.pad(changed, (160, 144))))
            digests[name] = plain.hexdigest()
            digests[f"{name} augmented"] = augmented.hexdigest()
            digests[f"{name} padded"] = padded.hexdigest()
    return digests | derived(layout, config)


def derived(layout: str, config: DataConfig) -> dict[str, str]:
    """Masks by every rule, with and without joints, and geometric warps onto crippled bodies."""
    pairs = TryOnDataset(open_folder(config), "test", "unpaired")
    rng = np.random.default_rng(0)
    masks = {rule: hashlib.sha256() for rule in get_args(MaskRule)}
    warps = hashlib.sha256()
    geometric = warp_source("geometric")
    for index in range(len(pairs)):
        record = pairs.record(index)
        parse = record.parse.numpy()
        joints = record.joints * np.float32([SIZE[1], SIZE[0], 1])
        garment = record.garment.permute(1, 2, 0).numpy()
        silhouette = record.garment_mask[0].numpy()
        for missing in (0.0, 0.2, 0.5, 1.0):
            crippled = joints * (rng.random((len(joints), 1)) >= missing)
            for rule, digest in masks.items():
                digest.update(agnostic_mask(parse, crippled, record.pair.category, rule))
            repaint = record.agnostic_mask[0].numpy()
            agnostic = np.where(repaint[..., None], np.uint8(0), garment)
            for part in geometric(
                garment, silhouette, crippled, agnostic, repaint, record.pair.category
            ):
                warps.update(np.ascontiguousarray(part))
    digests = {f"mask {layout} {rule}": digest.hexdigest() for rule, digest in masks.items()}
    return digests | {f"warp {layout}": warps.hexdigest()}


def update(digest: hashlib._Hash, sample) -> None:
    for field in fields(sample):
        value = getattr(sample, field.name)
        if isinstance(value, Tensor):
            digest.update(f"{field.name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy())
        elif value is not None:
            digest.update(f"{field.name} {value}".encode())


if __name__ == "__main__":
    main()
