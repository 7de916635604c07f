"""Checkpoints whose tensors lie in pieces beside them."""

import pytest
import torch
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from tests.running import assert_equal
from vton.errors import UserError
from vton.weights.pieces import AVERAGE, MOMENTS, WEIGHTS, remove_unnamed
from vton.weights.pretrained import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
GROUPS = [{"lr": 0.1, "params": ["b"]}, {"lr": 0.2, "params": ["a.weight"]}]


@pytest.fixture
def checkpoint(tmp_path):
    """One process's pieces of a checkpoint, and its path."""
    torch.manual_seed(0)
    weights = {"a.weight": torch.randn(3, 2), "b": torch.randn(4).bfloat16()}
    average = {name: value + 1 for name, value in weights.items()}
    tensors = {WEIGHTS + name: value for name, value in weights.items()}
    tensors |= {AVERAGE + name: value for name, value in average.items()}
    for name, value in weights.items():
        tensors[f"{MOMENTS}0/{name}/exp_avg"] = value * 2
        tensors[f"{MOMENTS}0/{name}/step"] = torch.tensor(3.0)
    folder = tmp_path / "last_00000003.pieces"
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save(tensors, storage_writer=writer, no_dist=True)
    files = [path.name for path in folder.iterdir()]
    content = {
        "global_step": 3,
        "state_dict": {},
        "callbacks": {"EMA": {"step": 3}},
        "optimizer_states": [{"param_groups": GROUPS}],
        "pieces": {"folder": folder.name, "files": files},
    }
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", content, weights, average


def test_they_read_as_one_process_writes_them(checkpoint):
    path, _, weights, average = checkpoint
    found = read_checkpoint(path)
    assert found.keys() == {"global_step", "state_dict", "callbacks", "optimizer_states"}
    assert_equal(weights, found["state_dict"])
    assert_equal({"step": 3, "average": average}, found["callbacks"]["EMA"])
    moments = []
    for name in ("b", "a.weight"):
        moments.append({"exp_avg": weights[name] * 2, "step": torch.tensor(3.0)})
    groups = [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}]
    assert_equal(
        [{"state": dict(enumerate(moments)), "param_groups": groups}], found["optimizer_states"]
    )
    assert list(found["optimizer_states"][0]["state"]) == [0, 1]


def test_they_are_read_only_where_tensors_are_asked_for(checkpoint):
    path, content, *_ = checkpoint
    for file in (path.parent / "last_00000003.pieces").iterdir():
        file.unlink()
    assert_equal(content, read_checkpoint(path, "callbacks", "global_step"))
    with pytest.raises(UserError, match="pieces of the checkpoint are missing: shard-00001"):
        read_checkpoint(path)


@pytest.mark.parametrize("size", [0, 100])
def test_a_broken_piece_is_named(checkpoint, size):
    path, *_ = checkpoint
    (file,) = (path.parent / "last_00000003.pieces").iterdir()
    with open(file, "r+b") as broken:
        broken.truncate(size)
    with pytest.raises(UserError, match=r"last_00000003\.pieces: not readable pieces"):
        read_checkpoint(path)


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc"])
def test_no_piece_is_read_from_elsewhere(checkpoint, folder):
    path, content, *_ = checkpoint
    content["pieces"]["folder"] = folder
    torch.save(content, path)
    with pytest.raises(UserError, match=r"pieces of the checkpoint are missing"):
        read_checkpoint(path)
    content["pieces"] = {"folder": "last_00000003.pieces", "files": ["../last.ckpt"]}
    torch.save(content, path)
    with pytest.raises(UserError, match=r"missing: \.\./last\.ckpt"):
        read_checkpoint(path)


def test_pieces_that_no_checkpoint_names_are_removed(checkpoint):
    path, *_ = checkpoint
    (path.parent / "last_00000004.pieces").mkdir()
    torch.save({"state_dict": {}}, path.with_name("best.ckpt"))
    remove_unnamed(path.parent)
    assert [found.name for found in path.parent.glob("*.pieces")] == ["last_00000003.pieces"]
    path.with_name("best.ckpt").write_bytes(b"")
    path.unlink()
    remove_unnamed(path.parent)
    assert len(list(path.parent.glob("*.pieces"))) == 1
    path.with_name("best.ckpt").unlink()
    remove_unnamed(path.parent)
    assert not list(path.parent.glob("*.pieces"))
