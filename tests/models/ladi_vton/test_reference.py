"""LaDI-VTON's code against reference vectors (float32, random weights; tests/vectors/ladi_vton)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vton.commands.verify import verify
from vton.models.ladi_vton.reference import kind, recompute
from vton.models.reference import Kind, Reference

FOLDER = Path(__file__).parents[2] / "vectors" / "ladi_vton"


def test_every_reference_tensor_is_met():
    checks = verify(FOLDER)
    assert {check.name for check in checks} == set(load_file(FOLDER / "outputs.safetensors"))
    assert [check.name for check in checks if not check.passed] == []
    # Tighter than the verdict's bounds: what another order of float32 sums costs. Guidance
    # multiplies it.
    for check in checks:
        if check.kind == Kind.CALL.value:
            assert check.max_absolute <= 1e-4 if "guided" in check.name else 2e-5, check.name
        if check.kind in (Kind.STEPS.value, Kind.GRADIENT.value):
            assert check.max_relative <= 1e-5, check.name


def test_half_precision_holds_its_own_bounds():
    assert [check.name for check in verify(FOLDER, dtype="bf16") if not check.passed] == []


def test_other_batches_runs_and_shapes_need_no_change_of_code(tmp_path):
    """The second sample alone, and a run of another name, length and scale."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    inputs = load_file(FOLDER / "inputs.safetensors")
    expected = load_file(FOLDER / "outputs.safetensors")
    alone = {name: x[1:] if len(x) == 2 else x for name, x in inputs.items()}
    save_file({name: x.contiguous() for name, x in alone.items()}, tmp_path / "inputs.safetensors")
    config = json.loads((FOLDER / "config.json").read_text())
    other = config["runs"]["full"] | {"num_inference_steps": 3, "cloth_cond_rate": 0.34}
    config["runs"] = {"full": other | {"no_pose": True}, "other": other}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = recompute(Reference(tmp_path, torch.device("cpu")))
    for name in ("adapter.words", "text.states", "emasc.decoded", "unet.noise_pred_uncond"):
        torch.testing.assert_close(found[name], expected[name][1:], atol=2e-5, rtol=0)
    assert found["other.timesteps"].tolist() == [667, 334, 1]
    assert found["other.latents_steps"].shape == (3, 1, 4, 10, 6)
    assert not torch.equal(found["other.image"], found["full.image"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("control.text_states_unreplaced", Kind.CONTROL),
        ("full.timesteps", Kind.EXACT),
        ("full.latents_steps", Kind.STEPS),
        ("stage1.grad.conv.0.0.weight", Kind.GRADIENT),
        ("stage1.l1", Kind.CALL),
    ],
)
def test_kinds_of_outputs(name, expected):
    assert kind(name) is expected
