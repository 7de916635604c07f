"""Baselines beside a model: pictures that cost no sampling, made of each batch while it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from vton.config import ExperimentConfig
from vton.data.derived.warp import rewarped, warp_source
from vton.data.sample import TryOnBatch
from vton.metrics.pictures import as_pictures, to_uint8
from vton.models.baselines import BASELINES, warped_garment
from vton.runs.warp import RunWarp

LEARNED = "baseline/learned_warp"
Wear = Callable[[TryOnBatch], TryOnBatch]  # gives a batch another warped garment


def learned_warp(config: ExperimentConfig) -> RunWarp | None:
    """The trained warp that gets a baseline row: eval.warp, else what the model itself reads, else
    none.
    """
    path = config.eval.warp or config.data.warp_run
    return RunWarp(path, config.data.picture_size) if path else None


def warps(source: str, learned: RunWarp | None) -> dict[str, Wear]:
    """Baselines that paste a warped garment, and what gives theirs to a batch whose own warp is of
    `source`.
    """
    found = {"baseline/geometric_warp": partial(rewarped, source=warp_source("geometric"))}
    if learned:
        found[LEARNED] = learned.put_on
    if source in ("geometric", "folder"):
        found[f"baseline/{source}_warp"] = lambda batch: batch
    return found


def held_baselines(wearing: dict[str, Wear], outlined: bool) -> dict[str, HeldPictures]:
    """Every baseline by name. outlined: silhouettes of those that warp are measured, as beside a
    learned warp.
    """
    held = {name: HeldPictures(paint) for name, paint in BASELINES.items()}
    return held | {
        name: HeldPictures(warped_garment, wear, outlined) for name, wear in wearing.items()
    }


class HeldPictures:
    """A baseline's pictures of the batch at hand, computed while scoring.

    paint: the baseline; wear: gives the batch the warped garment it sees; outlined: whether
    silhouettes are held too.
    """

    def __init__(
        self,
        paint: Callable[[TryOnBatch], Tensor],
        wear: Wear = lambda batch: batch,
        outlined: bool = False,
    ):
        self.paint, self.wear = paint, wear
        self.silhouettes = self._silhouettes if outlined else None
        self.found: dict[str, Tensor] = {}
        self.outlines: dict[str, Tensor] = {}

    def hold(self, batch: TryOnBatch) -> None:
        worn = self.wear(batch)
        self.found = dict(zip(batch.pair_id, to_uint8(self.paint(worn)), strict=True))
        if self.silhouettes:
            self.outlines = dict(
                zip(batch.pair_id, to_uint8(as_pictures(worn.warped_mask)), strict=True)
            )

    def _silhouettes(self, pair_ids: Sequence[str]) -> Tensor:
        return torch.stack([self.outlines[pair_id] for pair_id in pair_ids])

    def __call__(self, pair_ids: Sequence[str]) -> Tensor:
        return torch.stack([self.found[pair_id] for pair_id in pair_ids])


def with_baselines(
    batches: Iterable[TryOnBatch], held: dict[str, HeldPictures]
) -> Iterator[TryOnBatch]:
    """The batches, each with the baselines' pictures of it held while it is scored."""
    for batch in batches:
        for pictures in held.values():
            pictures.hold(batch)
        yield batch
