"""Configuration: layers, errors that name the key and its neighbour, round trip."""

import shutil
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vton import config as configuration
from vton import registry
from vton.commands.choice import chosen_run, chosen_stage, say_trainer
from vton.config import (
    CONFIGS,
    ConfigError,
    Fraction,
    ModelConfig,
    PositiveInt,
    ablation,
    choices,
    load,
    load_file,
    load_shared,
    to_yaml,
    to_yaml_of_no_machine,
)
from vton.config.bounds import check_bounds
from vton.config.machine import trainer_of_machine
from vton.cost.meta import on_meta
from vton.runs.folder import RunFolder


def test_layers_are_joined_in_order():
    paper, tiny = load("preset=paper"), load("preset=tiny", "train.lr=0.5")
    assert paper.train.lr == 5e-5 and paper.sampler.guidance == 7.5  # the model's file
    assert paper.model.unet.pretrained and not tiny.model.unet.pretrained  # its part for a preset
    assert tiny.codec.name == "linear"  # the preset
    assert tiny.train.lr == 0.5  # the command line comes last


MACHINES = {0: "cpu", 1: "gpu", 4: "ddp"}  # CUDA devices -> what trainer=auto is there


@pytest.fixture
def gpus(monkeypatch):
    """Sets how many CUDA devices torch finds."""

    def found(count: int) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return found


@pytest.mark.parametrize(("count", "trainer"), MACHINES.items())
def test_the_machine_decides_the_trainer_unless_somebody_does(count, trainer, gpus):
    """By default, and to the last setting what that trainer is by name."""
    gpus(count)
    for preset in ("tiny", "paper"):
        chosen = load(f"preset={preset}", f"trainer={trainer}")
        assert load(f"preset={preset}") == load(f"preset={preset}", "trainer=auto") == chosen
        assert load_shared(f"preset={preset}") == load_shared(
            f"preset={preset}", f"trainer={trainer}"
        )
    tiny = load()
    assert tiny.train.precision == ("bf16" if count else "fp32")
    assert tiny.data.workers == (8 if count else 0)
    assert tiny.trainer.devices == (-1 if count > 1 else 1)
    by_hand = load("train.precision=fp16", "data.workers=3", "trainer.devices=2")
    assert (by_hand.train.precision, by_hand.data.workers) == ("fp16", 3)
    assert by_hand.trainer.devices == 2 and by_hand.trainer.name == trainer
    assert load("trainer=cpu").trainer.name == "cpu"


@pytest.mark.parametrize(("count", "trainer"), MACHINES.items())
def test_a_run_is_evaluated_by_the_machine_it_lies_on(count, trainer, gpus, tmp_path):
    """Wherever it was trained. What it learned with stays its own; the evaluation's precision is
    that, but float32 on a CPU.
    """
    for trained_on in ("cpu", "gpu", "fsdp"):
        compiled = f"trainer.compile={trained_on == 'gpu'}"
        stored = load(f"trainer={trained_on}", "trainer.nodes=2", "data.workers=5", compiled)
        (tmp_path / "config.yaml").write_text(to_yaml(stored))
        assert load_file(tmp_path / "config.yaml") == stored  # as it is
        gpus(count)
        choice = Namespace(folder=tmp_path, model=None, overrides=[])
        config = chosen_stage(choice).config
        moved = trainer == "cpu" and trained_on != "cpu"
        expected = load(f"trainer={trainer}", "trainer.compile=false" if moved else compiled)
        assert config.trainer == expected.trainer
        assert config.train == stored.train and config.data == stored.data
        assert config.eval.precision == ("fp32" if moved else None)
        choice.overrides = ["trainer=cpu", "trainer.devices=2", "eval.precision=bf16"]
        config = chosen_stage(choice).config
        assert (config.trainer.name, config.trainer.devices) == ("cpu", 2)
        assert config.eval.precision == "bf16"


@pytest.mark.parametrize(("count", "trainer"), MACHINES.items())
def test_a_run_of_no_machine_takes_what_the_machine_has(count, trainer, gpus, tmp_path):
    """As `vton import` writes it; what was given by hand stays."""
    path, by_hand = tmp_path / "config.yaml", tmp_path / "by_hand.yaml"
    config = load("preset=paper", "trainer=gpu", "train.precision=fp16", "data.workers=2")
    path.write_text(to_yaml_of_no_machine(config, ()))
    by_hand.write_text(to_yaml_of_no_machine(config, ("train.precision", "data.workers")))
    gpus(count)
    assert load_file(path) == load("preset=paper", f"trainer={trainer}")
    assert load_file(path, "trainer=cpu").train.precision == "fp32"
    found = load_file(by_hand)
    assert (found.train.precision, found.data.workers) == ("fp16", 2)
    assert found.trainer.name == trainer


