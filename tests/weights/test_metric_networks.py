import hashlib
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from vton.config import ConfigError
from vton.metrics.inception import Inception
from vton.models.perceptual import classifier
from vton.weights import metric_networks


def save(folder, state, stem="net") -> "os.PathLike":
    """A weights file named by its digest, as its authors would publish it."""
    path = folder / "unnamed.pth"
    torch.save(state, path)
    return path.rename(folder / f"{stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_random_weights_are_the_same_bits_everywhere_and_leave_the_random_states_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    first, second = (
        metric_networks.build(lambda: classifier("alex"), None, seed=0) for _ in range(2)
    )
    other = metric_networks.build(lambda: classifier("alex"), None, seed=1)
    after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert (
        metric_networks.digest(first)
        == metric_networks.digest(second)
        != metric_networks.digest(other)
    )
    # The name `lpips_random` promises these very numbers; changing them needs a new protocol
    # version.
    assert metric_networks.digest(first).startswith("d5b40c1e18408cc2")
    assert metric_networks.digest(metric_networks.build(Inception, None, seed=0)).startswith(
        "639ffedeaf91a782"
    )


def test_random_layers_keep_the_scale_of_their_input():
    backbone = metric_networks.build(lambda: classifier("vgg"), None, seed=0)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scales = [layer.square().mean().sqrt().item() for layer in backbone(x)]
    assert all(0.3 < scale < 3 for scale in scales), scales


def test_no_folder_means_random_and_a_missing_folder_is_an_error(tmp_path, monkeypatch):
    monkeypatch.delenv(metric_networks.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert metric_networks.find("alex", "") is None
    assert metric_networks.find("alex", str(tmp_path)) is None
    with pytest.raises(ConfigError, match=r"eval.weights=.*nowhere.*alexnet-owt"):
        metric_networks.find("alex", str(tmp_path / "nowhere"))
    monkeypatch.setenv(metric_networks.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"VTON_METRIC_WEIGHTS"):
        metric_networks.find("alex", "")
    (
        tmp_path / metric_networks.FILES["inception"][1]
    ).touch()  # the name torch-fidelity gives the same file
    monkeypatch.setenv(metric_networks.VARIABLE, str(tmp_path))
    assert metric_networks.find("inception", "").name == metric_networks.FILES["inception"][1]


def test_a_file_loads_without_its_classifier_and_without_counters(tmp_path):
    torch.manual_seed(3)
    source = small()
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = save(tmp_path, state | {"fc.weight": torch.zeros(2, 2)})
    loaded = metric_networks.build(small, path, seed=0)
    assert all(
        torch.equal(value, source.state_dict()[key]) for key, value in loaded.state_dict().items()
    )
    assert not loaded.training


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    path = save(tmp_path, small().state_dict())
    damaged = path.read_bytes()[:-1] + b"x"
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"net-.*SHA-256 begins with"):
        metric_networks.build(small, path, seed=0)


def test_missing_and_misshapen_weights_are_refused(tmp_path):
    state = small().state_dict()
    del state["0.bias"]
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    with pytest.raises(RuntimeError, match=r"(?s)0.bias.*0.weight"):
        metric_networks.build(small, save(tmp_path, state), seed=0)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_cannot_run_code(tmp_path):
    path = save(tmp_path, {"0.weight": Malicious(tmp_path / "marker")})
    with pytest.raises(Exception, match=r"(?i)weights.?only"):
        metric_networks.build(small, path, seed=0)
    assert not (tmp_path / "marker").exists()
