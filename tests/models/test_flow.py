"""The flow loss as a setting of every architecture; its numbers are in leffa/test_reference.py."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from tests.batches import random_batch, randomised, smooth, tiny_module
from tests.sweeps import SHIPPED
from vton import registry
from vton.config import ConfigError, FlowLossConfig, flatten, load
from vton.cost.counting import step_flops
from vton.models.attention import GarmentRead, read_garment, record_attention, record_reads
from vton.models.flow import (
    FlowLayer,
    corner_places,
    expected_places,
    flow_field,
    flow_losses,
    over_layers,
    warp_by_flow,
)

ON = (
    "model.flow_loss.weight=1.0",
    "model.flow_loss.until=1.0",
    "model.flow_loss.from_step=0",
    "model.condition_dropout=0.0",
)
ADDED = [name for name in registry.names() if name not in SHIPPED]
ATTENDING = ["catvton", "idm_vton", "imagdressing", "leffa", "stableviton", "tryondiffusion"]
SETTINGS = FlowLossConfig()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- attention to flow ----


@pytest.mark.parametrize("width", [1, 2, 8])
def test_expected_places_are_those_of_the_softmax(width):
    q, k, places = normal(2, 3, 20, width), normal(2, 3, 12, width, seed=1), corner_places((4, 3))
    attention = (q @ k.mT / (2.0 * width**0.5)).softmax(-1)
    found = expected_places(q, k, places, temperature=2.0)
    torch.testing.assert_close(found, attention @ places)


def test_places_run_from_corner_to_corner():
    places = corner_places((3, 2))
    assert places.tolist() == [[-1, -1], [1, -1], [-1, 0], [1, 0], [-1, 1], [1, 1]]
    assert corner_places((2, 1))[:, 0].tolist() == [-1, -1]


def sharp_layer(grid, shift=(0, 0)):
    """A layer whose every token reads its own place, moved by (rows, columns)."""
    height, width = grid
    k = 200 * torch.eye(height * width)
    q = k.reshape(height, width, -1).roll(shift, (0, 1)).flatten(0, 1)
    return FlowLayer(GarmentRead(q[None, None], k[None, None], None), grid, grid)


def test_reading_the_own_place_returns_the_picture_with_corners_aligned():
    picture = smooth(torch.Generator().manual_seed(0), size=(32, 24))[None]
    field = flow_field(sharp_layer((8, 6)), temperature=2.0)[:, 0]
    aligned = warp_by_flow(picture, field, replace(SETTINGS, align_corners=True))
    torch.testing.assert_close(aligned, picture, atol=1e-4, rtol=0)
    published = warp_by_flow(picture, field, SETTINGS)
    assert (published - picture).abs().max() > 0.1  # moved by half a token at the rim


def test_a_moved_read_moves_the_garment():
    picture = torch.zeros(1, 3, 32, 24)
    picture[..., 12:16, 8:12] = 1  # one token of 8 x 6
    field = flow_field(sharp_layer((8, 6), shift=(2, 1)), temperature=2.0)[:, 0]
    settings = replace(SETTINGS, upsampled=False, align_corners=True)
    warped = warp_by_flow(picture, field, settings)
    assert (
        warped[0, 0].argmax() == F.interpolate(picture, (8, 6)).roll((2, 1), (2, 3))[0, 0].argmax()
    )


# ---- the loss ----


def losses(layer, settings=SETTINGS, mask=None, acts=(True,), person=None):
    garment = smooth(torch.Generator().manual_seed(0), size=(32, 24))[None]
    person = garment if person is None else person
    mask = torch.ones(1, 1, 32, 24) if mask is None else mask
    return flow_losses([layer], torch.tensor(acts), garment, person, mask, settings)


def test_the_right_place_costs_nothing_and_another_does():
    settings = replace(SETTINGS, align_corners=True)
    assert losses(sharp_layer((8, 6)), settings).item() < 1e-6
    assert losses(sharp_layer((8, 6), shift=(1, 1)), settings).item() > 1e-3


def test_outside_the_mask_nothing_counts_and_the_mean_is_over_the_whole_picture():
    layer, half = sharp_layer((8, 6), shift=(1, 1)), torch.ones(1, 1, 32, 24)
    half[..., :16, :] = 0
    upper, lower = losses(layer, mask=1 - half), losses(layer, mask=half)
    torch.testing.assert_close(upper + lower, losses(layer))
    assert losses(layer, mask=0 * half).item() == 0


def test_samples_beyond_the_bound_and_rows_that_read_nothing_take_no_part():
    layer = sharp_layer((8, 6), shift=(1, 1))
    assert losses(layer, acts=(False,)).item() == 0
    one_of_three = layer._replace(read=layer.read._replace(rows=[1]))
    pictures = normal(3, 3, 32, 24)
    mask, acts = torch.ones(3, 1, 32, 24), torch.tensor([True, True, False])
    found = flow_losses([one_of_three], acts, pictures, pictures, mask, SETTINGS)
    assert found[0, 0] == 0 and found[0, 1] > 0 and found[0, 2] == 0
    nobody = torch.tensor([True, False, True])
    assert not flow_losses([one_of_three], nobody, pictures, pictures, mask, SETTINGS).any()


def test_layers_are_summed_or_averaged():
    each = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    assert over_layers(each, SETTINGS).item() == 8
    assert over_layers(each, replace(SETTINGS, over_layers="mean")).item() == 4


# ---- as a setting of architectures ----


def require_places(model: str) -> None:
    """Skip the test for an added architecture that has no attention to places of the garment."""
    if model in ADDED:
        try:
            tiny_module(model, *ON).training_step(random_batch(1), 0)
        except ConfigError:
            pytest.skip("reads no garment tokens that have places")


@pytest.mark.parametrize("model", [*ATTENDING, *ADDED])
def test_it_teaches_queries_and_garment_keys(model):
    require_places(model)
    batch = random_batch(2)
    module = randomised(tiny_module(model, *ON))
    total = module.training_step(batch, 0)
    flow = module.last_losses["flow"]
    assert flow > 0
    plain = randomised(tiny_module(model, *ON, "model.flow_loss.weight=0"))
    without = plain.training_step(batch, 0)
    torch.testing.assert_close(total - flow, without)
    assert "flow" not in plain.last_losses

    total.backward()
    without.backward()
    changed = []
    for (name, ours), theirs in zip(module.named_parameters(), plain.parameters(), strict=True):
        if ours.grad is not None and not torch.equal(ours.grad, theirs.grad):
            changed.append(name)
    assert changed if model in ADDED else any("to_q" in name for name in changed)


@pytest.mark.parametrize("model", [*ATTENDING, *ADDED])
def test_gradient_checkpointing_changes_nothing(model):
    require_places(model)
    names = flatten(asdict(load(f"model={model}").model))
    settings = [f"model.{name}" for name in names if name.endswith("gradient_checkpointing")]
    gradients = []
    for overrides in ((), [f"{name}=true" for name in settings]):
        module = randomised(tiny_module(model, *ON, *overrides)).train()
        module.training_step(random_batch(2), 0).backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_dropped_rows_do_not_learn_where_to_read():
    batch = random_batch(2)
    nothing_else = [f"model.dropout.{name}=0" for name in ("image", "text", "both")]
    # Dropout of StableVITON leaves the garment that is read by places.
    for model in (name for name in ATTENDING if name != "stableviton"):
        overrides = nothing_else if model == "imagdressing" else []
        overrides = (*ON[:3], *overrides, "model.condition_dropout=1.0")
        dropped = randomised(tiny_module(model, *overrides))
        dropped.training_step(batch, 0)
        assert dropped.last_losses["flow"] == 0


def test_it_waits_for_its_step_and_keeps_to_early_timesteps():
    module = tiny_module("leffa", *ON, "model.flow_loss.from_step=5")
    module.training_step(random_batch(2), 0)
    assert "flow" not in module.last_losses
    module = tiny_module("leffa", *ON, "model.flow_loss.until=0.0")
    module.training_step(random_batch(2), 0)
    assert module.last_losses["flow"] == 0


def test_an_architecture_without_places_says_so():
    module = tiny_module("leffa", *ON, "model.flow_loss.smallest_layer=0.9")
    with pytest.raises(ConfigError, match=r"leave model\.flow_loss\.weight at 0"):
        module.training_step(random_batch(2), 0)


def test_recording_changes_nothing_and_keeps_the_garments_keys():
    q, k, v = normal(2, 1, 6, 4), normal(2, 1, 10, 4, seed=1), normal(2, 1, 10, 4, seed=2)
    silent = read_garment(q, k, v, tokens=4, rows=[0, 2])
    with record_reads() as reads, record_attention() as maps:
        assert torch.equal(read_garment(q, k, v, tokens=4, rows=[0, 2]), silent)
    read_garment(q, k, v)
    (read,) = reads.layers
    assert read.q is q and torch.equal(read.k, k[:, :, -4:]) and read.rows == [0, 2]
    assert set(maps.means()) == {(6, 4)}


def test_its_flops_are_counted():
    without, on = (
        step_flops(load("model=leffa", "preset=tiny", "train.batch_size=1", *overrides))
        for overrides in (("model.flow_loss.weight=0",), ON)
    )
    assert 0 < on - without < 0.2 * without
