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
from vton.data.synthetic.files import Writer, bounding_box, defective_parse
from vton.data.synthetic.parts import body_parts
from vton.data.synthetic.render import draw, draw_product

OLD_NAMES = {
    "image-parse-v3": "image-parse",
    "openpose_img": "openpose-img",
    "openpose_json": "openpose-json",
}


def write_entry(writer: Writer, entry: Entry) -> dict:
    """All files of one person and the garment worn. Returns the entry's record in the tag file."""
    catalogue, defects = writer.catalogue, writer.defects
    folder, name, rng = entry.split, entry.id, catalogue.annotation_generator(entry)
    parse_folder, picture_folder, json_folder = (
        new if not defects.old_names else old for new, old in OLD_NAMES.items()
    )
    scene = catalogue.scene(entry)
    other = catalogue.other(entry)
    outfits = [scene.outfit()]
    if entry.split == "test":
        outfits.append(scene.outfit(catalogue.garment(other)))
    worn, *unpaired = draw(scene.person, outfits, catalogue.size)
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
    for truth in unpaired:
        writer.photo(f"{folder}/unpaired-cloth-warp/{name}.jpg", truth.garment)
        writer.photo(f"{folder}/unpaired-cloth-warp-mask/{name}.jpg", truth.garment_mask)
        writer.picture(f"{folder}/gt-unpaired/{name}__{other.id}.png", truth.picture)
        writer.labels(f"{folder}/gt-unpaired-parse/{name}__{other.id}.png", truth.parse)
    writer.meta(f"{folder}/meta/{name}.json", entry, scene, VITON_HD_CANVAS)
    return _tag_record(
        entry, scene.garment, bounding_box(worn.garment_mask), bounding_box(silhouette)
    )


def write_lists(writer: Writer, records: list[dict]) -> None:
    """Pair lists and tag files; `records` are what write_entry returned, in the order of the
    entries.
    """
    catalogue = writer.catalogue
    records = dict(zip((entry.id for entry in catalogue.entries), records, strict=True))
    for split in ("train", "test"):
        entries = catalogue.of(split)
        # The second column is the unpaired garment in the training list too.
        lines = [f"{entry.id}.jpg {catalogue.other(entry).id}.jpg\n" for entry in entries]
        writer.text(f"{split}_pairs.txt", "".join(lines))
        untagged = catalogue.defects.untagged if split == "test" else 0
        tagged = [records[entry.id] for entry in entries[untagged:]]
        writer.json(f"{split}/vitonhd_{split}_tagged.json", {"data": tagged})


def _tag_record(entry: Entry, garment, person_box: list[float], garment_box: list[float]) -> dict:
    width, height = VITON_HD_CANVAS
    pictures = (("image", person_box), ("cloth", garment_box))
    return {
        "file_name": f"{entry.id}.jpg",
        "category_name": "TOPS",
        "tag_info": [
            {"tag_name": tag, "tag_category": value} for tag, value in words.tags(garment).items()
        ],
        "image": {
            kind: {
                "image_path": f"{kind}/{entry.id}.jpg",
                "image_width": width,
                "image_height": height,
                "bbox": dict(zip(("left", "top", "width", "height"), box, strict=True)),
            }
            for kind, box in pictures
        },
    }
