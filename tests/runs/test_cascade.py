"""Stages after one another: which runs are linked, what is handed over, what rows say.

Networks are small and random.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.batches import random_batch, random_sample, randomised
from tests.data.folders import write_viton_hd
from tests.running import vton
from vton import registry
from vton.commands.evaluate import evaluate, predict
from vton.commands.scoring import UPSAMPLED
from vton.config import load
from vton.data.sample import DataError, TryOnBatch
from vton.errors import UserError
from vton.metrics.pictures import to_uint8, write_pictures
from vton.metrics.results import read_results
from vton.models.codecs import build_codec
from vton.runs.assemble import data_module, load_module
from vton.runs.cascade import Stage, WithLowres, interpolated, load_stage, require_same_pairs
from vton.runs.checkpoint import export_weights
from vton.runs.folder import RunFolder

SMALL = (
    "data.workers=0",
    "data.cache=none",
    "trainer.threads=1",
    "eval.metrics=[psnr]",
    "eval.pictures=2",
    "model.base.widths=[8,16]",
    "model.base.blocks=[1,1]",
    "model.base.garment_blocks=[1,1]",
    "model.base.attention=[false,true]",
    "model.sr256.widths=[8,16]",
    "model.sr256.blocks=[1,1]",
    "model.sr256.garment_blocks=[1,1]",
    "model.sr256.attention=[false,true]",
    "model.sr1024.widths=[8,16]",
    "model.sr1024.blocks=[1,1]",
    "model.crop_px=8",
)
SIZES = {"base": [24, 18], "sr256": [48, 36], "sr1024": [192, 144]}
STEPS = {"base": 2, "sr256": 3, "sr1024": 1}


def write_run(
    runs: Path, root: Path, stage: str, *overrides: str, weights: bool = True
) -> RunFolder:
    """A run as training leaves it, with random weights, or with a file of that name only."""
    config = load(
        "model=tryondiffusion",
        "data=viton_hd",
        f"model.stage={stage}",
        f"data.root={root}",
        f"runs={runs}",
        "name=it",
        f"data.size={SIZES[stage]}",
        f"sampler.steps={STEPS[stage]}",
        *SMALL,
        *overrides,
    )
    run = RunFolder.of(config)
    run.start(config)
    torch.manual_seed(0)
    if weights:
        module = registry.module_class("tryondiffusion")(config, build_codec(config.codec))
        export_weights(run, randomised(module, 0.2).state_dict())
    else:
        run.weights.touch()
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_viton_hd(tmp_path_factory.mktemp("data"), train=2, test=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory, root) -> RunFolder:
    """The first stage's folder, with the second in it."""
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs, root, "sr256")
    return write_run(runs, root, "base")


@pytest.fixture(scope="module")
def rows(base):
    return evaluate(load_stage(base))


def pictures(folder: Path) -> dict[str, torch.Tensor]:
    """Levels by file name."""
    levels = {}
    for path in sorted(folder.glob("*.png")):
        content = bytearray(Image.open(path).tobytes())
        levels[path.stem] = torch.frombuffer(content, dtype=torch.uint8).int()
    return levels


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], levels: int = 1) -> bool:
    """Up to `levels`: float sums in another order may move a value across a rounding edge."""
    if one.keys() != other.keys():
        return False
    return all((one[name] - other[name]).abs().max() <= levels for name in one)


def names(stage: Stage) -> list[str]:
    return [part.config.model.stage for part in stage.in_order()]


def test_a_run_is_chained_with_the_stages_below_it(tmp_path, root):
    base, sr256, sr1024 = (write_run(tmp_path, root, stage, weights=False) for stage in SIZES)
    assert sr256.path == base.path / "sr256" and sr1024.path == base.path / "sr1024"
    assert names(load_stage(base)) == ["base", "sr256", "sr1024"]
    assert names(load_stage(sr256)) == ["base", "sr256"]
    assert names(load_stage(sr256, whole=True)) == ["base", "sr256", "sr1024"]
    assert names(load_stage(sr1024, "eval.chain=false")) == ["sr1024"]
    stages = load_stage(base).in_order()
    assert [stage.config.sampler.steps for stage in stages] == list(STEPS.values())
    assert [stage.before for stage in stages] == [None, *stages[:-1]]
    sr1024.weights.unlink()
    assert names(load_stage(base)) == ["base", "sr256"]


