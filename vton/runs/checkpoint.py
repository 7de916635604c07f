"""What a checkpoint says of its run: weights, steps, what training has cost so far."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vton.errors import UserError
from vton.runs.folder import RunFolder
from vton.weights.pretrained import read_checkpoint, write_tensors


def finish_from_checkpoint(run: RunFolder) -> None:
    """Write weights and training.json of a run that was killed right after its last checkpoint.

    Raises UserError for DeepSpeed's folders, whose weights are in pieces.
    """
    if run.last.is_dir():
        raise UserError(
            f"{run.last} is complete, but its weights were not written out. "
            "Raise train.steps to go on."
        )
    checkpoint = read_checkpoint(run.last, "callbacks", "state_dict", "global_step")
    export_weights(run, averaged(checkpoint))
    run.finish(training_so_far(checkpoint))


def averaged(checkpoint: dict) -> dict[str, Tensor]:
    """The weights that a training would end with here: their average where it keeps one."""
    average = checkpoint["callbacks"].get("EMA", {}).get("average", {})
    return checkpoint["state_dict"] | average


def training_so_far(checkpoint: dict) -> dict:
    """What training.json would say here: steps, samples in each, and Telemetry's state."""
    facts = {"steps": int(checkpoint["global_step"])}
    callbacks = checkpoint["callbacks"]
    if "global_batch" in callbacks.get("Checkpoints", {}):
        facts["global_batch"] = callbacks["Checkpoints"]["global_batch"]
    return {**facts, **callbacks.get("Telemetry", {})}


def export_weights(run: RunFolder, state: dict[str, Tensor]) -> None:
    """The trained weights as safetensors, whole or not at all. Raises UserError.

    training.json, which speaks of the weights before, goes first: whenever the process dies, it
    never speaks of others.
    """
    run.training.unlink(missing_ok=True)
    write_tensors(run.weights, {name: tensor.detach().cpu() for name, tensor in state.items()})


def states_file(path: Path) -> Path:
    """The file that says how far a checkpoint's run was.

    That is the checkpoint itself, or in a folder of DeepSpeed's the file with the weights.
    """
    if not path.is_dir():
        return path
    latest = (path / "latest").read_text().strip()
    return path / latest / "mp_rank_00_model_states.pt"
