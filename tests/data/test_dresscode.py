"""DressCode: categories, root and category lists, and the same samples as VITON-HD's."""

import numpy as np
import pytest

from tests.data.folders import JOINTS, MISSING, config, figure, garment, save, write_dresscode
from vton.data import labels
from vton.data.check import check_folder
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.pairs import Pair
from vton.data.sample import CATEGORIES, DataError, TryOnBatch


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dresscode(tmp_path_factory.mktemp("dresscode"))


def dataset(root, split="test", order="unpaired", **settings):
    return TryOnDataset(open_folder(config("dresscode", root, **settings)), split, order)


def test_all_categories_from_the_root_list(root):
    pairs = dataset(root, "train", "paired").pairs
    assert [pair.category for pair in pairs] == [name for name in CATEGORIES for _ in range(2)]
    assert all(pair.person == pair.garment for pair in pairs)
    assert pairs[0] == Pair("000000", "000000", "upper_body", per_category=True)


def test_paired_and_unpaired_lists_have_their_own_order(root):
    paired, unpaired = (dataset(root, "test", order).pairs for order in ("paired", "unpaired"))
    assert {pair.person for pair in paired} == {pair.person for pair in unpaired}
    assert [pair.person for pair in paired] != [pair.person for pair in unpaired]
    assert all(pair.person != pair.garment for pair in unpaired)


@pytest.mark.parametrize("category", CATEGORIES)
def test_category_list_equals_the_filtered_root_list(root, tmp_path, category):
    for order in ("paired", "unpaired"):
        everything = dataset(root, "test", order).pairs
        here = dataset(root, "test", order, category=category).pairs
        assert here == [pair for pair in everything if pair.category == category] and len(here) == 2


def test_without_root_lists_the_category_lists_are_joined(tmp_path):
    write_dresscode(tmp_path)
    expected = dataset(tmp_path, order="unpaired").pairs
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert dataset(tmp_path, order="unpaired").pairs == expected


def test_without_category_list_the_root_list_is_filtered(tmp_path):
    write_dresscode(tmp_path)
    expected = dataset(tmp_path, category="lower_body").pairs
    (tmp_path / "lower_body/test_pairs_unpaired.txt").unlink()
    assert dataset(tmp_path, category="lower_body").pairs == expected


def test_sample_holds_what_the_files_hold(root):
    sample = dataset(root)[0]
    assert (sample.person_id, sample.garment_id) == ("upper_body/000003", "upper_body/000002")
    person, (_, silhouette) = figure(3), garment(2)
    pixels = ((sample.person + 1) * 127.5).numpy().transpose(1, 2, 0)
    assert abs(pixels - person["photo"]).mean() < 4  # JPEG
    assert np.array_equal(sample.garment_mask[0].numpy() > 0, silhouette)
    assert np.array_equal(sample.parse.numpy(), person["parse"])
    found = np.arange(18) != MISSING
    np.testing.assert_allclose(sample.keypoints[found, :2], JOINTS[found], atol=1e-6)
    assert not sample.keypoints[MISSING].any()


def test_garment_masks_are_derived_where_the_archive_has_none(tmp_path):
    write_dresscode(tmp_path, masks=False)
    pairs = dataset(tmp_path)
    assert pairs.sources["garment_mask"] == "derive:near_white"
    assert (pairs[0].garment_mask[0].numpy() == garment(2)[1]).mean() > 0.96  # JPEG rings at 96x72


@pytest.mark.parametrize("category", CATEGORIES)
def test_garment_of_the_category_is_covered(root, category):
    sample = dataset(root, "test", "paired", category=category)[0]
    worn = np.isin(sample.parse.numpy(), labels.GARMENT_LABELS[category])
    assert sample.category == category and worn.any()
    assert (sample.agnostic_mask[0].numpy()[worn] == 1).all()
    assert np.array_equal(sample.truth_garment_mask[0].numpy() > 0, worn)


def test_categories_share_a_batch(root):
    pairs = dataset(root, "test", "paired")
    batch = TryOnBatch.collate([pairs[i] for i in (0, 2, 4)])
    assert batch.category == list(CATEGORIES) and batch.truth.shape == (3, 3, 96, 72)


def test_truth_of_unpaired_pairs_where_it_is_known(tmp_path):
    """Rendered data brings the person in the other garment, and that picture's parse map."""
    write_dresscode(tmp_path)
    for pair in dataset(tmp_path).pairs:
        base, name = tmp_path / pair.category, f"{pair.person}__{pair.garment}.png"
        save(base / "gt-unpaired" / name, np.full((96, 72, 3), 51, np.uint8))
        parse = np.zeros((96, 72), np.uint8)
        parse[20:40, 20:40], parse[50:60, 20:40] = 4, 6  # DressCode's upper clothes and pants
        save(base / "gt-unpaired-parse" / name, parse, labels.DRESSCODE_PALETTE)
    sample = dataset(tmp_path, category="lower_body")[0]
    assert (sample.truth == 51 / 127.5 - 1).all()
    assert sample.truth_garment_mask[0].nonzero().min(0).values.tolist() == [50, 20]
    assert sample.truth_garment_mask.sum() == 200
    assert dataset(tmp_path, order="paired")[0].truth.std() > 0


def test_a_category_without_pairs_is_named(tmp_path):
    """Root lists without its rows and no list of its own: training would divide by zero."""
    write_dresscode(tmp_path)
    for name in ("train_pairs", "test_pairs_paired", "test_pairs_unpaired"):
        listed = (tmp_path / f"{name}.txt").read_text().splitlines(keepends=True)
        kept = [line for line in listed if not line.endswith("\t2\n")]
        (tmp_path / f"{name}.txt").write_text("".join(kept))
        (tmp_path / f"dresses/{name}.txt").unlink()
    words = r"train_pairs\.txt has no pairs of dresses; choose another data\.category"
    with pytest.raises(DataError, match=words):
        dataset(tmp_path, "train", "paired", category="dresses")
    problems = check_folder(config("dresscode", tmp_path, category="dresses"))
    assert len([one for one in problems if "has no pairs of dresses" in one.message]) == 3
    assert len(dataset(tmp_path, "train", "paired")) == 4
