"""Callbacks one by one: what their numbers mean, and in which precision held-out pictures are
drawn.
"""

import math
import os
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from tests.batches import random_batch, randomised, tiny_module
from vton.metrics.pixelwise import output_psnr
from vton.runs.folder import RunFolder
from vton.training import held_out, telemetry
from vton.training.checkpoint import Checkpoints
from vton.training.console import Console
from vton.training.ema import EMA
from vton.training.finite import FiniteNumbers, TrainingError
from vton.training.held_out import HeldOut, HeldOutPairs, score
from vton.training.strategies import BFloat16, Full
from vton.training.telemetry import Mean, Telemetry, peak_memory_gib


class Logger:
    """Keeps what it is given."""

    def __init__(self):
        self.scalars, self.pictures, self.experiment = {}, {}, self

    def log_metrics(self, scalars, step):
        self.scalars.setdefault(step, {}).update(scalars)

    def add_image(self, tag, picture, step, dataformats):
        self.pictures[tag] = picture


def trainer(**more) -> SimpleNamespace:
    """What callbacks ask of a Trainer, before its first step."""
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"),
        broadcast=lambda x: x,
        reduce_boolean_decision=lambda x, all: x,
    )
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    return SimpleNamespace(
        **{
            "accumulate_grad_batches": 1,
            "global_step": 0,
            "max_steps": 4,
            "world_size": 1,
            "is_global_zero": True,
            "strategy": strategy,
            "optimizers": [optimizer],
            "logger": Logger(),
            "precision_plugin": Full(),
        }
        | more
    )


