"""The verdicts of `vton verify`; the folders themselves are in each architecture's tests."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vton.cli import main
from vton.commands.verify import check_tensor, compute, explained, recompute, verify
from vton.errors import UserError
from vton.models.reference import Kind, Reference

VECTORS = Path(__file__).parents[1] / "vectors"
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


@pytest.fixture
def changed(tmp_path):
    """A copy of a small folder, in which something is to be spoilt."""
    return Path(shutil.copytree(VECTORS / "catvton", tmp_path / "changed"))


def test_tensors_that_do_not_fit_are_said_in_one_line(changed):
    path = changed / "inputs.safetensors"
    inputs = load_file(path)
    name = next(name for name, tensor in inputs.items() if tensor.ndim == 4)
    save_file(inputs | {name: inputs[name][..., :-1].contiguous()}, path)
    with pytest.raises(UserError, match=r"does not fit the others\. vton/\S+\.py:\d+, ") as error:
        verify(changed)
    assert "\n" not in str(error.value) and str(changed) in str(error.value)


def test_settings_of_another_kind_are_said_in_one_line(changed):
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"unet": []}))
    with pytest.raises(UserError, match=r"a setting of config\.json, does not fit"):
        verify(changed)


def test_a_scheduler_that_ours_is_not_is_no_fault_of_a_tensor(changed):
    config = json.loads((changed / "config.json").read_text())
    config["scheduler"]["set_alpha_to_one"] = True
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: scheduler\.set_alpha_to_one=True is not "):
        verify(changed)


def test_no_outputs_are_no_success(changed):
    for path in changed.glob("*outputs*.safetensors"):
        save_file({}, path)
    with pytest.raises(UserError, match="hold no tensor to check"):
        verify(changed)


def test_json_names_the_numbers_that_it_does_not_have(changed, capsys):
    outputs = load_file(changed / "outputs.safetensors")
    name = next(name for name, tensor in outputs.items() if tensor.is_floating_point())
    save_file(outputs | {name: outputs[name] * float("nan")}, changed / "outputs.safetensors")
    with pytest.raises(SystemExit) as done:
        main(["verify", str(changed), "--json"])
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    (check,) = [check for check in found["checks"] if check["name"] == name]
    assert done.value.code == 1 and not found["passed"] and check["max_absolute"] == "nan"


@pytest.mark.parametrize("model", ["idm_vton", "imagdressing"])
def test_the_command_holds_our_code_against_the_reference(model, tmp_path, capsys):
    """Exit 0 as stored; one changed weight, and most tensors fail with exit 1."""
    vectors = VECTORS / model
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


VALUE = torch.tensor([1000.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("reference", "ours", "passed", "finding"),
    [
        (6.4e-4, -2.7e-4, True, "rounding of the reference"),
        (1e-5, 3e-4, True, "rounding of ours"),
        (0.0, 0.0, True, "no difference"),
        (3e-3, 2.7e-4, False, "fault: more than rounding explains"),
        (3e-3, 0.0, False, "fault: more than rounding explains"),
        (0.0, 20.0, False, "fault of ours"),  # 4 times that would excuse anything
        (0.0, float("nan"), False, "fault"),
    ],
)
def test_float64_tells_rounding_from_faults(reference, ours, passed, finding):
    stored, computed = (VALUE + torch.tensor([0.0, off]) for off in (reference, ours))
    verdict = check_tensor("x", stored, computed, Kind.CALL)
    check = explained(verdict, stored, computed, VALUE, largest=1000.0)
    assert check.passed == passed and check.finding.startswith(finding)
    if passed and ours:
        assert check.reference_rounding == pytest.approx(abs(reference), rel=1e-6)
        assert check.our_rounding == pytest.approx(abs(ours), rel=1e-6)
        assert check.bound == f"absolute {max(1e-4, 4 * abs(ours)):.2g}"
    assert check.widened == (passed and abs(reference - ours) > 1e-4)


def test_bounds_that_are_relative_stay_relative():
    stored, computed = VALUE + 2.0, VALUE + torch.tensor([-1.0, 0.0])
    verdict = check_tensor("x", stored, computed, Kind.STEPS)
    check = explained(verdict, stored, computed, VALUE, largest=1000.0)
    assert check.passed and check.bound == "relative 0.004" and check.widened


@pytest.mark.parametrize(
    ("reference", "ours", "passed"),
    [(1e-8, -2e-8, True), (0.0, 2e-8, True), (1e-3, 2e-8, False), (1e-8, 1e-3, False)],
)
def test_a_gradient_that_is_zero_has_no_scale_of_its_own(reference, ours, passed):
    stored, computed, precise = (torch.tensor([x]).double() for x in (reference, ours, 3e-17))
    verdict = check_tensor("x", stored, computed, Kind.GRADIENT)
    check = explained(verdict, stored, computed, precise, largest=0.1)
    assert not verdict.passed and check.passed == check.widened == passed
    assert check.finding.startswith("zero but for rounding" if passed else "fault")


def test_gradients_of_biases_before_a_norm_of_single_channels_hold(tmp_path):
    """They are zero, and 1e-8 in float32, of whatever sign."""
    folder = tmp_path / "idm_vton"
    shutil.copytree(VECTORS / "idm_vton", folder)
    name = "train.grad.down_blocks.0.resnets.0.conv1.bias"
    outputs = load_file(folder / "outputs.safetensors")
    noise = torch.randn(8, generator=torch.Generator().manual_seed(0)) * 1e-8
    save_file(outputs | {name: noise}, folder / "outputs.safetensors")
    checks = {check.name: check for check in verify(folder)}
    assert all(check.passed for check in checks.values())
    assert checks[name].widened and checks[name].finding == "zero but for rounding"


def test_what_is_always_float32_is_not_called_rounding():
    stored, computed = VALUE, VALUE.float() + 1
    verdict = check_tensor("x", stored, computed, Kind.CALL)
    check = explained(verdict, stored, computed, computed, largest=1000.0)
    assert not check.passed and "always computed in float32" in check.finding
    assert check.our_rounding is None


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory):
    """IDM-VTON's folder with garment features 300 times as large.

    Its outputs are a float32 computation in another order of sums: without oneDNN.
    """
    folder = tmp_path_factory.mktemp("enlarged") / "idm_vton"
    shutil.copytree(VECTORS / "idm_vton", folder)
    path = folder / "weights_unet_encoder.safetensors"
    weights = load_file(path)
    save_file(weights | {"conv_in.weight": weights["conv_in.weight"] * 300}, path)
    with torch.backends.mkldnn.flags(enabled=False):
        computed = recompute(Reference(folder, torch.device("cpu")))
    outputs = load_file(folder / "outputs.safetensors")
    stored = {name: computed[name].detach().to(outputs[name].dtype) for name in outputs}
    save_file(
        {name: x.contiguous().clone() for name, x in stored.items()}, folder / "outputs.safetensors"
    )
    return folder


def test_a_set_that_misses_its_bound_by_rounding_alone_holds_and_says_so(enlarged, capsys):
    with pytest.raises(SystemExit) as done:
        main(["verify", str(enlarged), "--json"])
    found = json.loads(capsys.readouterr().out)
    widened = [check for check in found["checks"] if check["widened"]]
    assert done.value.code == 0 and widened
    for check in widened:
        assert check["max_absolute"] > 1e-4 and check["finding"].startswith("rounding of ")
        assert check["max_absolute"] <= 4 * check["our_rounding"]
    # Wherever the difference is measured it is explained, and the other tensors are unmoved.
    assert all(check["finding"] for check in found["checks"] if check["our_rounding"])


def test_a_changed_reference_is_a_fault_also_where_rounding_is_large(enlarged, tmp_path, capsys):
    shutil.copytree(enlarged, tmp_path / "changed")
    path = tmp_path / "changed" / "outputs.safetensors"
    outputs = load_file(path)
    name = "garment.discarded_sample"
    save_file(outputs | {name: outputs[name] * 1.001}, path)
    with pytest.raises(SystemExit) as done:
        main(["verify", str(tmp_path / "changed")])
    lines = capsys.readouterr().out.splitlines()
    (place,) = [index for index, line in enumerate(lines) if line.startswith(name)]
    assert done.value.code == 1 and "FAIL" in lines[place]
    assert "fault: more than rounding explains" in lines[place + 1]
    assert f"failed: {name}." in lines[-1]


def test_code_that_cannot_run_in_float64_says_so(enlarged, monkeypatch):
    def mixing(reference):
        if reference.dtype == torch.float64:
            raise RuntimeError("mat1 and mat2 must have the same dtype")
        return compute(reference)

    monkeypatch.setattr("vton.commands.verify.compute", mixing)
    missed = [check for check in verify(enlarged) if not check.passed]
    assert missed
    for check in missed:
        assert "cannot be computed in float64 (mat1 and mat2" in check.finding
    with pytest.raises(UserError, match=r"--float64: .* cannot be computed in float64"):
        verify(enlarged, float64=True)


def test_float64_belongs_to_float32(enlarged):
    with pytest.raises(UserError, match="leave out --dtype bf16"):
        verify(enlarged, dtype="bf16", float64=True)
    checks = verify(enlarged, float64=True)
    held = [check for check in checks if check.our_rounding is not None]
    assert len(held) > 50 and all(check.passed for check in held)
