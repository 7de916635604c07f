"""The data check: every broken file of a folder is reported, and nothing else is."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.data import folders
from tests.data.folders import TO_DRESSCODE, body_25, config, figure, save, write_json
from vton.cli import main
from vton.data import check, check_files, labels
from vton.data.check import check_folder
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.problems import format_problems
from vton.data.sample import DataError
from vton.data.source import fingerprint

SKIRT = TO_DRESSCODE[labels.SKIRT]
LEGS = (labels.PANTS, labels.LEFT_LEG, labels.RIGHT_LEG)


def of(problems, severity="required"):
    return [problem for problem in problems if problem.severity == severity]


def notes(problems):
    return [f"{problem.split} {problem.message}" for problem in of(problems, "note")]


@pytest.fixture
def root(tmp_path):
    return folders.write_viton_hd(tmp_path / "data", train=3, test=3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_sound_folders_have_no_problem(tmp_path, root):
    dresscode = folders.write_dresscode(tmp_path / "d")
    for settings in (config("viton_hd", root), config("dresscode", dresscode)):
        problems = check_folder(settings)
        assert not of(problems) and not of(problems, "optional")
        assert format_problems(problems).endswith("All files can be read.")


def test_counts_stand_beside_the_official_ones(tmp_path, root):
    lines = notes(check_folder(config("viton_hd", root)))
    assert "train paired, upper_body: 3 pairs (official: 11,647)" in lines
    lines = notes(check_folder(config("dresscode", folders.write_dresscode(tmp_path / "d"))))
    for line in (
        "train paired, upper_body: 2 pairs (official: 13,563)",
        "train paired, lower_body: 2 pairs (official: 7,151)",
        "train paired, dresses: 2 pairs (official: 27,678)",
        "test unpaired, dresses: 2 pairs (official: 1,800)",
    ):
        assert line in lines


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:400])


def turned_photo(path):
    save(path, figure(2, (72, 96))["photo"])


def inverted(path):
    save(path, 255 - np.array(Image.open(path)))


def unknown_labels(path):
    save(path, figure(0)["parse"] + np.uint8(30))


def in_colours(path):
    Image.open(path).convert("RGB").save(path)


def turned_parse(path):
    save(path, figure(0, (72, 96))["parse"], labels.VITON_HD_PALETTE)


BREAKAGES = {
    "train/image/00000_00.jpg": emptied,
    "train/image/00001_00.jpg": cut,
    "train/image/00002_00.jpg": turned_photo,
    "train/cloth/00000_00.jpg": lambda path: path.unlink(),
    "train/cloth-mask/00001_00.jpg": inverted,
    "train/image-parse-v3/00000_00.png": unknown_labels,
    "train/image-parse-v3/00001_00.png": in_colours,
    "train/openpose_json/00000_00_keypoints.json": lambda path: path.write_text("{"),
    "test/image-parse-v3/01000_00.png": turned_parse,
    "test/cloth/01002_00.jpg": lambda path: path.write_text("not a picture"),
}


def test_every_breakage_is_found_once_with_its_path(root):
    for name, damage in BREAKAGES.items():
        damage(root / name)
    problems = of(check_folder(config("viton_hd", root)))
    paths = [problem.path for problem in problems]
    # A turned photograph no longer fits its parse map, which is where the two are compared.
    expected = set(BREAKAGES) - {"train/image/00002_00.jpg"} | {"train/image-parse-v3/00002_00.png"}
    assert set(paths) == {str(root / name) for name in expected}
    assert len(paths) == len(set(paths))
    for problem in problems:
        assert problem.dataset == "viton_hd"
        assert problem.sample_id in problem.path and problem.path in problem.message
    text = format_problems(problems)
    assert text.splitlines()[-1] == f"{len(expected)} required and 0 optional problems."
    assert all(path in text for path in paths)


def test_inverted_agnostic_mask(root):
    mask = np.zeros((96, 72), np.uint8)
    mask[20:60, 20:50] = 255
    for split, first in (("train", 0), ("test", 1000)):
        for number in (first, first + 1, first + 2):
            stored = 255 - mask if number == first + 1 else mask
            save(root / split / f"agnostic-mask/{number:05d}_00_mask.png", stored)
    problems = of(check_folder(config("viton_hd", root)))
    assert [problem.sample_id for problem in problems] == ["00001_00", "01001_00"]
    assert "agnostic mask sets 83% of the picture: inverted mask" in problems[0].message
    derived = check_folder(config("viton_hd", root, mask_source="derive"))
    assert not of(derived) and len(of(derived, "optional")) == 2


def test_densepose_counts_only_where_it_is_asked_for(root):
    (root / "test/image-densepose/01001_00.jpg").write_bytes(b"")
    assert not of(check_folder(config("viton_hd", root)))
    assert len(of(check_folder(config("viton_hd", root)), "optional")) == 1
    assert len(of(check_folder(config("viton_hd", root, densepose=True)))) == 1


def test_missing_lists_folders_and_roots_are_single_problems(tmp_path, root):
    (root / "train_pairs.txt").unlink()
    for path in (root / "test/openpose_json").iterdir():
        path.unlink()
    (root / "test/openpose_json").rmdir()
    problems = of(check_folder(config("viton_hd", root)))
    absent_list, absent_folder = problems
    assert "pair list is missing" in absent_list.message
    assert "no folder for the keypoints" in absent_folder.message
    nowhere = check_folder(config("viton_hd", tmp_path / "nowhere"))
    assert len(nowhere) == 1 and nowhere[0].severity == "required"


def test_known_oddities_are_notes(tmp_path, root):
    paired = "01000_00.jpg 01000_00.jpg\n"
    twice = "01001_00.jpg 01002_00.jpg\n" * 2
    (root / "test_pairs.txt").write_text(paired + twice)
    write_json(root / "test/openpose_json/01000_00_keypoints.json", {"version": 1.3, "people": []})
    problems = check_folder(config("viton_hd", root))
    assert not of(problems)
    lines = "\n".join(notes(problems))
    assert "1 unpaired lines are in fact paired: 01000_00" in lines
    assert "test keypoints show nobody" in lines
    assert "1 pairs are listed more than once: 01001_00" in lines
    assert "garments have no caption; they get 'shirts'" in lines
    assert "no folder with agnostic mask" in lines


def test_person_without_anything_to_paint(root):
    """Neither a garment label nor a joint: no rule can derive a mask.

    The first epoch would stop there.
    """
    nothing = np.zeros((96, 72), np.uint8)
    for name in ("00000_00", "00001_00"):
        save(root / f"train/image-parse-v3/{name}.png", nothing, labels.VITON_HD_PALETTE)
    write_json(root / "train/openpose_json/00001_00_keypoints.json", {"people": []})
    problems = check_folder(config("viton_hd", root))
    assert [problem.sample_id for problem in of(problems)] == ["00001_00"]
    # The other one is drawn from joints.
    assert "train parse map shows no garment of upper_body" in "\n".join(notes(problems))


def test_person_whom_the_mask_rule_leaves_as_they_are(tmp_path):
    """A long skirt under a rule that knows trousers and legs alone: data check says what training
    would meet on the way.
    """
    root = folders.write_dresscode(tmp_path / "d")
    path = root / "lower_body/label_maps/000004_4.png"
    parse = np.array(Image.open(path))
    lower = np.isin(parse, [TO_DRESSCODE[label] for label in LEGS])
    save(path, np.where(lower, np.uint8(SKIRT), parse), labels.DRESSCODE_PALETTE)
    shares = {"category": "lower_body", "mask_rule": "ladi"}
    settings = config("dresscode", root, **shares)
    (problem,) = of(check_folder(settings))
    assert problem.path == str(path) and problem.sample_id == "lower_body/000004"
    assert "leave data.mask_rule=ladi nothing to paint" in problem.message
    pairs = TryOnDataset(open_folder(settings), "train", "paired")
    with pytest.raises(DataError, match=r"lower_body/000004.*nothing to paint"):
        pairs[0]
    with pytest.raises(DataError, match="Training does not start"):
        check.require_clean(settings)
    check.require_clean(config("dresscode", root, category="lower_body"))  # another rule


def test_processes_find_what_one_process_finds(root, monkeypatch):
    for name, damage in BREAKAGES.items():
        damage(root / name)
    alone = check_folder(config("viton_hd", root))
    monkeypatch.setattr(check_files, "POOL_FROM", 1)
    assert check_folder(config("viton_hd", root), workers=2) == alone


def test_training_refuses_a_broken_folder_and_remembers_a_clean_one(root, monkeypatch, caplog):
    settings = config("viton_hd", root)
    nobody = root / "test/openpose_json/01000_00_keypoints.json"
    write_json(nobody, {"version": 1.3, "people": []})
    check.require_clean(settings)
    (said,) = caplog.messages
    assert said.startswith("viton_hd test 01000_00: keypoints show nobody")
    calls = []

    def counted(*args):
        calls.append(args)
        return check_folder(*args)

    monkeypatch.setattr(check, "check_folder", counted)
    check.require_clean(settings)
    assert not calls  # nothing changed: not read again
    path = root / "train/openpose_json/00001_00_keypoints.json"
    write_json(path, body_25() | {"note": "other size"})
    check.require_clean(settings)
    assert len(calls) == 1
    path.write_text("{")
    for _ in range(2):  # a broken folder is never remembered as clean
        with pytest.raises(DataError, match=r"^[^\n]*00001_00[^\n]*Training does not start[^\n]*$"):
            check.require_clean(settings)
    (root / "train/image/00001_00.jpg").write_bytes(b"")
    one_line = r"^[^\n]*This and 1 more required files[^\n]*Run `make data-check`[^\n]*$"
    with pytest.raises(DataError, match=one_line):
        check.require_clean(settings)
    check.require_clean(config("viton_hd", root, limit_train=1))  # the broken file is not read


def test_problems_are_grouped_by_kind_with_examples(tmp_path, capsys):
    """A partial download: a screenful, and the whole list in a file."""
    root = folders.write_dresscode(tmp_path / "d", count=2)
    listed = (root / "train_pairs.txt").read_text()
    for number in range(500):
        listed += f"{900000 + number}_0.jpg\t{900000 + number}_1.jpg\t{number % 3}\n"
    (root / "train_pairs.txt").write_text(listed)
    whole = tmp_path / "whole.txt"
    asked = ["data=dresscode", f"data.root={root}", "data.workers=0", "--out", str(whole)]
    with pytest.raises(SystemExit, match="1"):
        main(["data", "check", *asked])
    said = capsys.readouterr().out.splitlines()
    assert len(said) < 60
    (photos,) = [line for line in said if "image is missing" in line]
    assert "dresscode train: 500 x image is missing: upper_body/900000 (" in photos
    assert photos.count("900") >= 3 and photos.endswith("take its pairs out of the list.")
    assert any("6 of 506 listed pairs are complete" in line for line in said)
    assert f"The whole list is in {whole}." in said
    lines = whole.read_text().splitlines()
    assert sum("image is missing" in line for line in lines) == 500
    with pytest.raises(SystemExit, match="1"):
        main(["data", "check", *asked[:-1], str(tmp_path / "whole.json")])
    stored = json.loads((tmp_path / "whole.json").read_text())
    assert sum(one["kind"] == "image is missing" for one in stored) == 500


def test_a_part_whose_owner_is_absent_is_left_out_and_named(root):
    for name in ("01000_00__01001_00", "01001_00__01002_00", "01002_00__01000_00"):
        save(root / f"test/gt-unpaired-parse/{name}.png", figure(0)["parse"])
    problems = check_folder(config("viton_hd", root))
    assert not of(problems)
    (line,) = [line for line in notes(problems) if "left out" in line]
    assert "folder with parse map of the true unpaired picture, but none with true" in line
    folder = open_folder(config("viton_hd", root))
    assert TryOnDataset(folder, "test", "unpaired")[0].truth is None


def test_a_clean_mark_follows_links(root, tmp_path):
    """Folders and files that are links: a photograph cut behind them is noticed."""
    elsewhere = tmp_path / "disk"
    (root / "train/image").rename(elsewhere)
    (root / "train/image").symlink_to(elsewhere)
    photo = tmp_path / "photo.jpg"
    (root / "test/image/01000_00.jpg").rename(photo)
    (root / "test/image/01000_00.jpg").symlink_to(photo)
    (root / "train/again").symlink_to(root / "train")  # a circle
    settings = config("viton_hd", root)
    check.require_clean(settings)
    for path in (elsewhere / "00000_00.jpg", photo):
        whole = path.read_bytes()
        path.write_bytes(whole[:400])
        with pytest.raises(DataError, match="cannot be decoded"):
            check.require_clean(settings)
        path.write_bytes(whole)


def test_an_unreadable_subfolder_does_not_stop_the_check(root, monkeypatch):
    """lost+found of a disk whose top is data.root. The tests may run as root, who reads all."""
    (root / "lost+found").mkdir()
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    lines = list(fingerprint(root))
    monkeypatch.setattr(os, "scandir", guarded)
    assert sorted(fingerprint(root)) == sorted([*lines, f"{root}/lost+found unreadable\n"])
    check.require_clean(config("viton_hd", root))


def test_persons_without_their_own_garment_are_complete_for_unpaired_pairs(root):
    """As in a test set of photographs that never had a shop picture of what is worn."""
    (root / "test_pairs.txt").write_text("01000_00 01001_00\n01002_00 01001_00\n")
    for name in ("01000_00", "01002_00"):
        (root / f"test/cloth/{name}.jpg").unlink()
    problems = check_folder(config("viton_hd", root))
    lines = notes(problems)
    assert "test paired: 0 of 2 listed pairs are complete" in lines
    assert not any("unpaired: 0 of 2" in line for line in lines)
    for problem in of(problems):
        assert "garment is missing" in problem.message or "garment mask" in problem.message
        assert "eval.orders=[unpaired]" in problem.message
