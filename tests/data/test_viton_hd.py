"""VITON-HD: pair lists, both generations of names, optional folders, errors on missing files."""

import shutil

import numpy as np
import pytest

from tests.data import folders
from tests.data.folders import JOINTS, MISSING, config, figure, garment, save, write_viton_hd
from vton.data import labels
from vton.data.check import check_folder
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.pairs import Pair, exchanged, read_pair_list
from vton.data.sample import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_viton_hd(tmp_path_factory.mktemp("viton_hd"))


def dataset(root, split="test", order="unpaired", **settings):
    return TryOnDataset(open_folder(config("viton_hd", root, **settings)), split, order)


def bytes_to_image(tensor):
    return ((tensor + 1) * 127.5).round().numpy().transpose(1, 2, 0)


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg b.jpg\nc.jpg d.jpg\n",
        "a.jpg\tb.jpg\t0\r\nc.jpg\td.jpg\t2\r\n",
        "\n  a.png    b.jpg  x \n\n c.jpg d",
        "\ufeffa b\nc d",
    ],
)
def test_pair_list_separators(tmp_path, text):
    (tmp_path / "list.txt").write_text(text, encoding="utf-8", newline="")
    rows = read_pair_list(tmp_path / "list.txt", "viton_hd")
    assert [row[:2] for row in rows] == [("a", "b"), ("c", "d")]


def test_names_with_blanks_stand_between_tabs(tmp_path):
    path = tmp_path / "list.txt"

    def rows(text):
        path.write_text(text)
        return read_pair_list(path, "viton_hd")

    assert rows("my photo.jpg\tshirt.jpg\n") == [("my photo", "shirt")]
    assert rows("a b.jpg \t c d.PNG\t0\r\n\te.jpg f.jpg\n") == [("a b", "c d", "0"), ("e", "f")]
    assert rows("a b\tc d\n") == [("a b", "c d")]
    # Tabs and blanks in one line, and several tabs, separate as they always did.
    assert rows("a.jpg b.jpg\t0\n") == rows("a.jpg\tb.jpg 0\n") == [("a", "b", "0")]
    assert rows("a.jpg\t\tb.jpg\t\n") == [("a", "b")]
    with pytest.raises(
        DataError, match=r"line 1 of .* names hold blanks; separate columns by tabs"
    ):
        rows("my photo.jpg shirt.jpg\n")
    with pytest.raises(DataError, match=r"has 4 columns.*If names hold blanks, .* tabs"):
        rows("my photo.jpg my shirt.jpg\n")


def test_training_and_paired_garment_is_the_persons_own(root):
    """Trusting the second column of train_pairs.txt would train on mismatched pairs."""
    for split in ("train", "test"):
        pairs = dataset(root, split, "paired").pairs
        assert len(pairs) == 4 and all(pair.person == pair.garment for pair in pairs)
    unpaired = dataset(root).pairs
    assert unpaired[0] == Pair("01000_00", "01001_00", "upper_body")
    assert all(pair.person != pair.garment for pair in unpaired)


def test_sample_holds_what_the_files_hold(root):
    sample = dataset(root)[0]
    person, (cloth, silhouette) = figure(1000), garment(1001)
    assert sample.person_id == "01000_00" and sample.garment_id == "01001_00"
    assert sample.order == "unpaired" and sample.pair_id == "01000_00__01001_00"
    assert sample.index == 0 and sample.position == -1
    assert abs(bytes_to_image(sample.person) - person["photo"]).mean() < 4  # JPEG
    assert abs(bytes_to_image(sample.garment) - cloth).mean() < 4
    assert (sample.garment_mask[0].numpy() == silhouette).mean() > 0.995
    assert np.array_equal(sample.parse.numpy(), person["parse"])
    found = np.arange(18) != MISSING
    np.testing.assert_allclose(sample.keypoints[found, :2], JOINTS[found], atol=1e-6)
    assert sample.truth is None and sample.densepose is None


def test_garment_is_never_visible_outside_the_mask(root):
    sample = dataset(root, order="paired")[0]
    worn = sample.parse == labels.UPPER
    assert worn.any() and (sample.agnostic_mask[0][worn] == 1).all()
    assert not (sample.agnostic * sample.agnostic_mask).any()
    assert (sample.agnostic == sample.person * (1 - sample.agnostic_mask)).all()


def test_paired_truth_is_the_person_and_its_garment_region(root):
    sample = dataset(root, order="paired")[1]
    assert (sample.truth == sample.person).all()
    worn = figure(1001)["parse"] == labels.UPPER
    assert np.array_equal(sample.truth_garment_mask[0].numpy() > 0, worn)