@pytest.fixture
def clock(monkeypatch):
    """The callbacks' time, which passes when it is told to."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: now.seconds)
    return now


class Module:
    """The losses of a module whose t are given."""

    config = SimpleNamespace(objective=SimpleNamespace(train_timesteps=1000))

    def learn(self, t: list[int], loss: float) -> dict:
        self.last_losses = {
            "t": torch.tensor(t),
            "diffusion": torch.full([len(t)], loss),
            "extra": torch.tensor(loss),
        }
        return {"loss": torch.tensor(loss / 2)}


def test_telemetry_times_steps_without_what_comes_after_them(clock):
    """Two steps of two batches: 1 s of waiting and 2 s of work each, and 50 s of pictures after a
    step.
    """
    found, telemetry, module = (
        trainer(accumulate_grad_batches=2, world_size=3),
        Telemetry(2, batch_size=5),
        Module(),
    )
    for callback in (telemetry, telemetry.data_wait):
        callback.on_train_start(found, module)
    for batch_idx in range(8):
        clock.seconds += 1
        for callback in (telemetry, telemetry.data_wait):
            callback.on_train_batch_start(found, module, None, batch_idx)
        clock.seconds += 2
        found.global_step = (batch_idx + 1) // 2
        outputs = module.learn([10, 900], float(batch_idx))
        telemetry.on_train_batch_end(found, module, outputs, None, batch_idx)
        clock.seconds += 50 * (batch_idx % 2)
        telemetry.data_wait.on_train_batch_end(found, module, outputs, None, batch_idx)
    logged = found.logger.scalars
    assert logged.keys() == {2, 4}
    for step, loss in ((2, 1.5), (4, 5.5)):
        losses = (
            "train/loss",
            "train/loss_extra",
            "train/loss_by_t/0-249",
            "train/loss_by_t/750-999",
        )
        assert {
            name: value for name, value in logged[step].items() if "loss" in name
        } == dict.fromkeys(losses, loss)
        assert logged[step]["perf/step_ms"] == 6000 and logged[step]["perf/data_wait_ms"] == 2000
        assert logged[step]["perf/images_per_second"] == 4 * 5 * 3 / 12


def test_losses_are_means_over_all_processes(monkeypatch):
    """Another process saw three times as many samples of the first quarter, and alone some of the
    second.
    """
    other = {
        "loss": Mean(8.0, 1),
        "loss_by_t/0-249": Mean(24.0, 3),
        "loss_by_t/250-499": Mean(3.0, 1),
    }
    monkeypatch.setattr("vton.training.telemetry.from_every_process", lambda own: [own, other])
    found, telemetry, module = trainer(global_step=1), Telemetry(1, batch_size=1), Module()
    telemetry.on_train_start(found, module)
    telemetry.data_wait.on_train_start(found, module)
    telemetry.on_train_batch_start(found, module, None, 0)
    telemetry.on_train_batch_end(found, module, module.learn([10], 4.0), None, 0)
    losses = {
        name.removeprefix("train/"): v
        for name, v in found.logger.scalars[1].items()
        if "loss" in name
    }
    assert losses == {
        "loss": 5.0,
        "loss_extra": 4.0,
        "loss_by_t/0-249": 7.0,
        "loss_by_t/250-499": 3.0,
    }


def test_memory_of_a_run_on_the_cpu_is_this_processs_beside_a_gpu_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30 if device.index == 1 else 0
    )
    assert peak_memory_gib(torch.device("cpu")) > 0.01
    assert peak_memory_gib(torch.device("cuda", 1)) == 3


def test_the_console_says_the_last_step_once(capsys):
    found, console, module = trainer(accumulate_grad_batches=2), Console(), Module()
    found.max_steps = 4
    console.on_train_start(found, module)
    for batch_idx in range(8):
        found.global_step = (batch_idx + 1) // 2
        outputs = module.learn([0], float(batch_idx))
        console.on_train_batch_end(found, module, outputs, None, batch_idx)
    console.teardown(found, module, "fit")
    assert capsys.readouterr().err == "Training: step 4/4, loss 3.5000\n"


def test_margins_are_no_part_of_held_out_scores():
    batch = random_batch(1, size=(64, 64))
    output = batch.truth.clone()
    output[..., 10:-10, 20:-20] += 0.3
    inside = score(output, batch, (64, 48))
    output[..., :8], output[..., -8:] = -1, 1  # the margins of 48 columns in 64
    assert score(output, batch, (64, 48)) == inside
    assert score(output, batch, (64, 64))["psnr"] < inside["psnr"]


def test_the_console_says_what_held_out_pairs_score(capsys):
    look = HeldOut({}, every=2, at_once=1, ema=None)
    look.step = 2
    look.scores = {"val/paired/psnr": 20.0, "val/paired/psnr_garment": 17.125}
    found, console, module = trainer(), Console(look), Module()
    found.max_steps = 3
    console.on_train_start(found, module)
    found.global_step = 2
    console.on_train_batch_end(found, module, module.learn([0], 1.0), None, 0)
    line = "Training: step 1/3, loss 0.5000, paired garment 17.12 dB"
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize("gradient", [3.0, None])
def test_only_a_gradient_has_a_norm(gradient):
    """DeepSpeed leaves none at the parameters."""
    module, found = torch.nn.Linear(1, 1, bias=False), trainer()
    module.current_pairs, module.last_losses = ["a__b"], {}
    module.weight.grad = None if gradient is None else torch.full((1, 1), gradient)
    finite = FiniteNumbers("stop", log_every=1)
    finite.on_before_backward(found, module, torch.tensor(1.0))
    finite.on_before_optimizer_step(found, module, torch.optim.SGD(module.parameters()))
    assert found.logger.scalars == ({} if gradient is None else {1: {"train/grad_norm": gradient}})


def test_with_the_flow_loss_the_warped_garment_is_shown():
    module = tiny_module("leffa", "model.flow_loss.weight=1")
    found = trainer(global_step=2, precision_plugin=Precision())
    batch = random_batch(2)
    look = HeldOut({"paired": HeldOutPairs(batch, batch)}, every=2, at_once=2, ema=None)
    look.on_train_batch_end(found, module, None, None, 1)
    assert found.logger.pictures.keys() == {"images/paired", "attention/paired", "flow/paired"}


@pytest.mark.parametrize("plugin", [Precision(), MixedPrecision("bf16-mixed", "cpu")])
@pytest.mark.parametrize("at_once", [2, 16])
def test_held_out_pictures_are_drawn_as_predictions_are(plugin, at_once):
    """In the precision of training, few at a time; a pair whose picture shows no garment does not
    count as a perfect one.
    """
    module, batch = randomised(tiny_module("gardiff")), random_batch(3)
    batch.truth_garment_mask[1] = 0
    found = trainer(global_step=2, precision_plugin=plugin)
    look = HeldOut({"paired": HeldOutPairs(batch, batch[:2])}, every=2, at_once=at_once, ema=None)
    look.on_train_batch_end(found, module, None, None, 1)
    assert module.training and look.step == 2
    assert found.logger.pictures.keys() == {"images/paired", "attention/paired"}
    with plugin.forward_context():
        pictures = module.eval().generate(batch).float()
    half = isinstance(plugin, MixedPrecision)
    assert torch.equal(pictures, module.generate(batch)) != half
    shown = torch.tensor([0, 2])
    parts = (pictures, batch.truth, batch.truth_garment_mask)
    expected = {
        "psnr": output_psnr(pictures, batch.truth),
        "psnr_garment": output_psnr(*(part[shown] for part in parts)),
    }
    for name, values in expected.items():
        assert look.scores[f"val/paired/{name}"] == pytest.approx(values.mean().item(), rel=1e-6)


def test_held_out_pairs_are_shared_out_when_the_processes_are_connected(monkeypatch):
    """Three pairs on two processes: two each, one of them on both."""
    batch = random_batch(3)
    look = HeldOut({"paired": HeldOutPairs(batch, batch[:1])}, every=2, at_once=2, ema=None)
    monkeypatch.setattr(held_out, "process_share", lambda: (1, 2))
    look.on_train_start(None, None)
    share = look.pairs["paired"]
    assert share.scored.pair_id == [batch.pair_id[2], batch.pair_id[0]]
    assert share.shown.pair_id == batch.pair_id[:1]


@pytest.mark.parametrize("here", [True, False])
def test_a_held_out_picture_that_is_none_stops_every_process_with_its_step_and_pair(
    here, monkeypatch
):
    module, batch = tiny_module("gardiff"), random_batch(2)
    theirs = ({}, {}, [] if here else ["theirs"])
    monkeypatch.setattr(held_out, "from_every_process", lambda own: [own, theirs])
    generate = module.generate

    def spoilt(batch):
        pictures = generate(batch)
        pictures[1, 0, 0, 0] = torch.nan if here else 0
        return pictures

    monkeypatch.setattr(module, "generate", spoilt)
    look = HeldOut({"paired": HeldOutPairs(batch, batch[:1])}, every=2, at_once=2, ema=None)
    named = batch.pair_id[1] if here else "theirs"
    with pytest.raises(TrainingError, match=rf"Step 2: .* pair {named} \(paired\) holds NaN"):
        look.on_train_batch_end(trainer(global_step=2), module, None, None, 1)


def test_a_clock_that_was_put_back_does_not_remove_the_newest_checkpoint(tmp_path):
    checkpoints = Checkpoints(RunFolder(tmp_path), every=1, ema=None, keep_last=2)
    checkpoints.run.checkpoints.mkdir()
    for step in (1, 2):
        earlier = checkpoints.run.numbered("last", step)
        earlier.touch()
        os.utime(earlier, (2**32 + step, 2**32 + step))
    checkpoints.run.last.touch()
    checkpoints.unsettled = 3
    checkpoints.settle(trainer(global_step=3))
    left = {path.name for path in checkpoints.run.checkpoints.iterdir()}
    assert left == {"last.ckpt", "last_00000002.ckpt", "last_00000003.ckpt"}


class Steps:
    """A trainer, module and optimizer whose steps cost what they are told to."""

    def __init__(self, finite: FiniteNumbers):
        self.finite = finite
        self.module = torch.nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.module.parameters())
        self.trainer = trainer(max_steps=100)

    def take(self, loss: float, gradient: float = 1.0) -> None:
        self.module.current_pairs = [f"pair{self.trainer.global_step + 1}"]
        self.module.last_losses = {"diffusion": torch.tensor([loss])}
        self.module.weight.grad = torch.full((1, 1), gradient)
        self.finite.on_before_backward(self.trainer, self.module, torch.tensor(loss))
        self.finite.on_before_optimizer_step(self.trainer, self.module, self.optimizer)
        self.trainer.global_step += 1


@pytest.fixture
def queued(monkeypatch):
    """Devices are CUDA's in that a look at them waits."""
    monkeypatch.setattr("vton.training.finite.is_behind", lambda device: True)


