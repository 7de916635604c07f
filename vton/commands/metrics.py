"""`vton metrics`: score any two folders of pictures, from anyone's model, under any protocol.

Pictures are matched by file name without suffix; a prediction `person__garment` also matches a
target `person`. They lie directly in their folder, or in folders named upper_body, lower_body and
dresses below it, which then give the category. Nothing else is searched: a stray folder of previews
must not join a sample.

Several processes (torchrun -m vton metrics ...) score a share each; the first one merges and
reports.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vton.config import EvalConfig, Metric
from vton.data import images
from vton.data.images import SUFFIXES, Origin
from vton.data.record import picture
from vton.data.sample import CATEGORIES, DataError, Order
from vton.errors import UserError
from vton.metrics import prepare
from vton.metrics.garment_scores import NEEDS
from vton.metrics.pictures import refuse
from vton.metrics.protocol import METRICS
from vton.metrics.results import Row, provenance
from vton.metrics.scorer import Scorer
from vton.metrics.tally import Features, Tally, merge, merge_features
from vton.metrics.target import Target
from vton.processes import gathered, process_share

LEAST_SIDE = 32  # px; less does not survive the networks' pooling
PARTS = ("mask", "repaint_mask", "garment", "garment_mask")  # the optional folders
WITHOUT_TARGET = ("fid", "kid", *NEEDS)  # metrics that unpaired pictures have


@dataclass(frozen=True)
class Folders:
    """What to compare. Files of the optional folders are named as the targets, or as the garments
    of predictions.
    """

    pred: Path
    target: Path
    mask: Path | None = None  # where the targets show the garment: rows for the garment region
    repaint_mask: Path | None = None  # where the method painted; outside, the target is pasted
    garment: Path | None = None  # in-shop pictures, for garment-driven metrics
    garment_mask: Path | None = None  # their silhouettes
    prompts: Path | None = None  # JSON: name -> prompt
    listed: Path | None = None  # text: only these targets, the first word of each line


@dataclass(frozen=True)
class Pair:
    """A prediction's name and files, by part of `Folders`; of a reference picture, the target's
    alone.
    """

    name: str
    files: Mapping[str, Path]
    prompt: str = ""

    @property
    def category(self) -> str:
        return self.name.split("/")[0] if "/" in self.name else "all"


def score(
    folders: Folders,
    order: Order,
    config: EvalConfig,
    device: str,
    *,
    model: str,
    data: str,
    mask_rule: str,
) -> list[Row] | None:
    """Rows for one pair of folders; None on all but the first of several processes.

    Without `repaint_mask` nothing is pasted back, and rows say so where the protocol would. Raises
    DataError naming every picture that is missing, superfluous, unreadable or of another size than
    most of its folder, and UserError for metrics that lack a folder.
    """
    metrics = _metrics(folders, order, config)
    config = replace(config, repaint=folders.repaint_mask is not None, metrics=metrics)
    pairs, references = matched(folders, order)
    sizes = {
        part: _size([pair.files[part] for pair in group], any_size=config.size is not None)
        for part, group in (("pred", pairs), ("target", references))
    }
    size = config.size or sizes["pred"]
    if min(size) < LEAST_SIDE and {"ssim", "lpips", "dists"} & set(metrics):
        raise DataError(
            f"{folders.pred}: pictures of {size[1]}x{size[0]}; metrics need at least {LEAST_SIDE} pixels."
        )
    scorer = Scorer(config, device)
    rank, world = process_share()

    def groups(pairs: Sequence[Pair], order: Order) -> Iterator[list[Target]]:
        for start in range(0, len(pairs), config.batch_size):
            yield [_target(pair, order, size) for pair in pairs[start : start + config.batch_size]]

    def pictures(names: Sequence[str]) -> Tensor:
        found = (read(files[name]) for name in names)
        return torch.stack([prepare.resize(p, size, scorer.protocol.resample) for p in found])

    files = {pair.name: pair.files["pred"] for pair in pairs}

    def share() -> tuple[Features, Tally]:
        people = scorer.reference(groups(references[rank::world], "paired"))
        found = scorer.compare(groups(pairs[rank::world], order), {model: pictures})
        return people, found.get(model, Tally(order))

    shares = gathered(share)
    if shares is None:
        return None
    people, tally = (
        merge_features(share[0] for share in shares),
        merge(share[1] for share in shares),
    )
    facts = {
        "folders": {part: str(path) for part, path in vars(folders).items() if path},
        "mask": mask_rule,
        "size": list(size),
        "targets": {"n": len(references), "size": list(sizes["target"])},
        "device": str(scorer.device),
        "processes": world,
    }
    rows = scorer.rows(
        tally, people, model=model, data=data, split="folder", provenance=provenance(**facts)
    )
    if not rows:
        found = f"{len(pairs)} in {folders.pred}, {len(references)} in {folders.target}"
        raise DataError(f"FID and KID need two pictures on each side: {found}.")
    return rows


def matched(folders: Folders, order: Order) -> tuple[list[Pair], list[Pair]]:
    """Predictions with the files that belong to them, and the reference pictures, both sorted by
    name.

    Paired order: every target has one prediction and the other way round. Raises DataError naming
    what has not.
    """
    predictions, targets = pictures_in(folders.pred), pictures_in(folders.target)
    stored = {part: pictures_in(path) for part in PARTS if (path := getattr(folders, part))}
    prompts = _prompts(folders.prompts) if folders.prompts else {}
    paired, problems = order == "paired", []
    if folders.listed:
        names = _first_words(folders.listed)
        targets = {
            name: path
            for name, path in targets.items()
            if name in names or Path(name).name in names
        }
        absent = names - {word for name in targets for word in (name, Path(name).name)}
        problems += [
            f"{folders.target / name}: missing, but in {folders.listed}" for name in sorted(absent)
        ]
        predictions = {
            n: path
            for n, path in predictions.items()
            if not paired or _person(n, targets) in targets
        }

    pairs: dict[str, Pair] = {}  # by target, in unpaired order by prediction
    for name, path in predictions.items():
        person = _person(name, targets) if paired else name
        if paired and person not in targets:
            problems.append(f"{path}: no picture of that name in {folders.target}")
        elif person in pairs:
            problems.append(
                f"{path}: beside {pairs[person].files['pred']} a second prediction for {targets[person]}"
            )
        else:
            files = (
                {"pred": path}
                | ({"target": targets[person]} if paired else {})
                | _parts(name, person, stored)
            )
            pairs[person] = Pair(name, files, prompts.get(name, prompts.get(person, "")))
            problems += _lacking(pairs[person], folders, stored)
            if folders.prompts and not {name, person} & prompts.keys():
                problems.append(f"{path}: no prompt for it in {folders.prompts}")
    if paired:
        missing = [
            folders.pred / f"{name}{path.suffix}"
            for name, path in targets.items()
            if name not in pairs
        ]
        problems += [f"{path}: missing, its target has no prediction" for path in missing]
    masks = {part: stored[part] for part in stored if part == "mask"}
    references = [
        Pair(name, {"target": path} | _parts(name, name, masks)) for name, path in targets.items()
    ]
    problems += [problem for pair in references for problem in _lacking(pair, folders, masks)]
    refuse(list(dict.fromkeys(problems)), f"the files of {folders.pred} and {folders.target}")
    return [pairs[name] for name in sorted(pairs)], references


def _parts(name: str, person: str, stored: Mapping[str, Mapping[str, Path]]) -> dict[str, Path]:
    """The stored files, by part, that belong to a picture of a person."""
    found = {}
    for part, files in stored.items():
        known = (
            (_garment(name), person) if part.startswith("garment") else (person, f"{person}_mask")
        )
        if named := [files[key] for key in known if key in files]:
            found[part] = named[0]
    return found


def _lacking(pair: Pair, folders: Folders, parts: Iterable[str]) -> Iterator[str]:
    """A line for each part that a pair should have and has not."""
    for part in parts:
        if part not in pair.files:
            garment = part.startswith("garment") or "target" not in pair.files
            yield f"{pair.files['pred' if garment else 'target']}: no file for it in {getattr(folders, part)}"


def pictures_in(folder: Path) -> dict[str, Path]:
    """File by name without suffix, `<category>/<name>` below folders of categories, sorted. Raises
    DataError.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    places = [folder / category for category in CATEGORIES if (folder / category).is_dir()] or [
        folder
    ]
    found: dict[str, Path] = {}
    try:
        paths = sorted(path for place in places for path in place.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}.") from None
    for path in paths:
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        name = str(path.relative_to(folder).with_suffix(""))
        if name in found:
            raise DataError(f"{path} and {found[name]} have one name; keep one of them.")
        found[name] = path
    if not found:
        raise DataError(
            f"{folder}: no pictures ({', '.join(SUFFIXES)}) in it, nor in folders of categories below it."
        )
    return found


