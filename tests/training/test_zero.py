"""DeepSpeed, where it is installed: on one CPU process, which Lightning refuses, so its check for
CUDA is lifted.
"""

import sys

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import deepspeed as lightnings

from tests.running import assert_equal, trained
from vton import config
from vton.commands import train
from vton.errors import UserError
from vton.runs.checkpoint import states_file
from vton.runs.folder import RunFolder
from vton.weights.pretrained import read_checkpoint


@pytest.fixture
def zero(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed.comm.torch")
    from vton.training.zero import ZeRO2

    monkeypatch.setattr(
        sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda: None
    )  # compiles for minutes
    monkeypatch.setattr(lightnings, "CUDAAccelerator", CPUAccelerator)
    monkeypatch.setattr(lightnings, "_validate_device_index_selection", lambda devices: None)

    def strategy(_):
        options = {
            "parallel_devices": [torch.device("cpu", 0)],
            "cluster_environment": LightningEnvironment(),
        }
        return ZeRO2(process_group_backend="gloo", **options)

    monkeypatch.setattr(train, "strategy", strategy)


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(zero, tmp_path, rendered):
    more = ("trainer.strategy=deepspeed", "train.picture_every=0", "train.checkpoint_every=1")
    whole = trained("gardiff", tmp_path, rendered, "whole", "train.steps=4", *more)
    trained("gardiff", tmp_path, rendered, "parts", "train.steps=2", *more)
    parts = trained("gardiff", tmp_path, rendered, "parts", "train.steps=4", *more)
    expected, found = (read_checkpoint(states_file(run.last)) for run in (whole, parts))
    assert found["global_step"] == 4
    assert_equal(dict(expected["module"]), dict(found["module"]))
    for callback in ("EMA", "Checkpoints"):  # others know the time
        assert_equal(expected["callbacks"][callback], found["callbacks"][callback])
    assert len(list(parts.last.glob("step_*"))) == 1
    with pytest.raises(config.UserError, match="cannot read each other"):
        trained("gardiff", tmp_path, rendered, "parts", "train.steps=5")


def test_a_folder_that_was_never_finished_is_no_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    (run.last / "step_5").mkdir(parents=True)
    assert train.read_progress(run, 8) == {}


@pytest.mark.slow
def test_a_malicious_shard_runs_nothing(zero, tmp_path, rendered):
    from tests.test_security import Attack

    more = ("trainer.strategy=deepspeed", "train.picture_every=0")
    run = trained("gardiff", tmp_path, rendered, "run", "train.steps=1", *more)
    shard = next(run.last.rglob("*optim_states.pt"))
    torch.save({"optimizer_state_dict": Attack(tmp_path / "marker")}, shard)
    with pytest.raises(UserError, match=shard.name):
        trained("gardiff", tmp_path, rendered, "run", "train.steps=2", *more)
    assert not (tmp_path / "marker").exists()
