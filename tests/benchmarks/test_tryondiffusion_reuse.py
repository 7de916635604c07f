"""The benchmark's two ways of sampling agree, and differ in what they compute as it says."""

import json

import pytest

from tests.benchmarks.tryondiffusion_reuse import main
from tests.models.tryondiffusion.test_module import TINY


def test_both_ways_agree_and_reuse_runs_the_networks_less(capsys):
    main([*TINY, "preset=tiny", "data.size=[24,16]", "--steps=3", "--repeats=2", "--json"])
    found = json.loads(capsys.readouterr().out)
    drawn = found["sampling"]
    assert drawn["largest_difference"] < 1e-5 < 1e-2 < drawn["largest_value"]
    slow, fast = drawn["rows_per_step"]["recomputing"], drawn["rows_per_step"]["reusing"]
    assert (
        slow["garment_unet"] == slow["person_unet"] == fast["person_unet"] == 2
        and fast["garment_unet"] == 1
    )
    assert slow["pose_encoder"] == 2 and fast["pose_encoder"] == pytest.approx(2 / 3)
    assert found["gflop_per_step"]["reusing"] < found["gflop_per_step"]["recomputing"]
    assert len(drawn["seconds_per_step"]["reusing"]) == 2 and found["training"]["backward"] > 0


def test_there_must_be_something_to_reuse(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*TINY, "preset=tiny", "data.size=[24,16]", "model.base.correspondence=concatenation"])
    assert stopped.value.code == 2 and "no garment UNet" in capsys.readouterr().err
