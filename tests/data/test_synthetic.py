"""The renderer: exact annotations, real file formats, determinism, whole folders."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vton.config import DataConfig, SyntheticConfig
from vton.data import labels, pose
from vton.data.dataset import TryOnDataset, dataset_root, open_folder
from vton.data.derived.agnostic import agnostic_mask
from vton.data.sample import DataError
from vton.data.synthetic import (
    STAMP,
    Defects,
    ensure,
    keypoints,
    render,
    texture,
    words,
    write,
    writing,
)
from vton.data.synthetic.catalogue import CATEGORIES, LAYOUTS, Catalogue
from vton.data.synthetic.files import smoothed
from vton.data.synthetic.parts import body_parts

SIZE = (128, 96)
SLIVERS = 4  # pixels tinted by something so thin that it misses their centres, and so their labels
WORN_LABEL = {
    "top": labels.UPPER,
    "dress": labels.DRESS,
    "skirt": labels.SKIRT,
    "trousers": labels.PANTS,
}
PARTS_OF = {  # DensePose ids where a label is seen
    labels.LEFT_ARM: (4, 15, 17, 19, 21),
    labels.RIGHT_ARM: (3, 16, 18, 20, 22),
    labels.FACE: (23, 24),
}
SKIN = (labels.NECK, labels.LEFT_ARM, labels.RIGHT_ARM, labels.LEFT_LEG, labels.RIGHT_LEG)


@pytest.fixture(scope="module")
def viton(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "viton"
    write(root, layout="viton_hd", size=SIZE, train=3, test=4, seed=5, workers=1)
    return root


@pytest.fixture(scope="module")
def dresscode(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "dresscode"
    write(root, layout="dresscode", size=SIZE, train=2, test=3, seed=5, workers=1)
    return root


def files(root):
    """Content by path."""
    content = {}
    for path in root.rglob("*"):
        if path.is_file():
            content[path.relative_to(root).as_posix()] = path.read_bytes()
    return content


def rows_of(path, separator=None):
    """The columns of a list."""
    return [line.split(separator) for line in path.read_text().splitlines()]


def pixels_of(path):
    return np.asarray(Image.open(path))


def scenes(layout, count):
    """(category, scene, drawings worn and unpaired) of the first test entries of each category."""
    catalogue = Catalogue(layout, SIZE, 1, count, 11)
    for entry in catalogue.of("test"):
        scene = catalogue.scene(entry)
        outfits = [scene.outfit(), scene.outfit(catalogue.garment(catalogue.other(entry)))]
        yield entry.category, scene, render.draw_person(scene.person, outfits, SIZE)


def interior(mask, pixels=1):
    return ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=pixels)


def near(mask):
    return ndimage.binary_dilation(mask, np.ones((3, 3)))


# ---- determinism


def test_files_do_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_CHUNK", 2)
    settings = {"layout": "viton_hd", "size": (48, 36), "train": 3, "test": 2, "seed": 3}
    for workers in (1, 2):
        write(tmp_path / str(workers), **settings, workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_the_seed_changes_everything_that_is_drawn(tmp_path, viton):
    write(tmp_path / "a", layout="viton_hd", size=SIZE, train=3, test=4, seed=6, workers=1)
    a = files(tmp_path / "a")
    b = files(viton)
    drawn = [name for name in a if name.endswith((".jpg", ".png")) and name in b]
    assert len(drawn) >= 98  # 14 pictures of each of the 7 entries
    assert not [name for name in drawn if a[name] == b[name]]


def test_the_test_set_does_not_depend_on_the_number_of_training_pairs():
    small, large = (Catalogue("viton_hd", SIZE, train, 3, 0) for train in (1, 9))
    for a, b in zip(small.of("test"), large.of("test"), strict=True):
        assert a.id != b.id
        assert small.garment(a) == large.garment(b)
        assert (small.scene(a).person.body.joints == large.scene(b).person.body.joints).all()
        assert small.other(a).position == large.other(b).position


def test_large_pictures_are_drawn_in_bands_without_seams(monkeypatch):
    catalogue = Catalogue("viton_hd", SIZE, 1, 2, 0)
    scene = catalogue.scene(catalogue.entries[0])
    (whole,) = render.draw_person(scene.person, [scene.outfit()], SIZE)
    monkeypatch.setattr(render, "_BAND", 5_000)
    (banded,) = render.draw_person(scene.person, [scene.outfit()], SIZE)
    for name in ("picture", "parse", "garment", "garment_mask"):
        assert (getattr(whole, name) == getattr(banded, name)).all(), name


# ---- exactness


@pytest.mark.parametrize("layout", LAYOUTS)
def test_joints_lie_on_their_limbs(layout):
    garments = {labels.UPPER, labels.DRESS, labels.PANTS, labels.SKIRT}
    arms, legs = {labels.LEFT_ARM, labels.RIGHT_ARM}, {labels.LEFT_LEG, labels.RIGHT_LEG}
    shoes = {labels.LEFT_SHOE, labels.RIGHT_SHOE}
    allowed = {joint: garments | arms for joint in range(2, 8)}
    allowed |= {joint: garments | legs | arms | shoes for joint in range(8, 14)}
    allowed |= {0: {labels.FACE}, 1: garments | arms | {labels.NECK, labels.HAIR}}
    for joint in (2, 5):
        allowed[joint] = allowed[joint] | {labels.NECK, labels.HAIR}
    own = {3: labels.RIGHT_ARM, 4: labels.RIGHT_ARM, 6: labels.LEFT_ARM, 7: labels.LEFT_ARM}
    own |= {9: labels.RIGHT_LEG, 10: labels.RIGHT_LEG, 12: labels.LEFT_LEG, 13: labels.LEFT_LEG}
    hits = dict.fromkeys(own, 0)
    for _, scene, (worn, _) in scenes(layout, 12):
        joints = scene.person.body.joints[pose.FROM_BODY_25]
        points = scene.person.camera.to_canvas(joints, SIZE[1], SIZE[0])
        for joint, (x, y) in enumerate(points):
            if joint not in allowed or not (0 <= x < SIZE[1] and 0 <= y < SIZE[0]):
                continue
            label = int(worn.parse[int(y), int(x)])
            assert label in allowed[joint], (joint, labels.NAMES[label])
            hits[joint] = hits.get(joint, 0) + (label == own.get(joint))
    assert hits[4] and hits[7]  # bare wrists carry the label of their own side
    if layout == "dresscode":
        assert hits[10] and hits[13]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_left_and_right_are_the_persons(layout):
    for _, scene, (worn, _) in scenes(layout, 6):
        body, camera = scene.person.body, scene.person.camera
        for label, joint in ((labels.RIGHT_ARM, 4), (labels.LEFT_ARM, 7)):
            x, y = camera.to_canvas(body.joints[joint], SIZE[1], SIZE[0])
            rows, columns = np.nonzero(worn.parse == label)
            if rows.size > 20 and 0 < x < SIZE[1] - 1 and 0 < y < SIZE[0] - 1:
                assert np.hypot(rows - y, columns - x).min() < 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_parse_map_matches_the_picture(layout):
    for _, scene, (worn, _) in scenes(layout, 4):
        height, width = SIZE
        y, x = (np.mgrid[:height, :width] + 0.5) / np.reshape(SIZE, (2, 1, 1))
        backdrop = scene.person.backdrop.colour(x.ravel().astype("f4"), y.ravel().astype("f4"))
        backdrop = backdrop.reshape(*SIZE, 3)
        highest = ndimage.maximum_filter(backdrop, (3, 3, 1))
        flat = highest - ndimage.minimum_filter(backdrop, (3, 3, 1)) < 0.02
        background = interior(worn.parse == labels.BACKGROUND) & flat.all(-1)
        difference = np.abs(worn.picture.astype(float) - 255 * backdrop)[background]
        assert difference.max() < 2
        shown = interior(worn.garment_mask)
        assert ((worn.parse == WORN_LABEL[scene.garment.kind]) == worn.garment_mask).all()
        # On the person the cloth keeps its colour up to shading.
        ratio = (worn.picture[shown].mean(-1) + 1) / (worn.garment[shown].mean(-1) + 1)
        assert ratio.min() > 0.5 and ratio.max() < 1.25 and ratio.std() > 0.02
        assert (worn.garment[~near(worn.garment_mask)] < 255).any(-1).sum() <= SLIVERS


def test_the_cloth_on_the_person_is_that_of_the_product_picture():
    """Without anti-aliasing both show exactly the texture's two colours, in the same proportion."""
    catalogue, compared = Catalogue("viton_hd", SIZE, 60, 2, 0), 0
    for entry in catalogue.of("train"):
        scene = catalogue.scene(entry)
        cloth = scene.garment.texture
        plain = cloth.trim is None and cloth.sleeves is None and scene.garment.sleeve == "none"
        if "stripes" not in cloth.kind or not plain:
            continue
        (worn,) = render.draw_person(scene.person, [scene.outfit()], SIZE, samples=1)
        product, mask = render.draw_product(scene.garment, SIZE, samples=1)
        colours = np.round(np.array([cloth.base, cloth.accent]) * 255)
        on_person = worn.garment[worn.garment_mask].astype(int)
        in_shop = product[mask].astype(int)
        assert (np.abs(on_person[:, None] - colours).max(-1).min(-1) <= 1).all()
        worn_share = (np.abs(on_person - colours[1]).max(-1) <= 1).mean()
        shop_share = (np.abs(in_shop - colours[1]).max(-1) <= 1).mean()
        assert abs(worn_share - shop_share) < 0.2
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_unpaired_truth_differs_only_where_garment_or_skin_is(layout):
    for category, _, (worn, truth) in scenes(layout, 8):
        garment = np.isin(worn.parse, labels.GARMENT_LABELS[category]) | truth.garment_mask
        uncovered = np.isin(truth.parse, SKIN + labels.GARMENT_LABELS[category])
        skin = np.isin(worn.parse, SKIN) & uncovered
        changed = (worn.picture != truth.picture).any(-1)
        assert (changed & ~near(garment | skin)).sum() <= SLIVERS
        assert (changed & garment).sum() > 0.5 * garment.sum()
        shared = interior((worn.parse == labels.BACKGROUND) & (truth.parse == labels.BACKGROUND))
        assert (worn.picture[shared] != truth.picture[shared]).any(-1).sum() <= SLIVERS
        face = interior(worn.parse == labels.FACE)
        assert (worn.picture[face] == truth.picture[face]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_body_parts_follow_the_body_not_the_clothes(layout):
    for _, scene, (worn, truth) in scenes(layout, 4):
        parts, uv = body_parts(scene.person, SIZE)
        assert uv.dtype == np.float32 and uv.min() >= 0 and uv.max() <= 1
        assert not uv[:, parts == 0].any()
        for drawing in (worn, truth):
            for label, ids in PARTS_OF.items():
                assert np.isin(parts[interior(drawing.parse == label)], ids).all()


def test_nothing_of_the_worn_garment_shows_in_the_agnostic_picture(viton):
    for photo, _ in rows_of(viton / "test_pairs.txt"):
        name = photo.removesuffix(".jpg")
        parse = pixels_of(viton / f"test/image-parse-v3/{name}.png")
        mask = pixels_of(viton / f"test/agnostic-mask/{name}_mask.png")
        assert mask.shape == (*SIZE, 3) and set(np.unique(mask)) == {0, 255}
        assert (mask[parse == labels.UPPER] == 255).all()
        assert 0.1 < (mask > 0).mean() < 0.5
        agnostic = pixels_of(viton / f"test/agnostic-v3.2/{name}.jpg").astype(int)
        assert np.abs(agnostic[interior(mask[..., 0] > 0, 8)] - 128).max() <= 8  # JPEG's ringing
        agnostic_parse = pixels_of(viton / f"test/image-parse-agnostic-v3.2/{name}.png")
        assert not np.isin(agnostic_parse, (labels.UPPER, labels.NECK)).any()
        assert (agnostic_parse == labels.FACE).sum() == (parse == labels.FACE).sum()


# ---- identities


@pytest.mark.parametrize("layout", LAYOUTS)
def test_test_garments_never_occur_in_training(layout):
    catalogue = Catalogue(layout, SIZE, 150, 60, 0)
    textures = {}
    for split in ("train", "test"):
        textures[split] = {catalogue.garment(entry).texture for entry in catalogue.of(split)}
    assert not textures["train"] & textures["test"]


def test_letters_of_test_garments_never_occur_in_training():
    letters = []
    for held_out in (False, True):
        rng = np.random.default_rng(int(held_out))
        marks = set()
        for _ in range(4000):
            cloth = texture.sample_texture(rng, feature=0.1, held_out=held_out)
            if cloth.kind == "text":
                marks.add(cloth.mark)
        letters.append(marks)
    train, test = letters
    assert min(len(train), len(test)) > 150 and not train & test


@pytest.mark.parametrize("test", [2, 3, 17])
def test_unpaired_order_is_a_derangement_within_each_category(test):
    catalogue = Catalogue("dresscode", SIZE, 1, test, 4)
    entries = catalogue.of("test")
    others = [catalogue.other(entry) for entry in entries]
    for entry, other in zip(entries, others, strict=True):
        assert entry.id != other.id and entry.category == other.category
    assert sorted(other.id for other in others) == [entry.id for entry in entries]


def test_textures_stay_recognisable_at_128_pixels():
    for layout, scale in (("viton_hd", 0.365), ("dresscode", 0.287)):
        catalogue = Catalogue(layout, SIZE, 100, 2, 0)
        for entry in catalogue.of("train"):
            cloth = catalogue.garment(entry).texture
            if cloth.kind == "dots":
                share = 2 * cloth.duty
            elif "stripes" in cloth.kind or cloth.kind == "checks":
                share = min(cloth.duty, 1 - cloth.duty)
            else:
                continue
            assert cloth.period * share * scale * 128 > 3.3, cloth


# ---- formats


def test_viton_hd_holds_every_official_folder_and_format(viton):
    ids = ["00003_00", "00004_00", "00005_00", "00006_00"]
    expected = {
        "image": ("{}.jpg", "RGB"),
        "cloth": ("{}.jpg", "RGB"),
        "cloth-mask": ("{}.jpg", "L"),
        "image-parse-v3": ("{}.png", "P"),
        "image-parse-agnostic-v3.2": ("{}.png", "P"),
        "agnostic-v3.2": ("{}.jpg", "RGB"),
        "agnostic-mask": ("{}_mask.png", "RGB"),
        "openpose_img": ("{}_rendered.png", "RGB"),
        "image-densepose": ("{}.jpg", "RGB"),
        "cloth-warp": ("{}.jpg", "RGB"),
        "cloth-warp-mask": ("{}.jpg", "L"),
        "gt_cloth_warped_mask": ("{}.jpg", "L"),
        "unpaired-cloth-warp": ("{}.jpg", "RGB"),
        "unpaired-cloth-warp-mask": ("{}.jpg", "L"),
    }
    for folder, (pattern, mode) in expected.items():
        names = sorted(path.name for path in (viton / "test" / folder).iterdir())
        assert names == [pattern.format(id_) for id_ in ids]
        with Image.open(viton / "test" / folder / names[0]) as image:
            assert image.size == SIZE[::-1] and image.mode == mode, folder
    with Image.open(viton / "train/image/00000_00.jpg") as image:
        assert image.layer[0][1:3] == (2, 2) and image.layer[1][1:3] == (1, 1)  # chroma 4:2:0
        assert max(image.quantization[0]) <= 12  # quality 95


def test_viton_hd_lists_name_the_unpaired_garment_in_both_splits(viton):
    for split, ids in (("train", range(3)), ("test", range(3, 7))):
        rows = rows_of(viton / f"{split}_pairs.txt", " ")
        assert [row[0] for row in rows] == [f"{i:05d}_00.jpg" for i in ids]
        assert sorted(row[1] for row in rows) == sorted(row[0] for row in rows)
        assert all(len(row) == 2 and row[0] != row[1] for row in rows)
    pairs = set()
    for person, garment in rows_of(viton / "test_pairs.txt"):
        pairs.add(f"{person.removesuffix('.jpg')}__{garment.removesuffix('.jpg')}")
    for folder in ("gt-unpaired", "gt-unpaired-parse"):
        assert {path.stem for path in (viton / "test" / folder).iterdir()} == pairs


@pytest.mark.parametrize(
    ("root", "path", "palette", "count"),
    [
        ("viton", "test/image-parse-v3", labels.VITON_HD_PALETTE, 20),
        ("viton", "test/gt-unpaired-parse", labels.VITON_HD_PALETTE, 20),
        ("dresscode", "dresses/label_maps", labels.DRESSCODE_PALETTE, 18),
        ("dresscode", "upper_body/gt-unpaired-parse", labels.DRESSCODE_PALETTE, 18),
    ],
)
def test_parse_maps_carry_the_exact_palette(request, root, path, palette, count):
    for file in (request.getfixturevalue(root) / path).iterdir():
        with Image.open(file) as image:
            assert image.mode == "P" and bytes(image.getpalette()) == palette
            assert np.asarray(image).max() < count and len(np.unique(np.asarray(image))) > 4


def test_openpose_files_are_on_the_768x1024_canvas(viton):
    content = json.loads((viton / "test/openpose_json/00003_00_keypoints.json").read_text())
    (person,) = content["people"]
    assert content["version"] == 1.3 and person["person_id"] == [-1]
    for part, length in (("pose", 75), ("face", 210), ("hand_left", 63), ("hand_right", 63)):
        table = np.reshape(person[f"{part}_keypoints_2d"], (-1, 3))
        assert table.size == length and person[f"{part}_keypoints_3d"] == []
        assert (table[:, :2] >= 0).all() and (table[:, :2] < (768, 1024)).all()
        assert (table[table[:, 2] == 0] == 0).all()
    body = np.reshape(person["pose_keypoints_2d"], (25, 3))
    assert body[8, 1] > 550  # hips in the lower half of 1024 rows, whatever the picture's size
    # Left joints are on the right half: shoulder, hip, eye and ear.
    assert (body[[5, 12, 16, 18], 0] > body[[2, 9, 15, 17], 0]).all()


def test_dresscode_keypoints_follow_the_data_sets_conventions(dresscode):
    missing = 0
    for path in dresscode.glob("*/keypoints/*_2.json"):
        rows = json.loads(path.read_text())["keypoints"]
        assert len(rows) == 18
        found = [row for row in rows if row[2] > 0]
        assert all(row == [-1, -1, 0, -1] for row in rows if row not in found)
        assert [row[3] for row in found] == list(range(len(found)))
        assert all(row[0] == int(row[0]) < 384 and row[1] == int(row[1]) < 512 for row in found)
        assert rows[0][1] == 0 and rows[0][2] > 0  # cropped heads: nose present at the upper border
        assert rows[10][1] > 384 or rows[13][1] > 384  # feet in the lowest quarter of 512 rows
        missing += len(rows) - len(found)
    assert missing


@pytest.fixture(scope="module")
def ids():
    """Ids of the rendered DressCode folder by split and category."""
    ids = {}
    count = 0
    for split, pairs in (("train", 2), ("test", 3)):
        for category in CATEGORIES:
            ids[split, category] = [f"{count + place:06d}" for place in range(pairs)]
            count += pairs
    return ids


def test_paired_lists_of_dresscode(dresscode, ids):
    for name, split in (("train_pairs.txt", "train"), ("test_pairs_paired.txt", "test")):
        expected = []
        for number, category in enumerate(CATEGORIES):
            for id_ in ids[split, category]:
                expected.append([f"{id_}_0.jpg", f"{id_}_1.jpg", str(number)])
        assert rows_of(dresscode / name, "\t") == expected


def test_unpaired_lists_of_dresscode(dresscode, ids):
    whole = rows_of(dresscode / "test_pairs_unpaired.txt", "\t")
    for number, category in enumerate(CATEGORIES):
        own = rows_of(dresscode / category / "test_pairs_unpaired.txt", "\t")
        assert own == [row[:2] for row in whole if row[2] == str(number)]
        pairs = [(person[:6], garment[:6]) for person, garment in own]
        assert sorted(person for person, _ in pairs) == ids["test", category]
        assert sorted(garment for _, garment in pairs) == ids["test", category]
        for person, garment in pairs:
            assert person != garment
            assert (dresscode / category / "gt-unpaired" / f"{person}__{garment}.png").is_file()


def test_captions_of_dresscode(dresscode, ids):
    for category in CATEGORIES:
        lines = (dresscode / category / "dc_caption.txt").read_text().splitlines()
        captions = [line.split(" ", 1) for line in lines]
        garments = [f"{id_}_1.jpg" for id_ in ids["train", category] + ids["test", category]]
        assert [name for name, _ in captions] == garments
        assert all(1 <= len(words.split()) <= 8 for _, words in captions)


def test_triplets_of_dresscode(dresscode, ids):
    triplets = rows_of(dresscode / "multigarment_test_triplets.txt", "\t")
    models = [f"{id_}_0.jpg" for id_ in ids["test", "upper_body"] for _ in range(3)]
    assert sorted(row[0] for row in triplets) == models
    assert {row[1][:6] for row in triplets} <= set(ids["test", "upper_body"])
    assert {row[2][:6] for row in triplets} <= set(ids["test", "lower_body"])


DRESSCODE_FILES = {
    "images/{}_0.jpg": "RGB",
    "images/{}_1.jpg": "RGB",
    "masks/{}_1.png": "L",
    "label_maps/{}_4.png": "P",
    "skeletons/{}_5.jpg": "RGB",
    "dense/{}_5.png": "L",
    "image-densepose/{}_0.jpg": "RGB",
    "agnostic_masks/{}_0.png": "L",
    "warped_cloth/{}_0.jpg": "RGB",
    "warped_mask/{}_0.png": "L",
}


def test_dresscode_holds_every_kind_of_file(dresscode):
    for category in CATEGORIES:
        first = json.loads((dresscode / STAMP).read_text())["train"] * CATEGORIES.index(category)
        for path, mode in DRESSCODE_FILES.items():
            with Image.open(dresscode / category / path.format(f"{first:06d}")) as image:
                assert image.size == SIZE[::-1] and image.mode == mode, path
        with np.load(dresscode / category / f"dense/{first:06d}_5_uv.npz") as arrays:
            assert arrays["uv"].shape == (2, *SIZE) and arrays["uv"].dtype == np.float32


def test_tags_have_idm_vtons_structure(viton):
    entries = json.loads((viton / "test/vitonhd_test_tagged.json").read_text())["data"]
    assert [entry["file_name"] for entry in entries] == [f"{i:05d}_00.jpg" for i in range(3, 7)]
    for entry in entries:
        assert [tag["tag_name"] for tag in entry["tag_info"]] == list(words.TAGS)
        for kind in ("image", "cloth"):
            box = entry["image"][kind]["bbox"]
            assert 0 <= box["left"] < box["left"] + box["width"] <= 1 and 0 < box["height"] <= 1
        assert entry["image"]["cloth"]["image_width"] == 768


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_readers_accept_every_sample_in_both_orders(tmp_path, layout):
    rendered = SyntheticConfig(layout=layout, train=1, test=2, seed=1, workers=1)
    config = DataConfig(root=str(tmp_path), size=(64, 48), synthetic=rendered, densepose=True)
    arguments = {"layout": layout, "size": config.size, "train": 1, "test": 2, "seed": 1}
    ensure(dataset_root(config), **arguments, workers=1)
    for split, order in (("train", "paired"), ("test", "paired"), ("test", "unpaired")):
        samples = TryOnDataset(open_folder(config), split, order)
        assert len(samples) == (1 if split == "train" else 2) * (3 if layout == "dresscode" else 1)
        for index in range(len(samples)):
            sample = samples[index].check()
            assert sample.truth is not None and sample.truth_garment_mask.any()
            assert bool((sample.truth != sample.person).any()) == (order == "unpaired")


# ---- defects


def test_defects_are_written_where_asked_for(tmp_path):
    defects = Defects(
        empty_people=1,
        missing_joints=1.0,
        untagged=2,
        gray_palette=True,
        smooth_parse=True,
        swapped_sides=1,
        paired_in_unpaired=2,
        no_agnostic=True,
        old_names=True,
        missing_file="test/cloth/00002_00.jpg",
    )
    write(
        tmp_path, layout="viton_hd", size=SIZE, train=1, test=4, seed=0, workers=1, defects=defects
    )
    keypoints = sorted((tmp_path / "test/openpose-json").iterdir())
    people = [json.loads(path.read_text())["people"] for path in keypoints]
    assert [len(found) for found in people] == [0, 1, 1, 1]
    body = np.reshape(people[2][0]["pose_keypoints_2d"], (25, 3))
    assert (body[[3, 4, 6, 7]] == 0).all() and (body[[2, 5], 2] > 0).all()
    assert len(json.loads((tmp_path / "test/vitonhd_test_tagged.json").read_text())["data"]) == 2
    with Image.open(tmp_path / "test/image-parse/00001_00.png") as image:
        assert image.mode == "L" and np.asarray(image).max() < 20
    same = [person == garment for person, garment in rows_of(tmp_path / "test_pairs.txt")]
    assert same[:2] == [True, True]
    for absent in ("agnostic-mask", "image-parse-v3", "cloth/00002_00.jpg"):
        assert not (tmp_path / "test" / absent).exists()
    assert (tmp_path / "test/cloth/00003_00.jpg").exists()
    assert json.loads((tmp_path / STAMP).read_text())["defects"] == asdict(defects)


def test_label_defects_change_the_parse_map_alone(tmp_path):
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    arguments = {"layout": "viton_hd", "size": SIZE, "train": 1, "test": 6, "seed": 0, "workers": 1}
    write(plain, **arguments)
    write(broken, **arguments, defects=Defects(skirt_as_pants=True, swapped_sides=1))
    a = files(plain)
    b = files(broken)
    changed = {name for name in a if a[name] != b[name]} - {STAMP}
    folders = {name.rpartition("/")[0] for name in changed}
    assert folders == {"test/image-parse-v3", "train/image-parse-v3"}
    before = pixels_of(plain / "test/image-parse-v3/00001_00.png")
    after = pixels_of(broken / "test/image-parse-v3/00001_00.png")
    assert ((before == labels.LEFT_ARM) == (after == labels.RIGHT_ARM)).all()

    def skirts(root):
        parses = map(pixels_of, (root / "test/image-parse-v3").iterdir())
        return [(parse == labels.SKIRT).any() for parse in parses]

    assert any(skirts(plain)) and not any(skirts(broken))


def test_smoothed_parse_edges_are_near_but_not_exact():
    for _, _, (worn, _) in scenes("viton_hd", 3):
        parse = smoothed(worn.parse)
        edges = ndimage.morphological_gradient(worn.parse, size=9) > 0
        assert 0.005 < (parse != worn.parse).mean() < 0.1
        assert (parse == worn.parse)[~edges].all()
        assert set(np.unique(parse)) <= set(np.unique(worn.parse))


# ---- ensure

ARGUMENTS = {"layout": "viton_hd", "size": (32, 24), "train": 1, "test": 2, "seed": 0, "workers": 1}


def test_ensure_renders_once(tmp_path, monkeypatch):
    root = tmp_path / "deep" / "set"
    ensure(root, **ARGUMENTS)
    before = files(root)
    monkeypatch.setattr(writing, "write", lambda *a, **k: pytest.fail("rendered again"))
    ensure(root, **ARGUMENTS)
    assert files(root) == before
    assert {path.name for path in root.parent.iterdir()} == {"set", ".set.lock"}
    assert json.loads((root / STAMP).read_text())["renderer"] == writing.RENDERER_VERSION


def test_a_failed_rendering_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(writing.write_viton_hd, "write_lists", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure(tmp_path / "set", **ARGUMENTS)
    assert [path.name for path in tmp_path.iterdir()] == [".set.lock"]


def render_or_die(root: Path, started: Path, lists: Callable | None) -> None:
    """`ensure` in a process of its own, which says that it renders; without `lists` it is killed
    before its last files.
    """

    def write_lists(*arguments):
        with open(started, "a") as file:
            file.write("x")
        if lists is None:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1)  # the others come
        lists(*arguments)

    writing.write_viton_hd.write_lists = write_lists
    ensure(root, **ARGUMENTS)


def test_of_three_processes_one_renders_and_what_a_killed_one_left_goes(tmp_path):
    root, started = tmp_path / "set", tmp_path / "started"
    context = multiprocessing.get_context("fork")

    def exit_codes(count: int, lists: Callable | None) -> list[int]:
        arguments = (root, started, lists)
        processes = [context.Process(target=render_or_die, args=arguments) for _ in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

    assert exit_codes(1, None) == [-signal.SIGKILL] and not root.exists()
    assert exit_codes(3, writing.write_viton_hd.write_lists) == [0, 0, 0]
    assert started.read_text() == "xx"
    assert {path.name for path in tmp_path.iterdir()} == {"set", ".set.lock", "started"}


def test_a_link_to_an_empty_folder_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "disk")
    ensure(tmp_path / "set", **ARGUMENTS)
    assert (tmp_path / "set").is_symlink() and (tmp_path / "disk" / STAMP).exists()


def test_ensure_accepts_what_another_process_finished_first(tmp_path, monkeypatch):
    root, real = tmp_path / "set", writing.write

    def write_twice(target, **arguments):
        real(root, **arguments)
        real(target, **arguments)

    monkeypatch.setattr(writing, "write", write_twice)
    ensure(root, **ARGUMENTS)
    assert {path.name for path in tmp_path.iterdir()} == {"set", ".set.lock"}


def test_ensure_names_the_parameters_that_differ(tmp_path):
    ensure(tmp_path / "set", **ARGUMENTS)
    with pytest.raises(DataError, match=r"seed is 0, wanted 9.*remove the folder") as error:
        ensure(tmp_path / "set", **{**ARGUMENTS, "seed": 9})
    assert "train" not in str(error.value).split("holds")[1]
    with pytest.raises(DataError, match=r"size is .*wanted"):
        ensure(tmp_path / "set", **{**ARGUMENTS, "size": (48, 36)})
    with pytest.raises(DataError, match="defects"):
        ensure(tmp_path / "set", **ARGUMENTS, defects=Defects(untagged=1))


@pytest.mark.parametrize("content", [None, "not json", "[]"])
def test_ensure_leaves_other_folders_alone(tmp_path, content):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"mine")
    if content is not None:
        (tmp_path / "photos" / STAMP).write_text(content)
    with pytest.raises(DataError, match="photos"):
        ensure(tmp_path / "photos", **ARGUMENTS)
    assert (tmp_path / "photos/holiday.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": "viton"},
        {"size": (8, 6)},
        {"train": 0},
        {"test": 1},
        {"layout": "viton_hd", "train": 100_000},
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(DataError, match="synthetic"):
        ensure(tmp_path / "set", **{**ARGUMENTS, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_safe_masks_of_all_categories_hide_the_garment():
    for category, scene, (worn, _) in scenes("dresscode", 6):
        rows = np.array(keypoints.coco_18(scene.person, np.random.default_rng(0)))
        joints = keypoints.coco_18_pixels(rows, pose.DRESSCODE_CANVAS, SIZE)
        mask = agnostic_mask(worn.parse, joints, category)
        assert mask[worn.garment_mask].all()
