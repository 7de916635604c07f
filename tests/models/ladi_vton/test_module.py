"""LaDI-VTON behind the contract: prompts, pose, dropout, stages, EMASC through the codecs."""

from dataclasses import replace

import pytest
import torch

from tests.batches import random_batch, randomised, tiny_module
from tests.running import assert_same_training, copied_after, trained
from vton.config import CodecConfig, ConfigError, load
from vton.models.codecs import IdentityCodec, KLCodec, build_codec, small_autoencoder
from vton.models.ladi_vton.emasc import EMASC, decode_with_skips, skip_channels, skip_features
from vton.models.ladi_vton.module import independent
from vton.models.ladi_vton.pose import pose_maps
from vton.models.ladi_vton.words import put_words
from vton.weights.pretrained import read_checkpoint


def tiny(*overrides: str):
    return tiny_module("ladi_vton", *overrides)


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    config = CodecConfig(name="kl", widths=(8, 12, 16), groups=4, layers=1)
    return KLCodec(small_autoencoder(config)).eval().requires_grad_(False)


# ---- the garment as words ----


def test_words_take_the_places_from_the_first_placeholder_on():
    ids = torch.tensor([[7, 9, 9, 1, 0], [7, 1, 0, 0, 0], [9, 9, 1, 0, 0]])
    embedded, words = torch.zeros(3, 5, 2), torch.arange(1.0, 13).view(3, 2, 2)
    found = put_words(embedded, ids, words, placeholder=9)
    assert found[0, 1:3].tolist() == words[0].tolist() and found[2, :2].tolist() == [
        [9, 10],
        [11, 12],
    ]
    assert found[1].abs().max() == 0  # a row without placeholders ignores its words
    assert found[0, [0, 3, 4]].abs().max() == found[2, 2:].abs().max() == 0


def test_the_prompt_of_every_category_holds_all_words():
    module, batch = tiny(), random_batch(3)
    batch.category = ["upper_body", "lower_body", "dresses"]
    text = module.part("text")
    ids = text.ids(["a photo of a model wearing a dress $$$$"])
    assert (ids == text.placeholder).sum() == 4 and ids[0, -1] == 0
    states = module.eval().text_states(batch)
    assert states.shape == (3, 56, 128)
    other = replace(batch, garment=batch.garment.flip(0))
    assert not torch.equal(states, module.text_states(other))
    with pytest.raises(ConfigError, match=r"words=40 do not fit.*56 tokens"):
        tiny("model.adapter.words=40")


def test_dropout_of_the_adapter_depends_on_the_place_in_the_stream_alone():
    module, batch = tiny("model.adapter.dropout=0.5").train(), random_batch(2)
    words = module.words(batch)
    assert torch.equal(words, module.words(batch))
    torch.testing.assert_close(words[1], module.words(random_batch(1, first=1))[0])
    assert not torch.equal(words, module.eval().words(batch))
    assert torch.equal(module.words(batch), module.words(batch))


def test_a_frozen_adapter_drops_nothing():
    frozen = ("model.adapter.dropout=0.5", "model.adapter.trained=false")
    module, batch = tiny(*frozen).train(), random_batch(2)
    assert torch.equal(module.words(batch), module.eval().words(batch))


@pytest.mark.parametrize("prompt", ["caption", "none"])
def test_other_prompts_need_neither_tower_nor_adapter(prompt):
    module, batch = tiny(f"model.prompt={prompt}").eval(), random_batch(2)
    assert not {"clip", "adapter"} & set(module.networks())
    before = module.text_states(batch)
    batch.garment_caption = ["something else"] * 2
    assert torch.equal(before, module.text_states(batch)) == (prompt == "none")


# ---- pose ----


def test_a_joint_between_pixels_peaks_at_one_and_a_missing_one_is_nothing():
    joints = torch.tensor([[[10.5, 20.5], [3.0, 3.0], [-200.0, 5.0]]])
    maps = pose_maps(joints, torch.tensor([[True, False, True]]), (40, 30), sigma=4.0)[0]
    assert maps[0].max() == pytest.approx(1, abs=1e-6) and maps[1].abs().max() == 0
    assert maps[0, 20, 10] == maps[0, 21, 11] == maps[0].max()
    assert maps[0, 24, 10] / maps[0].max() == pytest.approx(
        torch.exp(torch.tensor(-(3.5**2 - 0.5**2) / 16)).item(), abs=1e-5
    )
    assert maps[2].max() < 1e-6