def test_colours_are_in_rgb_order(tmp_path):
    write_viton_hd(tmp_path, train=1, test=1)
    person = np.full((96, 72, 3), (250, 10, 20), np.uint8)
    person[:2] = 255  # a picture of one colour is refused
    save(tmp_path / "test/image/01000_00.jpg", person)
    person = dataset(tmp_path, order="paired")[0].person
    assert person[0].mean() > 0.9 and person[1:].mean() < -0.8


def test_first_generation_of_folder_names(tmp_path, root):
    write_viton_hd(tmp_path, parse="image-parse", keypoints="openpose-json")
    old, new = dataset(tmp_path)[0], dataset(root)[0]
    assert (old.parse == new.parse).all() and (old.keypoints == new.keypoints).all()


def test_other_picture_size_and_keypoint_canvas(tmp_path):
    """Keypoints are pixels of 768x1024 whatever the picture's size.

    Every part comes to data.size.
    """
    write_viton_hd(tmp_path, train=1, test=1, size=(256, 192))
    sample = dataset(tmp_path, order="paired", size=(64, 48))[0]
    assert sample.person.shape == (3, 64, 48) and sample.parse.shape == (64, 48)
    for mask in (sample.agnostic_mask, sample.garment_mask):
        assert set(mask.unique().tolist()) == {0, 1}
    x, y = (sample.keypoints[7, :2] * 0.5 + sample.keypoints[6, :2] * 0.5).tolist()
    assert sample.parse[round(y * 64), round(x * 48)] == labels.LEFT_ARM
    # No pixel that holds any of the garment stays: the mask covers, it is not rounded.
    assert (sample.agnostic_mask[0][sample.parse == labels.UPPER] == 1).all()


def test_nobody_found_falls_back_to_the_parse_map(tmp_path):
    write_viton_hd(tmp_path, train=1, test=1)
    keypoints = tmp_path / "test/openpose_json/01000_00_keypoints.json"
    folders.write_json(keypoints, {"version": 1.3, "people": []})
    sample = dataset(tmp_path, order="paired")[0]
    assert not sample.keypoints.any() and (sample.pose_map == -1).all()
    assert (sample.agnostic_mask[0][sample.parse == labels.UPPER] == 1).all()


def test_folder_mask_is_used_where_there_is_one(tmp_path):
    write_viton_hd(tmp_path, train=1, test=1)
    mask = np.zeros((96, 72, 3), np.uint8)
    mask[30:60, 20:50] = 255
    save(tmp_path / "test/agnostic-mask/01000_00_mask.png", mask)
    auto = dataset(tmp_path, order="paired")
    assert auto.sources["mask"] == "folder:agnostic-mask"
    assert np.array_equal(auto[0].agnostic_mask[0].numpy() * 255, mask[..., 0])
    derived = dataset(tmp_path, order="paired", mask_source="derive", mask_rule="box")
    assert derived.sources["mask"] == "derive:box"
    assert not np.array_equal(derived[0].agnostic_mask[0].numpy() * 255, mask[..., 0])
    with pytest.raises(DataError, match=r"data\.mask_source=folder.*agnostic-mask/"):
        dataset(tmp_path, "train", "paired", mask_source="folder")


def test_warped_garments_from_folders(tmp_path):
    write_viton_hd(tmp_path, train=1, test=2)
    warp = np.full((96, 72, 3), 255, np.uint8)
    warp[25:55, 20:50] = (200, 30, 60)
    mask = (warp[..., 1] < 128) * np.uint8(255)
    for name in ("01000_00", "01001_00"):
        save(tmp_path / f"test/unpaired-cloth-warp/{name}.png", warp)
    sample = dataset(tmp_path)[0]  # without mask folder: what is not white
    assert dataset(tmp_path).sources["warp"] == "folder:unpaired-cloth-warp"
    expected = (mask > 0) & (sample.agnostic_mask[0].numpy() > 0)
    assert np.array_equal(sample.warped_mask[0].numpy() > 0, expected)
    assert (sample.warped_garment[:, ~expected] == 1).all()
    assert (bytes_to_image(sample.warped_garment)[expected] == (200, 30, 60)).all()
    half = mask.copy()
    half[:, :30] = 0
    for name in ("01000_00", "01001_00"):
        save(tmp_path / f"test/unpaired-cloth-warp-mask/{name}.png", half)
    sample = dataset(tmp_path)[0]
    assert np.array_equal(
        sample.warped_mask[0].numpy() > 0, (half > 0) & (sample.agnostic_mask[0].numpy() > 0)
    )
    assert dataset(tmp_path, order="paired").sources["warp"] == "geometric"


