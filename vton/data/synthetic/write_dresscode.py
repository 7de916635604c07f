"""The DressCode folder of rendered data: three categories, every annotation kind, tab-separated
lists.

Beside the data set's own files: garment masks (LaDI-VTON), DensePose pictures and captions
(IDM-VTON), repaint masks (CatVTON), warped garments (DCI-VTON), and what only rendered data has:
`gt-unpaired`, the true picture of every unpaired pair, its parse map, and `meta`.
"""

from __future__ import annotations

import numpy as np

from vton.data.densepose import draw_parts
from vton.data.derived.agnostic import agnostic_mask
from vton.data.pose import DRESSCODE_CANVAS, draw_skeleton
from vton.data.synthetic import keypoints, words
from vton.data.synthetic.catalogue import CATEGORIES, Entry
from vton.data.synthetic.files import Writer, defective_parse
from vton.data.synthetic.parts import body_parts
from vton.data.synthetic.render import draw, draw_product

_TRIPLETS_PER_MODEL = 3
_UNTAGGED = "shirts"


def write_entry(writer: Writer, entry: Entry) -> dict:
    """All files of one model and the garment worn. Returns the garment's caption under `caption`."""
    catalogue, defects, size = writer.catalogue, writer.defects, writer.catalogue.size
    folder, rng = entry.category, catalogue.annotation_generator(entry)
    person, name = f"{entry.id}_0", entry.id
    scene, other = catalogue.scene(entry), catalogue.other(entry)
    outfits = [scene.outfit()]
    if entry.split == "test":
        outfits.append(scene.outfit(catalogue.garment(other)))
    worn, *unpaired = draw(scene.person, outfits, size)
    product, silhouette = draw_product(scene.garment, size)

    writer.photo(f"{folder}/images/{person}.jpg", worn.picture)
    writer.photo(f"{folder}/images/{name}_1.jpg", product)
    writer.picture(f"{folder}/masks/{name}_1.png", silhouette)
    writer.labels(f"{folder}/label_maps/{name}_4.png", defective_parse(worn.parse, defects, entry))

    rows = keypoints.coco_18(scene.person, rng, defects.missing_joints)
    writer.json(f"{folder}/keypoints/{name}_2.json", {"keypoints": rows})
    joints = keypoints.coco_18_pixels(np.array(rows), DRESSCODE_CANVAS, size)
    normalised = joints / (size[1], size[0], 1)
    writer.photo(f"{folder}/skeletons/{name}_5.jpg", draw_skeleton(normalised, size))
    parts, uv = body_parts(scene.person, size)
    writer.picture(f"{folder}/dense/{name}_5.png", parts)
    writer.arrays(f"{folder}/dense/{name}_5_uv.npz", uv=uv)
    writer.photo(f"{folder}/image-densepose/{person}.jpg", draw_parts(parts))

    if not defects.no_agnostic:
        mask = agnostic_mask(worn.parse, joints, entry.category, rule="safe")
        writer.picture(f"{folder}/agnostic_masks/{person}.png", mask)
    writer.photo(f"{folder}/warped_cloth/{person}.jpg", worn.garment)
    writer.picture(f"{folder}/warped_mask/{person}.png", worn.garment_mask)
    for truth in unpaired:
        writer.photo(f"{folder}/unpaired_warped_cloth/{person}.jpg", truth.garment)
        writer.picture(f"{folder}/unpaired_warped_mask/{person}.png", truth.garment_mask)
        writer.picture(f"{folder}/gt-unpaired/{name}__{other.id}.png", truth.picture)
        writer.labels(f"{folder}/gt-unpaired-parse/{name}__{other.id}.png", truth.parse)
    writer.meta(f"{folder}/meta/{name}.json", entry, scene, DRESSCODE_CANVAS)
    return {"caption": words.caption(scene.garment)}


def write_lists(writer: Writer, records: list[dict]) -> None:
    """Pair lists of root and categories, triplets and captions; `records` are those of write_entry,
    in order.
    """
    catalogue = writer.catalogue
    captions = {
        entry.id: record["caption"]
        for entry, record in zip(catalogue.entries, records, strict=True)
    }
    whole: dict[str, list[str]] = {}
    for index, category in enumerate(CATEGORIES):
        train, test = catalogue.of("train", category), catalogue.of("test", category)
        # The unpaired list holds the models of the paired one in another order.
        shuffled = [
            test[i] for i in catalogue.list_generator("test", category).permutation(len(test))
        ]
        lists = {
            "train_pairs.txt": [(entry, entry) for entry in train],
            "test_pairs_paired.txt": [(entry, entry) for entry in test],
            "test_pairs_unpaired.txt": [(entry, catalogue.other(entry)) for entry in shuffled],
        }
        for name, pairs in lists.items():
            lines = [f"{model.id}_0.jpg\t{garment.id}_1.jpg" for model, garment in pairs]
            writer.text(f"{category}/{name}", "".join(f"{line}\n" for line in lines))
            whole.setdefault(name, []).extend(f"{line}\t{index}\n" for line in lines)
        untagged = {entry.id for entry in test[: catalogue.defects.untagged]}
        lines = [
            f"{entry.id}_1.jpg {_UNTAGGED if entry.id in untagged else captions[entry.id]}\n"
            for entry in (*train, *test)
        ]
        writer.text(f"{category}/dc_caption.txt", "".join(lines))
    for name, lines in whole.items():
        writer.text(name, "".join(lines))
    writer.text("multigarment_test_triplets.txt", "".join(_triplets(catalogue)))


def _triplets(catalogue) -> list[str]:
    """Three lines for each upper-body test model: model, upper garment, lower garment, all of the
    test split.
    """
    rng = catalogue.list_generator("test", "lower_body")
    uppers, lowers = catalogue.of("test", "upper_body"), catalogue.of("test", "lower_body")
    lines = []
    for _ in range(_TRIPLETS_PER_MODEL):
        order = rng.permutation(len(uppers))
        picked = rng.integers(len(lowers), size=len(uppers))
        for model, garment, lower in zip(uppers, order, picked, strict=True):
            lines.append(
                f"{model.id}_0.jpg\t{uppers[garment].id}_1.jpg\t{lowers[lower].id}_1.jpg\n"
            )
    return sorted(lines)