def test_without_pose_its_channels_are_zeros():
    conditions = tiny("model.pose_input=false").condition(random_batch(2))
    assert conditions["pose"].abs().max() == 0 and conditions["pose"].shape == (2, 18, 16, 12)


# ---- dropout and guidance ----


def test_parts_are_dropped_independently():
    u = (torch.arange(100_000) + 0.5) / 100_000
    coins = independent(u, 0.2, ["a", "b", "c"])
    for coin in coins.values():
        assert coin.float().mean() == pytest.approx(0.2, abs=1e-3)
    both = (coins["a"] & coins["b"]).float().mean(), (coins["b"] & coins["c"]).float().mean()
    assert both == pytest.approx((0.04, 0.04), abs=1e-3)
    assert independent(u, 0.0, ["a", "b"])["b"].sum() == 0
    assert independent(u, 1.0, ["a", "b"])["b"].all()
    assert not independent(torch.ones(1), 0.2, ["a", "b"])["b"].any()


def test_guidance_drops_text_garment_and_pose_and_keeps_the_rest():
    module = tiny().eval()
    conditions = module.condition(random_batch(2))
    null = module.denoiser.unconditional(conditions)
    for name in ("mask", "masked"):
        assert null[name] is conditions[name]
    assert null["garment"].abs().max() == null["pose"].abs().max() == 0
    assert torch.equal(null["text"], conditions["empty_text"])


def test_the_garment_leaves_the_last_steps():
    from vton.diffusion.denoiser import Step

    module = tiny("model.garment_rate=0.5")
    conditions = module.condition(random_batch(1))
    t = torch.tensor([5])

    def seen(index: int) -> bool:
        features = module.denoiser.garment_features(conditions, t, Step(index, 4))
        return features["garment"].abs().max().item() > 0

    assert [seen(index) for index in range(4)] == [True, True, False, False]
    assert module.denoiser.garment_features(conditions, t)["garment"].abs().max() > 0


def test_without_garment_its_channels_are_absent():
    module = tiny("model.garment_input=none")
    assert module.network.unet.config.in_channels == tiny().network.unet.config.in_channels - 16
    assert "garment" not in module.condition(random_batch(1))


# ---- latents ----


def test_latents_are_drawn_for_each_sample_and_purpose(autoencoder):
    from vton import registry

    config = load("model=ladi_vton", "preset=tiny", "data.size=[64,48]", "codec.name=kl")
    module = registry.module_class("ladi_vton")(config, autoencoder)
    batch = random_batch(3)
    z = module.latents_of(batch)
    assert torch.equal(z, module.latents_of(batch))
    torch.testing.assert_close(z[1:2], module.latents_of(random_batch(1, first=1)))
    assert (z - autoencoder.encode(batch.person)).abs().max() > 0.1
    same = replace(batch, agnostic=batch.person)
    assert not torch.equal(z, module.drawn("agnostic", same))
    config.model.posterior = "mode"
    torch.testing.assert_close(module.latents_of(batch), autoencoder.encode(batch.person))


# ---- EMASC ----


def test_skips_add_nothing_where_the_picture_is_painted(autoencoder):
    batch = random_batch(2)
    emasc = randomised(EMASC(skip_channels(autoencoder)), 0.3)
    features = skip_features(autoencoder, batch.agnostic)
    assert [tuple(f.shape[1:]) for f in features] == [(8, 64, 48)] * 2 + [(8, 32, 24), (12, 16, 12)]
    everything = emasc(features, torch.ones_like(batch.agnostic_mask))
    assert all(skip.abs().max() == 0 for skip in everything)
    z = autoencoder.encode(batch.person)
    torch.testing.assert_close(decode_with_skips(autoencoder, z, everything), autoencoder.decode(z))
    some = decode_with_skips(autoencoder, z, emasc(features, batch.agnostic_mask))
    assert (some - autoencoder.decode(z)).abs().max() > 1e-2


def test_a_fresh_linear_variant_changes_nothing(autoencoder):
    batch = random_batch(1)
    emasc = EMASC(skip_channels(autoencoder), "linear")
    skips = emasc(skip_features(autoencoder, batch.agnostic), batch.agnostic_mask)
    z = autoencoder.encode(batch.person)
    torch.testing.assert_close(decode_with_skips(autoencoder, z, skips), autoencoder.decode(z))


