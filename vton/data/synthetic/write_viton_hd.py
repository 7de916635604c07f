"""The VITON-HD folder of rendered data: every annotation kind, under the current archive's names.

Beside the official folders: DCI-VTON's warped garments (`cloth-warp` ..., keyed by person),
StableVITON's warped silhouettes (`gt_cloth_warped_mask`), and what only rendered data has:
`gt-unpaired`, the true picture of every unpaired pair, its parse map, and `meta`.
"""

from __future__ import annotations

import numpy as np

from vton.data.densepose import draw_parts
from vton.data.derived.agnostic import agnostic_image, agnostic_mask
from vton.data.derived.published_masks import agnostic_parse
from vton.data.pose import FROM_BODY_25, VITON_HD_CANVAS
from vton.data.synthetic import keypoints, words
from vton.data.synthetic.catalogue import Entry
from vton.data.synthetic.files import Writer, defective_parse, relative_box
from vton.data.synthetic.garment import Garment
from vton.data.synthetic.parts import body_parts
from vton.data.synthetic.render import draw_person, draw_product

# Folders of parse maps, drawn skeletons and keypoints: now, and in the first generation.
_NAMES = ("image-parse-v3", "openpose_img", "openpose_json")
_OLD_NAMES = ("image-parse", "openpose-img", "openpose-json")


def write_entry(writer: Writer, entry: Entry) -> dict:
    """Write all files of one person and the garment worn; returns its record in the tag file."""
    catalogue = writer.catalogue
    defects = writer.defects
    rng = catalogue.annotation_generator(entry)
    folder = entry.split
    name = entry.id
    names = _OLD_NAMES if defects.old_names else _NAMES
    parse_folder, picture_folder, json_folder = names
    scene = catalogue.scene(entry)
    other = catalogue.other(entry)
    outfits = [scene.outfit()]
    if entry.split == "test" or catalogue.other_clothes:
        outfits.append(scene.outfit(catalogue.garment(other)))
    worn, *others = draw_person(scene.person, outfits, catalogue.size)
    product, silhouette = draw_product(scene.garment, catalogue.size)

    writer.photo(f"{folder}/image/{name}.jpg", worn.picture)
    writer.photo(f"{folder}/cloth/{name}.jpg", product)
    writer.photo(f"{folder}/cloth-mask/{name}.jpg", silhouette)
    writer.labels(
        f"{folder}/{parse_folder}/{name}.png", defective_parse(worn.parse, defects, entry)
    )

    body = keypoints.body_25(scene.person, rng, defects.missing_joints)
    empty = entry.split == "test" and entry.position < defects.empty_people
    content = keypoints.openpose_json(scene.person, body, rng, empty)
    writer.json(f"{folder}/{json_folder}/{name}_keypoints.json", content)
    writer.picture(
        f"{folder}/{picture_folder}/{name}_rendered.png",
        keypoints.draw_openpose(content, catalogue.size),
    )
    parts, _ = body_parts(scene.person, catalogue.size)
    writer.photo(f"{folder}/image-densepose/{name}.jpg", draw_parts(parts))

    if not defects.no_agnostic:
        rows = np.zeros((18, 3)) if empty else body[FROM_BODY_25]
        joints = keypoints.coco_18_pixels(rows, VITON_HD_CANVAS, catalogue.size)
        mask = agnostic_mask(worn.parse, joints, entry.category, rule="safe")
        writer.photo(f"{folder}/agnostic-v3.2/{name}.jpg", agnostic_image(worn.picture, mask))
        writer.picture(
            f"{folder}/agnostic-mask/{name}_mask.png", np.repeat(mask[..., None], 3, axis=2)
        )
        writer.labels(
            f"{folder}/image-parse-agnostic-v3.2/{name}.png", agnostic_parse(worn.parse, joints)
        )

    writer.photo(f"{folder}/cloth-warp/{name}.jpg", worn.garment)
    writer.photo(f"{folder}/cloth-warp-mask/{name}.jpg", worn.garment_mask)
    writer.photo(f"{folder}/gt_cloth_warped_mask/{name}.jpg", worn.garment_mask)
    if catalogue.other_clothes:
        writer.photo(f"{folder}/person-other/{name}.jpg", others[0].picture)
    for truth in others if entry.split == "test" else ():
        writer.photo(f"{folder}/unpaired-cloth-warp/{name}.jpg", truth.garment)
        writer.photo(f"{folder}/unpaired-cloth-warp-mask/{name}.jpg", truth.garment_mask)
        writer.picture(f"{folder}/gt-unpaired/{name}__{other.id}.png", truth.picture)
        writer.labels(f"{folder}/gt-unpaired-parse/{name}__{other.id}.png", truth.parse)
    writer.meta(f"{folder}/meta/{name}.json", entry, scene, VITON_HD_CANVAS)
    boxes = {"image": relative_box(worn.garment_mask), "cloth": relative_box(silhouette)}
    return _tag_record(entry, scene.garment, boxes)


def write_lists(writer: Writer, records: list[dict]) -> None:
    """Pair lists and tag files.

    records: what write_entry returned, in the order of the entries.
    """
    catalogue = writer.catalogue
    ids = [entry.id for entry in catalogue.entries]
    record_of = dict(zip(ids, records, strict=True))
    for split in ("train", "test"):
        entries = catalogue.of(split)
        # The second column is the unpaired garment in the training list too.
        lines = [f"{entry.id}.jpg {catalogue.other(entry).id}.jpg\n" for entry in entries]
        writer.text(f"{split}_pairs.txt", "".join(lines))
        untagged = catalogue.defects.untagged if split == "test" else 0
        tagged = [record_of[entry.id] for entry in entries[untagged:]]
        writer.json(f"{split}/vitonhd_{split}_tagged.json", {"data": tagged})


def _tag_record(entry: Entry, garment: Garment, boxes: dict[str, dict[str, float]]) -> dict:
    """The entry's record in the tag file. boxes: of the garment, by folder of the picture."""
    width, height = VITON_HD_CANVAS
    tag_info = []
    for tag, value in words.tags(garment).items():
        tag_info.append({"tag_name": tag, "tag_category": value})
    pictures = {}
    for folder, box in boxes.items():
        pictures[folder] = {
            "image_path": f"{folder}/{entry.id}.jpg",
            "image_width": width,
            "image_height": height,
            "bbox": box,
        }
    return {
        "file_name": f"{entry.id}.jpg",
        "category_name": "TOPS",
        "tag_info": tag_info,
        "image": pictures,
    }