def enlarged(module, pairs: WithLowres) -> dict[str, torch.Tensor]:
    """What the module draws of all pairs at once."""
    batch = TryOnBatch.collate([pairs[index] for index in range(len(pairs))])
    drawn = to_uint8(module.generate(batch, module.config.eval.seed))
    return dict(zip(batch.pair_id, drawn.permute(0, 2, 3, 1).flatten(1).int(), strict=True))


def test_the_next_stage_enlarges_what_the_one_before_wrote(base, rows):
    """In both orders, with own and exchanged garments: recomputed from the files of that name."""
    stage = load_stage(base)
    run, config = stage.run, stage.config
    module, data = load_module(run, config, "weights"), data_module(config)
    for order in ("paired", "unpaired"):
        for shuffled, name in ((False, order), (True, f"{order}_shuffled")):
            pairs = data.eval_dataset(order, shuffled)
            written = pictures(run.predictions / name)
            assert equal(
                written, enlarged(module, WithLowres(pairs, base.predictions / name, config))
            )
            other = f"{order}{'' if shuffled else '_shuffled'}"
            elsewhere = WithLowres(pairs, base.predictions / other, config)
            assert not equal(written, enlarged(module, elsewhere))


def test_rows_say_what_was_enlarged(base, rows):
    upper, lower = read_results(base.path / "sr256" / "results.json"), read_results(base.results)
    models = {
        "tryondiffusion-sr256",
        "tryondiffusion-sr256[shuffled]",
        "baseline/mean_colour",
        "baseline/pasted_garment",
        "baseline/geometric_warp",
    }
    assert {row.model for row in upper} == models | {UPSAMPLED}
    assert {row.model for row in lower} == {name.replace("-sr256", "") for name in models}
    assert len(rows) == len(upper) + len(lower)
    assert {row.order for row in rows} == {"paired"}  # no truth when unpaired
    own, before = upper[0].provenance, lower[0].provenance
    (enlarged_facts,) = own["enlarges"]
    assert enlarged_facts["size"] == SIZES["base"] and own["size"] == SIZES["sr256"]
    assert enlarged_facts["checkpoint_sha256"] == before["checkpoint_sha256"]
    assert (enlarged_facts["steps"], own["steps"]) == (2, 3)
    assert "enlarges" not in before
    assert (base.path / "sr256" / "pictures_unpaired.png").exists()


def test_a_stage_alone_is_called_so_and_replaces_nothing(base, rows):
    chained = pictures(base.path / "sr256" / "predictions" / "paired")
    run = RunFolder(base.path / "sr256")
    with pytest.raises(DataError, match="truth"):
        evaluate(load_stage(run, "eval.chain=false"))  # real unpaired pairs have none
    alone = evaluate(load_stage(run, "eval.chain=false", "eval.orders=[paired]"))
    names = {row.model for row in alone if not row.model.startswith("baseline/")}
    assert names == {
        "tryondiffusion-sr256[from_truth]",
        "tryondiffusion-sr256[from_truth][shuffled]",
    }
    assert {row.provenance["enlarges"] for row in alone} == {"reduced truth"}
    assert UPSAMPLED in {row.model for row in read_results(run.results)}
    assert equal(chained, pictures(run.predictions / "paired"), levels=0)
    assert not equal(chained, pictures(run.predictions / "paired_from_truth"))


@pytest.mark.slow
def test_two_processes_hand_over_the_same_pictures(base, rows):
    drawn = base.path / "sr256" / "predictions" / "unpaired_shuffled"
    expected = pictures(drawn)
    shutil.rmtree(drawn)
    few = ("eval.baselines=false", "trainer.devices=2", "trainer.strategy=ddp")
    done = vton("eval", "--run", str(base.path), *few)
    assert equal(expected, pictures(drawn))
    assert "tryondiffusion-sr256: enlarges pictures of" in done.stdout


def test_prediction_chains_too(base, rows, root, tmp_path):
    write_run(base.path.parent, root, "sr1024")
    predict(load_stage(base), "paired", tmp_path)
    assert equal(
        pictures(tmp_path / "sr256"), pictures(base.path / "sr256" / "predictions" / "paired")
    )
    assert {picture.numel() for picture in pictures(tmp_path).values()} == {3 * 192 * 144}


