"""Nothing that is loaded runs code: hostile pickles at every door, and no other way to load in the
sources.
"""

import ast
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file

from tests.models.test_encoders import TEXT, TOWER
from tests.running import SMALL, command, trained
from vton.config import CodecConfig
from vton.errors import UserError
from vton.models.codecs import build_codec, load_codec, small_autoencoder
from vton.models.encoders import clip_image_encoder, text_encoder
from vton.models.imagdressing.building import build_control
from vton.models.imagdressing.config import ControlConfig
from vton.models.settings import ClipConfig, TextConfig, UNetConfig
from vton.models.unet import build_unet
from vton.runs.assemble import load_module
from vton.runs.cascade import load_stage
from vton.runs.folder import RunFolder

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


def pickled(state, path: Path) -> None:
    path.write_bytes(pickle.dumps(state))


def sharded(state, path: Path) -> None:
    torch.save(state, path.with_name("shard.bin"))
    index = {"metadata": {"total_size": 1}, "weight_map": {"weight": "shard.bin"}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()


@pytest.mark.parametrize("written", [torch.save, pickled])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("catvton", "attention.pth"),
        ("gardiff", "unet.pth"),
        ("imagdressing", "IMAGDressing.pt"),
        ("stableviton", "VITONHD.ckpt"),
        ("warp", "warping.pth"),
    ],
)
def test_an_imported_model_runs_nothing(model, name, written, marker, tmp_path, capsys):
    """Metric networks: tests/metrics/test_weights.py."""
    path = tmp_path / name
    written({"module": Attack(marker), "weight": Attack(marker)}, path)
    assert command("import", model, str(path), f"runs={tmp_path / 'runs'}") == 2
    assert f"{path}: not a safe, complete torch file" in capsys.readouterr().err


def as_pickle(folder: Path) -> Path:
    """The weights of a folder in the hub's layout, now in the file that older folders have."""
    (weights,) = folder.glob("*.safetensors")
    path = folder / {"model": "pytorch_model.bin"}.get(weights.stem, f"{weights.stem}.bin")
    torch.save(load_file(weights), path)
    weights.unlink()
    return path


