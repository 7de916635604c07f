"""Baselines beside a model: methods without sampling, computed while a batch is scored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from vton.config import ExperimentConfig
from vton.data.derived.warp import rewarped, warp_source
from vton.data.sample import TryOnBatch
from vton.metrics.pictures import to_uint8
from vton.metrics.target import Method, Prediction
from vton.models.baselines import BASELINES, warped_garment
from vton.runs.warp import RunWarp

LEARNED = "baseline/learned_warp"
Wear = Callable[[TryOnBatch], TryOnBatch]  # gives a batch another warped garment


def learned_warp(config: ExperimentConfig) -> RunWarp | None:
    """The trained warp that gets a baseline row: eval.warp, else the one that the model reads."""
    path = config.eval.warp or config.data.warp_run
    return RunWarp(path, config.data.picture_size) if path else None


def baseline_methods(source: str, learned: RunWarp | None, silhouettes: bool) -> dict[str, Method]:
    """Every baseline by name.

    source:      of the data's own warped garments
    silhouettes: whether warps say where they put the garment, which is then measured
    """
    methods: dict[str, Method] = {}
    for name, paint in BASELINES.items():
        methods[name] = partial(_painted, paint)
    return methods | warp_methods(source, learned, silhouettes)


def warp_methods(
    source: str, learned: RunWarp | None, silhouettes: bool = False
) -> dict[str, Method]:
    """The baselines that paste a warped garment; arguments as in `baseline_methods`."""
    wears: dict[str, Wear] = {
        "baseline/geometric_warp": partial(rewarped, source=warp_source("geometric"))
    }
    if learned is not None:
        wears[LEARNED] = learned.put_on
    if source in ("geometric", "folder"):
        wears[f"baseline/{source}_warp"] = _as_it_is
    return {name: partial(_pasted, wear, silhouettes) for name, wear in wears.items()}


def _as_it_is(batch: TryOnBatch) -> TryOnBatch:
    return batch


def _painted(paint: Callable[[TryOnBatch], Tensor], batch: TryOnBatch) -> Prediction:
    return Prediction(to_uint8(paint(batch)))


def _pasted(wear: Wear, silhouettes: bool, batch: TryOnBatch) -> Prediction:
    worn = wear(batch)
    outlines = worn.warped_mask > 0 if silhouettes else None
    return Prediction(to_uint8(warped_garment(worn)), outlines)
