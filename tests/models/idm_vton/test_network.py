"""IDM-VTON's mathematics: the exact shortcuts equal what they save, and they are taken."""

from pathlib import Path

import pytest
import torch

from tests.models.idm_vton.test_reference import FOLDER
from vton.config import SamplerConfig
from vton.diffusion.sampling import double, sample
from vton.models.idm_vton.network import IdmVton, attention_with_zeros, null_logits, tap_shapes
from vton.models.idm_vton.reference import Networks
from vton.models.reference import Reference
from vton.models.unet import garment_taps

BRANCHES = [[-1, 0, 1], [-1, -1, -1], [0, 1, 2], [2, 2, 2], [0, -1, 0]]


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(Reference(Path(FOLDER), torch.device("cpu")))


def conditions_of(networks: Networks, garment: list[int], size=(16, 12)) -> dict[str, torch.Tensor]:
    """Rows that wear the numbered garments (-1 = none); equal numbers are equal garments."""
    conditions = networks.conditions(networks.inputs["time_ids"])
    rows = len(garment)
    conditions = {name: tensor[torch.arange(rows) % 2] for name, tensor in conditions.items()}
    pictures = torch.randn(4, 4, *size, generator=torch.Generator().manual_seed(3))
    conditions["garment_latents"] = pictures[garment]
    conditions["garment_text"] = conditions["garment_text"][[0] * rows]
    conditions["garment"] = torch.tensor(garment)
    return conditions


def predict(networks: Networks, conditions, t=None, closed_form=True):
    rows = len(conditions["garment"])
    z = torch.randn(rows, 4, 16, 12, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([761] * rows) if t is None else t
    networks.tryon.closed_form = closed_form
    try:
        features = networks.model.garment_features(conditions, t)
        return networks.model.denoise(z, t, conditions, features)
    finally:
        networks.tryon.closed_form = True


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 12), (9, 13)])
@pytest.mark.parametrize("garment", BRANCHES)
def test_closed_form_equals_zero_features(networks, garment, size):
    conditions = conditions_of(networks, garment, size)
    fast = predict(networks, conditions, closed_form=True)
    slow = predict(networks, conditions, closed_form=False)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)


@torch.no_grad()
def test_leaving_the_zeros_out_is_not_the_same(networks):
    """The zero tokens take part in the softmax: M of them must be counted, for any picture size."""
    small = predict(networks, conditions_of(networks, [-1, -1], (4, 4)))
    large = predict(networks, conditions_of(networks, [-1, -1], (16, 12)))
    assert (small - large).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 12, 768, 3072])
def test_the_zero_tokens_weigh_as_much_in_every_precision(dtype, count):
    logits = torch.tensor(null_logits(count, dtype), dtype=dtype)  # as the precision holds them
    logits = logits.double()
    assert abs(logits.exp().sum().item() / count - 1) < 2e-5
    q, k, v = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    exact = (q @ k.transpose(2, 3) / 8**0.5).exp()
    expected = exact @ v / (exact.sum(-1, keepdim=True) + count)
    torch.testing.assert_close(attention_with_zeros(q, k, v, count), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_rows_with_one_garment_share_its_features(networks):
    shared = conditions_of(networks, [1, 0, 1, -1])
    apart = conditions_of(networks, [1, 0, 1, -1])
    apart["garment"] = torch.tensor([0, 1, 2, -1])
    t = torch.tensor([500, 500, 500, 500])
    features = networks.model.garment_features(shared, t)
    assert features["row"].tolist() == [0, 1, 0, -1] and len(features["0"]) == 2
    together, alone = predict(networks, shared, t), predict(networks, apart, t)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_features_belong_to_their_timestep(networks):
    conditions = conditions_of(networks, [0, 0, 0])
    features = networks.model.garment_features(conditions, torch.tensor([10, 900, 10]))
    assert features["row"].tolist() == [0, 1, 0]
    alone = networks.model.garment_features(conditions_of(networks, [0]), torch.tensor([900]))
    torch.testing.assert_close(features["11"][1], alone["11"][0], atol=2e-4, rtol=0)
    assert (features["11"][0] - features["11"][1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 12), (9, 13)])
def test_feature_shapes_are_known_without_a_pass(networks, size):
    text = networks.inputs["garment_prompt_embeds"][:1]
    taps = garment_taps(networks.garment_net, torch.zeros(1, 4, *size), torch.tensor([5]), text)
    assert tap_shapes(networks.garment_net, size) == [tuple(g.shape[1:]) for g in taps.values()]


class Passes:
    """Samples that went through a network."""

    def __init__(self, network):
        self.samples = 0
        self.handle = network.conv_in.register_forward_pre_hook(self.count)

    def count(self, module, arguments):
        self.samples += len(arguments[0])


def run(networks: Networks, model: IdmVton, conditions, steps=30, guidance=2.0):
    generator = torch.Generator().manual_seed(0)
    config = SamplerConfig(solver="ddpm", steps=steps, guidance=guidance)

    def draw():
        return torch.randn(len(conditions["garment"]), 4, 16, 12, generator=generator)

    return sample(model, conditions, draw, config, networks.objective)


@pytest.mark.parametrize(
    ("garment", "garment_passes"), [([0], 30), ([0, 0, 0, 0], 30), ([0, 1], 60)]
)
def test_network_passes_of_a_guided_run(networks, monkeypatch, garment, garment_passes):
    conditions = conditions_of(networks, garment)
    null = networks.null_prompt()
    rows = [0] * len(garment)
    null = type(null)(*(tensor[rows] for tensor in null))
    monkeypatch.setattr(networks.model, "null", lambda: null)
    tryon, garments = Passes(networks.tryon.unet), Passes(networks.garment_net)
    run(networks, networks.model, conditions)
    tryon.handle.remove()
    garments.handle.remove()
    assert garments.samples == garment_passes
    assert tryon.samples == 60 * len(garment)


def test_a_fixed_garment_timestep_is_computed_once(networks):
    model = IdmVton(
        networks.tryon, networks.garment_net, networks.null_prompt, garment_timestep=100
    )
    garments = Passes(networks.garment_net)
    exact = conditions_of(networks, [0, 1])
    with torch.no_grad():
        conditions = model.condition(**exact)
        run(networks, model, conditions, steps=3)
        garments.handle.remove()
        assert garments.samples == 2
        both = double(model.unconditional(conditions), conditions)
        fixed = model.garment_features(both, torch.tensor([9] * 4))
        wanted = networks.model.garment_features(exact, torch.tensor([100, 100]))
    assert fixed["row"].tolist() == [-1, -1, 0, 1]
    for index in range(model.blocks):
        torch.testing.assert_close(fixed[str(index)], wanted[str(index)])


def test_gradient_checkpointing_changes_nothing(networks):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            networks.tryon.unet.enable_gradient_checkpointing()
            networks.garment_net.enable_gradient_checkpointing()
        for network in (networks.tryon.train(), networks.garment_net.train().requires_grad_(True)):
            network.zero_grad()
        predict(networks, conditions_of(networks, [0, -1, 0])).square().mean().backward()
        named = [*networks.tryon.named_parameters(), *networks.garment_net.named_parameters()]
        gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
    networks.tryon.unet.disable_gradient_checkpointing()
    networks.tryon.eval()
    networks.garment_net.disable_gradient_checkpointing()
    networks.garment_net.eval().requires_grad_(False)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)
