"""Pictures of the garment as a network's attention warps it."""

import pytest
import torch

from tests.batches import random_batch, tiny_module
from vton.models.attention import GarmentRead, GarmentReads
from vton.report.flow import flow_grid, garment_reads, warped_garments


@pytest.mark.parametrize(
    ("model", "overrides"),
    [("idm_vton", ()), ("leffa", ()), ("leffa", ("model.flow_loss.upsampled=false",))],
)
def test_each_grid_of_tokens_warps_the_garment(model, overrides):
    module, batch = tiny_module(model, *overrides).eval(), random_batch(2)
    reads = garment_reads(module, batch, batch.person)
    warped = warped_garments(module, batch, reads)
    assert list(warped) == [(4, 3), (8, 6)]
    assert all(pictures.shape == batch.garment.shape for pictures in warped.values())
    grid = flow_grid(module, batch, batch.person, reads)
    assert grid.shape[2] == 3 and grid.shape[1] > 4 * batch.garment.shape[-1]


def test_the_warped_garment_is_moved_as_attention_moves_it():
    module, batch = tiny_module("leffa", "model.flow_loss.align_corners=true"), random_batch(1)
    k = 200 * torch.eye(48)[None, None]
    reads = GarmentReads()
    reads.layers = [GarmentRead(k, k, None)]
    (warped,) = warped_garments(module, batch, reads).values()
    torch.testing.assert_close(warped, batch.garment, atol=1e-4, rtol=0)
    reads.layers = [GarmentRead(k.roll(6, 2), k, [0])]
    (moved,) = warped_garments(module, batch, reads).values()
    assert (moved - batch.garment).abs().mean() > 0.05
