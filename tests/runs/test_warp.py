"""A warp through training, the data's seam and the table of baselines, in this process."""

from pathlib import Path

import pytest
import torch

from tests.models.warp.test_module import NARROW
from tests.running import SMALL, assert_equal
from vton.commands.evaluate import evaluate
from vton.commands.train import train
from vton.config import ExperimentConfig, load
from vton.data.derived.warp import rewarped, warp_source
from vton.errors import UserError
from vton.metrics.pictures import PictureFolder
from vton.runs.assemble import data_module
from vton.runs.cascade import load_stage
from vton.runs.folder import RunFolder
from vton.runs.warp import RunWarp
from vton.weights.pretrained import read_checkpoint

FEW = ("eval.metrics=[psnr,iou]", "eval.pictures=2", "eval.batch_size=3")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rendered")


def settings(model: str, rendered: Path, *more: str) -> ExperimentConfig:
    shape = NARROW if model == "warp" else ()
    folders = (f"data.root={rendered}", f"runs={rendered / 'runs'}")
    return load(f"model={model}", *shape, *SMALL, *folders, *FEW, "trainer.threads=1", *more)


@pytest.fixture(scope="module")
def run(rendered) -> RunFolder:
    """Four steps, the spline's two and the refinement's two."""
    return train(settings("warp", rendered, "name=whole", "model.tps_steps=2", "train.steps=4"))


def test_stopped_and_resumed_equals_uninterrupted(run, rendered):
    """Across the border of the two stages, which a longer train.steps does not move."""
    for steps in (1, 2, 4):
        parts = train(
            settings("warp", rendered, "name=parts", "model.tps_steps=2", f"train.steps={steps}")
        )
        if steps == 2:
            spline = read_checkpoint(parts.last)["state_dict"]
    expected, found = read_checkpoint(run.last), read_checkpoint(parts.last)
    for part in ("state_dict", "optimizer_states"):
        assert_equal(expected[part], found[part])
    assert_equal(expected["callbacks"]["EMA"], found["callbacks"]["EMA"])
    moved = {
        name.split(".")[1]
        for name, value in found["state_dict"].items()
        if not torch.equal(value, spline[name])
    }
    assert moved == {"refinement", "refined"}  # the spline rests, running statistics included


def test_the_data_delivers_the_runs_warp(run, rendered):
    """The same bytes with and without loader processes, cached or not, and in training the pair's
    own.
    """
    learned = ("data.warp_source=learned", f"data.warp_run={run.path}")
    batches = []
    for more in (["data.workers=0", "data.cache=memory"], ["data.workers=1", "data.cache=none"]):
        data = data_module(settings("gardiff", rendered, *learned, *more))
        batches.append(next(iter(data.eval_dataloader("unpaired"))))
    assert torch.equal(batches[0].warped_garment, batches[1].warped_garment)
    assert (
        torch.equal(batches[0].warped_mask, batches[1].warped_mask) and batches[0].warped_mask.any()
    )
    assert data.eval_dataset("paired").sources["warp"].startswith(f"learned:{run.path}, sha256 ")

    worn = RunWarp(run.path, (64, 48)).put_on(batches[0])
    agree = worn.warped_mask == batches[0].warped_mask
    assert agree.float().mean() > 0.999
    off = (worn.warped_garment - batches[0].warped_garment).abs()[agree.expand(-1, 3, -1, -1)]
    assert off.max() < 1.01 / 127.5  # the data's is rounded to bytes
    padded = data_module(
        settings("gardiff", rendered, *learned, "data.size=[64,64]", "data.pad=true")
    )
    wide = padded.val_batch(
        "unpaired", 3
    ).warped_garment  # the same pictures at 64x48, and 8 px on either side
    assert wide.shape[-1] == 64 and torch.equal(wide[..., 8:56], batches[0].warped_garment)
    stream = next(iter(data.train_dataloader())).to("cpu")
    assert (stream.warped_mask <= stream.agnostic_mask).all() and stream.warped_mask.any()


