"""Training through the real command: learns, resumes bit-equal, refuses bad input in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vton import registry
from vton.models.pretrained import WeightsError, read_checkpoint
from vton.training.checkpoint import AtomicCheckpointIO

SMALL = (
    "data.size=[64,48]", "data.synthetic.train=6", "data.synthetic.test=4", "data.synthetic.workers=1",
    "data.workers=0", "data.check=false", "train.batch_size=4", "train.log_every=1", "train.picture_every=2",
    "train.val_pairs=2", "train.pictures=1", "train.warmup_steps=2", "train.schedule=constant",
    "train.checkpoint_every=2", "codec.fit_images=12",
)  # fmt: skip


def vton(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """The real command in its own process."""
    command = [sys.executable, "-m", "vton", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> Path:
    """Where the tests' synthetic data lies; rendered by the first command that needs it."""
    return tmp_path_factory.mktemp("rendered")


def train(model: str, runs: Path, rendered: Path, name: str, *more: str) -> Path:
    vton("train", f"model={model}", f"runs={runs}", f"name={name}", f"data.root={rendered}", *SMALL, *more)
    return runs / name


@pytest.mark.parametrize("model", registry.names())
def test_stopped_and_resumed_equals_uninterrupted(model, tmp_path, rendered):
    """4 steps equal 2 + resume + 2, in the middle of an epoch of 6 pairs: weights, average and optimizer bit by bit."""
    whole = train(model, tmp_path, rendered, "whole", "train.steps=4")
    train(model, tmp_path, rendered, "parts", "train.steps=2")
    parts = train(model, tmp_path, rendered, "parts", "train.steps=4")
    expected, found = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, parts))
    assert found["global_step"] == 4
    assert_equal(expected["state_dict"], found["state_dict"])
    assert_equal(expected["optimizer_states"], found["optimizer_states"])
    assert_equal(expected["callbacks"]["EMA"], found["callbacks"]["EMA"])
    weights, average = load_file(whole / "checkpoints" / "weights.safetensors"), expected["callbacks"]["EMA"]["average"]
    assert all(torch.equal(weights[name], value) for name, value in average.items())
    tags = {path.name.split(".")[0] for path in (whole / "tensorboard").iterdir()}
    assert "events" in tags


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path, rendered):
    """The same samples, noise and mean gradient; only the order of sums differs, which Adam amplifies near zero."""
    one = train("gardiff", tmp_path, rendered, "one", "train.steps=2")
    two = train(
        "gardiff", tmp_path, rendered, "two", "train.steps=2", "train.batch_size=2", "trainer.devices=2",
        "trainer.strategy=ddp", "trainer.threads=1",
    )  # fmt: skip
    expected, found = (load_file(run / "checkpoints" / "weights.safetensors") for run in (one, two))
    differences = torch.cat([(expected[name] - found[name]).abs().flatten() for name in expected])
    assert differences.mean() < 1e-6 and differences.max() < 5e-3


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


def test_scalars_and_pictures_reach_tensorboard(tmp_path, rendered):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("gardiff", tmp_path, rendered, "parts", "train.steps=2")
    run = train("gardiff", tmp_path, rendered, "parts", "train.steps=4")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/lr", "train/grad_norm", "perf/images_per_second", "perf/data_wait_ms"} <= set(
        tags["scalars"]
    )
    assert {f"{kind}/{order}" for kind in ("images", "attention") for order in ("paired", "unpaired")} == set(
        tags["images"]
    )
    assert [event.step for event in events.Tensors("custom_scalars__config__")] == [0]
    assert any(tag.startswith("train/loss_by_t/") for tag in tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train.learnig_rate=1"], "train.learnig_rate"),
        (["model=gardif"], "Did you mean: 'gardiff'?"),
        (["data=viton_hd", "data.root=/nowhere/at/all"], "/nowhere/at/all"),
        (["train.lr=fast"], "train.lr"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, expected, tmp_path):
    done = vton("train", f"runs={tmp_path}", *arguments, check=False)
    assert done.returncode == 2
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("vton:")]) == 1


def test_a_diverged_run_names_step_and_samples(tmp_path, rendered):
    wild = ("train.lr=1e20", "train.grad_clip=0", "train.steps=9", "train.picture_every=0")
    done = vton("train", f"runs={tmp_path}", f"data.root={rendered}", *SMALL, *wild, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("vton:"))
    assert "Loss is" in line and "at step" in line and "__" in line


def test_dry_run_prints_the_configuration_and_writes_nothing(tmp_path):
    done = vton("train", "--dry-run", f"runs={tmp_path}", "train.steps=77")
    assert "steps: 77" in done.stdout and '"commit"' in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert read_checkpoint(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_a_malicious_checkpoint_runs_nothing(tmp_path):
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"state_dict": Attack()}, tmp_path / "evil.ckpt")
    with pytest.raises(WeightsError, match=r"evil\.ckpt"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not marker.exists()
