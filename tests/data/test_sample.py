"""The contract between data and models: samples that break it, and what a batch does."""

from dataclasses import replace

import pytest
import torch

from tests.data.folders import config, write_viton_hd
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.sample import DataError, TryOnBatch


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = write_viton_hd(tmp_path_factory.mktemp("data"), train=1, test=3)
    return TryOnDataset(open_folder(config("viton_hd", root)), "test", "paired")


@pytest.fixture(scope="module")
def batch(pairs):
    return TryOnBatch.collate([pairs[i] for i in range(3)])


@pytest.mark.parametrize(
    ("field", "change", "says"),
    [
        ("person", lambda x: x * 1.2, r"leaves \[-1, 1\]"),
        ("garment", lambda x: x[:, 1:], "has shape"),
        ("pose_map", lambda x: x * float("nan"), "not a finite float image"),
        ("garment_mask", lambda x: x * 0.5, "not 0 or 1"),
        ("agnostic_mask", lambda x: x * 0, "nothing to paint"),
        ("agnostic", torch.ones_like, "inverted mask"),
        ("warped_mask", torch.ones_like, "leaves agnostic_mask"),
        ("keypoints", lambda x: x[:17], "has shape"),
        ("lowres", lambda x: torch.zeros(1, 48, 36), "expected .3, h, w."),
        ("parse", lambda x: x.int(), "int64"),
        ("category", lambda x: "hats", "expected one of"),
        ("truth", lambda x: None, "absent in paired order"),
    ],
)
def test_check_names_the_sample_and_the_broken_field(pairs, field, change, says):
    sample = pairs[0]
    with pytest.raises(DataError, match=f"viton_hd paired 01000_00__01000_00: {field} .*{says}"):
        replace(sample, **{field: change(getattr(sample, field))}).check()


def test_batches_keep_every_field_and_give_rows_back(pairs, batch):
    assert len(batch) == 3
    assert batch.person.shape == (3, 3, 96, 72) and batch.keypoints.shape == (3, 18, 3)
    assert batch.position == [-1] * 3 and batch.pair_id[2] == "01002_00__01002_00"
    rows = batch[[2, 0]]
    assert rows.person_id == ["01002_00", "01000_00"] and rows.position == [-1, -1]
    assert torch.equal(rows.person[1], pairs[0].person)
    placed = [replace(pairs[0], position=41), replace(pairs[1], position=7)]
    assert TryOnBatch.collate(placed).position == [41, 7]


def test_optional_parts_are_present_for_all_or_for_none(pairs):
    assert TryOnBatch.collate([pairs[0]]).densepose is None
    with pytest.raises(DataError, match="densepose is absent for 01001_00__01001_00 but present"):
        TryOnBatch.collate([replace(pairs[0], densepose=pairs[0].person), pairs[1]])
