"""Muon and AdamW of 8 bits beside AdamW."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.batches import random_batch, tiny_module
from vton.config import ConfigError
from vton.models.optimizers import (
    MOMENTUM,
    UPDATE_RMS,
    Muon,
    adamw_8bit,
    hidden_weights,
    orthogonalised,
    product_of_steps,
    split_groups,
    step_by_step,
)

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.999), "weight_decay": 0.1}


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 40), (2, 40, 6)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrices)
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    projected = torch.diagonal(u.mT @ found @ v.mT, dim1=1, dim2=2)
    well_conditioned = values > 0.05 * values.norm(dim=1, keepdim=True)
    assert projected[well_conditioned].sub(1).abs().max() < 0.35
    rebuilt = u @ torch.diag_embed(projected) @ v
    torch.testing.assert_close(found, rebuilt, atol=1e-4, rtol=0)


@pytest.mark.parametrize("smallest", [1.0, 1e-6])
def test_the_product_of_all_steps_is_what_they_do_one_by_one(smallest):
    """Also for matrices that are nearly singular, as momenta are."""
    generator = torch.Generator().manual_seed(0)
    u, values, v = torch.linalg.svd(
        torch.randn(3, 16, 144, generator=generator), full_matrices=False
    )
    spread = values * torch.logspace(0, math.log10(smallest), 16)
    matrices = (u * spread[:, None]) @ v
    matrices /= matrices.norm(dim=(1, 2), keepdim=True)
    exact = step_by_step(matrices.double())
    at_once = product_of_steps(matrices @ matrices.mT) @ matrices
    torch.testing.assert_close(at_once.double(), exact, atol=2e-3, rtol=0)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "conv_in": nn.Conv2d(3, 4, 3),
        "hidden": nn.Conv2d(4, 4, 3),
        "again": nn.Conv2d(4, 4, 3),
        "norm": nn.GroupNorm(1, 4),
        "linear": nn.Linear(4, 6),
        "conv_out": nn.Conv2d(4, 3, 1),
    }
    return nn.ModuleDict(layers)


def with_gradients(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_weights_of_hidden_layers_get_it_and_the_rest_get_adamw():
    module = network()
    hidden = hidden_weights(module)
    names = {name for name, parameter in module.named_parameters() if parameter in hidden}
    assert names == {"hidden.weight", "again.weight", "linear.weight"}

    plain = network()
    with_gradients(module)
    with_gradients(plain)
    Muon(split_groups([{"params": list(module.parameters())}], hidden), **OPTIONS).step()
    torch.optim.AdamW(plain.parameters(), **OPTIONS).step()
    ours = dict(module.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, ours[name]) == (name not in names), name


def test_an_architecture_names_its_own_first_and_last_layers(monkeypatch):
    module = tiny_module("catvton")
    monkeypatch.setattr(type(module), "OUTER", ("to_q",))
    groups = module.configure_optimizers()["optimizer"].param_groups
    by_muon = {id(p) for group in groups if group["muon"] for p in group["params"]}
    weights = {n: id(p) in by_muon for n, p in module.named_parameters() if n.endswith("weight")}
    assert not any(chosen for name, chosen in weights.items() if name.endswith("to_q.weight"))
    assert all(chosen for name, chosen in weights.items() if name.endswith("attn1.to_k.weight"))
    assert all(chosen for name, chosen in weights.items() if name.endswith("conv_in.weight"))


def test_an_update_is_what_the_definition_says():
    """Two steps of equal weights, one matrix at a time."""
    module = network()
    weight = module["hidden"].weight
    expected = weight.detach().clone()
    momentum = torch.zeros_like(expected)
    groups = split_groups([{"params": list(module.parameters())}], hidden_weights(module))
    optimizer = Muon(groups, **OPTIONS)
    for seed in range(2):
        with_gradients(module)
        weight.grad += seed
        gradient = weight.grad.clone()
        optimizer.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        direction = (1 - MOMENTUM) * gradient + MOMENTUM * momentum
        update = orthogonalised(direction.reshape(1, 4, 36)).view_as(expected)
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * UPDATE_RMS * 6 * update
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-5)


def test_its_state_comes_back():
    module = network()
    groups = split_groups([{"params": list(module.parameters())}], hidden_weights(module))
    optimizer = Muon(groups, **OPTIONS)
    with_gradients(module)
    optimizer.step()
    copy = network()
    copy.load_state_dict(module.state_dict())
    copies = split_groups([{"params": list(copy.parameters())}], hidden_weights(copy))
    again = Muon(copies, **OPTIONS)
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    for network_, optimizer_ in ((module, optimizer), (copy, again)):
        with_gradients(network_)
        optimizer_.step()
    for ours, theirs in zip(module.parameters(), copy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["muon", "adamw8bit"])
def test_a_model_learns_with_it(name):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    module = tiny_module("gardiff", f"train.optimizer={name}", "train.warmup_steps=0")
    optimizer = module.configure_optimizers()["optimizer"]
    batch = random_batch(2)
    losses = []
    for _ in range(8):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["muon", "adamw8bit"])
def test_shards_are_refused(name):
    module = tiny_module("gardiff", f"train.optimizer={name}", "trainer.strategy=fsdp")
    with pytest.raises(ConfigError, match=rf"train\.optimizer={name} needs whole tensors"):
        module.configure_optimizers()


def test_moments_of_8_bits_are_near_those_of_32():
    pytest.importorskip("bitsandbytes")
    weights = [nn.Parameter(torch.full((64, 128), 0.5)) for _ in range(2)]
    optimizers = [torch.optim.AdamW([weights[0]], **OPTIONS)]
    optimizers.append(adamw_8bit()([weights[1]], **OPTIONS))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        gradient = torch.randn(64, 128, generator=generator)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = [weight.detach() - 0.5 for weight in weights]
    assert optimizers[1].state[weights[1]]["state1"].dtype == torch.uint8
    assert (moved[0] - moved[1]).abs().mean() < 0.05 * moved[0].abs().mean()


def test_without_bitsandbytes_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("vton.models.optimizers.find_spec", lambda name: None)
    module = tiny_module("gardiff", "train.optimizer=adamw8bit")
    with pytest.raises(ConfigError, match=r"bitsandbytes is not installed.*eightbit"):
        module.configure_optimizers()
