"""`vton import` and `vton export`: published checkpoints in and out of run folders.

What a published format looks like stands in each architecture's checkpoint.py; here is what happens
around it. Weights keep the precision they are stored in, and tensors that we have no use for are
kept aside, so that an export holds the same tensors, byte for byte, as what was imported.
"""

from __future__ import annotations

import importlib
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vton import registry
from vton.commands.choice import chosen_run
from vton.config import (
    ConfigError,
    ExperimentConfig,
    as_override,
    load,
    to_yaml_of_no_machine,
)
from vton.cost.meta import on_meta, settings_named
from vton.errors import UserError
from vton.models.codecs import build_codec
from vton.models.lora import merged
from vton.models.settings import UNetConfig
from vton.runs.assemble import load_module
from vton.runs.codec import keep_codec
from vton.runs.folder import RunFolder
from vton.weights.pretrained import check_state, load_state, read_safetensors, write_tensors
from vton.weights.published import PublishedWeights

EXTRA = "published_extra.safetensors"  # in a run's folder of checkpoints


def run_import(args: Namespace) -> None:
    run = import_run(args.model, Path(args.path), *args.overrides)
    print(f"{run.path} is ready. Evaluate it: make eval RUN={run.path} DATA=viton_hd")


def run_export(args: Namespace) -> None:
    for override in args.overrides:
        if not override.startswith("runs="):
            raise ConfigError(f"{override}: export takes runs=DIR only; a run has its settings.")
    run = chosen_run(args)
    export_run(run, Path(args.out))
    print(f"{run.path} exported to {args.out}")


def import_run(model: str, path: Path, *overrides: str) -> RunFolder:
    """A run folder that `vton eval` accepts, from published weights of `model`.

    The full-size setting is assumed (preset=paper) where neither the files nor the overrides say
    otherwise. The run records no machine: trainer and precision are those of wherever it is read,
    unless an override gives them. Raises UserError for files that are absent, broken or of another
    model, and if the run folder holds weights or a process trains in it.
    """
    registry.config_class(model)
    if not path.exists():
        raise UserError(f"Nothing to import at {path}.")
    read_published = checkpoint_code(model, "read_published")
    published = read_published(path)
    require_determined(published, overrides, path)
    # Not resolved: files of the hub's cache are links to files that are named by their digests.
    stem = Path(os.path.abspath(path)).stem
    name = as_override("name", f"{model}-{stem}")
    given = (f"model={model}", "preset=paper", name, *published.settings, *overrides)
    config = load(*given)
    require_whole_state(published.state, config, path)

    run = RunFolder.of(config)
    if run.weights.exists() or run.last.exists():
        raise UserError(
            f"{run.path} holds weights already; give the import another name (name=...)."
        )
    codec = None
    if published.codec:
        codec = build_codec(config.codec)
        load_state(codec.vae, published.codec, path)
    keys = [override.partition("=")[0] for override in given]
    with run.training_lock():
        run.start(config, to_yaml_of_no_machine(config, keys))
        if codec is not None:
            keep_codec(run, codec)
        if published.extra:
            write_tensors(run.checkpoints / EXTRA, published.extra)
        write_tensors(run.weights, published.state)
    return run


def require_determined(published: PublishedWeights, overrides: Sequence[str], source: Path) -> None:
    """Raise UserError for settings that neither the files nor the overrides say."""
    given = {override.partition("=")[0] for override in overrides}
    for key in published.undetermined:
        if key not in given:
            raise UserError(
                f"{source}: {key} is in no tensor and does not follow from their sizes. Put the "
                f"network's configuration beside the file, or give {key}=[...], one number per "
                "level."
            )


def require_whole_state(state: dict[str, Tensor], config: ExperimentConfig, source: Path) -> None:
    """The rule for weights that make a run: every tensor of the configured module, and no others.

    Raises UserError listing the keys that are missing, unexpected or of another shape.
    """
    with settings_named(config):
        own = on_meta(config).state_dict()
    check_state(own, state, source)


def export_run(run: RunFolder, target: Path) -> None:
    """The run's weights in the architecture's published format.

    Raises UserError for a run without weights, for one that no published format can express, and if
    the target exists.
    """
    config = run.load_config()
    require_exportable(run, config)
    if not run.weights.exists():
        raise UserError(f"{run.weights} does not exist: {run.path} has not finished training.")
    if target.exists() and not is_empty_folder(target):
        raise UserError(f"{target} exists; export to a new place.")
    extra = run.checkpoints / EXTRA
    kept = read_safetensors(extra) if extra.exists() else {}
    write_published = checkpoint_code(config.model.name, "write_published")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_published(target, whole_weights(run, config), config, kept)


def whole_weights(run: RunFolder, config: ExperimentConfig) -> dict[str, Tensor]:
    """The run's weights; LoRA's matrices added to the weights that they change."""
    if not config.lora_rank:
        return read_safetensors(run.weights)
    exact = replace(config, train=replace(config.train, precision="fp32"))
    return merged(load_module(run, exact, "weights"))


def require_exportable(run: RunFolder, config: ExperimentConfig) -> None:
    """Raise UserError for a position code, which no published format has a place for."""
    for name, part in vars(config.model).items():
        if isinstance(part, UNetConfig) and part.positions:
            raise UserError(
                f"{run.path} was trained with model.{name}.positions={part.positions:g}, and no "
                "published format has a place for a position code; use "
                f"{run.weights.name} in the run folder, or train with positions=0."
            )


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def checkpoint_code(model: str, function: str) -> Callable:
    """A function of the architecture's checkpoint.py. Raises UserError where there is none."""
    name = f"vton.models.{model}.checkpoint"
    try:
        return getattr(importlib.import_module(name), function)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    except AttributeError:
        pass
    raise UserError(f"{model} has no published format that vton reads or writes.")
