"""IDM-VTON against reference tensors (float32, random weights; tests/vectors/idm_vton)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vton.commands.verify import verify
from vton.errors import UserError
from vton.models.idm_vton import reference as idm
from vton.models.reference import Reference

FOLDER = Path(__file__).parents[2] / "vectors" / "idm_vton"


def test_every_reference_tensor_is_met():
    checks = verify(FOLDER)
    assert {check.name for check in checks} == set(load_file(FOLDER / "outputs.safetensors"))
    assert [check.name for check in checks if not check.passed] == []
    # Relative, as values come near 10. What is stored was computed in float32: from it our networks
    # are 0.8e-5 (single calls), 1.1e-5 (steps) and 1.6e-5 (gradients) away in float64, and 0.6e-5,
    # 0.4e-5 and 1.3e-5 in float32.
    bounds = {"single call": 1.5e-5, "several steps": 1.5e-5, "gradient": 3e-5}
    assert [check.name for check in checks if check.max_relative > bounds.get(check.kind, 0)] == []


def test_half_precision_runs_and_keeps_preprocessing_exact():
    reference = Reference(FOLDER, torch.device("cpu"), torch.bfloat16)
    found = idm.recompute(reference)
    assert set(found) == set(reference.expected)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    assert torch.equal(found["prep.mask_latent"], reference.expected["prep.mask_latent"])
    error = (
        (found["tryon.noise_pred_guided"].float() - reference.expected["tryon.noise_pred_guided"])
        .abs()
        .max()
    )
    assert error < 0.2 * reference.expected["tryon.noise_pred_guided"].abs().max()


def test_other_shapes_need_no_change_of_code(tmp_path):
    """Batch 3 with another garment size, text length, guidance and block; nothing to compare with,
    only to compute.
    """
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    config = json.loads((FOLDER / "config.json").read_text())
    config["run"] |= {
        "guidance_scale": 1.0,
        "hooked_block": "mid_block.attentions.0.transformer_blocks.0",
    }
    (tmp_path / "config.json").chmod(0o644)
    (tmp_path / "config.json").write_text(json.dumps(config))
    inputs = load_file(FOLDER / "inputs.safetensors")
    for name, tensor in inputs.items():
        if name == "sampler.step_noise":
            inputs[name] = tensor[:, [0, 1, 0]]
        elif name != "timestep":
            inputs[name] = tensor[[0, 1, 0]]
    inputs["garment_latents"] = inputs["garment_latents"][..., :9, :5]
    inputs["garment_prompt_embeds"] = inputs["garment_prompt_embeds"][:, :6]
    save_file(
        {name: tensor.contiguous() for name, tensor in inputs.items()},
        tmp_path / "inputs.safetensors",
    )
    found = idm.recompute(Reference(tmp_path, torch.device("cpu")))
    assert found["garment.feature.000"].shape == (3, 5 * 3, 32)
    assert found["tryon.block.attn1_in"].shape == (6, 48 + 15, 32)
    assert found["sampler.latents_after_step"].shape == (4, 3, 4, 16, 12)


def test_weights_of_another_network_are_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    shutil.copy(FOLDER / "weights_unet_encoder.safetensors", tmp_path / "weights_unet.safetensors")
    with pytest.raises(
        UserError, match=r"weights_unet.safetensors does not fit .* missing .*to_k_ip"
    ):
        verify(tmp_path)
