"""`vton verify`: a folder of reference inputs, weights and outputs through our code, by tensor.

It is how a new machine, device or precision is checked. In float32 the bounds are those that an
implementation with another order of operations must meet. In half precision they are about twice
the rounding that was seen, which is large in small random networks: bfloat16 keeps 8 bits, and a
tensor's worst entry decides.

A fixed bound in float32 is unfair to networks with large values. Where one is missed, or on
request, everything is computed in float64 too. The distance of our float32 value from that is our
rounding, measured. The bound of a tensor is then the larger of its fixed bound and four times its
rounding, and the verdict says whether the difference is rounding, and whose, or a fault. A fault in
the reference cannot widen the bound, because only our own rounding counts. What is far from float64
is no rounding, so a fault of ours in float32 cannot widen it either.

Some gradients are zero by the network's form, such as that of a bias before a norm of one channel
per group: in float32 they are all rounding, of no scale of its own. They are recognised by their
value in float64, and bounded by the largest tensor of their kind.
"""

from __future__ import annotations

import importlib
import json
import math
import traceback
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

import vton
from vton import registry
from vton.errors import UserError, one_line
from vton.metrics import reference as metrics_reference
from vton.models.reference import Kind, Reference
from vton.processes import usable_device

PACKAGE = Path(vton.__file__).parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Single calls and bytes in float32 are bounded by absolute error, all else relative to the expected
# tensor's largest value.
ABSOLUTE = {Kind.CALL: 1e-4, Kind.BYTES: 1}
RELATIVE = {
    "fp32": {Kind.STEPS: 1e-3, Kind.GRADIENT: 1e-3},
    "fp16": {Kind.CALL: 5e-2, Kind.STEPS: 1e-1, Kind.GRADIENT: 1e-1, Kind.BYTES: 1e-1},
    "bf16": {Kind.CALL: 4e-1, Kind.STEPS: 5e-1, Kind.GRADIENT: 5e-1, Kind.BYTES: 5e-1},
}
DIFFERENT = 1e-2  # a recorded mistake must be further away than this, and no rounding is
# Two float32 computations of one value are at most about twice their rounding apart, and another
# order of operations may round twice as much.
TIMES_ROUNDING = 4
# A tensor of our float32 whose float64 value is this much smaller is zero but for rounding; float64
# rounds 2e-9 as coarsely. What is left is 1e-7 of the largest gradient in IDM-VTON's folder.
VANISHING = 1e-6
VANISHED = 1e-5  # of the largest tensor of its kind
# Values of the kinds whose bounds are about rounding.
ROUNDED = {kind.value for kind in (Kind.CALL, Kind.STEPS, Kind.GRADIENT)}


@dataclass
class Check:
    """One output. Errors are None where the tensor was not computed or has another shape."""

    name: str
    kind: str
    max_absolute: float | None
    max_relative: float | None  # of the expected tensor's largest value
    bound: str
    passed: bool
    # Largest distances from the float64 value. None where it was not computed, or where the tensor
    # is computed in float32 whatever precision is asked for.
    reference_rounding: float | None = None
    our_rounding: float | None = None
    # What the difference is, in words; "" where no float64 value was needed.
    finding: str = ""
    widened: bool = False  # whether it holds by its measured rounding only, not by the fixed bound


def run(args: Namespace) -> int:
    checks = verify(Path(args.folder), args.device, args.dtype, args.float64)
    if args.json:
        passed = all(check.passed for check in checks)
        listed = [as_json(check) for check in checks]
        print(json.dumps({"passed": passed, "checks": listed}, indent=2, allow_nan=False))
    else:
        print(f"{args.folder} on {args.device}, {args.dtype}")
        print_checks(checks)
    return int(not all(check.passed for check in checks))


def verify(
    folder: Path, device: str = "cpu", dtype: str = "fp32", float64: bool = False
) -> list[Check]:
    """Checks of every tensor in the folder's outputs, in name order.

    The architecture is config.json's `model`. float64: hold every float32 tensor against its value
    in float64, not only where a bound is missed.

    Raises UserError for what is absent or broken in the folder, for an architecture without
    reference code, for a device that cannot be used, and for float64 beside a half precision.
    """
    if float64 and dtype != "fp32":
        raise UserError(f"--float64 measures the rounding of float32; leave out --dtype {dtype}.")
    used = usable_device(device)
    torch.backends.cudnn.allow_tf32 = False

    reference = Reference(folder, used, DTYPES[dtype])
    computed = recompute(reference)
    if not reference.expected:
        raise UserError(f"{folder}: outputs*.safetensors hold no tensor to check.")
    checks = []
    for name, expected in sorted(reference.expected.items()):
        kind = kind_of(reference, name)
        checks.append(check_tensor(name, expected, computed.get(name), kind, dtype))
    missed = [check for check in checks if not check.passed and check.kind in ROUNDED]
    if dtype != "fp32" or not (float64 or missed):
        return checks

    try:
        precise = compute(Reference(folder, _with_float64(used), torch.float64))
    except RuntimeError as error:  # torch refuses to mix precisions
        reason = f"{folder} cannot be computed in float64 ({one_line(error)})"
        if float64:
            raise UserError(f"--float64: {reason}.") from None
        for check in missed:
            check.finding = f"fault, or rounding: {reason}"
        return checks
    largest: dict[str, float] = {}
    for check in checks:
        value = _largest(reference.expected[check.name].double())
        largest[check.kind] = max(value, largest.get(check.kind, 0.0))
    held = []
    for check in checks:
        name = check.name
        if check.max_absolute is not None and check.kind in ROUNDED and name in precise:
            tensors = (reference.expected[name], computed[name], precise[name])
            check = explained(check, *tensors, largest[check.kind])
        held.append(check)
    return held


