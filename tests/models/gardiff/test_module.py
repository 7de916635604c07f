"""GarDiff's own decisions: tokens, masks, losses, and starting from published weights in the hub's
layout.
"""

import json
import logging

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.batches import random_batch, tiny_module
from vton.config import ConfigError
from vton.diffusion.objective import Noised
from vton.errors import UserError
from vton.models.gardiff.building import widen
from vton.models.gardiff.config import AppearanceConfig
from vton.models.gardiff.losses import build_dists
from vton.models.gardiff.network import latent_tokens


def test_channel_tokens_are_max_pooled_channels_row_by_row():
    z = torch.arange(2 * 4 * 4 * 6, dtype=torch.float32).view(2, 4, 4, 6)
    tokens = latent_tokens(z, "channels")
    assert tokens.shape == (2, 4, 6)
    assert tokens[0, 0].tolist() == [7.0, 9.0, 11.0, 19.0, 21.0, 23.0]


def test_patch_tokens_keep_every_latent():
    z = torch.randn(2, 4, 4, 6)
    tokens = latent_tokens(z, "patches")
    assert tokens.shape == (2, 6, 16)
    assert torch.equal(tokens.flatten(1).sort().values, z.flatten(1).sort().values)


def test_mask_pyramid_has_one_level_for_each_resolution():
    network = tiny_module("gardiff").network
    mask = torch.zeros(1, 1, 16, 12)
    mask[:, :, 4:8] = 1
    pyramid = network.mask_pyramid(mask)
    assert {count: tuple(level.shape) for count, level in pyramid.items()} == {
        192: (1, 192, 1),
        48: (1, 48, 1),
        12: (1, 12, 1),
    }
    assert all(level.mean().item() == pytest.approx(0.25) for level in pyramid.values())


def test_garment_tokens_reach_the_picture_only_inside_the_mask_of_their_layer():
    """With one level that has attention, an empty mask cuts the garment tokens off altogether."""
    module = tiny_module("gardiff").eval()
    conditions = module.condition(random_batch(1))
    other = dict(conditions, f_clip=conditions["f_clip"] + 1, f_vae=conditions["f_vae"] + 1)
    z, t = torch.randn(1, *module.latent_shape()), torch.tensor([500])
    assert not torch.equal(
        module.denoiser.denoise(z, t, conditions, {}), module.denoiser.denoise(z, t, other, {})
    )
    empty = torch.zeros_like(conditions["mask"])
    one, two = (module.denoiser.denoise(z, t, c | {"mask": empty}, {}) for c in (conditions, other))
    assert torch.equal(one, two)


def test_clips_patches_alone_have_places_in_the_shop_picture():
    """Here latents are 20x10: their 50 patches, of the warped garment, are a square and one too."""
    module = tiny_module("gardiff", size=(80, 40))
    conditions = module.condition(random_batch(1, (80, 40)))
    assert (conditions["f_clip"].shape[1], conditions["f_vae"].shape[1]) == (17, 50)
    assert module.garment_places(17) == (4, 4)
    assert module.garment_places(50) is None
    for override in ("model.clip.fit=crop", "model.clip_tokens=pooled", "model.branches=[vae]"):
        assert tiny_module("gardiff", override).garment_places(17) is None


def test_null_tokens_are_the_projection_of_zeros_and_latents_stay():
    module = tiny_module("gardiff")
    conditions = module.condition(random_batch(2))
    null = module.denoiser.unconditional(conditions)
    assert torch.equal(null["x_w"], conditions["x_w"]) and torch.equal(
        null["x_a"], conditions["x_a"]
    )
    width = module.network.clip_mlp[1].in_features
    assert torch.equal(null["f_clip"][0, 3], module.network.clip_mlp(torch.zeros(width)))
    assert torch.equal(null["f_vae"][0], null["f_vae"][1])


def test_without_adapter_neither_vae_tokens_nor_mask_matter():
    module = tiny_module("gardiff", "model.adapter=false").eval()
    conditions = module.condition(random_batch(2))
    assert "f_vae" not in conditions and module.network.vae_mlp is None
    z, t = torch.randn(2, *module.latent_shape()), torch.tensor([1, 2])
    masked = dict(conditions, mask=torch.zeros_like(conditions["mask"]))
    assert torch.equal(
        module.denoiser.denoise(z, t, conditions, {}), module.denoiser.denoise(z, t, masked, {})
    )


@pytest.mark.parametrize(("t_max", "applied"), [(1000, True), (100, False)])
def test_appearance_loss_respects_its_timestep_limit(t_max, applied):
    module = tiny_module("gardiff", f"model.appearance.t_max={t_max}")
    batch = random_batch(2)
    z = module.codec.encode(batch.person)
    noised = Noised(z, torch.tensor([400, 600]), z, z, z)
    losses = module.extra_losses(batch, noised, z + 0.1)
    assert ("appearance" in losses) == applied


