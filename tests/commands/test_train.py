"""Training through the real command: learns, resumes bit-equal, refuses bad input in one line."""

import warnings

import pytest
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from safetensors.torch import load_file

from tests.running import (
    SMALL,
    assert_same_training,
    command,
    copied_after,
    stopping_after,
    trained,
    vton,
)
from tests.sweeps import soon_and_later
from vton.config import load
from vton.errors import UserError
from vton.models.unet import build_unet
from vton.runs.folder import RunFolder
from vton.training.preemption import Preemption
from vton.weights.pretrained import read_checkpoint


@pytest.mark.parametrize("model", [*soon_and_later(), "tryondiffusion model.stage=sr256"])
def test_stopped_and_resumed_equals_uninterrupted(model, tmp_path, rendered):
    """4 steps equal 2, a kill and the same command again, in the middle of an epoch of 6 pairs and
    of warm-up and cosine.
    """
    model, *stage = model.split()
    settings = ("train.steps=4", "train.schedule=cosine", "train.warmup_steps=3", *stage)
    with copied_after(2, tmp_path / "whole", tmp_path / "parts"):
        whole = trained(model, tmp_path, rendered, "whole", *settings)
    parts = trained(model, tmp_path, rendered, "parts", *settings)
    assert_same_training(whole, parts, 4)
    expected = read_checkpoint(whole.last)
    weights, average = load_file(whole.weights), expected["callbacks"]["EMA"]["average"]
    assert all(torch.equal(weights[name], value) for name, value in average.items())
    tags = {path.name.split(".")[0] for path in whole.tensorboard.iterdir()}
    assert "events" in tags


def test_weights_without_a_checkpoint_are_not_trained_over(tmp_path, rendered):
    """Those of an import, for instance: nothing leads on from them, and they are not taken up."""
    run = RunFolder(tmp_path / "one")
    run.checkpoints.mkdir(parents=True)
    run.weights.write_bytes(b"published")
    with pytest.raises(UserError, match=r"weights\.safetensors.*train\.start_from=.*one") as error:
        trained("gardiff", tmp_path, rendered, "one", "train.steps=1")
    assert "\n" not in str(error.value)
    assert run.weights.read_bytes() == b"published" and not run.config.exists()


@pytest.mark.slow
def test_the_command_starts_its_second_process(tmp_path, rendered):
    """What two processes compute stands in tests/training/test_survive.py."""
    two = ("train.batch_size=2", "trainer.devices=2", "trainer.strategy=ddp", "train.steps=1")
    done = vton("train", f"runs={tmp_path}", "name=run", f"data.root={rendered}", *SMALL, *two)
    assert done.stdout.count("at step 0 of 1.") == 1  # it is silent
    assert RunFolder(tmp_path / "run").trained()["global_batch"] == 4


def test_batches_may_be_cut_otherwise_when_a_run_goes_on(tmp_path, rendered):
    """After an odd step in whole batches: the rest in halves sees the same samples, and goes on bit
    by bit itself.
    """
    settings = ("train.picture_every=0", "train.checkpoint_every=1", "model.appearance.weight=0")
    halves = (*settings, "train.batch_size=2", "train.accumulate=2")
    whole, at_once, in_two = (tmp_path / name for name in ("whole", "at once", "in two"))
    with copied_after(3, whole, at_once):
        one = trained("gardiff", tmp_path, rendered, "whole", *settings, "train.steps=6")
    with copied_after(5, at_once, in_two):
        run = trained("gardiff", tmp_path, rendered, "at once", *halves, "train.steps=6")
    again = trained("gardiff", tmp_path, rendered, "in two", *halves, "train.steps=6")
    assert_same_training(run, again, 6)
    expected, found = load_file(one.weights), load_file(run.weights)
    differences = torch.cat([(expected[name] - found[name]).abs().flatten() for name in expected])
    assert differences.mean() < 1e-6  # of steps of 1e-3


