"""Codecs: reconstruction, shapes, gradients, save and load."""

from dataclasses import replace

import pytest
import torch

from vton.config import CodecConfig, ConfigError
from vton.errors import UserError
from vton.models.codecs import (
    IdentityCodec,
    LinearCodec,
    build_codec,
    fit_codec,
    latent_mask,
    load_codec,
    small_autoencoder,
)
from vton.models.ladi_vton.emasc import decode_with_skips
from vton.models.ldm import SD_SCALING, for_stable_diffusion
from vton.runs.codec import reconstruction_psnr as psnr


def smooth_images(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, 32, 24) band-limited pictures in [-1, 1]."""
    coarse = torch.rand(count, 3, 5, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (32, 24), mode="bicubic").clamp(-1, 1)


@pytest.fixture
def linear() -> LinearCodec:
    return LinearCodec(4, 12).fit(smooth_images(32).split(8))


def test_linear_codec_is_the_best_of_its_size(linear):
    """Its error equals the variance of the dropped principal components, by numpy's SVD."""
    images = smooth_images(32)
    patches = torch.nn.functional.pixel_unshuffle(images, 4)
    patches = patches.flatten(2).transpose(1, 2).reshape(-1, 48).double()
    singular = torch.linalg.svdvals(patches - patches.mean(0))
    expected = (singular[12:] ** 2).sum() / patches.numel()
    error = ((linear.decode(linear.encode(images)) - images) ** 2).mean()
    assert error.item() == pytest.approx(expected.item(), rel=1e-3)


def test_linear_latents_have_unit_variance_and_keep_distances(linear):
    images = smooth_images(32)
    z = linear.encode(images)
    assert z.shape == (32, 12, 8, 6)
    assert z.var(dim=(0, 2, 3)).mean().item() == pytest.approx(1, rel=0.02)
    delta = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    change = linear.decode(z + delta) - linear.decode(z)  # an orthonormal basis keeps the norm
    assert change.norm().item() == pytest.approx((delta / linear.scale).norm().item(), rel=1e-4)


def test_full_rank_linear_codec_is_lossless():
    noise = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    codec = LinearCodec(4, 48).fit([noise])
    images = smooth_images(4, seed=9)
    torch.testing.assert_close(codec.decode(codec.encode(images)), images, atol=1e-4, rtol=0)


def test_fit_does_not_depend_on_the_batches(linear):
    other = LinearCodec(4, 12).fit(smooth_images(32).split(5))
    torch.testing.assert_close(other.basis, linear.basis, atol=1e-5, rtol=0)


def test_gradients_pass_the_decoder(linear):
    z = torch.zeros(1, 12, 8, 6, requires_grad=True)
    linear.decode(z).sum().backward()
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kl_codec_trains_saves_and_loads(device, tmp_path):
    config = CodecConfig(name="kl", widths=(8, 16), channels=4, layers=1, groups=4, fit_steps=150)
    torch.manual_seed(0)
    images = smooth_images(32)
    codec = build_codec(config)
    before = psnr(codec, [images])
    fit_codec(codec, config, (images[8 * (i % 4) :][:8] for i in range(150)), device)
    assert psnr(codec, [images]) > before + 3
    assert codec.encode(images).std().item() == pytest.approx(1, abs=0.3)
    codec.save(tmp_path)
    loaded = load_codec(config, tmp_path)
    assert loaded.factor == 2 and torch.equal(loaded.encode(images), codec.encode(images))


def test_an_autoencoder_for_another_scaling_factor_gives_the_same_latents_and_pictures():
    config = CodecConfig(name="kl", widths=(8, 16), channels=4, layers=1, groups=4)
    torch.manual_seed(0)
    codec, other = build_codec(config), build_codec(config)
    codec.vae.register_to_config(scaling_factor=0.6)
    other.vae.load_state_dict(for_stable_diffusion(codec.vae.state_dict(), codec.scaling))
    assert other.scaling == SD_SCALING
    images = smooth_images(2)
    z = codec.encode(images)
    torch.testing.assert_close(other.encode(images), z)
    torch.testing.assert_close(other.decode(z), codec.decode(z))
    spread, expected = other.posterior(images).std * SD_SCALING, codec.posterior(images).std * 0.6
    torch.testing.assert_close(spread, expected)


def test_a_kl_codec_may_be_fitted_for_a_step():
    config = CodecConfig(name="kl", widths=(8, 16), channels=4, layers=1, groups=4, fit_steps=1)
    codec = build_codec(config)
    fit_codec(codec, config, iter([smooth_images(2)]), "cpu")
    assert 0 < codec.scaling < float("inf")


