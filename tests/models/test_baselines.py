from dataclasses import replace

import pytest
import torch

from tests.batches import random_batch
from vton.data.sample import TryOnBatch
from vton.models.baselines import BASELINES, fill_hole, warped_garment


@pytest.fixture
def batch() -> TryOnBatch:
    batch = random_batch(3)
    batch.garment_mask = torch.zeros_like(batch.garment_mask)
    batch.garment_mask[:, :, 10:50, 12:36] = 1
    batch.garment = torch.where(batch.garment_mask > 0, batch.garment, 1.0)
    return batch


@pytest.mark.parametrize("name", list(BASELINES))
def test_keeps_what_is_known_paints_the_rest_and_sees_no_truth(name, batch):
    before = batch.map_tensors(torch.clone)
    pictures = BASELINES[name](batch)
    assert pictures.shape == batch.person.shape
    assert torch.isfinite(pictures).all()
    assert pictures.abs().max() <= 1 + 1e-5
    kept = (1 - batch.agnostic_mask).expand_as(pictures) > 0
    assert torch.equal(pictures[kept], batch.agnostic[kept])
    blind = replace(
        batch, person=torch.zeros_like(batch.person), truth=None, truth_garment_mask=None
    )
    assert torch.equal(BASELINES[name](blind), pictures)
    assert torch.equal(BASELINES[name](batch[1:2]), pictures[1:2])  # rows do not see each other
    assert all(
        torch.equal(getattr(batch, field), getattr(before, field))
        for field in ("agnostic", "garment")
    )


def test_mean_colour_is_the_garments_not_the_backgrounds(batch):
    pictures = BASELINES["baseline/mean_colour"](batch)
    expected = batch.garment[0][:, 10:50, 12:36].mean((1, 2))
    inside = pictures[0][:, batch.agnostic_mask[0, 0] > 0]
    torch.testing.assert_close(inside, expected[:, None].expand_as(inside))


def test_pasted_garment_fills_the_box_of_the_mask(batch):
    mask = torch.zeros_like(batch.agnostic_mask)
    mask[:, :, 8:48, 6:30] = 1  # the size of the garment's own box: nothing is resampled
    batch = replace(batch, agnostic_mask=mask, agnostic=batch.person * (1 - mask))
    pictures = BASELINES["baseline/pasted_garment"](batch)
    torch.testing.assert_close(pictures[:, :, 8:48, 6:30], batch.garment[:, :, 10:50, 12:36])


def test_a_warp_shows_the_warped_garment_and_survives_its_absence(batch):
    pictures = warped_garment(batch)
    inside = batch.warped_mask.expand_as(pictures) > 0
    assert torch.equal(pictures[inside], batch.warped_garment[inside])
    without = replace(batch, warped_mask=torch.zeros_like(batch.warped_mask))
    assert torch.equal(warped_garment(without), fill_hole(batch.agnostic, batch.agnostic_mask))


def test_a_hole_is_filled_smoothly_between_its_borders():
    ramp = torch.linspace(-1, 1, 48).expand(1, 3, 64, 48).clone()
    hole = torch.zeros(1, 1, 64, 48)
    hole[:, :, 20:44, 16:32] = 1
    filled = fill_hole(ramp * (1 - hole), hole)
    assert (filled - ramp).abs().max() < 0.25
    constant = fill_hole(torch.full_like(ramp, 0.3) * (1 - hole), hole)
    torch.testing.assert_close(constant, torch.full_like(ramp, 0.3), atol=1e-5, rtol=0)


def test_a_picture_that_is_all_hole_stays_finite():
    assert torch.equal(
        fill_hole(torch.zeros(1, 3, 9, 7), torch.ones(1, 1, 9, 7)), torch.zeros(1, 3, 9, 7)
    )
