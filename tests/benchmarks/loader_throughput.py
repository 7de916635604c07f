"""Samples per second of the training loader at 512x384: a VITON-HD folder against its shards.

    python -m tests.benchmarks.loader_throughput                   # rendered at 1024x768
    python -m tests.benchmarks.loader_throughput data.root=DIR data.workers=8
    python -m tests.benchmarks.loader_throughput model=idm_vton preset=paper data.size=[1024,768]

Loaders make the fields that the model reads, GarDiff's by default; MiB per sample are what passes
from a loader process to the trainer.

In one run both read the same pairs in the same order, in turns. `cold` is after the system was
asked to forget the files (posix_fadvise), `warm` the same once more. The process that asks does
nothing with the batches but count them. CPU milliseconds per sample are those of one process
without workers, warm: other work on the machine does not move them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vton.config import load
from vton.data import synthetic
from vton.data.dataset import open_folder
from vton.data.packing import write_folder
from vton.data.shards import ShardPath
from vton.runs.assemble import data_module
from vton.training.trainer import quiet_libraries

SETTINGS = ("data=viton_hd", "data.size=[512,384]", "data.workers=2", "train.batch_size=4")


def forget(root: Path) -> None:
    """Drop a folder's files from the page cache."""
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(overrides: list[str], root: Path, batches: int, clock: Callable[[], float]) -> float:
    """Samples per second of `clock` over `batches` batches.

    The first batch is left out: workers start with it.
    """
    data = data_module(load(*overrides, f"data.root={root}"))
    assert isinstance(data.root, ShardPath) == (root / "shards.json").exists()
    stream = iter(data.train_dataloader())
    next(stream)
    start = clock()
    count = sum(len(batch) for batch in itertools.islice(stream, batches))
    return count / (clock() - start)


def mib_per_sample(overrides: list[str], root: Path) -> float:
    data = data_module(load(*overrides, f"data.root={root}", "data.workers=0"))
    batch = next(iter(data.train_dataloader()))
    return round(batch.nbytes / len(batch) / 2**20, 2)


def render(root: Path, pairs: int) -> None:
    """A VITON-HD folder at the size of the real one."""
    settings = {"layout": "viton_hd", "size": (1024, 768), "test": 2, "seed": 0, "workers": 1}
    synthetic.ensure(root, train=pairs, **settings)


def medians(kinds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 2) for name, values in kinds.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--pairs", type=int, default=32, help="rendered, without data.root")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    quiet_libraries()
    overrides = [*SETTINGS, *args.overrides]
    rates: dict[str, list[float]] = {}
    milliseconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(load(*overrides).data.root or Path(scratch) / "plain")
        if not root.exists():
            render(root, args.pairs)
        sharded = Path(scratch) / "sharded"
        write_folder(open_folder(load(*overrides, f"data.root={root}").data), sharded)
        for _ in range(args.repeats):
            for name, place in (("plain", root), ("sharded", sharded)):
                forget(place)
                for state in ("cold", "warm"):
                    rate = measured(overrides, place, args.batches, time.perf_counter)
                    rates.setdefault(f"{name} {state}", []).append(rate)
                alone = [*overrides, "data.workers=0"]
                rate = measured(alone, place, args.batches, time.process_time)
                milliseconds.setdefault(name, []).append(1000 / rate)
        size = mib_per_sample(overrides, root)
    report = {
        "mib_per_sample": size,
        "samples_per_second": medians(rates),
        "cpu_ms_per_sample": medians(milliseconds),
        "all": rates,
        "all_cpu": milliseconds,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
