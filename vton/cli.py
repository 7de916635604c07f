"""The `vton` command line: its commands and their arguments.

Each command names the function that runs it, which is imported only then: `vton --help` needs no
torch.
"""

from __future__ import annotations

import argparse
import io
import os
import pkgutil
import sys

from vton import __version__
from vton.config import EvalConfig
from vton.errors import UserError
from vton.metrics.protocol import METRICS, PROTOCOLS

OVERRIDES = (
    "settings: model=, preset=, data=, trainer= and ablation= choose configuration files, "
    "train.lr=1e-4 sets one value"
)
INTERRUPTED = "interrupted; the same command resumes training from its last checkpoint."


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit.

    Exit codes: 0 success, 1 a check failed, 2 wrong usage or input, 130 and 143 ended by a signal.
    """
    args = parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be text of this terminal's encoding. stderr escapes them anyway.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = pkgutil.resolve_name(args.run)(args)
    except UserError as error:
        print_error(error)
        code = 2
    except KeyboardInterrupt:
        print_error(INTERRUPTED)
        code = 130
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print_error(INTERRUPTED)  # Lightning turns Ctrl-C into exit code 1
        code = 130
    except BrokenPipeError:  # `vton list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno is None:  # raised by a library, not by the operating system
            raise
        print_error(f"{error}. Check the path, its permissions and the free space on its disk.")
        code = 2
    sys.exit(code or 0)


def print_error(message: str | Exception) -> None:
    print(f"vton: {message}", file=sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of a command; key=value pairs may come before, between or after options."""
    top = parser()
    args, rest = top.parse_known_args(arguments)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(late) < len(rest) or (late and not hasattr(args, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        args.overrides = [*args.overrides, *late]
    return args


def parser() -> argparse.ArgumentParser:
    """One parser for each command, in the order of `vton --help`."""
    top = argparse.ArgumentParser(
        prog="vton", description="Virtual try-on diffusion architectures on equal terms."
    )
    top.add_argument("--version", action="version", version=f"vton {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_train(commands)
    add_eval(commands)
    add_predict(commands)
    add_metrics(commands)
    add_weights(commands)
    add_compare(commands)
    add_ablate(commands)
    add_table(commands)
    add_info(commands)
    add_bench(commands)
    add_verify(commands)
    add_import(commands)
    add_export(commands)
    add_data(commands)
    add_prepare(commands)
    add_tryon(commands)
    add_demo(commands)
    add_notebooks(commands)
    add_list(commands)
    return top


def add_command(commands, name: str, run: str, text: str) -> argparse.ArgumentParser:
    """Add a command, without arguments yet. run: module:function, called with the parsed ones."""
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=f"vton.commands.{run}")
    return command


def add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def add_choice_of_run(command: argparse.ArgumentParser) -> None:
    """See vton.commands.choice."""
    choice = command.add_mutually_exclusive_group()
    choice.add_argument("--run", dest="folder", help="run folder (default: the newest under runs/)")
    choice.add_argument("--model", metavar="NAME", help="take the newest run of this model")


def add_json(command: argparse.ArgumentParser, text: str = "print the rows as JSON") -> None:
    command.add_argument("--json", action="store_true", help=text)


def add_intervals(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--intervals",
        action="store_true",
        help="after each value, its 95 %% interval over resampled pairs",
    )


def add_train(commands) -> None:
    text = "train, or resume the run that the same command started"
    train = add_command(commands, "train", "train:run", text)
    add_overrides(train)
    train.add_argument(
        "--dry-run",
        dest="run",
        action="store_const",
        const="vton.commands.dry_run:run",
        help="print the resolved configuration and stop",
    )


def add_eval(commands) -> None:
    text = "sample a run's held-out pairs, score them, write results.json and pictures"
    evaluate = add_command(commands, "eval", "evaluate:run_eval", text)
    add_overrides(evaluate)
    add_choice_of_run(evaluate)
    evaluate.add_argument(
        "--checkpoint",
        choices=("weights", "last", "best"),
        default="weights",
        help="the weights at the end of training (default), or those of a checkpoint; averaged "
        "weights if training keeps an average",
    )
    add_intervals(evaluate)
    add_json(evaluate)


def add_predict(commands) -> None:
    text = "write a run's pictures for held-out pairs, without scoring"
    predict = add_command(commands, "predict", "evaluate:run_predict", text)
    add_overrides(predict)
    add_choice_of_run(predict)
    predict.add_argument("--order", choices=("paired", "unpaired"), default="unpaired")
    predict.add_argument("--out", required=True, help="folder for the PNGs")


def add_metrics(commands) -> None:
    text = "score two folders of pictures, from anyone's model"
    metrics = add_command(commands, "metrics", "metrics_arguments:run", text)
    usual = EvalConfig()
    usual_metrics = " ".join(name for name in usual.metrics if name in METRICS)

    metrics.add_argument("--pred", required=True, metavar="DIR", help="predictions")
    metrics.add_argument(
        "--target", required=True, metavar="DIR", help="true pictures, with the same names"
    )
    metrics.add_argument(
        "--order",
        choices=("paired", "unpaired"),
        default="paired",
        help="unpaired: only metrics that need no true picture, by default FID and KID",
    )
    metrics.add_argument(
        "--protocol", default=usual.protocol, help=f"{', '.join(PROTOCOLS)} (default: %(default)s)"
    )
    metrics.add_argument("--metrics", nargs="+", metavar="NAME", help=f"default: {usual_metrics}")
    metrics.add_argument(
        "--size", metavar="HxW", help="resize all pictures to this height and width first"
    )
    metrics.add_argument(
        "--mask",
        metavar="DIR",
        help="masks of where the targets show the garment; adds rows for that region",
    )
    metrics.add_argument(
        "--pred-mask",
        metavar="DIR",
        help="masks of where the predictions show the garment, for m_dino and m_clip_i",
    )
    metrics.add_argument(
        "--repaint-mask",
        metavar="DIR",
        help="masks of where the method painted; the target is pasted everywhere else",
    )
    metrics.add_argument(
        "--list",
        dest="listed",
        metavar="FILE",
        help="compare only the targets that are named first on its lines, as in a pair list",
    )
    metrics.add_argument(
        "--garment",
        metavar="DIR",
        help="in-shop pictures, for cami_u, mp_lpips, m_dino, m_clip_i and vton_iqa",
    )
    metrics.add_argument(
        "--garment-mask", metavar="DIR", help="silhouettes of the in-shop pictures, for mp_lpips"
    )
    metrics.add_argument(
        "--prompts", metavar="FILE", help="JSON file with the prompt of each name, for image_reward"
    )
    metrics.add_argument(
        "--against",
        metavar="DIR",
        help="another method's predictions of the same targets, to be scored too; prints the "
        "difference of each metric with its interval",
    )
    metrics.add_argument(
        "--mask-rule", default="not stated", help="how the predictions' agnostic masks were made"
    )
    metrics.add_argument("--name", help="name of the method (default: that of its folder)")
    metrics.add_argument("--data", help="name of the data set (default: that of the target folder)")
    metrics.add_argument(
        "--weights", default="", metavar="DIR", help="folder of pretrained metric networks"
    )
    metrics.add_argument(
        "--batch-size",
        type=int,
        default=usual.batch_size,
        help="pictures that are read at once (default: %(default)s); does not change any score",
    )
    metrics.add_argument(
        "--device", help="device to compute on (default: cuda if available, else cpu)"
    )
    metrics.add_argument(
        "--out", metavar="FILE", help="also write the rows to this file, in the results.json format"
    )
    add_intervals(metrics)
    add_json(metrics)


def add_weights(commands) -> None:
    text = "download and check the pretrained networks of metrics, or those that read photos"
    weights = add_command(commands, "weights", "weights:run", text)
    weights.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="networks to fetch (default: those that every evaluation uses); photo: that of the "
        "pose backend blaze; an unknown name lists all",
    )
    weights.add_argument(
        "--to",
        metavar="DIR",
        help="target folder (default: $VTON_METRIC_WEIGHTS, else a folder in ~/.cache/vton)",
    )


def add_compare(commands) -> None:
    text = "compare architectures and baselines under one budget; the same command resumes"
    add_comparison(add_command(commands, "compare", "compare:run_compare", text))


def add_ablate(commands) -> None:
    text = "compare the rows of model=NAME's published ablation table; the same command resumes"
    add_comparison(add_command(commands, "ablate", "compare:run_ablate", text))


def add_comparison(command: argparse.ArgumentParser) -> None:
    add_overrides(command)
    command.add_argument(
        "--dry-run", action="store_true", help="print the runs, their costs and commands, and stop"
    )
    add_intervals(command)
    add_json(command, "print the rows as JSON; progress goes to stderr")


def add_table(commands) -> None:
    text = "print and write the tables of comparisons again, from their stored rows"
    table = add_command(commands, "table", "table:run", text)
    table.add_argument(
        "folder",
        nargs="?",
        help="folder of a comparison, or of several (default: that of compare.results)",
    )
    add_intervals(table)
    add_json(table)


def add_info(commands) -> None:
    text = (
        "count parameters, FLOPs and memory of each network, without allocating weights; for a "
        "cascade all stages, unless overrides or an ablation describe a single one"
    )
    info = add_command(commands, "info", "info:run", text)
    add_overrides(info)
    info.add_argument(
        "--gpus",
        type=int,
        default=0,
        metavar="N",
        help="also the memory of training on N GPUs, by strategy",
    )
    add_json(info)


def add_bench(commands) -> None:
    text = "time a training step and the drawing of pictures on this machine"
    bench = add_command(commands, "bench", "bench:run", text)
    add_overrides(bench)
    bench.add_argument(
        "--against",
        nargs="+",
        metavar="key=value",
        help="time the same settings with these changes too, in turns, and print the ratio",
    )
    bench.add_argument("--only", choices=("train", "sample"), help="time only one (default: both)")
    bench.add_argument(
        "--warmup", type=int, default=2, help="rounds that are not counted (default: %(default)s)"
    )
    bench.add_argument(
        "--repeats", type=int, default=5, help="rounds that are counted (default: %(default)s)"
    )
    add_json(bench, "print the results as JSON")


def add_verify(commands) -> None:
    text = "compute reference outputs again, and print the error of each tensor"
    verify = add_command(commands, "verify", "verify:run", text)
    verify.add_argument(
        "folder", help="folder with config.json, weights_*, inputs and outputs.safetensors"
    )
    verify.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    verify.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="precision to compute in; half precisions have looser bounds (default: %(default)s)",
    )
    verify.add_argument(
        "--float64",
        action="store_true",
        help="compare every tensor with its float64 value too; always done if a bound is missed",
    )
    add_json(verify, "print the checks as JSON")