def test_the_appearance_loss_needs_some_signal():
    """At the last timestep of a rescaled schedule epsilon implies a clean picture of 1 / 0."""
    rescaled = (
        *("objective.prediction=epsilon", "objective.zero_terminal_snr=true"),
        "sampler.spacing=leading",
    )
    with pytest.raises(ConfigError, match=r"t_max=1000 takes the loss to the last timestep"):
        tiny_module("gardiff", *rescaled)
    tiny_module("gardiff", *rescaled, "model.appearance.t_max=999")


def test_appearance_loss_is_zero_for_the_truth_and_has_gradients():
    module = tiny_module("gardiff", "codec.channels=48", "objective.prediction=sample")
    batch = random_batch(2)
    z = module.codec.encode(batch.person)
    noised = Noised(z, torch.tensor([400, 600]), z, z, z)
    assert module.extra_losses(batch, noised, z)["appearance"] < 1e-6
    prediction = (z + 0.3).requires_grad_()
    module.extra_losses(batch, noised, prediction)["appearance"].backward()
    assert prediction.grad.abs().sum() > 0


def test_the_appearance_loss_says_what_it_runs_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), torch.device("meta"):
        build_dists(AppearanceConfig())
    assert "`make weights` fetches the real ones" in caplog.text
    with pytest.raises(
        ConfigError, match=r"model\.appearance\.dists_weights=.*vgg16-397923af\.pth"
    ):
        build_dists(AppearanceConfig(dists_weights=str(tmp_path)))


def test_widening_keeps_the_base_and_moves_masked_image_channels():
    nine = torch.randn(8, 9, 3, 3)
    wide = widen(nine, 4)
    assert wide.shape == (8, 12, 3, 3)
    assert torch.equal(wide[:, :4], nine[:, :4]) and torch.equal(wide[:, 8:], nine[:, 5:])
    assert wide[:, 4:8].abs().max() == 0
    four = widen(nine[:, :4], 4)
    assert torch.equal(four[:, :4], nine[:, :4]) and four[:, 4:].abs().max() == 0
    with pytest.raises(UserError, match="7 input channels"):
        widen(torch.randn(8, 7, 3, 3), 4)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Tiny random models in the hub's folder layout: a text-to-image base with UNet and VAE, and a
    CLIP tower.
    """
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
    )
    unet.save_pretrained(folder / "base" / "unet")
    config = folder / "base" / "unet" / "config.json"
    settings = json.loads(config.read_text())
    del settings["in_channels"]  # 4 by default
    config.write_text(json.dumps(settings))
    AutoencoderKL(
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ).save_pretrained(folder / "base" / "vae")
    shape = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModelWithProjection(shape).save_pretrained(folder / "clip")
    return folder


def from_hub(hub, *overrides: str):
    return tiny_module(
        "gardiff",
        "codec.name=kl",
        f"codec.pretrained={hub}/base",
        f"model.unet.pretrained={hub}/base",
        "model.unet.context=24",
        f"model.clip.pretrained={hub}/clip",
        "model.clip.trained=false",
        *overrides,
    )


def test_published_weights_load_and_the_base_is_unchanged(hub):
    module = from_hub(hub)
    base = UNet2DConditionModel.from_pretrained(hub / "base", subfolder="unet")
    own = module.network.unet.state_dict()
    assert torch.equal(own["conv_in.weight"][:, :4], base.conv_in.weight)
    assert own["conv_in.weight"][:, 4:].abs().max() == 0
    assert all(
        torch.equal(own[key], value)
        for key, value in base.state_dict().items()
        if key != "conv_in.weight"
    )
    assert module.codec.factor == 4 and module.codec.vae.config.scaling_factor == 0.18215
    assert "clip" in module.frozen and not any(
        p.requires_grad for p in module.frozen["clip"].parameters()
    )
    assert module.generate(random_batch(1)).shape == (1, 3, 64, 48)
    module.training_step(random_batch(2), 0).backward()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.unet.context=48", "context width 24"),
        ("model.unet.pretrained=/nowhere", "model.unet.pretrained=/nowhere"),
        ("model.clip.pretrained=/nowhere", "model.clip.pretrained=/nowhere"),
        ("codec.pretrained=/nowhere", "codec.pretrained=/nowhere"),
    ],
)
def test_wrong_weights_are_one_line(hub, override, expected):
    with pytest.raises(UserError) as error:
        from_hub(hub, override)
    assert expected in str(error.value) and "\n" not in str(error.value)
