"""Evaluation of a run trained for two steps, through the command."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.data.folders import config as data_config
from tests.data.folders import (
    with_names_in_several_categories,
    write_dresscode,
    write_viton_hd,
)
from tests.metrics.dressed import TinyExtractor
from tests.running import Stopped, command, trained, vton
from vton import cli
from vton.commands import sampling
from vton.commands.sampling import PictureWriter, Sampler
from vton.data.dataset import Persons, TryOnDataset, open_folder
from vton.data.sample import TryOnBatch
from vton.errors import UserError
from vton.files import file_digest
from vton.metrics import inception
from vton.metrics.results import read_results
from vton.metrics.target import targets_of
from vton.runs import provenance
from vton.runs.assemble import checkpoint_path, data_module, load_module
from vton.runs.cascade import load_stage
from vton.runs.folder import RunFolder
from vton.runs.provenance import training_facts
from vton.training.checkpoint import AtomicCheckpointIO
from vton.weights.pretrained import read_checkpoint

UNSCORED = "scored no held-out pictures (train.picture_every"
FEW = ("eval.metrics=[ssim,psnr,lpips]", "eval.pictures=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    runs, rendered = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("rendered")
    return trained("gardiff", runs, rendered, "two-steps", "train.steps=2").path


def refusal(capsys, *arguments: str) -> str:
    """What the command says on standard error when it stops with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_eval_writes_every_row_with_its_provenance(run, capsys):
    changed = ("eval.shuffled_pairs=2", "sampler.steps=3")
    assert command("eval", "--run", str(run), *changed, *FEW) == 0
    printed = " ".join(capsys.readouterr().out.split())
    rows = read_results(run / "results.json")
    models = (
        "gardiff",
        "gardiff[shuffled]",
        "baseline/mean_colour",
        "baseline/pasted_garment",
        "baseline/geometric_warp",
    )
    expected = itertools.product(models, ("paired", "unpaired"), ("image", "garment"))
    assert {(row.model, row.order, row.region) for row in rows} == set(expected)
    for row in rows:
        assert row.n == (2 if row.model == "gardiff[shuffled]" else 4)
        assert set(row.metrics) == {"ssim", "psnr", "lpips_random"}
    facts = rows[0].provenance
    assert facts["mask"].startswith("folder:") and facts["warp"] == "geometric"
    assert len(facts["checkpoint_sha256"]) == 64 and facts["commit"] and facts["steps"] == 3
    assert "lpips_random" in printed and "must not stand beside published numbers" in printed
    assert "gardiff[shuffled] (paired) covers 2 of the 4 pairs" in printed
    for order in ("paired", "unpaired"):
        assert len(list((run / "predictions" / order).glob("*.png"))) == 4
        assert Image.open(run / f"pictures_{order}.png").width > 300


def test_places_are_measured_where_asked(run, capsys):
    only = ("eval.metrics=[psnr]", "eval.baselines=false", "eval.shuffled=false", "eval.pictures=2")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["eval", "--run", str(run), *only, "eval.places=3", "eval.batch_size=2"])
    said = capsys.readouterr().out
    stored = json.loads((run / "places.json").read_text())
    for row in read_results(run / "results.json"):
        measured = (row.region, row.category) == ("garment", "all")
        assert ("place_error" in row.metrics) == measured
        if measured:
            assert row.metrics["place_error"] == stored[row.order]["mean"] > 0
            assert row.provenance["places"] == stored[row.order]
            assert stored[row.order]["pairs"] == 3
            assert Image.open(run / f"places_{row.order}.png").width > 300
    assert "from the true place" in said and "place_error" in said


def test_places_that_nobody_knows_are_refused_before_sampling(run, tmp_path, capsys):
    images = run / "predictions"
    before = sorted(images.rglob("*.png"))
    said = refusal(
        capsys, "eval", "--run", str(run), "eval.places=3", "data.pad=true", "data.size=[64,64]"
    )
    assert "eval.places=3: the true places are known for rendered data" in said
    assert sorted(images.rglob("*.png")) == before


def test_pictures_do_not_depend_on_the_batch_size(run, tmp_path):
    for size in (1, 3):
        folder = str(tmp_path / str(size))
        with pytest.raises(SystemExit, match="0"):
            cli.main(["predict", "--run", str(run), "--out", folder, f"eval.batch_size={size}"])
    one, three = (sorted((tmp_path / str(size)).glob("*.png")) for size in (1, 3))
    assert [path.name for path in one] == [path.name for path in three] and len(one) == 4
    for first, second in zip(one, three, strict=True):
        levels = zip(Image.open(first).tobytes(), Image.open(second).tobytes(), strict=True)
        # The order of float sums may move a value across a rounding edge.
        assert max(abs(a - b) for a, b in levels) <= 1