def test_what_is_handed_over_is_what_training_saw(tmp_path):
    """The reduced truth through files is the condition of training, in range and statistics, up to
    8 bits.
    """
    clean = ("model.augmentation.levels=[0,0]", "model.augmentation.lowres_levels=null")
    config = load("model=tryondiffusion", "model.stage=sr256", "data.size=[64,48]", *clean)
    module = registry.module_class("tryondiffusion")(config, build_codec(config.codec))
    batch = random_batch(3)
    trained = module.training_condition(batch, torch.ones(3))["lowres"]
    write_pictures(tmp_path, batch.pair_id, module.reduced(batch.person))
    pairs = WithLowres([random_sample(index) for index in range(3)], tmp_path, config)
    sampled = module.condition(TryOnBatch.collate([pairs[index] for index in range(3)]))["lowres"]
    torch.testing.assert_close(sampled, trained, atol=1 / 255 + 1e-6, rtol=0)
    assert sampled.min() < -0.5 and abs(sampled.mean() - trained.mean()) < 1e-3
    torch.testing.assert_close(sampled.std(), trained.std(), atol=1e-3, rtol=0)


def test_levels_survive_the_hand_over(tmp_path):
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    write_pictures(tmp_path, ["a__b"], levels)
    config = load("model=tryondiffusion", "model.stage=sr256", "data.size=[32,32]")
    sample = replace(random_sample(0, (32, 32)), person_id="a", garment_id="b")
    read = WithLowres([sample], tmp_path, config)[0].lowres[None]
    assert read.min() == -1 and read.max() == 1 and torch.equal(to_uint8(read), levels)
    flat = interpolated(levels, config.data)
    assert flat.shape == (1, 3, 32, 32) and flat.dtype == torch.uint8


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"base": ["data.size=[48,36]"]},
            "pictures of [48, 36] are not those of [48, 36] reduced 2 times",
        ),
        (  # 3 px a side
            {"sr256": ["data.size=[48,42]", "data.pad=true"]},
            "(data.size is [24, 18] and [48, 42])",
        ),
        ({"sr256": ["eval.shuffled=false"]}, "eval.shuffled is True and False"),
        ({"sr256": ["data.limit_test=2"]}, "data.limit_test is 0 and 2"),
        ({"base": None}, "Train it (model.stage=base)"),
        ({"sr256": None, "sr1024": []}, "Train it (model.stage=sr256)"),
    ],
)
def test_stages_that_do_not_fit_name_both(changes, expected, tmp_path, root):
    for stage, overrides in ({"base": [], "sr256": []} | changes).items():
        if overrides is not None:
            write_run(tmp_path, root, stage, *overrides, weights=False)
    last = "sr1024" if "sr1024" in changes else "sr256"
    with pytest.raises(UserError) as error:
        load_stage(RunFolder(tmp_path / "it" / last))
    message = str(error.value)
    assert expected in message and "\n" not in message
    assert str(tmp_path / "it") in message and last in message


def test_other_test_pairs_are_refused(base, tmp_path):
    stage = load_stage(RunFolder(base.path / "sr256"))
    other = write_viton_hd(tmp_path, train=1, test=2)
    moved = replace(stage.config, data=replace(stage.config.data, root=str(other)))
    before = data_module(stage.before.config)
    require_same_pairs(stage, data_module(stage.config), before, ["paired"])
    with pytest.raises(DataError, match=r"has 3 paired test pairs, .* 2, and 01002_00__01002_00"):
        require_same_pairs(stage, data_module(moved), before, ["paired"])


def test_padded_squares_are_chained_and_measured_without_their_margins(tmp_path, root, rows):
    """The stages see squares; files, rows and grids are as large as those of the rectangular
    stages.
    """
    square = ("data.pad=true", "eval.orders=[paired]", "eval.shuffled=false")
    write_run(tmp_path, root, "base", *square, "data.size=[24,24]")
    run = write_run(tmp_path, root, "sr256", *square, "data.size=[48,48]")
    stage = load_stage(run)
    squares = evaluate(stage)
    written = pictures(run.predictions / "paired").values()
    assert {picture.numel() for picture in written} == {3 * 48 * 36}

    def key(row):
        return row.model, row.region, row.category, str(row.provenance["size"])

    rectangular = {key(row): row.metrics for row in rows}
    for row in squares:
        assert row.provenance["padded_to"] in ([24, 24], [48, 48])
        unpadded = row.model.startswith("baseline/") and row.model != UPSAMPLED
        assert (row.metrics == rectangular[key(row)]) == unpadded
    pairs = data_module(stage.config).eval_dataset("paired")
    lowres = WithLowres(pairs, stage.before.run.predictions / "paired", stage.config)[0].lowres
    assert lowres.shape == (3, 24, 24)
    assert (lowres[..., :3] == 1).all() and (lowres[..., -3:] == 1).all()
