"""Weights from disk: every layout of the hub, and nothing that runs code."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from vton.weights.pretrained import WeightsError, check_state, read_weights, read_weights_folder

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def same(found) -> bool:
    return found.keys() == STATE.keys() and all(
        torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in STATE.items()
    )


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model", "model", "diffusion_pytorch_model.fp16"]
)
def test_safetensors_and_pickles_whole(tmp_path, name):
    save_file(STATE, tmp_path / f"{name}.safetensors")
    assert same(read_weights_folder(tmp_path))
    (tmp_path / f"{name}.safetensors").unlink()
    torch.save(STATE, tmp_path / f"{name}.bin")
    assert same(read_weights_folder(tmp_path))


def test_shards(tmp_path):
    for key, value in STATE.items():
        save_file({key: value}, tmp_path / f"model-{key}.safetensors")
    index = {"weight_map": {key: f"model-{key}.safetensors" for key in STATE}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(read_weights_folder(tmp_path))
    index["weight_map"]["a"] = "../model-a.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside its own folder"):
        read_weights_folder(tmp_path)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_an_unsafe_pickle_is_refused_and_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"a": Payload(marker)}, tmp_path / "model.bin")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(Payload(marker)))
    for path in ("model.bin", "raw.bin"):
        with pytest.raises(WeightsError, match="not a safe, complete torch file"):
            read_weights(tmp_path / path)
    assert not marker.exists()


def test_truncated_and_absent_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match="holds no weights"):
        read_weights_folder(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a readable safetensors file"):
        read_weights_folder(tmp_path)


def test_keys_are_listed_ten_at_a_time():
    own = {f"layer.{i}": torch.zeros(2) for i in range(30)}
    state = {f"other.{i}": torch.zeros(2) for i in range(3)} | {"layer.29": torch.zeros(5)}
    with pytest.raises(WeightsError) as caught:
        check_state(own, state, "file.pt")
    message = str(caught.value)
    assert (
        "29 missing (layer.0" in message and "layer.9, ..." in message and "layer.10" not in message
    )
    assert "3 unexpected (other.0, other.1, other.2)" in message
    assert "1 mismatched (layer.29 (5,) for (2,))" in message and "\n" not in message
