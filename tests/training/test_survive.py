"""What a run survives: stops at every place, kills, pre-emption, bad numbers, a full disk."""

import errno
import functools
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.running import (
    SMALL,
    Stopped,
    assert_equal,
    assert_same_training,
    command,
    copied_after,
    gradient_distance,
    stop,
    stopping_after,
    trained,
)
from vton import cli, registry
from vton.errors import UserError
from vton.models.base import TryOnModule
from vton.runs.folder import RunFolder
from vton.training.checkpoint import AtomicCheckpointIO
from vton.training.finite import FiniteNumbers, TrainingError
from vton.training.preemption import Preemption
from vton.weights.pretrained import read_checkpoint

BLIND = ("train.picture_every=0", "train.checkpoint_every=1", "train.batch_size=2")
PLAIN = (*BLIND, "model.appearance.weight=0")  # GarDiff without DISTS
START_METHOD = multiprocessing.get_all_start_methods()[0]  # of loaders, where nobody chooses


# ---- stops ----


@pytest.fixture(scope="module")
def twelve(tmp_path_factory) -> Path:
    """Where twelve training pairs lie."""
    return tmp_path_factory.mktemp("twelve")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("stop", "pairs"), [("epoch's end", 8), ("middle", 12), ("just after", 6)])
@pytest.mark.parametrize("model", registry.names())
def test_eight_steps_equal_four_and_four(model, stop, pairs, workers, tmp_path, twelve):
    """Step 4 has seen 8 samples of an epoch of `pairs`."""
    more = (
        "data.synthetic.train=12",
        f"data.limit_train={pairs}",
        f"data.workers={workers}",
        *BLIND,
        "model.condition_dropout=0.3",
        "data.augment.affine=0.5",
    )
    more += ("train.steps=8", "train.schedule=cosine", "train.warmup_steps=2")
    with copied_after(4, tmp_path / "whole", tmp_path / "parts"):
        whole = trained(model, tmp_path, twelve, "whole", *more)
    parts = trained(model, tmp_path, twelve, "parts", *more)
    assert_same_training(whole, parts, 8)


