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
Warp = Callable[[TryOnBatch], TryOnBatch]  # returns the batch with other warped garments


def learned_warp(config: ExperimentConfig) -> RunWarp | None:
    """The trained warp that gets a baseline row: eval.warp, else the one that the model reads."""
    path = config.eval.warp or config.data.warp_run
    return RunWarp(path, config.data.picture_size) if path else None


def baseline_methods(source: str, learned: RunWarp | None, silhouettes: bool) -> dict[str, Method]:
    """Every baseline by name.

    source:      where the data's own warped garments come from (TryOnDataset.warp_source)
    silhouettes: whether the silhouettes of warped garments are measured too
    """
    methods: dict[str, Method] = {}
    for name, paint in BASELINES.items():
        methods[name] = partial(_painted, paint)
    return methods | warp_methods(source, learned, silhouettes)


def warp_methods(
    source: str, learned: RunWarp | None, silhouettes: bool = False
) -> dict[str, Method]:
    """The baselines that paste a warped garment; arguments as in `baseline_methods`."""
    warps: dict[str, Warp] = {
        "baseline/geometric_warp": partial(rewarped, source=warp_source("geometric"))
    }
    if learned is not None:
        warps[LEARNED] = learned.put_on
    if source in ("geometric", "folder"):
        warps[f"baseline/{source}_warp"] = _unchanged
    return {name: partial(_pasted, warp, silhouettes) for name, warp in warps.items()}


def _unchanged(batch: TryOnBatch) -> TryOnBatch:
    """The batch with the data's own warped garments."""
    return batch


def _painted(paint: Callable[[TryOnBatch], Tensor], batch: TryOnBatch) -> Prediction:
    return Prediction(to_uint8(paint(batch)))


def _pasted(warp: Warp, silhouettes: bool, batch: TryOnBatch) -> Prediction:
    warped = warp(batch)
    outlines = warped.warped_mask > 0 if silhouettes else None
    return Prediction(to_uint8(warped_garment(warped)), outlines)
