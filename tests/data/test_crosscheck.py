"""Cross-checks between the files of a sample: no alarm on right files, one on wrong ones."""

import numpy as np
import pytest

from tests.data.folders import JOINTS as PLACES
from tests.data.folders import (
    body_25,
    config,
    figure,
    save,
    with_names_in_several_categories,
    write_dresscode,
    write_json,
    write_viton_hd,
)
from vton.data import crosscheck, labels, synthetic
from vton.data.check import check_folder
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.sample import DataError


@pytest.fixture(scope="module", params=["viton_hd", "dresscode"])
def rendered(request, tmp_path_factory):
    """The renderer's folder of a layout, with every optional part."""
    root = tmp_path_factory.mktemp("rendered") / request.param
    synthetic.ensure(root, layout=request.param, size=(96, 72), train=3, test=3, seed=5, workers=1)
    return config(request.param, root, densepose=True, warp_source="folder")


def pairs_of(settings):
    folder = open_folder(settings)
    for split, order in (("train", "paired"), ("test", "unpaired")):
        for pair in folder.pairs(split, order):
            yield folder.files(split, order, pair)


def test_rendered_folders_raise_no_alarm(rendered):
    problems = check_folder(rendered)
    assert not [str(problem) for problem in problems if problem.severity != "note"]
    assert not [str(problem) for problem in problems if "may be another" in problem.message]
    assert not [str(problem) for problem in problems if "does not fit" in problem.message]


def test_margins_on_rendered_people(rendered):
    """Right files reach 1.00; half the scale and other labels stay below the bounds on average."""
    right, halved, relabelled = [], [], []
    other = np.zeros(labels.COUNT, np.uint8)
    other[labels.FROM_DRESSCODE] = np.arange(len(labels.FROM_DRESSCODE))  # ATR's numbers
    for files in pairs_of(rendered):
        parse, joints = files.labels("parse", None), files.joints()
        right.append(crosscheck.joint_shares(joints, parse))
        halved.append(crosscheck.joint_shares(joints * (0.5, 0.5, 1), parse))
        relabelled.append(crosscheck.joint_shares(joints, other[parse]))
    assert np.min(right) == 1.0
    assert crosscheck.on_average(right) == ""
    assert "another picture size" in crosscheck.on_average(halved)
    assert "another parser" in crosscheck.on_average(relabelled)


def test_training_and_check_refuse_the_same(tmp_path):
    root = write_viton_hd(tmp_path, train=2, test=2)
    write_json(root / "train/openpose_json/00001_00_keypoints.json", body_25(PLACES / 2))
    settings = config("viton_hd", root)
    (problem,) = [one for one in check_folder(settings) if one.severity == "required"]
    assert problem.sample_id == "00001_00" and "lie on the person" in problem.message
    pairs = TryOnDataset(open_folder(settings), "train", "paired")
    pairs[0].check()
    with pytest.raises(DataError, match=r"00001_00: keypoints do not fit: only .* on the person"):
        pairs[1]


def test_a_split_is_judged_by_its_average(tmp_path):
    """Each sample by itself is within bounds, as odd photographs are."""
    root = write_viton_hd(tmp_path, train=5, test=2)
    places = PLACES.copy()
    places[[4, 7]] = 0.95  # both hands somewhere beside the person
    for number in range(5):
        write_json(root / f"train/openpose_json/{number:05d}_00_keypoints.json", body_25(places))
    problems = [one for one in check_folder(config("viton_hd", root)) if one.severity != "note"]
    assert [problem.sample_id for problem in problems] == [""]
    assert "of all joints lie on the persons" in problems[0].message


def test_a_mask_of_somewhere_else(tmp_path):
    root = write_viton_hd(tmp_path, train=2, test=2)
    beside, within = np.zeros((2, 96, 72), np.uint8)
    beside[:40, :12] = 255
    within[20:56, 18:54] = 255
    for split, first in (("train", 0), ("test", 1000)):
        for number in (first, first + 1):
            mask = beside if number == 1 else within
            save(root / split / f"agnostic-mask/{number:05d}_00_mask.png", mask)
    settings = config("viton_hd", root)
    (problem,) = [one for one in check_folder(settings) if one.severity == "required"]
    assert problem.sample_id == "00001_00"
    assert "agnostic mask does not fit: it covers only 0% of the garment" in problem.message
    with pytest.raises(DataError, match="covers only 0% of the garment"):
        TryOnDataset(open_folder(settings), "train", "paired")[1]


