import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.photos import people
from tests.running import command
from vton.config import DataConfig
from vton.data.check import check_folder
from vton.data.dataset import TryOnDataset, open_folder
from vton.errors import UserError
from vton.photos import plan as planning
from vton.photos import prepare as preparation
from vton.photos.backends import Networks
from vton.photos.layouts import dresscode_rows, openpose
from vton.photos.plan import plan
from vton.photos.prepare import prepare

SIZE = (256, 192)
NETWORKS = Networks.named(densepose="small")


def photos(root, persons=2, garments=2, **folders):
    """A folder of photographs; folders: number of garments by category."""
    (root / "persons").mkdir(parents=True)
    for place in range(persons):
        people.photo(place).save(root / f"persons/somebody {place}.jpg", quality=95)
    of_category = folders or {"": garments}
    for category, count in of_category.items():
        folder = root / "garments" / category
        folder.mkdir(parents=True)
        for place in range(count):
            picture, _ = people.garment(place, category=category or "upper_body")
            picture.save(folder / f"{place}.png")
    return root


def config(layout, root, **settings):
    return DataConfig(name=layout, root=str(root), size=(64, 48), **settings)


@pytest.fixture(scope="module")
def tops(tmp_path_factory):
    root = tmp_path_factory.mktemp("tops")
    planned = plan(photos(root / "in", persons=2, garments=3), size=SIZE)
    outcome = prepare(planned, NETWORKS, root / "out")
    return root / "out", outcome


def test_tops_become_a_whole_viton_hd_folder(tops):
    folder, outcome = tops
    assert outcome.pairs == 3 and outcome.done == 5 and not outcome.failed
    problems = check_folder(config("viton_hd", folder, densepose=True))
    assert {problem.severity for problem in problems} == {"note"}
    said = "\n".join(map(str, problems))
    assert "no training pairs" in said and "no paired test pairs" in said
    pairs = TryOnDataset(
        open_folder(config("viton_hd", folder, densepose=True)), "test", "unpaired"
    )
    assert pairs.sources["mask"] == "folder:agnostic-mask"
    sample = pairs[0].check()
    assert sample.densepose is not None and 0.05 < sample.agnostic_mask.mean() < 0.6
    assert sample.garment_caption.endswith(" top")
    names = {path.parent.name for path in (folder / "test").rglob("*.*") if path.parent != folder}
    assert names >= {
        "image", "cloth", "cloth-mask", "image-parse-v3", "image-parse-agnostic-v3.2",
        "agnostic-v3.2", "agnostic-mask", "openpose_json", "openpose_img", "image-densepose",
    }  # fmt: skip


def test_the_record_says_where_everything_comes_from(tops):
    folder, _ = tops
    record = json.loads((folder / "prepare.json").read_text())
    assert record["backends"]["parser"]["name"] == "small"
    assert len(record["backends"]["parser"]["digest"]) == 64
    person = record["persons"][0]
    assert person["source"].endswith("somebody 0.jpg") and len(person["sha256"]) == 64
    assert person["id"] == "somebody-0" and len(person["confidence"]) == 18
    assert set(person["frame"]) == {"left", "top", "width", "height"}
    assert all((folder / path).is_file() for path in person["files"])
    assert record["pairs"][0] == ["somebody-0", "0", "upper_body"]
    assert not (folder / "done").exists()


def test_the_same_command_again_finds_it_done_and_another_one_does_not_touch_it(tops, tmp_path):
    folder, _ = tops
    source = folder.parent / "in"
    again = prepare(plan(source, size=SIZE), NETWORKS, folder)
    assert again.done == 0 and again.kept == 5 and again.pairs == 3
    with pytest.raises(UserError, match="other photos, pairs or settings"):
        prepare(plan(source, size=(128, 96)), NETWORKS, folder)
    pairs, captions = tmp_path / "pairs.txt", tmp_path / "captions.txt"
    pairs.write_text("somebody 0.jpg\t1.png\nsomebody 1.jpg\t0.png\n")
    captions.write_text("1.png striped shirt\n")
    for lists in ({"pairs": pairs}, {"captions": captions}):
        with pytest.raises(UserError, match="other photos, pairs or settings"):
            prepare(plan(source, size=SIZE, **lists), NETWORKS, folder)
    (tmp_path / "theirs").mkdir()
    with pytest.raises(UserError, match="was not made by vton prepare"):
        prepare(plan(source, size=SIZE), NETWORKS, tmp_path / "theirs")


