"""Layout and kernels on CUDA devices, seen without one: nothing is computed there."""

import pytest
import torch

from tests.batches import random_batch, tiny_module
from vton.config import EvalConfig
from vton.metrics.extractors import Extractors
from vton.models.placement import suit_device


@pytest.fixture(autouse=True)
def flags_as_before():
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark


def layouts(module) -> list[bool]:
    """Whether the convolutions' weights, of frozen networks too, lie channels last."""
    weights = []
    for network in (module, *module.frozen.values()):
        weights += [p for p in network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    return [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights]


@pytest.mark.parametrize("deterministic", [False, True])
def test_on_cuda_convolutions_read_channels_last(deterministic):
    module = tiny_module("idm_vton")
    suit_device(module, torch.device("cuda"), deterministic)
    assert layouts(module) and all(layouts(module))
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.benchmark is not deterministic


def test_cpus_are_left_as_they_are():
    module = tiny_module("idm_vton")
    suit_device(module, torch.device("cpu"), deterministic=False)
    assert not any(layouts(module))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.benchmark


def test_channels_last_computes_the_same():
    batch = random_batch(2)
    plain, other = tiny_module("idm_vton").eval(), tiny_module("idm_vton").eval()
    suit_device(other, torch.device("cuda"), deterministic=False)
    torch.testing.assert_close(other.generate(batch), plain.generate(batch), atol=1e-4, rtol=0)


def test_metrics_stay_in_float32():
    suit_device(tiny_module("gardiff"), torch.device("cuda"), deterministic=False)
    extractors = Extractors(EvalConfig(metrics=("ssim",)))
    with extractors.exact():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.benchmark
