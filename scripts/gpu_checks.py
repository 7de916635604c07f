"""What a machine with a GPU has to show, in some minutes: one file of JSON for each check.

    python scripts/gpu_checks.py results/h200            # on the GPU
    python scripts/gpu_checks.py /tmp/checks --tiny      # the same checks in small, on a CPU

In this order, so that a machine that goes away early has told the most:

    tests     pytest -m gpu
    look      a step of IDM-VTON at 1024x768 and the look at held-out pairs behind it
    bench     `vton bench` of every paper preset, sampling and training in bf16: those of MEASURED
              first, with trainer.compile and without, then the others

No weights are needed, nothing is fetched: networks are random, which changes no time and no memory.
A check that fails or takes too long is noted, and the next one begins. What no longer fits into
--budget is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from vton import registry
from vton.config import flatten, load

SECONDS = {"tests": 240, "look": 180, "bench": 150}  # that a check may take
LEAST = 25  # seconds: with fewer left of the budget no check is begun
MEASURED = ("idm_vton", "catvton", "gardiff", "tryondiffusion")
PHASES = ("sample", "train")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="tiny presets on the CPU")
    parser.add_argument("--only", choices=("tests", "look", "bench"), action="append")
    parser.add_argument(
        "--budget", type=float, default=900, help="seconds for all checks (default: %(default)s)"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = arguments.only or ["tests", "look", "bench"]
    failed, left_out = [], []
    ends = time.monotonic() + arguments.budget
    with tempfile.TemporaryDirectory(prefix="vton-gpu-") as folder:
        for name, command in checks(arguments.tiny, Path(folder)):
            kind = name.partition("_")[0]
            if kind not in chosen:
                continue
            left = ends - time.monotonic()
            if left < LEAST:
                left_out.append(name)
            elif not check(name, command, arguments.out, min(SECONDS[kind], left)):
                failed.append(name)
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "No check failed.")
    if left_out:
        print(f"{len(left_out)} did not fit into {arguments.budget:g} s: {', '.join(left_out)}")
    return bool(failed)


def checks(tiny: bool, folder: Path):
    """Names and commands, in order."""
    vton = [sys.executable, "-m", "vton"]
    setting = ["preset=tiny", "trainer=cpu"] if tiny else ["preset=paper", "trainer=gpu"]
    setting.append(f"data.synthetic.workers={os.cpu_count()}")
    pairs = [f"data.root={folder / 'data'}", "data.synthetic.train=64", "data.synthetic.test=8"]
    yield "tests", [sys.executable, "-m", "pytest", "-q", "-m", "gpu"]

    look = ["train.steps=1", "train.picture_every=1", "train.val_pairs=8"]
    look += ["train.batch_size=1", "train.global_batch=0"]
    runs = [f"runs={folder / 'runs'}", "name=look", "data.check=false"]
    if not tiny:
        look += without_weights("idm_vton")
    yield "look_idm_vton", [*vton, "train", "model=idm_vton", *setting, *pairs, *look, *runs]

    for model, phase, compiled in benches():
        name = f"bench_{model}_{phase}" + ("_compiled" if compiled else "")
        command = [*vton, "bench", f"model={model}", *setting, f"trainer.compile={compiled}"]
        rounds = ["--warmup", "2", "--repeats", "3"]
        if phase == "sample" or tiny:
            rounds = ["--warmup", "1", "--repeats", "2"]
        yield name, [*command, "--only", phase, "--json", *rounds]


def benches() -> Iterator[tuple[str, str, bool]]:
    """Model, phase, and whether it is compiled, the most telling first.

    Each is a command of its own. What is compiled may fail or take too long, and sampling alone is
    in half precision throughout.
    """
    first, second, *more = MEASURED
    for model, compiled in ((first, False), (second, False), (second, True), (first, True)):
        for phase in PHASES:
            yield model, phase, compiled
    for compiled in (False, True):
        for model in more:
            for phase in PHASES:
                yield model, phase, compiled
    for model in registry.names():
        if model not in (*MEASURED, "warp"):
            for phase in PHASES:
                yield model, phase, False


def without_weights(model: str) -> list[str]:
    """Overrides that build every network of the paper preset freshly."""
    settings = flatten(asdict(load(f"model={model}", "preset=paper")))
    return [f"{key}=''" for key in settings if key.endswith(".pretrained")]


def check(name: str, command: list[str], out: Path, limit: float) -> bool:
    """Run a command and write what it said; returns whether it succeeded.

    limit: seconds it may take
    """
    print(name, flush=True)
    started = time.perf_counter()
    result: dict = {"command": command[1:], "device": device()}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        result["exit"] = done.returncode
        result["stderr"] = done.stderr[-4000:]
        try:
            result["result"] = json.loads(done.stdout)
        except ValueError:
            result["stdout"] = done.stdout[-4000:]
    except subprocess.TimeoutExpired:
        result["exit"] = f"more than {limit:.0f} s"
    result["seconds"] = round(time.perf_counter() - started, 1)
    (out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    # pytest says 5 where no test was chosen.
    no_gpu = name == "tests" and result["exit"] == 5 and not torch.cuda.is_available()
    return result["exit"] == 0 or no_gpu


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
