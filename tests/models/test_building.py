"""What `build` of an architecture may not do, said by name."""

import pytest
from torch import nn

from tests.batches import tiny_module
from vton import registry


@pytest.mark.parametrize("name", ["denoiser", "codec", "picture", "trainer"])
def test_networks_do_not_take_the_contracts_names(name, monkeypatch):
    module = registry.module_class("gardiff")
    build = module.build

    def with_another(self):
        result = build(self)
        self.add(name, nn.Linear(2, 2))
        return result

    monkeypatch.setattr(module, "build", with_another)
    with pytest.raises(TypeError, match=rf"build calls a network '{name}'"):
        tiny_module("gardiff")


def test_build_returns_a_denoiser(monkeypatch):
    monkeypatch.setattr(registry.module_class("gardiff"), "build", lambda self: nn.Linear(2, 2))
    with pytest.raises(TypeError, match="returns a Linear, not a Denoiser"):
        tiny_module("gardiff")
