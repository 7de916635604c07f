"""The command: fast where it should be, and every README command exists."""

import json
import pkgutil
import re
import subprocess
import sys

import pytest

from tests.report.test_summary import ROWS
from tests.running import ROOT, make_dry
from vton import registry
from vton.cli import main, parse
from vton.config import upper_stages
from vton.metrics.results import write_results
from vton.report.summary import write_tables


def test_help_and_list_import_nothing_heavy():
    code = (
        "import sys; from vton.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'lightning', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["list"], ["train", "--dry-run", "trainer=cpu"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip().endswith("[]")


def test_list_names_every_architecture(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["list", "--json"])
    assert stop.value.code == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["models"] == registry.names()
    assert listed["warps"] == registry.names("warp") == ["warp"]


ARGUMENTS = {  # what a command cannot do without
    "tryon": ["person.jpg", "garment.jpg"],
    "predict": ["--out", "x"],
    "metrics": ["--pred", "x", "--target", "x"],
    "verify": ["x"],
    "import": ["gardiff", "x"],
    "export": ["--out", "x"],
    "data": ["check"],
}


def test_every_command_names_the_function_that_runs_it(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^ {4}([a-z]+)\b", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) > 10 and commands[0] == "train" and commands[-1] == "list"
    for command in commands:
        assert callable(pkgutil.resolve_name(parse([command, *ARGUMENTS.get(command, [])]).run))


@pytest.mark.parametrize("action", ["check", "make"])
def test_data_takes_its_action_before_the_overrides(action):
    args = parse(["data", action, "data=viton_hd", "data.root=x"])
    assert (args.action, args.overrides) == (action, ["data=viton_hd", "data.root=x"])


def test_a_run_is_chosen_in_one_way(capsys):
    assert parse(["eval", "--model", "idm_vton"]).model == "idm_vton"
    assert parse(["predict", "--out", "x"]).model is None
    with pytest.raises(SystemExit):
        parse(["eval", "--model", "idm_vton", "--run", "x"])
    assert "not allowed with" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "--model", "idm_vtn"])
    assert "Did you mean: 'idm_vton'?" in capsys.readouterr().err


def test_make_eval_asks_for_a_model_that_is_named_only():
    def spelt(*words: str) -> str:
        """The `vton` command behind `make` and these words."""
        return " ".join(make_dry(*words).split())

    assert spelt("eval", "MODEL=idm_vton", "DATA=viton_hd").endswith(
        "vton eval --model idm_vton data=viton_hd"
    )
    assert spelt("eval").endswith("vton eval")
    assert spelt("predict", "OUT=o", "RUN=r").endswith("vton predict --run r --out o")


def test_tables_are_those_of_a_folder_or_of_all_below_it(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name / "results.json", ROWS)
        write_tables(tmp_path / name)
    for folder, drawn in ((tmp_path, 2), (tmp_path / "two", 1)):
        with pytest.raises(SystemExit) as stop:
            main(["table", str(folder)])
        assert stop.value.code == 0 and capsys.readouterr().out.count("table.tex written.") == drawn
    with pytest.raises(SystemExit) as stop:
        main(["table", str(tmp_path / "three")])
    assert stop.value.code == 2 and "three holds no results.json" in capsys.readouterr().err


def test_overrides_may_stand_around_options():
    args = parse(["eval", "a=1", "--run", "x", "b=2", "--json", "c=3"])
    assert (args.overrides, args.folder, args.json) == (["a=1", "b=2", "c=3"], "x", True)
    for wrong in (["eval", "--jsn", "a=1"], ["list", "a=1"]):
        with pytest.raises(SystemExit):
            parse(wrong)


def test_an_unknown_command_is_a_usage_error():
    with pytest.raises(SystemExit) as stop:
        main(["trian"])
    assert stop.value.code == 2


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(
        re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    assert {"train", "eval", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_info_prints_json(capsys):
    with pytest.raises(SystemExit):
        main(["info", "model=gardiff", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows["model"] == "gardiff" and rows["networks"]


def test_info_counts_all_stages_of_a_cascade(capsys):
    with pytest.raises(SystemExit):
        main(["info", "model=tryondiffusion", "preset=paper", "--json"])
    base = json.loads(capsys.readouterr().out)
    sr256, sr1024 = base["upper_stages"]
    assert base["parameters"] == sum(row["parameters"] for row in base["networks"]) == 1_136_019_971
    assert sr256["parameters"] == 1_065_994_755
    assert [rows["stage"] for rows in (base, sr256, sr1024)] == ["base", "sr256", "sr1024"]
    assert not upper_stages("model=tryondiffusion", "model.stage=base")
    assert not upper_stages("model=gardiff")


def test_eval_without_a_run_is_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["eval", f"runs={tmp_path}"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "No trained run" in error