def add_import(commands) -> None:
    text = "turn published weights into a run folder that `vton eval` accepts"
    bring = add_command(commands, "import", "exchange:run_import", text)
    bring.add_argument("model", help="name of the architecture")
    bring.add_argument(
        "path", help="its published files: a folder in the hub's layout, or a checkpoint file"
    )
    add_overrides(bring)


def add_export(commands) -> None:
    text = "write a run's weights in the architecture's published format"
    export = add_command(commands, "export", "exchange:run_export", text)
    add_choice_of_run(export)
    export.add_argument("--out", required=True, help="folder or file to write; must not exist")
    export.add_argument(
        "overrides",
        nargs="*",
        metavar="runs=DIR",
        help="folder in which to look for the newest run",
    )


def add_data(commands) -> None:
    text = "check, make, convert, shard or cache a data folder"
    data = add_command(commands, "data", "data:run", text)
    data.add_argument(
        "action",
        choices=("check", "make", "convert", "shard", "cache"),
        help="check: name every bad file; make: render synthetic data; convert: write SRC (a "
        "folder in any known layout, shards, or parquet tables) in the official layout; shard: "
        "write the folder's files as shards; cache: compute latents and embeddings of frozen "
        "encoders, and store them in data.encoded",
    )
    add_overrides(data)
    data.add_argument(
        "--shards", action="store_true", help="convert: write shards instead of files"
    )
    data.add_argument(
        "--out",
        help="convert and shard: the new folder, for use as data.root; check: file for the whole "
        "list (as JSON if its name ends in .json)",
    )
    data.add_argument("--shard-mb", type=float, help="shard: size of a shard in MB (default: 128)")
    add_json(data, "check: print the problems as JSON")


