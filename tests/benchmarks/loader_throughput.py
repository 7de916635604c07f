"""Samples per second of the training loader at 512x384: a VITON-HD folder against its shards.

    python -m tests.benchmarks.loader_throughput                                     # rendered at 1024x768, 2 workers
    python -m tests.benchmarks.loader_throughput data.root=DIR data.workers=8        # a real folder

One run: both read the same pairs in the same order, in turns. `cold` is after the system was asked
to forget the files (posix_fadvise), `warm` the same once more. The process that asks does nothing
with the batches but count them. CPU milliseconds per sample are those of one process without
workers, warm: other work on the machine does not move them.
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
from vton.data.module import TryOnDataModule
from vton.data.packing import write_folder
from vton.data.shards import ShardPath
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
    """Samples per second of `clock` over `batches` batches, the first one apart: workers start with
    it.
    """
    config = load(*overrides, f"data.root={root}")
    data = TryOnDataModule(
        config.data, seed=0, batch_size=config.train.batch_size, eval_batch_size=1
    )
    assert isinstance(data.root, ShardPath) == (root / "shards.json").exists()
    stream = iter(data.train_dataloader())
    next(stream)
    start = clock()
    count = sum(len(batch) for batch in itertools.islice(stream, batches))
    return count / (clock() - start)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--pairs", type=int, default=32, help="rendered, without data.root")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    quiet_libraries()
    overrides = [*SETTINGS, *args.overrides]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(load(*overrides).data.root or Path(scratch) / "plain")
        if not root.exists():
            synthetic.ensure(
                root,
                layout="viton_hd",
                size=(1024, 768),
                train=args.pairs,
                test=2,
                seed=0,
                workers=1,
            )
        write_folder(
            open_folder(load(*overrides, f"data.root={root}").data), Path(scratch) / "sharded"
        )
        found: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}
        for _, (name, place) in itertools.product(
            range(args.repeats), (("plain", root), ("sharded", Path(scratch) / "sharded"))
        ):
            forget(place)
            for state in ("cold", "warm"):
                found.setdefault(f"{name} {state}", []).append(
                    measured(overrides, place, args.batches, time.perf_counter)
                )
            alone = measured([*overrides, "data.workers=0"], place, args.batches, time.process_time)
            cpu.setdefault(name, []).append(1000 / alone)
    rates, milliseconds = (
        {name: round(statistics.median(v), 2) for name, v in kind.items()} for kind in (found, cpu)
    )
    print(
        json.dumps(
            {
                "samples_per_second": rates,
                "cpu_ms_per_sample": milliseconds,
                "all": found,
                "all_cpu": cpu,
            }
        )
    )


if __name__ == "__main__":
    main()