@pytest.mark.slow
@pytest.mark.parametrize("model", registry.names())
def test_the_same_seed_twice_is_the_same_training(model, tmp_path, rendered):
    """Losses of every step and weights, bit by bit; another seed is another training."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = [
        trained(model, tmp_path, rendered, name, *BLIND, "train.steps=10")
        for name in ("one", "two")
    ]
    runs.append(trained(model, tmp_path, rendered, "other", *BLIND, "train.steps=10", "seed=1"))
    curves = []
    for run in runs:
        events = EventAccumulator(str(run.tensorboard))
        events.Reload()
        curves.append([event.value for event in events.Scalars("train/loss")])
    assert_same_training(runs[0], runs[1], 10)
    assert curves[0] == curves[1] != curves[2] and len(curves[0]) == 10


# ---- kills and signals: training in processes of their own, forked from one that has imported
# everything ----


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vton.commands.train", "vton.models.gardiff.module"])
    yield context
    forkserver._forkserver._stop()  # it would otherwise outlive the tests, with all it has imported


def run_command(
    arguments: list[str],
    environment: dict[str, str],
    log: str,
    start_method: str = START_METHOD,
) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # the test's own is inherited
    os.setpgrp()  # with its loader processes, and without the test's
    os.environ.update(environment)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where a shell runs the tests in the background
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    cli.main(arguments)


class Started:
    """`vton train` under way."""

    def __init__(
        self,
        processes,
        runs: Path,
        rendered: Path,
        name: str,
        *more: str,
        start_method: str = START_METHOD,
        **environment: str,
    ):
        self.run, self.log = RunFolder(runs / name), runs / f"{name}.log"
        arguments = [
            "train",
            "model=gardiff",
            f"runs={runs}",
            f"name={name}",
            f"data.root={rendered}",
            *SMALL,
            *PLAIN,
            *more,
        ]
        self.process = processes.Process(
            target=run_command, args=(arguments, environment, str(self.log), start_method)
        )
        self.process.start()

    def saved(self) -> int:
        """When last.ckpt was written, ns; 0 without one."""
        return self.run.last.stat().st_mtime_ns if self.run.last.exists() else 0

    def wait_for_a_checkpoint(self) -> None:
        before, end = self.saved(), time.time() + 300
        while self.saved() == before:
            assert self.process.is_alive() and time.time() < end, self.log.read_text()
            time.sleep(0.002)

    def exit_code(self) -> int:
        self.process.join(300)
        return self.process.exitcode


@pytest.mark.parametrize(
    ("number", "code", "workers", "start_method"),
    [
        pytest.param(signal.SIGTERM, 143, 0, "fork", marks=pytest.mark.slow),
        (signal.SIGTERM, 143, 2, "fork"),
        pytest.param(signal.SIGTERM, 143, 2, "forkserver", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, 2, "fork", marks=pytest.mark.slow),
    ],
)
def test_a_signal_writes_a_checkpoint_and_its_exit_code(
    number, code, workers, start_method, processes, tmp_path, rendered
):
    """At an odd step, where no checkpoint is due; what goes on afterwards is the same training.

    Loader processes get the signal too, as `timeout`, systemd and SLURM send it to all of a job,
    terminals Ctrl-C.
    """
    # A look at held-out pairs gets a line in the log.
    looking = ("train.picture_every=5", "train.val_pairs=2", "train.pictures=1")
    rare = ("train.checkpoint_every=1000", f"data.workers={workers}", *looking)
    settings = ("train.steps=200", *rare)
    started = Started(
        processes, tmp_path, rendered, "stopped", *settings, start_method=start_method
    )
    while "step 5/" not in (started.log.read_text() if started.log.exists() else ""):
        assert started.process.is_alive()
        time.sleep(0.01)
    os.killpg(started.process.pid, number)
    assert started.exit_code() == code, started.log.read_text()
    step = read_checkpoint(started.run.last)["global_step"]
    assert (
        5 <= step < 200 and f"at step {step}; the same command continues" in started.log.read_text()
    )
    assert "Traceback" not in started.log.read_text() and "vton:" not in started.log.read_text()
    assert not started.run.weights.exists()  # which would say that the training is finished

    settings = (*PLAIN, f"train.steps={step + 2}", *rare)
    whole = trained("gardiff", tmp_path, rendered, "whole", *settings)
    assert_same_training(
        whole, trained("gardiff", tmp_path, rendered, "stopped", *settings), step + 2
    )


@pytest.fixture
def ctrl_c():
    """What SIGINT does is put back after the test."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_ends_at_once_and_background_jobs_get_none(ctrl_c):
    before = signal.getsignal(signal.SIGTERM)
    try:
        preemption = Preemption(checkpoints=None)
        preemption.on_train_start(None, None)
        signal.raise_signal(signal.SIGINT)
        assert (
            preemption.received == {signal.SIGINT}
            and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        )
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        Preemption(checkpoints=None).on_train_start(None, None)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_where_lightning_catches_it_is_130_and_one_line(
    ctrl_c, tmp_path, rendered, monkeypatch, capsys
):
    """Before the first step, where nothing notes the signal yet."""

    def interrupted(self, trainer, module):
        raise KeyboardInterrupt

    monkeypatch.setattr(Preemption, "on_train_start", interrupted)
    assert (
        command(
            "train", f"runs={tmp_path}", f"data.root={rendered}", *SMALL, *PLAIN, "train.steps=1"
        )
        == 130
    )
    assert [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("vton: interrupted")
    ]


