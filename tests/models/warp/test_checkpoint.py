"""LaDI-VTON's file in and out, at full size: each tensor is one number, repeated without taking
memory.
"""

import pytest
import torch

from vton.config import load
from vton.cost.meta import on_meta
from vton.errors import UserError
from vton.models.warp.checkpoint import read_published, write_published
from vton.weights.pretrained import check_state, read_checkpoint


@pytest.fixture(scope="module")
def config():
    return load("model=warp", "preset=paper")


@pytest.fixture(scope="module")
def state(config):
    shapes = {name: tensor.shape for name, tensor in on_meta(config).state_dict().items()}
    return {
        name: torch.tensor(float(place)).expand(shape)
        for place, (name, shape) in enumerate(shapes.items())
    } | {"network.refined": torch.tensor(True)}


@pytest.fixture
def published(config, state, tmp_path):
    write_published(tmp_path / "warping.pth", state, config, {})
    return tmp_path / "warping.pth"


def test_export_and_import_keep_every_tensor(config, state, published, tmp_path):
    found = read_published(published)
    check_state(on_meta(config).state_dict(), found.state, published)
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())
    write_published(tmp_path / "again.pth", found.state, config, found.extra)
    before, after = read_checkpoint(published), read_checkpoint(tmp_path / "again.pth")
    assert before.keys() == after.keys() == {"tps", "refinement"}
    for section in before:
        assert before[section].keys() == after[section].keys()
        assert all(
            torch.equal(after[section][name], tensor) for name, tensor in before[section].items()
        )


def test_files_that_are_not_the_warping_module(published, tmp_path):
    def refused(match: str, change):
        content = read_checkpoint(published)
        change(content)
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UserError, match=match) as error:
            read_published(tmp_path / "x.pth")
        assert str(tmp_path / "x.pth") in str(error.value) and "\n" not in str(error.value)

    person, spline = "extractionB.model.0.weight", "gridGen.target_coordinate_repr"
    refused("expected a mapping with tps and refinement", lambda content: content.pop("refinement"))
    refused(
        "refinement holds fc.weight",
        lambda content: content["refinement"].update({"fc.weight": torch.zeros(1)}),
    )
    refused(
        "reads 27 channels of pose",
        lambda content: content["tps"].update({person: torch.zeros(64, 30, 4, 4)}),
    )
    refused(
        "not that of a 5x5 lattice",
        lambda content: content["tps"].update({spline: torch.zeros(10, 28)}),
    )


def test_networks_of_another_shape_have_no_place_in_the_format(state, tmp_path):
    with pytest.raises(UserError, match=r"holds its own networks only \(preset=paper\)"):
        write_published(tmp_path / "x.pth", state, load("model=warp", "preset=tiny"), {})
    assert not (tmp_path / "x.pth").exists()
