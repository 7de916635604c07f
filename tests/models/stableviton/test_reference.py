"""StableVITON against reference tensors (float32, random weights; tests/vectors/stableviton)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vton.commands.verify import verify
from vton.errors import UserError
from vton.models.reference import Reference
from vton.models.stableviton import reference as stableviton

FOLDER = Path(__file__).parents[2] / "vectors" / "stableviton"


def test_every_reference_tensor_is_met():
    checks = verify(FOLDER)
    assert {check.name for check in checks} == set(load_file(FOLDER / "outputs.safetensors"))
    assert [check.name for check in checks if not check.passed] == []
    # Relative. Found: 2.3e-6 (single calls), 1.9e-6 (steps), 2.3e-5 (gradients), the rounding of
    # another order of sums; bytes are at most a level away.
    bounds = {"single call": 1e-5, "several steps": 1e-5, "gradient": 1e-4, "bytes": 5e-3}
    wide = [check.name for check in checks if check.max_relative > bounds.get(check.kind, 0)]
    assert wide == [check.name for check in checks if check.kind == "control"]


def test_half_precision_runs_and_keeps_preprocessing_exact():
    reference = Reference(FOLDER, torch.device("cpu"), torch.bfloat16)
    found = stableviton.recompute(reference)
    assert set(reference.expected) <= set(found)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    expected = reference.expected["unet.noise_pred"]
    assert (found["unet.noise_pred"].float() - expected).abs().max() < 0.2 * expected.abs().max()


def test_other_shapes_need_no_change_of_code(tmp_path):
    """Batch 3, another length and start of the runs; nothing to compare with, only to compute."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    config = json.loads((FOLDER / "config.json").read_text())
    run = {"sampler": "ddim", "num_inference_steps": 3, "guidance_scale": 1.5, "start": "noise"}
    config["runs"] = {"other": run, "from_person": run | {"start": "noised_person"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    inputs = load_file(FOLDER / "inputs.safetensors")
    repeated = {name: tensor[[0, 1, 0]].contiguous() for name, tensor in inputs.items()}
    save_file(repeated, tmp_path / "inputs.safetensors")
    found = stableviton.recompute(Reference(tmp_path, torch.device("cpu")))
    assert found["other.latents_steps"].shape == (3, 3, 4, 16, 8)
    assert not torch.equal(found["other.decoded"], found["from_person.decoded"])
    assert found["atv.centers"].shape == (3, 32 * 24, 2)


def test_a_checkpoint_without_a_part_is_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "weights_checkpoint.safetensors"
    state = load_file(file)
    del state["model.diffusion_model.warp_zero_convs.3.bias"]
    save_file(state, file)
    with pytest.raises(UserError, match=r"weights_checkpoint.*missing \(3\.zero\.bias\)"):
        verify(tmp_path)
