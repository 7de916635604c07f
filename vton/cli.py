"""The `vton` command: parsing only. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys

from vton import __version__, registry
from vton.config import ConfigError, choices
from vton.errors import UserError

OVERRIDES = "key=value pairs: model=, preset=, data=, trainer=, ablation= choose files, train.lr=1e-4 sets one value"


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit codes: 0 good, 1 a check failed, 2 wrong usage or input."""
    args = parse(arguments)
    try:
        code = args.run(args)
    except UserError as error:
        print(f"vton: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("vton: interrupted; the same command continues from the last checkpoint.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `vton list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
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
    top = argparse.ArgumentParser(prog="vton", description="Virtual try-on diffusion architectures on equal terms.")
    top.add_argument("--version", action="version", version=f"vton {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str, overrides: bool = True, **kwargs) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **kwargs)
        if overrides:
            sub.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
        sub.set_defaults(run=run)
        return sub

    train = command("train", run_train, "train, or resume the run that the same command started")
    train.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    evaluate = command("eval", run_eval, "sample a run's held-out pairs, score them, write results.json and pictures")
    evaluate.add_argument("--run", dest="folder", help="run folder; default: the newest under runs/")
    evaluate.add_argument("--checkpoint", choices=("weights", "last", "best"), default="weights",
                          help="averaged weights at the end (default), or a checkpoint")  # fmt: skip
    evaluate.add_argument("--json", action="store_true", help="print the rows as JSON")
    predict = command("predict", run_predict, "write a run's pictures for held-out pairs, without scoring")
    predict.add_argument("--run", dest="folder", help="run folder; default: the newest under runs/")
    predict.add_argument("--order", choices=("paired", "unpaired"), default="unpaired")
    predict.add_argument("--out", required=True, help="folder for the PNGs")
    info = command("info", run_info, "parameters, FLOPs and memory of each network, without allocating weights")
    info.add_argument("--gpus", type=int, default=0, help="also the memory of training on so many, by strategy")
    info.add_argument("--json", action="store_true")
    verify = command(
        "verify", run_verify, "reference inputs and weights through our code: errors per tensor", overrides=False
    )
    verify.add_argument("folder", help="config.json, weights_*, inputs and outputs.safetensors")
    verify.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    verify.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32",
                        help="half precisions are held to looser bounds")  # fmt: skip
    verify.add_argument("--json", action="store_true")
    bring = command(
        "import", run_import, "published weights into a run folder that `vton eval` accepts", overrides=False
    )
    bring.add_argument("model", help="architecture")
    bring.add_argument("path", help="its published files: a folder in the hub's layout, or a checkpoint file")
    bring.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    export = command("export", run_export, "a run's weights in the architecture's published format", overrides=False)
    export.add_argument("--run", dest="folder", help="run folder; default: the newest under runs/")
    export.add_argument("--out", required=True, help="folder or file to write; must not exist")
    data = command("data", run_data, "check or make a data folder", overrides=False)
    data.add_argument(
        "action", choices=("check", "make"), help="check: name every bad file; make: render synthetic data"
    )
    data.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    data.add_argument("--json", action="store_true")
    pages = command(
        "notebooks", run_notebooks, "run notebooks from start to end and write each as a page", overrides=False
    )
    pages.add_argument("notebooks", nargs="*", help="default: all of notebooks/")
    pages.add_argument("--results", help="folder of results; default: $VTON_RESULTS, or the repository's results/")
    pages.add_argument("--out", default="build/notebooks", help="folder for the pages (default: %(default)s)")
    names = command("list", run_list, "architectures, presets, data sets, trainers and ablations", overrides=False)
    names.add_argument("--json", action="store_true")
    return top


def run_train(args) -> None:
    from vton.config import load, to_yaml

    config = load(*args.overrides)
    if args.dry_run:
        from vton.training.run import environment

        print(to_yaml(config) + json.dumps(environment(), indent=2))
        return
    from vton.training.train import train

    train(config)


def run_eval(args) -> None:
    from vton.evaluation import evaluate

    evaluate(_chain(args), checkpoint=args.checkpoint, as_json=args.json)


def run_predict(args) -> None:
    from pathlib import Path

    from vton.evaluation import predict

    predict(_chain(args), args.order, Path(args.out))


def run_info(args) -> None:
    from vton.config import load
    from vton.info import describe, print_table

    rows = describe(load(*args.overrides), args.gpus)
    print(json.dumps(rows, indent=2)) if args.json else print_table(rows)


def run_verify(args) -> int:
    from vton.verify import report, verify

    checks = verify(args.folder, args.device, args.dtype)
    return int(not report(checks, args.folder, args.device, args.dtype, args.json))


def run_import(args) -> None:
    from pathlib import Path

    from vton.exchange import import_run

    run = import_run(args.model, Path(args.path), *args.overrides)
    print(f"{run.path} is ready. Evaluate it: make eval RUN={run.path} DATA=viton_hd")


def run_export(args) -> None:
    from pathlib import Path

    from vton.exchange import export_run
    from vton.training.run import RunFolder

    run = RunFolder(args.folder) if args.folder else RunFolder.newest("runs")
    export_run(run, Path(args.out))
    print(f"{run.path} exported to {args.out}")


def run_data(args) -> int:
    from vton.config import load

    config = load(*args.overrides)
    if args.action == "make":
        from vton.training.train import data_module

        module = data_module(config)
        module.prepare_data()
        print(module.root)
        return 0
    from vton.data.check import check_folder, format_problems

    problems = check_folder(config.data, workers=config.data.workers)
    if args.json:
        from dataclasses import asdict

        print(json.dumps([asdict(problem) for problem in problems], indent=2, default=str))
    else:
        print(format_problems(problems))
    return int(any(problem.severity == "required" for problem in problems))


def run_notebooks(args) -> None:
    from pathlib import Path

    from vton.report.notebooks import NOTEBOOKS, write_pages

    if args.results:
        os.environ["VTON_RESULTS"] = args.results
    for page, seconds in write_pages(args.notebooks or sorted(NOTEBOOKS.glob("*.ipynb")), Path(args.out)):
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


def _chain(args) -> list:
    """What --run names, or the newest run with the whole cascade that it belongs to."""
    from vton.cascade import chain_of
    from vton.training.run import RunFolder

    run = RunFolder(args.folder) if args.folder else RunFolder.newest(_runs(args.overrides))
    return chain_of(run, *_groups_as_files(args.overrides), whole=not args.folder)


def _runs(overrides: list[str]) -> str:
    return next((o.partition("=")[2] for o in overrides if o.startswith("runs=")), "runs")


def _groups_as_files(overrides: list[str]) -> list[str]:
    """`data=dresscode` beside a run folder means that group's file on top of the run's own settings."""
    from omegaconf import OmegaConf

    from vton.config import CONFIGS, nearest
    from vton.training.run import flatten

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
