"""`vton verify`: a folder of reference inputs, weights and outputs through our code, by tensor.

It is how a new machine, device or precision is checked. In float32 the bounds are those that an
implementation with another order of operations must meet. In half precision they are about twice
the rounding that was seen, which is large in small random networks: bfloat16 keeps 8 bits, and a
tensor's worst entry decides.
"""

from __future__ import annotations

import importlib
import json
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from vton import registry
from vton.errors import UserError, one_line
from vton.metrics import reference as metrics_reference
from vton.models.reference import Kind, Reference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Single calls and bytes in float32 are bounded by absolute error, all else relative to the expected
# tensor's largest value.
ABSOLUTE = {Kind.CALL: 1e-4, Kind.BYTES: 1}
RELATIVE = {
    "fp32": {Kind.STEPS: 1e-3, Kind.GRADIENT: 1e-3},
    "fp16": {Kind.CALL: 5e-2, Kind.STEPS: 1e-1, Kind.GRADIENT: 1e-1, Kind.BYTES: 1e-1},
    "bf16": {Kind.CALL: 4e-1, Kind.STEPS: 5e-1, Kind.GRADIENT: 5e-1, Kind.BYTES: 5e-1},
}
OUTLINE = 1e-2  # share of a mask's pixels that may differ, all of them at its border
DIFFERENT = 1e-2  # a recorded mistake must be further away than this


@dataclass
class Check:
    """One output. Errors are None where the tensor was not computed or has another shape."""

    name: str
    kind: str
    max_absolute: float | None
    max_relative: float | None  # of the expected tensor's largest value
    bound: str
    passed: bool


def run(args: Namespace) -> int:
    checks = verify(Path(args.folder), args.device, args.dtype)
    if args.json:
        passed = all(check.passed for check in checks)
        listed = [asdict(check) for check in checks]
        print(json.dumps({"passed": passed, "checks": listed}, indent=2))
    else:
        print(f"{args.folder} on {args.device}, {args.dtype}")
        print_checks(checks)
    return int(not all(check.passed for check in checks))


def verify(folder: Path, device: str = "cpu", dtype: str = "fp32") -> list[Check]:
    """Checks of every tensor in the folder's outputs, in name order.

    The architecture is config.json's `model`. Raises UserError for what is absent or broken in the
    folder, for an architecture without reference code and for a device that cannot be used.
    """
    try:
        reference = Reference(folder, torch.ones((), device=device).device, DTYPES[dtype])
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not usable here ({one_line(error)}).") from None
    code = reference_code(reference.config["model"], folder)
    torch.backends.cudnn.allow_tf32 = False

    expected = reference.expected
    of_metrics = {name for name in expected if name.startswith(metrics_reference.PREFIX)}
    try:
        computed = code.recompute(reference)
        if of_metrics:
            computed |= metrics_reference.recompute(reference)
    except KeyError as error:
        raise UserError(f"{folder}: config.json, inputs or weights lack {error}.") from None

    checks = []
    for name in sorted(expected):
        owner = metrics_reference if name in of_metrics else code
        checks.append(
            check_tensor(name, expected[name], computed.get(name), owner.kind(name), dtype)
        )
    return checks


def reference_code(model: str, folder: Path) -> ModuleType:
    """The architecture's reference.py. Raises UserError naming the folder if there is none."""
    registry.config_class(model)
    name = f"vton.models.{model}.reference"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(
            f"{folder}: {model} cannot be verified yet (vton/models/{model} has no reference.py)."
        ) from None


def check_tensor(
    name: str, expected: Tensor, computed: Tensor | None, kind: Kind, dtype: str = "fp32"
) -> Check:
    """The verdict on one tensor."""
    if computed is None:
        return Check(name, kind.value, None, None, "not computed", passed=False)
    if computed.shape != expected.shape:
        problem = f"shape {tuple(computed.shape)}, expected {tuple(expected.shape)}"
        return Check(name, kind.value, None, None, problem, passed=False)

    if kind is Kind.OUTLINE:
        share = differing_share(expected, computed)
        bound = f"share of pixels {OUTLINE:g}"
        return Check(name, kind.value, None, share, bound, passed=share <= OUTLINE)

    expected, computed = expected.double(), computed.detach().double().cpu()
    largest = expected.abs().max().item() if expected.numel() else 0.0
    absolute = (expected - computed).abs().max().item() if expected.numel() else 0.0
    if largest:
        relative = absolute / largest
    elif absolute == 0:
        relative = 0.0
    else:
        relative = float("inf")

    if kind is Kind.EXACT:
        bound, passed = "equal", absolute == 0
    elif kind is Kind.CONTROL:
        bound, passed = f"relative > {DIFFERENT:g}", relative > DIFFERENT
    elif kind in RELATIVE[dtype]:
        bound, passed = f"relative {RELATIVE[dtype][kind]:g}", relative <= RELATIVE[dtype][kind]
    else:
        bound, passed = f"absolute {ABSOLUTE[kind]:g}", absolute <= ABSOLUTE[kind]
    return Check(name, kind.value, absolute, relative, bound, passed)


def differing_share(expected: Tensor, computed: Tensor) -> float:
    """How many bits of two packed masks differ, as a share of those that are set."""
    expected, computed = expected.numpy(), computed.cpu().numpy()
    differing = np.unpackbits(expected ^ computed).sum()
    return float(differing / max(np.unpackbits(expected).sum(), 1))


def print_checks(checks: list[Check]) -> None:
    """A line for each tensor, with maximum absolute and relative error, and a verdict."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        if check.max_relative is None:
            errors = "       -       -"
        elif check.max_absolute is None:
            errors = f"        -  {check.max_relative:.1e}"
        else:
            errors = f"  {check.max_absolute:.1e}  {check.max_relative:.1e}"
        verdict = "ok  " if check.passed else "FAIL"
        print(f"{check.name:{width}}{errors}  {verdict}  {check.kind}, {check.bound}")

    failed = [check.name for check in checks if not check.passed]
    passed = f"{len(checks) - len(failed)} of {len(checks)} tensors hold"
    if not failed:
        print(f"{passed}.")
        return
    more = ", ..." if len(failed) > 5 else ""
    print(f"{passed}; failed: {', '.join(failed[:5])}{more}.")
