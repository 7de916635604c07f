"""What rows say about how their pictures were made: weights, settings, training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vton.config import ExperimentConfig, flatten, to_yaml
from vton.errors import UserError
from vton.files import file_digest
from vton.models.base import TrainedModule
from vton.runs.assemble import checkpoint_path, load_module
from vton.runs.checkpoint import training_so_far
from vton.runs.folder import RESUMABLE, RunFolder, is_part_of
from vton.weights.pretrained import read_checkpoint

ATTEMPTS = 5  # to read a checkpoint that is being replaced
# Settings of training that stand in every row.
TRAIN_SETTINGS = (
    "batch_size",
    "accumulate",
    "optimizer",
    "lr",
    "warmup_steps",
    "schedule",
    "precision",
)


def load_with_facts(
    run: RunFolder, config: ExperimentConfig, recorded: ExperimentConfig, checkpoint: str
) -> tuple[TrainedModule, dict[str, Any]]:
    """`load_module`, and `drawing_facts` of the very file that was loaded.

    A training under way replaces last.ckpt and best.ckpt, also in between; then both are read
    again. recorded: the configuration of the facts. Raises UserError, also where that happens every
    time.
    """
    path = checkpoint_path(run, checkpoint)
    for _ in range(ATTEMPTS):
        before = identity(path)
        try:
            module = load_module(run, config, checkpoint)
            facts = drawing_facts(run, recorded, checkpoint)
        except UserError:  # such as pieces that are gone
            if identity(path) == before:
                raise
            continue
        if identity(path) == before:
            return module, facts
        del module  # before the next is loaded
    raise UserError(
        f"A training replaces {path} faster than it can be read. Raise its train.checkpoint_every, "
        "or wait for its end."
    )


def identity(path: Path) -> tuple[int, int]:
    """What tells a file from the one that takes its place."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def drawing_facts(run: RunFolder, config: ExperimentConfig, checkpoint: str) -> dict[str, Any]:
    """How the pictures of a run are made, as it stands now."""
    facts = {
        "checkpoint": checkpoint,
        "checkpoint_sha256": file_digest(checkpoint_path(run, checkpoint)),
        "config_sha256": hashlib.sha256(to_yaml(config).encode()).hexdigest(),
        "settings_sha256": settings_digest(config),
        "training": training_facts(run, config, checkpoint),
    }
    if config.model.kind == "architecture":  # a warp draws nothing
        facts["solver"] = config.sampler.solver
        facts["steps"] = config.sampler.steps
        facts["guidance"] = config.sampler.guidance
    facts["size"] = list(config.data.picture_size)
    if config.data.pad:
        facts["padded_to"] = list(config.data.size)
    return facts


def settings_digest(config: ExperimentConfig) -> str:
    """SHA-256 of the settings that training seeds of one method share.

    All but the seed and what changes neither weights nor pictures. How a batch is shared out, and
    how long was trained, stands in the training facts. Defaults are left out, so that a setting
    that a later version adds leaves the digest as it is.
    """
    defaults = flatten(asdict(ExperimentConfig(model=type(config.model)())))
    shared = {}
    for key, value in sorted(flatten(asdict(config)).items()):
        if key == "seed" or (is_part_of(key, RESUMABLE) and not is_part_of(key, ("sampler",))):
            continue
        if key not in defaults or value != defaults[key]:
            shared[key] = value
    return hashlib.sha256(json.dumps(shared, default=str).encode()).hexdigest()


def training_facts(
    run: RunFolder, config: ExperimentConfig, checkpoint: str
) -> dict[str, Any] | None:
    """How the weights were trained, and what it took until there.

    None where they are not this run's own.
    """
    if checkpoint == "weights":
        done = run.trained()
    else:
        path = checkpoint_path(run, checkpoint)
        done = training_so_far(read_checkpoint(path, "callbacks", "global_step"))
    if not done:
        return None
    facts: dict[str, Any] = {"seed": config.seed}
    for name, value in asdict(config.train).items():
        if name in TRAIN_SETTINGS:
            facts[name] = value
    facts["timestep_power"] = config.objective.timestep_power
    return facts | done
