import json
from pathlib import Path

import pytest
import torch

from vton.metrics import inception
from vton.weights import metric_networks


def fixed_pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 6, 5, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (80, 64), mode="nearest").round().to(torch.uint8)


@pytest.fixture(scope="module")
def network():
    return metric_networks.build(inception.Inception, None, seed=0)


def test_features_are_those_of_the_reference_implementation(network):
    """inception.json: pytorch-fid 0.3.0's network with our random weights on the same input; see
    its "command".
    """
    golden = json.loads((Path(__file__).parent / "inception.json").read_text())
    with torch.inference_mode():
        features = network(inception.resize_to_square(fixed_pictures(), 299))
    assert features.shape == (2, 2048)
    torch.testing.assert_close(
        features[:, :: 2048 // 16], torch.tensor(golden["features"]), rtol=1e-4, atol=1e-5
    )


def test_resize_takes_levels_and_is_antialiased():
    places = torch.arange(64)
    checkers = ((places[:, None] + places) % 2 * 255).to(torch.uint8).expand(1, 3, 64, 64)
    small = inception.resize_to_square(checkers, 16)
    assert small.shape == (1, 3, 16, 16)
    assert (small - 127.5).abs().max() < 16  # without antialiasing: pure black or white


def test_a_crop_sees_the_garment_only():
    pictures = fixed_pictures()
    mask = torch.zeros(2, 1, 80, 64)
    mask[:, :, 20:60, 10:40] = 1
    mask[:, :, 20:30, 10:20] = 0
    inside = inception.garment_crops(pictures, mask, 75)
    elsewhere_inverted = torch.where(mask > 0, pictures, 255 - pictures)
    assert torch.equal(inside, inception.garment_crops(elsewhere_inverted, mask, 75))
    assert (inside[:, :, :15, :15] == 128).all()  # grey where the box is not garment
    moved = inception.garment_crops(pictures.roll((7, 5), (2, 3)), mask.roll((7, 5), (2, 3)), 75)
    assert torch.equal(inside, moved)
    assert not torch.equal(inside, inception.garment_crops(255 - pictures, mask, 75))
