"""What a row says of its settings."""

import pytest

from vton.config import load
from vton.runs.provenance import settings_digest

SETTINGS = ("model=gardiff", "preset=tiny")


@pytest.mark.parametrize(
    "override",
    ["seed=3", "name=other", "runs=elsewhere", "data.workers=5", "eval.baselines=false"],
)
def test_seeds_of_one_method_have_one_digest(override):
    assert settings_digest(load(*SETTINGS, override)) == settings_digest(load(*SETTINGS))


@pytest.mark.parametrize(
    "override",
    ["train.weight_decay=0.5", "sampler.guidance_rescale=0.5", "model.condition_dropout=0.5"],
)
def test_any_other_setting_changes_it(override):
    assert settings_digest(load(*SETTINGS, override)) != settings_digest(load(*SETTINGS))
