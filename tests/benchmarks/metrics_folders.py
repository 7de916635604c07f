"""Seconds and peak memory of `vton metrics` on two folders of pictures made up here, with random
extractors.

    python -m tests.benchmarks.metrics_folders            # all but DISTS
    python -m tests.benchmarks.metrics_folders --dists    # DISTS too

1,000 pairs at 256x192. Bars on 2 cores: 6 minutes, with DISTS 15.

The command runs in a process of its own. Seconds of CPU stand beside those of the clock: where they
are far fewer than seconds times cores, something else was running. The bar for memory is 3 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vton.weights.metric_networks import VARIABLE

USUAL = ("ssim", "psnr", "lpips", "fid", "kid")


def write_pairs(folder: Path, pairs: int, size: tuple[int, int]) -> None:
    """Smooth colours in `target`, the same with grain in `pred`; size: height, width."""
    rng = np.random.default_rng(0)
    for name in ("pred", "target"):
        (folder / name).mkdir()
    for index in range(pairs):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8))
        truth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC))
        grained = (truth + rng.normal(0, 12, truth.shape)).clip(0, 255).astype(np.uint8)
        for name, pixels in (("pred", grained), ("target", truth)):
            Image.fromarray(pixels).save(folder / name / f"{index:05d}.png", compress_level=1)


def measured(folder: Path, metrics: Sequence[str]) -> dict:
    """One run of the command on `pred` and `target`. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "vton", "metrics", "--pred", str(folder / "pred")]
    command += [
        "--target",
        str(folder / "target"),
        "--metrics",
        *metrics,
        "--out",
        str(folder / "rows.json"),
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {VARIABLE: ""})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    (row,) = json.loads((folder / "rows.json").read_text())
    return {
        "pairs": row["n"],
        "metrics": sorted(row["metrics"]),
        "size": row["provenance"]["size"],
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", "as many"),
        "nice": os.nice(0),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 192), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--dists", action="store_true", help="DISTS too")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), args.pairs, tuple(args.size))
        found = measured(Path(folder), (*USUAL, "dists") if args.dists else USUAL)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
