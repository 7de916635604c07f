"""README, "Adding an architecture": the folder and the YAML that it shows are all that an
architecture takes.
"""

import re
import shutil
import textwrap
from pathlib import Path

import pytest
import torch

import vton.models
from tests.batches import random_batch
from tests.models import test_waiting as waiting
from tests.report import test_attention as attention
from tests.running import trained
from vton.config import CONFIGS, load
from vton.cost.counting import describe
from vton.runs.assemble import load_module
from vton.runs.cascade import load_stage

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The example's files, beside the shipped ones."""
    readme = README.read_text(encoding="utf-8")
    section = readme.partition("\n## Adding an architecture\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^ *```(?:python|yaml)\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    config, module, settings = blocks
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "config.py").write_text(textwrap.dedent(config))
    (folder / "module.py").write_text(textwrap.dedent(module))
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "model" / "mine.yaml").write_text(textwrap.dedent(settings))
    monkeypatch.setattr(vton.models, "__path__", [*vton.models.__path__, str(folder.parent)])
    monkeypatch.setattr("vton.config.files.CONFIGS", tmp_path / "configs")
    return "mine"


def test_the_example_trains_and_samples(mine, tmp_path, rendered):
    assert load("model=mine").model.widths == (32, 64, 96)
    assert describe(load("model=mine", "preset=paper"))["networks"][0]["name"] == "unet"
    run = trained(mine, tmp_path / "runs", rendered, "run", "train.steps=2")
    stage = load_stage(run)
    assert stage.before is None
    module = load_module(stage.run, stage.config, "weights")
    pictures = module.generate(random_batch(2, size=(64, 48)))
    assert pictures.shape == (2, 3, 64, 48) and torch.isfinite(pictures).all()


def test_it_works_on_a_gpu(mine):
    """As far as the meta device tells."""
    waiting.test_a_training_step_waits_for_nothing("model=mine")
    waiting.test_a_step_of_sampling_waits_for_nothing("mine")


def test_without_attention_to_the_garment_it_has_nothing_to_show(mine):
    with pytest.raises(pytest.skip.Exception):
        attention.test_every_architecture_that_reads_places_shows_where_it_looks("mine")
