"""The caption of a comparison's table: what all its rows have in common, sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vton.metrics.results import Row
from vton.report.costs import COST_NOTE, training_of
from vton.report.tables import is_control


def caption(rows: Sequence[Row]) -> list[str]:
    """Data, budget, equal settings, changed settings, runs to come, seeds, units and commits."""
    runs = [row for row in rows if row.provenance.get("comparison")]
    learned = [row for row in rows if training_of(row)]
    sentences = [_data(rows)]
    if runs:
        budget = _budget(runs[0].provenance["comparison"]["budget"])
        sentences.append(f"{budget} {_equal(runs)}")
        sentences += _changes(runs)
        missing = runs[0].provenance["comparison"].get("missing", [])
        if missing:
            sentences.append(f"Not run yet: {'; '.join(missing)}.")
    if learned:
        sentences += _seeds(learned)
    commits: list[str] = []
    for row in rows:
        commits += row.provenance["commits"]
    return [*sentences, COST_NOTE, f"Commits: {_each_once(commit[:12] for commit in commits)}."]


def _data(rows: Sequence[Row]) -> str:
    first = rows[0]
    height, width = first.provenance["size"]
    masks = _each_once(row.provenance.get("mask") for row in rows)
    warps = _each_once(row.provenance.get("warp") for row in rows)
    return (
        f"{first.data} {first.split} pairs, {height}x{width}, protocol {first.protocol}; "
        f"masks: {masks}, warped garments: {warps}."
    )


def _budget(budget: dict[str, Any]) -> str:
    if budget["kind"] == "flops":
        return f"Budget: {budget['amount']:g} training TFLOP of every run."
    return f"Budget: {budget['amount']:,} optimizer steps of every run."


def _equal(runs: Sequence[Row]) -> str:
    """The settings that all runs share by construction, and the ones an architecture chose."""
    sampling = runs[0].provenance
    training = training_of(runs[0])
    optimizers = {run.model: training_of(run).get("optimizer", "") for run in runs}
    rates = {run.model: f"{training_of(run)['lr']:g}" for run in runs}
    each = training["batch_size"] * training["accumulate"]
    processes = training.get("global_batch", each) // each  # rows of earlier versions: one
    shared = f" on each of {processes} processes" if processes > 1 else ""
    return (
        f"Equal for all: training pairs and their augmentation, batches of "
        f"{training['batch_size']} (x {training['accumulate']}){shared} "
        f"in {training['precision']}, "
        f"{training['schedule']} learning rate after {training['warmup_steps']} steps of warm-up, "
        f"timesteps T u^(1/{training['timestep_power']:g}), sampling by {sampling['solver']} in "
        f"{sampling['steps']} steps with guidance {sampling['guidance']:g}. "
        "The method's own: networks, codec, noise schedule, prediction, losses, dropout of "
        f"conditions. {_sentence(optimizers, 'Optimizer')}Learning rate {_by_name(rates)}."
    )


def _changes(runs: Sequence[Row]) -> list[str]:
    """What each row of an ablation changes, a sentence for each."""
    sentences = {}
    for run in runs:
        settings = run.provenance["comparison"]["changes"]
        if settings and not is_control(run):
            sentences[run.model] = f"{run.model}: {', '.join(settings)}."
    return list(sentences.values())


def _seeds(runs: Sequence[Row]) -> list[str]:
    seeds = {}
    most = 0
    for run in runs:
        numbers = run.provenance["seeds"]
        seeds[run.model] = " and ".join(map(str, numbers))
        most = max(most, len(numbers))
    sentences = [f"Training seeds: {_by_name(seeds)}."]
    if most > 1:
        sentences.append("± is the sample standard deviation over training seeds.")
    return sentences


def _each_once(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _sentence(values: Mapping[str, str], subject: str) -> str:
    """Empty for rows of earlier versions, which do not all hold the value."""
    if not all(values.values()):
        return ""
    return f"{subject} {_by_name(values)}. "


def _by_name(values: Mapping[str, str]) -> str:
    """The value that all share, or each with the name it belongs to."""
    if len(set(values.values())) == 1:
        return _each_once(values.values())
    return ", ".join(f"{value} ({name})" for name, value in values.items())
