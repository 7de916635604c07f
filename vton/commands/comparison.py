"""The plan of a comparison: which runs it consists of, and what is held equal between them.

A comparison is a set of ordinary runs, `<runs>/<comparison>/<method>-seed<n>/`, one for each method
and training seed. A method is an architecture (`vton compare`) or a row of an architecture's
ablation table (`vton ablate`). Baselines are scored beside the first run only, since no
architecture changes them.

- Held equal (HELD_EQUAL): the budget; `data`, `eval` and `sampler`; batch size, precision, and the
  shape of the learning rate over the run. Their values are those of the preset without any model's
  changes, then `compare.equal`, then the command line. `objective.timestep_power` is among them,
  because the number of sampling steps decides what is worth training.
- The method's own: networks, codec, noise schedule, prediction, losses, dropout of conditions;
  optimizer and learning rate, unless `compare.equal` sets them, as the tiny preset's does; and
  (METHODS_OWN) what follows from these: DensePose pictures as input, and how the solver treats the
  schedule's end and the range of clean samples.
- For cascades, only the first stage is compared, at everyone's resolution.
- compare.budget=steps counts optimizer steps; flops counts forward and backward passes of all
  steps, see vton.cost.counting.step_flops.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Sequence
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
    load_shared,
)
from vton.cost import counting
from vton.metrics.results import read_results
from vton.report.tables import is_baseline
from vton.runs.folder import RunFolder, is_part_of

HELD_EQUAL = (
    "data",
    "eval",
    "sampler",
    "train.batch_size",
    "train.accumulate",
    "train.global_batch",
    "train.schedule",
    "train.warmup_steps",
    "train.precision",
    "objective.timestep_power",
)
METHODS_OWN = (
    "data.densepose",
    "data.densepose_as",
    "sampler.zero_terminal_snr",
    "sampler.spacing",
    "sampler.clip_sample",
    "sampler.dynamic_threshold",
)
# Keys that a comparison sets for its runs, with what to set instead.
DECIDED_HERE = {
    "seed": "compare.seeds",
    "train.steps": "compare.steps",
    "ablation": "vton ablate model=...",
    "eval.baselines": "the first run has them",
    "model.stage": "the first stage of a cascade",
}


@dataclass(frozen=True)
class ComparisonRun:
    """One training and evaluation of one method."""

    method: str  # its name in the table
    seed: int
    overrides: tuple[str, ...]  # of its `vton train`
    changes: tuple[str, ...]  # settings of its ablation row, as overrides

    @property
    def title(self) -> str:
        return f"{self.method}, seed {self.seed}"

    @functools.cached_property
    def config(self) -> ExperimentConfig:
        return load(*self.overrides)

    @functools.cached_property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.config)

    @property
    def done(self) -> bool:
        """Whether every row that the table needs from this run is there.

        Rows of an earlier checkpoint, which anyone may have evaluated while the run trained, are
        none of them.
        """
        steps = self.config.train.steps
        if self.folder.trained().get("steps") != steps or not self.folder.results.exists():
            return False
        rows = read_results(self.folder.results)
        for row in rows:
            training = row.provenance.get("training") or {}
            if training.get("steps") != steps:
                return False
        return not self.config.eval.baselines or any(is_baseline(row) for row in rows)

    def commands(self) -> list[list[str]]:
        """What makes up the run, as arguments of `vton`; each resumes where it was interrupted.

        A trainer that was asked for draws the pictures too.
        """
        asked = [word for word in self.overrides if word.startswith(("trainer=", "trainer."))]
        return [["train", *self.overrides], ["eval", "--run", str(self.folder.path), *asked]]


@dataclass(frozen=True)
class Comparison:
    """Runs in their order: every method with the first seed, then with the next."""

    name: str
    ablated: str  # the architecture of an ablation, "" for a comparison of architectures
    shared: ExperimentConfig  # what is held equal, without a model's own settings
    runs: tuple[ComparisonRun, ...]
    costs: dict[str, dict[str, int]]  # by method, see vton.cost.counting.cost

    @property
    def runs_folder(self) -> Path:
        return Path(self.shared.runs) / self.name

    @property
    def results_folder(self) -> Path:
        """Where rows, tables and pictures go."""
        return Path(self.shared.compare.results) / self.name

    @property
    def budget(self) -> dict:
        choice = self.shared.compare
        amount = choice.tflop if choice.budget == "flops" else shared_steps(self.shared)
        return {"kind": choice.budget, "amount": amount}


def plan_models(*overrides: str) -> Comparison:
    """All architectures, or those of compare.models. Raises ConfigError."""
    refuse_decided(overrides, DECIDED_HERE | {"model": "compare.models"})
    models = load_shared(*overrides).compare.models or registry.names()
    methods = {model: (f"model={model}",) for model in models}
    return _plan("", methods, overrides)


def plan_ablation(*overrides: str) -> Comparison:
    """The rows of configs/ablation/<model>.yaml. Raises ConfigError, also for any row that does not
    fit the model.
    """
    refuse_decided(overrides, DECIDED_HERE | {"compare.models": "model"})
    model = GROUPS["model"]
    others = []
    for override in overrides:
        if override.startswith("model="):
            model = override.removeprefix("model=")
        else:
            others.append(override)
    registry.config_class(model)
    methods = {row: (f"model={model}", f"ablation={model}/{row}") for row in ablation(model).rows}
    return _plan(model, methods, others)


def refuse_decided(overrides: Sequence[str], decided: dict[str, str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if key in decided:
            raise ConfigError(f"{override}: a comparison decides this itself: {decided[key]}.")


def _plan(
    ablated: str, methods: dict[str, tuple[str, ...]], overrides: Sequence[str]
) -> Comparison:
    """methods: name in the table -> overrides that choose it; overrides: of all methods."""
    equal = load_shared(*overrides).compare.equal
    refuse_decided(equal, DECIDED_HERE)
    shared = load_shared(*equal, *overrides)
    name = shared.name or default_name(ablated, shared)
    common = [*equal]
    for override in overrides:
        key = override.partition("=")[0]
        if key not in ("name", "runs") and not key.startswith("compare."):
            common.append(override)

    costs = {}
    chosen = {}
    for method, choice in methods.items():
        fixed = equal_settings(shared, choice, common)
        costs[method] = counting.cost(load(*choice, *common, *fixed))
        steps = budget_steps(shared, costs[method], method)
        chosen[method] = (*choice, *common, *fixed, as_override("train.steps", steps))

    runs = []
    for seed in shared.compare.seeds:
        for method, choice in methods.items():
            own = (
                as_override("eval.baselines", not runs),
                f"seed={seed}",
                f"runs={Path(shared.runs) / name}",
                f"name={method}-seed{seed}",
            )
            changes = tuple(ablation_changes(choice))
            runs.append(ComparisonRun(method, seed, (*chosen[method], *own), changes))
    return Comparison(name, ablated, shared, tuple(runs), costs)


def default_name(ablated: str, shared: ExperimentConfig) -> str:
    """compare-<data>-<preset>, or ablate-<model>-<data>-<preset>."""
    kind = f"ablate-{ablated}" if ablated else "compare"
    data = shared.data.name
    if data == "synthetic" and shared.data.synthetic.layout == "dresscode":
        data = "synthetic_dresscode"
    return f"{kind}-{data}-{shared.preset}"


def equal_settings(
    shared: ExperimentConfig, choice: Sequence[str], common: Sequence[str]
) -> tuple[str, ...]:
    """The overrides that bring a method to the shared settings.

    Left out is what it already has, and what its ablation row is about.
    """
    own = flatten(asdict(load(*choice, *common)))
    changed = {change.partition("=")[0] for change in ablation_changes(choice)}
    overrides = []
    for key, value in flatten(asdict(shared)).items():
        if not is_held_equal(key) or key in changed or own[key] == value:
            continue
        overrides.append(as_override(key, value))
    return tuple(overrides)


def is_held_equal(key: str) -> bool:
    if key in METHODS_OWN:
        return False
    return is_part_of(key, HELD_EQUAL)


def ablation_changes(choice: Sequence[str]) -> list[str]:
    """The settings of the row among the overrides that choose a method."""
    for override in choice:
        key, _, value = override.partition("=")
        if key == "ablation":
            name, _, row = value.partition("/")
            return ablation(name).rows[row]
    return []


def shared_steps(shared: ExperimentConfig) -> int:
    return shared.compare.steps or shared.train.steps


def budget_steps(shared: ExperimentConfig, cost: dict[str, int], method: str) -> int:
    """Optimizer steps of a method. Raises ConfigError for a budget of less than a step."""
    if shared.compare.budget == "steps":
        return shared_steps(shared)
    steps = round(shared.compare.tflop * 1e12 / cost["step_flops"])
    if steps < 1:
        raise ConfigError(
            f"compare.tflop={shared.compare.tflop:g} is less than a step of {method}."
        )
    return steps


def plan_as_json(comparison: Comparison) -> str:
    """What every run costs, and the commands that make it up."""
    runs = []
    for run in comparison.runs:
        described = {
            "method": run.method,
            "seed": run.seed,
            "steps": run.config.train.steps,
            "cost": comparison.costs[run.method],
            "done": run.done,
            "commands": [shlex.join(["vton", *arguments]) for arguments in run.commands()],
        }
        runs.append(described)
    plan = {
        "name": comparison.name,
        "results": str(comparison.results_folder),
        "budget": comparison.budget,
        "runs": runs,
    }
    return json.dumps(plan, indent=1)
