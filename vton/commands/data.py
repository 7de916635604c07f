"""`vton data`: check, make, shard or cache a data folder."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from vton.config import ConfigError, ExperimentConfig, load
from vton.data.check import check_folder, format_problems
from vton.data.dataset import open_folder
from vton.data.packing import write_folder
from vton.data.shards import SHARD_MB
from vton.runs.assemble import data_module, prepare_run
from vton.runs.encodings import encode


def run(args: Namespace) -> int:
    config = load(*args.overrides)
    if args.action == "check":
        return check(config, args.json)
    if args.action == "make":
        make(config)
    elif args.action == "shard":
        shard(config, args.out, args.shard_mb or SHARD_MB)
    else:
        cache(config)
    return 0


def check(config: ExperimentConfig, as_json: bool) -> int:
    """Name every bad file. Exit code 1 if one is required."""
    problems = check_folder(config.data, workers=config.data.workers)
    if as_json:
        print(json.dumps([asdict(problem) for problem in problems], indent=2, default=str))
    else:
        print(format_problems(problems))
    return int(any(problem.severity == "required" for problem in problems))


def make(config: ExperimentConfig) -> None:
    """Render the synthetic data set, unless it is there."""
    data = data_module(config)
    data.prepare_data()
    print(data.root)


def shard(config: ExperimentConfig, out: str | None, shard_mb: float) -> None:
    """Write the folder's files into shards. Raises ConfigError without --out."""
    if not out:
        raise ConfigError("vton data shard needs --out FOLDER, which data.root then names.")
    folder = open_folder(config.data)
    target = Path(out)
    if config.data.name == "synthetic":  # rendered data lies one level below data.root
        target = target / folder.root.name
    written = write_folder(folder, target, shard_mb)
    megabytes = sum(size for _, size in written.names) / 1e6
    print(
        f"{len(written.files):,} files in {len(written.names)} shards, {megabytes:,.1f} MB. "
        f"Use it: data.root={out}"
    )


def cache(config: ExperimentConfig) -> None:
    """Compute what frozen encoders say of the training pairs into data.encoded."""
    _, data, module = prepare_run(config)
    computed, kept = encode(module, data)
    print(f"{config.data.encoded}: {computed:,} pairs computed, {kept:,} kept.")
