"""The DressCode folder of rendered data: three categories, every annotation kind, lists with tabs.

Beside the data set's own files: garment masks (LaDI-VTON), DensePose pictures and captions
(IDM-VTON), repaint masks (CatVTON), warped garments (DCI-VTON), and what only rendered data has:
`gt-unpaired`, the true picture of every unpaired pair, its parse map, and `meta`.
"""

from __future__ import annotations

import numpy as np

from vton.data.densepose import draw_parts
from vton.data.derived.agnostic import agnostic_mask
from vton.data.pose import DRESSCODE_CANVAS, draw_skeleton
from vton.data.sample import CATEGORIES
from vton.data.synthetic import keypoints, words
from vton.data.synthetic.catalogue import Catalogue, Entry
from vton.data.synthetic.files import Writer, defective_parse
from vton.data.synthetic.parts import body_parts
from vton.data.synthetic.render import draw_person, draw_product

_TRIPLETS_PER_MODEL = 3
_UNTAGGED = "shirts"  # caption of garments that have none


def write_entry(writer: Writer, entry: Entry) -> str:
    """Write all files of one model and the garment worn; returns the garment's caption."""
    catalogue = writer.catalogue
    defects = writer.defects
    size = catalogue.size
    rng = catalogue.annotation_generator(entry)
    folder = entry.category
    name = entry.id
    person = f"{entry.id}_0"
    scene = catalogue.scene(entry)
    other = catalogue.other(entry)
    outfits = [scene.outfit()]
    if entry.split == "test" or catalogue.other_clothes:
        outfits.append(scene.outfit(catalogue.garment(other)))
    worn, *others = draw_person(scene.person, outfits, size)
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
    if catalogue.other_clothes:
        writer.photo(f"{folder}/person-other/{person}.jpg", others[0].picture)
    for truth in others if entry.split == "test" else ():
        writer.photo(f"{folder}/unpaired_warped_cloth/{person}.jpg", truth.garment)
        writer.picture(f"{folder}/unpaired_warped_mask/{person}.png", truth.garment_mask)
        writer.picture(f"{folder}/gt-unpaired/{name}__{other.id}.png", truth.picture)
        writer.labels(f"{folder}/gt-unpaired-parse/{name}__{other.id}.png", truth.parse)
    writer.meta(f"{folder}/meta/{name}.json", entry, scene, DRESSCODE_CANVAS)
    return words.garment_caption(scene.garment)


def write_lists(writer: Writer, captions: list[str]) -> None:
    """Pair lists of root and categories, triplets and captions.

    captions: what write_entry returned, in the order of the entries.
    """
    catalogue = writer.catalogue
    ids = [entry.id for entry in catalogue.entries]
    caption_of = dict(zip(ids, captions, strict=True))
    whole: dict[str, list[str]] = {}
    for number, category in enumerate(CATEGORIES):
        for name, pairs in _pair_lists(catalogue, category).items():
            rows = [f"{model.id}_0.jpg\t{garment.id}_1.jpg" for model, garment in pairs]
            writer.text(f"{category}/{name}", _lines(rows))
            whole.setdefault(name, []).extend(f"{row}\t{number}" for row in rows)
        train = catalogue.of("train", category)
        test = catalogue.of("test", category)
        for entry in test[: catalogue.defects.untagged]:
            caption_of[entry.id] = _UNTAGGED
        rows = [f"{entry.id}_1.jpg {caption_of[entry.id]}" for entry in (*train, *test)]
        writer.text(f"{category}/dc_caption.txt", _lines(rows))
    for name, rows in whole.items():
        writer.text(name, _lines(rows))
    writer.text("multigarment_test_triplets.txt", _lines(_triplets(catalogue)))


def _pair_lists(catalogue: Catalogue, category: str) -> dict[str, list[tuple[Entry, Entry]]]:
    """Model and garment of each pair of a category, by the name of the list."""
    test = catalogue.of("test", category)
    # The unpaired list holds the models of the paired one in another order.
    order = catalogue.list_generator("test", category).permutation(len(test))
    shuffled = [test[place] for place in order]
    return {
        "train_pairs.txt": [(entry, entry) for entry in catalogue.of("train", category)],
        "test_pairs_paired.txt": [(entry, entry) for entry in test],
        "test_pairs_unpaired.txt": [(entry, catalogue.other(entry)) for entry in shuffled],
    }


def _triplets(catalogue: Catalogue) -> list[str]:
    """Three rows for each upper-body test model: model, upper garment, lower garment.

    All are of the test split.
    """
    rng = catalogue.list_generator("test", "lower_body")
    uppers = catalogue.of("test", "upper_body")
    lowers = catalogue.of("test", "lower_body")
    rows = []
    for _ in range(_TRIPLETS_PER_MODEL):
        order = rng.permutation(len(uppers))
        picked = rng.integers(len(lowers), size=len(uppers))
        for model, upper, lower in zip(uppers, order, picked, strict=True):
            rows.append(f"{model.id}_0.jpg\t{uppers[upper].id}_1.jpg\t{lowers[lower].id}_1.jpg")
    return sorted(rows)


def _lines(rows: list[str]) -> str:
    return "".join(f"{row}\n" for row in rows)