@pytest.mark.parametrize(
    ("trainer", "precision"),
    [("cpu", "fp32"), ("cpu", "bf16")]
    + [
        pytest.param("gpu", precision, marks=pytest.mark.gpu)
        for precision in ("fp32", "bf16", "fp16")
    ],
)
def test_gradients_are_clipped_in_every_precision(trainer, precision, tmp_path, rendered):
    """After one step AdamW's first moment is a tenth of the gradient, whose norm is far above the
    limit.
    """
    run = trained(
        "gardiff",
        tmp_path,
        rendered,
        "run",
        f"trainer={trainer}",
        f"train.precision={precision}",
        "train.optimizer=adamw",
        "train.grad_clip=1e-3",
        "train.steps=1",
        "train.picture_every=0",
    )
    states = read_checkpoint(run.last)["optimizer_states"][0]["state"].values()
    norm = 10 * torch.cat([state["exp_avg"].flatten().float() for state in states]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_another_length_of_a_cosine_is_said_and_stays_on_record(tmp_path, rendered, capsys):
    brief = (
        "train.picture_every=0",
        "model.appearance.weight=0",
        "train.batch_size=1",
        "train.schedule=cosine",
    )
    for steps, planned in ((1, [1]), (2, [1, 2])):
        run = trained("gardiff", tmp_path, rendered, "run", *brief, f"train.steps={steps}")
        assert run.trained()["planned_steps"] == planned
        said = f"cosine of 1 steps and goes on along one of {steps}" in capsys.readouterr().out
        assert said == (len(planned) > 1)
    trained("gardiff", tmp_path, rendered, "run", *brief, "train.steps=2")
    run.training.unlink()  # as if killed right before it was written
    trained("gardiff", tmp_path, rendered, "run", *brief, "train.steps=2")
    assert run.trained()["planned_steps"] == [1, 2] and "cosine" not in capsys.readouterr().out


def test_scalars_and_pictures_reach_tensorboard(tmp_path, rendered):
    """Also of a run that ended a step after its last checkpoint and takes that step again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with stopping_after(3):
        trained("gardiff", tmp_path, rendered, "parts", "train.steps=4")
    run = trained("gardiff", tmp_path, rendered, "parts", "train.steps=4")
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    tags = events.Tags()
    assert {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "perf/images_per_second",
        "perf/data_wait_ms",
    } <= set(tags["scalars"])
    assert {
        f"{kind}/{order}" for kind in ("images", "attention") for order in ("paired", "unpaired")
    } == set(tags["images"])
    assert [event.step for event in events.Tensors("custom_scalars__config__")] == [0]
    assert any(tag.startswith("train/loss_by_t/") for tag in tags["scalars"])
    for tag in ("train/loss", "train/lr", "train/grad_norm"):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4]
    for tag in tags["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    """What else can be bad stands in tests/test_faulty_input.py."""
    assert command("train", f"runs={tmp_path}", "data=viton_hd", "data.root=/nowhere/at/all") == 2
    printed = capsys.readouterr().err
    assert "/nowhere/at/all" in printed
    assert len([line for line in printed.splitlines() if line.startswith("vton:")]) == 1


def test_a_diverged_run_names_step_and_samples(tmp_path, rendered, capsys):
    wild = ("train.lr=1e20", "train.grad_clip=0", "train.steps=9", "train.picture_every=0")
    assert command("train", f"runs={tmp_path}", f"data.root={rendered}", *SMALL, *wild) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    line = next(line for line in printed.splitlines() if line.startswith("vton:"))
    assert "Loss is" in line and "at step" in line and "__" in line


def test_pretrained_networks_are_trained_in_training_mode(tmp_path, rendered):
    """from_pretrained leaves them in evaluation mode, of which Lightning warns."""
    published = ("model.garment_unet.positions=0", "codec.channels=4")
    shape = load("model=imagdressing", *published).model.garment_unet
    build_unet(shape, 4, 4, "model.garment_unet").save_pretrained(tmp_path / "unet")
    modes = []

    def on_train_start(self, trainer, module):
        modes.extend(part.training for part in module.modules())

    settings = (*published, f"model.garment_unet.pretrained={tmp_path}", "train.steps=1")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error", PossibleUserWarning)
        patch.setattr(Preemption, "on_train_start", on_train_start)
        trained("imagdressing", tmp_path, rendered, "run", *settings)
    assert len(modes) > 100 and all(modes)


def test_dry_run_prints_the_configuration_and_writes_nothing(tmp_path, capsys):
    assert command("train", "--dry-run", f"runs={tmp_path}", "train.steps=77") == 0
    printed = capsys.readouterr().out
    assert "steps: 77" in printed and '"commit"' in printed
    assert list(tmp_path.iterdir()) == []
