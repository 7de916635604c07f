"""Leffa and its flow loss against reference tensors (float32; tests/vectors/leffa)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vton.commands.verify import verify
from vton.models.leffa import reference as leffa
from vton.models.reference import Kind, Reference

FOLDER = Path(__file__).parents[2] / "vectors" / "leffa"


@pytest.fixture(scope="module")
def checks():
    return verify(FOLDER)


def test_every_reference_tensor_is_met(checks):
    expected = set(load_file(FOLDER / "outputs.safetensors"))
    expected |= set(load_file(FOLDER / "outputs_derived.safetensors"))
    assert {check.name for check in checks} == expected
    assert [check.name for check in checks if not check.passed] == []


def test_rounding_stays_within_a_few_times_what_the_vectors_say(checks):
    bounds = {"single call": 1e-5, "several steps": 1e-5, "gradient": 3e-5}
    far = [check.name for check in checks if check.max_relative > bounds.get(check.kind, 1e9)]
    assert far == []


def test_both_forms_of_the_flow_loss_are_among_them(checks):
    named = {check.name: check for check in checks}
    assert named["flow.loss"].kind == named["flow.variant.history"].kind == Kind.CALL.value
    assert named["flow.loss"].max_absolute < 1e-6
    assert named["flow.variant.history"].max_absolute < 1e-6


def test_half_precision_runs_and_keeps_pictures_exact():
    reference = Reference(FOLDER, torch.device("cpu"), torch.bfloat16)
    found = leffa.recompute(reference)
    assert set(reference.expected) <= set(found)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert torch.equal(found["prep.image"], reference.expected["prep.image"])
    expected = reference.expected["call.noise_pred"]
    error = (found["call.noise_pred"].float() - expected).abs().max()
    assert error < 0.2 * expected.abs().max()


def test_what_nothing_reads_changes_nothing(tmp_path):
    """NaN in both UNets' cross-attentions and behind the reference UNet's last feature."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    weights = load_file(FOLDER / "weights_checkpoint.safetensors")
    for name, tensor in weights.items():
        if ".attn2.to_" in name or name.startswith("unet_encoder.conv_out"):
            tensor.fill_(float("nan"))
    save_file(weights, tmp_path / "weights_checkpoint.safetensors")
    assert [check.name for check in verify(tmp_path) if not check.passed] == []


def test_other_shapes_need_no_change_of_code(tmp_path):
    """Three persons, another guidance, fewer steps and another block; nothing to compare with."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    config = json.loads((FOLDER / "config.json").read_text())
    config["call"]["guidance_scale"] = 1.5
    config["runs"]["run"]["num_inference_steps"] = 3
    config["example_block"] = "mid_block.attentions.0.transformer_blocks.0"
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = [0, 1, 0]
    for file in ("inputs.safetensors", "inputs_derived.safetensors"):
        inputs = load_file(FOLDER / file)
        for name, tensor in inputs.items():
            if name == "run.step_noise":
                inputs[name] = tensor[:, rows].contiguous()
            elif len(tensor) == 2:
                inputs[name] = tensor[rows].contiguous()
        save_file(inputs, tmp_path / file)
    found = leffa.recompute(Reference(tmp_path, torch.device("cpu")))
    assert found["attn.joined"].shape == (3, 4, 16)
    assert found["run.latents_steps"].shape == (3, 3, 4, 16, 8)
    assert found["flow.loss_layers"].shape == (9, 3)


def test_no_timestep_below_the_bound_is_a_loss_and_gradients_of_zero(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (path,) = (path for path in tmp_path.glob("inputs*") if "flow.timesteps" in load_file(path))
    inputs = load_file(path)
    late = inputs["flow.timesteps"].clamp(min=600)
    save_file(inputs | {"flow.timesteps": late}, path)
    reference = Reference(tmp_path, torch.device("cpu"))
    found = leffa.recompute(reference)
    assert found["flow.loss"].item() == 0 and found["flow.loss_layers"].min() > 0
    gradients = [tensor for name, tensor in found.items() if name.startswith("flow.grad.")]
    assert gradients and all(not gradient.any() for gradient in gradients)
