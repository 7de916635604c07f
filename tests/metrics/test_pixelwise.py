import math

import numpy as np
import piq
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from vton.metrics import pixelwise
from vton.metrics.protocol import protocol

EXACT = protocol("exact")


def two_pictures():
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.interpolate(
        torch.rand(3, 3, 8, 8, generator=generator), (40, 32), mode="bicubic"
    )
    noise = torch.randn(3, 3, 40, 32, generator=generator) * torch.tensor([0.01, 0.05, 0.2]).view(
        3, 1, 1, 1
    )
    return (truth + noise).clamp(0, 1), truth.clamp(0, 1)


def scipy_ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wang et al. 2004 in float64, from the formula; scipy's "mirror" is torch's reflection."""

    def blur(image):
        return ndimage.gaussian_filter(image, 1.5, truncate=3.5, mode="mirror")

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return (
        (2 * mean_x * mean_y + c1)
        * (2 * covariance + c2)
        / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )


def test_ssim_agrees_with_scipy_over_picture_and_mask():
    x, y = two_pictures()
    mask = torch.zeros(3, 1, 40, 32)
    mask[:, :, 5:20, 3:30] = 1
    pairs = zip(x.flatten(0, 1).double().numpy(), y.flatten(0, 1).double().numpy(), strict=True)
    maps = np.stack([scipy_ssim_map(*pair) for pair in pairs]).reshape(x.shape)
    assert np.ptp(maps.mean((1, 2, 3))) > 0.1
    np.testing.assert_allclose(pixelwise.ssim(x, y, None, EXACT), maps.mean((1, 2, 3)), atol=1e-10)
    inside = maps[:, :, 5:20, 3:30].mean((1, 2, 3))
    np.testing.assert_allclose(pixelwise.ssim(x, y, mask, EXACT), inside, atol=1e-10)


def test_ssim_is_the_one_of_torchmetrics_scikit_image_and_of_piq_without_downsampling():
    x, y = two_pictures()
    ours = pixelwise.ssim(x, y, None, EXACT)
    theirs = structural_similarity_index_measure(
        x.double(), y.double(), data_range=1.0, reduction="none"
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    in_single_precision = structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none"
    )
    torch.testing.assert_close(ours.float(), in_single_precision, rtol=0, atol=2e-4)
    inner = torch.zeros(3, 1, 40, 32)
    inner[:, :, 5:-5, 5:-5] = 1  # scikit-image and piq leave out what the window cannot cover
    settings = {
        "data_range": 1,
        "gaussian_weights": True,
        "use_sample_covariance": False,
        "channel_axis": 0,
    }
    pairs = zip(x.double().numpy(), y.double().numpy(), strict=True)
    theirs = [structural_similarity(*pair, **settings) for pair in pairs]
    np.testing.assert_allclose(pixelwise.ssim(x, y, inner, EXACT), theirs, atol=1e-10)
    second_opinion = piq.ssim(
        x, y, kernel_sigma=1.5, kernel_size=11, data_range=1.0, downsample=False, reduction="none"
    )
    torch.testing.assert_close(
        pixelwise.ssim(x, y, inner, EXACT).float(), second_opinion, rtol=0, atol=2e-4
    )


def test_ssim_of_a_white_background_is_exactly_one():
    white = torch.ones(1, 3, 40, 32)
    white[:, :, 10:20, 10:20] = 0.3
    assert abs(pixelwise.ssim(white, white, None, EXACT).item() - 1) < 1e-12


def test_psnr_is_per_picture_and_over_the_mask_only():
    x, y = two_pictures()
    error = (x.double() - y.double()).square().mean((1, 2, 3))
    expected = [10 * math.log10(1 / value) for value in error.tolist()]
    np.testing.assert_allclose(pixelwise.psnr(x, y, None, EXACT), expected, rtol=1e-5)
    mask = torch.zeros(3, 1, 40, 32)
    mask[:, :, :10] = 1
    outside_changed = torch.where(mask > 0, x, 1 - x)
    inside = pixelwise.psnr(x[:, :, :10], y[:, :, :10], None, EXACT)
    np.testing.assert_allclose(pixelwise.psnr(outside_changed, y, mask, EXACT), inside, rtol=1e-5)


def test_identical_pictures_are_at_the_ceiling():
    _, y = two_pictures()
    np.testing.assert_allclose(pixelwise.ssim(y, y, None, EXACT), 1, atol=1e-12)
    assert pixelwise.psnr(y, y, None, EXACT).tolist() == [EXACT.psnr_cap] * 3
    one_level = y.clone()
    one_level[0, 0, 0, 0] += 1 / 255
    assert pixelwise.psnr(one_level, y, None, EXACT)[0] < EXACT.psnr_cap