def as_json(check: Check) -> dict:
    """Its fields, with "nan" and "inf" for the numbers that JSON does not have."""
    fields = asdict(check)
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            fields[name] = str(value)
    return fields


def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of the outputs, by our code, in the reference's precision.

    Raises UserError for what the folder lacks, and for tensors and settings that do not fit each
    other.
    """
    try:
        return compute(reference)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(
            f"{reference.folder}: config.json, inputs or weights lack {error}."
        ) from None
    except Exception as error:  # whatever the networks make of tensors and settings
        raise UserError(
            f"{reference.folder} cannot be computed: a tensor's shape or dtype, or a setting of "
            f"config.json, does not fit the others. {_place(error)}: {one_line(error)}"
        ) from error


def compute(reference: Reference) -> dict[str, Tensor]:
    """`recompute` with the errors as they come."""
    computed = reference_code(reference).recompute(reference)
    if any(map(of_metrics, reference.expected)):
        computed |= metrics_reference.recompute(reference)
    return computed


def _place(error: Exception) -> str:
    """File and line of the last of our own lines on the way to an error, and its class."""
    ours = []
    for frame in traceback.extract_tb(error.__traceback__):
        if PACKAGE in Path(frame.filename).parents:
            ours.append(frame)
    path = Path(ours[-1].filename).relative_to(PACKAGE.parent)
    return f"{path}:{ours[-1].lineno}, {type(error).__name__}"


def of_metrics(name: str) -> bool:
    return name.startswith(metrics_reference.PREFIX)


def kind_of(reference: Reference, name: str) -> Kind:
    owner = metrics_reference if of_metrics(name) else reference_code(reference)
    return owner.kind(name)


def _with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU for Apple's GPUs, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def reference_code(reference: Reference) -> ModuleType:
    """The architecture's reference.py. Raises UserError naming the folder if there is none."""
    folder, model = reference.folder, reference.config["model"]
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


def explained(
    check: Check, expected: Tensor, computed: Tensor, precise: Tensor, largest: float
) -> Check:
    """The verdict on a float32 tensor, held against its value in float64 too.

    The bound is the larger of the fixed one and TIMES_ROUNDING times our rounding. Beyond
    DIFFERENT, relative, nothing counts as rounding. largest: value of the folder's tensors of this
    kind, which bounds those that are zero but for rounding.
    """
    if precise.shape != expected.shape:
        return check
    was_float64 = precise.dtype == torch.float64
    expected, computed, precise = map(_precise, (expected, computed, precise))
    if not was_float64 and torch.equal(precise, computed):
        # It is computed in float32 whatever precision is asked for: its rounding stays unknown.
        finding = "" if check.passed else "fault, or rounding: always computed in float32"
        return replace(check, finding=finding)

    theirs = _largest(expected - precise)
    ours = _largest(computed - precise)
    if check.kind != Kind.CALL.value and _largest(precise) < VANISHING * _largest(computed):
        bound = VANISHED * largest
        small = max(theirs, ours) <= bound
        return replace(
            check,
            passed=small,
            bound=f"absolute {bound:.2g}",
            reference_rounding=theirs,
            our_rounding=ours,
            finding="zero but for rounding" if small else "fault: zero in float64",
            widened=small and not check.passed,
        )
    if check.kind == Kind.CALL.value:
        unit, fixed, error, scale = "absolute", ABSOLUTE[Kind.CALL], check.max_absolute, 1.0
    else:
        unit, fixed, error = "relative", RELATIVE["fp32"][Kind(check.kind)], check.max_relative
        scale = _largest(expected) or 1.0
    bound = max(fixed, TIMES_ROUNDING * ours / scale)
    rounded = ours <= DIFFERENT * (_largest(precise) or 1.0)  # False for NaN
    passed = rounded and error <= bound
    if not rounded:
        finding = f"fault of ours: float32 is {ours:.1e} from float64, which is no rounding"
    elif not passed:
        finding = "fault: more than rounding explains"
    elif error == 0:
        finding = "no difference"
    else:
        finding = f"rounding of {'the reference' if theirs > ours else 'ours'}"
    return replace(
        check,
        passed=passed,
        bound=f"{unit} {bound:.2g}",
        reference_rounding=theirs,
        our_rounding=ours,
        finding=finding,
        widened=passed and error > fixed,
    )


def _precise(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def print_checks(checks: list[Check]) -> None:
    """A line for each tensor, with maximum absolute and relative error, and a verdict.

    Below a tensor that was held against float64: how far either side is from that, and what the
    difference is.
    """
    width = max(len(check.name) for check in checks)
    for check in checks:
        if check.max_absolute is None:
            errors = "       -       -"
        else:
            errors = f"  {check.max_absolute:.1e}  {check.max_relative:.1e}"
        verdict = "ok  " if check.passed else "FAIL"
        print(f"{check.name:{width}}{errors}  {verdict}  {check.kind}, {check.bound}")
        if check.our_rounding is not None:
            theirs, ours = check.reference_rounding, check.our_rounding
            print(f"    from float64: reference {theirs:.1e}, ours {ours:.1e}: {check.finding}")
        elif check.finding:
            print(f"    {check.finding}")

    failed = [check.name for check in checks if not check.passed]
    passed = f"{len(checks) - len(failed)} of {len(checks)} tensors hold"
    widened = [check.name for check in checks if check.passed and check.widened]
    if widened:
        passed += f", {len(widened)} of them only by their rounding ({_some(widened)})"
    if not failed:
        print(f"{passed}.")
        return
    print(f"{passed}; failed: {_some(failed)}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
