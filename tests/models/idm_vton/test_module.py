"""From a batch to the networks' tensors: captions, garments once each, what is trained."""

import pytest
import torch

from tests.batches import random_batch, tiny_module
from tests.models.idm_vton.test_network import Passes
from vton.config import ConfigError, load
from vton.data.sample import DataError
from vton.models.idm_vton.module import size_ids

FROZEN = (
    "model.garment_unet.trained=false",
    "model.clip.trained=false",
    "model.text.trained=false",
    "model.text_2.trained=false",
)


@pytest.fixture(scope="module")
def module():
    return tiny_module("idm_vton").eval()


def same_garment_batch(count: int):
    batch = random_batch(count)
    batch.garment = batch.garment[:1].expand_as(batch.garment).clone()
    batch.garment_id = batch.garment_id[:1] * len(batch)
    return batch


def trained_names(module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_garment_and_captions_are_read_once_per_garment(module, monkeypatch):
    seen = {"clip": [], "codec": [], "text": []}
    clip, encode, text = module.clip.tower.forward, module.codec.encode, module.text.forward
    monkeypatch.setattr(
        module.clip.tower, "forward", lambda x, **k: (seen["clip"].append(len(x)), clip(x, **k))[1]
    )
    monkeypatch.setattr(
        module.codec, "encode", lambda x: (seen["codec"].append(len(x)), encode(x))[1]
    )
    monkeypatch.setattr(
        module.text, "forward", lambda x: (seen["text"].append(list(x)), text(x))[1]
    )
    batch = same_garment_batch(4)
    batch.person_caption = [
        "model is wearing a",
        "model is wearing b",
        "model is wearing a",
        "model is wearing a",
    ]
    with torch.no_grad():
        conditions = module.condition(batch)
    assert conditions["garment"].tolist() == [0, 0, 0, 0]
    assert seen["clip"] == [1] and sorted(seen["codec"]) == [1, 4, 4]
    assert seen["text"] == [["model is wearing a", "model is wearing b", "a photo of a shirt"]]
    assert torch.equal(conditions["text"][0], conditions["text"][2])
    assert not torch.equal(conditions["text"][0], conditions["text"][1])
    assert not torch.equal(conditions["text"][0], conditions["garment_text"][0])


def test_one_garment_on_four_persons_costs_30_garment_passes(module):
    module.config.sampler.steps, module.config.sampler.guidance = 30, 2.0
    module.config.sampler.solver, module.config.sampler.spacing = "ddpm", "leading"
    tryon, garments = Passes(module.tryon.unet), Passes(module.garment_net)
    module.generate(same_garment_batch(4))
    tryon.handle.remove(), garments.handle.remove()
    assert (garments.samples, tryon.samples) == (30, 4 * 60)


def test_one_picture_with_two_captions_is_two_garments(module):
    batch = same_garment_batch(3)
    batch.garment_caption = ["a photo of a shirt", "a photo of a coat", "a photo of a shirt"]
    with torch.no_grad():
        conditions = module.condition(batch)
    assert conditions["garment"].tolist() == [0, 1, 0]


def test_captions_pool_the_second_encoder_and_concatenate_both(module):
    with torch.no_grad():
        tokens, pooled = module.read_captions(["a", "b", "a"])
        first, none = module.text(["a"])
        second, summary = module.text_2(["a"])
    assert none is None and tokens.shape == (3, 64, 128)
    torch.testing.assert_close(tokens[2], torch.cat([first, second], 2)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled[2], summary[0], atol=1e-5, rtol=0)


def test_guidance_compares_with_negative_prompt_empty_picture_and_no_garment(module):
    with torch.no_grad():
        conditions = module.condition(random_batch(2))
        null = module.denoiser.unconditional(conditions)
        text, pooled = module.read_captions(
            ["monochrome, lowres, bad anatomy, worst quality, low quality"]
        )
        empty = module.tryon.image_tokens(module.clip.read(torch.zeros(1, 3, 64, 64)))
    changed = {name for name in conditions if not torch.equal(conditions[name], null[name])}
    assert changed == {"text", "pooled", "image_tokens", "garment"}
    assert torch.equal(null["text"], text.expand(2, -1, -1)) and torch.equal(
        null["pooled"], pooled.expand(2, -1)
    )
    assert torch.equal(null["image_tokens"], empty.expand(2, -1, -1)) and null[
        "garment"
    ].tolist() == [-1, -1]


def test_clip_sees_the_middle_of_a_tall_picture(module):
    garment = torch.zeros(1, 3, 64, 48)
    edges, middle = garment.clone(), garment.clone()
    edges[:, :, :6], middle[:, :, 30] = 1, 1
    assert torch.equal(module.clip.pixels(garment), module.clip.pixels(edges))
    assert not torch.equal(module.clip.pixels(garment), module.clip.pixels(middle))


def test_size_ids_are_true_or_as_the_released_script_trains():
    person = torch.zeros(2, 3, 64, 48)
    assert size_ids(person).tolist() == [[64, 48, 0, 0, 64, 48]] * 2
    assert size_ids(person, square=True).tolist() == [[64, 64, 0, 0, 64, 64]] * 2
    module = tiny_module("idm_vton", "model.training_size_ids=square", "model.condition_dropout=0")
    batch = random_batch(1)
    with torch.no_grad():
        assert module.training_condition(batch, torch.zeros(1))["size_ids"].tolist() == [
            [64, 64, 0, 0, 64, 64]
        ]
        assert module.condition(batch)["size_ids"].tolist() == [[64, 48, 0, 0, 64, 48]]


def test_the_paper_trains_tryon_net_alone():
    module = tiny_module("idm_vton", *FROZEN)
    names = trained_names(module)
    assert names == {f"tryon.{name}" for name, _ in module.tryon.named_parameters()}
    assert set(module.networks()) == {"tryon", "codec", "garment_net", "clip", "text", "text_2"}
    module.training_step(random_batch(2), 0).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_ip_adapter_may_be_frozen():
    prompt = ("model.image_prompt.trained=false", "model.resampler.trained=false")
    module = tiny_module("idm_vton", *FROZEN, *prompt)
    names = trained_names(module)
    assert "tryon.unet.conv_in.weight" in names
    assert not any("encoder_hid_proj" in name or ".processor." in name for name in names)


def test_customisation_trains_the_up_blocks_attention():
    names = trained_names(tiny_module("idm_vton", *FROZEN, "model.trained_part=up_attention"))
    assert all(name.startswith("tryon.unet.up_blocks.") and ".attn" in name for name in names)
    assert any(".attn1." in name for name in names)
    assert any(".attn2.processor.to_k_ip" in name for name in names)


def test_a_fixed_garment_timestep_is_another_picture():
    exact = tiny_module("idm_vton").eval()
    fixed = tiny_module("idm_vton", "model.garment_timestep=0").eval()
    fixed.load_state_dict(exact.state_dict())
    batch = random_batch(2)
    garments = Passes(fixed.garment_net)
    picture = fixed.generate(batch)
    garments.handle.remove()
    assert garments.samples == 2  # two garments, once each, for all steps
    assert not torch.equal(picture, exact.generate(batch))


def test_a_batch_without_densepose_says_what_to_set(module):
    batch = random_batch(1)
    batch.densepose = None
    with pytest.raises(DataError, match=r"data\.densepose=true"):
        module.condition(batch)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.text.width=32", "model.unet.context=128"),
        ("model.unet.pooled=32", "model.text_2.projection=64"),
        ("model.text.length=32", "model.text_2.length=64"),
        ("model.garment_unet.depth=[1,1,2]", "transformer blocks"),
    ],
)
def test_settings_that_do_not_fit_together(override, message):
    with pytest.raises(ConfigError, match=message):
        load("model=idm_vton", "preset=tiny", override)