def test_warp_folder_of_any_name_and_key(tmp_path):
    write_viton_hd(tmp_path, train=1, test=2)
    for i, name in enumerate(("01000_00", "01001_00")):
        warp = np.full((96, 72, 3), 255, np.uint8)
        warp[25:55, 20:50] = 40 + 60 * i
        save(tmp_path / f"test/mine/{name}.png", warp)
    settings = {"warp_folder_unpaired": "mine", "warp_source": "folder"}
    by_person = dataset(tmp_path, **settings)[0]
    by_garment = dataset(tmp_path, **settings, warp_key="garment")[0]
    assert bytes_to_image(by_person.warped_garment).min() == 40
    assert bytes_to_image(by_garment.warped_garment).min() == 100
    with pytest.raises(DataError, match=r"data\.warp_source=folder.*cloth-warp/"):
        dataset(tmp_path, order="paired", warp_source="folder")


def test_garment_mask_is_derived_where_no_folder_has_it(tmp_path):
    write_viton_hd(tmp_path, train=1, test=1)
    (tmp_path / "test/cloth-mask/01000_00.jpg").unlink()
    # One missing file is an error; nothing is guessed.
    with pytest.raises(DataError, match="test 01000_00: garment mask is missing"):
        dataset(tmp_path, order="paired")[0]
    (tmp_path / "test/cloth-mask").rmdir()
    derived = dataset(tmp_path, order="paired")
    assert derived.sources["garment_mask"] == "derive:near_white"
    agree = derived[0].garment_mask[0].numpy() == garment(1000)[1]
    assert agree.mean() > 0.96  # JPEG rings at 96x72


def test_limits_spread_over_the_list(root):
    """A prefix of DressCode's list would be one category."""
    everything = dataset(root, "train", "paired").pairs
    assert dataset(root, "train", "paired", limit_train=2).pairs == everything[::2]
    assert dataset(root, limit_test=3).pairs == [dataset(root).pairs[i] for i in (0, 1, 2)]
    assert dataset(root, limit_test=99).pairs == dataset(root).pairs
    assert len(dataset(root, limit_train=1)) == 4
    with pytest.raises(DataError, match=r"data\.limit_train=99, but there are 4 pairs"):
        dataset(root, "train", "paired", limit_train=99)


def test_exchanged_garments_keep_person_truth_and_name(root):
    folder = open_folder(config("viton_hd", root))
    plain = TryOnDataset(folder, "test", "paired")[1]
    exchanged = TryOnDataset(folder, "test", "paired", shuffled=True)[1]
    assert exchanged.pair_id == plain.pair_id
    assert (exchanged.person == plain.person).all() and (exchanged.truth == plain.truth).all()
    assert (exchanged.garment == TryOnDataset(folder, "test", "paired")[2].garment).all()
    assert not (exchanged.warped_garment == plain.warped_garment).all()


def test_the_control_does_not_wear_what_was_warped_onto_others(tmp_path):
    root = write_viton_hd(tmp_path, train=1, test=3)
    for path in (root / "test/image").iterdir():
        save(root / f"test/cloth-warp/{path.stem}.jpg", np.full((96, 72, 3), 90, np.uint8))
    folder = open_folder(config("viton_hd", root))
    plain = TryOnDataset(folder, "test", "paired")
    control = TryOnDataset(folder, "test", "paired", shuffled=True)
    assert plain.sources["warp"] == "folder:cloth-warp"
    assert control.sources["warp"] == "geometric"
    assert not (control[0].warped_garment == plain[0].warped_garment).all()


def exchange(garments, categories="u"):
    names = {"u": "upper_body", "d": "dresses"}
    # the categories in turn, as far as there are garments
    listed = zip(garments, categories * len(garments), strict=False)
    pairs = [Pair(str(i), name, names[of]) for i, (name, of) in enumerate(listed)]
    others = exchanged(pairs)
    assert all(a.category == b.category for a, b in zip(pairs, others, strict=True))
    return "".join(pair.garment for pair in others)


def test_every_garment_is_exchanged_for_another():
    """Several lines of one garment in a row: the control must not keep it."""
    assert exchange("abcd") == "bcda" and exchange("abab") == "baba"
    assert exchange("aabb") == "bbaa" and exchange("abba") == "baab"
    assert exchange("aabca") == "bbcab" and exchange("aaab") == "bbba"
    assert exchange("axayby", categories="ud") == "bybxax"
    with pytest.raises(DataError, match=r"all pairs of upper_body have the garment a.*shuffled="):
        exchange("aaa")
    with pytest.raises(DataError, match="dresses has a single pair"):
        exchange("axb", categories="udu")


