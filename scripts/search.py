"""Compares settings of tiny presets at equal training time on one core.

    python scripts/search.py scripts/search.yaml OUT                 # all candidates, one at a time
    python scripts/search.py scripts/search.yaml OUT --only gardiff "gardiff muon 2e-3" --at-once 2

A file of candidates holds `seconds`, the time of a training on one core; `all`, overrides of every
run; `draws`, the overrides of each way to sample from the trained weights; and `candidates`, the
overrides of each by its name. Every candidate takes as many steps as fit
into that time by its own seconds per step. These are measured first, one candidate after another
on one thread with nothing beside them, and kept in OUT/seconds.json: with that file the trainings
may run anywhere, several at once, on a GPU too, and take the same steps.

Data are rendered with another seed than the default runs', so that no choice is made on their test
pairs. OUT/table.md is written anew after every candidate; the same command goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import yaml

from vton.files import write_atomically

SEED = "data.synthetic.seed=1"
METRICS = ("psnr", "ssim", "lpips_random", "dists_random", "fid_random")
LOWER = ("lpips_random", "dists_random", "fid_random")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("candidates", type=Path, help="YAML file")
    parser.add_argument("out", type=Path, help="folder of runs, times and table")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these candidates")
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side")
    parser.add_argument("--seconds", type=float, help="instead of the file's")
    parser.add_argument("--measure", action="store_true", help="seconds per step, then stop")
    parser.add_argument(
        "--then", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of this machine"
    )
    arguments = parser.parse_args()
    given = yaml.safe_load(arguments.candidates.read_text())
    chosen = arguments.only or list(given["candidates"])
    common = [SEED, f"data.root={arguments.out / 'data'}", *given.get("all", [])]
    settings = {name: [*common, *given["candidates"][name]] for name in chosen}
    arguments.out.mkdir(parents=True, exist_ok=True)

    seconds = step_seconds(settings, arguments.out / "seconds.json")
    if arguments.measure:
        return
    budget = arguments.seconds or given["seconds"]
    steps = {name: max(int(budget / seconds[name]), 1) for name in settings}
    with ThreadPoolExecutor(arguments.at_once) as pool:
        tried = {}
        for name, overrides in settings.items():
            overrides = [*overrides, *arguments.then, f"train.steps={steps[name]}"]
            draws = given["draws"]
            tried[pool.submit(try_candidate, name, overrides, draws, arguments.out)] = name
        for done in as_completed(tried):
            print(tried[done], "failed" if done.exception() else "done", flush=True)
            if done.exception():
                print(done.exception(), file=sys.stderr)
            write_table(arguments.out, list(given["candidates"]))
    sys.exit(any(done.exception() for done in tried))


def step_seconds(settings: dict[str, list[str]], kept: Path) -> dict[str, float]:
    """Seconds of a training step by candidate, on one thread of this machine's CPU."""
    seconds = json.loads(kept.read_text()) if kept.exists() else {}
    for name, overrides in settings.items():
        if name not in seconds:
            few = ["data.synthetic.train=64", "data.synthetic.test=16"]
            bench = ["bench", "--only", "train", "--json", "--warmup", "3", "--repeats", "9"]
            text = vton([*bench, *overrides, *few, "trainer=cpu"], {"CUDA_VISIBLE_DEVICES": ""})
            seconds[name] = json.loads(text)["setting"]["train"]["seconds"]["median"]
            write_atomically(kept, json.dumps(seconds, indent=1) + "\n")
    return seconds


def try_candidate(name: str, overrides: list[str], draws: dict, out: Path) -> None:
    """Train, then draw and score in each way; what is there already is not done again."""
    run = out / name
    quiet = ["train.picture_every=0", "train.checkpoint_every=100000"]
    vton(["train", *overrides, *quiet, f"runs={out}", f"name={name}"])
    for draw, sampler in draws.items():
        scores = out / "scores" / f"{name}+{draw}.json"
        weights = run / "checkpoints" / "weights.safetensors"
        if not scores.exists() or scores.stat().st_mtime < weights.stat().st_mtime:
            alone = ["eval.baselines=false", "eval.shuffled=false"]
            vton(["eval", "--run", str(run), *alone, *sampler])
            scores.parent.mkdir(exist_ok=True)
            write_atomically(scores, (run / "results.json").read_text())


def vton(arguments: list[str], environment: dict[str, str] | None = None) -> str:
    """What the command printed. Raises RuntimeError with the end of its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "vton", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"vton {' '.join(arguments)}\n{done.stderr[-3000:]}")
    return done.stdout


def write_table(out: Path, names: list[str]) -> None:
    """Scores of the garment region, paired and unpaired."""
    seconds = json.loads((out / "seconds.json").read_text())
    heads = ["candidate", "draw", "s a step", "steps"]
    for metric in METRICS:
        heads.append(f"{metric} {'↓' if metric in LOWER else '↑'}")
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2)]
    for name in names:
        for file in sorted((out / "scores").glob(f"{name}+*.json")):
            paired, unpaired = garment_rows(file)
            steps = paired["provenance"]["training"]["steps"]
            cells = [name, file.stem.rpartition("+")[2], f"{seconds[name]:.3f}", str(steps)]
            for metric in METRICS:
                values = paired["metrics"][metric], unpaired["metrics"][metric]
                cells.append("{:.3f} / {:.3f}".format(*values))
            lines.append(cells)
    write_atomically(out / "table.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))


def garment_rows(file: Path) -> tuple[dict, dict]:
    """The paired and the unpaired row of all garments in a results file."""
    rows = {}
    for row in json.loads(file.read_text()):
        if row["region"] == "garment" and row["category"] == "all":
            rows[row["order"]] = row
    return rows["paired"], rows["unpaired"]


if __name__ == "__main__":
    main()