def test_linear_codec_saves_and_loads_bit_equal(linear, tmp_path):
    linear.save(tmp_path)
    config, images = CodecConfig(name="linear", patch=4, channels=12), smooth_images(2)
    assert torch.equal(load_codec(config, tmp_path).encode(images), linear.encode(images))
    with pytest.raises(UserError, match="mismatched"):
        load_codec(CodecConfig(name="linear", patch=4, channels=8), tmp_path)
    (tmp_path / "codec.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_codec(config, tmp_path)


def test_sizes_that_do_not_divide_are_refused(linear):
    with pytest.raises(ConfigError, match="divisible by 4"):
        linear.latent_size((30, 24))
    assert IdentityCodec().latent_size((30, 24)) == (30, 24)


def test_a_missing_pretrained_folder_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        build_codec(CodecConfig(name="kl", pretrained=str(tmp_path / "absent")))
    assert "codec.pretrained" in str(error.value) and "\n" not in str(error.value)


def test_what_a_folder_says_of_its_latents_is_not_left_out(tmp_path):
    config = CodecConfig(name="kl", widths=(8, 16), channels=4, layers=1, groups=4)
    vae = small_autoencoder(config)
    vae.register_to_config(scaling_factor=0.13025)
    vae.save_pretrained(tmp_path / "vae")
    pretrained = replace(config, pretrained=str(tmp_path))
    assert build_codec(pretrained).scaling == 0.13025
    with pytest.raises(UserError, match=r"scaling=0\.18215, but .* 0\.13025 by its config\.json"):
        build_codec(replace(pretrained, scaling=0.18215))
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match=r"latents_mean and latents_std, which are not supported"):
        build_codec(pretrained)


def test_latents_are_shifted_as_the_folder_says(tmp_path):
    """As Stable Diffusion 3's autoencoder asks for."""
    config = CodecConfig(name="kl", widths=(8, 16), channels=16, layers=1, groups=4)
    torch.manual_seed(0)
    vae, images = small_autoencoder(config), smooth_images(2)
    vae.register_to_config(scaling_factor=1.5, shift_factor=0.25)
    vae.save_pretrained(tmp_path / "vae")
    codec = build_codec(replace(config, pretrained=str(tmp_path)))
    with torch.no_grad():
        modes, z = vae.encode(images).latent_dist.mode(), codec.encode(images)
        torch.testing.assert_close(z, (modes - 0.25) * 1.5)
        torch.testing.assert_close(codec.unscaled(z), modes)
        pictures = vae.decode(modes).sample
        torch.testing.assert_close(codec.decode(z), pictures)
        skips = [pictures.new_zeros(()) for _ in range(3)]  # of each level, and of the picture
        torch.testing.assert_close(decode_with_skips(codec, z, skips), pictures)
    # Latents that were stored without the shift are computed again.
    assert codec.statistics == (1.5, 0.25) and build_codec(config).statistics == (SD_SCALING,)


def test_psnr_of_a_known_error():
    class Shift(IdentityCodec):
        def decode(self, z):
            return z + 0.2  # 0.1 of the [0, 1] range: 20 dB

    pictures, masks = [torch.zeros(2, 3, 8, 8)], torch.zeros(2, 1, 8, 8)
    assert psnr(Shift(), pictures) == pytest.approx(20, abs=1e-3)
    assert psnr(Shift(), pictures, [masks]) is None
    masks[1, :, 2:5] = 1  # a picture without area does not count
    assert psnr(Shift(), pictures, [masks]) == pytest.approx(20, abs=1e-3)


def test_the_linear_codec_computes_in_float32_under_autocast(linear):
    images = smooth_images(2)
    z = linear.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear.encode(images), z)
        assert torch.equal(linear.decode(z), linear.decode(z.float()))
        assert linear.encode(images.bfloat16()).dtype == torch.float32
        assert linear.decode(z.bfloat16()).dtype == torch.float32
        decoded = linear.decode(z)
    assert torch.equal(decoded, linear.decode(z))


def test_masks_are_reduced_to_their_nearest_pixel_and_stay_binary():
    mask = torch.zeros(1, 1, 4, 6)
    mask[..., 0, :4] = torch.tensor([1.0, 0.0, 0.5, 0.0])
    mask[..., 2, 4] = 0.4
    assert latent_mask(mask, (2, 3))[0, 0].tolist() == [[1, 1, 0], [0, 0, 0]]
