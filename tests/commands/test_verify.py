"""The verdicts of `vton verify`; the folders themselves are in each architecture's tests."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vton.cli import main
from vton.commands.verify import check_tensor, verify
from vton.errors import UserError
from vton.models.reference import Kind

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
        (Kind.CALL, 4.0, "bf16", True),
        (Kind.CALL, 4.0, "fp16", False),
        (Kind.CALL, float("nan"), "fp32", False),
    ],
)
def test_verdicts(kind, error, dtype, passed):
    check = check_tensor("x", BIG, BIG + torch.tensor([0.0, error]), kind, dtype)
    assert check.passed == passed


def test_absent_and_misshapen_tensors_fail():
    assert not check_tensor("x", BIG, None, Kind.CALL).passed
    assert "shape (1, 2), expected (2,)" in check_tensor("x", BIG, BIG[None], Kind.CALL).bound


def folder(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    for name in ("inputs", "outputs"):
        save_file({"x": BIG}, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_folders_that_cannot_be_verified_say_why(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        verify(tmp_path)
    with pytest.raises(UserError, match="names no architecture"):
        verify(folder(tmp_path, "[]"))
    with pytest.raises(UserError, match="lack"):
        verify(folder(tmp_path, json.dumps({"model": "idm_vton"})))
    with pytest.raises(UserError, match="--device nowhere"):
        verify(folder(tmp_path, json.dumps({"model": "idm_vton"})), device="nowhere")


@pytest.mark.parametrize("model", ["idm_vton", "imagdressing"])
def test_the_command_holds_our_code_against_the_reference(model, tmp_path, capsys):
    """Exit 0 as stored; one changed weight, and most tensors fail with exit 1."""
    vectors = Path(__file__).parents[1] / "vectors" / model
    with pytest.raises(SystemExit) as done:
        main(["verify", str(vectors), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert done.value.code == 0 and found["passed"]
    names = {"idm_vton": "unet", "imagdressing": "checkpoint"}
    shutil.copytree(vectors, tmp_path / "changed")
    path = tmp_path / "changed" / f"weights_{names[model]}.safetensors"
    weights = load_file(path)
    key = next(
        name
        for name in weights
        if name.endswith("proj_in.bias") and "proj." in name and "blocks" not in name
    )
    save_file(weights | {key: weights[key] + torch.linspace(0, 1, len(weights[key]))}, path)
    with pytest.raises(SystemExit) as done:
        main(["verify", str(tmp_path / "changed")])
    last = capsys.readouterr().out.splitlines()[-1]
    assert done.value.code == 1 and "failed: " in last
