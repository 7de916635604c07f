"""`vton data`: check, make, convert, shard or cache a data folder."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from vton.config import ConfigError, ExperimentConfig, as_override, load
from vton.data.check import check_folder
from vton.data.convert import convert, layout_of
from vton.data.dataset import open_folder
from vton.data.igpair import LACKING, is_igpair
from vton.data.packing import write_folder
from vton.data.problems import Problem, format_problems, list_problems
from vton.data.shards import SHARD_MB
from vton.data.source import open_source
from vton.files import require_writable, write_atomically
from vton.runs.assemble import data_module, prepare_run
from vton.runs.encodings import encode
from vton.runs.folder import RunFolder


def run(args: Namespace) -> int:
    if args.action == "convert":
        convert_set(args)
        return 0
    config = load(*args.overrides)
    if args.action == "check":
        return check(config, args.json, args.out)
    if args.action == "make":
        make(config)
    elif args.action == "shard":
        shard(config, args.out, args.shard_mb or SHARD_MB)
    else:
        cache(config)
    return 0


def check(config: ExperimentConfig, as_json: bool, out: str | None) -> int:
    """Name every bad file, to people by kind. Exit code 1 if one is required.

    out: a file for the whole list, as JSON where its name ends so.
    """
    if out:
        require_writable(Path(out))
    problems = check_folder(config.data, workers=config.data.workers)
    if out:
        in_json = Path(out).suffix == ".json"
        whole = problems_json(problems) if in_json else list_problems(problems)
        write_atomically(Path(out), f"{whole}\n")
    if as_json:
        print(problems_json(problems))
    else:
        print(format_problems(problems, where=out or ""))
    return int(any(problem.severity == "required" for problem in problems))


def problems_json(problems: Sequence[Problem]) -> str:
    return json.dumps([vars(problem) for problem in problems], indent=2, default=str)


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
    if config.data.name == "synthetic" and target.name != folder.root.name:
        target = target / folder.root.name  # rendered data lies one level below data.root
    written = write_folder(folder, target, shard_mb)
    megabytes = sum(size for _, size in written.names) / 1e6
    print(
        f"{len(written.files):,} files in {len(written.names)} shards, {megabytes:,.1f} MB. "
        f"Use it: data.root={out}"
    )


def convert_set(args: Namespace) -> None:
    """Write any data set in the official layout. Raises ConfigError without SRC or --out."""
    sources = [word for word in args.overrides if "=" not in word]
    overrides = [word for word in args.overrides if "=" in word]
    if len(sources) != 1 or not args.out:
        raise ConfigError(
            "vton data convert needs one source and a target: vton data convert SRC --out DIR."
        )
    (source,) = sources
    if not any(word.startswith("data=") for word in overrides):
        overrides.append(f"data={layout_of(open_source(source))}")
    config = load(*overrides, as_override("data.root", source)).data
    counts = convert(config, Path(args.out), shards=args.shards)
    pairs = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    print(f"{pairs} pairs in {args.out}. Use it: data={config.name} data.root={args.out}")
    if is_igpair(Path(config.root)):
        print(LACKING)


def cache(config: ExperimentConfig) -> None:
    """Compute what frozen encoders say of the training pairs into data.encoded.

    Raises UserError while a process trains in the run folder, which is started here.
    """
    with RunFolder.of(config).training_lock():
        _, data, module = prepare_run(config)
    computed, kept = encode(module, data)
    print(f"{config.data.encoded}: {computed:,} pairs computed, {kept:,} kept.")