def test_predictions_do_not_join_pictures_of_other_pairs(run, tmp_path, capsys):
    Image.new("RGB", (48, 64)).save(tmp_path / "someone__something.png")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", "--run", str(run), "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert "holds 1 pictures of other pairs, such as someone__something.png" in said


@pytest.mark.slow
def test_any_number_of_processes_measures_every_pair_once(run):
    """4 pairs on 1, 2 and 3 processes (gloo): the same pictures and scores, to the last bit. One
    pair has a control, so that some processes draw none.
    """
    tables = []
    for processes in (1, 2, 3):
        shared = [f"trainer.devices={processes}", "trainer.strategy=ddp"] if processes > 1 else []
        few = ("eval.shuffled_pairs=1", "eval.pictures=2")
        settings = ("eval.metrics=[ssim,psnr,lpips,fid,kid]", *few, *shared)
        vton("eval", "--run", str(run), *settings)
        rows = read_results(run / "results.json")
        assert rows[0].provenance["processes"] == processes
        tables.append(rows)
    for rows in tables[1:]:
        for row, expected in zip(rows, tables[0], strict=True):
            assert (row.model, row.order) == (expected.model, expected.order)
            assert (row.region, row.n) == (expected.region, expected.n)
            assert row.n == (1 if row.model.endswith("[shuffled]") else 4)
            assert row.metrics == expected.metrics


def test_json_rows_and_a_chosen_checkpoint(run, capsys):
    chosen = ("--json", "--checkpoint", "last", "eval.orders=[paired]")
    assert command("eval", "--run", str(run), *FEW, *chosen) == 0
    printed = capsys.readouterr().out
    rows = json.loads(printed[printed.index("[") :])
    assert {row["order"] for row in rows} == {"paired"}
    # Of this evaluation, none before it.
    events = EventAccumulator(str(run / "tensorboard" / "eval"))
    events.Reload()
    assert {tag.partition("/")[0] for tag in events.Tags()["scalars"]} == {"paired"}
    (row,) = (row for row in rows if (row["model"], row["region"]) == ("gardiff", "garment"))
    (score,) = events.Scalars("paired/garment/psnr")
    assert score.value == pytest.approx(row["metrics"]["psnr"])
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["train.steps"].number_value == 2
    assert settings["model.mode"].string_value == "paper"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--run", "nowhere"], "not a run folder"),
        (["preset=paper"], "a trained run has its preset already"),
        (["data=vitonhd"], "Did you mean: 'viton_hd'?"),
        (["eval.orders=[]"], "eval.orders"),
    ],
)
def test_wrong_requests_are_one_line(run, arguments, expected, capsys):
    where = [] if "--run" in arguments else ["--run", str(run)]
    said = refusal(capsys, "eval", *where, *arguments)
    assert expected in said and len(said.splitlines()) == 1


def test_a_checkpoint_is_scored_by_its_average_and_speaks_for_itself(run, tmp_path):
    """A best.ckpt of step 1 beside a last.ckpt of step 2: weights, steps and seconds are those of
    the file. best.ckpt holds the average alone, last.ckpt beside the weights.
    """
    folder = RunFolder(shutil.copytree(run, tmp_path / "run"))
    best, last = read_checkpoint(folder.best), read_checkpoint(folder.last)
    best["global_step"], best["callbacks"]["Telemetry"]["seconds"] = 1, 7.0
    for weight in best["state_dict"].values():
        weight.add_(0.5)
    AtomicCheckpointIO().save_checkpoint(best, folder.best)
    config = folder.load_config()
    for checkpoint, steps in (("weights", 2), ("last", 2), ("best", 1)):
        training = training_facts(folder, config, checkpoint)
        assert training["steps"] == steps and (training["seconds"] == 7.0) == (checkpoint == "best")
    average = last["callbacks"]["EMA"]["average"]
    assert average and "EMA" not in best["callbacks"]
    assert any(not torch.equal(last["state_dict"][name], average[name]) for name in average)
    loaded = load_module(folder, config, "last").state_dict()
    assert all(torch.equal(loaded[name], average[name]) for name in average)
    loaded = load_module(folder, config, "best").state_dict()
    assert all(torch.equal(loaded[name], average[name] + 0.5) for name in average)