def test_a_second_training_of_a_run_is_refused_until_the_first_is_gone(
    processes, tmp_path, rendered, capsys
):
    """Also by kill -9, at once: its loader processes, which may outlive it by seconds, hold
    nothing.
    """
    started = Started(processes, tmp_path, rendered, "one", "train.steps=1000", "data.workers=2")
    started.wait_for_a_checkpoint()
    before = started.run.config.stat().st_mtime_ns
    settings = (
        "model=gardiff",
        f"runs={tmp_path}",
        "name=one",
        f"data.root={rendered}",
        *SMALL,
        *PLAIN,
    )
    assert command("train", *settings, "train.steps=9") == 2
    refused = f"vton: Another process is training in {started.run.path}, "
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith(refused)]
    assert started.process.is_alive() and started.run.config.stat().st_mtime_ns == before
    os.kill(started.process.pid, signal.SIGKILL)
    assert started.exit_code() == -signal.SIGKILL
    with started.run.training_lock():
        pass


def test_slurms_signal_requeues_the_job(processes, tmp_path, rendered):
    """As sbatch --signal=SIGUSR1@60 sends it; scontrol is a stand-in that writes down what it was
    asked.
    """
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "vton",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }
    started = Started(processes, tmp_path, rendered, "queued", "train.steps=1000", **slurm)
    started.wait_for_a_checkpoint()
    os.kill(started.process.pid, signal.SIGUSR1)
    assert started.exit_code() == 143, started.log.read_text()
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    step = read_checkpoint(started.run.last)["global_step"]
    again = Started(processes, tmp_path, rendered, "queued", f"train.steps={step + 1}", **slurm)
    assert (
        again.exit_code() == 0
        and f"Resuming {again.run.path} at step {step} of" in again.log.read_text()
    )


