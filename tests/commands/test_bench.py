"""`vton bench`: what is timed, and what is said of it."""

import json
import re

import pytest
import torch

from tests.running import command
from vton.commands import bench
from vton.commands.bench import Workload, peak_flops
from vton.config import load
from vton.cost.counting import picture_flops, step_flops

SIZES = (
    "preset=tiny",
    "trainer=cpu",
    "trainer.threads=1",
    "data.size=[64,48]",
    "data.synthetic.workers=1",
    "train.batch_size=2",
    "eval.batch_size=2",
)
QUICK = ("--warmup", "0", "--repeats", "2")


@pytest.fixture(autouse=True)
def _a_small_matrix(monkeypatch):
    """The peak of a processor takes seconds to measure; nothing here depends on its value."""
    monkeypatch.setitem(bench.MATRIX, "cpu", 256)


def test_facts_are_of_the_configured_model(capsys):
    settings = ("model=catvton", *SIZES, "train.accumulate=2", "sampler.steps=3")
    assert command("bench", *settings, *QUICK, "--json") == 0
    facts = json.loads(capsys.readouterr().out)["setting"]
    config = load(*settings)
    training, drawing = facts["train"], facts["sample"]
    assert training["samples_per_step"] == 4 and drawing["pictures"] == 2
    assert training["tflop"] == pytest.approx(step_flops(config) / 1e12)
    assert drawing["tflop"] == pytest.approx(2 * picture_flops(config) / 1e12)
    assert drawing["sampler_steps"] == 3
    for phase in (training, drawing):
        seconds = phase["seconds"]
        assert 0 < seconds["least"] <= seconds["median"] <= seconds["most"]
        assert phase["predicted_gib"] > 0 and phase["peak_gib"] > 0
    pace = training["seconds"]["median"] * training["samples_per_second"]
    assert pace == pytest.approx(4)
    peak = 1e12 * facts["matmul_tflops_per_second"]
    share = 1e12 * training["tflop"] / training["seconds"]["median"] / peak
    assert training["share_of_peak"] == pytest.approx(share)
    assert 0 <= training["data_wait"] < training["seconds"]["most"]


def test_a_second_setting_is_timed_in_turns(capsys):
    settings = ("bench", "model=gardiff", *SIZES, "sampler.steps=1")
    more = ("--only", "sample", "--against", "sampler.steps=12")
    assert command(*settings, *QUICK, *more) == 0
    printed = capsys.readouterr().out
    assert "against: gardiff" in printed and "training step" not in printed
    ratio = re.search(r"^drawing a batch, against / setting: (\S+)", printed, re.MULTILINE)
    assert float(ratio[1]) > 2


def test_its_training_step_trains(tmp_path):
    config = load("model=gardiff", *SIZES)
    workload = Workload.prepare(config, tmp_path, ["train"])
    before = [parameter.detach().clone() for parameter in workload.module.parameters()]
    workload.measure("train", keep=False)
    assert workload.seconds["train"] == []
    workload.measure("train", keep=True)
    assert len(workload.seconds["train"]) == len(workload.waits) == 1
    changed = [
        not torch.equal(old, new)
        for old, new in zip(before, workload.module.parameters(), strict=True)
    ]
    assert any(changed)
    assert workload.ema.step == 2


def test_the_peak_is_above_zero_and_measured_once():
    device = torch.device("cpu")
    first = peak_flops(device, torch.float32)
    assert first > 1e8 and peak_flops(device, torch.float32) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeats", "0"), "--repeats is at least 1"),
        (("model=warp",), "vton bench model=warp --only train"),
    ],
)
def test_what_cannot_be_timed_is_refused(arguments, message, capsys):
    assert command("bench", *SIZES, *arguments) == 2
    assert message in capsys.readouterr().err
