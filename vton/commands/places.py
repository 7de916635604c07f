"""`vton eval` with eval.places: how far from the true place attention reads the garment.

It draws a few rendered test pairs again, watches every layer and step (vton/report/places.py), and
writes places.json and a picture for each order.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vton.config import ExperimentConfig
from vton.data.module import TryOnDataModule
from vton.data.sample import Order, TryOnBatch
from vton.data.synthetic.correspondence import Correspondence
from vton.errors import UserError
from vton.files import replacing, write_atomically
from vton.models.base import TryOnModule
from vton.progress import Progress
from vton.report.places import PlaceErrors, Watch, places_grid
from vton.runs.cascade import Stage

log = logging.getLogger(__name__)
METRIC = "place_error"


@torch.no_grad()
def measure_places(
    module: TryOnModule, data: TryOnDataModule, stage: Stage
) -> dict[Order, PlaceErrors]:
    """Errors of every configured order, on eval.places pairs spread over the test list.

    Orders in which no layer reads garment tokens with places are left out, with a warning. Raises
    UserError as `known_places` does.
    """
    config = stage.config
    if not isinstance(module, TryOnModule) or stage.before is not None:
        log.warning("eval.places: not measured for %s.", config.model.label)
        return {}
    known = known_places(config, data)
    measured = {}
    for order in config.eval.orders:
        batch = data.val_batch(order, config.eval.places)
        errors, grid = measure_order(module, batch, known, config, order)
        if errors is None:
            log.warning(
                "eval.places: no layer of %s reads garment tokens that have places (%s).",
                config.model.label,
                order,
            )
            continue
        with replacing(stage.run.path / f"places_{order}.png") as temporary:
            Image.fromarray(grid).save(temporary, "PNG")
        measured[order] = errors
    if measured:
        content = {order: errors.as_json() for order, errors in measured.items()}
        write_atomically(stage.run.path / "places.json", json.dumps(content, indent=1) + "\n")
    return measured


def measure_order(
    module: TryOnModule,
    batch: TryOnBatch,
    known: Correspondence,
    config: ExperimentConfig,
    order: Order,
) -> tuple[PlaceErrors | None, np.ndarray | None]:
    """The errors over a batch of any size, and a grid of its first pictures; None for both if no
    layer reads garment tokens with places.
    """
    watch = Watch(module)
    errors = grid = None
    with Progress(f"Places read, {order}", len(batch), "pair") as progress:
        for start in range(0, len(batch), config.eval.batch_size):
            rows = slice(start, start + config.eval.batch_size)
            part = batch[rows].to(module.device)
            truth = truth_of(part, known)
            pictures = watch.draw(part, truth, config.eval.seed)
            errors = watch.errors()
            if grid is None and errors is not None:
                few = slice(0, config.eval.pictures)
                read = {number: places[few] for number, places in watch.read.items()}
                best = errors.best.layer
                grid = places_grid(part[few], pictures[few], truth[few], read, best)
            progress.advance(len(part))
    return errors, grid


def known_places(config: ExperimentConfig, data: TryOnDataModule) -> Correspondence:
    """The true places of the test pairs. Raises UserError for data whose places are unknown."""
    known = None
    if config.data.name == "synthetic" and not config.data.pad:
        known = Correspondence.of(Path(str(data.root)))
    if known is None:
        raise UserError(
            f"eval.places={config.eval.places}: the true places are known for rendered data "
            "without padding only (data=synthetic data.pad=false); set eval.places=0."
        )
    return known


def truth_of(batch: TryOnBatch, known: Correspondence) -> torch.Tensor:
    """(B, H, W, 2): the true places of each pair."""
    pairs = zip(batch.person_id, batch.garment_id, strict=True)
    return torch.from_numpy(np.stack([known.places(*pair) for pair in pairs]))


def print_places(found: dict[Order, PlaceErrors]) -> None:
    """A line for each order."""
    for order, errors in found.items():
        best = errors.best
        print(
            f"{order}: the garment is read {errors.mean:.3f} of its picture's height from the true "
            f"place (layer {best.layer + 1} of {len(errors.layers)}: {best.mean:.3f}; a token's "
            f"own place {errors.own_place:.3f}, everywhere alike {errors.everywhere:.3f}), "
            f"{errors.pairs} pairs."
        )
