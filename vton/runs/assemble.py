"""What a run is made of, from its configuration: folder, data, codec and module."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning import seed_everything
from torch import Tensor

from vton import registry
from vton.config import ExperimentConfig
from vton.cost.meta import require_works, settings_named
from vton.data.module import TryOnDataModule
from vton.errors import UserError
from vton.files import file_digest
from vton.models.base import TrainedModule
from vton.models.codecs import run_codec
from vton.models.hub_settings import other_prediction
from vton.models.lora import load_base
from vton.models.precision import DTYPES, codec_precision
from vton.runs.checkpoint import averaged
from vton.runs.codec import prepare_codec
from vton.runs.folder import RunFolder
from vton.runs.warp import RunWarp
from vton.weights.pretrained import load_state, read_checkpoint, read_safetensors
from vton.weights.unfilled import unfilled


def prepare_run(
    config: ExperimentConfig, is_first: bool = True
) -> tuple[RunFolder, TryOnDataModule, TrainedModule]:
    """The run folder, started, its data, and its module as training finds it.

    The folder is started when everything is checked that can be checked before: that it is this
    experiment's, settings, data and pair lists. Where the preparation fails after all, the start is
    undone, so that a corrected command does not find another experiment there. Of several processes
    the first one starts it: it has the folder's lock.
    """
    run = RunFolder.of(config)
    fresh = not run.config.exists()
    if fresh:
        require_works(config)
    else:
        run.require_same(config)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    seed_everything(config.seed, verbose=False)

    data = data_module(config)
    data.prepare_data()
    data.setup("fit")
    pairs = data.train_dataset().pairs
    if config.train.picture_every:
        data.eval_dataset("paired")
        data.eval_dataset("unpaired")
    root = str(data.root.resolve() if isinstance(data.root, Path) else data.root)
    learned_from = pairs.learned_from() | base_weights(config)
    remark = run.compare_data(root, pairs.pair_ids, learned_from)
    if is_first:
        for said in filter(None, (remark, other_prediction(config))):
            print(f"vton: {said}", file=sys.stderr)
        run.start(config)
        run.remember_data(root, pairs.pair_ids, learned_from)
    try:
        codec = prepare_codec(run, config, data)
        # Again, because fitting a codec draws numbers and loading it does not.
        seed_everything(config.seed, verbose=False)
        with settings_named(config):
            module = registry.module_class(config.model.name)(config, codec)
        if config.train.start_from:
            start_from(module, Path(config.train.start_from).expanduser())
        return run, data, module
    except Exception:
        if is_first and fresh:
            run.take_back()
        raise


def base_weights(config: ExperimentConfig) -> dict[str, str]:
    """The digest of another run's weights that LoRA's matrices are added to, {} if there are none.

    No checkpoint of the run holds them.
    """
    path = RunFolder(Path(config.train.start_from).expanduser()).weights
    if not (config.lora_rank and config.train.start_from and path.exists()):
        return {}
    return {"train.start_from": f"weights of sha256 {file_digest(path)[:16]}"}


def start_from(module: TrainedModule, folder: Path) -> None:
    """Give the module the weights of another run. Raises UserError where they don't fit."""
    path = RunFolder(folder).weights
    if not path.exists():
        raise UserError(f"train.start_from={folder}: {path} does not exist.")
    state = read_safetensors(path)
    if module.has_lora:
        load_base(module, state, path)
    else:
        load_state(module, state, path)


def data_module(config: ExperimentConfig) -> TryOnDataModule:
    """The configured data, with the trained warp that data.warp_source=learned asks for.

    Raises UserError where that is not a finished run of a warp.
    """
    warp = None
    if config.data.warp_source == "learned":
        warp = RunWarp(config.data.warp_run, config.data.picture_size)
    return TryOnDataModule(
        config.data,
        seed=config.seed,
        batch_size=config.train.batch_size,
        eval_batch_size=config.eval.batch_size,
        warp=warp,
        reads=registry.module_class(config.model.name).fields_read(config),
    )


def load_module(run: RunFolder, config: ExperimentConfig, checkpoint: str) -> TrainedModule:
    """The run's model with its trained weights, averaged where training keeps an average.

    An architecture's are in train.precision, as all of its networks then: see
    `TrainedModule.compute_in`. checkpoint: "weights", "last" or "best". Raises UserError naming
    what is absent or broken, and where the weights below LoRA's are not those it was trained on.
    """
    path = checkpoint_path(run, checkpoint)
    codec = run_codec(config.codec, run.codec, DTYPES[codec_precision(config)])

    def read(dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        if checkpoint == "weights":
            return read_safetensors(path, dtype)
        return averaged(read_checkpoint(path, "state_dict", "callbacks", "global_step"))

    def build() -> TrainedModule:
        with torch.random.fork_rng(devices=[]), settings_named(config):
            # What is frozen and read from nowhere stays as training drew it: see prepare_run.
            torch.manual_seed(config.seed)
            return registry.module_class(config.model.name)(config, codec)

    if config.model.kind != "architecture":  # a warp is small, and solves for its splines
        module = build()
        load_state(module, read(), path)
        return module.eval()
    if config.lora_rank:  # the file holds LoRA's matrices alone
        run.require_same_sources(base_weights(config))
        module = build()
        if config.train.start_from:
            start_from(module, Path(config.train.start_from).expanduser())
        load_state(module, read(), path)
        module.compute_in(config.train.precision)
        return module.eval()

    with unfilled(by_run=True) as left:
        module = build()
    dtype = DTYPES[config.train.precision]
    load_state(module, read(dtype), path, dtype)
    if left.among(module, *module.frozen.values()):  # weights that no file holds
        del module
        module = build()
        load_state(module, read(), path)
    module.compute_in(config.train.precision)
    return module.eval()


def checkpoint_path(run: RunFolder, checkpoint: str) -> Path:
    """The file to score. Raises UserError saying why it is not there, and what is."""
    path = {"weights": run.weights, "last": run.last, "best": run.best}[checkpoint]
    in_pieces = checkpoint != "weights" and path.is_dir()
    if path.exists() and not in_pieces:
        return path

    if in_pieces:
        reason = "is a folder of DeepSpeed's, which evaluation does not read"
    elif not run.has_checkpoint:
        reason = f"does not exist: {run.path} has no checkpoint yet"
    elif checkpoint == "weights":
        reason = f"does not exist: {run.path} has not finished training"
    elif not run.last.exists():
        reason = f"does not exist: {run.path} holds weights alone, as an import does"
    else:
        reason = (
            f"does not exist: {run.path} has scored no held-out pictures "
            "(train.picture_every; 0 is never)"
        )

    if run.weights.exists():
        advice = f"Evaluate its weights: make eval RUN={run.path}."
    elif run.last.is_file():
        last = f'make eval RUN={run.path} ARGS="--checkpoint last"'
        advice = f"Run the same `make train` again, or evaluate what is there: {last}."
    else:
        advice = "Run the same `make train` again."
    raise UserError(f"{path} {reason}. {advice}")
