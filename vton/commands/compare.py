"""`vton compare` and `vton ablate`: several methods under one budget, each several times, and one
table of them.

Every member is an ordinary run, `<runs>/<comparison>/<method>-seed<n>/`, trained and scored by the
ordinary commands in processes of their own. There is no state but the run folders: a member is done
when its results.json is there, which is written last, and one that was killed goes on from its last
checkpoint. Baselines are scored beside the first member, for no architecture changes them. The same
command, started several times, shares the members out.

What is equal and what is the method's own:

- equal (EQUAL): the budget; `data`, `eval` and `sampler`; batch size, precision, and the shape of
  the learning rate over the run. They are those of the preset without any model's own changes, then
  `compare.equal`, then the command line. `objective.timestep_power` is among them: the number of
  sampling steps decides what is worth training.
- the method's: networks, codec, noise schedule, prediction, losses, dropout of conditions, learning
  rate, optimizer; and (OWN) what follows from these: DensePose pictures as input, and how the
  solver treats the schedule's end and the range of clean samples.
- a cascade is compared by its first stage, at everyone's resolution.
- budget=steps: optimizer steps. budget=flops: forward and backward of all steps, see
  vton.cost.counting.step_flops.
"""

from __future__ import annotations

import fcntl
import functools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vton import registry
from vton.config import (
    GROUPS,
    ConfigError,
    ExperimentConfig,
    ablation,
    as_override,
    flatten,
    load,
    load_file,
    load_shared,
)
from vton.errors import UserError
from vton.metrics.results import Row, read_results, write_results
from vton.report.summary import ROWS, write_tables
from vton.report.tables import is_baseline
from vton.runs.folder import UNSEEN, RunFolder, differences

EQUAL = (
    "data",
    "eval",
    "sampler",
    "train.batch_size",
    "train.accumulate",
    "train.schedule",
    "train.warmup_steps",
    "train.precision",
    "objective.timestep_power",
)
OWN = (
    "data.densepose",
    "sampler.zero_terminal_snr",
    "sampler.spacing",
    "sampler.clip_sample",
    "sampler.dynamic_threshold",
)
SET_HERE = {
    "seed": "compare.seeds",
    "train.steps": "compare.steps",
    "ablation": "vton ablate model=...",
    "eval.baselines": "the first member has them",
    "model.stage": "the first stage of a cascade",
}

Execute = Callable[[Sequence[str]], int]  # arguments of `vton` -> its exit code


class ComparisonError(UserError):
    """A comparison that cannot start or go on; the message says which member stands in its way."""


@dataclass(frozen=True)
class Member:
    """One run of one method."""

    method: str  # its name in the table
    seed: int
    overrides: tuple[str, ...]  # of its `vton train`
    changes: tuple[str, ...]  # of an ablation row

    @property
    def title(self) -> str:
        return f"{self.method}, seed {self.seed}"

    @functools.cached_property
    def config(self) -> ExperimentConfig:
        return load(*self.overrides)

    @functools.cached_property
    def run(self) -> RunFolder:
        return RunFolder.of(self.config)

    @property
    def done(self) -> bool:
        """Whether every row that this member owes the table is there."""
        if (
            self.run.trained().get("steps") != self.config.train.steps
            or not self.run.results.exists()
        ):
            return False
        return not self.config.eval.baselines or any(
            is_baseline(row) for row in read_results(self.run.results)
        )

    def commands(self) -> list[list[str]]:
        """What is left to do, as arguments of `vton`; each continues where it was interrupted."""
        return [["train", *self.overrides], ["eval", "--run", str(self.run.path)]]


@dataclass(frozen=True)
class Comparison:
    """Members in the order they run: every method with the first seed, then with the next."""

    name: str
    ablated: str  # the architecture of an ablation, "" for a comparison of architectures
    shared: ExperimentConfig
    members: tuple[Member, ...]
    costs: dict[str, dict[str, int]]  # by method, see vton.cost.counting.cost

    @property
    def place(self) -> Path:
        """Where the members' run folders lie."""
        return Path(self.shared.runs) / self.name

    @property
    def folder(self) -> Path:
        """Where rows, tables and pictures go."""
        return Path(self.shared.compare.results) / self.name

    @property
    def budget(self) -> dict:
        choice = self.shared.compare
        amount = choice.tflop if choice.budget == "flops" else steps_of(self.shared)
        return {"kind": choice.budget, "amount": amount}


def compare(*overrides: str) -> Comparison:
    """All architectures, or those of compare.models. Raises ConfigError."""
    refuse(overrides, SET_HERE | {"model": "compare.models"})
    models = load_shared(*overrides).compare.models or registry.names()
    return plan("", {model: (f"model={model}",) for model in models}, overrides)