def add_prepare(commands) -> None:
    text = "turn photos of persons and garments into a data folder in an official layout"
    prepare = add_command(commands, "prepare", "prepare:run", text)
    prepare.add_argument(
        "photos",
        nargs="?",
        help="folder with persons/ and garments/; garments/ may have a folder for each category",
    )
    prepare.add_argument("--out", metavar="FOLDER", help="the new folder, for use as data.root")
    prepare.add_argument(
        "--pairs",
        metavar="FILE",
        help="pairs to make, one per line: person, garment and optionally a category (default: "
        "every person and every garment in at least one pair)",
    )
    prepare.add_argument(
        "--captions",
        metavar="FILE",
        help="captions, one per line: a garment's file name, then its caption",
    )
    prepare.add_argument(
        "--category",
        choices=("upper_body", "lower_body", "dresses"),
        default="upper_body",
        help="category of garments that are in no category folder (default: %(default)s)",
    )
    prepare.add_argument(
        "--layout",
        choices=("viton_hd", "dresscode"),
        help="layout of the new folder (default: viton_hd if there are only tops, else dresscode)",
    )
    prepare.add_argument(
        "--size",
        default="1024x768",
        metavar="HxW",
        help="height and width of the pictures (default: %(default)s)",
    )
    prepare.add_argument(
        "--keep-going",
        action="store_true",
        help="leave out photos that cannot be used, and list them at the end",
    )
    add_choice_of_person(prepare)
    prepare.add_argument(
        "--mask-rule", default="safe", help="rule of the agnostic mask (default: %(default)s)"
    )
    add_photo_networks(prepare)
    prepare.add_argument(
        "--train",
        metavar="FILE",
        help="instead of all this: train the small parser on rendered pictures, and write it to "
        "FILE (15 minutes)",
    )