def test_the_linear_codec_has_one_skip_and_learns_what_it_lost():
    module, batch = tiny(), random_batch(4)
    assert len(module.emasc.conv) == 1
    kept = 1 - batch.agnostic_mask
    z = module.codec.encode(batch.person)
    before = ((module.codec.decode(z) - batch.person) * kept).square().mean()
    optimizer = torch.optim.Adam(module.emasc.parameters(), lr=3e-3)
    for _ in range(60):
        loss = module.emasc_losses(batch, z)["emasc"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = ((module.picture(z, batch) - batch.person) * kept).square().mean()
    assert after < 0.7 * before


def test_pixels_have_nothing_to_lead_around():
    with pytest.raises(ConfigError, match=r"kind=none, or codec\.name=kl"):
        tiny("codec.name=identity")
    module = tiny("codec.name=identity", "model.emasc.kind=none")
    assert isinstance(module.codec, IdentityCodec) and "emasc" not in module.networks()


# ---- stages ----


STAGED = ("model.emasc_steps=2", "model.adapter_steps=3", "model.text.trained=false")


@pytest.mark.parametrize(
    ("step", "stage", "learning"),
    [
        (0, "emasc", {"emasc"}),
        (1, "emasc", {"emasc"}),
        (2, "adapter", {"adapter"}),
        (4, "adapter", {"adapter"}),
        (5, "try-on", {"network", "adapter"}),
        (9, "try-on", {"network", "adapter"}),
    ],
)
def test_each_stage_teaches_its_own_networks(step, stage, learning, monkeypatch):
    module = tiny(*STAGED, "model.clip.trained=false")
    monkeypatch.setattr(type(module), "global_step", step, raising=False)
    monkeypatch.setattr(module, "_trainer", object())
    assert module.stage == stage
    randomised(module).train()
    module.training_step(random_batch(2), 0).backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)  # DDP waits
    module.on_after_backward()
    moved = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None}
    assert moved == learning
    assert ("diffusion" in module.last_losses) == (stage != "emasc")


def test_in_its_own_stage_the_adapter_sees_a_base_without_garment_and_pose(monkeypatch):
    module, batch = tiny(*STAGED), random_batch(2)
    monkeypatch.setattr(type(module), "stage", "adapter")
    conditions = module.training_condition(batch, torch.zeros(2))  # would drop everything
    assert conditions["garment"].abs().max() == conditions["pose"].abs().max() == 0
    assert not torch.equal(conditions["text"], conditions["empty_text"])


def test_every_stage_warms_up_again():
    module = tiny(*STAGED, "train.warmup_steps=4", "train.schedule=constant", "train.steps=20")
    rates = [module.rate_at(step) for step in range(10)]
    assert rates[:2] == [0.25, 0.5]
    assert rates[2:5] == [pytest.approx(0.25 * r) for r in (0.75, 2, 3)]
    assert rates[5:10] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_stage_without_anything_to_train_is_left_out():
    module = tiny(*STAGED, "model.emasc.kind=none", "model.adapter.trained=false")
    assert module.stage_starts == {"emasc": 0, "adapter": 0, "try-on": 0}
    assert module.stage_at(0) == "try-on"


def test_from_scratch_everything_learns_at_once():
    module = tiny()
    assert module.stage_at(0) == "try-on"
    assert module.learning() == {"network", "text", "clip", "adapter", "emasc"}


def test_the_codec_of_a_run_may_be_an_autoencoder():
    config = load("model=ladi_vton", "preset=small")
    assert config.codec.name == "kl" and config.model.emasc.kind == "nonlinear"
    assert isinstance(build_codec(replace(config.codec, widths=(8, 8), groups=4)), KLCodec)


def test_a_training_resumed_inside_a_stage_equals_one_that_was_not(tmp_path, rendered):
    """Through the real command: EMASC, adapter and try-on in one folder, stopped in the second."""
    settings = (*STAGED, "model.clip.trained=false", "train.steps=7", "train.checkpoint_every=1")
    settings += ("train.picture_every=0",)
    with copied_after(3, tmp_path / "whole", tmp_path / "parts"):
        whole = trained("ladi_vton", tmp_path, rendered, "whole", *settings)
    between = read_checkpoint(tmp_path / "parts" / "checkpoints" / "last.ckpt")["state_dict"]
    parts = trained("ladi_vton", tmp_path, rendered, "parts", *settings)
    assert_same_training(whole, parts, 7)
    after = read_checkpoint(whole.last)["state_dict"]
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], between[name])}
    assert changed == {"network", "adapter"}  # EMASC had learned before
