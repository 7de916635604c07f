"""CatVTON against reference tensors (float32, random weights; tests/vectors/catvton)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vton.commands.verify import verify
from vton.errors import UserError
from vton.models.catvton import reference as catvton
from vton.models.reference import Reference

FOLDER = Path(__file__).parents[2] / "vectors" / "catvton"


def test_every_reference_tensor_is_met():
    checks = verify(FOLDER)
    stored = load_file(FOLDER / "outputs.safetensors") | load_file(
        FOLDER / "outputs_deco.safetensors"
    )
    assert {check.name for check in checks} == set(stored)
    assert [check.name for check in checks if not check.passed] == []
    # Relative. float32 is 2.7e-6 (single calls), 2.6e-6 (steps) and 8.1e-6 (gradients) away from
    # float64 at most; an independent implementation is 2.2e-6, 2.1e-6 and 4.5e-6 away.
    bounds = {"single call": 5e-6, "several steps": 5e-6, "gradient": 2e-5}
    assert [c.name for c in checks if c.max_relative > bounds.get(c.kind, 2)] == []


def test_half_precision_runs_and_keeps_pictures_and_masks_exact():
    reference = Reference(FOLDER, torch.device("cpu"), torch.bfloat16)
    found = catvton.recompute(reference)
    assert set(found) == set(reference.expected)
    assert all(
        torch.isfinite(tensor).all() for tensor in found.values() if tensor.is_floating_point()
    )
    for name in catvton.EXACT:
        assert torch.equal(found[name].to(reference.expected[name].dtype), reference.expected[name])
    expected = reference.expected["unet.eps"]
    assert (found["unet.eps"].float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("axis", ["height", "width"])
def test_other_shapes_need_no_change_of_code(tmp_path, axis):
    """Batch 3 of another size, halves that no level's tokens divide, the other axis; nothing to
    compare with, only to compute.
    """
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    config = json.loads((FOLDER / "config.json").read_text()) | {"concat_axis": axis}
    (tmp_path / "config.json").write_text(json.dumps(config))
    inputs = load_file(FOLDER / "inputs.safetensors")
    height, width = 72, 56  # latents of 9 x 7
    h, w = (18, 7) if axis == "height" else (9, 14)
    for name, tensor in inputs.items():
        if name == "step_noise":
            inputs[name] = torch.randn(4, 3, 4, h, w)
        elif name in ("init_noise", "train_noise"):
            inputs[name] = torch.randn(3, 4, h, w)
        elif name.startswith("vae_noise"):
            inputs[name] = torch.randn(3, 4, 9, 7)
        elif name != "picture_rgb":
            inputs[name] = tensor[[0, 1, 0]]
    for name in ("person_rgb", "garment_rgb", "mask"):
        inputs[name] = inputs[name][:, :height, :width]
    save_file({n: x.contiguous() for n, x in inputs.items()}, tmp_path / "inputs.safetensors")
    found = catvton.recompute(Reference(tmp_path, torch.device("cpu")))
    other = "x" if axis == "height" else "y"
    assert found["unet.eps"].shape == (3, 4, h, w)
    assert found[f"unet.eps_{other}_axis"].shape == (
        (3, 4, 9, 14) if other == "x" else (3, 4, 18, 7)
    )
    assert found["deco.person_steps"].shape == (4, 3, 4, 9, 7)
    assert found["sample.image_rgb"].shape == (3, height, width, 3)


def test_a_layer_that_the_attention_file_lacks_is_named(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "weights_attention.safetensors"
    weights = load_file(path)
    del weights["8.to_v.weight"]
    save_file(weights, path)
    with pytest.raises(UserError, match=r"weights_attention\.safetensors.*: 8\.to_v\.weight\."):
        verify(tmp_path)