def test_a_caption_of_one_of_two_files_says_where_it_stands(tmp_path):
    source = photos(tmp_path / "in")
    people.garment(1)[0].save(source / "garments/0.jpg")
    captions = tmp_path / "captions.txt"
    captions.write_text("1.png striped shirt\n0 red shirt\n")
    with pytest.raises(UserError, match=r"line 2 of .*captions.txt: garments/ has 2 files named 0"):
        plan(source, captions=captions)


def test_an_interrupted_preparation_goes_on(tmp_path, monkeypatch):
    source = photos(tmp_path / "in")
    done = []
    real = preparation._prepare_item

    def interrupted(item, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(item)
        return real(item, *rest)

    monkeypatch.setattr(preparation, "_prepare_item", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(plan(source, size=SIZE), NETWORKS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(preparation, "_prepare_item", real)
    with pytest.raises(UserError, match="was begun with other settings"):
        prepare(plan(source, size=(128, 96)), NETWORKS, tmp_path / "out")
    # A photograph that has changed, and one whose file was lost, are done again.
    lost = next((tmp_path / ".out-partial").rglob("*_keypoints.json"))
    lost.unlink()
    outcome = prepare(plan(source, size=SIZE), NETWORKS, tmp_path / "out")
    assert (outcome.kept, outcome.done) == (1, 3)
    whole = prepare(plan(source, size=SIZE), NETWORKS, tmp_path / "whole")
    assert whole.done == 4
    files = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*")}
    for path in files - {Path("prepare.json")}:
        if (tmp_path / "out" / path).is_file():
            assert (tmp_path / "out" / path).read_bytes() == (
                tmp_path / "whole" / path
            ).read_bytes()


def test_what_fails_stops_or_is_left_out(tmp_path, capsys):
    source = photos(tmp_path / "in", persons=1, garments=1)
    Image.new("RGB", (300, 400), (190, 190, 190)).save(source / "persons/nobody.png")
    (source / "garments/broken.jpg").write_bytes(b"no picture")
    arguments = ["prepare", str(source), "--out", str(tmp_path / "out"), "--size", "256x192"]
    assert command(*arguments) == 2
    assert "nobody.png: no person was found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command(*arguments, "--keep-going") == 1
    printed = capsys.readouterr().out
    assert printed.count("failed: ") == 2 and "no JPEG, PNG or WebP" in printed
    assert "data=viton_hd data.root=" in printed
    record = json.loads((tmp_path / "out/prepare.json").read_text())
    assert len(record["failed"]) == 2 and record["pairs"] == [["somebody-0", "0", "upper_body"]]
    assert command(*arguments, "--keep-going") == 1  # complete, and fails as before
    people.garment(0)[0].save(source / "garments/broken.jpg")
    assert command(*arguments, "--keep-going") == 2  # one of the failed ones is mended
    assert "holds other photos" in capsys.readouterr().err


def test_only_pictures_of_the_folders_are_read(tmp_path, capsys):
    source = photos(tmp_path / "in", persons=1, garments=1)
    (source / "persons/folder.jpg").mkdir()
    (source / "persons/.hidden").mkdir()
    (source / "persons/._somebody 0.jpg").write_bytes(b"macOS puts this beside it")
    (source / "garments/notes.txt").write_text("hello")
    (source / "garments/shirt.HEIC").write_bytes(b"another format")
    (source / "persons/link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    arguments = ["prepare", str(source), "--out", str(tmp_path / "out"), "--size", "256x192"]
    assert command(*arguments, "--keep-going") == 1
    printed = capsys.readouterr()
    assert "note: not read: folder.jpg, notes.txt, shirt.HEIC. Pictures must" in printed.err
    assert printed.out.count("failed: ") == 1
    assert "link.jpg cannot be read: No such file or directory" in printed.out


def test_a_category_that_is_none_is_said(tmp_path):
    source = photos(tmp_path, persons=1, upper_body=1)
    (source / "garments/dress").mkdir()
    assert plan(source).unread == [source / "garments/dress"]


def test_where_a_folder_cannot_go_is_said_before_anything_is_prepared(tmp_path, monkeypatch):
    source = photos(tmp_path / "in", persons=1, garments=1)
    monkeypatch.setattr(preparation, "read_picture", lambda *arguments: 1 / 0)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a link that leads nowhere"):
        prepare(plan(source, size=SIZE), NETWORKS, tmp_path / "link")
    stamp = tmp_path / ".out-partial" / preparation.DONE / "settings.json"
    stamp.parent.mkdir(parents=True)
    stamp.write_text("{")
    with pytest.raises(UserError, match="was begun with other settings"):
        prepare(plan(source, size=SIZE), NETWORKS, tmp_path / "out")


def test_names_that_would_break_a_line_are_escaped(tmp_path, capsys):
    source = photos(tmp_path / "in", persons=1, garments=1)
    (source / "persons/two\nlines.jpg").write_bytes(b"")
    (source / "persons/red\x1b[31m.txt").write_bytes(b"")
    arguments = ["prepare", str(source), "--out", str(tmp_path / "out"), "--size", "64x48"]
    assert command(*arguments, "--keep-going") == 1
    printed = capsys.readouterr()
    assert r"persons/two\nlines.jpg is empty" in printed.out
    assert printed.out.count("two") == 1 and printed.out.count("\n") == 3
    assert r"not read: red\x1b[31m.txt" in printed.err and "\x1b" not in printed.err


def test_names_of_every_kind(tmp_path):
    source = photos(tmp_path / "in", persons=1, garments=1)
    content = (source / "persons/somebody 0.jpg").read_bytes()
    for name in (
        "Žofie 你好.jpg",
        "--out.jpg",
        "two\nlines.jpg",
        "SOMEBODY 0.jpg",
        "x" * 240 + ".jpg",
    ):
        (source / "persons" / name).write_bytes(content)
    (source / "garments/0.png").rename(source / "garments/тест.png")
    outcome = prepare(plan(source, size=SIZE), NETWORKS, tmp_path / "out")
    assert outcome.pairs == 6 and outcome.done == 7
    assert {problem.severity for problem in check_folder(config("viton_hd", tmp_path / "out"))} == {
        "note"
    }


def test_a_caption_that_changes_is_taken_when_a_preparation_goes_on(tmp_path):
    source = photos(tmp_path / "in", persons=1, garments=1)
    Image.new("RGB", (300, 400), (190, 190, 190)).save(source / "persons/tom.png")
    captions = tmp_path / "captions.txt"
    told = ("striped shirt", "spotted shirt", None)
    for caption in told:
        captions.write_text(f"0.png {caption}")
        planned = plan(source, captions=captions if caption else None, size=SIZE)
        with pytest.raises(UserError, match="no person was found"):
            prepare(planned, NETWORKS, tmp_path / "out")
        marker = tmp_path / ".out-partial/done/garment-upper_body-0.json"
        if caption:
            assert json.loads(marker.read_text())["caption"] == caption
        else:
            assert json.loads(marker.read_text())["caption_by"] == "colour"


def test_bottoms_and_dresses_become_a_dresscode_folder(tmp_path):
    source = photos(tmp_path / "in", persons=1, lower_body=1, dresses=1)
    people.photo(2, layout="dresscode", category="dresses").save(source / "persons/somebody 0.jpg")
    outcome = prepare(plan(source, size=SIZE), NETWORKS, tmp_path / "out")
    assert outcome.pairs == 2
    for settings in ({}, {"category": "dresses"}):
        read = config("dresscode", tmp_path / "out", **settings)
        assert {problem.severity for problem in check_folder(read)} == {"note"}
        pairs = TryOnDataset(open_folder(read), "test", "unpaired")
        assert pairs[0].check().category in ("lower_body", "dresses")
    with pytest.raises(UserError, match=r"no paired test pairs.*Use eval.orders=\[unpaired\]"):
        TryOnDataset(open_folder(read), "test", "paired")


def test_pairs_and_captions_come_from_lists(tmp_path):
    source = photos(tmp_path / "in", persons=2, garments=2)
    for path in (source / "persons").iterdir():
        path.rename(path.with_name(path.name.replace(" ", "")))
    pairs, captions = tmp_path / "pairs.txt", tmp_path / "captions.txt"
    (source / "garments/0.png").rename(source / "garments/my top.png")
    pairs.write_text("somebody1.jpg\tmy top.png\nsomebody1 1 upper_body\n\n")
    captions.write_text("1.png long sleeve round neck shirt\n")
    planned = plan(source, pairs=pairs, captions=captions)
    assert planned.pairs == [
        ("somebody1", "my-top", "upper_body"),
        ("somebody1", "1", "upper_body"),
    ]
    assert len(planned.items) == 3  # nobody else is prepared
    assert planned.captions == {("1", "upper_body"): "long sleeve round neck shirt"}
    for text, message in (
        ("somebody1.jpg", "line 1 of .* has 1 words"),
        ("somebody1.jpg my top.png upper_body", "has 4 words, .* Put tabs between"),
        ("nobody.jpg 1.png", "persons/ has no nobody.jpg"),
        ("somebody1 7.png", "garments/ has no 7.png"),
        ("somebody1 1.png hats", "hats is no category"),
        ("", "lists no pair"),
    ):
        pairs.write_text(text)
        with pytest.raises(UserError, match=message):
            plan(source, pairs=pairs)


def test_everybody_and_everything_is_in_a_pair():
    persons, garments = list("abc"), {"upper_body": list("12"), "dresses": list("vwxyz")}
    pairs = planning.pair_in_turn(persons, garments)
    assert {pair[0] for pair in pairs} == set("abc") and {pair[1] for pair in pairs} == set(
        "12vwxyz"
    )


def test_ids_are_plain_and_never_shared():
    paths = [Path(name) for name in ("p/a b.jpg", "p/ä.png", "g/a-b.png", "g/ö.png")]
    ids = list(planning._ids(paths).values())
    assert ids == ["a-b", "photo", "a-b-2", "photo-2"]
    # Some disks take Anna and anna for one name, and none takes more than 255 bytes.
    paths = [Path(f"{name}.jpg") for name in ("Anna", "anna", "x" * 250)]
    assert list(planning._ids(paths).values()) == ["Anna", "anna-2", "x" * 100]


def test_folders_that_are_wrong_say_so(tmp_path):
    with pytest.raises(UserError, match="two folders, persons/ and garments/"):
        plan(tmp_path)
    (tmp_path / "persons").mkdir()
    with pytest.raises(UserError, match=r"holds no picture \(.jpg, .jpeg, .png, .webp\).$"):
        plan(tmp_path)
    (tmp_path / "persons/anna.heic").touch()
    with pytest.raises(UserError, match=r"holds no picture .* anna.heic is none"):
        plan(tmp_path)
    source = photos(tmp_path / "in", persons=1, lower_body=1)
    with pytest.raises(UserError, match="use --layout dresscode"):
        plan(source, layout="viton_hd")
    people.garment(0)[0].save(source / "garments/loose.png")
    with pytest.raises(UserError, match="1 pictures beside them, such as loose"):
        plan(source)


def test_keypoint_files_are_read_back(tmp_path):
    from vton.data.images import Origin
    from vton.data.pose import read_body_25, read_coco_18

    rng = np.random.default_rng(0)
    joints = np.column_stack([rng.uniform(0.1, 0.9, (18, 2)), np.ones(18)]).astype(np.float32)
    joints[[4, 16]] = 0
    confidence = rng.uniform(0.3, 1, 18)
    path, origin = tmp_path / "joints.json", Origin("viton_hd", "test", "a")
    path.write_text(json.dumps(openpose(joints, confidence)))
    np.testing.assert_allclose(read_body_25(path, origin), joints, atol=1e-6)
    path.write_text(json.dumps({"keypoints": dresscode_rows(joints, confidence)}))
    np.testing.assert_allclose(read_coco_18(path, origin), joints, atol=1e-5)