def logged_steps(run: RunFolder) -> list[int]:
    """The steps whose loss is in the event files, as they lie there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_curves_have_every_step_once_though_a_run_ended_before_its_first_checkpoint(
    tmp_path, rendered
):
    settings = ("gardiff", tmp_path, rendered, "run", *PLAIN, "train.steps=2")
    with stopping_after(1):
        trained(*settings, "train.checkpoint_every=2")
    assert not RunFolder(tmp_path / "run").last.exists()
    assert logged_steps(trained(*settings, "train.checkpoint_every=2")) == [1, 2]


def test_a_kill_between_weights_and_what_is_said_of_them(tmp_path, rendered, monkeypatch):
    """Two steps, then two more: what training.json said of the first two is gone until it can say
    four.
    """
    settings = ("gardiff", tmp_path, rendered, "run", *PLAIN)
    run = trained(*settings, "train.steps=2")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(RunFolder, "finish", stop)
        trained(*settings, "train.steps=4")
    assert read_checkpoint(run.last)["global_step"] == 4 and run.trained() == {}
    partial = run.checkpoints / ".weights.safetensors.1"
    partial.touch()  # of a kill while they were being written
    assert trained(*settings, "train.steps=4").trained()["steps"] == 4
    assert not partial.exists()


@pytest.mark.slow
def test_twenty_kills_leave_a_loadable_checkpoint_each(processes, tmp_path, rendered):
    """kill -9, ten times at a random moment and ten times while a checkpoint is being written."""
    moments, steps, writing = random.Random(0), [], 0
    for number in range(20):
        started = Started(processes, tmp_path, rendered, "killed", "train.steps=100000")
        started.wait_for_a_checkpoint()
        if number % 2:
            time.sleep(moments.uniform(0, 2))
        else:
            while not list(started.run.checkpoints.glob(".last.ckpt.*")):
                assert started.process.is_alive()
        os.kill(started.process.pid, signal.SIGKILL)
        assert started.exit_code() == -signal.SIGKILL
        writing += bool(list(started.run.checkpoints.glob(".last.ckpt.*")))
        steps.append(read_checkpoint(started.run.last)["global_step"])
        print(
            f"kill {number + 1}: loadable at step {steps[-1]}, {writing} of them while writing",
            file=sys.stderr,
        )
    assert steps == sorted(set(steps)) and writing >= 5

    settings = (*PLAIN, f"train.steps={steps[-1] + 2}")
    whole = trained("gardiff", tmp_path, rendered, "whole", *settings)
    killed = trained("gardiff", tmp_path, rendered, "killed", *settings)
    assert_same_training(whole, killed, steps[-1] + 2)
    assert not list(killed.checkpoints.glob(".*"))


# ---- bad numbers ----


@pytest.fixture
def spoilt(monkeypatch):
    """Training whose loss, or gradient, is not a number from the call `first` on, `count` times."""

    def spoil(what: str, first: int, count: int = 1) -> None:
        original, calls = TryOnModule.training_step, []

        def training_step(self, batch, batch_index):
            loss = original(self, batch, batch_index)
            calls.append(batch.pair_id)
            if not first <= len(calls) < first + count:
                return loss
            if what == "loss":
                self.last_losses["diffusion"][1] = torch.nan
                return loss * torch.nan
            loss.register_hook(lambda gradient: gradient * torch.inf)
            return loss

        monkeypatch.setattr(TryOnModule, "training_step", training_step)
        return calls

    return spoil


@pytest.mark.parametrize(
    ("what", "said"), [("loss", "Loss is nan"), ("gradient", "Gradient norm is (nan|inf)")]
)
def test_a_bad_number_stops_the_run_naming_step_and_samples(what, said, spoilt, tmp_path, rendered):
    """The second micro-batch of step 3 is bad; last.ckpt is of step 2."""
    calls = spoilt(what, first=6)
    with pytest.raises(TrainingError, match=f"{said} at step 3, samples ") as error:
        trained("gardiff", tmp_path, rendered, "run", *PLAIN, "train.steps=4", "train.accumulate=2")
    message = str(error.value)
    named = [pair for pair in {*calls[4], *calls[5]} if pair in message]
    assert sorted(named) == sorted([calls[5][1]] if what == "loss" else {*calls[4], *calls[5]})
    assert (
        "\n" not in message
        and read_checkpoint(RunFolder(tmp_path / "run").last)["global_step"] == 2
    )


def test_a_bad_step_is_skipped_and_counted(spoilt, tmp_path, rendered, capsys):
    """Step 2 leaves weights and moments as step 1 made them."""
    spoilt("loss", first=2)
    run = trained(
        "gardiff",
        tmp_path,
        rendered,
        "run",
        *PLAIN,
        "train.steps=2",
        "train.keep_last=2",
        "train.non_finite=skip",
    )
    assert (
        "Loss is nan at step 2" in (printed := capsys.readouterr().out)
        and "Step skipped" in printed
    )
    before, after = read_checkpoint(run.numbered("last", 1)), read_checkpoint(run.last)
    assert_equal(before["state_dict"], after["state_dict"])
    assert_equal(before["optimizer_states"][0]["state"], after["optimizer_states"][0]["state"])
    assert after["callbacks"]["FiniteNumbers"] == {"skipped": 1}


def test_skipping_ends_when_every_step_is_bad(spoilt, tmp_path, rendered, monkeypatch):
    monkeypatch.setattr(FiniteNumbers, "PATIENCE", 3)
    spoilt("gradient", first=1, count=99)
    with pytest.raises(TrainingError, match=r"at step 3, .*number 3 in a row"):
        trained(
            "gardiff", tmp_path, rendered, "run", *PLAIN, "train.steps=9", "train.non_finite=skip"
        )


# ---- checkpoints ----


def test_the_last_and_the_best_stay(tmp_path, rendered):
    run = trained(
        "gardiff",
        tmp_path,
        rendered,
        "run",
        *PLAIN,
        "train.steps=4",
        "train.picture_every=1",
        "train.keep_last=2",
        "train.keep_best=2",
    )
    assert {path.name for path in run.checkpoints.glob("last*")} == {
        "last.ckpt",
        "last_00000003.ckpt",
        "last_00000004.ckpt",
    }
    assert run.last.samefile(run.numbered("last", 4))  # takes no room of its own
    scores = read_checkpoint(run.last)["callbacks"]["Checkpoints"]["scores"]
    assert {path.name for path in run.checkpoints.glob("best_*")} == {
        f"best_{step:08d}.ckpt" for step in scores
    }
    assert len(scores) == 2 and run.best.samefile(run.numbered("best", max(scores, key=scores.get)))


def test_a_loaded_checkpoint_is_its_own(tmp_path):
    """Though it lies on the disk until it is used; files of the old form, which cannot be mapped,
    load as well.
    """
    path, written = tmp_path / "last.ckpt", AtomicCheckpointIO()
    written.save_checkpoint({"weights": torch.zeros(2**16)}, path)
    former = read_checkpoint(path)["weights"]
    former[:2] += 3
    assert read_checkpoint(path)["weights"].sum() == 0
    written.save_checkpoint({"weights": torch.ones(2**16)}, path)
    assert former.sum() == 6 and read_checkpoint(path)["weights"].sum() == 2**16
    torch.save({"weights": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path)["weights"].sum() == 3


@pytest.fixture
def file_size_limit():
    """No file of this process may grow beyond 1 MiB, and writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_keeps_the_previous_checkpoint_and_names_the_path(tmp_path, file_size_limit):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(UserError, match=r"last\.ckpt could not be written .*MiB free") as error:
        AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.zeros(2**20)}, path)
    assert "\n" not in str(error.value)
    assert read_checkpoint(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_ends_the_run_with_the_former_checkpoint(
    tmp_path, rendered, monkeypatch, capsys
):
    """And the same command goes on when there is room."""
    arguments = (
        f"runs={tmp_path}",
        "name=run",
        f"data.root={rendered}",
        *SMALL,
        *PLAIN,
        "train.steps=3",
    )
    save, saved = torch.save, []

    def save_until_full(*content, **options):
        saved.append(content)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*content, **options)

    monkeypatch.setattr(torch, "save", save_until_full)
    assert command("train", *arguments) == 2
    run = RunFolder(tmp_path / "run")
    assert f"{run.last} could not be written (" in capsys.readouterr().err
    assert read_checkpoint(run.last)["global_step"] == 1 and not list(run.checkpoints.glob(".*"))
    assert command("train", *arguments) == 0
    assert_same_training(
        trained("gardiff", tmp_path, rendered, "whole", *PLAIN, "train.steps=3"), run, 3
    )


