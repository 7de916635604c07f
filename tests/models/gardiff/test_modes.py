"""What distinguishes GarDiff's modes from the paper's, and the paper's ablation switches."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from scipy import ndimage

from tests.batches import random_batch, random_sample, randomised, tiny_module
from vton.config import ConfigError, load
from vton.data.sample import TryOnBatch
from vton.diffusion.denoiser import Step
from vton.diffusion.objective import Noised
from vton.diffusion.sampling import sample
from vton.models.gardiff.building import widen
from vton.models.gardiff.network import GarmentFocusedProcessor
from vton.models.gardiff.released import clip_pixels, composite, feathered, paste_back

# 64x48 in latents of 16x12: a latent channel is one token of 8x6 values.
SMALL = ("model.unet.context=48", "model.clip.projection=48", "model.text.width=48")
MODES = ("release", "legacy12", "decoupled")


def module_of(mode: str, *overrides: str):
    return tiny_module("gardiff", f"model.mode={mode}", *SMALL, *overrides)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_what_it_says_and_samples(mode):
    module = randomised(module_of(mode, "model.condition_dropout=0.5"))
    batch = random_batch(4)
    module.training_step(batch, 0).backward()
    trained = {id(p) for group in module.trained_parameters() for p in group["params"]}
    for name, parameter in module.named_parameters():
        moved = parameter.grad is not None and parameter.grad.abs().max() > 0
        assert moved == (id(parameter) in trained), name
    module.eval()
    assert module.generate(batch[:2]).shape == (2, 3, 64, 48)
    conditions = module.condition(batch)
    null = module.denoiser.unconditional(conditions)
    assert all(
        len(tensor) == 4 and null[name].shape == tensor.shape for name, tensor in conditions.items()
    )
    z, t = torch.randn(4, *module.latent_shape()), torch.full((4,), 700)
    difference = module.denoiser.denoise(z, t, conditions, {}) - module.denoiser.denoise(
        z, t, null, {}
    )
    assert difference.abs().max() > 1e-4  # the garment is really dropped


def test_release_tokens_are_begin_clip_and_one_per_latent_channel():
    module = module_of("release").eval()
    batch, other = random_batch(2), random_batch(2, first=5)
    tokens = module.condition(batch)["tokens"]
    assert tokens.shape == (2, 2 + module.codec.channels, 48)
    assert torch.equal(tokens[:, :1], module.network.begin.expand(2, -1, -1))
    batch.garment = other.garment
    again = module.condition(batch)["tokens"]
    assert not torch.equal(tokens[:, 1], again[:, 1]) and torch.equal(tokens[:, 2:], again[:, 2:])
    z = module.codec.encode(batch.warped_garment)
    assert torch.equal(tokens[0, 2, 0], z[0, 0, :2, :2].max())


def test_the_begin_token_does_not_depend_on_the_caption_behind_it():
    text = module_of("decoupled").eval().part("text")
    ids = text.tokenizer(
        ["", "x"], padding="max_length", max_length=6, return_tensors="pt"
    ).input_ids
    ids[1, 1:], ids[1, 0] = 70, ids[0, 0]
    tokens = text.model(ids).last_hidden_state
    torch.testing.assert_close(tokens[:, :1], text.begin().expand(2, -1, -1), atol=5e-6, rtol=0)


def test_composite_lays_the_warp_with_its_background_into_the_mask():
    batch = random_batch(1)
    both = composite(batch.person, batch.warped_garment, batch.agnostic_mask)
    inside = batch.agnostic_mask.bool().expand(-1, 3, -1, -1)
    assert torch.equal(both[inside], batch.warped_garment[inside])
    assert torch.equal(both[~inside], batch.person[~inside])


def test_the_released_rescale_leaves_an_almost_black_picture():
    encoder = module_of("release").part("clip")
    batch = random_batch(2)
    single = clip_pixels(encoder, batch.garment, "single")
    twice = clip_pixels(encoder, batch.garment, "release")
    assert twice.max() < -1.4 and single.max() > 0.5
    single = single * encoder.normalise.std + encoder.normalise.mean
    twice = twice * encoder.normalise.std + encoder.normalise.mean
    torch.testing.assert_close(single, 255 * twice, atol=1e-4, rtol=0)


def test_legacy_reads_unscaled_latents_person_first():
    module = module_of("legacy12").eval()
    conditions = module.condition(random_batch(1))
    z = torch.randn(1, *module.latent_shape())
    stacked = module.network.stacked(z, conditions)
    assert torch.equal(stacked, torch.cat([z, conditions["x_a"], conditions["x_w"]], 1))
    half = module.network.stacked(z, module.denoiser.unconditional(conditions))
    channels = module.codec.channels
    assert (
        torch.equal(half[:, : 2 * channels], stacked[:, : 2 * channels])
        and not half[:, 2 * channels :].any()
    )


def test_a_scaled_codec_hands_out_latents_with_and_without_its_factor():
    module = module_of(
        "legacy12",
        "codec.name=kl",
        "codec.pretrained=''",
        "codec.channels=4",
        "codec.widths=[8,8,8]",
        "codec.groups=4",
    )
    conditions = module.condition(random_batch(1))
    posterior = module.codec.vae.encode(random_batch(1).warped_garment).latent_dist
    torch.testing.assert_close(conditions["x_w"], posterior.mode())
    torch.testing.assert_close(
        conditions["blended"], posterior.mode() * module.codec.vae.config.scaling_factor
    )


@pytest.mark.parametrize(("blend_steps", "blended"), [(0, []), (2, [0, 1]), (18, [0, 1, 2])])
def test_legacy_blends_clean_latents_after_its_first_steps(blend_steps, blended):
    module = module_of("legacy12", f"model.blend_steps={blend_steps}", "sampler.steps=3").eval()
    conditions, found = module.condition(random_batch(1)), []
    inside = conditions["mask"].bool().expand_as(conditions["blended"])

    def watch(step: Step, prediction, z):
        if torch.equal(z[inside], conditions["blended"][inside]):
            found.append(step.index)

    start = torch.randn(1, *module.latent_shape())
    sample(
        module.denoiser, conditions, lambda: start, module.config.sampler, module.objective, watch
    )
    assert inside.any() and not inside.all() and found == blended


def test_feather_is_its_closed_form_also_for_empty_masks():
    mask = torch.zeros(2, 1, 90, 70)
    mask[0, :, 40:47, 30:33] = 1
    mask[0, :, 5, 5] = 1
    distance = ndimage.distance_transform_cdt(mask[0, 0].numpy() == 0, "chessboard")
    weight = feathered(mask)
    assert torch.equal(weight[0, 0], torch.as_tensor(256 - 8 * distance).clamp(0, 255).float())
    assert not weight[1].any()


def test_pasting_back_keeps_the_person_outside_the_feather():
    module = module_of("release", "model.paste_back=true").eval()
    mask = torch.zeros(1, 64, 48)
    mask[:, 2:6, 2:6] = 1
    record = random_sample(0)
    record.agnostic_mask, record.warped_mask = mask, mask * record.warped_mask
    record.agnostic = record.person * (1 - mask)
    batch = TryOnBatch.collate([record.check()])
    picture = module.generate(batch)
    weight = feathered(batch.agnostic_mask)
    kept = (weight == 0).expand_as(picture)
    assert kept.any() and (picture - batch.person)[kept].abs().max() <= 1.001 / 255
    with torch.no_grad():
        module.config.model.paste_back = False
        generated = ((module.generate(batch) + 1) * 127.5).round()
    whole = (weight == 255).expand_as(picture)
    assert torch.equal(((picture + 1) * 127.5).round()[whole], generated[whole])
    halves = torch.full((1, 3, 64, 48), 201.0), torch.full((1, 3, 64, 48), 100.0)
    expected = (201 * weight / 255 + 100 * (1 - weight / 255)).floor().expand(-1, 3, -1, -1)
    assert (paste_back(*halves, batch.agnostic_mask) - expected).abs().max() <= 1


def test_decoupled_guidance_uses_the_head_of_zeros_and_the_empty_caption():
    module = module_of("decoupled").eval()
    conditions = module.condition(random_batch(2))
    null = module.denoiser.unconditional(conditions)
    head = module.network.image_proj
    assert torch.equal(null["garment"][1], head(torch.zeros(1, 48))[0]) and null["garment"].any()
    assert torch.equal(null["text"], conditions["negative_text"])


def test_decoupled_scale_zero_is_text_alone():
    module = randomised(module_of("decoupled")).eval()
    conditions = module.condition(random_batch(1))
    z, t = torch.randn(1, *module.latent_shape()), torch.tensor([300])
    module.network.set_scale(0.0)
    other = conditions | {"garment": conditions["garment"] + 1}
    assert torch.equal(
        module.denoiser.denoise(z, t, conditions, {}), module.denoiser.denoise(z, t, other, {})
    )
    module.network.set_scale(1.0)
    assert not torch.equal(
        module.denoiser.denoise(z, t, conditions, {}), module.denoiser.denoise(z, t, other, {})
    )


@pytest.mark.parametrize("branch", ["clip", "vae"])
def test_a_single_branch_trains_without_the_other(branch):
    """It reads its tokens through the layer's own keys and values: nothing is left over without a
    gradient.
    """
    module = randomised(tiny_module("gardiff", f"model.branches=[{branch}]"))
    module.training_step(random_batch(2), 0).backward()
    trained = [p for group in module.trained_parameters() for p in group["params"]]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    assert not any("adapter" in name for name in module.state_dict())
    assert (module.network.clip_mlp is None) == (branch == "vae") == (not hasattr(module, "clip"))
    conditions = module.eval().condition(random_batch(1))
    assert ("f_clip" in conditions, "f_vae" in conditions) == (branch == "clip", branch == "vae")
    z, t = torch.randn(1, *module.latent_shape()), torch.tensor([500])
    other = conditions | {f"f_{branch}": conditions[f"f_{branch}"] + 1}
    assert not torch.equal(
        module.denoiser.denoise(z, t, conditions, {}), module.denoiser.denoise(z, t, other, {})
    )
    empty = {"mask": torch.zeros_like(conditions["mask"])}  # the mask acts on a single branch too
    assert torch.equal(
        module.denoiser.denoise(z, t, conditions | empty, {}),
        module.denoiser.denoise(z, t, other | empty, {}),
    )


def test_without_masked_branches_the_mask_does_not_matter():
    module = tiny_module("gardiff", "model.mask_branches=[]").eval()
    conditions = module.condition(random_batch(1))
    z, t = torch.randn(1, *module.latent_shape()), torch.tensor([500])
    empty = conditions | {"mask": torch.zeros_like(conditions["mask"])}
    assert torch.equal(
        module.denoiser.denoise(z, t, conditions, {}), module.denoiser.denoise(z, t, empty, {})
    )


@pytest.mark.parametrize(
    ("switch", "spatial", "high_frequency"),
    [
        ("spatial=false", False, True),
        ("high_frequency=false", True, False),
        ("weight=0", False, False),
    ],
)
def test_each_term_of_the_appearance_loss_can_be_left_out(switch, spatial, high_frequency):
    module = tiny_module("gardiff", f"model.appearance.{switch}", "objective.prediction=sample")
    assert ("dists" in module.frozen) == spatial
    batch, t = random_batch(2), torch.tensor([100, 200])
    z = module.codec.encode(batch.person)
    noised = Noised(z, t, z, z, z)
    losses = module.extra_losses(batch, noised, z + 0.3)
    assert ("appearance" in losses) == (spatial or high_frequency)
    if losses:
        module.config.model.appearance.spatial = module.config.model.appearance.high_frequency = (
            False
        )
        module.frozen.pop("dists", None)
        assert module.extra_losses(batch, noised, z + 0.3)["appearance"] == 0 < losses["appearance"]


def test_masked_image_channels_go_to_the_person_of_the_mode():
    nine = torch.randn(8, 9, 3, 3)
    release, july = widen(nine, 4, groups=2, person=1), widen(nine, 4, groups=3, person=1)
    assert torch.equal(release, torch.cat([nine[:, :4], nine[:, 5:]], 1))
    assert torch.equal(july[:, :8], release) and not july[:, 8:].any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.mode=released",), "model.mode"),
        (("model.branches=[]",), r"model\.branches=\[\] must name"),
        (("model.branches=[clip,clip]",), "each once"),
        (
            ("model.mode=release", "model.clip.projection=64"),
            r"model\.clip\.projection=64 must equal",
        ),
        (("model.mode=decoupled", "model.text.width=64"), r"model\.text\.width=64 must equal"),
        (("model.mode=decoupled", "model.text.trained=false"), "needs a text encoder"),
        (("model.decoupled.tokens=0",), r"model\.decoupled\.tokens=0"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as error:
        load("model=gardiff", "preset=tiny", *overrides)
    assert "\n" not in str(error.value)


def test_the_picture_size_is_bound_to_the_width_of_tokens():
    with pytest.raises(ConfigError, match=r"one token of \(h / 2\)\(w / 2\) = 48 values"):
        tiny_module("gardiff", "model.mode=release")


def test_a_mode_brings_its_published_setting_and_leaves_the_paper_alone():
    paper = load("model=gardiff", "preset=paper")
    assert load("model=gardiff", "preset=paper", "model.mode=paper") == paper
    release = load("model=gardiff", "preset=paper", "model.mode=release")
    assert release.model.unet.context == release.model.clip.projection == 768
    assert "stable-diffusion-v1-5" in release.model.unet.pretrained
    sampler = release.sampler
    assert (sampler.solver, sampler.steps, sampler.guidance) == ("ddim", 50, 1.0)
    sampler = load("model=gardiff", "preset=paper", "model.mode=legacy12").sampler
    assert (sampler.solver, sampler.spacing, sampler.steps) == ("unipc", "linspace", 20)
    tiny = load("model=gardiff", "preset=tiny", "model.mode=release")
    assert tiny.model.unet.context == 192 and not tiny.model.text.pretrained


def test_a_row_constant_additive_mask_changes_nothing():
    """Why the garment mask multiplies after the softmax."""
    layer = Attention(16, 12, heads=2, dim_head=8)
    layer.set_processor(GarmentFocusedProcessor(layer))
    hidden, tokens = torch.randn(1, 6, 16), torch.randn(1, 5, 12)
    rows = torch.randn(1, 6, 1).expand(-1, -1, 5).contiguous()
    torch.testing.assert_close(layer(hidden, tokens), layer(hidden, tokens, attention_mask=rows))
