"""Names that differ from the known ones by capitals alone are told apart and named."""

import shutil

import pytest

from tests.data import folders
from tests.data.folders import config
from vton.cli import main
from vton.data.check import check_folder
from vton.data.convert import layout_of
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.sample import DataError
from vton.data.source import case_differs


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    folders.write_viton_hd(root / "viton_hd", train=1, test=1)
    folders.write_dresscode(root / "dresscode", count=1)
    for path in (root / "dresscode").glob("*/*_pairs*.txt"):
        path.unlink()  # the root's lists do
    (root / "viton_hd/test/image_descriptions.txt").write_text("01000_00.jpg: a red top\n")
    return root


@pytest.mark.parametrize(
    ("dataset", "known", "renamed"),
    [
        ("viton_hd", "train", "Train"),
        ("viton_hd", "test", "Test"),
        ("viton_hd", "test/cloth", "test/Cloth"),
        ("viton_hd", "test/cloth-mask", "test/Cloth-mask"),  # optional, not to be derived
        ("viton_hd", "test_pairs.txt", "Test_Pairs.TXT"),
        ("viton_hd", "test/image_descriptions.txt", "test/Image_Descriptions.txt"),
        ("dresscode", "dresses", "Dresses"),
        ("dresscode", "dresses/keypoints", "dresses/Keypoints"),
        ("dresscode", "train_pairs.txt", "Train_pairs.txt"),
    ],
)
def test_the_check_says_what_is_there_and_what_is_expected(
    tmp_path, written, dataset, known, renamed
):
    root = shutil.copytree(written / dataset, tmp_path / "data")
    (root / known).rename(root / renamed)
    found = [problem for problem in check_folder(config(dataset, root)) if not problem.sample_id]
    messages = [problem.message for problem in found if problem.severity == "required"]
    expected = known.rpartition("/")[2]
    sentence = f"there is {root / renamed}, but its name is expected as {expected},"
    assert messages and all(sentence in message for message in messages)


def test_a_test_only_folder_may_not_hide_its_training_list(tmp_path, written):
    """Without it the folder would pass for one of a user's own photographs."""
    root = shutil.copytree(written / "viton_hd", tmp_path / "data")
    (root / "train").rename(root / "TRAIN")
    (root / "train_pairs.txt").unlink()
    with pytest.raises(DataError, match=r"there is .*TRAIN, but its name is expected as train,"):
        TryOnDataset(open_folder(config("viton_hd", root)), "test", "unpaired")


def test_a_file_and_the_root_itself(tmp_path, written, capsys):
    root = shutil.copytree(written / "viton_hd", tmp_path / "data")
    garment = root / "test/cloth/01000_00.jpg"
    garment.rename(garment.with_name("Shirt.jpg"))
    (root / "test_pairs.txt").write_text("01000_00.jpg shirt.jpg\n")
    pairs = TryOnDataset(open_folder(config("viton_hd", root)), "test", "unpaired")
    with pytest.raises(DataError, match=r"shirt\.jpg.*There is Shirt\.jpg, with other capitals"):
        pairs.require_files()
    with pytest.raises(SystemExit) as done:
        main(["data", "check", "data=viton_hd", f"data.root={tmp_path / 'Data'}"])
    assert done.value.code == 1
    assert f"there is {root}, but its name is expected as Data" in capsys.readouterr().out


def test_names_that_exist_and_other_names_are_left_alone(tmp_path):
    (tmp_path / "Test").mkdir()
    assert case_differs(tmp_path / "Test") == ""
    assert case_differs(tmp_path / "Test/image") == ""
    assert case_differs(tmp_path / "train") == ""
    assert "Test, but" in case_differs(tmp_path / "test/image")
    (tmp_path / "Upper_Body").mkdir()
    assert layout_of(tmp_path) == "dresscode"
