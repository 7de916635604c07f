"""Every registered architecture: what a new one inherits by having a folder under vton/models.

What it costs is in tests/cost/test_counting.py, and that it learns in test_overfitting.py.
"""

from dataclasses import asdict, replace

import pytest
import torch

from tests.batches import as_loaded, random_batch, randomised, tiny_module
from tests.sweeps import SHIPPED
from vton import registry
from vton.config import as_override, flatten, load
from vton.diffusion import noise
from vton.diffusion.sampling import drawing, sample
from vton.diffusion.solvers import sampling_times
from vton.weights.pretrained import load_state, read_safetensors, write_tensors

pytestmark = pytest.mark.parametrize("model", registry.names())

# From scratch everything is trained along. As published, what the paper freezes is frozen.
MODES = ("from scratch", "as published")
in_both_modes = pytest.mark.parametrize("mode", MODES)


def module_in(mode: str, model: str, *overrides: str):
    """The tiny module; as published: frozen where the paper's preset says so."""
    if mode == "as published":
        for key, value in flatten(asdict(load(f"model={model}", "preset=paper").model)).items():
            if key.rpartition(".")[2] in ("trained", "attention_only"):
                overrides = (*overrides, as_override(f"model.{key}", value))
    return tiny_module(model, *overrides)


def trained(module) -> set[int]:
    return {id(p) for group in module.trained_parameters() for p in group["params"]}


def test_prediction_is_shaped_like_the_latents_and_finite(model):
    module, batch = randomised(tiny_module(model)), random_batch(2)
    conditions = module.condition(batch)
    assert all(len(tensor) == 2 for tensor in conditions.values())
    z, t = torch.randn(2, *module.latent_shape()), torch.tensor([3, 900])
    prediction = module.denoiser.denoise(
        z, t, conditions, module.denoiser.garment_features(conditions, t)
    )
    assert prediction.shape == z.shape and torch.isfinite(prediction).all()


@in_both_modes
def test_gradients_reach_every_trained_parameter_and_no_other(model, mode):
    module = randomised(module_in(mode, model, "model.condition_dropout=0.5"))
    module.training_step(random_batch(4), 0).backward()
    own = trained(module)
    for name, parameter in module.named_parameters():
        has_gradient = parameter.grad is not None and parameter.grad.abs().max() > 0
        if id(parameter) in own:
            assert has_gradient, f"nothing reads {name}: leave it out of trained_parameters"
        else:
            assert not has_gradient, f"{name} is in no group of trained_parameters"
    for name, network in module.frozen.items():
        assert all(p.grad is None and not p.requires_grad for p in network.parameters()), name


@in_both_modes
def test_no_field_is_read_that_loaders_are_not_asked_for(model, mode):
    """They leave it out then; what is read decides the same."""
    module, batch = module_in(mode, model), random_batch(2)
    read = as_loaded(batch, module)
    assert torch.equal(module.training_step(read, 0), module.training_step(batch, 0))
    module.eval()
    assert torch.equal(module.generate(read), module.generate(batch))


@in_both_modes
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_every_parameter_has_a_gradient_whatever_is_dropped(model, mode, dropout):
    """Several processes wait for it, and one of them may drop its whole share of a batch, or
    nothing.
    """
    module = module_in(mode, model)
    module.config.model.condition_dropout = dropout
    module.training_step(random_batch(1), 0).backward()
    assert [
        name for name, p in module.named_parameters() if p.requires_grad and p.grad is None
    ] == []


def test_frozen_networks_stay_out_of_the_state(model):
    module = module_in("as published", model)
    frozen = tuple(f"{name}." for name in module.frozen)
    assert not any(key.startswith(frozen) for key in module.state_dict())


def test_training_draws_depend_on_position_only(model):
    module, batch = randomised(tiny_module(model)), random_batch(4)
    module.train()
    first = module.training_step(batch, 0)
    again = module.training_step(batch, 7)
    batch.position = [p + 100 for p in batch.position]
    assert torch.equal(first, again)
    assert not torch.equal(first, module.training_step(batch, 0))


def test_a_picture_does_not_depend_on_its_batch(model):
    module = randomised(tiny_module(model)).eval()
    together, alone = module.generate(random_batch(3)), module.generate(random_batch(1, first=1))
    assert together.shape == (3, 3, 64, 48) and together.abs().max() <= 1
    torch.testing.assert_close(together[1], alone[0], atol=1e-4, rtol=0)


