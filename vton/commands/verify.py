"""`vton verify`: a folder of reference inputs, weights and outputs through our code, tensor by
tensor.

It is how a new machine, device or precision is checked. In float32 the bounds are those that an
implementation with another order of operations must meet; in half precision they are about twice
the rounding that was seen, which in small
random networks is large: bfloat16 keeps 8 bits, and a tensor's worst entry is looked at.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vton import registry
from vton.errors import UserError, one_line
from vton.metrics import reference as metrics_reference
from vton.models.reference import Kind, Reference
from vton.weights.pretrained import WeightsError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Single calls and bytes in float32 by absolute error; all else relative to the expected tensor's
# largest value.
ABSOLUTE = {Kind.CALL: 1e-4, Kind.BYTES: 1}
RELATIVE = {
    "fp32": {Kind.STEPS: 1e-3, Kind.GRADIENT: 1e-3},
    "fp16": {Kind.CALL: 5e-2, Kind.STEPS: 1e-1, Kind.GRADIENT: 1e-1, Kind.BYTES: 1e-1},
    "bf16": {Kind.CALL: 4e-1, Kind.STEPS: 5e-1, Kind.GRADIENT: 5e-1, Kind.BYTES: 5e-1},
}
DIFFERENT = 1e-2  # a recorded mistake must be further away than this


class VerifyError(UserError):
    """A folder or a device that cannot be verified with."""


@dataclass
class Check:
    """One output. Errors are None where the tensor was not computed or has another shape."""

    name: str
    kind: str
    max_absolute: float | None
    max_relative: float | None  # of the expected tensor's largest value
    bound: str
    passed: bool


def verify(folder: Path, device: str = "cpu", dtype: str = "fp32") -> list[Check]:
    """Checks of every tensor in the folder's outputs, in name order.

    The architecture is config.json's `model`. Raises WeightsError for what is absent or broken in
    the folder, and VerifyError for an architecture without reference code or a device that is not
    there.
    """
    try:
        reference = Reference(folder, torch.ones((), device=device).device, DTYPES[dtype])
    except (RuntimeError, AssertionError) as error:
        raise VerifyError(f"--device {device}: not usable here ({one_line(error)}).") from None
    model = reference.config["model"]
    registry.config_class(model)
    try:
        code = importlib.import_module(f"vton.models.{model}.reference")
    except ModuleNotFoundError as error:
        if error.name != f"vton.models.{model}.reference":
            raise
        raise VerifyError(
            f"{folder}: {model} cannot be verified yet (vton/models/{model} has no reference.py)."
        ) from None
    torch.backends.cudnn.allow_tf32 = False
    expected = reference.expected
    of_metrics = {name for name in expected if name.startswith(metrics_reference.PREFIX)}
    try:
        found = code.recompute(reference)
        if of_metrics:
            found |= metrics_reference.recompute(reference)
    except KeyError as error:
        raise WeightsError(f"{folder}: config.json, inputs or weights lack {error}.") from None
    checks = []
    for name in sorted(expected):
        kind = (metrics_reference if name in of_metrics else code).kind(name)
        checks.append(compare(name, expected[name], found.get(name), kind, dtype))
    return checks


def compare(
    name: str, expected: Tensor, found: Tensor | None, kind: Kind, dtype: str = "fp32"
) -> Check:
    """The verdict on one tensor."""
    if found is None or found.shape != expected.shape:
        problem = (
            "not computed"
            if found is None
            else f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
        )
        return Check(name, kind.value, None, None, problem, passed=False)
    expected, found = expected.double(), found.detach().double().cpu()
    largest = expected.abs().max().item() if expected.numel() else 0.0
    absolute = (expected - found).abs().max().item() if expected.numel() else 0.0
    relative = absolute / largest if largest else (0.0 if absolute == 0 else float("inf"))
    if kind is Kind.EXACT:
        bound, passed = "equal", absolute == 0
    elif kind is Kind.CONTROL:
        bound, passed = f"relative > {DIFFERENT:g}", relative > DIFFERENT
    elif kind in RELATIVE[dtype]:
        bound, passed = f"relative {RELATIVE[dtype][kind]:g}", relative <= RELATIVE[dtype][kind]
    else:
        bound, passed = f"absolute {ABSOLUTE[kind]:g}", absolute <= ABSOLUTE[kind]
    return Check(name, kind.value, absolute, relative, bound, passed)


def report(
    checks: list[Check], folder: Path, device: str, dtype: str, as_json: bool = False
) -> bool:
    """Print a line for each tensor (maximum absolute and relative error) and a verdict; True if all
    passed.
    """
    failed = [check for check in checks if not check.passed]
    if as_json:
        print(
            json.dumps(
                {"passed": not failed, "checks": [asdict(check) for check in checks]}, indent=2
            )
        )
        return not failed
    print(f"{folder} on {device}, {dtype}")
    width = max(len(check.name) for check in checks)
    for check in checks:
        errors = "".join(
            "       -" if e is None else f"  {e:.1e}"
            for e in (check.max_absolute, check.max_relative)
        )
        print(
            f"{check.name:{width}}{errors}  {'ok  ' if check.passed else 'FAIL'}  {check.kind}, {check.bound}"
        )
    names = ", ".join(check.name for check in failed[:5]) + (", ..." if len(failed) > 5 else "")
    print(
        f"{len(checks) - len(failed)} of {len(checks)} tensors hold"
        + (f"; failed: {names}." if failed else ".")
    )
    return not failed
