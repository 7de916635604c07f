"""`vton train`: from a configuration to a trained run folder; the same command resumes."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext

from lightning import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from vton.commands.choice import say_trainer
from vton.config import ExperimentConfig, load
from vton.data.module import TryOnDataModule
from vton.errors import UserError
from vton.runs.assemble import prepare_run
from vton.runs.checkpoint import finish_from_checkpoint, states_file, training_so_far
from vton.runs.encodings import use_encodings
from vton.runs.folder import RunFolder
from vton.training.checkpoint import Checkpoints
from vton.training.console import Console
from vton.training.dashboard import LAYOUT
from vton.training.ema import EMA
from vton.training.finite import FiniteNumbers
from vton.training.held_out import HeldOut, held_out_pairs
from vton.training.preemption import Preemption
from vton.training.telemetry import Telemetry
from vton.training.trainer import make_trainer, quiet_libraries, with_shares_of_global_batch
from vton.weights.pretrained import read_checkpoint


def run(args: Namespace) -> None:
    config = load(*args.overrides)
    say_trainer(args.overrides)
    train(config)


def train(config: ExperimentConfig) -> RunFolder:
    """Train to train.steps, from scratch or from where the run folder stands.

    Raises UserError for what the user must solve.
    """
    quiet_libraries()
    # The Trainer comes first: it knows which process this is and how many there are.
    trainer = make_trainer(config)
    first = trainer.is_global_zero
    config = with_shares_of_global_batch(config, trainer.world_size)
    trainer.accumulate_grad_batches = config.train.accumulate
    # The first process locks the folder for all, before Lightning starts the others.
    lock = RunFolder.of(config).training_lock() if first else nullcontext()
    with lock:
        require_checkpoint(RunFolder.of(config))
        run, data, module = prepare_run(config, first)
        if first:
            run.remove_partial()
        if config.data.encoded:
            use_encodings(module, data)

        global_batch = config.train.batch_size * config.train.accumulate * trainer.world_size
        so_far = read_progress(run, global_batch)
        done = so_far.get("steps", 0)
        if done:
            require_same_kind_of_checkpoint(run, config)
        if done >= config.train.steps:
            if first:
                finish(run, done)
            return run

        planned = config.train.steps if config.train.schedule == "cosine" else None
        telemetry = Telemetry(config.train.log_every, config.train.batch_size, planned)
        trainer.callbacks += callbacks(config, run, data, telemetry, global_batch)
        trainer.logger = TensorBoardLogger(
            run.tensorboard, name="", version="", purge_step=done + 1
        )
        if first:
            announce(run, config, so_far)
            if not done:
                trainer.logger.experiment.add_custom_scalars(LAYOUT)

        module.train()  # pretrained networks come in evaluation mode
        data.start(done * global_batch)
        checkpoint = run.last if done else None
        trainer.fit(module, train_dataloaders=data.train_dataloader(), ckpt_path=checkpoint)
        if first:
            counted = {"steps": trainer.global_step, "global_batch": global_batch}
            run.finish({**counted, **telemetry.state_dict()})
    return run


def require_checkpoint(run: RunFolder) -> None:
    """Raise UserError for a folder of weights without a checkpoint, an import for instance: its
    training would begin without these weights, and replace them.
    """
    if run.weights.exists() and not run.last.exists():
        raise UserError(
            f"{run.weights} would be replaced: without {run.last.name} beside it, training starts "
            f"anew. Name another run (name=...); train.start_from={run.path} has it start from "
            "these weights."
        )


def read_progress(run: RunFolder, global_batch: int) -> dict:
    """`training_so_far` of last.ckpt; {} without one. A folder of DeepSpeed's without `latest` is
    none: the run was killed while it wrote its first.

    Raises UserError for a broken file, and where its steps had another number of samples: then they
    lead to another place of the training stream.
    """
    if not run.last.exists() or (run.last.is_dir() and not (run.last / "latest").exists()):
        return {}
    checkpoint = read_checkpoint(states_file(run.last), "callbacks", "global_step")
    before = checkpoint["callbacks"].get("Checkpoints", {}).get("global_batch", global_batch)
    if before != global_batch:
        raise UserError(
            f"{run.path} was trained with {before} samples per step, this command asks for "
            f"{global_batch} (train.batch_size x train.accumulate x processes). Set "
            f"train.global_batch={before}, or name another run (name=...)."
        )
    return training_so_far(checkpoint)


def require_same_kind_of_checkpoint(run: RunFolder, config: ExperimentConfig) -> None:
    """Raise UserError if DeepSpeed left last.ckpt, a folder, and is not used now, or vice versa."""
    from_deepspeed = run.last.is_dir()
    for_deepspeed = config.trainer.strategy == "deepspeed"
    if from_deepspeed != for_deepspeed:
        raise UserError(
            f"{run.last}: trainer.strategy=deepspeed and the others cannot read each other's "
            "checkpoints."
        )


def finish(run: RunFolder, steps: int) -> None:
    """Write what a run that was killed after its last checkpoint still lacks."""
    if run.trained().get("steps") != steps:
        finish_from_checkpoint(run)
    print(f"{run.path} has its {steps} steps. Evaluate it (make eval) or raise train.steps.")


def announce(run: RunFolder, config: ExperimentConfig, so_far: dict) -> None:
    """Print where training starts, and that a cosine goes on along another curve if it does."""
    steps, done = config.train.steps, so_far.get("steps", 0)
    verb = "Resuming" if done else "Training"
    print(f"{verb} {run.path} at step {done} of {steps}.")
    before = so_far.get("planned_steps", [steps])[-1]
    if config.train.schedule == "cosine" and before != steps:
        print(
            f"Its learning rate fell along a cosine of {before} steps and goes on along one of "
            f"{steps}: not one curve. training.json and every row say so (planned_steps)."
        )


def callbacks(
    config: ExperimentConfig,
    run: RunFolder,
    data: TryOnDataModule,
    telemetry: Telemetry,
    global_batch: int,
) -> list[Callback]:
    """In the order they act after a step: check, average, log, sample, save, print, leave."""
    train = config.train
    finite = FiniteNumbers(train.non_finite, train.log_every, scaled=train.precision == "fp16")
    ema = EMA(train.ema) if train.ema else None
    held_out = None
    if train.picture_every:
        pairs = {}
        for order in ("paired", "unpaired"):
            pairs[order] = held_out_pairs(data, order, train.val_pairs, train.pictures)
        held_out = HeldOut(pairs, train.picture_every, config.eval.batch_size, ema, finite)
    checkpoints = Checkpoints(
        run,
        train.checkpoint_every,
        ema,
        held_out,
        finite,
        global_batch=global_batch,
        keep_last=train.keep_last,
        keep_best=train.keep_best,
    )
    console = Console(held_out)
    preemption = Preemption(checkpoints)

    acting = [finite, ema, telemetry, held_out, checkpoints, console, preemption]
    acting.append(telemetry.data_wait)
    return [callback for callback in acting if callback is not None]