def test_guidance_in_one_batch_equals_two_passes(model):
    """In float64, but for the sampler's own float32."""
    module = randomised(tiny_module(model)).eval().double()
    batch = random_batch(2).map_tensors(lambda x: x.double() if x.is_floating_point() else x)
    with torch.no_grad():
        conditions = module.condition(batch)
        null = module.denoiser.unconditional(conditions)
        assert {k: v.shape for k, v in null.items()} == {k: v.shape for k, v in conditions.items()}
        z, t = torch.randn(2, *module.latent_shape(), dtype=torch.float64), torch.tensor([500, 500])
        cond, uncond = (
            module.denoiser.denoise(z, t, c, module.denoiser.garment_features(c, t))
            for c in (conditions, null)
        )
        assert (cond - uncond).abs().max() > 1e-4  # the garment is really dropped

        module.config.sampler.guidance, module.config.sampler.steps = 2.0, 1
        draw = drawing(module.latent_shape(), [noise.generator(0, i) for i in range(2)], z.device)
        z = noise.normal(module.latent_shape(), [noise.generator(0, i) for i in range(2)], z)
        together = sample(
            module.denoiser, conditions, draw, module.config.sampler, module.objective
        )
        t = sampling_times(module.config.sampler, module.objective).expand(2)
        cond, uncond = (
            module.denoiser.denoise(z, t, c, module.denoiser.garment_features(c, t))
            for c in (conditions, null)
        )
    expected = module.objective.clean(z, t, uncond + 2.0 * (cond - uncond))
    known = module.denoiser.known(conditions)
    if known is not None:
        expected = (1 - known.mask) * known.latents + known.mask * expected
    torch.testing.assert_close(together.double(), expected, atol=2e-6, rtol=0)


def test_scale_1_makes_one_pass_per_step_and_sampling_leaves_the_global_random_state(
    model, monkeypatch
):
    module = tiny_module(
        model, "sampler.solver=ddpm", "sampler.steps=2"
    ).eval()  # which draws at every step
    denoise, rows = module.denoiser.denoise, []
    monkeypatch.setattr(
        module.denoiser, "denoise", lambda z_t, *rest: rows.append(len(z_t)) or denoise(z_t, *rest)
    )
    before = torch.get_rng_state()
    for guidance, branches in ((1.0, 1), (2.0, 2)):
        module.config.sampler.guidance = guidance
        module.generate(random_batch(3))
        assert rows == [3 * branches] * 2
        rows.clear()
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_checkpointing_changes_nothing(model):
    """Loss within 1e-5, gradients within 5e-5: diffusers' own bounds."""
    settings = flatten(asdict(load(f"model={model}").model))
    switches = [
        f"model.{name}=true" for name in settings if name.endswith("gradient_checkpointing")
    ]
    if not switches:
        assert model not in SHIPPED  # one that somebody adds may be so small
        pytest.skip("has no network to checkpoint")
    losses, gradients, calls = [], [], []
    for overrides in ((), switches):
        module, called = randomised(tiny_module(model, *overrides)).train(), []
        assert module.blocks(), "its BLOCKS names no class of its networks' layers"
        for block in module.blocks():
            block.register_forward_pre_hook(lambda *_, called=called: called.append(1))
        losses.append(module.training_step(random_batch(2), 0))
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.requires_grad})
        calls.append(len(called))
    assert calls[0] < calls[1]  # computed again on the way back
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    torch.testing.assert_close(*gradients, atol=5e-5, rtol=0)


def test_dropping_rows_leaves_the_others_alone(model):
    module, batch = randomised(tiny_module(model)), random_batch(3)
    conditions = module.condition(batch)
    dropped = module.drop(conditions, torch.tensor([False, True, False]))
    null = module.denoiser.unconditional(conditions)
    for name, tensor in conditions.items():
        assert torch.equal(dropped[name][0], tensor[0]) and torch.equal(dropped[name][2], tensor[2])
        assert torch.equal(dropped[name][1], null[name][1])


@in_both_modes
def test_weights_round_trip_bit_equal(model, mode, tmp_path):
    """Through the file of a run folder; published formats, where there are any, in the
    architectures' own tests.
    """
    module, other = module_in(mode, model), module_in(mode, model)
    change_trained(module)
    path = tmp_path / "weights.safetensors"
    write_tensors(path, module.state_dict())
    load_state(other, read_safetensors(path), path)
    batch = random_batch(2)
    assert torch.equal(module.eval().generate(batch), other.eval().generate(batch))


def change_trained(module) -> None:
    """Move trained parameters off their initial values; what is frozen is loaded elsewhere."""
    for group in module.trained_parameters():
        for parameter in group["params"]:
            parameter.data.add_(0.05 * torch.randn_like(parameter))


def test_the_picture_depends_on_the_garment(model):
    module = randomised(tiny_module(model)).eval()
    batch = random_batch(2)
    other = {
        name: getattr(batch, name).flip(0) for name in ("garment", "garment_mask", "warped_garment")
    }
    shuffled = replace(batch, **other)
    assert (module.generate(batch) - module.generate(shuffled)).abs().max() > 1e-3
