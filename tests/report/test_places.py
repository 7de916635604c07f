"""Distance between the place attention reads and the true one."""

import numpy as np
import pytest
import torch

from tests.batches import random_batch, tiny_module
from vton.diffusion.denoiser import Denoiser
from vton.models.attention import GarmentRead
from vton.models.flow import FlowLayer
from vton.report.places import Watch, attended, centres, places_grid, true_places, watching

SIZE = (64, 48)
GRID = (8, 6)


def reading(shift):
    """A layer whose every token reads the place `shift` (rows, columns) before its own."""
    k = 200 * torch.eye(48)
    q = k.reshape(*GRID, -1).roll(shift, (0, 1)).flatten(0, 1)
    return FlowLayer(GarmentRead(q[None, None], k[None, None], None), GRID, GRID)


def own_places(count=1):
    """The truth of a garment that lies on the person as in its own picture."""
    y = (torch.arange(SIZE[0]) + 0.5) / SIZE[0]
    x = (torch.arange(SIZE[1]) + 0.5) / SIZE[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).expand(count, -1, -1, -1).clone()


def test_a_token_that_reads_its_own_place_is_right_and_others_are_as_far_as_they_read():
    truth, counts = true_places(own_places(), GRID, SIZE)
    assert counts.all()
    rows = torch.tensor([0])
    right = attended(reading((0, 0)), rows, SIZE)
    torch.testing.assert_close(right, truth, atol=1e-4, rtol=0)
    moved = attended(reading((1, 0)), rows, SIZE)
    distance = (moved - truth).norm(dim=-1)[:, 1:]
    torch.testing.assert_close(distance, torch.full_like(distance, 1 / 8), atol=1e-4, rtol=0)
    across = attended(reading((0, 1)), rows, SIZE)  # a token is as wide as it is high
    distance = (across - truth).norm(dim=-1)[..., 1:]
    torch.testing.assert_close(distance, torch.full_like(distance, 1 / 8), atol=1e-4, rtol=0)


def test_tokens_count_where_the_garment_covers_half_of_them():
    truth = own_places()
    truth[:, :12] = torch.nan  # one row of tokens, and a half of the next
    truth[:, 12, :] = torch.nan
    places, counts = true_places(truth, GRID, SIZE)
    assert not counts[0, :2].any() and counts[0, 2:].all()
    assert places.isfinite().all()


def test_both_references_are_measured():
    assert centres((2, 2), (4, 2), torch.device("cpu")).tolist() == [
        [0.125, 0.25],
        [0.375, 0.25],
        [0.125, 0.75],
        [0.375, 0.75],
    ]


@pytest.mark.parametrize(
    "model", ["gardiff", "idm_vton", "imagdressing", "leffa", "tryondiffusion"]
)
def test_every_architecture_that_reads_by_attention_is_measured_by_layer_and_step(model):
    module = tiny_module(model, "sampler.steps=2", "sampler.guidance=2.0").eval()
    batch, truth = random_batch(2), own_places(2)
    watch = Watch(module)
    pictures = watch.draw(batch, truth, seed=0)
    assert torch.equal(pictures, module.generate(batch, 0))  # watching changes nothing
    errors = watch.errors()
    assert len(errors.timesteps) == 2 and errors.timesteps[0] > errors.timesteps[1]
    assert errors.own_place < 1e-6 < errors.everywhere < 0.7
    assert all(len(layer.steps) == 2 and layer.tokens > 0 for layer in errors.layers)
    assert 0 < errors.best.mean <= errors.mean
    assert errors.as_json()["layers"][0]["mean"] == errors.layers[0].mean

    grid = places_grid(batch, pictures, truth, watch.read, errors.best.layer)
    assert grid.dtype == np.uint8 and grid.shape[2] == 3
    first, last = min(watch.read), max(watch.read)
    two = places_grid(batch, pictures, truth, watch.read, best=first)
    one = places_grid(batch, pictures, truth, watch.read, best=last)
    assert one.shape[1] < two.shape[1]  # the layer is both


def test_two_batches_are_one_measurement():
    module = tiny_module("leffa").eval()
    together, apart = Watch(module), Watch(module)
    together.draw(random_batch(2), own_places(2), 0)
    for first in (0, 1):
        apart.draw(random_batch(1, first=first), own_places(1), 0)
    assert apart.errors().pairs == together.errors().pairs == 2
    assert apart.errors().mean == pytest.approx(together.errors().mean, rel=1e-4)


def test_what_reads_no_places_has_no_errors():
    module = tiny_module("leffa").eval()
    watch = Watch(module)
    watch.draw(random_batch(1), torch.full((1, *SIZE, 2), torch.nan), 0)
    assert watch.errors() is None


class Silent(Denoiser):
    def denoise(self, z_t, t, conditions, features):
        return z_t


def test_watching_ends():
    denoiser, seen = Silent(), []
    with watching(denoiser, lambda *step: seen.append(step)):
        denoiser.denoise(torch.zeros(3, 1), torch.zeros(3), {}, {})
    denoiser.denoise(torch.zeros(2, 1), torch.zeros(2), {}, {})
    assert [(rows, reads) for _, rows, reads in seen] == [(3, [])]
