"""Running `vton` in tests: small settings, the command, trainings that stop, comparison of runs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vton import cli
from vton.commands.train import train
from vton.config import load
from vton.models.optimizers import MOMENTUM
from vton.runs.folder import RunFolder
from vton.training.preemption import Preemption
from vton.weights.pretrained import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "data.size=[64,48]",
    "data.synthetic.train=6",
    "data.synthetic.test=4",
    "data.synthetic.workers=1",
    "data.workers=0",
    "data.check=false",
    "train.batch_size=4",
    "train.log_every=1",
    "train.picture_every=2",
    "train.val_pairs=2",
    "train.pictures=1",
    "train.warmup_steps=2",
    "train.schedule=constant",
    "train.checkpoint_every=2",
    "codec.fit_images=12",
    "sampler.steps=2",
    "trainer.threads=1",
)


def vton(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """The real command in its own process."""
    command = [sys.executable, "-m", "vton", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, done.stderr
    return done


def make_dry(*words: str) -> str:
    """The last line that `make` and these words would run, as in a shell.

    A test may itself run under `make test ARGS=...`, which hands its own settings on through the
    environment: a second make would take them over.
    """
    variables = re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", *variables}
    env = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def command(*arguments: str) -> int:
    """The same in this process, which saves half a minute of imports: its exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return left.value.code


def trained(model: str, runs: Path, rendered: Path, name: str, *more: str) -> RunFolder:
    """`vton train`, in this process."""
    return train(
        load(
            f"model={model}", f"runs={runs}", f"name={name}", f"data.root={rendered}", *SMALL, *more
        )
    )


@contextmanager
def after_step(step: int, act: Callable[[], None]):
    """Training inside does this once when a step, and the checkpoint that is due then, is done."""
    preemption, reached = Preemption.on_train_batch_end, []

    def on_train_batch_end(self, trainer, *arguments):
        preemption(self, trainer, *arguments)
        if trainer.global_step == step and not reached:
            reached.append(step)
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preemption, "on_train_batch_end", on_train_batch_end)
        yield


class Stopped(Exception):
    """Stands for whatever ends a process."""


def stop(*arguments) -> None:
    raise Stopped


@contextmanager
def stopping_after(step: int):
    with pytest.raises(Stopped), after_step(step, stop):
        yield


@contextmanager
def copied_after(step: int, run: Path, *copies: Path):
    """The copies are the run's folder as kill -9 would have left it then; the run goes on."""

    def copy() -> None:
        for target in copies:
            shutil.copytree(run, target)

    with after_step(step, copy):
        yield


def assert_equal(expected, found) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found)
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys()
        for key in expected:
            assert_equal(expected[key], found[key])
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert_equal(one, other)
    else:
        assert expected == found


def assert_same_training(expected: RunFolder, found: RunFolder, steps: int) -> None:
    """Weights, optimizer, schedule, average and the place in the stream, with torch.equal."""
    expected, found = read_checkpoint(expected.last), read_checkpoint(found.last)
    assert found["global_step"] == expected["global_step"] == steps
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(expected[part], found[part])
    for callback in ("EMA", "Checkpoints"):
        assert_equal(expected["callbacks"][callback], found["callbacks"][callback])


def gradients(run: RunFolder) -> torch.Tensor:
    """Those of a run that made one step, in one vector, from its optimizer's first moments."""
    state = read_checkpoint(run.last)["optimizer_states"][0]["state"]
    found = []
    for index in sorted(state):
        if "momentum" in state[index]:
            found.append(state[index]["momentum"].flatten() / (1 - MOMENTUM))
        else:
            found.append(state[index]["exp_avg"].flatten() / 0.1)
    return torch.cat(found)


def gradient_distance(one: RunFolder, other: RunFolder) -> float:
    """Largest difference of a gradient's value after the first step."""
    expected, found = gradients(one), gradients(other)
    assert expected.abs().max() > 1e-2
    return (expected - found).abs().max().item()