# ---- several processes, as torchrun starts them ----


def torchrun(processes, log: Path, *arguments: str) -> list:
    """`vton train` as two processes of one node, under way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "vton",
    }
    started = []
    for rank in "01":
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        started.append(
            processes.Process(
                target=run_command, args=(["train", *arguments], environment, str(log))
            )
        )
        started[-1].start()
    return started


def exit_codes(started: list) -> list[int]:
    for process in started:
        process.join(600)
    return [process.exitcode for process in started]


@pytest.fixture
def in_two(processes, tmp_path, rendered):
    """A run of two processes by a strategy, to its end; both write tmp_path / "log"."""

    def train(strategy: str, model: str, name: str, *more: str) -> RunFolder:
        shared = ("train.batch_size=2", "trainer.devices=2", f"trainer.strategy={strategy}")
        started = torchrun(
            processes,
            tmp_path / "log",
            f"model={model}",
            f"runs={tmp_path}",
            f"name={name}",
            f"data.root={rendered}",
            *SMALL,
            *shared,
            *more,
        )
        assert exit_codes(started) == [0, 0], (tmp_path / "log").read_text()
        return RunFolder(tmp_path / name)

    return train


def test_two_processes_equal_one_with_the_same_global_batch(in_two, tmp_path, rendered):
    """The same samples and noise: gradients within 1e-6, then a run of two goes on with one process
    and stops with two.

    After one step AdamW's first moment is a tenth of the gradient.
    """
    alone = ("train.grad_clip=0", "train.picture_every=0", "train.checkpoint_every=1")
    one = trained("gardiff", tmp_path, rendered, "one", "train.steps=1", *alone)
    two = in_two("ddp", "gardiff", "two", *alone, "train.steps=1")
    log = (tmp_path / "log").read_text()
    assert log.count("at step 0 of 1.") == 1  # the second process is silent
    assert gradient_distance(one, two) < 1e-6
    for run in (one, two):
        trained("gardiff", tmp_path, rendered, run.path.name, "train.steps=2", *alone)
    expected, found = load_file(one.weights), load_file(two.weights)
    differences = torch.cat([(expected[name] - found[name]).abs().flatten() for name in expected])
    # Adam magnifies rounding where a gradient is near 0.
    assert differences.mean() < 1e-6 and differences.max() < 5e-3

    settings = ("model=gardiff", f"runs={tmp_path}", "name=two", f"data.root={rendered}")
    halved = (*SMALL, *alone, "train.steps=3", "train.batch_size=2")
    assert command("train", *settings, *halved) == 2  # two a step would be another training


@pytest.fixture
def sharded(in_two):
    """The same where they share out weights and optimizer (FSDP2)."""
    return functools.partial(in_two, "fsdp")


# Stages of a step each: networks that rest have parameters too, whose gradients DDP waits for.
STAGES = {
    "ladi_vton": ("model.emasc_steps=1", "model.adapter_steps=1"),
    "warp": ("model.tps_steps=2",),
}
# Its means are over the pairs of each process, as published.
NO_MEANS_OVER_A_BATCH = {"stableviton": ("model.attention_loss.weight=0",)}


@pytest.mark.slow
@pytest.mark.parametrize("model", registry.folders())
def test_two_replicas_equal_one_process(model, in_two, tmp_path, rendered):
    """DDP, what trainer=auto is on several GPUs: the gradient within 1e-6, and further steps.

    But for the warp, whose batch normalisation sees the pairs of its own process alone.
    """
    alone = ("train.grad_clip=0", "train.checkpoint_every=1")
    alone += STAGES.get(model, ()) + NO_MEANS_OVER_A_BATCH.get(model, ())
    one = trained(model, tmp_path, rendered, "one", *alone, "train.steps=1")
    two = in_two("ddp", model, "two", *alone, "train.steps=1")
    if model != "warp":
        assert gradient_distance(one, two) < (1e-5 if model == "tryondiffusion" else 1e-6)
    in_two("ddp", model, "two", *alone, "train.steps=4")


@pytest.mark.slow
@pytest.mark.parametrize("model", registry.names())
def test_two_shards_equal_one_process(model, sharded, tmp_path, rendered):
    """The gradient within 1e-6, and each continues what the other began. Pictures are drawn on the
    way.
    """
    # Muon needs whole matrices.
    alone = ("train.optimizer=adamw", "train.grad_clip=0", "train.checkpoint_every=1")
    alone += NO_MEANS_OVER_A_BATCH.get(model, ())
    one = trained(model, tmp_path, rendered, "one", *alone, "train.steps=1")
    two = sharded(model, "two", *alone, "train.steps=1")
    # TryOnDiffusion's last bias sums up 12,288 pixels, channels last in one process, which FSDP2
    # does not know.
    assert gradient_distance(one, two) < (1e-5 if model == "tryondiffusion" else 1e-6)
    expected, found = read_checkpoint(one.last), read_checkpoint(two.last)
    assert [path.name for path in two.checkpoints.glob("*.pieces")] == ["last_00000001.pieces"]
    assert two.last.stat().st_size < 0.1 * one.last.stat().st_size
    assert expected["state_dict"].keys() == found["state_dict"].keys()
    assert (
        expected["callbacks"]["EMA"]["average"].keys()
        == found["callbacks"]["EMA"]["average"].keys()
    )
    one = sharded(model, "one", *alone, "train.steps=3")
    two = trained(model, tmp_path, rendered, "two", *alone, "train.steps=3")
    expected, found = (read_checkpoint(run.last) for run in (one, two))
    for part in (lambda c: c["state_dict"], lambda c: c["callbacks"]["EMA"]["average"]):
        differences = torch.cat(
            [(part(expected)[n] - part(found)[n]).abs().float().flatten() for n in part(found)]
        )
        assert (
            differences.mean() < 1e-6 and differences.max() < 5e-3
        )  # Adam magnifies rounding where gradients vanish


@pytest.mark.slow
def test_killed_shards_leave_a_loadable_checkpoint_each(sharded, processes, tmp_path, rendered):
    """kill -9 of both processes, twice while pieces are being written; then the run ends as one
    that was never killed.
    """
    arguments = (
        *("model=gardiff", f"runs={tmp_path}", "name=killed", f"data.root={rendered}", *SMALL),
        *(*PLAIN, "train.optimizer=adamw", "trainer.devices=2", "trainer.strategy=fsdp"),
    )
    run, steps = RunFolder(tmp_path / "killed"), [0]
    for while_writing in (False, True, True):
        started = torchrun(processes, tmp_path / "log", *arguments, "train.steps=1000")

        def newest() -> int:
            return read_checkpoint(run.last, "global_step")["global_step"]

        while not run.last.exists() or newest() <= steps[-1] + 1:
            assert all(process.is_alive() for process in started), (tmp_path / "log").read_text()
        if while_writing:
            named = read_checkpoint(run.last, "pieces")["pieces"]["folder"]
            while {path.name for path in run.checkpoints.glob("*.pieces")} <= {named}:
                assert all(process.is_alive() for process in started)
        for process in started:
            os.kill(process.pid, signal.SIGKILL)
        exit_codes(started)
        checkpoint = read_checkpoint(run.last)
        assert checkpoint["state_dict"] and checkpoint["callbacks"]["EMA"]["average"]
        steps.append(checkpoint["global_step"])
    assert steps == sorted(set(steps))
    steps_in_all = (*PLAIN, "train.optimizer=adamw", f"train.steps={steps[-1] + 2}")
    killed = sharded("gardiff", "killed", *steps_in_all)
    whole = sharded("gardiff", "whole", *steps_in_all)
    assert_same_training(whole, killed, steps[-1] + 2)
    assert len(list(killed.checkpoints.glob("*.pieces"))) == 1


@pytest.mark.slow
def test_shards_in_half_precision_learn_the_same(sharded, tmp_path, rendered):
    """bf16 weights are gathered where one process casts them: first gradients agree to bf16's
    digits.

    Pictures are drawn with such weights too.
    """
    half = (
        "train.optimizer=adamw",
        "train.precision=bf16",
        "train.grad_clip=0.1",
        "train.steps=1",
        "train.checkpoint_every=1",
    )
    one, two = (
        trained("gardiff", tmp_path, rendered, "one", *half),
        sharded("gardiff", "two", *half),
    )
    states = [read_checkpoint(run.last)["optimizer_states"][0]["state"] for run in (one, two)]
    expected, found = (
        torch.cat([state[i]["exp_avg"].flatten() for i in state]) for state in states
    )
    assert (expected - found).norm() < 2e-2 * expected.norm()


@pytest.mark.slow
def test_sigterm_to_the_first_of_two_processes_stops_both(processes, tmp_path, rendered):
    arguments = (
        f"runs={tmp_path}",
        "name=two",
        f"data.root={rendered}",
        *SMALL,
        *BLIND,
        "train.steps=1000",
        "trainer.devices=2",
        "trainer.strategy=ddp",
    )
    started = torchrun(processes, tmp_path / "log", *arguments)
    run = RunFolder(tmp_path / "two")
    while not run.last.exists():
        assert all(process.is_alive() for process in started), (tmp_path / "log").read_text()
        time.sleep(0.1)
    os.kill(started[0].pid, signal.SIGTERM)
    assert exit_codes(started) == [143, 0], (tmp_path / "log").read_text()
    assert 0 < read_checkpoint(run.last)["global_step"] < 1000
