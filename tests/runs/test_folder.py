"""Run folders: what continues a run, what refuses to, what the newest is."""

import json
import os
import shutil

import numpy as np
import pytest

from tests.data.folders import save, write_json, write_viton_hd
from tests.running import SMALL, trained
from vton.commands.train import train
from vton.config import ConfigError, load, load_file
from vton.errors import UserError
from vton.files import write_atomically
from vton.runs import assemble
from vton.runs.folder import RunFolder, differences, environment

MASK = np.zeros((96, 72), np.uint8)
MASK[20:60, 20:50] = 255
TAG = {"tag_name": "item", "tag_category": "blouse"}


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


def test_another_machines_precision_is_refused_with_what_to_give(tmp_path):
    """As trainer=auto chooses it where a run of a CPU goes on on a GPU."""
    named = (f"runs={tmp_path}", "name=one")
    RunFolder.of(load(*named)).start(load(*named, "trainer=cpu"))
    moved = load(*named, "trainer=gpu")
    with pytest.raises(
        UserError, match=r"in fp32, .* asks for bf16. Go on with train.precision=fp32"
    ):
        RunFolder.of(moved).start(moved)
    RunFolder.of(moved).start(load(*named, "trainer=gpu", "train.precision=fp32"))


def test_differences_name_dotted_keys():
    assert differences(load(), load()) == []
    assert differences(load(), load("seed=3")) == ["seed: 0 -> 3"]


def test_a_run_folder_may_be_a_link(tmp_path):
    run = RunFolder.of(load(f"runs={tmp_path}/disk", "name=one"))
    run.start(load(f"runs={tmp_path}/disk", "name=one"))
    run.last.write_bytes(b"x")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/linked").symlink_to(run.path)
    assert RunFolder.newest(tmp_path / "runs").path == tmp_path / "runs/linked"


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
        expected = f"Another process is training in {tmp_path / 'run'}, "
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


def test_a_refused_setting_starts_no_folder(tmp_path, rendered):
    """A constructor's or a layer's refusal is one line, and the corrected command may train."""
    for setting, words in (
        ("data.size=[100,75]", "divisible"),
        ("data.size=[100,76]", "even height and width"),
        ("model.unet.groups=7", "num_channels"),
        ("model.clip.heads=7", "multiple of the number of attention heads"),
        ("model.clip.activation=none_such", "KeyError"),
    ):
        small = [word for word in SMALL if not word.startswith(setting.partition("=")[0])]
        data = f"data.root={rendered}"
        config = load("model=gardiff", f"runs={tmp_path}", "name=one", data, *small, setting)
        with pytest.raises(UserError, match=words) as error:
            train(config)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "one").exists()


def test_a_refused_folder_of_data_starts_no_run(tmp_path):
    root = write_viton_hd(tmp_path / "data", train=2, test=2)
    (root / "train/cloth/00001_00.jpg").unlink()
    settings = [word for word in SMALL if word != "data.check=false"]
    config = load(
        "model=gardiff",
        f"runs={tmp_path}",
        "name=one",
        "data=viton_hd",
        f"data.root={root}",
        *settings,
    )
    with pytest.raises(UserError, match="garment is missing"):
        train(config)
    assert not (tmp_path / "one").exists()


def test_what_fails_after_the_start_takes_it_back(tmp_path, rendered, monkeypatch):
    def broken(*arguments):
        raise UserError("no room for a codec")

    monkeypatch.setattr(assemble, "prepare_codec", broken)
    config = load(f"runs={tmp_path}", "name=one", f"data.root={rendered}", *SMALL)
    with pytest.raises(UserError, match="no room"):
        assemble.prepare_run(config)
    assert not (tmp_path / "one/config.yaml").exists()


def test_of_several_processes_the_first_one_writes_the_folder(tmp_path, rendered):
    """It alone knows whether another training has the folder's lock."""
    config = load(f"runs={tmp_path}", "name=one", f"data.root={rendered}", *SMALL)
    run, _, _ = assemble.prepare_run(config, is_first=False)
    assert not run.config.exists() and not run.data.exists()
    assert (run.codec / "done").exists()  # whoever comes first fits the codec


def test_the_training_list_may_not_change_before_a_resume(tmp_path):
    run = RunFolder.of(load(f"runs={tmp_path}", "name=one"))
    run.start(load(f"runs={tmp_path}", "name=one"))
    run.remember_data("/data/a", ["x__x", "y__y"], {"warp": "learned:w, sha256 1"})
    assert run.compare_data("/data/a", ["y__y"], {}) == ""  # nothing was learned yet
    run.last.write_bytes(b"x")
    same = {"warp": "learned:w, sha256 1", "captions": "of whom an older run knows nothing"}
    assert run.compare_data("/data/a", ["x__x", "y__y"], same) == ""
    words = "learned from other files: warp was learned:w, sha256 1, now learned:w, sha256 2. Re"
    with pytest.raises(UserError, match=words):  # trained on since
        run.compare_data("/data/a", ["x__x", "y__y"], {"warp": "learned:w, sha256 2"})
    said = run.compare_data("/data/b", ["x__x", "y__y"], same)
    assert "goes on with the pictures of /data/b; it began with /data/a" in said
    for other in (["y__y", "x__x"], ["x__x"], ["x__x", "z__z"]):
        with pytest.raises(UserError, match="trained on another list of pairs: 2 of /data/a"):
            run.compare_data("/data/a", other, same)
    run.data.write_text("{")
    with pytest.raises(UserError, match="Remove it"):
        run.compare_data("/data/a", ["x__x"], same)
    run.data.unlink()
    assert run.compare_data("/data/a", ["x__x"], same) == ""  # of a run that older code began


def test_another_list_is_refused_by_the_command(tmp_path):
    root = write_viton_hd(tmp_path / "data", train=4, test=2)
    settings = ("data=viton_hd", f"data.root={root}", "train.picture_every=0")
    run = trained("gardiff", tmp_path, root, "one", "train.steps=1", *settings)
    assert json.loads(run.data.read_text())["pairs"] == 4
    lines = (root / "train_pairs.txt").read_text().splitlines()
    (root / "train_pairs.txt").write_text("\n".join(reversed(lines)))
    with pytest.raises(UserError, match="another list of pairs"):
        trained("gardiff", tmp_path, root, "one", "train.steps=2", *settings)
    (root / "train_pairs.txt").write_text("\n".join(lines))
    for number in range(4):  # found where masks were derived before
        save(root / f"train/agnostic-mask/{number:05d}_00_mask.png", MASK)
    tags = root / "train/vitonhd_train_tagged.json"
    write_json(tags, {"data": [{"file_name": "00001_00.jpg", "tag_info": [TAG]}]})
    words = "mask was derive:safe, now folder:agnostic-mask; captions was sha256 .*, now sha256"
    with pytest.raises(UserError, match=words):
        trained("gardiff", tmp_path, root, "one", "train.steps=2", *settings)
    shutil.rmtree(root / "train/agnostic-mask")
    tags.unlink()
    trained("gardiff", tmp_path, root, "one", "train.steps=2", *settings)