def test_inverted_masks_of_trousers(tmp_path):
    """They set less of the picture than is refused whatever it shows."""
    root = write_dresscode(tmp_path, count=2)
    for category, first in (("upper_body", 0), ("lower_body", 4), ("dresses", 8)):
        for number in range(first, first + 4):
            garment = labels.GARMENT_LABELS[category]
            mask = np.isin(figure(number)["parse"], garment)
            if category == "lower_body":
                mask[48:, 18:54] = True
            save(root / category / f"agnostic_masks/{number:06d}_0.png", mask * np.uint8(255))
    folder = root / "lower_body/agnostic_masks"
    mask = np.zeros((96, 72), bool)
    mask[48:, 18:54] = True
    save(folder / "000004_0.png", ~mask * np.uint8(255))
    save(folder / "000005_0.png", np.roll(mask, -48, axis=0) * np.uint8(255))  # of a skirt
    problems = [one for one in check_folder(config("dresscode", root)) if "mask does" in str(one)]
    severities = {one.sample_id: one.severity for one in problems}
    assert severities == {"lower_body/000004": "required", "lower_body/000005": "note"}
    assert "but 75% of the picture: inverted mask" in problems[0].message
    pairs = TryOnDataset(open_folder(config("dresscode", root)), "train", "paired")
    with pytest.raises(DataError, match=r"lower_body/000004: agnostic mask .* inverted mask"):
        pairs[2]
    pairs[3]


def test_what_is_odd_is_a_note(tmp_path):
    """A warp in other colours than its garment's, a mask of another outline."""
    root = write_viton_hd(tmp_path, train=2, test=2)
    for number, colour in ((0, (255, 0, 255)), (1, None)):
        name = f"{number:05d}_00.jpg"
        picture = figure(number)["photo"].copy()
        worn = figure(number)["parse"] == labels.UPPER
        picture[~worn] = 255
        if colour:
            picture[worn] = colour
        save(root / f"train/cloth-warp/{name}", picture)
        save(root / f"train/cloth-warp-mask/{name}", worn * np.uint8(255))
    corner = np.zeros((96, 72), np.uint8)
    corner[2:30, 2:30] = 255
    save(root / "test/cloth-mask/01001_00.jpg", corner)
    problems = check_folder(config("viton_hd", root))
    assert not [str(problem) for problem in problems if problem.severity == "required"]
    odd = {one.sample_id: one.message for one in problems if "may be another" in one.message}
    assert set(odd) == {"00000_00", "01001_00"}
    assert "warped garment may be another's: its mean colour" in odd["00000_00"]
    assert "garment mask may be another's" in odd["01001_00"]


def test_the_same_names_in_several_categories_stay_apart(tmp_path):
    """DressCode's ids are unique; folders of one's own may begin anew in each category."""
    root = with_names_in_several_categories(write_dresscode(tmp_path, count=2), count=2)
    pairs = TryOnDataset(open_folder(config("dresscode", root)), "test", "unpaired")
    assert len(set(pairs.pair_ids)) == len(pairs) == 6
    sample = pairs[2]
    assert sample.person_id.startswith("lower_body/") and sample.pair_id == pairs.pair_ids[2]
    assert not [one for one in check_folder(config("dresscode", root)) if one.severity != "note"]


def test_ids_that_would_meet_are_refused(tmp_path):
    root = write_viton_hd(tmp_path, train=1, test=2)
    (root / "test_pairs.txt").write_text("a__b c\na b__c\n")
    with pytest.raises(DataError, match="would both be called a__b__c"):
        TryOnDataset(open_folder(config("viton_hd", root)), "test", "unpaired")


def test_one_warp_for_two_pairs_is_refused(tmp_path):
    root = write_viton_hd(tmp_path, train=1, test=3)
    for number in range(1000, 1003):
        save(root / f"test/unpaired-cloth-warp/{number:05d}_00.jpg", figure(number)["photo"])
        save(root / f"test/warp_cloth_u/{number:05d}_00.jpg", figure(number)["photo"])
    settings = {"warp_source": "folder", "warp_folder_unpaired": ""}
    twice = "01000_00 01001_00\n01000_00 01002_00\n"
    (root / "test_pairs.txt").write_text(twice)
    folder = open_folder(config("viton_hd", root, **settings))
    with pytest.raises(DataError, match="01000_00 is listed with two garments"):
        TryOnDataset(folder, "test", "unpaired")
    by_garment = {"warp_folder_unpaired": "warp_cloth_u", "warp_key": "garment"}
    folder = open_folder(config("viton_hd", root, **(settings | by_garment)))
    TryOnDataset(folder, "test", "unpaired")
    (root / "test_pairs.txt").write_text("01000_00 01001_00\n01002_00 01001_00\n")
    folder = open_folder(config("viton_hd", root, **(settings | by_garment)))
    with pytest.raises(DataError, match="01001_00 is listed with two persons"):
        TryOnDataset(folder, "test", "unpaired")
