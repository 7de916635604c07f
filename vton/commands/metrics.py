"""`vton metrics`: score any two folders of pictures, from anyone's model, under any protocol.

Several processes (torchrun -m vton metrics ...) score a share each; the first one merges and
reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vton.config import EvalConfig, Metric
from vton.data import images
from vton.data.images import Origin
from vton.data.record import mask, picture
from vton.data.sample import DataError, Order
from vton.errors import UserError
from vton.metrics import prepare
from vton.metrics.extractors import PARTS, SET_METRICS, Extractors
from vton.metrics.garment_scores import NEEDS
from vton.metrics.matching import Folders, MatchedFiles, common_size, match_files
from vton.metrics.pictures import require_none
from vton.metrics.protocol import METRICS
from vton.metrics.results import Row, digest_of_ids, provenance
from vton.metrics.rows import compute_rows
from vton.metrics.scorer import Scorer
from vton.metrics.tally import Measurements, merge
from vton.metrics.target import Prediction, Target
from vton.processes import gathered, process_share
from vton.progress import Progress

NAMED = 10  # names that provenance lists, of any number
JPEG = (".jpg", ".jpeg")
MAY_BE_EMPTY = ("mask", "pred_mask")
LEAST_SIDE = 32  # px; less does not survive the networks' pooling
WITHOUT_TARGET = (*SET_METRICS, *NEEDS)  # metrics that can score unpaired pictures
NO_TARGET = "unpaired pictures have no target to compare with"
OF_PARTS = tuple(name for name in METRICS if name.rpartition("_")[2] in PARTS)
# Further folders, and the metrics that need them.
FOLDERS_OF = {
    "garment": ("cami_u", "mp_lpips", "m_dino", "m_clip_i", "vton_iqa"),
    "garment_mask": ("mp_lpips",),
    "mask": ("cami_u", "mp_lpips", *OF_PARTS),
    "prompts": ("image_reward",),
}
# Masks, and the pictures that they belong to.
OWNERS = {
    "mask": "target",
    "repaint_mask": "target",
    "pred_mask": "pred",
    "garment_mask": "garment",
}


def score_folders(
    folders: Folders,
    order: Order,
    config: EvalConfig,
    device: str,
    *,
    model: str,
    data: str,
    mask_rule: str,
    asked: Sequence[str] = (),
) -> list[Row] | None:
    """Rows for one pair of folders; None on all but the first of several processes.

    Without `repaint_mask` nothing is pasted back, and rows say so where the protocol would. Raises
    DataError naming every picture that is missing, extra, unreadable or of another size than most
    of its folder, and UserError for metrics that lack a folder.

    asked: the metrics that the user named; rows list those that this order does not have as absent
    """
    metrics = computable_metrics(folders, order, config)
    config = replace(config, repaint=folders.repaint_mask is not None, metrics=metrics)
    pairs, references = match_files(folders, order)
    _require_persons(pairs, metrics, folders)
    any_size = config.size is not None
    predicted_size = common_size([pair.files["pred"] for pair in pairs], any_size)
    target_size = common_size([pair.files["target"] for pair in references], any_size)
    size = config.size or predicted_size
    _require_enough_pixels(size, metrics, folders)

    scorer = Scorer(Extractors(config, device, worn_masks=folders.pred_mask is not None))
    shares = gathered(
        lambda: measure_share(scorer, pairs, references, order, size, model, config.batch_size)
    )
    if shares is None:
        return None
    measured = merge([share for share, _ in shares])
    empty: list[str] = []
    for _, names in shares:
        empty += names
    empty.sort()
    if len(empty) == len(pairs):
        raise DataError(
            f"{folders.mask}: all {len(empty)} masks are empty. Masks are 255 where the garment "
            "is, else 0."
        )
    without = without_prediction(pairs, references)
    given = {part: str(path) for part, path in vars(folders).items() if path}
    rows = compute_rows(
        measured.tallies[order, model],
        measured.reference,
        scorer.extractors,
        model=model,
        data=data,
        split="folder",
        provenance=provenance(
            folders=given,
            mask=mask_rule,
            size=list(size),
            targets={
                "n": len(references),
                "sha256": digest_of_ids(reference.name for reference in references),
                "size": list(target_size),
                "without_prediction": {"n": len(without), "first": without[:NAMED]},
            },
            jpeg_predictions=sum(pair.files["pred"].suffix.lower() in JPEG for pair in pairs),
            empty_masks={"n": len(empty), "first": empty[:NAMED]},
            device=str(scorer.device),
            processes=len(shares),
        ),
    )
    if order == "unpaired":
        absent = dict.fromkeys((name for name in asked if name not in metrics), NO_TARGET)
        if absent:
            rows[0].provenance["absent"] = rows[0].provenance.get("absent", {}) | absent
    if not any(row.metrics for row in rows) and not scorer.extractors.garment.absent:
        raise DataError(
            f"FID and KID need two pictures on each side: {len(pairs)} in {folders.pred}, "
            f"{len(references)} in {folders.target}."
        )
    return rows


def measure_share(
    scorer: Scorer,
    pairs: Sequence[MatchedFiles],
    references: Sequence[MatchedFiles],
    order: Order,
    size: tuple[int, int],
    model: str,
    batch_size: int,
) -> tuple[Measurements, list[str]]:
    """Measure this process's share of the files; also returns the pairs whose mask is empty."""
    rank, world = process_share()
    if scorer.needs_reference:
        with Progress("Measuring targets", len(references), "picture") as progress:
            for group in _groups(references[rank::world], batch_size):
                scorer.update_reference([read_target(pair, "paired", size) for pair in group])
                progress.advance(len(group) * world)
    empty = []
    resample = scorer.protocol.resample
    with Progress("Scoring", len(pairs), "picture") as progress:
        for group in _groups(pairs[rank::world], batch_size):
            targets = [read_target(pair, order, size) for pair in group]
            for target in targets:
                if target.garment_mask is not None and not target.garment_mask.any():
                    empty.append(target.pair_id)
            pictures = []
            for pair in group:
                pictures.append(prepare.resize(read(pair.files["pred"]), size, resample))
            scorer.update(targets, {model: Prediction(torch.stack(pictures))})
            progress.advance(len(group) * world)
    return scorer.measured, empty


