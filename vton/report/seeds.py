"""Which rows are training seeds of one thing: only these may be averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vton.errors import UserError
from vton.metrics.results import Row
from vton.report.costs import training_of

# Recorded of an evaluation and of a training: what the seeds of a method have in common.
EVALUATED_BY = ("checkpoint", "solver", "steps", "guidance", "mask", "warp")
OF_ONE_TRAINING = ("seed", "seconds", "peak_memory_gib", "planned_steps")  # all else is shared
DIGEST = "settings_sha256"  # of all settings that seeds share, also of those that rows do not name


def training_seed(row: Row) -> int | None:
    return training_of(row).get("seed")


def require_seeds(rows: Sequence[Row], where: str) -> None:
    """Raise UserError unless the rows of one method are its training seeds, each once.

    where: the method, and which rows of it these are
    """
    seeds = list(map(training_seed, rows))
    if len(set(seeds)) < len(rows):
        raise UserError(
            f"{where} has several rows of one seed: {seeds}. Leave one of them, or give the other "
            "run a name of its own."
        )
    for row in rows[1:]:
        difference = setting_difference(rows[0], row)
        if difference:
            raise UserError(
                f"{where}: its rows differ in more than the training seed: {difference}. Evaluate "
                "runs of one setting the same way, or give the other setting a name of its own."
            )


def setting_difference(first: Row, second: Row) -> str:
    """The first setting that differs between two rows, of those both know; "" for none."""
    before = _setting(first)
    for name, value in _setting(second).items():
        if before.get(name, value) == value:
            continue
        if name == DIGEST:
            return "a setting that rows do not name, see the config.yaml of both runs"
        return f"{name} is {before[name]} and {value}"
    return ""


def _setting(row: Row) -> dict[str, Any]:
    """What a row records of its settings, by name; those of earlier versions record less."""
    facts = row.provenance
    setting = {name: facts[name] for name in EVALUATED_BY if name in facts}
    for name, value in training_of(row).items():
        if name not in OF_ONE_TRAINING:
            setting[f"training.{name}"] = value
    if "changes" in facts.get("comparison", {}):
        setting["changes"] = facts["comparison"]["changes"]
    if "parameters" in facts.get("cost", {}):
        setting["parameters"] = facts["cost"]["parameters"]
    if DIGEST in facts:
        setting[DIGEST] = facts[DIGEST]
    return setting