LOADED = {  # what is configured -> how it is loaded from a folder
    "model.clip": lambda folder: clip_image_encoder(ClipConfig(pretrained=folder)),
    "model.text": lambda folder: text_encoder(TextConfig(pretrained=folder, subfolder="")),
    "model.text_2": lambda folder: text_encoder(
        TextConfig(pretrained=folder, subfolder="", projection=8)
    ),
    "codec": lambda folder: build_codec(CodecConfig(name="kl", pretrained=folder, subfolder="")),
    "a run's codec": lambda folder: load_codec(CodecConfig(name="kl"), Path(folder)),
    "model.unet": lambda folder: build_unet(
        UNetConfig(folder, subfolder="", context=16), 4, 4, "model.unet"
    ),
    "model.pose": lambda folder: build_control(
        ControlConfig(pretrained=folder), None, 8, "model.pose"
    ),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A folder in the hub's layout for each, with weights as pickles."""
    root = tmp_path_factory.mktemp("hub")
    shape = UNetConfig(
        widths=(8, 8),
        attention=(True, False),
        heads=(2, 2),
        depth=(1, 1),
        layers=1,
        context=16,
        groups=4,
    )
    unet, text = build_unet(shape, 4, 4, "model.unet"), text_encoder(TextConfig(**TEXT))
    autoencoder = small_autoencoder(CodecConfig(name="kl", widths=(8, 8), layers=1, groups=4))
    networks = {
        "model.clip": clip_image_encoder(ClipConfig(**TOWER)).tower,
        "model.text": text.model,
        "model.text_2": text_encoder(TextConfig(**TEXT, projection=8)).model,
        "codec": autoencoder,
        "a run's codec": autoencoder,
        "model.unet": unet,
        "model.pose": ControlNetModel.from_unet(unet),
    }
    for name, network in networks.items():
        network.save_pretrained(root / name)
        text.tokenizer.save_pretrained(root / name / "tokenizer")
        as_pickle(root / name)
        assert LOADED[name](str(root / name))  # a pickle of tensors alone is read
    return root


@pytest.mark.parametrize("written", [torch.save, pickled, sharded])
@pytest.mark.parametrize("name", LOADED)
def test_a_folder_in_the_hubs_layout_runs_nothing(name, written, hub, marker, tmp_path):
    folder = shutil.copytree(hub / name, tmp_path / "hub")
    (path,) = folder.glob("*.bin")
    written({"weight": Attack(marker)}, path)
    with pytest.raises(UserError, match="cannot load") as error:
        LOADED[name](str(folder))
    assert str(folder) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_tokenizer_that_brings_code_runs_nothing(hub, marker, tmp_path, monkeypatch):
    """Not even for someone who would answer yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = shutil.copytree(hub / "model.text", tmp_path / "hub")
    (folder / "tokenizer" / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="cannot load AutoTokenizer") as error:
        LOADED["model.text"](str(folder))
    assert str(folder) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_an_imported_folder_runs_nothing(published_idm_vton, marker, tmp_path, capsys):
    """TryonNet as it is imported, the networks that stay in the folder as they are loaded."""
    folder, runs = shutil.copytree(published_idm_vton[0], tmp_path / "idm"), f"runs={tmp_path}"
    assert command("import", "idm_vton", str(folder), runs, "name=sound", "data.size=[64,48]") == 0
    run = RunFolder(tmp_path / "sound")
    for name in ("unet_encoder", "image_encoder", "text_encoder", "text_encoder_2", "vae"):
        path = as_pickle(folder / name)
        whole = path.read_bytes()
        torch.save({"weight": Attack(marker)}, path)
        with pytest.raises(UserError, match=r"not a safe|cannot load") as error:
            load_module(run, run.load_config(), "weights")
        assert str(folder) in str(error.value) and len(str(error.value).splitlines()) == 1
        path.write_bytes(whole)
    path = as_pickle(folder / "unet")
    torch.save({"weight": Attack(marker)}, path)
    capsys.readouterr()  # progress of loading
    assert command("import", "idm_vton", str(folder), runs, "name=hostile") == 2
    said = capsys.readouterr().err
    assert f"{path}: not a safe, complete torch file" in said and len(said.splitlines()) == 1


def test_a_checkpoint_runs_nothing(marker, tmp_path, rendered, capsys):
    """Neither in resuming nor in evaluating."""
    run = trained("gardiff", tmp_path, rendered, "run", "train.steps=1", "train.picture_every=0")
    for path in (run.last, run.best):
        torch.save(
            {"state_dict": Attack(marker), "global_step": 1, "callbacks": Attack(marker)}, path
        )
    arguments = (
        "train",
        f"runs={tmp_path}",
        "name=run",
        f"data.root={rendered}",
        *SMALL,
        "train.steps=2",
    )
    assert command(*arguments, "train.picture_every=0") == 2
    assert f"{run.last}: not a safe, complete torch file" in capsys.readouterr().err
    stage = load_stage(run)
    for checkpoint in ("last", "best"):
        with pytest.raises(UserError, match="not a safe, complete torch file"):
            load_module(stage.run, stage.config, checkpoint)


def test_the_sources_know_no_other_way_to_load():
    """Every torch.load says weights_only=True; pickle, marshal, shelve, joblib, pickled arrays and
    code from the hub do not occur.
    """
    modules = "pickle|marshal|shelve|joblib|dill"
    forbidden = re.compile(
        rf"^\s*(import|from) ({modules})|(allow_pickle|trust_remote_code)=True|weights_only=False"
    )
    sources = list(SOURCES.rglob("*.py"))
    assert len(sources) > 100
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert not any(forbidden.search(line) for line in text.splitlines()), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
