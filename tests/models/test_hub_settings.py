"""Settings from the configuration files of hub folders."""

import json
from pathlib import Path

import pytest

from vton.config import load
from vton.models.hub_settings import other_prediction, unet_settings
from vton.models.settings import UNetConfig
from vton.models.unet import unet_arguments


def test_a_field_that_is_absent_has_the_librarys_default():
    """Old files of Stable Diffusion leave out what was the only possibility in their time."""
    shape = UNetConfig(widths=(32, 32), attention=(True, False), heads=(8, 8), depth=(1, 1))
    arguments = unet_arguments(shape, 4, 4)
    whole = unet_settings("model.unet", arguments, Path("unet"))
    for name in ("attention_head_dim", "transformer_layers_per_block", "norm_num_groups"):
        del arguments[name]
    assert unet_settings("model.unet", arguments, Path("unet")) == whole
    assert "model.unet.heads=[8, 8]" in whole


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"prediction_type": "v_prediction"}, True),
        ({"prediction_type": "epsilon"}, False),
        ({}, False),  # diffusers' default is epsilon
        (None, False),
    ],
)
def test_a_unet_that_predicts_something_else_is_noticed(file, said, tmp_path):
    """Stable Diffusion 2.1 in place of its base: nothing but the scheduler's file tells."""
    if file is not None:
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(file))
    config = load("model=gardiff", "preset=paper", f"model.unet.pretrained={tmp_path}")
    remark = other_prediction(config)
    assert bool(remark) == said
    if said:
        assert "predicts v_prediction" in remark and "objective.prediction=epsilon" in remark
