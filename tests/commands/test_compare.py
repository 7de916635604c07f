"""`vton compare` and `vton ablate`: what is equal, what continues, what is refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.report import test_summary as summary
from tests.running import SMALL
from vton import registry
from vton.cli import main
from vton.commands.compare import in_own_process, run_comparison, run_lock, update_results
from vton.commands.comparison import METHODS_OWN, plan_ablation, plan_as_json, plan_models
from vton.config import ConfigError, ablation, choices, flatten, load
from vton.cost import counting
from vton.errors import UserError
from vton.metrics.results import Row, read_results, write_results
from vton.training.checkpoint import AtomicCheckpointIO

COST = {
    "parameters": 10,
    "trained_parameters": 9,
    "picture_flops": 3,
    "step_flops": 4 * 10**12,
    "sampling_bytes": 5,
}
TWO = (
    *SMALL,
    "compare.models=[gardiff,tryondiffusion]",
    "compare.steps=4",
    "eval.metrics=[psnr]",
    "eval.pictures=2",
    "eval.orders=[unpaired]",
    "train.picture_every=0",
    "eval.shuffled=false",
    "name=two",
)
KILL = (
    "import sys; from tests.commands.test_compare import killed_in_its_second_checkpoint; "
    "killed_in_its_second_checkpoint(*sys.argv[1:])"
)


@pytest.fixture(autouse=True)
def _cost_is_tested_elsewhere(monkeypatch):
    def cost(config):
        return COST | {"step_flops": COST["step_flops"] * len(config.name)}

    monkeypatch.setattr("vton.cost.counting.cost", cost)


class Executed(list):
    """Runs `vton` in this process and keeps the names of its commands."""

    def __call__(self, arguments):
        self.append(arguments[0])
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        return stopped.value.code


def killed_in_its_second_checkpoint(*settings):
    """Run a comparison in a process that dies, as by kill -9, in its second checkpoint."""
    save, saved = AtomicCheckpointIO.save_checkpoint, []

    def save_or_die(self, checkpoint, path, storage_options=None):
        if saved:
            os.kill(os.getpid(), signal.SIGKILL)
        saved.append(save(self, checkpoint, path))

    AtomicCheckpointIO.save_checkpoint, counting.cost = save_or_die, lambda config: COST
    run_comparison(plan_models(*settings), Executed())


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_stopped(tmp_path, capfd):
    settings = [
        *TWO,
        f"runs={tmp_path}/runs",
        f"data.root={tmp_path}/data",
        f"compare.results={tmp_path}/out",
    ]
    died = subprocess.run([sys.executable, "-c", KILL, *settings], check=False)
    assert died.returncode == -signal.SIGKILL
    folder, first = tmp_path / "out" / "two", tmp_path / "runs" / "two" / "gardiff-seed0"
    assert not folder.exists() and not (first / "training.json").exists()
    capfd.readouterr()

    again = Executed()
    assert run_comparison(plan_models(*settings), again) == []
    assert again == ["train", "eval", "train", "eval"]
    assert f"Resuming {first} at step 2 of 4." in capfd.readouterr().out
    assert json.loads((first / "training.json").read_text())["steps"] == 4

    rows = {}
    for row in read_results(folder / "results.json"):
        if row.region == "garment":
            rows[row.model] = row
    baselines = {f"baseline/{name}" for name in ("mean_colour", "pasted_garment", "geometric_warp")}
    assert set(rows) == {"gardiff", "tryondiffusion", *baselines}
    facts = rows["tryondiffusion"].provenance
    assert facts["comparison"]["budget"] == {"kind": "steps", "amount": 4}
    assert facts["cost"]["parameters"] == 10
    assert facts["training"]["steps"] == 4 and facts["training"]["seconds"] > 0
    assert "training" not in rows["baseline/mean_colour"].provenance
    for other in ("gardiff", "baseline/mean_colour"):
        assert rows[other].provenance["mask"] == facts["mask"]
    for kind in ("md", "csv", "tex"):
        assert (folder / f"table.{kind}").stat().st_size
    grid = Image.open(folder / "grid.jpg")
    assert grid.width > grid.height / 2

    nothing = Executed()
    assert run_comparison(plan_models(*settings), nothing) == [] and nothing == []
    weights = load_file(first / "checkpoints" / "weights.safetensors")
    # As if it had died between its last checkpoint and these, and been scored without baselines.
    (first / "checkpoints" / "weights.safetensors").unlink()
    (first / "training.json").unlink()
    write_results(first / "results.json", [rows["gardiff"]])
    assert run_comparison(plan_models(*settings), again) == [] and len(again) == 6
    restored = load_file(first / "checkpoints" / "weights.safetensors")
    assert all(torch.equal(tensor, restored[name]) for name, tensor in weights.items())
    assert {row.model for row in read_results(folder / "results.json")} == set(rows)

    changed = ("compare.steps=5", "train.lr=0.5", "sampler.guidance=2")
    expected = r"gardiff-seed0 was run with other settings.*name="
    with pytest.raises(UserError, match=expected) as error:
        run_comparison(plan_models(*settings, *changed), nothing)
    message = str(error.value)
    for key in ("train.steps: 4 -> 5", "train.lr", "sampler.guidance"):
        assert key in message
    assert "\n" not in message and nothing == []


def test_what_must_be_equal_is_equal_and_the_rest_is_the_methods_own():
    found = plan_models("preset=tiny", "compare.seeds=[0,3]", "train.accumulate=2")
    assert found.name == "compare-synthetic-tiny"
    methods = [run.method for run in found.runs]
    assert methods == [*registry.names(), *registry.names()] and "warp" not in methods
    configs = [run.config for run in found.runs]
    for part in ("data", "eval", "sampler"):
        values = [flatten(asdict(getattr(config, part)), f"{part}.") for config in configs]
        for key in values[0].keys() - {*METHODS_OWN, "eval.baselines"}:
            assert len({value[key] for value in values}) == 1, key
    for config in configs:
        assert config.objective.timestep_power == 16.0 and config.sampler.steps == 1
        assert config.train.batch_size == 8 and config.train.accumulate == 2
        assert (config.train.optimizer, config.train.lr) == ("muon", 2e-3)
        assert config.train.steps == 1500
    assert {config.seed for config in configs} == {0, 3}
    own = {config.model.name: config for config in configs}
    assert own["tryondiffusion"].codec.name == "identity" and own["idm_vton"].data.densepose
    assert own["tryondiffusion"].objective.schedule == "continuous_cosine"
    assert found.runs[0].commands()[1] == ["eval", "--run", str(found.runs[0].folder.path)]
    asked = plan_models("trainer=cpu", "trainer.threads=1", "compare.models=[gardiff]").runs[0]
    assert asked.commands()[1][3:] == ["trainer=cpu", "trainer.threads=1"]
    with_baselines = [config.eval.baselines for config in configs]
    assert with_baselines[0] and not any(with_baselines[1:])
    (cascade,) = plan_models("preset=small", "compare.models=[tryondiffusion]").runs
    assert cascade.config.data.size == (256, 192)  # its first stage at everyone's resolution


def test_equal_flops_are_unequal_steps():
    models = "compare.models=[gardiff,idm_vton]"
    found = plan_models(models, "compare.budget=flops", "compare.tflop=10000", "name=flops")
    steps = {run.method: run.config.train.steps for run in found.runs}
    for model, count in steps.items():
        cost = found.costs[model]["step_flops"]
        assert abs(count * cost - 1e16) <= cost / 2
    assert steps["gardiff"] != steps["idm_vton"]
    with pytest.raises(ConfigError, match="less than a step"):
        plan_models(models, "compare.budget=flops", "compare.tflop=0.001")
    with pytest.raises(ConfigError, match=r"needs compare\.tflop"):
        plan_models(models, "preset=small", "compare.budget=flops")


@pytest.mark.parametrize(
    "setting",
    ["model=gardiff", "seed=1", "train.steps=5", "ablation=gardiff/base", "model.stage=sr256"],
)
def test_what_a_comparison_decides_is_refused(setting):
    with pytest.raises(ConfigError, match="decides this itself"):
        plan_models(setting)
    if not setting.startswith(("model=", "ablation=")):
        with pytest.raises(ConfigError, match="decides this itself"):
            plan_models(f"compare.equal=[{setting}]")


def test_names_of_comparisons_and_runs():
    dresscode = plan_models("data.synthetic.layout=dresscode", "compare.models=[gardiff]")
    assert dresscode.name == "compare-synthetic_dresscode-tiny"
    plan = json.loads(
        plan_as_json(
            plan_models("compare.models=[gardiff]", "name=mine", "runs=R", "compare.results=S")
        )
    )
    assert plan["results"] == "S/mine" and plan["runs"][0]["steps"] == 1500
    assert plan["runs"][0]["commands"][1] == "vton eval --run R/mine/gardiff-seed0"
    with pytest.raises(ConfigError, match="Did you mean: 'gardiff'"):
        plan_models("compare.models=[gardif]")


def test_an_ablation_is_a_comparison_of_rows():
    found = plan_ablation("model=idm_vton", "compare.seeds=[1]")
    rows = {run.method: run for run in found.runs}
    assert found.name == "ablate-idm_vton-synthetic-tiny" and list(rows) == list(
        ablation("idm_vton").rows
    )
    generic = rows["generic_captions"]
    assert generic.config.data.caption_source == "fallback" and generic.config.seed == 1
    assert 'data.caption_source="fallback"' in generic.changes and rows["full"].changes == ()
    assert not rows["without_garment_net"].config.model.garment_net
    assert {run.config.train.batch_size for run in rows.values()} == {8}


@pytest.mark.parametrize("name", choices("ablation"))
def test_every_row_of_every_ablation_loads_and_differs(name):
    table = ablation(name)
    assert len(table.rows) >= 2 and table.source
    configs = [load(f"model={name}", f"ablation={name}/{row}") for row in table.rows]
    changed = [str({**asdict(config), "name": "", "ablation": ""}) for config in configs]
    assert len(set(changed)) == len(changed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: {a: {}}", "expected `source`"),
        ("source: here\nrows: {}", "expected `source`"),
        ("source: here\nrows: [a, b]", "expected `source`"),
        ("source: here\nrows: {a/b: {}}", "row 'a/b' becomes a folder"),
        ("source: here\nrows: {a: [train.lr=1]}", "row 'a' must hold settings"),
    ],
)
def test_a_broken_ablation_file_is_one_line(text, message, tmp_path, monkeypatch):
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "broken.yaml").write_text(text)
    monkeypatch.setattr("vton.config.files.CONFIGS", tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        ablation("broken")
    assert "broken.yaml" in str(error.value) and "\n" not in str(error.value)


def test_rows_may_choose_a_mode(tmp_path, monkeypatch):
    import shutil

    from vton.config import CONFIGS

    shutil.copytree(CONFIGS, tmp_path, dirs_exist_ok=True)
    rows = "source: here\nrows: {paper: {}, release: {model: {mode: release}}}"
    (tmp_path / "ablation" / "gardiff.yaml").write_text(rows)
    monkeypatch.setattr("vton.config.files.CONFIGS", tmp_path)
    assert load("ablation=gardiff/release", "preset=paper").model.clip.width == 1024
    assert load("ablation=gardiff/paper", "preset=paper").model.clip.width == 1280


@pytest.fixture(scope="module")
def unread(tmp_path_factory):
    """Two runs and where they would run, for executions that run nothing."""
    place = tmp_path_factory.mktemp("unread")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vton.cost.counting.cost", lambda config: COST)
        return plan_models(*TWO, f"runs={place}/runs", f"compare.results={place}/out")


def test_processes_share_the_runs_out(unread, capfd):
    """A run that another process works on is left for the end, and then waited for."""
    first = unread.runs[0]
    elsewhere = run_lock(first)
    asked = []
    assert in_own_process(["list"], elsewhere.__enter__()) == 0
    shown = capfd.readouterr()
    assert "gardiff" in shown.err and not shown.out

    def execute(arguments):
        asked.append((arguments[0], first.title in capfd.readouterr().err))
        if len(asked) == 2:
            elsewhere.__exit__(None, None, None)
        return 0

    assert run_comparison(unread, execute) == []
    # the other run, then, after a line on waiting for the first, this one
    assert asked == [("train", False), ("eval", False), ("train", True), ("eval", False)]


@pytest.mark.parametrize(("steps", "done"), [(2, False), (None, False), (4, True)])
def test_rows_of_an_earlier_checkpoint_are_not_the_runs(steps, done, tmp_path):
    """Somebody evaluated last.ckpt of step 2 before the training of 4 was done."""
    run = plan_models(*TWO, f"runs={tmp_path}").runs[1]
    run.folder.checkpoints.mkdir(parents=True)
    run.folder.weights.touch()
    run.folder.finish({"steps": 4})
    training = steps and {"steps": steps}
    row = Row("tryondiffusion", "synthetic", "test", "unpaired", "image", "all", "exact", 1, {})
    row.provenance = {"training": training}
    write_results(run.folder.results, [row])
    assert run.done == done


def test_the_table_of_an_unfinished_comparison_names_the_runs_that_are_missing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("vton.commands.compare.save_methods_grid", lambda runs, path: None)
    comparison = plan_models(*TWO, f"runs={tmp_path}/runs", f"compare.results={tmp_path}/out")
    table = comparison.results_folder / "table.md"
    for run, missing in zip(reversed(comparison.runs), (True, False), strict=True):
        name = run.config.model.name
        training = summary.row().provenance["training"] | {"steps": 4}
        rows = [summary.row(name, order="unpaired", training=training)]
        if run.config.eval.baselines:
            rows.append(summary.row("baseline/mean_colour", order="unpaired", training=training))
        run.folder.checkpoints.mkdir(parents=True)
        run.folder.weights.touch()
        run.folder.finish({"steps": 4})
        write_results(run.folder.results, rows)
        update_results(comparison)
        assert ("- Not run yet: gardiff, seed 0.\n" in table.read_text()) == missing
        assert ("Not run yet" in table.read_text()) == missing


def test_a_run_that_fails_does_not_stop_the_others(unread):
    asked = []

    def execute(arguments):
        asked.append(arguments)
        return int("model=gardiff" in arguments)

    assert run_comparison(unread, execute) == ["gardiff, seed 0"] and len(asked) == 3
