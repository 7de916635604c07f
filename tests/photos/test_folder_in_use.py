"""A prepared folder in the hands of the other commands: checked, drawn on, evaluated."""

import numpy as np
import pytest
from PIL import Image

from tests.photos import people
from tests.running import command
from tests.tryon.runs import tiny_run
from vton.metrics.results import read_results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two people and two tops, which become two test pairs and nothing else."""
    root = tmp_path_factory.mktemp("own")
    for name in ("persons", "garments"):
        (root / "photos" / name).mkdir(parents=True)
    for place in range(2):
        people.photo(place).save(root / f"photos/persons/{place}.jpg", quality=95)
        people.garment(place)[0].save(root / f"photos/garments/top{place}.png")
    out = root / "set"
    assert command("prepare", str(root / "photos"), "--out", str(out), "--size", "256x192") == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory, rendered):
    return tiny_run(tmp_path_factory.mktemp("runs"), rendered, "gardiff", "train.steps=20")


def of_folder(folder):
    return "data=viton_hd", f"data.root={folder}", "data.size=[64,48]"


def test_the_check_finds_nothing_wrong(folder, capsys):
    assert command("data", "check", *of_folder(folder)) == 0
    printed = capsys.readouterr().out
    assert "no training pairs" in printed and "no paired test pairs" in printed


def test_a_run_draws_its_pairs(folder, run, tmp_path):
    out = tmp_path / "drawn"
    assert command("predict", "--run", str(run.path), "--out", str(out), *of_folder(folder)) == 0
    drawn = sorted(path for path in out.rglob("*.png"))
    assert [path.name for path in drawn] == ["0__top0.png", "1__top1.png"]
    assert {Image.open(path).size for path in drawn} == {(48, 64)}


def test_a_run_is_scored_on_its_unpaired_pairs(folder, run):
    arguments = ("eval", "--run", str(run.path), *of_folder(folder), "eval.orders=[unpaired]")
    assert command(*arguments) == 0
    rows = read_results(run.path / "results.json")
    assert {row.order for row in rows} == {"unpaired"} and {row.n for row in rows} == {2}
    drawn = next(row for row in rows if row.model == "gardiff" and row.region == "image")
    assert drawn.metrics and all(np.isfinite(value) for value in drawn.metrics.values())


@pytest.mark.parametrize("orders", ["paired", "unpaired,paired"])
def test_what_needs_the_persons_own_garment_says_what_to_do(folder, run, capsys, orders):
    arguments = ("eval", "--run", str(run.path), *of_folder(folder), f"eval.orders=[{orders}]")
    assert command(*arguments) == 2
    assert "Use eval.orders=[unpaired]" in capsys.readouterr().err
