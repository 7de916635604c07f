"""The warp behind the training command's contract: which part learns when, its losses, its
pictures.
"""

import logging

import pytest
import torch

from tests.batches import random_batch, randomised, tiny_module
from vton.config import ConfigError, load
from vton.cost.counting import describe
from vton.models.warp.config import PerceptualConfig
from vton.models.warp.losses import build_perceptual
from vton.weights.pretrained import load_state

NARROW = (
    "model.tps.size=[64,48]",
    "model.tps.widths=[8,8,16]",
    "model.tps.regression=[16,8]",
    "model.refinement.widths=[8,8,16]",
)


def module(*overrides):
    return tiny_module("warp", *NARROW, *overrides)


@pytest.mark.parametrize(("tps_steps", "learning"), [(0, {"tps", "refinement"}), (9, {"tps"})])
def test_gradients_reach_what_learns(tps_steps, learning):
    warp = randomised(module(f"model.tps_steps={tps_steps}"))
    warp.training_step(random_batch(4), 0).backward()
    for name, network in warp.networks().items():
        moved = [p.grad is not None and bool(p.grad.abs().max() > 0) for p in network.parameters()]
        assert all(moved) if name in learning else not any(moved), name
        # Under DDP every parameter needs a gradient; the optimizer must not see those of what
        # rests.
        assert all(p.grad is not None for p in network.parameters())
    warp.on_before_optimizer_step(None)
    assert {
        name for name, n in warp.networks().items() if next(n.parameters()).grad is not None
    } == learning
    assert bool(warp.network.refined) == ("refinement" in learning)


@pytest.mark.parametrize("stage", ["model.tps_steps=999", "model.tps_steps=0"])
def test_a_short_training_improves(stage):
    warp = module(stage, "train.lr=2e-3", "train.warmup_steps=1", "train.schedule=constant")
    warp.train()
    optimizer, batch, losses = warp.configure_optimizers()["optimizer"], random_batch(4), []
    for step in range(40):
        loss = warp.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    names = {"warp", "order"} | ({"refined", "silhouette"} if stage.endswith("=0") else set())
    assert losses[-1] < 0.85 * losses[0] and set(warp.last_losses) == names


def test_pictures_keep_what_is_known_and_see_no_truth():
    warp, batch = randomised(module()).eval(), random_batch(3)
    warp.network.refined.fill_(True)
    before = torch.get_rng_state()
    picture, silhouettes = warp.predict_step(batch, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(warp.generate(batch), picture) and picture.abs().max() <= 1 + 1e-5
    outside = (1 - batch.agnostic_mask).expand_as(picture) > 0
    assert torch.equal(picture[outside], batch.agnostic[outside])
    blind = batch.map_tensors(torch.clone)
    blind.person, blind.truth, blind.truth_garment_mask = torch.zeros_like(batch.person), None, None
    assert torch.equal(warp.generate(blind), picture)
    torch.testing.assert_close(warp.generate(batch[1:2]), picture[1:2], atol=1e-5, rtol=0)
    worn = warp.put_on(batch)
    assert torch.equal(worn.warped_mask, silhouettes) and torch.equal(worn.garment, batch.garment)


def test_weights_round_trip_with_what_they_are(tmp_path):
    warp, other = randomised(module()), module()
    warp.training_step(random_batch(2), 0)
    load_state(other, warp.state_dict(), "state")
    batch = random_batch(2)
    assert torch.equal(warp.eval().generate(batch), other.eval().generate(batch)) and bool(
        other.network.refined
    )


def test_settings_that_cannot_work_name_their_keys():
    with pytest.raises(ConfigError, match=r"codec\.name=identity, not linear"):
        module("codec.name=linear")
    with pytest.raises(ConfigError, match=r"model\.tps\.size=\[100, 96\]"):
        load("model=warp", "model.tps.size=[100,96]")
    with pytest.raises(ConfigError, match=r"model\.tps_steps"):
        load("model=warp", "model.tps_steps=-1")


def test_the_perceptual_loss_says_what_it_runs_on(tmp_path, caplog):
    narrow = ("model.perceptual.weight=0.25", "model.perceptual.channels=[4,4,4,4,4]")
    warp = module(*narrow)
    warp.training_step(random_batch(2), 0)
    assert warp.last_losses["perceptual"] > 0
    spline_alone = module(*narrow, "model.tps_steps=5", "train.steps=5")
    assert "perceptual" not in spline_alone.frozen
    with caplog.at_level(logging.WARNING), torch.device("meta"):
        build_perceptual(PerceptualConfig())
    assert "`vton weights vgg19`" in caplog.text
    with pytest.raises(ConfigError, match=r"model\.perceptual\.weights=.*vgg19-dcbb9e9d\.pth"):
        build_perceptual(PerceptualConfig(weights=str(tmp_path)))


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_info_counts_without_allocating(preset):
    found = describe(load("model=warp", f"preset={preset}"))
    assert [row["name"] for row in found["networks"]] == ["tps", "refinement"]
    assert (
        all(row["trained"] == row["parameters"] > 0 for row in found["networks"])
        and found["flops"]["warp"] > 0
    )
