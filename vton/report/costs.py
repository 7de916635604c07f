"""What a method is and what it took, read from its rows: parameters, FLOPs, seconds, memory."""

from __future__ import annotations

from typing import Any

from vton.metrics.results import Row

COSTS: dict[str, tuple[str, float, int]] = {  # name in `costs`: heading, unit, digits
    "parameters": ("M parameters", 1e6, 2),
    "picture_flops": ("GFLOP / image", 1e9, 2),
    "seconds_per_picture": ("s / image", 1, 3),
    "sampling_gib": ("sampling MiB", 2**-10, 1),
    "steps": ("train steps", 1, 0),
    "training_flops": ("train TFLOP", 1e12, 1),
    "training_seconds": ("train min", 60, 1),
    "training_peak_gib": ("train GiB", 1, 2),
}
COST_NOTE = (
    "A multiply-add is 2 FLOP. GFLOP / image, train TFLOP and sampling MiB (networks in half "
    "precision, all loaded) are counted, the rest is measured: s / image with reading and writing "
    "of pictures, train min with the pictures and checkpoints on the way, train GiB as the peak of "
    "the process on a CPU and of the allocator on a GPU."
)


def costs(row: Row) -> dict[str, float | None]:
    """The costs of a method in plain units; None where a row does not know one."""
    training = training_of(row)
    counted = row.provenance.get("cost", {})
    steps = training.get("steps")
    step_flops = counted.get("step_flops")
    training_flops = None
    if steps is not None and step_flops is not None:
        training_flops = step_flops * steps
    sampling_bytes = counted.get("sampling_bytes")
    return {
        "parameters": counted.get("parameters"),
        "picture_flops": counted.get("picture_flops"),
        "seconds_per_picture": row.provenance.get("seconds_per_picture"),
        "sampling_gib": None if sampling_bytes is None else sampling_bytes / 2**30,
        "steps": steps,
        "training_flops": training_flops,
        "training_seconds": training.get("seconds"),
        "training_peak_gib": training.get("peak_memory_gib"),
    }


def training_of(row: Row) -> dict[str, Any]:
    """How the row's weights were trained; empty for what learned nothing."""
    return row.provenance.get("training") or {}
