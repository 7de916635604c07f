"""README, docs/ and other pages: links lead somewhere, named files exist, commands work.

Commands stand in fenced blocks of language bash. Each is parsed, and its settings are loaded. Those
that need no more than rendered data are also run, in small. A block below the comment
`<!-- not run: reason -->` is parsed only, and so is a command with a placeholder such as DIR.
"""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.commands.test_compare import COST
from tests.running import ROOT, SMALL, command, make_dry
from vton import cli
from vton.config import load
from vton.metrics.results import Row, read_results
from vton.report.summary import over_seeds

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "data/README.md",
    "notebooks/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")),
]
MODEL_PAGES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("vton/**/README.md"))
RUN_PAGES = ["README.md", *(page for page in PAGES if page.startswith("docs/"))]

FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
NAMED = re.compile(r"`((?:vton|configs|tests|docs|notebooks|results|scripts)/[\w./-]+)`")
INLINE = re.compile(r"`(?:\.venv/bin/)?(make|vton) ([a-z][\w-]*)")
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b")

# What is added to a command to make it small.
SMALL_DATA = [setting for setting in SMALL if setting.startswith("data.")]
SMALLER = {
    "train": [*SMALL, "train.steps=2", "eval.metrics=[ssim,psnr]", "eval.pictures=2"],
    "compare": ["--dry-run", "compare.models=[gardiff]"],
    "data": SMALL_DATA,
    "eval": [],
    "predict": [],
    "list": [],
    "table": [],
    "tryon": ["--steps", "2"],
}
# Commands that other tests run.
TESTED = {
    "info": "tests/cost",
    "bench": "tests/commands/test_bench.py",
    "ablate": "tests/commands/test_compare.py",
    "metrics": "tests/commands/test_metrics.py",
    "export": "tests/commands/test_exchange.py",
    "verify": "tests/commands/test_verify.py",
    "notebooks": "tests/report/test_notebooks.py",
    "prepare": "tests/photos/test_prepare.py",
    "demo": "tests/demo/test_server.py",
}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    reason: str | None  # why its commands are not run


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        content = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        yield Block(match["language"], content, line, match["reason"])


def prose(page: str) -> str:
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command as a shell splits them, variables filled in."""
    variables: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        if words:
            yield words


def vton_arguments(words: list[str]) -> list[str] | None:
    """What `vton` gets in the end; None where the command is no `vton` command."""
    if words[0] == "make":
        words = shlex.split(make_dry(*words[1:]), comments=True)
    programs = [Path(word).name for word in words]
    if "vton" not in programs:
        return None
    last = len(programs) - 1 - programs[::-1].index("vton")  # torchrun names a rendezvous so, too
    return words[last + 1 :]


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    anchors = set()
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", title.lower())
        anchors.add(words.replace(" ", "-"))
    return anchors


@pytest.mark.parametrize("page", [*PAGES, *MODEL_PAGES, "tests/vectors/README.md"])
def test_links_lead_to_files_and_headings(page):
    for link in LINK.finditer(prose(page)):
        target, _, anchor = link["target"].partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page}: {link[0]}"
        assert not anchor or anchor in headings(file), f"{page}: {link[0]}"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    for name in NAMED.findall(prose(page)):
        assert "mine" in name or (ROOT / name).exists(), f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_and_can_be_read(page):
    for block in blocks(page):
        assert block.language in {"bash", "python", "text", "yaml"}, f"{page}:{block.line}"
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "yaml":
            yaml.safe_load(block.text)


@pytest.mark.parametrize("page", [*PAGES, *MODEL_PAGES])
def test_commands_in_the_text_exist(page, capsys):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, name in INLINE.findall(prose(page)):
        if program == "make":
            assert name in targets, f"{page}: make {name}"
        else:
            assert command(name, "--help") == 0, f"{page}: vton {name}"


@pytest.mark.parametrize("page", [*PAGES, *MODEL_PAGES])
def test_every_command_is_parsed_and_its_settings_are_loaded(page):
    for block in blocks(page):
        if block.language != "bash":
            continue
        for words in commands(block):
            arguments = vton_arguments(words)
            if arguments is None:
                assert block.reason, f"{page}:{block.line}: {shlex.join(words)} is not run"
                continue
            args = cli.parse([word.replace("=mine", "=gardiff") for word in arguments])
            model = [f"model={args.model}"] if args.command == "import" else []
            overrides = getattr(args, "overrides", [])
            if getattr(args, "action", "") == "convert":  # whose source is among them
                overrides = [word for word in overrides if "=" in word]
            load(*model, *overrides)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder as somebody has it who typed the first command of the README, and its results."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(ROOT / "results", folder / "results")
    shutil.copytree(ROOT / "data/examples", folder / "data/examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("train", "model=gardiff", *SMALLER["train"]) == 0
        yield folder


@pytest.mark.parametrize("page", RUN_PAGES)
def test_commands_run(page, workspace, monkeypatch):
    monkeypatch.setattr("vton.cost.counting.cost", lambda config: COST)  # counted in tests/cost
    for block in blocks(page):
        if block.language != "bash" or block.reason:
            continue
        for words in commands(block):
            name, *rest = vton_arguments(words)
            if name in TESTED:
                assert (ROOT / TESTED[name]).exists()
            elif not PLACEHOLDER.search(" ".join(rest)):
                assert command(name, *rest, *SMALLER[name]) == 0, shlex.join(words)


def test_pages_build_without_a_warning(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {page.stem for page in (tmp_path / "build" / "docs").glob("*.html")} - {"404"}
    assert built == {Path(page).stem for page in PAGES if page.startswith("docs/")}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 1600


def garment_rows(*folders: str) -> dict[tuple[str, str], Row]:
    """By model and order; seeds are averaged."""
    rows = {}
    for folder in folders:
        for row in over_seeds(read_results(ROOT / "results" / folder / "results.json")):
            if (row.region, row.category) == ("garment", "all"):
                rows.setdefault((row.model, row.order), row)
    return rows


def head(page: str, heading: str) -> list[str]:
    """The titles of the page's first table whose head begins so, without that of the names."""
    line = re.search(rf"^{re.escape(heading)}.*$", prose(page), re.MULTILINE)[0]
    return [title.strip() for title in line.strip("|").split("|")[1:]]


