"""Run folders: what continues a run, what refuses to, what the newest is."""

import json
import os

import pytest

from vton.config import ConfigError, load, load_file
from vton.errors import UserError
from vton.files import write_atomically
from vton.runs.folder import RunFolder, differences, environment


def test_start_writes_configuration_and_environment(tmp_path):
    config = load(f"runs={tmp_path}", "name=one")
    run = RunFolder.of(config)
    run.start(config)
    assert load_file(run.config) == config
    versions = json.loads((run.path / "environment.json").read_text())["versions"]
    assert versions["torch"] and versions["lightning"]


def test_same_experiment_continues_and_another_is_refused(tmp_path):
    config = load(f"runs={tmp_path}", "name=one")
    RunFolder.of(config).start(config)
    longer = load(
        f"runs={tmp_path}", "name=one", "train.steps=9999", "data.workers=7", "sampler.steps=9"
    )
    RunFolder.of(longer).start(longer)
    other = load(f"runs={tmp_path}", "name=one", "train.lr=0.5", "model.unet.context=64")
    with pytest.raises(UserError) as error:
        RunFolder.of(other).start(other)
    message = str(error.value)
    assert "train.lr" in message and "model.unet.context: 128 -> 64" in message
    assert "\n" not in message
    # The refused one left no trace.
    assert load_file(RunFolder.of(config).config).train.lr == config.train.lr


def test_differences_name_dotted_keys():
    assert differences(load(), load()) == []
    assert differences(load(), load("seed=3")) == ["seed: 0 -> 3"]


def test_newest_run_is_the_one_trained_last(tmp_path):
    with pytest.raises(UserError, match="No trained run"):
        RunFolder.newest(tmp_path)
    for age, name in enumerate(("old", "new", "untrained")):
        config = load(f"runs={tmp_path}", f"name={name}")
        run = RunFolder.of(config)
        run.start(config)
        if name != "untrained":
            run.last.write_bytes(b"x")
            os.utime(run.last, (1000 + age, 1000 + age))
    assert RunFolder.newest(tmp_path).path.name == "new"
    assert RunFolder.newest(tmp_path, "gardiff").path.name == "new"
    other = load("model=idm_vton", f"runs={tmp_path}", "name=idm")
    RunFolder.of(other).start(other)
    with pytest.raises(UserError, match=r"No trained run of idm_vton under .* MODEL=idm_vton"):
        RunFolder.newest(tmp_path, "idm_vton")
    RunFolder.of(other).weights.write_bytes(b"x")
    os.utime(RunFolder.of(other).weights, (1, 1))
    assert RunFolder.newest(tmp_path, "idm_vton").path.name == "idm"
    assert RunFolder.newest(tmp_path).path.name == "new"
    with pytest.raises(ConfigError, match="Did you mean: 'idm_vton'"):
        RunFolder.newest(tmp_path, "idm_vtn")


def test_one_process_trains_in_a_folder(tmp_path):
    with RunFolder(tmp_path / "run").training_lock():
        expected = f"Another process is training in {tmp_path / 'run'}. "
        with pytest.raises(UserError, match=expected), RunFolder(tmp_path / "run").training_lock():
            pass
        with RunFolder(tmp_path / "other").training_lock():
            pass
    with pytest.raises(KeyError), RunFolder(tmp_path / "run").training_lock():
        raise KeyError
    with RunFolder(tmp_path / "run").training_lock():
        pass


def test_a_folder_without_configuration_is_named(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(tmp_path / "nothing").load_config()


def test_atomic_write_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "1")
    write_atomically(path, "2")
    assert path.read_text() == "2" and list(tmp_path.iterdir()) == [path]


def test_environment_names_this_checkout():
    assert environment()["commit"]