def test_an_unpaired_list_of_paired_pairs_is_refused_for_results(tmp_path, caplog):
    """Otherwise paired results would be called unpaired."""
    root = write_viton_hd(tmp_path, train=2, test=3)
    ids = ["01000_00", "01001_00", "01002_00"]
    (root / "test_pairs.txt").write_text("".join(f"{name}.jpg {name}.jpg\n" for name in ids))
    words = rf"3 of 3 unpaired pairs of {root}/test_pairs\.txt are in fact paired"
    for _ in range(2):
        with pytest.raises(
            DataError, match=rf"{words}.*data\.list_unpaired.*eval\.orders=\[paired"
        ):
            dataset(root).require_files()
    dataset(root, order="paired").require_files()
    assert len([line for line in caplog.messages if "in fact paired" in line]) == 1
    problems = check_folder(config("viton_hd", root))
    assert not [one for one in problems if one.severity == "required"]
    caplog.clear()
    some = root / "some.txt"
    some.write_text("01000_00 01000_00\n01001_00 01002_00\n01002_00 01000_00\n")
    for _ in range(2):
        dataset(root, list_unpaired="some.txt").require_files()
    (line,) = caplog.messages
    assert line == f"viton_hd test: 1 of 3 unpaired pairs of {some} are in fact paired"


def test_body_25_drops_mid_hip_and_feet(root):
    """A joint that is shifted by one would still look like a person."""
    assert folders.body_25()["people"][0]["pose_keypoints_2d"][24:27] == [384, 550, 0.9]
    joints = dataset(root)[0].keypoints
    np.testing.assert_allclose(joints[8, :2], JOINTS[8], atol=1e-6)
    np.testing.assert_allclose(joints[16, :2], JOINTS[16], atol=1e-6)


def unpaired(root, **settings) -> list[tuple[str, str]]:
    folder = open_folder(config("viton_hd", root, **settings))
    return [(pair.person, pair.garment) for pair in folder.pairs("test", "unpaired")]


@pytest.mark.parametrize(
    "name", ["test_pairs_unpaired.txt", "test_pairs_unpaired_1018.txt", "siftvton_test_pairs.txt"]
)
def test_pair_lists_of_other_methods(tmp_path, name):
    """CatVTON's, GP-VTON's of three columns, SIFT-VTON's."""
    root = write_viton_hd(tmp_path, train=2, test=2)
    official = (root / "test_pairs.txt").read_text()
    expected = unpaired(root)
    third = " upper" if "1018" in name else ""
    (root / name).write_text(official.replace("\n", f"{third}\n"))
    (root / "test_pairs.txt").unlink()
    assert unpaired(root) == expected
    folder = open_folder(config("viton_hd", root))
    assert [pair.person for pair in folder.pairs("test", "paired")] == [p for p, _ in expected]
    # Beside a list of pairs that say nothing of other garments, the one that does.
    same = "".join(f"{person}.jpg {person}.jpg\n" for person, _ in expected)
    (root / "test_pairs.txt").write_text(same)
    assert unpaired(root) == expected


def test_a_list_may_be_named(tmp_path):
    root = write_viton_hd(tmp_path, train=3, test=3)
    (root / "few.txt").write_text("01002_00.jpg 01000_00.jpg\n")
    assert unpaired(root, list_unpaired="few.txt") == [("01002_00", "01000_00")]
    assert len(unpaired(root)) == 3
    (root / "some.txt").write_text("00001_00.jpg 00001_00.jpg\n")
    folder = open_folder(config("viton_hd", root, list_train="some.txt"))
    assert [pair.person for pair in folder.pairs("train", "paired")] == ["00001_00"]
    with pytest.raises(DataError, match=r"pair list is missing .*absent\.txt"):
        unpaired(root, list_unpaired="absent.txt")


def test_gp_vtons_package(tmp_path):
    """29 labels, DensePose ids in grey, masks and lists under its own names."""
    root = write_viton_hd(tmp_path, train=2, test=2)
    to_29 = {int(ours): theirs for theirs, ours in reversed(list(enumerate(labels.FROM_BYTEDANCE)))}
    expected = {}
    for split, first in (("train", 0), ("test", 1000)):
        base = root / split
        for number in (first, first + 1):
            name = f"{number:05d}_00"
            drawn = figure(number)
            theirs = np.vectorize(to_29.get)(drawn["parse"]).astype(np.uint8)
            theirs[20:24][theirs[20:24] == 5] = 21  # a sleeve of its own
            save(base / f"parse-bytedance/{name}.png", theirs)
            save(base / f"densepose/{name}.png", drawn["parts"])
            expected[name] = drawn
        (base / "cloth-mask").rename(base / "cloth_mask-bytedance")
        shutil.rmtree(base / "image-parse-v3")
        shutil.rmtree(base / "image-densepose")
    settings = config("viton_hd", root, densepose=True)
    pairs = TryOnDataset(open_folder(settings), "test", "unpaired")
    record = pairs.record(0)
    assert np.array_equal(record.parse.numpy(), expected["01000_00"]["parse"])
    assert np.array_equal(record.densepose.numpy(), expected["01000_00"]["parts"])
    assert pairs.sources["garment_mask"] == "folder:cloth_mask-bytedance"
    assert not [one for one in check_folder(settings) if one.severity != "note"]
