"""Nothing that is loaded runs code: hostile pickles at every door, and no other way to load in the sources."""

import pickle
import re
from pathlib import Path

import pytest
import torch

from tests.training.test_train import SMALL, command, rendered, trained  # noqa: F401
from vton.cascade import chain_of
from vton.evaluation import load_module
from vton.models.pretrained import WeightsError

SOURCES = Path(__file__).resolve().parent.parent / "vton"


class Attack:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "marker"
    pickle.loads(pickle.dumps(Attack(path)))
    assert path.exists()  # the attack works
    path.unlink()
    yield path
    assert not path.exists()


@pytest.mark.parametrize("written", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
@pytest.mark.parametrize(
    ("model", "name"), [("gardiff", "unet.pth"), ("imagdressing", "IMAGDressing.pt"), ("warp", "warping.pth")]
)
def test_an_imported_model_runs_nothing(model, name, written, marker, tmp_path, capsys):
    """Files of folders in the hub's layout: tests/models/test_pretrained.py; metric networks: test_weights.py."""
    path = tmp_path / name
    written({"module": Attack(marker), "weight": Attack(marker)}, path)
    assert command("import", model, str(path), f"runs={tmp_path / 'runs'}") == 2
    assert f"{path}: not a safe, complete torch file" in capsys.readouterr().err


def test_a_checkpoint_runs_nothing(marker, tmp_path, rendered, capsys):  # noqa: F811
    """Neither in resuming nor in evaluating."""
    run = trained("gardiff", tmp_path, rendered, "run", "train.steps=1", "train.picture_every=0")
    for path in (run.last, run.best):
        torch.save({"state_dict": Attack(marker), "global_step": 1, "callbacks": Attack(marker)}, path)
    arguments = ("train", f"runs={tmp_path}", "name=run", f"data.root={rendered}", *SMALL, "train.steps=2")
    assert command(*arguments, "train.picture_every=0") == 2
    assert f"{run.last}: not a safe, complete torch file" in capsys.readouterr().err
    stage = chain_of(run)[-1]
    for checkpoint in ("last", "best"):
        with pytest.raises(WeightsError, match="not a safe, complete torch file"):
            load_module(stage.run, stage.config, checkpoint)


def test_the_sources_know_no_other_way_to_load():
    """Every torch.load says weights_only=True; pickle, marshal, shelve, joblib and pickled arrays do not occur."""
    modules = "pickle|marshal|shelve|joblib|dill"
    forbidden = re.compile(rf"^\s*(import|from) ({modules})|allow_pickle=True|weights_only=False")
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(forbidden.search(line) for line in text.splitlines()), path
        loads = re.findall(r"torch\.load\(.*", text)
        assert all("weights_only=True" in load for load in loads), path
