"""lightning.Trainer as this repository uses it."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

from lightning import Callback, Trainer

from vton.config import ConfigError, ExperimentConfig
from vton.processes import own_device
from vton.training.checkpoint import AtomicCheckpointIO
from vton.training.strategies import precision_plugin, strategy


def make_trainer(config: ExperimentConfig, callbacks: Sequence[Callback] = ()) -> Trainer:
    """A Trainer that counts steps, not epochs; sampler, checkpoints and validation are ours.

    It has no logger. `vton train` adds one, and callbacks, once it knows the run. Raises UserError
    for a GPU that is not there.
    """
    trainer = config.trainer
    return Trainer(
        accelerator=own_device(trainer.accelerator).type,
        devices=trainer.devices,
        num_nodes=trainer.nodes,
        strategy=strategy(trainer),
        deterministic=trainer.deterministic,
        max_steps=config.train.steps,
        max_epochs=-1,
        accumulate_grad_batches=config.train.accumulate,
        gradient_clip_val=config.train.grad_clip or None,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        plugins=[AtomicCheckpointIO(), precision_plugin(trainer, config.train.precision)],
        callbacks=list(callbacks),
        logger=False,
    )


def with_shares_of_global_batch(config: ExperimentConfig, processes: int) -> ExperimentConfig:
    """The configuration whose batches, over all processes, add up to train.global_batch.

    Raises ConfigError where they cannot.
    """
    train = config.train
    if not train.global_batch:
        return config
    if train.accumulate > 1:
        raise ConfigError(
            f"train.accumulate={train.accumulate} follows from train.global_batch="
            f"{train.global_batch} and train.batch_size; leave it out, or set train.global_batch=0."
        )
    share, rest = divmod(train.global_batch, processes)
    if rest:
        raise ConfigError(
            f"train.global_batch={train.global_batch} is no multiple of the {processes} processes; "
            f"{train.global_batch - rest + processes} is. Or take fewer (trainer.devices=N)."
        )
    accumulate = math.ceil(share / train.batch_size)
    while share % accumulate:  # batches of a step are equally large
        accumulate += 1
    train = replace(train, accumulate=accumulate, batch_size=share // accumulate)
    return replace(config, train=train)


def quiet_libraries() -> None:
    """Silence what users can neither act on nor learn from, such as banners of Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)`.*")