def without_prediction(
    pairs: Sequence[MatchedFiles], references: Sequence[MatchedFiles]
) -> list[str]:
    """Names of the reference pictures that no prediction belongs to."""
    names = [reference.name for reference in references]
    drawn = {pair.person for pair in pairs}
    return [name for name in names if name not in drawn]


def computable_metrics(folders: Folders, order: Order, config: EvalConfig) -> tuple[Metric, ...]:
    """The metrics to compute. Raises UserError for those that lack a folder."""
    metrics = [metric for metric in config.metrics if metric in METRICS]
    if order == "unpaired":
        if folders.mask or folders.repaint_mask:
            raise UserError(
                "--mask and --repaint-mask say where a prediction equals its target; "
                "unpaired ones have none."
            )
        metrics = [metric for metric in metrics if metric in WITHOUT_TARGET]
        if not metrics:
            raise UserError(f"{NO_TARGET}; choose from {', '.join(WITHOUT_TARGET)}.")
    for folder, users in FOLDERS_OF.items():
        for metric in metrics:
            if metric in users and not getattr(folders, folder):
                raise UserError(f"{metric} needs --{folder.replace('_', '-')}.")
    for metric in ("m_dino", "m_clip_i"):
        if metric in metrics and not (folders.pred_mask or folders.mask):
            raise UserError(
                f"{metric} needs --pred-mask, which says where the predictions show the garment; "
                "in paired order --mask will do."
            )
    return tuple(metrics)


def _require_enough_pixels(
    size: tuple[int, int], metrics: Sequence[Metric], folders: Folders
) -> None:
    """Raise DataError if pictures of a height and width are too small for one of the metrics."""
    of_windows = [name for name in metrics if name.startswith(("ssim", "lpips", "dists"))]
    if of_windows and min(size) < LEAST_SIDE:
        raise DataError(
            f"{folders.pred}: pictures of {size[1]}x{size[0]}; "
            f"metrics need at least {LEAST_SIDE} pixels."
        )


def _require_persons(
    pairs: Sequence[MatchedFiles], metrics: Sequence[Metric], folders: Folders
) -> None:
    """Raise DataError naming predictions of unknown persons if a metric needs the person."""
    if "vton_iqa" not in metrics:
        return
    problems = []
    for pair in pairs:
        if not {"target", "person"} & pair.files.keys():
            problems.append(f"{pair.files['pred']}: its name says no person of {folders.target}")
    require_none(problems, f"the predictions in {folders.pred}, which vton_iqa scores")


def read_target(pair: MatchedFiles, order: Order, size: tuple[int, int]) -> Target:
    """The files of a pair, as the Target of a prediction of height and width `size`."""
    pictures = {}
    for part, path in pair.files.items():
        if part in OWNERS:
            continue  # a mask
        if part == "pred" and "pred_mask" not in pair.files:
            continue  # only the shape of a prediction is needed here, to compare its mask's with
        pictures[part] = read(path)
    masks = {}
    for part, owner in OWNERS.items():
        if part not in pair.files:
            continue
        masks[part] = read_mask(pair.files[part], part)
        if owner in pictures:
            _require_one_shape(pair, part, masks[part], owner, pictures[owner])
    target = pictures.get("target")
    return Target(
        pair_id=pair.name,
        person_id=pair.person,
        category=pair.category,
        order=order,
        size=size,
        person=pictures.get("person", target),
        truth=target,
        garment_mask=masks.get("mask"),
        repaint_mask=masks.get("repaint_mask"),
        worn_mask=masks.get("pred_mask"),
        garment=pictures.get("garment"),
        silhouette=masks.get("garment_mask"),
        prompt=pair.prompt,
    )


def read(path: Path) -> Tensor:
    """A picture as a viewer shows it, uint8 (3, h, w). Raises DataError naming a broken file."""
    try:
        photo = images.read_photo(path, "picture", Origin("metrics", "", path.stem))
    except images.FileError as error:
        raise DataError(error.problem) from None
    return picture(np.array(photo))


def read_mask(path: Path, part: str) -> Tensor:
    """A mask, bool (1, h, w), by the reader of data sets. Raises DataError naming the file.

    One that shows where the garment lies may be empty: not every picture shows it.
    """
    what = f"--{part.replace('_', '-')} picture"
    origin = Origin("metrics", "", path.stem)
    silhouette = part == "garment_mask"
    try:
        found = images.read_mask(
            path, what, origin, None, silhouette, may_be_empty=part in MAY_BE_EMPTY
        )
    except images.FileError as error:
        raise DataError(error.problem) from None
    return mask(found)


def _require_one_shape(
    pair: MatchedFiles, part: str, mask: Tensor, owner: str, owned: Tensor
) -> None:
    """Raise DataError unless a mask has the proportions of its picture, up to whole pixels."""
    height, width = mask.shape[1:]
    tall, wide = owned.shape[1:]
    if abs(height * wide - width * tall) > max(tall, wide):
        raise DataError(
            f"{pair.files[part]}: {width}x{height}, {pair.files[owner]} is {wide}x{tall}."
        )


def _groups(pairs: Sequence[MatchedFiles], size: int) -> list[Sequence[MatchedFiles]]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]
