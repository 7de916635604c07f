"""LPIPS, DISTS and VGG19's distance beside independent implementations with the same weights."""

import lpips
import piq
import pytest
import torch
from torchvision import models
from torchvision.transforms.functional import normalize

from tests.weights.classifiers import undrawn_classifiers, weights_file
from vton.models.perceptual import (
    BACKBONES,
    CALIBRATION,
    DISTS,
    LPIPS,
    PerceptualLoss,
    random_dists,
)


def two_pictures(height=80, width=64):
    generator = torch.Generator().manual_seed(1)
    truth = torch.nn.functional.interpolate(
        torch.rand(2, 3, 9, 7, generator=generator), (height, width), mode="bicubic"
    )
    truth = truth.clamp(0, 1)
    return (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


@torch.inference_mode()
def measure(metric, x, y, mask=None):
    if isinstance(metric, LPIPS):
        return metric.distance(metric.features(x), metric.features(y), mask)
    return metric.distance(*(metric.statistics(metric.features(p), mask) for p in (x, y)))


@pytest.mark.parametrize("name", list(BACKBONES))
def test_lpips_agrees_with_its_authors_package(name, tmp_path):
    path, state = weights_file(tmp_path, BACKBONES[name][0])
    with undrawn_classifiers():
        theirs = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    for part in theirs.net.children():  # slices, whose layers keep their numbers
        part.load_state_dict({key: state[key] for key in part.state_dict()})
    ours = LPIPS(name, path, seed=0)
    x, y = two_pictures()
    with torch.inference_mode():
        expected = theirs(x, y, normalize=True).flatten()
    assert expected.min() > 1e-3
    torch.testing.assert_close(measure(ours, x, y), expected, rtol=1e-5, atol=1e-7)


def test_dists_agrees_with_piq(tmp_path, monkeypatch):
    path, state = weights_file(tmp_path, models.vgg16)
    calibration = torch.load(CALIBRATION / "dists_models" / "weights.pt", weights_only=True)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: calibration)

    def vgg(**_):
        with undrawn_classifiers():
            network = models.vgg16(weights=None)
        network.features.load_state_dict(state)
        return network

    monkeypatch.setattr(piq.perceptual, "vgg16", vgg)
    theirs = piq.DISTS(reduction="none")
    x, y = two_pictures()
    with torch.inference_mode():
        expected = theirs(x, y)
    assert expected.min() > 1e-2
    # Their covariance is a difference of means, the metric's a mean of products of deviations.
    metric, loss = DISTS(path, seed=0, side=256), DISTS(path, seed=0)
    torch.testing.assert_close(measure(metric, x, y), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(x, y), expected, rtol=1e-4, atol=1e-5)


def test_random_dists_is_fixed_and_orders_distortions():
    channels = (8, 16, 16, 16, 16)
    first, second = random_dists(channels), random_dists(channels)
    x, y = two_pictures()
    assert torch.equal(first(x, y), second(x, y))
    assert first(x, x).abs().max() < 1e-5
    assert (first(y + 2 * (x - y), y) > first(y + 0.5 * (x - y), y)).all()


def test_gradients_pass_through_the_losses_and_stop_at_their_weights():
    channels = (4, 4, 4, 4, 4)
    for loss in (random_dists(channels), PerceptualLoss(None, channels=channels)):
        x, y = two_pictures()
        loss(x.requires_grad_(), y).sum().backward()
        assert x.grad.abs().sum() > 0
        assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_perceptual_features_are_vgg19s(tmp_path):
    path, state = weights_file(tmp_path, models.vgg19)
    with undrawn_classifiers():
        theirs = models.vgg19(weights=None).features
    theirs.load_state_dict(state)
    picture = torch.rand(1, 3, 320, 256)
    normalised = normalize(picture, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    layers = PerceptualLoss(path).features(picture * 2 - 1)
    assert len(layers) == 5
    taps, expected, before = (1, 6, 11, 20, 29), normalised, 0  # first ReLU of each stage
    for tap, layer in zip(taps, layers, strict=True):
        expected = theirs[before : tap + 1](expected)
        before = tap + 1
        torch.testing.assert_close(layer, expected, rtol=1e-3, atol=1e-5)


def test_perceptual_loss_is_zero_for_the_truth_alone():
    loss = PerceptualLoss(None, channels=(4, 4, 4, 4, 4))
    pictures = torch.rand(2, 3, 32, 24) * 2 - 1
    assert loss(pictures, pictures) == 0 < loss(pictures, pictures.flip(-1))


@pytest.fixture(scope="module", params=["lpips", "dists"])
def metric(request):
    return (
        LPIPS("alex", None, seed=0) if request.param == "lpips" else DISTS(None, seed=0, side=256)
    )


def test_identical_is_zero_and_worse_is_larger(metric):
    x, y = two_pictures()
    assert measure(metric, y, y).abs().max() < 1e-6
    distances = [
        measure(metric, y + strength * (x - y), y).mean().item() for strength in (0.25, 0.5, 1.0)
    ]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_a_full_mask_is_the_whole_picture_and_a_mask_leads_elsewhere(metric):
    x, y = two_pictures()
    full = torch.ones(2, 1, *x.shape[-2:])
    torch.testing.assert_close(
        measure(metric, x, y, full), measure(metric, x, y), rtol=1e-4, atol=1e-6
    )
    half = full.clone()
    half[:, :, :, 32:] = 0
    spoilt = torch.where(half > 0, x, y)  # differs from y inside the mask only
    assert (measure(metric, spoilt, y, half) > 1.3 * measure(metric, spoilt, y)).all()


def test_dists_reduces_large_pictures_to_the_protocols_side():
    x, y = two_pictures(160, 128)
    reduced = DISTS(None, seed=0, side=64)
    assert reduced.features(x)[0].shape[-2:] == (80, 64)
    small = [
        torch.nn.functional.interpolate(p, (80, 64), mode="bilinear", antialias=True)
        for p in (x, y)
    ]
    torch.testing.assert_close(measure(reduced, x, y), measure(reduced, *small))


def test_nothing_is_learned_or_dropped():
    for module in (LPIPS("squeeze", None, seed=0), DISTS(None, seed=0, side=256)):
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not module.backbone.training


def test_the_longer_side_is_cut_to_whole_pixels():
    """As torchvision's resize: 80x48 has a longer side of 426.67 where the shorter is 256."""
    loss, sizes = PerceptualLoss(None, channels=(2, 2, 2, 2, 2)), []
    loss.backbone.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[2:]))
    for height, width in ((80, 48), (48, 80)):
        loss.features(torch.zeros(1, 3, height, width))
    assert sizes == [(426, 256), (256, 426)]


def test_equal_pictures_are_equal_under_autocast_too():
    """In bfloat16 the variances of features with little contrast would cancel to anything."""
    dists = random_dists((8, 8, 16, 16, 16))
    picture = 0.5 + 0.02 * torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert dists(picture, picture).abs().max() < 1e-4