@pytest.mark.parametrize("times", [1, 9])
def test_facts_are_those_of_the_weights_though_a_training_replaces_them(
    times, run, tmp_path, monkeypatch
):
    """Between loading and hashing, once or faster than anyone reads."""
    folder = RunFolder(shutil.copytree(run, tmp_path / "run"))
    config = folder.load_config()
    replaced = []

    def load_and_replace(*arguments):
        module = load_module(*arguments)
        if len(replaced) < times:
            replaced.append(read_checkpoint(folder.last))
            replaced[-1]["global_step"] += 1
            for weight in replaced[-1]["callbacks"]["EMA"]["average"].values():
                weight.add_(0.5)
            AtomicCheckpointIO().save_checkpoint(replaced[-1], folder.last)
        return module

    monkeypatch.setattr(provenance, "load_module", load_and_replace)
    if times > 1:
        with pytest.raises(UserError, match=r"replaces .*last\.ckpt faster than it can be read"):
            provenance.load_with_facts(folder, config, config, "last")
        return
    module, facts = provenance.load_with_facts(folder, config, config, "last")
    assert facts["training"]["steps"] == 3
    assert facts["checkpoint_sha256"] == file_digest(folder.last)
    loaded = module.state_dict()
    average = read_checkpoint(folder.last)["callbacks"]["EMA"]["average"]
    assert all(torch.equal(loaded[name], average[name]) for name in average)


def test_processes_that_hold_different_weights_draw_nothing(monkeypatch):
    writer = PictureWriter((64, 48))
    writer.setup(None, None, "predict")
    monkeypatch.setattr(sampling, "from_every_process", lambda own: [own, "another"])
    with pytest.raises(UserError, match="replaced the checkpoint while the processes loaded it"):
        writer.setup(None, None, "predict")


def test_a_second_evaluation_is_refused_while_one_is_under_way(run, capsys):
    with RunFolder(run).evaluation_lock():
        said = refusal(capsys, "eval", "--run", str(run), *FEW)
    assert f"Another process is evaluating {run}." in said


def test_a_kill_while_former_pictures_are_removed_leaves_the_new_ones(run, tmp_path, monkeypatch):
    stage = load_stage(RunFolder(shutil.copytree(run, tmp_path / "run")), "eval.shuffled=false")
    data = data_module(stage.config)
    sampler = Sampler(stage, "weights")
    drawn = stage.run.predictions / "paired"
    sampler.draw_all(data, "paired")
    (drawn / "former.png").touch()
    remove = shutil.rmtree

    def remove_and_die(path, **options):
        was_there = Path(path).exists()
        remove(path, **options)
        if was_there:
            raise Stopped

    monkeypatch.setattr(shutil, "rmtree", remove_and_die)
    with pytest.raises(Stopped):
        sampler.draw_all(data, "paired")
    assert sorted(path.stem for path in drawn.iterdir()) == sorted(
        data.eval_dataset("paired").pair_ids
    )