def test_another_source_for_a_batch_is_what_the_data_would_deliver(rendered, run):
    geometric, bare = (
        data_module(settings("gardiff", rendered, f"data.warp_source={source}")).val_batch(
            "unpaired", 4
        )
        for source in ("geometric", "none")
    )
    found = rewarped(bare, warp_source("geometric"))
    assert torch.equal(found.warped_garment, geometric.warped_garment)
    assert torch.equal(found.warped_mask, geometric.warped_mask) and not torch.equal(
        bare.warped_mask, found.warped_mask
    )


def test_an_evaluated_warp_stands_beside_the_geometric_one(run):
    rows = evaluate(load_stage(run))
    garment = {(row.model, row.order): row.metrics for row in rows if row.region == "garment"}
    models = {
        "warp",
        "warp[shuffled]",
        "baseline/mean_colour",
        "baseline/pasted_garment",
        "baseline/geometric_warp",
    }
    assert garment.keys() == {
        (model, order) for model in models for order in ("paired", "unpaired")
    }
    for (model, _), metrics in garment.items():
        warps = model.endswith(("_warp", "warp", "[shuffled]"))
        assert metrics.keys() == ({"psnr", "iou"} if warps else {"psnr"}), model
    assert garment["baseline/geometric_warp", "paired"]["iou"] > 0.6
    assert not any(fact in rows[0].provenance for fact in ("solver", "steps", "guidance"))

    pictures = PictureFolder(run.predictions / "paired")
    batch = data_module(run.load_config()).val_batch("paired", 4)
    truth, found = (
        batch.truth_garment_mask > 0,
        pictures.silhouettes.read(batch.pair_id)[:, :1] > 127,
    )
    overlap = [(a & b).sum() / (a | b).sum() for a, b in zip(truth, found, strict=True)]
    assert garment["warp", "paired"]["iou"] == pytest.approx(
        float(torch.stack(overlap).mean()), abs=1e-6
    )


def test_the_learned_row_appears_when_a_run_is_given_and_only_then(run, rendered):
    plain = RunFolder(Path(settings("gardiff", rendered).runs) / "gardiff")
    config = settings(
        "gardiff",
        rendered,
        "name=gardiff",
        "train.steps=1",
        "eval.shuffled=false",
        "eval.orders=[paired]",
    )
    train(config)
    for warp in ((), (f"eval.warp={run.path}",)):
        rows = evaluate(load_stage(plain, *warp))
        found = {row.model: row for row in rows if row.region == "garment"}
        assert ("baseline/learned_warp" in found) == bool(warp)
        assert ("iou" in found["baseline/geometric_warp"].metrics) == bool(warp)
    row = found["baseline/learned_warp"]
    own = evaluate(load_stage(run, "eval.orders=[paired]", "eval.shuffled=false"))
    expected = next(r.metrics for r in own if (r.model, r.region) == ("warp", "garment"))
    assert (
        row.metrics == pytest.approx(expected, rel=1e-6)
        and "sha256" in row.provenance["learned_warp"]
    )


def test_runs_that_hold_no_such_warp_are_refused_in_one_line(run, rendered, tmp_path):
    other = RunFolder(tmp_path / "other")
    other.start(settings("gardiff", rendered))
    unfinished = RunFolder(tmp_path / "unfinished")
    unfinished.start(settings("warp", rendered))
    for path, size, message in (
        (tmp_path / "nowhere", (64, 48), "not a run folder"),
        (other.path, (64, 48), "a run of gardiff, not of a warp"),
        (unfinished.path, (64, 48), "has not finished training"),
        (run.path, (128, 96), "trained at 64x48, the data is 128x96"),
    ):
        with pytest.raises(UserError, match=message) as error:
            RunWarp(path, size)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not a run folder"):
        data_module(
            settings(
                "gardiff",
                rendered,
                "data.warp_source=learned",
                f"data.warp_run={tmp_path / 'nowhere'}",
            )
        )
