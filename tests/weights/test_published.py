"""The steps that all published formats share."""

import pytest
import torch
from safetensors.torch import load_file

from vton.config import load
from vton.weights.pretrained import below, read_checkpoint, sections_of
from vton.weights.published import settings_of, write_mapping


def test_settings_survive_the_configuration_whatever_their_values():
    path = "/data/it's: a #path, with [brackets]"
    values = {"pretrained": path, "widths": [8, 16, 16], "channels": 4}
    codec = load(*settings_of("codec", values)).codec
    assert codec.pretrained == path
    assert list(codec.widths) == [8, 16, 16]
    assert codec.channels == 4


@pytest.mark.parametrize(
    ("name", "section"), [("x.safetensors", "module"), ("x.pt", "module"), ("x.pth", "")]
)
def test_the_suffix_of_the_target_decides_the_format(name, section, tmp_path):
    tensors = {"a.weight": torch.arange(3), "b": torch.ones(2, 2).T}
    write_mapping(tmp_path / name, tensors, section)
    if name.endswith(".safetensors"):
        written = load_file(tmp_path / name)
    else:
        written = read_checkpoint(tmp_path / name)
        written = written[section] if section else written
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in tensors.items())


def test_sections_are_read_nested_and_flat_and_others_left_out():
    one, two = torch.ones(1), torch.ones(2)
    names = ("head", "layers")
    expected = {"head": {"weight": one}, "layers": {"0.weight": two}}
    flat = {"head.weight": one, "layers.0.weight": two, "other.weight": one}
    nested = {"head": {"weight": one}, "layers": {"0.weight": two}, "other": {"weight": one}}
    assert sections_of(flat, names) == sections_of(nested, names) == expected
    assert sections_of([one], names) == {"head": {}, "layers": {}}
    assert below(flat, "layers.") == {"0.weight": two}
