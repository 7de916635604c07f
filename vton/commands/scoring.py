"""From a run's predictions to rows.

Every process measures its share of the pairs; the first one merges the shares by pair and makes the
rows. A method is a function of the batch: sampled pictures are read from their folder, baselines
are computed. One pass over the truths measures them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vton.commands.baselines import LEARNED, baseline_methods
from vton.commands.places import METRIC
from vton.commands.sampling import (
    CONTROL,
    SampledStage,
    control_places,
    prediction_folder,
    sampled_methods,
)
from vton.data.dataset import Person, Persons, TryOnDataset
from vton.data.module import TryOnDataModule
from vton.data.sample import Order, TryOnBatch
from vton.metrics.extractors import Extractors
from vton.metrics.pictures import PictureFolder
from vton.metrics.results import Row, provenance
from vton.metrics.rows import compute_rows
from vton.metrics.scorer import Scorer
from vton.metrics.tally import Measurements, merge
from vton.metrics.target import Method, Prediction, Target, targets_of
from vton.processes import gathered, process_share
from vton.progress import Progress
from vton.runs.cascade import Stage, interpolated
from vton.runs.folder import git_commit

UPSAMPLED = "baseline/upsampled"  # the pictures of the stage before by interpolation alone


def score_stage(sampled: SampledStage, facts_before: list[dict[str, Any]]) -> list[Row] | None:
    """Rows of the stage and the baselines beside it; None on all but the first process.

    facts_before: the facts of the stages before it
    """
    config = sampled.stage.config
    scorer = Scorer(Extractors(config.eval, sampled.device))
    shares = gathered(lambda: measure(sampled, scorer))
    if shares is None:
        return None
    measured = merge(shares)

    facts = sampled.facts | {
        "commit": git_commit(),
        "seed": config.eval.seed,
        "device": device_name(sampled.device),
        "processes": len(shares),
    }
    if config.model.upper_stage:
        facts["enlarges"] = list(facts_before) or "reduced truth"
    rows = []
    for (order, name), tally in measured.tallies.items():
        pairs = sampled.data.eval_dataset(order, shuffled=name.endswith(CONTROL))
        details = provenance(
            **facts,
            **pairs.sources,
            seconds_per_picture=sampled.seconds[order].get(name),
        )
        if name == LEARNED:
            details["learned_warp"] = str(sampled.warp)
        rows += compute_rows(
            tally,
            measured.reference,
            scorer.extractors,
            model=name,
            data=config.data.name,
            split="test",
            provenance=details,
        )
    add_places(rows, sampled)
    return rows


def add_places(rows: list[Row], sampled: SampledStage) -> None:
    """Add the distance to the true places to the model's garment row, if it was measured."""
    name = sampled_methods(sampled.stage)[0]
    for row in rows:
        errors = sampled.places.get(row.order)
        if errors and (row.model, row.region, row.category) == (name, "garment", "all"):
            row.metrics[METRIC] = errors.mean
            row.provenance["places"] = errors.as_json()


def measure(sampled: SampledStage, scorer: Scorer) -> Measurements:
    """Measure this process's share of the pairs.

    Raises DataError naming pictures that are missing or broken.
    """
    data = sampled.data
    if scorer.needs_reference:
        loader = data.persons_dataloader()
        persons = loader.dataset
        _, processes = process_share()
        with Progress("Measuring the test persons", len(persons), "person") as progress:
            for batch in loader:
                targets = [reference_target(person, persons, scorer) for person in batch]
                scorer.update_reference(targets)
                progress.advance(len(batch) * processes)
    for order in sampled.stage.config.eval.orders:
        pairs = data.eval_dataset(order)
        methods = methods_of(sampled, order)
        control, control_pairs = control_of(sampled, order)
        for batch in counted(data, order, f"Scoring {order}"):
            targets = load_targets(batch, pairs, scorer)
            control_rows = [row for row, pair in enumerate(batch.pair_id) if pair in control_pairs]
            control_has_all = len(control_rows) == len(batch)
            predictions = {}
            for name, method in methods.items():
                if name != control or control_has_all:
                    predictions[name] = method(batch)
            scorer.update(targets, predictions)
            if control in methods and control_rows and not control_has_all:
                prediction = methods[control](batch[control_rows])
                scorer.update([targets[row] for row in control_rows], {control: prediction})
    return scorer.measured


