"""The verdicts of `vton verify`; the folders themselves are in each architecture's tests."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vton.models.pretrained import WeightsError
from vton.models.reference import Kind
from vton.verify import VerifyError, compare, verify

BIG = torch.tensor([40.0, -3.0])


@pytest.mark.parametrize(
    ("kind", "error", "dtype", "passed"),
    [
        (Kind.CALL, 9e-5, "fp32", True),
        (Kind.CALL, 2e-4, "fp32", False),  # although relative to 40 it is small
        (Kind.STEPS, 0.03, "fp32", True),
        (Kind.STEPS, 0.05, "fp32", False),
        (Kind.GRADIENT, 0.05, "fp32", False),
        (Kind.EXACT, 0.0, "fp32", True),
        (Kind.EXACT, 1e-5, "fp32", False),
        (Kind.CONTROL, 0.0, "fp32", False),
        (Kind.CONTROL, 5.0, "fp32", True),
        (Kind.CALL, 0.4, "bf16", True),
        (Kind.CALL, 0.4, "fp32", False),
        (Kind.CALL, float("nan"), "fp32", False),
    ],
)
def test_verdicts(kind, error, dtype, passed):
    check = compare("x", BIG, BIG + torch.tensor([0.0, error]), kind, dtype)
    assert check.passed == passed


def test_absent_and_misshapen_tensors_fail():
    assert not compare("x", BIG, None, Kind.CALL).passed
    assert "shape (1, 2), expected (2,)" in compare("x", BIG, BIG[None], Kind.CALL).bound


def folder(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    for name in ("inputs", "outputs"):
        save_file({"x": BIG}, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_folders_that_cannot_be_verified_say_why(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json"):
        verify(tmp_path)
    with pytest.raises(WeightsError, match="names no architecture"):
        verify(folder(tmp_path, "[]"))
    with pytest.raises(WeightsError, match="lack"):
        verify(folder(tmp_path, json.dumps({"model": "idm_vton"})))
    with pytest.raises(VerifyError, match="--device nowhere"):
        verify(folder(tmp_path, json.dumps({"model": "idm_vton"})), device="nowhere")
