"""The three networks: size as published, who sees what, and the choices that the paper leaves open.

Proofs by perturbation work on randomised weights: at initialisation zeros would hide mistakes.
"""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.batches import randomised
from vton.models.tryondiffusion.config import EfficientUNetConfig, ParallelUNetConfig, parallel_256
from vton.models.tryondiffusion.layers import Attention, CrossAttention
from vton.models.tryondiffusion.network import EfficientUNet, ParallelUNet

SMALL = ParallelUNetConfig(
    widths=(8, 16, 16),
    blocks=(1, 1, 2),
    garment_blocks=(1, 1, 2),
    attention=(False, True, True),
    heads=2,
    embedding=16,
    pose_width=8,
    sinusoid=8,
)
BASE, SUPER = ("agnostic", "garment"), ("agnostic", "garment", "lowres")
SMALL_1024 = EfficientUNetConfig(widths=(8, 16), blocks=(1, 2), embedding=16, sinusoid=8)


def inputs(images=BASE, size=(16, 12), rows=2):
    g = torch.Generator().manual_seed(1)
    x = {name: torch.randn(rows, 3, *size, generator=g) for name in ("z", *images)}
    x["t"] = torch.rand(rows, generator=g)
    x["levels"] = torch.rand(rows, len(images), generator=g)
    x["person_pose"] = torch.rand(rows, 17, 2, generator=g)
    x["garment_pose"] = torch.rand(rows, 17, 2, generator=g)
    return x


def forward(network, x):
    e, poses = network.embed(x["t"], x["levels"], x["person_pose"], x["garment_pose"])
    features = network.encode_garment(x["garment"], e)
    aligned = [x[name] for name in network.aligned]
    return features, network.denoise(x["z"], aligned, e, poses, features)


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def parameters(*networks):
    return sum(p.numel() for network in networks for p in network.parameters())


@pytest.mark.parametrize(
    ("config", "size", "images", "expected", "tera", "garment_tera"),
    [
        (ParallelUNetConfig(), 128, BASE, 1_136_019_971, 1.149, 0.424),
        (parallel_256(), 256, SUPER, 1_065_994_755, 1.286, 0.407),
    ],
)
@torch.no_grad()
def test_parallel_unets_have_the_published_size(config, size, images, expected, tera, garment_tera):
    with torch.device("meta"):
        network = ParallelUNet(config, images).requires_grad_(False)
        assert parameters(network) == expected
        levels, pose = torch.zeros(1, len(images)), torch.zeros(1, 17, 2)
        e, poses = network.embed(torch.zeros(1), levels, pose, pose)
        picture = torch.zeros(1, 3, size, size)
        aligned = [picture] * (len(images) - 1)
        features = network.encode_garment(picture, e)
        garment = flops(lambda: network.encode_garment(picture, e))
        person = flops(lambda: network.denoise(picture, aligned, e, poses, features))
    assert garment / 1e12 == pytest.approx(garment_tera, rel=0.02)
    assert (garment + person) / 1e12 == pytest.approx(tera, rel=0.02)
    assert "decoder.0" not in features and {f.shape[-1] for f in features.values()} <= {32, 16}


@pytest.mark.parametrize(
    ("config", "images", "expected"),
    [(ParallelUNetConfig(), BASE, 586_768_131), (parallel_256(), SUPER, 585_003_907)],
)
def test_concatenation_leaves_out_the_garment_unet_and_cross_attention_only(
    config, images, expected
):
    with torch.device("meta"):
        full = ParallelUNet(config, images)
        joined = ParallelUNet(dataclasses.replace(config, correspondence="concatenation"), images)
    cross = [module for module in full.modules() if isinstance(module, CrossAttention)]
    head = 3 * 128 * 9  # three more input channels
    left_out = parameters(full.garment_unet, *cross)
    assert parameters(joined) == expected == parameters(full) - left_out + head
    same = dict(full.named_parameters())
    differing = [name for name, p in joined.named_parameters() if same[name].shape != p.shape]
    assert differing == ["person_unet.encoder.head.weight"]


@torch.no_grad()
def test_efficient_unet_has_the_expected_size():
    with torch.device("meta"):
        network = EfficientUNet(EfficientUNetConfig()).requires_grad_(False)
        picture, e = torch.zeros(1, 3, 256, 256), torch.zeros(1, 512)
        tera = flops(lambda: network.denoise(picture, picture, e)) / 1e12
    assert tera == pytest.approx(0.51, rel=0.02)
    assert parameters(network) / 1e6 == pytest.approx(451, rel=0.005)
    assert not any(isinstance(module, Attention) for module in network.modules())