@pytest.mark.parametrize("bad", [(float("nan"), 1.0), (1.0, float("inf"))])
def test_where_looking_waits_a_bad_step_is_named_when_steps_are_logged(bad, queued):
    steps = Steps(FiniteNumbers("stop", log_every=4))
    for numbers in ((1.0, 1.0), bad, (1.0, 1.0)):
        steps.take(*numbers)
    with pytest.raises(TrainingError, match="at step 2, samples pair2"):
        steps.take(1.0)


def test_where_looking_waits_it_is_named_before_weights_are_saved(queued, tmp_path):
    steps = Steps(FiniteNumbers("stop", log_every=50))
    steps.take(1.0)
    steps.take(float("nan"))
    steps.take(1.0)
    checkpoints = Checkpoints(RunFolder(tmp_path), 3, None, finite=steps.finite)
    with pytest.raises(TrainingError, match="Loss is nan at step 2, samples pair2"):
        checkpoints.save_last(steps.trainer, steps.module)
    assert not list(tmp_path.iterdir())


def test_where_looking_waits_it_is_named_before_pictures_are_drawn(queued):
    steps = Steps(FiniteNumbers("stop", log_every=10))
    steps.take(math.nan)
    steps.trainer.global_step = 2
    look = HeldOut({}, every=2, at_once=1, ema=None, finite=steps.finite)
    with pytest.raises(TrainingError, match="Loss is nan at step 1, samples pair1"):
        look.on_train_batch_end(steps.trainer, steps.module, None, None, 1)


