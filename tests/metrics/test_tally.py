import pytest
import torch

from vton.metrics.tally import (
    Measurements,
    PictureFeatures,
    Tally,
    merge,
    merge_features,
    merge_tallies,
)


def part(*names: str, value: float = 0.5, order: str = "paired") -> Tally:
    tally = Tally(order)
    for position, name in enumerate(names):
        tally.category[name] = "dresses" if name.startswith("d") else "upper_body"
        tally.add("image", "ssim", [name], torch.tensor([value + position / 10]))
        tally.features.add("image", [name], torch.full((1, 3), value + position / 10))
    return tally


def test_merging_equals_measuring_in_one_process_in_any_order():
    whole = part("a", "b", "d1")
    split = [part("a"), Tally("paired")]
    split[1].category.update(b="upper_body", d1="dresses")
    split[1].add("image", "ssim", ["b", "d1"], torch.tensor([0.6, 0.7]))
    split[1].features.add("image", ["b", "d1"], torch.tensor([[0.6] * 3, [0.7] * 3]))
    for merged in (merge_tallies(split), merge_tallies(split[::-1])):
        assert merged.pair_ids("image") == whole.pair_ids("image") == ["a", "b", "d1"]
        assert merged.pair_ids("image", "dresses") == ["d1"]
        pairs = ["a", "b", "d1"]
        assert merged.mean("image", "ssim", pairs) == whole.mean("image", "ssim", pairs)
        torch.testing.assert_close(merged.features.stack("image"), whole.features.stack("image"))


def test_a_pair_in_two_parts_counts_once():
    merged = merge_tallies([part("a", "b"), part("a")])
    assert merged.pair_ids("image") == ["a", "b"]
    assert merged.features.stack("image").shape == (2, 3)
    assert merge_features([part("a").features, part("a").features]).stack("image").shape == (1, 3)


def test_parts_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"a: ssim is 0.5.* and 0.9"):
        merge_tallies([part("a"), part("a", value=0.9)])
    with pytest.raises(ValueError, match="one order"):
        merge_tallies([part("a"), part("b", order="unpaired")])
    with pytest.raises(ValueError, match="one order"):
        merge_tallies([])


def test_a_process_without_pairs_changes_nothing():
    """Three pairs on four processes: the last one has measured no method at all."""
    full = Measurements(part("a").features, {("paired", "m"): part("a", "b")})
    merged = merge([full, Measurements()])
    assert list(merged.tallies) == [("paired", "m")]
    assert merged.tallies["paired", "m"].pair_ids("image") == ["a", "b"]
    assert merged.reference.category == {"a": "upper_body"}


def test_features_are_sorted_by_id_and_chosen_by_category():
    features = PictureFeatures({"z": "dresses", "a": "dresses", "m": "upper_body"})
    features.add("image", ["z", "a", "m"], torch.tensor([[3.0], [1.0], [2.0]]))
    features.add("image", ["a"], torch.tensor([[9.0]]))  # again: the first stays
    assert features.stack("image").flatten().tolist() == [1, 2, 3]
    assert features.stack("image", "dresses").flatten().tolist() == [1, 3]
    assert len(features.stack("garment")) == 0