def read(path: Path) -> Tensor:
    """A picture as a viewer shows it, uint8 (3, h, w). Raises DataError naming the file that is
    broken.
    """
    try:
        return picture(
            np.array(images.read_photo(path, "picture", Origin("metrics", "", path.stem)))
        )
    except images.FileError as error:
        raise DataError(error.problem) from None


def _target(pair: Pair, order: Order, size: tuple[int, int]) -> Target:
    found = {part: read(path) for part, path in pair.files.items() if part != "pred"}
    for part, owner in (
        ("mask", "target"),
        ("repaint_mask", "target"),
        ("garment_mask", "garment"),
    ):
        if part in found and owner in found:
            (height, width), (tall, wide) = found[part].shape[1:], found[owner].shape[1:]
            if abs(height * wide - width * tall) > max(
                tall, wide
            ):  # more than rounding to whole pixels
                raise DataError(
                    f"{pair.files[part]}: {width}x{height}, {pair.files[owner]} is {wide}x{tall}."
                )
    masks = {
        part: found[part][:1] >= 128
        for part in ("mask", "repaint_mask", "garment_mask")
        if part in found
    }
    truth = found.get("target")
    return Target(
        pair.name,
        pair.name,
        pair.category,
        order,
        size,
        truth,
        truth,
        masks.get("mask"),
        masks.get("repaint_mask"),
        garment=found.get("garment"),
        silhouette=masks.get("garment_mask"),
        prompt=pair.prompt,
    )


