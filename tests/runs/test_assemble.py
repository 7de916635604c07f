"""A run's module, put together from its folder."""

import pytest
import torch

from tests.batches import as_loaded, random_batch
from tests.running import SMALL
from vton.config import load
from vton.runs.assemble import load_module, prepare_run
from vton.weights.pretrained import write_tensors


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ("leffa", "model.reference_unet.trained=false"),
        ("catvton", "model.trained=attention"),
        ("gardiff", "model.lora.rank=2"),
    ],
)
def test_what_is_frozen_from_scratch_is_drawn_as_in_training(model, setting, tmp_path, rendered):
    """No file holds it: evaluation draws the very weights beside which training went on."""
    folders = (f"runs={tmp_path}", "name=run", f"data.root={rendered}")
    config = load(f"model={model}", setting, "seed=7", *folders, *SMALL)
    run, _, trained = prepare_run(config)
    write_tensors(run.weights, trained.state_dict())

    torch.manual_seed(1234)
    before = torch.get_rng_state()
    loaded = load_module(run, config, "weights")
    assert torch.equal(before, torch.get_rng_state())
    for name, network in trained.networks().items():
        drawn = dict(loaded.networks()[name].named_parameters())
        for key, parameter in network.named_parameters():
            assert torch.equal(parameter, drawn[key]), (name, key)
    batch = as_loaded(random_batch(2, (64, 48)), trained)
    assert torch.equal(trained.eval().generate(batch), loaded.generate(batch))
