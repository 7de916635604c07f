"""A partly frozen, oddly shaped architecture in one folder and one YAML, through every command.

The canvas holds two pictures, trains its attention layers alone and changes its training examples.
It is a test's architecture: nothing of vton knows it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vton.models
from tests.batches import random_batch, randomised, tiny_module
from tests.models import test_every_model as shared
from tests.running import SMALL, command, trained
from vton import registry
from vton.commands.comparison import plan_models
from vton.config import CONFIGS, load
from vton.cost.counting import cost, describe

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def canvas(tmp_path, monkeypatch):
    """The architecture's two files, beside the shipped ones."""
    configs = shutil.copytree(CONFIGS, tmp_path / "configs")
    shutil.copy(HERE / "configs" / "model" / "canvas.yaml", configs / "model")
    monkeypatch.setattr(vton.models, "__path__", [*vton.models.__path__, str(HERE / "models")])
    monkeypatch.setattr("vton.config.files.CONFIGS", configs)


def test_it_is_listed_with_the_others(capsys):
    assert command("list") == 0
    assert "canvas" in registry.names() and "canvas" in capsys.readouterr().out


SHARED = [
    shared.test_prediction_is_shaped_like_the_latents_and_finite,
    shared.test_frozen_networks_stay_out_of_the_state,
    shared.test_training_draws_depend_on_position_only,
    shared.test_a_picture_does_not_depend_on_its_batch,
    shared.test_guidance_in_one_batch_equals_two_passes,
    shared.test_dropping_rows_leaves_the_others_alone,
    shared.test_the_picture_depends_on_the_garment,
    shared.test_gradient_checkpointing_changes_nothing,
]


@pytest.mark.parametrize("test", SHARED, ids=lambda test: test.__name__)
def test_it_passes_what_every_architecture_passes(test):
    test("canvas")


@pytest.mark.parametrize("mode", shared.MODES)
def test_gradients_reach_the_trained_part_alone(mode):
    shared.test_gradients_reach_every_trained_parameter_and_no_other("canvas", mode)


def test_the_state_holds_the_trained_part_alone(tmp_path):
    module = randomised(tiny_module("canvas"))
    state = module.state_dict()
    assert state and all(".attn1." in name for name in state)
    other = tiny_module("canvas")
    before = other.unet.conv_in.weight.clone()
    other.load_state_dict(state)
    assert torch.equal(other.unet.conv_in.weight, before)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name])
    shared.test_weights_round_trip_bit_equal("canvas", "as published", tmp_path)


def test_dream_changes_input_and_target():
    plain, dream = tiny_module("canvas"), tiny_module("canvas", "model.dream=1")
    batch = random_batch(2)
    assert plain.training_step(batch, 0) != dream.training_step(batch, 0)


def test_readings_are_computed_once(monkeypatch):
    module, encoded = tiny_module("canvas"), []
    encode = module.codec.encode
    monkeypatch.setattr(module.codec, "encode", lambda x: encoded.append(len(x)) or encode(x))
    module.training_step(random_batch(2), 0)
    assert encoded == [2, 2, 2]  # person, garment, agnostic
    encoded.clear()
    module.eval().generate(random_batch(2))
    assert encoded == [2, 2]  # sampling needs no person


def test_its_cost_is_that_of_a_canvas():
    """Half of what is sampled is decoded."""
    config = load("model=canvas", "preset=paper")
    flops = describe(config)["flops"]
    other = load("model=gardiff", "preset=paper")  # with the same autoencoder
    of_one_picture = describe(other)["flops"]["decode"]
    height, width = config.data.size
    other_height, other_width = other.data.size
    pixels = height * width / (other_height * other_width)
    assert flops["decode"] == pytest.approx(of_one_picture * pixels, rel=0.1)
    assert cost(load("model=canvas"))["picture_flops"] > 0


def test_train_eval_export_import_and_compare(tmp_path, rendered, capsys):
    runs = tmp_path / "runs"
    run = trained("canvas", runs, rendered, "run", "train.steps=2", "eval.metrics=[psnr]")
    weights = load_file(run.weights)
    assert weights and all(".attn1." in name for name in weights)

    assert command("eval", "--run", str(run.path), "eval.orders=[paired]", "eval.pictures=2") == 0
    assert json.loads(run.results.read_text())[0]["model"] == "canvas"

    exported = tmp_path / "attention.safetensors"
    assert command("export", "--run", str(run.path), "--out", str(exported)) == 0
    settings = [setting for setting in SMALL if setting.startswith(("data.", "codec."))]
    settings += [f"runs={runs}", "name=again", f"data.root={rendered}"]
    assert command("import", "canvas", str(exported), *settings) == 0
    again = load_file(runs / "again" / "checkpoints" / "weights.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())

    budget = ["compare.models=[canvas,gardiff]", "compare.budget=flops", "compare.tflop=0.5"]
    plan = plan_models(*SMALL, *budget, f"runs={runs}", f"data.root={rendered}")
    assert plan.costs["canvas"]["step_flops"] > 0
