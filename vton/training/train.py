"""`vton train`: from a configuration to a trained run folder. The same command starts and resumes."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import warnings
from contextlib import nullcontext

import torch
from filelock import FileLock
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from vton import registry
from vton.config import ExperimentConfig, TrainerConfig
from vton.data.module import TryOnDataModule
from vton.files import sync, write_atomically
from vton.models.base import TrainedModule
from vton.models.codecs import Codec, build_codec, fit_codec, is_fitted, psnr, run_codec
from vton.models.pretrained import read_checkpoint
from vton.processes import own_device
from vton.training.callbacks import Console, FiniteNumbers, HeldOut, Telemetry
from vton.training.checkpoint import (
    AtomicCheckpointIO,
    Checkpoints,
    finish_from_checkpoint,
    states_file,
    training_so_far,
)
from vton.training.dashboard import LAYOUT
from vton.training.ema import EMA
from vton.training.encoding import use_encodings
from vton.training.preemption import Preemption
from vton.training.run import RunError, RunFolder
from vton.training.strategies import precision, strategy
from vton.training.warp import RunWarp


def train(config: ExperimentConfig) -> RunFolder:
    """Train, or continue where the run folder stands. Raises UserError subclasses for what the user must solve."""
    quiet_libraries()
    trainer = make_trainer(config.trainer, config, callbacks=[], logger=None)
    # The first process holds the folder for all of its job. Others of Lightning's start when it trains.
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
        raise RunError(f"{run.last}: trainer.strategy=deepspeed and the others cannot read each other's checkpoints.")
    trainer.logger = TensorBoardLogger(run.tensorboard, name="", version="", purge_step=done + 1 if done else None)
    if done >= config.train.steps:
        if trainer.is_global_zero:
            if run.trained().get("steps") != done:
                finish_from_checkpoint(run)
            print(f"{run.path} has its {done} steps. Evaluate it (make eval) or raise train.steps.")
        return run
    if trainer.is_global_zero:
        print(f"{'Resuming' if done else 'Training'} {run.path} at step {done} of {config.train.steps}.")
        if planned and (before := so_far.get("planned_steps", [planned])[-1]) != planned:
            print(
                f"Its learning rate fell along a cosine of {before} steps and goes on along one of {planned}: not one "
                "curve. training.json and every row say so (planned_steps)."
            )
        if not done:
            trainer.logger.experiment.add_custom_scalars(LAYOUT)
    data.start(done * global_batch)
    trainer.fit(module, train_dataloaders=data.train_dataloader(), ckpt_path=run.last if done else None)
    if trainer.is_global_zero:
        run.finish({"steps": trainer.global_step, **telemetry.state_dict()})
    return run


def prepare(config: ExperimentConfig) -> tuple[RunFolder, TryOnDataModule, TrainedModule]:
    """The run folder, started, its data, and its module as training finds it."""
    run = RunFolder.of(config)
    run.start(config)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    seed_everything(config.seed, verbose=False)

    data = data_module(config)
    data.prepare_data()
    data.setup("fit")
    codec = prepare_codec(run, config, data)
    seed_everything(config.seed, verbose=False)  # fitting a codec draws numbers, loading it does not
    return run, data, registry.module_class(config.model.name)(config, codec)


def data_module(config: ExperimentConfig) -> TryOnDataModule:
    """The configured data, with the trained warp that data.warp_source=learned asks for. Raises RunError."""
    learned = config.data.warp_source == "learned"
    return TryOnDataModule(
        config.data,
        seed=config.seed,
        batch_size=config.train.batch_size,
        eval_batch_size=config.eval.batch_size,
        warp=RunWarp(config.data.warp_run, config.data.picture_size) if learned else None,
    )


def steps_so_far(run: RunFolder, global_batch: int) -> dict:
    """`training_so_far` of last.ckpt; {} without one.

    Raises WeightsError for a broken file, RunError where its steps had another number of samples: then they lead to
    another place of the training stream.
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


def make_trainer(trainer: TrainerConfig, config: ExperimentConfig, callbacks, logger) -> Trainer:
    """lightning.Trainer as this repository uses it: steps not epochs, our own sampler, checkpoints and validation."""
    progress = [RichProgressBar(refresh_rate=5)] if sys.stdout.isatty() else []
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
        enable_progress_bar=bool(progress),
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **precision(trainer.strategy, config.train.precision, [AtomicCheckpointIO()]),
        callbacks=[*progress, *callbacks],
        logger=logger,
    )


def callbacks(
    config: ExperimentConfig, run: RunFolder, data: TryOnDataModule, telemetry: Telemetry, global_batch: int
) -> list:
    """In the order they act after a step: average, log, look, save, leave."""
    train, held_out = config.train, None
    ema = EMA(train.ema) if train.ema else None
    found = [FiniteNumbers(train.non_finite, train.log_every, scaled=train.precision == "fp16")]
    found += [ema, telemetry] if ema else [telemetry]
    if train.picture_every:
        batches = {order: data.val_batch(order, train.val_pairs) for order in ("paired", "unpaired")}
        held_out = HeldOut(batches, train.picture_every, train.pictures, ema)
        found.append(held_out)
    checkpoints = Checkpoints(
        run, train.checkpoint_every, ema, held_out, global_batch=global_batch, keep_last=train.keep_last,
        keep_best=train.keep_best,
    )  # fmt: skip
    found += [checkpoints] + ([] if sys.stdout.isatty() else [Console(train.steps, held_out)])
    return [*found, Preemption(checkpoints), telemetry.data_wait]


def prepare_codec(run: RunFolder, config: ExperimentConfig, data: TryOnDataModule) -> Codec:
    """The run's codec: pretrained, loaded from the run folder, or fitted on training pictures and saved there."""
    if is_fitted(config.codec):
        with FileLock(run.path / ".codec.lock"):  # of several processes one fits, the others load
            if not (run.codec / "done").exists():
                device = own_device(config.trainer.accelerator)
                codec = fit_codec(build_codec(config.codec), config.codec, fitting_batches(config, data), device)
                codec.save(run.codec)
                report_codec(run, codec, data)
                for file in run.codec.iterdir():
                    sync(file)
                write_atomically(run.codec / "done", "")
    return run_codec(config.codec, run.codec)


def fitting_batches(config: ExperimentConfig, data: TryOnDataModule):
    """Persons and garments of training pairs, (B, 3, H, W): all `fit_images` once for `linear`, endless for `kl`."""
    images = data.training_pictures(config.codec.fit_images)  # (N, 3, H, W)
    if config.codec.name == "linear":
        return images.split(64)
    generator = torch.Generator().manual_seed(config.seed)
    return (images[torch.randint(len(images), (16,), generator=generator)] for _ in itertools.count())


def report_codec(run: RunFolder, codec: Codec, data: TryOnDataModule) -> None:
    """Print how well the codec keeps held-out pictures: no score can be better than this."""
    batch = data.val_batch("paired", 64)
    quality = {"psnr": psnr(codec, batch.person.split(16))}
    quality["psnr_garment"] = psnr(codec, batch.person.split(16), batch.truth_garment_mask.split(16))
    whole, garment = ("no score" if value is None else f"{value:.1f} dB" for value in quality.values())
    print(f"Codec: {whole} on {len(batch)} held-out pictures, {garment} in the garment region.")
    write_atomically(run.codec / "quality.json", json.dumps(quality | {"n": len(batch)}) + "\n")


def quiet_libraries() -> None:
    """Silence what users can neither act on nor learn from: banners of Trainer's constructor too."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)`.*")
