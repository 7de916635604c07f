"""What is special about CatVTON's network: the canvas, what is skipped, what learns, DREAM."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional as F

from tests.batches import random_batch, randomised, tiny_module
from vton.config import ObjectiveConfig, load
from vton.cost.meta import on_meta
from vton.diffusion.objective import Objective
from vton.models.attention import level_grid, record_attention
from vton.models.catvton.network import dream, halves
from vton.models.unet import PositionCode


@pytest.mark.parametrize("size", [(32, 12), (9, 14), (13, 7)])
def test_grids_of_tokens_are_those_of_the_unets_levels(size):
    x = torch.zeros(1, 1, *size)
    for _ in range(3):
        assert level_grid(x[0, 0].numel(), size) == x.shape[2:]
        x = F.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2, padding=1)


def published_module(*overrides, size=(64, 48)):
    """Without a position code, which no published network has."""
    return randomised(
        tiny_module("catvton", "model.unet.positions=0", *overrides, size=size)
    ).eval()


def predict(module, batch, z):
    conditions = module.condition(batch)
    return module.denoiser.denoise(z, torch.full((len(z),), 500), conditions, {})


@pytest.mark.parametrize("axis", ["height", "width"])
def test_attention_over_the_canvas_is_the_ordinary_one(axis):
    """Whatever is read for pictures of attention: the result is that of diffusers' processor."""

    class Ordinary(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *args, canvas=None, **kwargs):
            return super().__call__(attn, hidden_states, *args, **kwargs)

    module, batch = published_module(f"model.axis={axis}"), random_batch(2)
    z = torch.randn(2, *module.latent_shape())
    ours = predict(module, batch, z)
    for name, layer in module.unet.named_modules():
        if name.endswith(".attn1"):
            layer.set_processor(Ordinary())
    torch.testing.assert_close(ours, predict(module, batch, z), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", ["height", "width"])
def test_the_persons_tokens_read_those_of_the_garment(axis):
    """Recorded queries are the person's and recorded keys the garment's, at every level."""
    module, batch = published_module(f"model.axis={axis}"), random_batch(2)
    z = torch.randn(2, *module.latent_shape())
    with record_attention() as maps:
        predict(module, batch, z)
    height, width = 16, 12
    assert set(maps.layers) == {(height * width // 4,) * 2, (height * width // 16,) * 2}

    layer = module.unet.get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn1")
    grid = (32, 12) if axis == "height" else (16, 24)
    grid = (grid[0] // 2, grid[1] // 2)
    x = torch.zeros(1, *grid, layer.to_q.in_features)
    _, garment = halves(x.permute(0, 3, 1, 2), axis)
    garment[:] = 1  # a garment unlike the person
    with record_attention() as maps:
        layer.processor(layer, x.flatten(1, 2), canvas=(2 * grid[0], 2 * grid[1]))
    (weights,) = maps.means().values()
    key = layer.to_k(torch.stack([torch.zeros_like(x[0, 0, 0]), torch.ones_like(x[0, 0, 0])]))
    query = layer.to_q(torch.zeros_like(x[0, 0, 0]))
    logits = (key @ query) / (key.shape[1] / layer.heads) ** 0.5
    share = logits.softmax(0)[1]
    torch.testing.assert_close(weights.sum(2), torch.full_like(weights.sum(2), share.item()))


def test_no_half_is_recorded_where_the_seam_cuts_tokens():
    module = published_module(size=(24, 16))  # latents 6x4, canvas 12x4: levels of 6 and 3 rows
    with record_attention() as maps:
        predict(module, random_batch(1, (24, 16)), torch.randn(1, *module.latent_shape()))
    assert set(maps.layers) == {(6, 6)}


def test_skipped_cross_attention_still_adds_its_norm():
    module, batch = published_module(), random_batch(1)
    z = torch.randn(1, *module.latent_shape())
    before = predict(module, batch, z)
    for name, parameter in module.unet.named_parameters():
        if ".attn2." in name:
            parameter.data.zero_()
    assert torch.equal(predict(module, batch, z), before)  # its weights are never read
    for name, parameter in module.unet.named_parameters():
        if ".norm2." in name and ".transformer_blocks." in name:
            parameter.data.zero_()
    assert (predict(module, batch, z) - before).abs().max() > 1e-3  # its norm is


def test_places_are_those_within_each_picture():
    """Person and garment have one code, and the block does not add it to what it skips."""
    module = tiny_module("catvton", "model.garment_positions=1")
    block = module.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0")
    assert block.pos_embed is None
    code = block.attn1.processor.positions
    assert isinstance(code, PositionCode) and code.aspect == 64 / 48
    x = torch.zeros(1, 2 * 12, 96)
    seen = []
    block.attn1.to_q.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    block.attn1.processor(block.attn1, x, canvas=(32, 12))
    person, garment = seen[0].chunk(2, 1)
    assert torch.equal(person, garment) and torch.equal(person[0], code.code(12, x.device))


def test_a_stronger_code_of_the_garment_has_the_person_begin_by_reading_it():
    shares = []
    for factor in (1.0, 1.25):
        module = tiny_module("catvton", f"model.garment_positions={factor}").eval()
        with record_attention() as maps:
            predict(module, random_batch(2), torch.randn(2, *module.latent_shape()))
        shares.append(min(weights.sum(2).mean() for weights in maps.means().values()))
    assert shares[0] < 0.5 < shares[1]


@pytest.mark.parametrize(
    ("part", "trained"),
    [("attention", 49_574_080), ("transformer", 223_276_800), ("unet", 815_572_804)],
)
def test_full_size_counts(part, trained):
    """The paper's 267.24 M of all transformers counts attn2's 43.96 M, which nothing reads."""
    module = on_meta(load("model=catvton", "preset=paper", f"model.trained={part}"))
    counts = {"all": 0, "attn1": 0, "attn2": 0, "transformer": 0}
    for name, parameter in module.unet.named_parameters():
        counts["all"] += parameter.numel()
        counts["attn1"] += parameter.numel() * (".attn1." in name)
        counts["attn2"] += parameter.numel() * (".attn2." in name)
        counts["transformer"] += parameter.numel() * (".attentions." in name)
    assert counts == {
        "all": 859_535_364,
        "attn1": 49_574_080,
        "attn2": 43_962_560,
        "transformer": 267_239_360,
    }
    (group,) = module.trained_parameters()
    assert sum(parameter.numel() for parameter in group["params"]) == trained
    if part == "attention":
        assert len(group["params"]) == 80 and len(module.state_dict()) == 80


# ---- DREAM ----


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_dream_is_one_rule_in_every_prediction_type(prediction):
    """Its z_t is made of the clean sample and the new noise, and the target says so."""
    objective = Objective(ObjectiveConfig(prediction=prediction))
    x0, eps, guess = torch.randn(3, 4, 4, 8, 6).double()
    t = torch.tensor([30, 400, 700, 999])
    noised = objective.noised(x0, eps, t)
    seen = objective.target(x0, guess, t) if prediction != "sample" else guess
    _, sigma = objective.signal_and_noise(t, x0)
    r = sigma**2 * (eps - objective.noise(noised.z_t, t, seen))
    dreamt = dream(noised, seen, objective, 2.0, None)
    torch.testing.assert_close(dreamt.eps, eps + r)
    torch.testing.assert_close(dreamt.z_t, objective.add_noise(x0, eps + r, t))
    torch.testing.assert_close(dreamt.target, objective.target(x0, eps + r, t))


def test_dream_leaves_a_perfect_prediction_alone():
    objective = Objective(ObjectiveConfig())
    x0, eps = torch.randn(2, 2, 4, 8, 6)
    noised = objective.noised(x0, eps, torch.tensor([100, 900]))
    dreamt = dream(noised, noised.target, objective, 0.0, None)
    assert torch.equal(dreamt.z_t, noised.z_t) and torch.equal(dreamt.target, noised.target)
