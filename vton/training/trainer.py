"""lightning.Trainer as this repository uses it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from lightning import Callback, Trainer

from vton.config import ExperimentConfig
from vton.training.checkpoint import AtomicCheckpointIO
from vton.training.strategies import precision_plugin, strategy


def make_trainer(config: ExperimentConfig, callbacks: Sequence[Callback] = ()) -> Trainer:
    """A Trainer that counts steps, not epochs; sampler, checkpoints and validation are ours.

    It has no logger. `vton train` adds one, and callbacks, once it knows the run.
    """
    trainer = config.trainer
    return Trainer(
        accelerator=trainer.accelerator,
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


def quiet_libraries() -> None:
    """Silence what users can neither act on nor learn from, such as banners of Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)`.*")
