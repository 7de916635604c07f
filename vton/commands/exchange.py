"""`vton import` and `vton export`: published checkpoints in and out of run folders.

What a published format looks like stands in each architecture's checkpoint.py; here is what happens
around it. Weights keep the precision they are stored in, and tensors that we have no use for are
kept aside, so that an export holds the same bytes as what was imported.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from vton import registry
from vton.config import load
from vton.cost.meta import on_meta
from vton.errors import UserError
from vton.models.settings import UNetConfig
from vton.runs.folder import RunError, RunFolder
from vton.weights.pretrained import check_state, read_safetensors, write_tensors

EXTRA = "published_extra.safetensors"


class ExchangeError(UserError):
    """An architecture without a published format, or a place that cannot be written to."""


def import_run(model: str, path: Path, *overrides: str) -> RunFolder:
    """A run folder that `vton eval` accepts, from published weights of `model`.

    The full-size setting is assumed (preset=paper) where neither the files nor the overrides say
    otherwise. Raises WeightsError for files that are absent, broken or of another model, RunError
    if the run folder holds weights.
    """
    registry.config_class(model)
    if not Path(path).exists():
        raise ExchangeError(f"Nothing to import at {path}.")
    published = checkpoint_code(model, "read_published")(Path(path))
    name = f"name={model}-{Path(path).resolve().stem}"
    config = load(f"model={model}", "preset=paper", name, *published.settings, *overrides)
    check_state(on_meta(config).state_dict(), published.state, path)
    run = RunFolder.of(config)
    if run.weights.exists() or run.last.exists():
        raise RunError(
            f"{run.path} holds weights already; give the import another name (name=...)."
        )
    run.start(config)
    if published.extra:
        write_tensors(run.checkpoints / EXTRA, published.extra)
    write_tensors(run.weights, published.state)
    return run


def export_run(run: RunFolder, target: Path) -> None:
    """The run's weights in the architecture's published format. Raises RunError without weights,
    ExchangeError.
    """
    config = run.load_config()
    for name, part in vars(config.model).items():
        if isinstance(part, UNetConfig) and part.positions:
            raise ExchangeError(
                f"{run.path} was trained with model.{name}.positions={part.positions:g}, and no published format has a "
                f"place for a position code; use {run.weights.name} in the run folder, or train with positions=0."
            )
    if not run.weights.exists():
        raise RunError(f"{run.weights} does not exist: {run.path} has not finished training.")
    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ExchangeError(f"{target} exists; export to a new place.")
    extra = run.checkpoints / EXTRA
    kept = read_safetensors(extra) if extra.exists() else {}
    write = checkpoint_code(config.model.name, "write_published")
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, read_safetensors(run.weights), config, kept)


def checkpoint_code(model: str, function: str):
    """A function of the architecture's checkpoint.py."""
    try:
        return getattr(importlib.import_module(f"vton.models.{model}.checkpoint"), function)
    except (ModuleNotFoundError, AttributeError) as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name != f"vton.models.{model}.checkpoint"
        ):
            raise
        raise ExchangeError(f"{model} has no published format that vton reads or writes.") from None