def ablate(*overrides: str) -> Comparison:
    """The rows of configs/ablation/<model>.yaml. Raises ConfigError, also for any row that does not
    fit the model.
    """
    refuse(overrides, SET_HERE | {"compare.models": "model"})
    model = dict(override.partition("=")[::2] for override in overrides).get(
        "model", GROUPS["model"]
    )
    registry.config_class(model)
    overrides = tuple(override for override in overrides if not override.startswith("model="))
    rows = {row: (f"model={model}", f"ablation={model}/{row}") for row in ablation(model).rows}
    return plan(model, rows, overrides)


def refuse(overrides: Sequence[str], instead: dict[str, str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if key in instead:
            raise ConfigError(f"{override}: a comparison decides this itself: {instead[key]}.")


def plan(ablated: str, methods: dict[str, tuple[str, ...]], overrides: Sequence[str]) -> Comparison:
    """methods: the table's name of each -> what chooses it; overrides: of all."""
    from vton.cost.counting import cost

    equal = load_shared(*overrides).compare.equal
    shared = load_shared(*equal, *overrides)
    layout = shared.data.synthetic.layout if shared.data.name == "synthetic" else "viton_hd"
    data = shared.data.name + ("_dresscode" if layout == "dresscode" else "")
    name = shared.name or f"{f'ablate-{ablated}' if ablated else 'compare'}-{data}-{shared.preset}"
    own = [
        o
        for o in overrides
        if o.partition("=")[0] not in ("name", "runs") and not o.startswith("compare.")
    ]
    common = (*equal, *own)
    place = f"runs={Path(shared.runs) / name}"

    costs, chosen = {}, {}
    for method, choice in methods.items():
        fixed = held_equal(shared, choice, common)
        costs[method] = cost(load(*choice, *common, *fixed))
        steps = budget_steps(shared, costs[method], method)
        chosen[method] = (*choice, *common, *fixed, as_override("train.steps", steps))
    members = []
    for seed in shared.compare.seeds:
        for method, choice in methods.items():
            first = as_override("eval.baselines", not members)
            run = (f"seed={seed}", place, f"name={method}-seed{seed}")
            members.append(
                Member(
                    method, seed, (*chosen[method], first, *run), tuple(ablation_changes(choice))
                )
            )
    return Comparison(name, ablated, shared, tuple(members), costs)


def held_equal(
    shared: ExperimentConfig, choice: Sequence[str], common: Sequence[str]
) -> tuple[str, ...]:
    """The overrides that bring a method to the shared settings, leaving out what it already has and
    what its ablation row is about.
    """
    found, changed = (
        flatten(asdict(load(*choice, *common))),
        {c.partition("=")[0] for c in ablation_changes(choice)},
    )
    return tuple(
        as_override(key, value)
        for key, value in flatten(asdict(shared)).items()
        if any(key == part or key.startswith(f"{part}.") for part in EQUAL)
        and key not in changed
        and key not in OWN
        and found[key] != value
    )


def ablation_changes(choice: Sequence[str]) -> list[str]:
    """The settings of the row among the overrides that choose a method."""
    for override in choice:
        key, _, value = override.partition("=")
        if key == "ablation":
            name, _, row = value.partition("/")
            return ablation(name).rows[row]
    return []


def steps_of(shared: ExperimentConfig) -> int:
    return shared.compare.steps or shared.train.steps


def budget_steps(shared: ExperimentConfig, cost: dict[str, int], method: str) -> int:
    """Optimizer steps of a method. Raises ConfigError for a budget of less than a step."""
    if shared.compare.budget == "steps":
        return steps_of(shared)
    steps = round(shared.compare.tflop * 1e12 / cost["step_flops"])
    if steps < 1:
        raise ConfigError(
            f"compare.tflop={shared.compare.tflop:g} is less than a step of {method}."
        )
    return steps


# ---- carrying it out ----


def carry_out(comparison: Comparison, execute: Execute | None = None) -> list[str]:
    """Run what is not done yet, and draw table and pictures whenever a member is done; returns
    members that failed.

    Members that another process works on are left for the end and then waited for. execute: runs
    `vton` with these arguments and returns its exit code; by default in a process of its own.
    Raises ComparisonError when a run folder belongs to another experiment.
    """
    for member in comparison.members:
        require_same_experiment(member)
    failed, busy = [], []
    draw(comparison)
    for wait in (False, True):
        for member in busy if wait else comparison.members:
            with claimed(member, wait) as lock:
                if lock is None:
                    busy.append(member)
                elif not member.done:
                    say(
                        f"[{comparison.members.index(member) + 1}/{len(comparison.members)}] {member.title}"
                    )
                    run = (
                        functools.partial(in_own_process, lock=lock) if execute is None else execute
                    )
                    failed += (
                        [member.title]
                        if any(run(arguments) for arguments in member.commands())
                        else []
                    )
                    draw(comparison)
        if busy and not wait:
            say(f"In work elsewhere: {'; '.join(member.title for member in busy)}. Waiting.")
    return failed


def require_same_experiment(member: Member) -> None:
    """Raises ComparisonError where the member's folder holds a run of other settings, finished or
    not.
    """
    run = member.run
    if not run.config.exists():
        return
    differing = differences(load_file(run.config), member.config, free=(*UNSEEN, "eval.baselines"))
    if differing:
        raise ComparisonError(
            f"{run.path} was run with other settings ({'; '.join(differing[:5])}). Give this comparison a name "
            "(name=...), or remove the folder."
        )


@contextmanager
def claimed(member: Member, wait: bool = False) -> Iterator[int | None]:
    """Hold the member's lock, given as its descriptor, or None where somebody else does and we
    don't wait.

    Processes that inherit the descriptor hold the lock beyond our own death.
    """
    with locked(member.run.path / ".lock", wait) as lock:
        yield lock


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[int | None]:
    """Hold an exclusive lock on a file, which need not exist; None where it is taken and we don't
    wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def in_own_process(arguments: Sequence[str], lock: int) -> int:
    """Run `vton`, so that memory is given back and a crash takes nothing along. What it prints goes
    to stderr.
    """
    say(f"$ {shlex.join(['vton', *arguments])}")
    command = [sys.executable, "-m", "vton", *arguments]
    return subprocess.run(
        command, stdout=sys.stderr.fileno(), pass_fds=[lock], check=False
    ).returncode


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- what comes of it ----


def draw(comparison: Comparison) -> None:
    """Rows, tables and the picture grid of the members that are done."""
    with locked(comparison.place / ".table.lock"):
        done = [member for member in comparison.members if member.done]
        if not done:
            return
        write_results(
            comparison.folder / ROWS,
            [row for member in done for row in rows_of(member, comparison)],
        )
        write_tables(comparison.folder)
        sampled = [member for member in done if member.seed == comparison.shared.compare.seeds[0]]
        if sampled:
            save_grid(comparison, sampled)


def rows_of(member: Member, comparison: Comparison) -> list[Row]:
    """The member's rows under its method's name, with what the comparison knows; baselines learned
    nothing from it.
    """
    known = {"name": comparison.name, "ablation": comparison.ablated, "budget": comparison.budget}
    known["changes"] = list(member.changes)
    rows = read_results(member.run.results)
    for row in rows:
        if is_baseline(row):
            row.provenance.pop("training", None)
        else:
            row.model = row.model.replace(member.config.model.label, member.method, 1)
            row.provenance |= {"comparison": known, "cost": comparison.costs[member.method]}
    return rows if member.config.eval.baselines else [row for row in rows if not is_baseline(row)]


def save_grid(comparison: Comparison, members: Sequence[Member]) -> None:
    """grid.jpg: some held-out pairs, unpaired where they were evaluated, and each method's picture
    of them.
    """
    from PIL import Image

    from vton.commands.sampling import prediction_folder
    from vton.data.transforms import normalise
    from vton.metrics.pictures import PictureFolder
    from vton.report.grid import try_on_grid
    from vton.runs.assemble import data_module

    config = members[0].config
    order = "unpaired" if "unpaired" in config.eval.orders else "paired"
    data = data_module(config)
    data.prepare_data()
    batch = data.val_batch(order, config.eval.pictures)
    outputs = []
    for member in members:
        own = member.config
        folder = PictureFolder(prediction_folder(member.run, own.model.label, order))
        outputs.append(normalise(folder.read(batch.pair_id)))
    grid = try_on_grid(batch, *outputs, titles=[member.method for member in members])
    Image.fromarray(grid).save(comparison.folder / "grid.jpg", quality=90)


def described(comparison: Comparison) -> str:
    """The plan as JSON: what every member costs and the commands that make it up."""
    return json.dumps(
        {
            "name": comparison.name,
            "results": str(comparison.folder),
            "budget": comparison.budget,
            "members": [
                {
                    "method": member.method,
                    "seed": member.seed,
                    "steps": member.config.train.steps,
                    "cost": comparison.costs[member.method],
                    "done": member.done,
                    "commands": [
                        shlex.join(["vton", *arguments]) for arguments in member.commands()
                    ],
                }
                for member in comparison.members
            ],
        },
        indent=1,
    )
