"""LPIPS and DISTS against independent implementations that are given the same weights."""

import hashlib

import lpips
import piq
import pytest
import torch
from torchvision import models

from vton.models.gardiff.losses import published_dists
from vton.models.perceptual import BACKBONES, CALIBRATION, DISTS, LPIPS


def backbone_file(folder, name):
    """A whole classifier's weights as torchvision would publish them, and its state; small filters,
    as if trained.
    """
    torch.manual_seed(0)
    state = BACKBONES[name][0](weights=None).state_dict()
    state = {key: value for key, value in state.items() if key.startswith("features.")}
    torch.save(state, folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    return (folder / "w.pth").rename(folder / f"{name}-{digest[:8]}.pth"), state


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
    path, state = backbone_file(tmp_path, name)
    theirs = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    renamed = {
        f"{slice_name}.{key}": None
        for slice_name, part in theirs.net.named_children()
        for key in part.state_dict()
    }
    theirs.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in renamed})
    ours = LPIPS(name, path, seed=0)
    x, y = two_pictures()
    with torch.inference_mode():
        expected = theirs(x, y, normalize=True).flatten()
    assert expected.min() > 1e-3
    torch.testing.assert_close(measure(ours, x, y), expected, rtol=1e-5, atol=1e-7)


def test_dists_agrees_with_piq(tmp_path, monkeypatch):
    path, state = backbone_file(tmp_path, "vgg")
    calibration = torch.load(CALIBRATION / "dists_models" / "weights.pt", weights_only=True)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: calibration)

    def vgg(**_):
        network = models.vgg16(weights=None)
        network.features.load_state_dict(
            {key.removeprefix("features."): value for key, value in state.items()}
        )
        return network

    monkeypatch.setattr(piq.perceptual, "vgg16", vgg)
    theirs = piq.DISTS(reduction="none")
    x, y = two_pictures()
    with torch.inference_mode():
        expected = theirs(x, y)
    assert expected.min() > 1e-2
    # their covariance is a difference of means, ours a mean of products of deviations
    torch.testing.assert_close(
        measure(DISTS(path, seed=0, side=256), x, y), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        published_dists(state)(x, y), expected, rtol=1e-4, atol=1e-5
    )  # GarDiff's loss


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
