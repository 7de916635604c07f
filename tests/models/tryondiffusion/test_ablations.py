"""The rows of the paper's ablations: each trains, samples and changes what it names."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from tests.batches import random_batch, randomised, tiny_module
from tests.models.tryondiffusion.test_module import SIZE, SR, TINY, Calls, float64, tiny
from vton.config import CONFIGS, ConfigError, load
from vton.cost.counting import describe
from vton.data.sample import DataError
from vton.models.tryondiffusion.config import ParallelUNetConfig
from vton.models.tryondiffusion.module import worn_garment
from vton.models.tryondiffusion.network import ParallelUNet

CONCATENATION = (
    "model.base.correspondence=concatenation",
    "model.sr256.correspondence=concatenation",
)
VARIANTS = pytest.mark.parametrize(
    "overrides",
    [CONCATENATION, (*CONCATENATION, "model.stage=sr256", *SR), ("model.warp_first=true",)],
    ids=["concatenation", "concatenation-sr256", "warp_first"],
)


@pytest.mark.parametrize("row", OmegaConf.load(CONFIGS / "ablation/tryondiffusion.yaml").rows)
def test_a_row_changes_what_it_names_and_nothing_else(row):
    full = load("model=tryondiffusion")
    config = load("model=tryondiffusion", f"ablation=tryondiffusion/{row}")
    assert config.name == f"{full.name}-tryondiffusion-{row}"
    changed = [
        config.model.base.correspondence == config.model.sr256.correspondence == "concatenation",
        config.model.warp_first,
        0 < config.data.limit_train < full.data.synthetic.train,
    ]
    assert sum(changed) == (row != "full")
    config.model = full.model
    config.data.limit_train = 0
    config.name = full.name
    config.ablation = ""
    assert config == full


@VARIANTS
def test_every_trained_parameter_gets_a_gradient(overrides):
    torch.manual_seed(0)
    module = randomised(tiny_module("tryondiffusion", *TINY, *overrides, size=SIZE))
    module.training_step(random_batch(4, SIZE), 0).backward()
    for name, parameter in module.named_parameters():
        learns = parameter.grad is not None and parameter.grad.abs().max() > 0
        reads_zeros = name.endswith("embedding.garment.linear.weight")  # a garment has no pose
        assert learns != reads_zeros, name


@VARIANTS
def test_it_learns_four_pairs_and_samples_them(overrides):
    settings = ("train.lr=3e-3", "train.warmup_steps=1", "train.schedule=constant", *overrides)
    module = tiny_module("tryondiffusion", *TINY, *settings, size=SIZE)
    batch, losses = random_batch(4, SIZE), []
    optimizer = module.configure_optimizers()["optimizer"]
    for step in range(60):
        batch.position = [4 * step + i for i in range(4)]
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        optimizer.step()
        own = [module.last_losses["diffusion"].mean()]
        if module.warp:
            own.append(module.last_losses["warp"])
        losses.append(torch.stack(own))
    assert (torch.stack(losses[-5:]).mean(0) < 0.5 * torch.stack(losses[:5]).mean(0)).all()
    assert module.eval().generate(batch).shape == batch.person.shape


@VARIANTS
def test_reuse_changes_no_picture_and_calls_only_what_it_must(overrides):
    fast = tiny("model.garment_steps=4", *overrides).double()
    slow = tiny("model.garment_steps=1", "model.null_table=false", *overrides).double()
    batch = float64(random_batch(2, SIZE))
    networks = [module.network for module in (fast, fast.warp) if module is not None]
    person_calls = [Calls(network.person_unet) for network in networks]
    garment_unets = [network.garment_unet for network in networks if network.garment_unet]
    garment_calls = [Calls(network) for network in garment_unets]
    for pictures in (1, 2):
        torch.testing.assert_close(fast.generate(batch), slow.generate(batch), atol=1e-5, rtol=0)
        assert all(calls.rows == pictures * 5 * 2 * 2 for calls in person_calls)
        # The null branch's features are made once.
        assert all(calls.rows == pictures * 5 * 2 + 5 for calls in garment_calls)


def first_network(module, batch):
    """The first network's pictures, as the second one gets them."""
    return module.warp.generate(batch, module.warp.config.eval.seed)


def test_the_second_network_sees_of_the_garment_what_the_first_made_of_it():
    module, batch = tiny("model.warp_first=true").double(), float64(random_batch(2, SIZE))
    clothes = {name: getattr(batch, name).flip(0) for name in ("garment", "garment_mask")}
    other, warped = replace(batch, **clothes), first_network(module, batch)
    first, given = module.condition(batch), module.condition(other, warped=warped)
    assert first.keys() == given.keys()
    assert all(torch.equal(first[name], given[name]) for name in first)
    assert not torch.equal(module.condition(other)["garment"], warped)
    others = {name: getattr(batch, name).flip(0) for name in ("agnostic", "agnostic_mask")}
    # The first network knows a person by the pose alone.
    assert torch.equal(first_network(module, replace(batch, **others)), warped)
    moved = replace(batch, keypoints=batch.keypoints.flip(0))
    assert not torch.equal(first_network(module, moved), warped)
    alone = first_network(module, batch[[1]])
    torch.testing.assert_close(alone[0], warped[1], atol=1e-5, rtol=0)


def test_both_networks_learn_from_the_worn_garment_with_draws_of_their_own():
    unaugmented = ("model.augmentation.levels=[0,0]", "model.garment_fill=0.5")
    module, batch = tiny("model.warp_first=true", *unaugmented), random_batch(2, SIZE)
    worn = worn_garment(batch, 0.5)
    inside = (batch.truth_garment_mask > 0).expand_as(worn)
    assert torch.equal(worn[inside], batch.person[inside]) and (worn[~inside] == 0.5).all()
    assert torch.equal(module.training_condition(batch, torch.ones(2))["garment"], worn)
    assert torch.equal(module.warp.training_view(batch).person, worn)
    conditions = module.warp.training_condition(batch, torch.ones(2))
    assert torch.equal(conditions["garment"], batch.garment)
    module.training_step(batch, 0)
    assert not torch.equal(module.last_losses["t"], module.warp.last_losses["t"])
    assert module.warp.config.eval.seed != module.config.eval.seed
    with pytest.raises(DataError, match=r"model\.warp_first=true"):
        module.training_step(replace(batch, truth_garment_mask=None), 0)


def test_two_networks_are_counted_and_both_have_full_size():
    sampler = ("sampler.steps=3", "sampler.guidance=2")
    described = describe(load("model=tryondiffusion", "model.warp_first=true", *sampler))
    parameters = {row["name"]: row["parameters"] for row in described["networks"]}
    assert parameters["warp_garment_unet"] == parameters["garment_unet"] > 0
    flops = described["flops"]
    first_run = 3 * 2 * (flops["garment_features"] + flops["denoise"])
    assert flops["condition"] == pytest.approx(first_run, rel=0.02)
    with torch.device("meta"):
        first = ParallelUNet(ParallelUNetConfig(), images=("garment",))
    agnostic_and_its_level = 3 * 128 * 9 + (128 * 512 + 512) + (512 * 512 + 512)
    count = sum(parameter.numel() for parameter in first.parameters())
    assert count == 1_135_687_811 == 1_136_019_971 - agnostic_and_its_level


def test_warping_first_is_the_base_stages_own():
    with pytest.raises(ConfigError, match=r"model\.warp_first=true.*model\.stage=sr256"):
        tiny_module("tryondiffusion", "model.warp_first=true", "model.stage=sr256")