def control_of(sampled: SampledStage, order: Order) -> tuple[str, set[str]]:
    """Name of the control row, and the pairs that it draws."""
    ids = sampled.data.eval_dataset(order).pair_ids
    places = control_places(sampled.data, order, sampled.stage.config)
    return sampled_methods(sampled.stage)[0] + CONTROL, {ids[place] for place in places}


def counted(data: TryOnDataModule, order: Order, doing: str) -> Iterator[TryOnBatch]:
    """This process's batches of an order, with their progress."""
    _, processes = process_share()
    with Progress(doing, len(data.eval_dataset(order)), "pair") as progress:
        for batch in data.eval_dataloader(order):
            yield batch
            progress.advance(len(batch) * processes)


def reference_target(person: Person, persons: Persons, scorer: Scorer) -> Target:
    """A person as a picture of the reference of FID and KID."""
    picture = person.picture
    if scorer.protocol.from_originals:
        picture, _ = persons.pairs.originals(person.index)
    return Target(
        pair_id=person.person_id,
        person_id=person.person_id,
        category=person.category,
        order="paired",
        size=tuple(person.picture.shape[-2:]),
        person=picture,
        garment_mask=person.worn,
    )


def load_targets(batch: TryOnBatch, pairs: TryOnDataset, scorer: Scorer) -> list[Target]:
    """What the batch's predictions are compared with.

    For protocols that start from the stored pictures, these are read from their files.
    """
    targets = targets_of(batch)
    if scorer.protocol.from_originals:
        for target, index in zip(targets, batch.index, strict=True):
            target.person, target.truth = pairs.originals(index)
    return targets


def methods_of(sampled: SampledStage, order: Order) -> dict[str, Method]:
    """All methods that get rows in this order, by name.

    Raises DataError for a folder of predictions that is not complete.
    """
    stage = sampled.stage
    config = stage.config
    pairs = sampled.data.eval_dataset(order)
    methods: dict[str, Method] = {}
    for name in sampled_methods(stage):
        folder = PictureFolder(prediction_folder(stage.run, name, order))
        drawn = pairs.pair_ids
        if name.endswith(CONTROL):
            drawn = sorted(control_of(sampled, order)[1])
        folder.check(drawn, config.data.picture_size)
        methods[name] = from_files(folder)
    if not config.eval.baselines:
        return methods
    if stage.before is not None:
        methods[UPSAMPLED] = upsampled(stage, order)
    silhouettes = sampled.warp is not None or config.model.kind == "warp"
    return methods | baseline_methods(pairs.warp_source, sampled.warp, silhouettes)


def from_files(folder: PictureFolder) -> Method:
    """The method whose pictures, and a warp's silhouettes, are in a folder."""
    silhouettes = folder.silhouettes

    def read(batch: TryOnBatch) -> Prediction:
        pictures = folder.read(batch.pair_id)
        if silhouettes is None:
            return Prediction(pictures)
        return Prediction(pictures, silhouettes.read(batch.pair_id)[:, :1] > 127)

    return read


def upsampled(stage: Stage, order: Order) -> Method:
    """The method that enlarges the pictures of the stage before by interpolation alone."""
    before = PictureFolder(prediction_folder(stage.before.run, "", order))

    def enlarge(batch: TryOnBatch) -> Prediction:
        return Prediction(interpolated(before.read(batch.pair_id), stage.config.data))

    return enlarge


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
