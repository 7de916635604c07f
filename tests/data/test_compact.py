"""What loader processes hand over, and the floats that are made of it."""

from dataclasses import fields, replace

import pytest
import torch

from tests.data.folders import one_record
from vton.data import augmentation
from vton.data.augmentation import ColourChange, Move
from vton.data.compact import EVERYTHING, CompactBatch, parts_of
from vton.data.sample import DataError, TryOnBatch
from vton.data.transforms import pad, to_compact, to_sample


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return one_record(tmp_path_factory.mktemp("data"))


def variants(record):
    """Records as training makes them: plain, recoloured, moved, with margins."""
    coloured = augmentation.change_colour(record, ColourChange(0.9, 1.1, 0.8, 0.03))
    moved = augmentation.move_person(record, Move(scale=0.9, right=0.05, down=0))
    return [record, coloured, augmentation.flip(moved)]


def equal(left: TryOnBatch, right: TryOnBatch) -> None:
    for column in fields(TryOnBatch):
        ours, theirs = getattr(left, column.name), getattr(right, column.name)
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), column.name
        else:
            assert ours == theirs, column.name


@pytest.mark.parametrize("size", [None, (96, 96)])
@pytest.mark.parametrize("order", ["paired", "unpaired"])
def test_a_batch_of_bytes_becomes_the_batch_of_float_samples(record, order, size):
    """Recoloured samples beside plain ones, to the last bit."""
    truth = None if order == "paired" else record.garment
    worn = None if order == "paired" else record.garment_mask
    record = replace(record, order=order, truth=truth, truth_garment_mask=worn)
    records = variants(record)
    if size is not None:
        records = [pad(record, size) for record in records]
    compact = [to_compact(record, place) for place, record in enumerate(records)]
    floats = [to_sample(record, place) for place, record in enumerate(records)]
    equal(CompactBatch.collate(compact).to("cpu"), TryOnBatch.collate(floats))


def test_it_is_small_and_holds_what_is_wanted_alone(record):
    wanted = frozenset({"person", "agnostic", "agnostic_mask", "garment"})
    sample = to_compact(record, wanted=wanted)
    assert sample.tensors.keys() == {"person", "agnostic_mask", "garment", "garment_mask"}
    pixels = record.size[0] * record.size[1]
    assert CompactBatch.collate([sample, sample]).nbytes == 2 * pixels * (3 + 1 + 3 + 1)
    batch = CompactBatch.collate([sample, sample]).to("cpu")
    whole = TryOnBatch.collate([to_sample(record)] * 2)
    for name in EVERYTHING:
        if name in wanted:
            assert torch.equal(getattr(batch, name), getattr(whole, name)), name
        else:
            assert getattr(batch, name) is None, name


def test_parts_of_the_truth_are_those_of_both_orders():
    assert parts_of(frozenset({"truth"})) == {"truth", "person"}
    assert "agnostic" not in parts_of(EVERYTHING)


def test_a_part_that_some_samples_lack_is_named(record):
    compact = [to_compact(record), to_compact(replace(record, densepose=None))]
    with pytest.raises(DataError, match="densepose is absent"):
        CompactBatch.collate(compact)


def test_nothing_to_paint_is_refused(record):
    empty = replace(record, agnostic_mask=torch.zeros_like(record.agnostic_mask))
    with pytest.raises(DataError, match="nothing to paint"):
        to_compact(empty)