def add_tryon(commands) -> None:
    text = "put the garment of one photo on the person of another, by a trained run"
    tryon = add_command(commands, "tryon", "tryon:run", text)
    tryon.add_argument("person_photo", metavar="PERSON", help="photo of a person")
    tryon.add_argument("garment_photo", metavar="GARMENT", help="photo of a garment")
    add_choice_of_run(tryon)
    tryon.add_argument("--runs", default="runs", help="folder to look for the newest run in")
    tryon.add_argument(
        "--out", default="tryon.png", metavar="FILE", help="picture to write (default: %(default)s)"
    )
    tryon.add_argument(
        "--category",
        choices=("upper_body", "lower_body", "dresses"),
        default="upper_body",
        help="category of the garment (default: %(default)s)",
    )
    tryon.add_argument(
        "--mask", metavar="FILE", help="where to repaint, in white, instead of the detected region"
    )
    tryon.add_argument("--caption", help="a few words on the garment (default: its colour)")
    tryon.add_argument(
        "--seed", type=int, default=0, help="of the first picture (default: %(default)s)"
    )
    tryon.add_argument("--steps", type=int, help="sampling steps (default: the run's)")
    tryon.add_argument("--guidance", type=float, help="guidance scale (default: the run's)")
    tryon.add_argument(
        "--count",
        type=int,
        default=1,
        help="number of pictures, with consecutive seeds (default: %(default)s)",
    )
    tryon.add_argument(
        "--device", help="device to compute on (default: cuda if available, else cpu)"
    )
    add_choice_of_person(tryon)
    add_photo_networks(tryon)


def add_demo(commands) -> None:
    text = "serve a page for trying garments on in the browser"
    demo = add_command(commands, "demo", "demo:run", text)
    add_choice_of_run(demo)
    demo.add_argument("--runs", default="runs", help="folder to look for the newest run in")
    demo.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, which only this machine can reach)",
    )
    demo.add_argument(
        "--port", type=int, default=7860, help="port to listen on; 0: any (default: %(default)s)"
    )
    demo.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="host name under which other machines may open the page, besides the address",
    )
    demo.add_argument(
        "--device", help="device to compute on (default: cuda if available, else cpu)"
    )
    add_photo_networks(demo)


def add_choice_of_person(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--person",
        choices=("only", "largest"),
        default="only",
        help="largest: take the largest of several persons in a photo; only: refuse such photos "
        "(default: %(default)s)",
    )


def add_photo_networks(command: argparse.ArgumentParser) -> None:
    """The networks that read photographs. See vton.photos.backends."""
    networks = command.add_argument_group("networks", "NAME, or NAME:WHERE for a file or hub id")
    networks.add_argument(
        "--parser", default="small", help="small, fashn or segformer (default: %(default)s)"
    )
    networks.add_argument(
        "--pose", default="small", help="small, blaze or vitpose (default: %(default)s)"
    )
    networks.add_argument(
        "--densepose", default="none", help="none, small or torchscript (default: %(default)s)"
    )
    networks.add_argument(
        "--garment-mask", default="auto", help="auto or network (default: %(default)s)"
    )


def add_notebooks(commands) -> None:
    text = "run notebooks from start to end, and write each as an HTML page"
    pages = add_command(commands, "notebooks", "notebooks:run", text)
    pages.add_argument("notebooks", nargs="*", help="files to run (default: all of notebooks/)")
    pages.add_argument(
        "--results",
        help="folder of results (default: $VTON_RESULTS, else the repository's results/)",
    )
    pages.add_argument(
        "--out", default="build/notebooks", help="folder for the pages (default: %(default)s)"
    )


def add_list(commands) -> None:
    text = "list architectures, presets, data sets, trainers and ablations"
    add_json(add_command(commands, "list", "list:run", text), "print the names as JSON")
