"""Pictures of attention: the layers' own weights, for every architecture, at the right place."""

import pytest
import torch
from torch.nn import functional as F

from tests.batches import random_batch, randomised, tiny_module
from tests.sweeps import SHIPPED
from vton import registry
from vton.models.attention import read_garment, record_attention, token_grid
from vton.report.attention import (
    ACROSS,
    attention_grid,
    attention_maps,
    chosen_pixels,
    garment_attention,
)


def test_weights_are_the_softmaxs_over_all_keys_and_only_garments_are_kept():
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 9, 8), torch.eye(9).expand(2, 4, 9, 9)
    mask = torch.zeros(1, 1, 1, 9).index_fill(3, torch.tensor([7]), -torch.inf)
    silent = read_garment(q, k, v, tokens=6, attn_mask=mask)
    with record_attention() as maps:
        out = read_garment(q, k, v, tokens=6, attn_mask=mask)
        # Another layer of the same size: a mean, not a sum.
        read_garment(q, k, v, tokens=6, attn_mask=mask)
    assert torch.equal(out, silent)
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    (weights,) = maps.means().values()
    # With the identity as values the output is the weights.
    torch.testing.assert_close(weights, out.mean(1)[..., -6:])
    assert (weights[..., -2] == 0).all()


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (768, (128, 96), (32, 24)),
        (4, (128, 96), (2, 2)),
        (3072, (1024, 768), (64, 48)),
        (12, (128, 72), (4, 3)),
        (24, (192, 104), (6, 4)),
        (192, (48, 36), (16, 12)),  # latents of a codec by 3
        (77, (128, 96), None),
        (1, (4, 3), None),
    ],
)
def test_grids_of_tokens(tokens, size, grid):
    assert token_grid(tokens, size) == grid


@pytest.mark.parametrize("model", registry.names())
def test_every_architecture_that_reads_places_shows_where_it_looks(model):
    module, batch = randomised(tiny_module(model)).eval(), random_batch(2)
    pictures = module.generate(batch)
    maps = attention_maps(module, batch, pictures)
    weights = garment_attention(module, maps)
    if weights is None:
        # LaDI-VTON's words stand for the garment as a whole; an architecture that somebody adds may
        # have no attention at all.
        assert model == "ladi_vton" or model not in SHIPPED
        assert attention_grid(module, batch, pictures, maps) is None
        pytest.skip("reads no garment tokens that have places")
    torch.testing.assert_close(weights.sum((3, 4)), torch.ones(weights.shape[:3]))
    shown = attention_grid(module, batch, pictures, maps)
    other = random_batch(2, first=7)
    batch.garment = other.garment
    others = garment_attention(module, attention_maps(module, batch, pictures))
    assert (others - weights).abs().max() > 1e-4
    assert shown.ndim == 3 and shown.std() > 1


@pytest.mark.parametrize(
    "settings", [("tryondiffusion", "model.base.correspondence=concatenation"), ("ladi_vton",)]
)
def test_without_attention_to_places_of_the_garment_there_is_nothing_to_show(settings):
    module = tiny_module(*settings).eval()
    batch = random_batch(2)
    pictures = module.generate(batch)
    maps = attention_maps(module, batch, pictures)
    assert attention_grid(module, batch, pictures, maps) is None


def test_chosen_pixels_lie_inside_from_left_to_right():
    region = torch.zeros(20, 30, dtype=torch.bool)
    region[5:15, 8:25] = True
    pixels = chosen_pixels(region)
    assert len(pixels) == len(ACROSS) and pixels == sorted(pixels)
    assert all(region[y, x] for x, y in pixels)
    assert chosen_pixels(torch.zeros(20, 30, dtype=torch.bool)) == [(15, 10)] * len(ACROSS)