def table(page: str, heading: str) -> dict[str, list[str]]:
    """The cells of that table by the name of their line."""
    rows = prose(page).partition(f"\n{heading}")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name: values for name, *values in cells}


def printed_values(page: str, heading: str) -> Iterator[tuple[str, str, str, str]]:
    """(model, order, metric, cell) of the page's first table whose head begins so.

    A column is "METRIC order"; "unpaired" alone belongs to the metric before it.
    """
    columns = []
    metric = ""
    for title in head(page, heading):
        words = title.replace("↑", "").replace("↓", "").lower().split()
        if words and words[-1] in ("paired", "unpaired"):
            metric = words[0] if len(words) > 1 else metric
            columns.append((words[-1], metric))
    for model, cells in table(page, heading).items():
        # The comparison has columns of costs behind those of scores.
        for (order, metric), cell in zip(columns, cells, strict=False):
            yield model, order, metric, cell


DEFAULT_RUNS = [
    f"{model}-synthetic-tiny"
    for model in (
        "leffa",
        "gardiff",
        "stableviton",
        "ladi_vton",
        "idm_vton",
        "catvton",
        "imagdressing",
        "tryondiffusion",
    )
]


@pytest.mark.parametrize(
    ("page", "heading", "folders", "count"),
    [
        ("README.md", "| | PSNR", DEFAULT_RUNS, 9 * 6),
        ("docs/evaluation.md", "| | PSNR", DEFAULT_RUNS, 11 * 7),
        ("docs/comparing.md", "| 1,500 steps", ["compare-synthetic-tiny"], 11 * 7),
        ("docs/comparing.md", "| 64 pairs", ["compare-synthetic-tiny"], 7 * 2),
        ("docs/comparing.md", "| garment PSNR", ["compare-synthetic_dresscode-tiny"], 7 * 2),
    ],
)
def test_tables_show_the_numbers_of_results(page, heading, folders, count):
    rows = garment_rows(*folders)
    values = list(printed_values(page, heading))
    assert len(values) == count
    for model, order, metric, cell in values:
        row = rows[model, order]
        expected = row.metrics[metric or "psnr"]
        number, _, spread = cell.partition(" ± ")
        digits = len(number.partition(".")[2])
        assert number == f"{expected:.{digits}f}", (page, model, order, metric)
        if spread:
            assert spread == f"{row.provenance['spread'][metric]:.{digits}f}"


GIB = 2**30
MEMORY_PARTS = {"moments": "optimizer"}  # in the table: what `vton info` calls it


@pytest.mark.slow
def test_tables_of_memory_show_what_info_counts(capsys):
    def info(*arguments: str) -> dict:
        assert command("info", *arguments, "--json") == 0
        return json.loads(capsys.readouterr().out)

    sampling = table("docs/gpus.md", "| | size | weights")
    training = table("docs/gpus.md", "| | ddp")
    assert len(sampling) == 4 and len(training) == 9
    for name, cells in sampling.items():
        model = f"model={name.partition(',')[0]}"
        memory = info(model, "preset=paper", "eval.precision=bf16")["memory"]
        step, decode = memory["step"], memory["decode"]
        parts = [step["weights"], step["activations"], step["peak"], decode["peak"], memory["peak"]]
        assert [float(cell.removesuffix(" GiB")) for cell in cells[1:]] == [
            pytest.approx(part / GIB, abs=0.005) for part in parts
        ], name

    counted = info("model=idm_vton", "preset=paper", "trainer=fsdp", "--gpus", "8")["training"]
    for name, cells in training.items():
        part, _, checkpointed = name.partition(", ")
        strategies = counted["checkpointed" if checkpointed else "plain"]["strategies"]
        for strategy, cell in zip(("ddp", "deepspeed", "fsdp"), cells, strict=True):
            size = strategies[strategy][MEMORY_PARTS.get(part, part)]
            assert float(cell) == pytest.approx(size / GIB, abs=0.005), (name, strategy)
