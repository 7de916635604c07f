"""Which rows of a batch share a garment."""

import torch

from vton.models.distinct import distinct, distinct_garments


def test_groups_are_of_equal_keys_and_skip_negative_ones():
    first, group = distinct(torch.tensor([-1, 4, -1, 4, 0]), torch.tensor([7, 7, 7, 8, 7]))
    assert first == [1, 3, 4]
    assert group.tolist() == [-1, 0, -1, 1, 2]


def test_garments_are_the_same_where_picture_and_caption_are():
    garments = torch.rand(5, 3, 8, 6)
    garments[2] = garments[3] = garments[0]
    garments[4] = garments[1]
    names = ["0", "1", "0", "0", "1"]
    first, worn = distinct_garments(garments, names, ["a", "b", "a", "c", "b"])
    assert first == [0, 1, 3]
    assert worn.tolist() == [0, 1, 0, 2, 1]


def test_pictures_are_compared_only_where_the_names_are_the_same(monkeypatch):
    """On a GPU a comparison waits."""
    monkeypatch.setattr(torch, "equal", None)
    first, worn = distinct_garments(torch.zeros(3, 3, 8, 6), ["0", "1", "2"], ["", "", ""])
    assert first == worn.tolist() == [0, 1, 2]
