"""From a batch to the canvas, and the settings that make DeCo-VTON of it."""

import pytest
import torch

from tests.batches import random_batch, randomised, tiny_module
from vton.config import ConfigError, load
from vton.data.sample import DataError
from vton.diffusion.denoiser import drop_rows
from vton.models.catvton.network import halves

DECO = "ablation=catvton/deco"


def test_the_canvas_holds_person_and_garment():
    module, batch = tiny_module("catvton"), random_batch(2)
    conditions, z = module.condition(batch), module.latents_of(batch)
    encode = module.codec.encode
    person, garment = halves(z, "height")
    assert torch.equal(person, encode(batch.person)) and torch.equal(garment, encode(batch.garment))
    masked, garment = halves(conditions["masked"], "height")
    assert torch.equal(masked, encode(batch.agnostic)) and torch.equal(
        garment, encode(batch.garment)
    )
    mask, none = halves(conditions["mask"], "height")
    assert mask.mean() == batch.agnostic_mask.mean() and not none.any()
    picture = module.picture(z, batch)
    torch.testing.assert_close(picture, module.codec.decode(person).clamp(-1, 1))


@pytest.mark.parametrize("axis", ["height", "width"])
def test_guidance_compares_with_one_half_of_the_condition_zero(axis):
    module, batch = tiny_module("catvton", f"model.axis={axis}"), random_batch(2)
    conditions = module.condition(batch)
    null = module.denoiser.unconditional(conditions)
    assert torch.equal(null["mask"], conditions["mask"])
    person, garment = halves(null["masked"], axis)
    assert torch.equal(person, halves(conditions["masked"], axis)[0]) and not garment.any()
    z = torch.randn(2, *module.latent_shape())
    seen = module.denoiser.canvas(z, null)
    assert torch.equal(seen[:, : z.shape[1]], z)  # the noisy garment stays


def test_garment_free_guidance_sees_no_garment_anywhere():
    module, batch = tiny_module("catvton", DECO), random_batch(2)
    conditions = module.condition(batch)
    null = module.denoiser.unconditional(conditions)
    dropped = drop_rows(conditions, null, torch.tensor([True, False]))
    z = torch.randn(2, *module.latent_shape())
    person, garment = halves(module.denoiser.canvas(z, dropped), "height")
    assert not garment[0].any() and garment[1].any()
    assert torch.equal(person, halves(module.denoiser.canvas(z, conditions), "height")[0])


def test_the_loss_on_the_person_knows_nothing_of_the_garments_half():
    module, batch = randomised(tiny_module("catvton", "model.loss_on=person")), random_batch(2)
    x0 = module.latents_of(batch)
    noised = module.objective.noised(x0, torch.randn_like(x0), torch.tensor([500, 900]))
    prediction = torch.randn_like(x0)
    before = module.losses(prediction, noised, batch)
    halves(prediction, "height")[1][:] += 1
    assert torch.equal(module.losses(prediction, noised, batch), before)
    halves(prediction, "height")[0][:] += 1
    assert not torch.equal(module.losses(prediction, noised, batch), before)
    whole = tiny_module("catvton")
    torch.testing.assert_close(
        whole.losses(noised.target + 1, noised, batch),
        module.losses(noised.target + 1, noised, batch),
    )


@pytest.mark.parametrize("loss_on", ["canvas", "person"])
def test_dream_acts_where_the_loss_is(loss_on):
    settings = ("model.dream=0", f"model.loss_on={loss_on}")
    module, batch = randomised(tiny_module("catvton", *settings)), random_batch(2)
    x0 = module.latents_of(batch)
    noised = module.objective.noised(x0, torch.randn_like(x0), torch.tensor([500, 900]))
    adjusted = module.adjusted(noised, module.condition(batch))
    person, garment = halves((adjusted.z_t - noised.z_t).abs(), "height")
    assert person.max() > 1e-3 and (garment.max() > 1e-3) == (loss_on == "canvas")


def test_dream_off_costs_no_second_pass():
    calls = []
    for setting in ("model.dream=null", "model.dream=10"):
        module = tiny_module("catvton", setting)
        module.unet.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        module.training_step(random_batch(2), 0)
        calls.append("end")
    assert calls == [True, "end", False, True, "end"]


def test_anchored_latents_are_the_garments_own_at_every_step(monkeypatch):
    module, batch = (
        randomised(tiny_module("catvton", DECO, "sampler.steps=3")).eval(),
        random_batch(1),
    )
    module.config.sampler.guidance = 1.0
    denoise, seen = module.denoiser.denoise, []

    def watch(z_t, t, *rest):
        seen.append((halves(z_t, "height")[1].clone(), t))
        return denoise(z_t, t, *rest)

    monkeypatch.setattr(module.denoiser, "denoise", watch)
    module.generate(batch)
    garment = module.codec.encode(batch.garment)
    found = []
    for z, t in seen:
        signal, sigma = module.objective.signal_and_noise(t, z)
        found.append((z - signal * garment) / sigma)
    assert len(found) == 3
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-4, rtol=0)


def test_without_a_mask_the_network_sees_a_person_in_other_clothes():
    module = randomised(tiny_module("catvton", "model.mask=false"))
    channels = module.codec.channels
    assert module.unet.config.in_channels == 2 * channels
    batch, other = random_batch(2), random_batch(2, first=5).person
    batch.person_other = other
    for orders in (["paired", "paired"], ["paired", "unpaired"]):
        batch.order = orders
        conditions = module.condition(batch)
        assert "mask" not in conditions
        seen, garment = halves(conditions["masked"], "height")
        expected = torch.stack([other[0], other[1] if orders[1] == "paired" else batch.person[1]])
        torch.testing.assert_close(seen, module.codec.encode(expected))
        torch.testing.assert_close(garment, module.codec.encode(batch.garment))
        null = module.denoiser.unconditional(conditions)
        assert not halves(null["masked"], "height")[1].any()
    batch.order = ["paired", "paired"]
    module.training_step(batch, 0).backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    assert module.eval().generate(batch).isfinite().all()


def test_without_a_mask_a_paired_batch_needs_other_clothes():
    module, batch = tiny_module("catvton", "model.mask=false"), random_batch(2)
    with pytest.raises(DataError, match=r"set data\.person_other=true"):
        module.condition(batch)
    batch.order = ["unpaired"] * 2  # there the photograph is such a picture
    assert module.condition(batch)["masked"].isfinite().all()


def test_captions_are_read_where_cross_attention_is_kept():
    module = randomised(tiny_module("catvton", "model.cross_attention=text")).eval()
    batch, other = random_batch(1), random_batch(1)
    other.person_caption = ["model is wearing a coat"]
    assert (module.generate(batch) - module.generate(other)).abs().max() > 1e-3
    assert "text" not in tiny_module("catvton").networks()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("model.unet.trained=false", "CatVTON has one network"),
        ("model.dream=-1", r"model\.dream=-1.0 must be at least 0"),
        ("model.trained=some", "some"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        load("model=catvton", "preset=tiny", settings)


def test_text_of_another_width_is_refused():
    with pytest.raises(ConfigError, match=r"model\.text\.width=48 and model\.unet\.context=32"):
        load("model=catvton", "preset=tiny", "model.cross_attention=text", "model.text.width=48")


def test_a_position_code_needs_halves_at_every_level():
    with pytest.raises(
        ConfigError, match=r"data\.size=\[24, 16\]: level 2 of the UNet has 3 lines"
    ):
        tiny_module("catvton", size=(24, 16))