def test_where_looking_waits_skipping_looks_at_every_step(queued, capsys):
    steps = Steps(FiniteNumbers("skip", log_every=50))
    steps.take(float("nan"))
    assert steps.module.weight.grad is None
    assert "Loss is nan at step 1, samples pair1. Step skipped" in capsys.readouterr().out
    steps.take(1.0)
    assert steps.module.weight.grad is not None and steps.finite.skipped_in_a_row == 0


def test_cpus_look_at_every_step():
    steps = Steps(FiniteNumbers("stop", log_every=50))
    with pytest.raises(TrainingError, match="at step 1"):
        steps.take(float("nan"))


def test_between_log_steps_no_callback_looks_at_the_device():
    """Tensors of the meta device have no numbers to look at."""
    device = torch.device("meta")
    module = torch.nn.Linear(2, 2, device=device)
    module.current_pairs = ["a__b"]
    loss = torch.ones((), device=device)
    module.last_losses = {"t": torch.tensor([3]), "diffusion": loss[None], "extra": loss}
    found = trainer(max_steps=9)
    found.strategy.root_device = device
    optimizer = torch.optim.SGD(module.parameters())
    finite, ema, telemetry = FiniteNumbers("stop", log_every=9), EMA(0.9), Telemetry(9, 1)
    console = Console()
    for callback in (ema, telemetry, telemetry.data_wait, console):
        callback.on_train_start(found, module)
    for step in (1, 2):
        telemetry.on_train_batch_start(found, module, None, step - 1)
        finite.on_before_backward(found, module, loss)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        finite.on_before_optimizer_step(found, module, optimizer)
        found.precision_plugin.clip_gradients(optimizer, 1.0)
        found.global_step = step
        for callback in (ema, telemetry, console):
            callback.on_train_batch_end(found, module, {"loss": loss}, None, step - 1)
    assert [numbers.step for numbers in finite.steps] == [1, 2]
    console.progress.__exit__()


@pytest.mark.parametrize("plugin", [Full(), BFloat16("cpu")])
def test_the_norm_that_is_checked_is_the_one_that_clips(plugin, monkeypatch):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters())
    finite, found = FiniteNumbers("stop", log_every=1), trainer(precision_plugin=plugin)
    model.current_pairs, model.last_losses = ["a__b"], {}
    loss = model(torch.randn(5, 3)).pow(2).sum()
    loss.backward()
    finite.on_before_backward(found, model, loss)
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    torch.nn.utils.clip_grad_norm_(parameters := copies(model, expected), 0.1)
    finite.on_before_optimizer_step(found, model, optimizer)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", None)  # not a second time
    plugin.clip_gradients(optimizer, 0.1)
    for ours, theirs in zip(model.parameters(), parameters, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def copies(model, gradients) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return parameters
