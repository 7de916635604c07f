"""Networks that a file fills in a moment: nothing is drawn, and nothing that was left is missed."""

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from vton.models.settings import UNetConfig
from vton.models.unet import unet_arguments
from vton.weights.pretrained import from_pretrained, load_state
from vton.weights.unfilled import lay_out_channels_last, place_of, read_later, unfilled


def small_unet(folder) -> UNet2DConditionModel:
    levels = {"widths": [8, 8], "attention": [True, False], "heads": [1, 1], "depth": [1, 1]}
    config = UNetConfig(**levels, layers=1, context=4, groups=4)
    unet = UNet2DConditionModel(**unet_arguments(config, 4, 4))
    unet.save_pretrained(folder)
    return unet


def draws() -> bool:
    """Whether a new layer draws its weights."""
    state = torch.get_rng_state()
    nn.Linear(4, 4)
    return not torch.equal(state, torch.get_rng_state())


def test_nothing_is_drawn_also_after_a_library_has_loaded_a_network(tmp_path):
    """diffusers puts torch's own functions back when it has loaded one."""
    unet = small_unet(tmp_path)
    assert draws()
    with unfilled() as left:
        loaded = from_pretrained(UNet2DConditionModel, str(tmp_path), key="unet")
        assert not draws()
        layer = nn.Linear(4, 4)
    assert draws()
    assert left.among(layer) and not left.among(loaded)
    assert all(torch.equal(loaded.state_dict()[name], x) for name, x in unet.state_dict().items())


def test_what_a_run_fills_is_not_read(tmp_path):
    small_unet(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.unlink()
    assert not read_later(trained=True)
    with unfilled(by_run=True) as left:
        assert read_later(trained=True) and not read_later(trained=False)
        with unfilled() as inner:  # as architectures have it themselves
            assert read_later(trained=True)
            layer = nn.Linear(4, 4)
        unet = from_pretrained(UNet2DConditionModel, str(tmp_path), key="unet", trained=True)
    assert left.among(unet) and left.among(layer) and inner.among(layer)
    assert not inner.among(unet)


def test_memory_that_a_parameter_has_left_stays_taken():
    """Otherwise it would be given to one that is filled."""
    with unfilled() as left:
        layer = nn.Linear(64, 64)
        layer.weight.data = torch.zeros(64, 64)
    assert len(left) == 2  # weight and bias
    assert all(memory.data_ptr() == place for place, memory in left.items())
    assert left.among(layer)  # its bias


def is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_another_order_in_memory_fills_nothing():
    with unfilled() as left:
        unfilled_layer = nn.Conv2d(4, 4, 3)
        lay_out_channels_last(unfilled_layer)
    assert is_channels_last(unfilled_layer.weight)
    assert all(place_of(parameter) in left for parameter in unfilled_layer.parameters())

    drawn = nn.Conv2d(4, 4, 3)
    before = drawn.weight.detach().clone()
    lay_out_channels_last(drawn)
    assert is_channels_last(drawn.weight) and torch.equal(drawn.weight, before)


def test_a_file_fills_the_order_in_memory_that_a_network_has():
    """A file holds none: weights that are taken over whole would lose it."""
    drawn = nn.Conv2d(4, 4, 3)
    with unfilled() as left:
        layer = nn.Conv2d(4, 4, 3)
        lay_out_channels_last(layer)
    state = {name: tensor.clone() for name, tensor in drawn.state_dict().items()}
    load_state(layer, state, "weights", torch.float32)
    assert not left.among(layer)
    assert is_channels_last(layer.weight) and torch.equal(layer.weight, drawn.weight)
