"""Configuration: layers, errors that name the key and its neighbour, round trip."""

import pytest

from vton import config as configuration
from vton import registry
from vton.config import ConfigError, ablation, choices, load, load_file, to_yaml
from vton.cost.meta import on_meta


def test_layers_are_joined_in_order():
    paper, tiny = load("preset=paper"), load("preset=tiny", "train.lr=0.5")
    assert paper.train.lr == 5e-5 and paper.sampler.guidance == 7.5  # the model's file
    assert (
        paper.model.unet.pretrained and not tiny.model.unet.pretrained
    )  # the model's section for a preset
    assert tiny.codec.name == "linear"  # the preset
    assert tiny.train.lr == 0.5  # the command line comes last


def test_epsilon_cannot_start_from_pure_noise():
    """Leading spacing never visits the last timestep: IDM-VTON samples so."""
    load("preset=paper", "objective.zero_terminal_snr=true")
    load(
        "preset=paper",
        "objective.zero_terminal_snr=true",
        "sampler.zero_terminal_snr=false",
        "sampler.spacing=trailing",
    )
    with pytest.raises(ConfigError, match=r"objective\.prediction=epsilon"):
        load("preset=paper", "objective.zero_terminal_snr=true", "sampler.spacing=trailing")


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
    assert getattr(config, group).name == name
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


BUILT = [
    (model, preset, stage)
    for model in registry.folders()
    for preset in choices("preset")
    for number, stage in enumerate(registry.config_class(model)().CASCADE or [""])
    if preset == "small" or number  # `vton info` builds the others, in the tests of models
]


@pytest.mark.parametrize(("model", "preset", "stage"), BUILT)
def test_every_preset_of_every_stage_can_be_built(model, preset, stage):
    module = on_meta(
        load(f"model={model}", f"preset={preset}", *([f"model.stage={stage}"] if stage else []))
    )
    assert any(p.requires_grad for p in module.parameters()) and all(
        p.is_meta for p in module.parameters()
    )


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
    data.root = "/given"
    assert str(configuration.data_root(data)) == "/given"