@pytest.mark.parametrize(
    ("there", "asked", "reason", "advice"),
    [
        ("", "weights", "has no checkpoint yet", "Run the same `make train` again."),
        ("last", "weights", "has not finished training", 'ARGS="--checkpoint last".'),
        ("weights", "last", "holds weights alone", "Evaluate its weights: make eval RUN="),
        ("weights", "best", "holds weights alone", "Evaluate its weights: make eval RUN="),
        ("last weights", "best", UNSCORED, "Evaluate its weights: make eval"),
        ("last", "best", UNSCORED, 'ARGS="--checkpoint last".'),
        ("last/", "last", "a folder of DeepSpeed's", "Run the same `make train` again."),
        ("last/", "weights", "has not finished training", "Run the same `make train` again."),
    ],
)
def test_a_missing_checkpoint_says_why_and_what_is_there(there, asked, reason, advice, tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    for name in there.split():
        path = {"last": run.last, "last/": run.last, "weights": run.weights}[name]
        path.mkdir() if name.endswith("/") else path.touch()
    with pytest.raises(UserError) as error:
        checkpoint_path(run, asked)
    line = str(error.value)
    assert reason in line and advice in line and "\n" not in line
    # What is advised is there.
    assert ("--checkpoint last" in line) == ("--checkpoint last" in advice)


def test_control_keeps_names_and_truth_but_exchanges_garments(run):
    data = data_module(RunFolder(run).load_config())

    def batch(shuffled: bool) -> TryOnBatch:
        pairs = data.eval_dataset("paired", shuffled)
        return TryOnBatch.collate([pairs[index] for index in range(4)])

    own, control = batch(False), batch(True)
    assert own.pair_id == control.pair_id and (own.truth == control.truth).all()
    assert (control.garment == own.garment.roll(-1, 0)).all()
    for one, other in zip(own.warped_garment, control.warped_garment, strict=True):
        assert (one != other).any()


ELSEWHERE = ("eval.shuffled=false", "eval.baselines=false", "eval.pictures=2")


@pytest.fixture
def drawn_before(run, capsys) -> tuple[Path, dict[str, bytes]]:
    """The folder of the run's unpaired pictures, and its content, whichever tests ran before."""
    drawn = run / "predictions" / "unpaired"
    if not drawn.is_dir():
        assert command("eval", "--run", str(run), *FEW) == 0
        capsys.readouterr()
    before = {path.name: path.read_bytes() for path in drawn.glob("*.png")}
    assert before
    return drawn, before


def test_missing_data_is_noticed_before_pictures_are_replaced(run, drawn_before, tmp_path, capsys):
    """Another data set with a missing file: what the run had drawn before stays."""
    drawn, before = drawn_before
    root = write_viton_hd(tmp_path / "data", train=1, test=4, size=(64, 48))
    for name in ("cloth/01002_00.jpg", "image-parse-v3/01001_00.png"):
        (root / "test" / name).unlink()
    asked = ("eval", "--run", str(run), "data=viton_hd", f"data.root={root}", *FEW, *ELSEWHERE)
    said = refusal(capsys, *asked)
    assert "is missing" in said and "1 more files are missing" in said
    assert {path.name: path.read_bytes() for path in drawn.glob("*.png")} == before


def test_a_picture_that_breaks_midway_leaves_the_former_ones(run, drawn_before, tmp_path, capsys):
    drawn, before = drawn_before
    root = write_viton_hd(tmp_path / "data", train=1, test=4, size=(64, 48))
    photo = root / "test/image/01003_00.jpg"
    photo.write_bytes(photo.read_bytes()[:300])
    asked = ("data=viton_hd", f"data.root={root}", "eval.batch_size=1", *FEW, *ELSEWHERE)
    assert "cannot be decoded" in refusal(capsys, "eval", "--run", str(run), *asked)
    assert {path.name: path.read_bytes() for path in drawn.glob("*.png")} == before


def test_fid_needs_the_photographs_of_persons_alone(run, tmp_path, capsys, monkeypatch):
    """Persons whose own garment has no shop picture can be scored unpaired."""
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    copy = shutil.copytree(run, tmp_path / "run")
    root = write_viton_hd(tmp_path / "data", train=1, test=4, size=(64, 48))
    (root / "test_pairs.txt").write_text("01000_00 01001_00\n01002_00 01003_00\n")
    for name in ("01000_00", "01002_00"):
        (root / f"test/cloth/{name}.jpg").unlink()
        (root / f"test/cloth-mask/{name}.jpg").unlink()
    asked = ("data=viton_hd", f"data.root={root}", "eval.orders=[unpaired]", "eval.metrics=[fid]")
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", "--run", str(copy), *asked, *ELSEWHERE])
    assert not stop.value.code, capsys.readouterr().err
    rows = read_results(copy / "results.json")
    assert rows and all(row.n == 2 and "fid_random" in row.metrics for row in rows)


def test_the_reference_is_the_same_with_and_without_garments(tmp_path):
    """What `person` reads equals what whole samples say of persons."""
    root = write_dresscode(tmp_path, count=2)
    pairs = TryOnDataset(
        open_folder(data_config("dresscode", root, size=(64, 48))), "test", "paired"
    )
    for target, person in zip(
        targets_of(TryOnBatch.collate(list(pairs))), Persons(pairs), strict=True
    ):
        assert torch.equal(target.person, person.picture)
        assert torch.equal(target.garment_mask, person.worn)
        assert (target.person_id, target.category) == (person.person_id, person.category)


def test_the_same_names_in_several_categories_give_a_picture_each(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    written = write_dresscode(tmp_path / "data", count=2, size=(64, 48))
    root = with_names_in_several_categories(written, count=2)
    asked = ("data=dresscode", f"data.root={root}", "eval.orders=[unpaired]", "eval.metrics=[fid]")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(inception, "Inception", TinyExtractor)
        cli.main(["eval", "--run", str(copy), *asked, *ELSEWHERE])
    assert not stop.value.code, capsys.readouterr().err
    drawn = sorted((copy / "predictions/unpaired").rglob("*.png"))
    assert len(drawn) == 6 and len({path.name for path in drawn}) == 2
    assert {path.parent.name for path in drawn} == {"upper_body", "lower_body", "dresses"}
    counts = {row.category: row.n for row in read_results(copy / "results.json")}
    assert counts == {"all": 6, "upper_body": 2, "lower_body": 2, "dresses": 2}
