"""The `vton` command: parsing only. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys

from vton import __version__, registry
from vton.config import ConfigError, EvalConfig, choices, load_shared
from vton.errors import UserError, one_line
from vton.metrics.protocol import METRICS, PROTOCOLS

OVERRIDES = "key=value pairs: model=, preset=, data=, trainer=, ablation= choose files, train.lr=1e-4 sets one value"


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit codes: 0 good, 1 a check failed, 2 wrong usage or input, 130 and 143
    ended by a signal.
    """
    args = parse(arguments)
    try:
        code = args.run(args)
    except UserError as error:
        print(f"vton: {error}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, SystemExit) as left:
        if isinstance(left, SystemExit) and not isinstance(left.__context__, KeyboardInterrupt):
            raise  # the others are Ctrl-C as well, of which Lightning makes exit code 1
        print(
            "vton: interrupted; a training goes on from its last checkpoint, by the same command.",
            file=sys.stderr,
        )
        code = 130
    except BrokenPipeError:  # `vton list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if (
            error.errno is None
        ):  # a library's own, not the operating system's word on a file or a disk
            raise
        print(
            f"vton: {error}. Check the path, its permissions and the room on its disk.",
            file=sys.stderr,
        )
        code = 2
    sys.exit(code or 0)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Arguments of one command; key=value pairs may stand before, between and after its options."""
    top = parser()
    args, rest = top.parse_known_args(arguments)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(late) < len(rest) or (late and not hasattr(args, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        args.overrides = [*args.overrides, *late]
    return args


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="vton", description="Virtual try-on diffusion architectures on equal terms."
    )
    top.add_argument("--version", action="version", version=f"vton {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run, text: str, overrides: bool = True, **kwargs
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **kwargs)
        if overrides:
            sub.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
        sub.set_defaults(run=run)
        return sub

    for add in (add_runs, add_metrics, add_contests, add_checks, add_exchange, add_data, add_pages):
        add(command)
    return top


def add_runs(command) -> None:
    train = command("train", run_train, "train, or resume the run that the same command started")
    train.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and stop"
    )
    evaluate = command(
        "eval",
        run_eval,
        "sample a run's held-out pairs, score them, write results.json and pictures",
    )
    add_choice_of_run(evaluate)
    evaluate.add_argument(
        "--checkpoint",
        choices=("weights", "last", "best"),
        default="weights",
        help="weights at the end of training (default), or of a checkpoint; averaged where training "
        "keeps an average",
    )
    evaluate.add_argument("--json", action="store_true", help="print the rows as JSON")
    predict = command(
        "predict", run_predict, "write a run's pictures for held-out pairs, without scoring"
    )
    add_choice_of_run(predict)
    predict.add_argument("--order", choices=("paired", "unpaired"), default="unpaired")
    predict.add_argument("--out", required=True, help="folder for the PNGs")


def add_choice_of_run(sub: argparse.ArgumentParser) -> None:
    choice = sub.add_mutually_exclusive_group()
    choice.add_argument("--run", dest="folder", help="run folder; default: the newest under runs/")
    choice.add_argument("--model", metavar="NAME", help="the newest run of this model")


def add_metrics(command) -> None:
    usual = EvalConfig()
    metrics = command(
        "metrics",
        run_metrics,
        "score two folders of pictures, from anyone's model",
        overrides=False,
    )
    metrics.add_argument("--pred", required=True, metavar="DIR", help="predictions")
    metrics.add_argument(
        "--target", required=True, metavar="DIR", help="true pictures, of the same names"
    )
    metrics.add_argument(
        "--order",
        choices=("paired", "unpaired"),
        default="paired",
        help="unpaired: only what compares sets, FID and KID",
    )
    metrics.add_argument(
        "--protocol", default=usual.protocol, help=f"{', '.join(PROTOCOLS)} (default: %(default)s)"
    )
    metrics.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"default: {' '.join(name for name in usual.metrics if name in METRICS)}",
    )
    metrics.add_argument(
        "--size", metavar="HxW", help="compare at this size, whatever the pictures have"
    )
    metrics.add_argument(
        "--mask", metavar="DIR", help="where the targets show the garment: rows for that region"
    )
    metrics.add_argument(
        "--repaint-mask",
        metavar="DIR",
        help="where the method painted; elsewhere the target is pasted",
    )
    metrics.add_argument(
        "--list",
        dest="listed",
        metavar="FILE",
        help="only these targets, the first word of each line: a pair list",
    )
    metrics.add_argument(
        "--garment", metavar="DIR", help="in-shop pictures, for cami_u and mp_lpips"
    )
    metrics.add_argument("--garment-mask", metavar="DIR", help="their silhouettes, for mp_lpips")
    metrics.add_argument("--prompts", metavar="FILE", help="JSON, name to prompt, for image_reward")
    metrics.add_argument(
        "--mask-rule", default="not stated", help="how the predictions' agnostic masks were made"
    )
    metrics.add_argument("--name", help="of the method; default: the folder's")
    metrics.add_argument("--data", help="of the data set; default: the target folder's name")
    metrics.add_argument("--weights", default="", metavar="DIR", help="pretrained metric networks")
    metrics.add_argument(
        "--batch-size",
        type=int,
        default=usual.batch_size,
        help="pictures read together (default: %(default)s); no number depends on it",
    )
    metrics.add_argument("--device", help="default: cuda where there is one, else cpu")
    metrics.add_argument(
        "--out", metavar="FILE", help="write the rows there too, as results.json has them"
    )
    metrics.add_argument("--json", action="store_true", help="print the rows as JSON")
    weights = command(
        "weights",
        run_weights,
        "fetch and check the pretrained networks of metrics",
        overrides=False,
    )
    weights.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="default: those of every evaluation; a name that is none lists all",
    )
    weights.add_argument(
        "--to", metavar="DIR", help="default: $VTON_METRIC_WEIGHTS, else a folder in ~/.cache/vton"
    )


def add_contests(command) -> None:
    contests = (
        (
            "compare",
            run_compare,
            "architectures and baselines under one budget, in one table; or go on with it",
        ),
        (
            "ablate",
            run_ablate,
            "the rows of model=NAME's published ablation table under one budget; or go on with it",
        ),
    )
    for name, run, text in contests:
        contest = command(name, run, text)
        contest.add_argument(
            "--dry-run", action="store_true", help="print members, costs and commands, and stop"
        )
        contest.add_argument(
            "--json", action="store_true", help="print the rows as JSON; progress goes to stderr"
        )
    table = command(
        "table",
        run_table,
        "draw the tables of comparisons again, from their rows alone",
        overrides=False,
    )
    table.add_argument(
        "folder", nargs="?", help="of a comparison, or of several; default: compare.results"
    )
    table.add_argument("--json", action="store_true", help="print the rows as JSON")


def add_checks(command) -> None:
    info = command(
        "info",
        run_info,
        "parameters, FLOPs and memory of each network, without allocating weights; of a cascade's "
        "stages all, unless dotted overrides or an ablation speak of one",
    )
    info.add_argument(
        "--gpus", type=int, default=0, help="also the memory of training on so many, by strategy"
    )
    info.add_argument("--json", action="store_true")
    verify = command(
        "verify",
        run_verify,
        "reference inputs and weights through our code: errors per tensor",
        overrides=False,
    )
    verify.add_argument("folder", help="config.json, weights_*, inputs and outputs.safetensors")
    verify.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    verify.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="half precisions are held to looser bounds",
    )
    verify.add_argument("--json", action="store_true")


def add_exchange(command) -> None:
    bring = command(
        "import",
        run_import,
        "published weights into a run folder that `vton eval` accepts",
        overrides=False,
    )
    bring.add_argument("model", help="architecture")
    bring.add_argument(
        "path", help="its published files: a folder in the hub's layout, or a checkpoint file"
    )
    bring.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    export = command(
        "export",
        run_export,
        "a run's weights in the architecture's published format",
        overrides=False,
    )
    add_choice_of_run(export)
    export.add_argument("--out", required=True, help="folder or file to write; must not exist")


def add_data(command) -> None:
    data = command("data", run_data, "check, make, shard or cache a data folder", overrides=False)
    data.add_argument(
        "action",
        choices=("check", "make", "shard", "cache"),
        help="check: name every bad file; make: render synthetic data; shard: write the folder's files into shards; "
        "cache: compute latents and embeddings of frozen encoders into data.encoded",
    )
    data.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    data.add_argument("--out", help="shard: new folder, which data.root then names")
    data.add_argument("--shard-mb", type=float, help="shard: MB of a shard (default: 128)")
    data.add_argument("--json", action="store_true")


def add_pages(command) -> None:
    pages = command(
        "notebooks",
        run_notebooks,
        "run notebooks from start to end and write each as a page",
        overrides=False,
    )
    pages.add_argument("notebooks", nargs="*", help="default: all of notebooks/")
    pages.add_argument(
        "--results", help="folder of results; default: $VTON_RESULTS, or the repository's results/"
    )
    pages.add_argument(
        "--out", default="build/notebooks", help="folder for the pages (default: %(default)s)"
    )
    names = command(
        "list",
        run_list,
        "architectures, presets, data sets, trainers and ablations",
        overrides=False,
    )
    names.add_argument("--json", action="store_true")


def run_train(args) -> None:
    from vton.config import load, to_yaml

    config = load(*args.overrides)
    if args.dry_run:
        from vton.runs.folder import environment

        print(to_yaml(config) + json.dumps(environment(), indent=2))
        return
    from vton.commands.train import train

    train(config)


def run_eval(args) -> None:
    from vton.commands.evaluate import evaluate

    evaluate(_stage(args), checkpoint=args.checkpoint, as_json=args.json)


def run_predict(args) -> None:
    from pathlib import Path

    from vton.commands.evaluate import predict

    predict(_stage(args), args.order, Path(args.out))


def run_metrics(args) -> None:
    import re
    from pathlib import Path

    import torch

    from vton.commands.metrics import score_folders
    from vton.config import load, nearest
    from vton.metrics.matching import OPTIONAL_FOLDERS, Folders
    from vton.metrics.results import write_results
    from vton.processes import process_group
    from vton.report.tables import print_table, table_json

    given = {"protocol": args.protocol, "batch_size": args.batch_size, "weights": args.weights}
    if args.metrics:
        given["metrics"] = [
            name for words in args.metrics for name in words.replace(",", " ").split()
        ]
        for name in given["metrics"]:
            if name not in METRICS:
                raise ConfigError(
                    f"--metrics {name}: no such metric. {nearest(name, METRICS)}"
                )
    if args.size:
        if not re.fullmatch(r"\d+x\d+", args.size):
            raise ConfigError(
                f"--size {args.size}: expected height x width in pixels, such as 512x384."
            )
        given["size"] = [int(length) for length in args.size.split("x")]
    config = load(*(f"eval.{key}={json.dumps(value)}" for key, value in given.items())).eval
    paths = {
        name: getattr(args, name)
        for name in ("pred", "target", *OPTIONAL_FOLDERS, "prompts", "listed")
    }
    compared = Folders(**{name: path and Path(path) for name, path in paths.items()})
    try:
        torch.ones((), device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device}: not usable here ({one_line(error)}).") from None
    device = args.device or (
        f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    )
    names = {
        "model": args.name or Path(args.pred).name,
        "data": args.data or Path(args.target).name,
    }
    with process_group():
        rows = score_folders(
            compared, args.order, config, device, **names, mask_rule=args.mask_rule
        )
    if rows is None:
        return
    size, stored = rows[0].provenance["size"], rows[0].provenance["targets"]["size"]
    if size != stored:
        print(
            f"vton: targets of {stored} (height, width) were brought to the predictions' {size}.",
            file=sys.stderr,
        )
    if args.out:
        write_results(Path(args.out), rows)
    print(table_json(rows)) if args.json else print_table(rows)


def run_weights(args) -> None:
    from pathlib import Path

    from vton.weights.fetch import USUAL, fetch
    from vton.weights.metric_networks import fetched_folder

    for path, done in fetch(args.names or USUAL, Path(args.to) if args.to else fetched_folder()):
        print(f"{path}: {done}", flush=True)


def run_compare(args) -> int:
    from vton.commands.compare import compare

    return run_comparison(compare(*args.overrides), args)


def run_ablate(args) -> int:
    from vton.commands.compare import ablate

    return run_comparison(ablate(*args.overrides), args)


def run_comparison(comparison, args) -> int:
    from vton.commands.compare import carry_out, described

    if args.dry_run:
        print(described(comparison))
        return 0
    failed = carry_out(comparison)
    if (comparison.folder / "table.md").exists():
        draw_table(comparison.folder, args.json)
    if failed:
        print(f"vton: failed: {'; '.join(failed)}. The same command tries again.", file=sys.stderr)
    return int(bool(failed))


def run_table(args) -> None:
    from pathlib import Path

    folder = Path(args.folder or load_shared().compare.results)
    for comparison in sorted(table.parent for table in folder.glob("*/table.md")) or [folder]:
        draw_table(comparison, args.json)


def draw_table(folder, as_json: bool) -> None:
    from vton.report.summary import write_tables
    from vton.report.tables import print_table, table_json

    rows = write_tables(folder)
    if as_json:
        print(table_json(rows))
        return
    print_table(rows)
    print(f"{folder}/table.md, table.csv and table.tex written.")


def run_info(args) -> None:
    from vton.config import load, upper_stages
    from vton.cost.counting import describe
    from vton.cost.tables import print_table

    rows = describe(load(*args.overrides), args.gpus)
    if upper := upper_stages(*args.overrides):
        rows["upper_stages"] = [describe(config, args.gpus) for config in upper]
    print(json.dumps(rows, indent=2)) if args.json else print_table(rows)


def run_verify(args) -> int:
    from vton.commands.verify import report, verify

    checks = verify(args.folder, args.device, args.dtype)
    return int(not report(checks, args.folder, args.device, args.dtype, args.json))


def run_import(args) -> None:
    from pathlib import Path

    from vton.commands.exchange import import_run

    run = import_run(args.model, Path(args.path), *args.overrides)
    print(f"{run.path} is ready. Evaluate it: make eval RUN={run.path} DATA=viton_hd")


def run_export(args) -> None:
    from pathlib import Path

    from vton.commands.exchange import export_run
    from vton.runs.folder import RunFolder

    run = RunFolder(args.folder) if args.folder else RunFolder.newest("runs", args.model)
    export_run(run, Path(args.out))
    print(f"{run.path} exported to {args.out}")


def run_data(args) -> int:
    from vton.config import load

    config = load(*args.overrides)
    if args.action == "make":
        from vton.runs.assemble import data_module

        module = data_module(config)
        module.prepare_data()
        print(module.root)
        return 0
    if args.action == "shard":
        return shard_data(config, args.out, args.shard_mb)
    if args.action == "cache":
        from vton.runs.assemble import prepare
        from vton.runs.encodings import encode

        _, folder, module = prepare(config)
        computed, kept = encode(module, folder)
        print(f"{config.data.encoded}: {computed:,} pairs computed, {kept:,} kept.")
        return 0
    from vton.data.check import check_folder, format_problems

    problems = check_folder(config.data, workers=config.data.workers)
    if args.json:
        from dataclasses import asdict

        print(json.dumps([asdict(problem) for problem in problems], indent=2, default=str))
    else:
        print(format_problems(problems))
    return int(any(problem.severity == "required" for problem in problems))


def shard_data(config, out: str | None, shard_mb: float | None) -> int:
    from pathlib import Path

    from vton.data.dataset import open_folder
    from vton.data.packing import write_folder
    from vton.data.shards import SHARD_MB

    if not out:
        raise ConfigError("vton data shard needs --out FOLDER, which data.root then names.")
    folder = open_folder(config.data)
    # Rendered data lies one level below data.root.
    place = Path(out) / folder.root.name if config.data.name == "synthetic" else Path(out)
    shards = write_folder(folder, place, shard_mb or SHARD_MB)
    size = sum(size for _, size in shards.names)
    print(
        f"{len(shards.files):,} files in {len(shards.names)} shards, {size / 1e6:,.1f} MB. Use it: data.root={out}"
    )
    return 0


def run_notebooks(args) -> None:
    from pathlib import Path

    from vton.report.notebooks import NOTEBOOKS, write_pages

    paths = args.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    for page, seconds in write_pages(
        paths, Path(args.out), **({"VTON_RESULTS": args.results} if args.results else {})
    ):
        print(f"{page} written in {seconds:.1f} s.")


def run_list(args) -> None:
    found = {"models": registry.names(), "warps": registry.names("warp")} | {
        group: choices(group) for group in ("preset", "data", "trainer", "ablation")
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for group, names in found.items():
        print(f"{group + ':':10}{' '.join(names)}")


def _stage(args):
    """The trained network that --run names, or the newest run's, of --model where it is given."""
    from vton.runs.cascade import load_stage
    from vton.runs.folder import RunFolder

    run = (
        RunFolder(args.folder)
        if args.folder
        else RunFolder.newest(_runs(args.overrides), args.model)
    )
    return load_stage(run, *_groups_as_files(args.overrides), whole=not args.folder)


def _runs(overrides: list[str]) -> str:
    return next((o.partition("=")[2] for o in overrides if o.startswith("runs=")), "runs")


def _groups_as_files(overrides: list[str]) -> list[str]:
    """`data=dresscode` beside a run folder means that group's file on top of the run's own
    settings.
    """
    from omegaconf import OmegaConf

    from vton.config import CONFIGS, flatten, nearest

    expanded: list[str] = []
    for override in overrides:
        group, _, name = override.partition("=")
        if group in ("model", "preset", "ablation"):
            raise ConfigError(f"{override}: a trained run has its {group} already; leave it out.")
        if group not in ("data", "trainer"):
            expanded.append(override)
            continue
        if name not in choices(group):
            raise ConfigError(f"{override}: no such {group}. {nearest(name, choices(group))}")
        if group == "data":
            expanded.append('data.root=""')  # the run's own folder holds another data set
        values = flatten(OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml")))
        expanded += [f"{key}={list(v) if isinstance(v, tuple) else v}" for key, v in values.items()]
    return expanded
