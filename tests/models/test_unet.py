"""The shared reading of garment UNets: taps, what they depend on, and position codes."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from vton.config import ConfigError
from vton.models.settings import UNetConfig
from vton.models.unet import (
    PositionCode,
    attention_names,
    build_unet,
    execution_order,
    garment_taps,
    read_by_taps,
    widen_input,
)

SMALL = UNetConfig(
    widths=(8, 16, 16),
    attention=(False, True, True),
    heads=(1, 2, 2),
    depth=(1, 1, 2),
    layers=1,
    context=12,
    groups=4,
)


@pytest.fixture(params=[0.0, 2.0], ids=["published", "position_code"])
def unet(request) -> UNet2DConditionModel:
    return built(request.param)


def built(positions: float, **changed) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_unet(
        replace(SMALL, positions=positions, **changed), 4, 4, key="model.unet", aspect=16 / 12
    )


def inputs(batch: int = 2):
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 4, 16, 12, generator=g),
        torch.tensor([7] * batch),
        torch.randn(batch, 5, 12, generator=g),
    )


def test_taps_are_what_enters_self_attention_in_execution_order(unet):
    entered = []
    for name in execution_order(unet):
        layer = unet.get_submodule(f"{name}.attn1")
        layer.register_forward_pre_hook(
            lambda module, arguments, name=name: entered.append((name, arguments[0]))
        )
    taps = garment_taps(unet, *inputs(), full_pass=True)
    assert list(taps) == [name for name, _ in entered] == execution_order(unet)
    assert all(torch.equal(taps[name], value) for name, value in entered)
    order = [name.split(".")[0] for name in taps]
    assert order == ["down_blocks"] * 3 + ["mid_block"] * 2 + ["up_blocks"] * 6
    assert attention_names(unet)[-1].startswith("mid_block")  # modules are listed down, up, mid


def test_stopping_at_the_last_tap_changes_nothing_and_saves_the_rest(unet):
    calls = []
    unet.conv_out.register_forward_hook(lambda *_: calls.append(1))
    stopped = garment_taps(unet, *inputs())
    whole = garment_taps(unet, *inputs(), full_pass=True)
    assert len(calls) == 1
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


def test_read_by_taps_names_exactly_what_gets_a_gradient(unet):
    taps = garment_taps(unet, *inputs(), full_pass=True)
    sum((tap * torch.randn(tap.shape)).sum() for tap in taps.values()).backward()
    read = {id(p) for p in read_by_taps(unet)}
    for name, parameter in unet.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in read), name


def test_gradient_checkpointing_gives_the_same_taps_and_gradients(unet):
    calls = []
    unet.down_blocks[1].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients():
        unet.zero_grad()
        taps = garment_taps(unet.train(), *inputs())
        sum((i + 1) * tap.square().sum() for i, tap in enumerate(taps.values())).backward()
        return taps, [p.grad.clone() for p in read_by_taps(unet)]

    plain_taps, plain = gradients()
    assert len(calls) == 1
    unet.enable_gradient_checkpointing()
    taps, found = gradients()
    assert len(calls) == 3  # computed again on the way back
    assert taps.keys() == plain_taps.keys()
    assert all(torch.equal(taps[name], plain_taps[name]) for name in taps)
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))


def test_a_wider_first_layer_computes_what_the_narrow_one_did():
    weight = torch.randn(8, 3, 3, 3)
    wide = widen_input(weight, 6, {0: 0, 1: 1, 2: 4})
    x = torch.randn(1, 6, 5, 5)
    expected = torch.nn.functional.conv2d(x[:, [0, 1, 4]], weight)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, wide), expected)


def test_position_code_tells_places_apart_whatever_the_grid():
    code = PositionCode(width=64, amplitude=3.0, aspect=16 / 12)
    fine, coarse = code.code(16 * 12, torch.device("cpu")), code.code(8 * 6, torch.device("cpu"))
    torch.testing.assert_close(fine.square().mean(1), torch.full((16 * 12,), 3.0**2 / 2))
    # Nearest is the coarse token whose area a fine one lies in.
    nearest = torch.cdist(fine, coarse).argmin(1).view(16, 12)
    expected = torch.arange(8 * 6).view(8, 6).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(nearest, expected)
    tokens = torch.randn(2, 8 * 6, 64)
    torch.testing.assert_close(code(tokens) - tokens, coarse.expand_as(tokens))


def test_attention_of_a_fresh_unet_with_position_code_starts_at_its_own_place():
    unet = built(positions=3.0, widths=(8, 64, 64))
    for name in execution_order(unet):
        block = unet.get_submodule(name)
        place = block.pos_embed(torch.zeros(1, 12, block.norm1.normalized_shape[0]))
        scores = block.attn1.to_q(place) @ block.attn1.to_k(place).transpose(1, 2)
        assert (scores[0].argmax(1) == torch.arange(12)).float().mean() > 0.9, name
        for layer in (block.attn1.to_v, block.attn1.to_out[0]):  # what is read arrives undiminished
            torch.testing.assert_close(
                layer.weight @ layer.weight.T, torch.eye(len(layer.weight)), atol=1e-5, rtol=0
            )
    without = built(positions=0.0)
    assert unet.state_dict().keys() == without.state_dict().keys()  # nothing to load or save


def test_position_code_is_for_networks_from_scratch_with_room_for_it():
    with pytest.raises(ConfigError, match="has no position code: set positions=0"):
        replace(SMALL, pretrained="runwayml/anything", positions=1.0)
    with pytest.raises(ConfigError, match="divisible by 4, not 18"):
        odd = replace(SMALL, widths=(8, 18, 16), groups=2, positions=1.0)
        build_unet(odd, 4, 4, key="model.unet")
