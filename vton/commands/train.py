"""`vton train`: from a configuration to a trained run folder. The same command starts and resumes."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from vton.config import ExperimentConfig
from vton.data.module import TryOnDataModule
from vton.runs.assemble import prepare
from vton.runs.checkpoint import finish_from_checkpoint, states_file, training_so_far
from vton.runs.encodings import use_encodings
from vton.runs.folder import RunError, RunFolder
from vton.training.checkpoint import Checkpoints
from vton.training.dashboard import LAYOUT
from vton.training.ema import EMA
from vton.training.finite import FiniteNumbers
from vton.training.held_out import Console, HeldOut
from vton.training.preemption import Preemption
from vton.training.telemetry import Telemetry
from vton.training.trainer import make_trainer, quiet_libraries
from vton.weights.pretrained import read_checkpoint


def train(config: ExperimentConfig) -> RunFolder:
    """Train, or continue where the run folder stands. Raises UserError subclasses for what the user
    must solve.
    """
    quiet_libraries()
    trainer = make_trainer(config.trainer, config, callbacks=[], logger=None)
    # The first process holds the folder for all of its job. Others of Lightning's start when it
    # trains.
    with RunFolder.of(config).held() if trainer.is_global_zero else nullcontext():
        return carry_on(trainer, config)


def carry_on(trainer: Trainer, config: ExperimentConfig) -> RunFolder:
    """From where the run folder stands to train.steps."""
    run, data, module = prepare(config)
    if config.data.encoded:
        use_encodings(module, data)
    global_batch = config.train.batch_size * config.train.accumulate * trainer.world_size
    planned = config.train.steps if config.train.schedule == "cosine" else None
    telemetry = Telemetry(config.train.log_every, config.train.batch_size, planned)
    trainer.callbacks += callbacks(config, run, data, telemetry, global_batch)
    so_far = steps_so_far(run, global_batch)
    done = so_far.get("steps", 0)
    if done and run.last.is_dir() != (config.trainer.strategy == "deepspeed"):
        raise RunError(
            f"{run.last}: trainer.strategy=deepspeed and the others cannot read each other's checkpoints."
        )
    trainer.logger = TensorBoardLogger(
        run.tensorboard, name="", version="", purge_step=done + 1 if done else None
    )
    if done >= config.train.steps:
        if trainer.is_global_zero:
            if run.trained().get("steps") != done:
                finish_from_checkpoint(run)
            print(f"{run.path} has its {done} steps. Evaluate it (make eval) or raise train.steps.")
        return run
    if trainer.is_global_zero:
        print(
            f"{'Resuming' if done else 'Training'} {run.path} at step {done} of {config.train.steps}."
        )
        if planned and (before := so_far.get("planned_steps", [planned])[-1]) != planned:
            print(
                f"Its learning rate fell along a cosine of {before} steps and goes on along one of {planned}: not one "
                "curve. training.json and every row say so (planned_steps)."
            )
        if not done:
            trainer.logger.experiment.add_custom_scalars(LAYOUT)
    data.start(done * global_batch)
    trainer.fit(
        module, train_dataloaders=data.train_dataloader(), ckpt_path=run.last if done else None
    )
    if trainer.is_global_zero:
        run.finish({"steps": trainer.global_step, **telemetry.state_dict()})
    return run


def steps_so_far(run: RunFolder, global_batch: int) -> dict:
    """`training_so_far` of last.ckpt; {} without one.

    Raises WeightsError for a broken file, RunError where its steps had another number of samples:
    then they lead to another place of the training stream.
    """
    if not run.last.exists():
        return {}
    checkpoint = read_checkpoint(states_file(run.last), "callbacks", "global_step")
    before = checkpoint["callbacks"].get("Checkpoints", {}).get("global_batch", global_batch)
    if before != global_batch:
        raise RunError(
            f"{run.path} was trained with {before} samples per step, this command asks for {global_batch} "
            "(train.batch_size x train.accumulate x processes). Make the product equal, or name another run (name=...)."
        )
    return training_so_far(checkpoint)


def callbacks(
    config: ExperimentConfig,
    run: RunFolder,
    data: TryOnDataModule,
    telemetry: Telemetry,
    global_batch: int,
) -> list:
    """In the order they act after a step: average, log, look, save, leave."""
    train, held_out = config.train, None
    ema = EMA(train.ema) if train.ema else None
    found = [FiniteNumbers(train.non_finite, train.log_every, scaled=train.precision == "fp16")]
    found += [ema, telemetry] if ema else [telemetry]
    if train.picture_every:
        batches = {
            order: data.val_batch(order, train.val_pairs) for order in ("paired", "unpaired")
        }
        held_out = HeldOut(batches, train.picture_every, train.pictures, ema)
        found.append(held_out)
    checkpoints = Checkpoints(
        run,
        train.checkpoint_every,
        ema,
        held_out,
        global_batch=global_batch,
        keep_last=train.keep_last,
        keep_best=train.keep_best,
    )
    found += [checkpoints] + ([] if sys.stdout.isatty() else [Console(train.steps, held_out)])
    return [*found, Preemption(checkpoints), telemetry.data_wait]
