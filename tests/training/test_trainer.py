"""How a global batch is shared out."""

import pytest

from tests.running import trained
from vton.config import ConfigError, load, upper_stages
from vton.runs.checkpoint import training_so_far
from vton.training.trainer import with_shares_of_global_batch
from vton.weights.pretrained import read_checkpoint


@pytest.mark.parametrize(
    ("wanted", "batch_size", "processes", "expected"),
    [
        (24, 6, 4, (6, 1)),
        (24, 6, 1, (6, 4)),
        (24, 16, 1, (12, 2)),  # at most batch_size, and equally large
        (14, 4, 1, (2, 7)),
        (24, 16, 8, (3, 1)),
        (7, 4, 7, (1, 1)),
        (0, 6, 4, (6, 1)),
    ],
)
def test_batches_add_up_to_the_global_batch(wanted, batch_size, processes, expected):
    config = load(f"train.global_batch={wanted}", f"train.batch_size={batch_size}")
    shared = with_shares_of_global_batch(config, processes)
    assert (shared.train.batch_size, shared.train.accumulate) == expected
    if wanted:
        assert shared.train.batch_size * shared.train.accumulate * processes == wanted


@pytest.mark.parametrize(
    ("overrides", "processes", "message"),
    [
        (("train.global_batch=10",), 4, "no multiple of the 4 processes; 12 is"),
        (("train.global_batch=8", "train.accumulate=2"), 1, "leave it out"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(overrides, processes, message):
    with pytest.raises(ConfigError, match=message):
        with_shares_of_global_batch(load(*overrides), processes)


PAPERS = {  # samples per step, and processes of 1, 2, 4, 8 that they do not divide into
    "catvton": (128, ()),
    "gardiff": (32, ()),
    "idm_vton": (24, ()),
    "imagdressing": (50, (4, 8)),
    "ladi_vton": (16, ()),
    "leffa": (64, ()),
    "stableviton": (32, ()),
    "tryondiffusion": (256, ()),
    "warp": (16, ()),
}


@pytest.mark.parametrize("model", PAPERS)
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_paper_presets_take_their_papers_batch_on_any_number_of_gpus(model, processes):
    """No GPU takes more at once than train.batch_size, and one GPU takes all of it, in turns."""
    wanted, undivided = PAPERS[model]
    config = load(f"model={model}", "preset=paper", "trainer=gpu")
    for stage in (config, *upper_stages(f"model={model}", "preset=paper", "trainer=gpu")):
        if processes in undivided:
            with pytest.raises(ConfigError, match=f"global_batch={wanted} is no multiple of the"):
                with_shares_of_global_batch(stage, processes)
            continue
        shared = with_shares_of_global_batch(stage, processes).train
        assert shared.batch_size * shared.accumulate * processes == wanted
        assert shared.batch_size <= stage.train.batch_size
    for preset in ("tiny", "small"):  # of one device
        assert load(f"model={model}", f"preset={preset}").train.global_batch == 0


def test_training_steps_by_the_global_batch(tmp_path, rendered):
    """It goes on with other batches of the same sum, and not with another sum."""
    settings = ("train.batch_size=2", "train.picture_every=0")
    run = trained(
        "gardiff", tmp_path, rendered, "run", *settings, "train.global_batch=4", "train.steps=2"
    )
    assert read_checkpoint(run.last)["callbacks"]["Checkpoints"]["global_batch"] == 4
    assert (
        run.trained()["global_batch"] == training_so_far(read_checkpoint(run.last))["global_batch"]
    )
    assert run.trained()["global_batch"] == 4
    more = ("train.batch_size=4", "train.picture_every=0", "train.steps=3")
    trained("gardiff", tmp_path, rendered, "run", *more, "train.global_batch=4")
    assert read_checkpoint(run.last)["global_step"] == 3
