"""IMAGDressing-v1 against the reference tensors in tests/vectors (float32, random weights)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vton.commands.verify import verify
from vton.errors import UserError
from vton.models.imagdressing import reference as imagdressing
from vton.models.reference import Reference

FOLDER = Path(__file__).parents[2] / "vectors" / "imagdressing"


def test_every_reference_tensor_is_met():
    checks = verify(FOLDER)
    assert {check.name for check in checks} == set(load_file(FOLDER / "outputs.safetensors"))
    assert [check.name for check in checks if not check.passed] == []
    # Ten times tighter than the verdict's bounds: what another order of float32 sums costs.
    bounds = {
        "single call": ("max_absolute", 1e-5),
        "several steps": ("max_relative", 1e-5),
        "gradient": ("max_relative", 1e-5),
    }
    for check in checks:
        if check.kind in bounds:
            error, bound = bounds[check.kind]
            assert getattr(check, error) <= bound, check.name


def test_half_precision_runs():
    reference = Reference(FOLDER, torch.device("cpu"), torch.bfloat16)
    found = imagdressing.recompute(reference)
    for name in ("base.latents_steps", "face_pose.latents_steps", "train.noise_pred"):
        expected = reference.expected[name]
        assert (found[name].float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_other_shapes_and_combined_runs_need_no_change_of_code(tmp_path):
    """Three samples, a garment of another size, all plug-ins, a ControlNet that starts late."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    config = json.loads((FOLDER / "config.json").read_text())
    controlled = config["calls"]["face_pose"] | {
        "control_guidance_start": 0.4,
        "num_inference_steps": 2,
    }
    config["calls"] = {
        "face_pose_inpaint": controlled,
        "noface_pose": config["calls"]["pose"] | {"guidance_scale": 1.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    inputs = load_file(FOLDER / "inputs.safetensors")
    for name in (
        "text_embeds",
        "garment_latents",
        "clip_hidden",
        "person_latents",
        "noise",
        "timesteps",
    ):
        inputs[name] = inputs[name][[0, 1, 0]]
    inputs["garment_latents"] = inputs["garment_latents"][..., :9, :5]
    inputs["init_latents"] = inputs["noise"].clone()
    save_file(
        {name: tensor.contiguous() for name, tensor in inputs.items()},
        tmp_path / "inputs.safetensors",
    )
    found = imagdressing.recompute(Reference(tmp_path, torch.device("cpu")))
    middle = found["garment.mid_block.attentions.0.transformer_blocks.0.attn1"]
    assert middle.shape == (3, 5 * 3, 32)
    assert found["train.noise_pred"].shape == (3, 4, 16, 12)
    assert found["face_pose_inpaint.latents_steps"].shape == (6, 4, 16, 12)
    assert found["face_pose_inpaint.control_mid"].shape == (6, 32, 8, 6)
    assert not found["face_pose_inpaint.control_mid"].any()  # it has not started yet
    assert found["noface_pose.control_mid"].any()


def test_weights_of_another_network_are_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    shutil.copy(
        FOLDER / "weights_base_unet.safetensors", tmp_path / "weights_checkpoint.safetensors"
    )
    with pytest.raises(UserError, match=r"not an IMAGDressing-v1 checkpoint: it has no ref_unet"):
        verify(tmp_path)