@pytest.mark.parametrize(
    ("count", "said"),
    {0: "no CUDA device, CPU", 1: "1 GPU", 4: "4 GPUs, DDP"}.items(),
)
def test_the_choice_is_said_once_and_only_where_there_was_one(
    count, said, gpus, monkeypatch, capsys
):
    gpus(count)
    say_trainer(["model=gardiff"])
    assert capsys.readouterr() == ("", f"trainer=auto: {said}\n")
    say_trainer(["trainer=auto", "trainer=cpu"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    say_trainer([])
    assert capsys.readouterr() == ("", "")


LAYERS = {  # file and place in it -> what it says, in the order in which they win
    "default": ("default.yaml", ""),
    "model": ("model/gardiff.yaml", ""),
    "mode": ("model/gardiff.yaml", "modes.release"),
    "preset": ("preset/tiny.yaml", ""),
    "stage": ("model/gardiff.yaml", "stages.base"),
    "model's preset": ("model/gardiff.yaml", "presets.tiny"),
    "mode's preset": ("model/gardiff.yaml", "modes.release.presets.tiny"),
    "stage's preset": ("model/gardiff.yaml", "stages.base.presets.tiny"),
    "data": ("data/synthetic.yaml", ""),
    "trainer": ("trainer/cpu.yaml", ""),
}


@pytest.mark.parametrize("count", range(1, len(LAYERS) + 1))
def test_the_last_layer_that_says_something_wins(count, tmp_path, monkeypatch):
    """Every layer up to the last of `count` gives the run its name."""
    shutil.copytree(CONFIGS, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("vton.config.files.CONFIGS", tmp_path)
    monkeypatch.setattr(registry.config_class("gardiff"), "stage", "base", raising=False)
    for layer, (file, place) in list(LAYERS.items())[:count]:
        content = OmegaConf.load(tmp_path / file)
        OmegaConf.update(content, f"{place}.name".strip("."), layer, force_add=True)
        OmegaConf.save(content, tmp_path / file)
    assert load("model.mode=release").name == list(LAYERS)[count - 1]
    assert load("model.mode=release", "name=mine").name == "mine"


def test_bounds_are_those_of_the_types():
    """In sections of a model as well, and where a subclass gives another default."""

    @dataclass
    class Part:
        layers: PositiveInt = 1
        free: int = 0

    @dataclass
    class Mine(ModelConfig):
        condition_dropout: float = 0.5
        share: Fraction = 0.0
        part: Part = field(default_factory=Part)

    check_bounds(Mine(), "model.")
    for config, expected in (
        (Mine(condition_dropout=2), r"model\.condition_dropout=2 must be in \[0, 1\]\."),
        (Mine(share=float("nan")), r"model\.share=nan must be in \[0, 1\]\."),
        (Mine(part=Part(layers=0)), r"model\.part\.layers=0 must be at least 1\."),
        (Mine(part=Part(layers=10**400)), r"model\.part\.layers=1000.* must be at least 1\."),
    ):
        with pytest.raises(ConfigError, match=expected):
            check_bounds(config, "model.")


def test_a_run_takes_data_and_trainer_from_their_files(tmp_path):
    """Wherever they stand; the rest comes from dotted overrides. Its model stays."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load("data.root=mine", "train.lr=0.5")))
    config = load_file(path, "data=dresscode", "trainer=ddp", "data.root=theirs", "eval.seed=3")
    assert config.data.name == "dresscode" and config.data.root == "theirs"
    assert config.trainer.name == config.trainer.strategy == "ddp"
    assert config.train.lr == 0.5 and config.eval.seed == 3
    config = load_file(path, "data.root=theirs", "train.lr=0.1", "data=dresscode")
    assert (config.data.name, config.data.root) == ("dresscode", "theirs")
    for override, expected in (
        ("model=idm_vton", "a trained run has its model already"),
        ("data=dresscod", "data=dresscod: no such data. Did you mean: 'dresscode'"),
        ("data", "not of the form key=value"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load_file(path, override)


def test_epsilon_cannot_start_from_pure_noise():
    """Leading spacing seldom visits the last timestep: IDM-VTON samples without it."""
    rescaled = ("preset=paper", "objective.zero_terminal_snr=true")
    load(*rescaled)
    load(*rescaled, "sampler.zero_terminal_snr=false", "sampler.spacing=trailing")
    with pytest.raises(ConfigError, match=r"objective\.prediction=epsilon"):
        load(*rescaled, "sampler.spacing=trailing")


@pytest.mark.parametrize("model", registry.folders())
@pytest.mark.parametrize("preset", choices("preset"))
def test_every_model_and_preset_round_trips(model, preset, tmp_path):
    config = load(f"model={model}", f"preset={preset}")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_file(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g in ("data", "trainer") for n in choices(g)]
)
def test_every_data_and_trainer_file_round_trips(group, name, tmp_path):
    config = load(f"{group}={name}")
    expected = trainer_of_machine() if name == "auto" else name
    assert getattr(config, group).name == expected
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_file(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("model", choices("ablation"))
@pytest.mark.parametrize("preset", ["small", "paper"])
def test_every_row_of_an_ablation_round_trips(model, preset, tmp_path):
    """And no two rows of a table are one configuration. tests/models/test_ablations.py has the tiny
    preset's.
    """
    found = []
    for row in ablation(model).rows:
        config = load(f"model={model}", f"preset={preset}", f"ablation={model}/{row}", "name=same")
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert load_file(tmp_path / "config.yaml") == config and config.ablation == f"{model}/{row}"
        config.ablation = ""
        assert config not in found, row
        found.append(config)


def built() -> list[list[str]]:
    """Overrides of what is built here; `vton info` builds the rest, in the tests of models."""
    settings = []
    for model in registry.folders():
        stages = list(registry.config_class(model).CASCADE)
        for preset in choices("preset"):
            chosen = [f"model={model}", f"preset={preset}"]
            if preset == "small":
                settings.append(chosen)
            settings += [[*chosen, f"model.stage={stage}"] for stage in stages[1:]]
    return settings


@pytest.mark.parametrize("overrides", built(), ids=" ".join)
def test_every_preset_of_every_stage_can_be_built(overrides):
    parameters = list(on_meta(load(*overrides)).parameters())
    assert any(parameter.requires_grad for parameter in parameters)
    assert all(parameter.is_meta for parameter in parameters)


def test_names_of_models_and_their_yaml_agree():
    assert registry.folders() == choices("model")
    assert sorted(registry.names() + registry.names("warp")) == registry.folders()


def test_a_learned_warp_and_its_run_belong_together():
    with pytest.raises(ConfigError, match=r"data\.warp_run=''"):
        load("data.warp_source=learned")
    with pytest.raises(ConfigError, match=r"data\.warp_source=auto"):
        load("data.warp_run=runs/warp")


def test_data_root_follows_the_environment(monkeypatch):
    data = load("data=viton_hd").data
    monkeypatch.setenv("VTON_DATA", "/elsewhere")
    assert str(configuration.data_root(data)) == "/elsewhere/viton_hd"
    monkeypatch.setenv("VTON_DATA", "~/sets/")
    assert configuration.data_root(data) == f"{Path.home()}/sets/viton_hd"
    monkeypatch.setenv("VTON_DATA", "")
    assert configuration.data_root(data) == "data/viton_hd"
    for given in ("/given", "/"):
        data.root = given
        assert str(configuration.data_root(data)) == given


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=2024_01_01", "2024_01_01"),
        ("name=001", "001"),
        ("name=1e3", "1e3"),
        ("name=true", "true"),
        ("name=null", "null"),
        ("name='quoted'", "quoted"),
        ('name="a b"', "a b"),
        ("name=it's", "it's"),
        ("name=[x", "[x"),
        ("name=a: b", "a: b"),
    ],
)
def test_text_is_kept_as_it_is_written(override, expected, tmp_path):
    config = load(override, f"runs={tmp_path}/01")
    assert (config.name, config.runs) == (expected, f"{tmp_path}/01")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_file(path) == config
    assert load_file(path, f"data.caption_fallback={expected}").data.caption_fallback == expected


def test_paths_may_hold_what_yaml_takes_for_something_else():
    assert load("data.root=/data/set #2/zalando").data.root == "/data/set #2/zalando"
    assert load("data.root=").data.root == ""
    assert load("model.text.pretrained=/w/#1: a").model.text.pretrained == "/w/#1: a"
    assert load("data.category=dresses").data.category == "dresses"


def test_a_number_in_a_file_is_no_text(tmp_path):
    """YAML would drop zeros and underscores before anyone sees them."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load("name=x")).replace("name: x\n", "name: 2024_01_01\n"))
    with pytest.raises(ConfigError, match="name=20240101 is text, but YAML reads a number"):
        load_file(path)


def test_the_newest_run_is_found_below_a_folder_of_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load("runs=007", "name=1e3")
    run = RunFolder.of(config)
    run.start(config)
    run.last.write_bytes(b"x")
    chosen = chosen_run(Namespace(folder=None, model=None, overrides=["runs=007"]))
    assert str(chosen.path) == "007/1e3"