def _size(paths: Sequence[Path], any_size: bool) -> tuple[int, int]:
    """Height and width of the pictures, read from their headers.

    Raises DataError naming those that cannot be read or, unless any size will do, differ from most.
    """
    sizes = {path: images.photo_size(path) for path in paths}
    problems = [
        f"{path}: not readable as a picture" for path, size in sizes.items() if size is None
    ]
    usual, count = (
        Counter(size for size in sizes.values() if size).most_common(1)[0]
        if any(sizes.values())
        else ((0, 0), 0)
    )
    if not any_size:
        problems += [
            f"{path}: {size[0]}x{size[1]} (width x height), but {count} of {len(paths)} are {usual[0]}x{usual[1]}"
            for path, size in sizes.items()
            if size not in (usual, None)
        ]
    refuse(problems, f"the pictures of {paths[0].parent} (--size brings them all to one size)")
    return usual[1], usual[0]


def _metrics(folders: Folders, order: Order, config: EvalConfig) -> tuple[Metric, ...]:
    """The metrics to compute. Raises UserError for those that lack a folder."""
    metrics = tuple(metric for metric in config.metrics if metric in METRICS)
    if order == "unpaired":
        if folders.mask or folders.repaint_mask:
            raise UserError(
                "--mask and --repaint-mask say where a prediction equals its target; unpaired ones have none."
            )
        metrics = tuple(metric for metric in metrics if metric in WITHOUT_TARGET)
        if not metrics:
            raise UserError(
                f"unpaired pictures have no target to compare with; choose from {', '.join(WITHOUT_TARGET)}."
            )
    for part, needed_by in (
        ("garment", ("cami_u", "mp_lpips")),
        ("garment_mask", ("mp_lpips",)),
        ("mask", ("cami_u", "mp_lpips")),
        ("prompts", ("image_reward",)),
    ):
        asking = [
            metric for metric in metrics if metric in needed_by and not getattr(folders, part)
        ]
        if asking:
            raise UserError(f"{asking[0]} needs --{part.replace('_', '-')}.")
    return metrics


def _person(name: str, targets: Container[str]) -> str:
    """The target of a prediction: of its own name, or of the part before `__`."""
    return name if name in targets else name.partition("__")[0]


def _garment(name: str) -> str:
    """The garment in `person__garment`, with the category's folder if there is one."""
    folder, slash, stem = name.rpartition("/")
    return folder + slash + stem.rpartition("__")[2]


def _first_words(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as a list of names: {error}.") from None
    words = [Path(line.split()[0]) for line in lines if line.strip()]
    if not words:
        raise DataError(f"{path}: an empty list; it must name the targets to compare.")
    return {
        str(word.with_suffix("") if word.suffix.lower() in SUFFIXES else word) for word in words
    }


def _prompts(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}.") from None
    if not isinstance(found, dict) or not all(isinstance(prompt, str) for prompt in found.values()):
        raise DataError(f'{path}: expected prompts by name, {{"00001_00": "a photo of ..."}}.')
    return found