@torch.no_grad()
def test_who_sees_what():
    """Garment features see all but z_t and the agnostic picture.

    The prediction sees the garment by cross-attention only.
    """
    network, x = randomised(ParallelUNet(SMALL), 0.1), inputs()
    features, prediction = forward(network, x)
    for name in x:
        changed, other = forward(network, x | {name: x[name].flip(0)})
        moved = max((changed[key] - features[key]).abs().max() for key in features)
        assert (moved == 0) if name in ("z", "agnostic") else (moved > 1e-3), name
        assert (other - prediction).abs().max() > 1e-4, name
    assert not any(isinstance(module, Attention) for module in network.garment_unet.modules())

    for module in network.person_unet.modules():
        if isinstance(module, CrossAttention):
            torch.nn.init.zeros_(module.to_out.weight)
    _, without = forward(network, x)
    _, other = forward(network, x | {"garment": x["garment"].flip(0)})
    assert torch.equal(without, other) and not torch.equal(without, prediction)


@torch.no_grad()
def test_concatenation_shows_the_garment_to_the_head_only():
    config, x = dataclasses.replace(SMALL, correspondence="concatenation"), inputs(SUPER)
    network = randomised(ParallelUNet(config, SUPER), 0.1)
    features, prediction = forward(network, x)
    assert features == {}
    for name in x:
        _, other = forward(network, x | {name: x[name].flip(0)})
        assert (other - prediction).abs().max() > 1e-4, name
    place = 3 * (1 + network.aligned.index("garment"))
    network.person_unet.encoder.head.weight[:, place : place + 3] = 0
    _, without = forward(network, x)
    _, other = forward(network, x | {"garment": x["garment"].flip(0)})
    assert torch.equal(without, other) and not torch.equal(without, prediction)


CHOICES = (
    {},
    {"film": "norm2"},
    {"garment_map": "block"},
    {"skip_scale": 0.7},
    {"positions": 2.5},
    {"start_awake": True},
    {"correspondence": "concatenation"},
)


@pytest.mark.parametrize("changes", CHOICES)
def test_every_parameter_learns_whatever_is_chosen(changes):
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, **changes)
    images = SUPER if changes else BASE
    network = randomised(ParallelUNet(config, images, aspect=4 / 3), 0.1)
    features, prediction = forward(network, inputs(images))
    assert prediction.shape == (2, 3, 16, 12)
    read = {"block": 2 * (1 + 2), "stage": 2 * 2}[config.garment_map]
    assert len(features) == (read if config.correspondence == "attention" else 0)
    prediction.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_an_awake_start_keeps_what_pictures_say():
    """Ten units deep the garment moves features by its own size; with torch's start by a third."""
    moved, x = {}, inputs(size=(32, 24), rows=4)
    deep = dataclasses.replace(SMALL, blocks=(2, 3, 5), garment_blocks=(2, 3, 5))
    for awake in (False, True):
        torch.manual_seed(0)
        network = ParallelUNet(dataclasses.replace(deep, start_awake=awake))
        features, _ = forward(network, x)
        other, _ = forward(network, x | {"garment": x["garment"].flip(0)})
        moved[awake] = (features["encoder.2"] - other["encoder.2"]).std()
        head = network.person_unet.encoder.head.weight.std((0, 2, 3))
        assert (head[:3].mean() < 0.15 * head[3:].mean()) == awake
        assert not network.person_unet.tail.weight.any()
    assert moved[True] > 1 > 2 * moved[False], moved


def test_rows_may_share_features():
    network, x = randomised(ParallelUNet(SMALL), 0.1), inputs()
    x = {name: value[:1] for name, value in x.items()}
    features, alone = forward(network, x)
    e, poses = network.embed(x["t"], x["levels"], x["person_pose"], x["garment_pose"])
    twice = [torch.cat([x[name]] * 2) for name in ("z", "agnostic")]
    shared = features | {"row": torch.zeros(2, dtype=torch.int64)}
    e, poses = e.expand(2, -1), poses.expand(2, -1, -1)
    together = network.denoise(twice[0], twice[1:], e, poses, shared)
    torch.testing.assert_close(together, alone.expand(2, -1, -1, -1), atol=1e-5, rtol=0)


def test_efficient_unet_takes_any_size_and_all_of_it_learns():
    network, e = randomised(EfficientUNet(SMALL_1024), 0.1), torch.randn(1, 16)
    for size in ((8, 8), (16, 12)):
        z, lowres = torch.randn(2, 1, 3, *size)
        out = network.denoise(z, lowres, e)
        assert out.shape == z.shape and (network.denoise(z, 0 * lowres, e) - out).abs().max() > 1e-3
    embedded = network.time(torch.rand(1)) + network.level(torch.rand(1))
    network.denoise(z, lowres, embedded).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())
