"""The data check: names every bad or missing file before a run meets the first of them.

It reads each file with the functions that training uses, so the two cannot disagree. Real archives
have known oddities (untagged garments, people lists that are empty, four "unpaired" lines that are
paired): these are notes, not problems.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock

from vton.config import DataConfig
from vton.data import images
from vton.data.dataset import TryOnDataset, dataset_root, open_folder
from vton.data.folder import REQUIRED, Folder, PairFiles, Split
from vton.data.images import FileError, Origin
from vton.data.labels import GARMENT_LABELS
from vton.data.pairs import Pair
from vton.data.sample import DataError, Order
from vton.data.shards import ShardError
from vton.data.source import fingerprint

Severity = Literal["required", "optional", "note"]

PAIR_LISTS: tuple[tuple[Split, Order], ...] = (
    ("train", "paired"),
    ("test", "paired"),
    ("test", "unpaired"),
)
# Parts that belong to the person, to the garment and to both.
PERSON_PARTS = ("person", "parse", "keypoints", "agnostic_mask", "densepose")
GARMENT_PARTS = ("garment", "garment_mask")
PAIR_PARTS = ("warped_garment", "warped_mask", "truth", "truth_parse")

# Optional parts that published sets have; a note says which are absent.
PUBLISHED_OPTIONS = ("garment_mask", "agnostic_mask", "densepose", "warped_garment")
NAMED_IDS = 8  # of those that a note is about
POOL_FROM = 1000  # groups of files below which starting processes takes longer than reading
CHUNK = 64  # groups of files handed to a process at once

# What a clean check depends on besides the files.
SETTINGS = (
    *("name", "category", "limit_train", "limit_test", "mask_source", "warp_source"),
    *("warp_folder", "warp_folder_unpaired", "warp_key", "densepose"),
)


@dataclass(frozen=True)
class Problem:
    """One finding.

    "required" stops training, "optional" concerns files this configuration does not read.
    """

    dataset: str
    split: str
    sample_id: str  # "" when it is about a whole list or folder
    path: str
    severity: Severity
    message: str  # what is wrong and what to do

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.dataset, self.split, self.sample_id)))
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class _Task:
    """Files that belong to one id, checked together.

    `required` names the parts that training would read.
    """

    split: Split
    order: Order
    pair: Pair
    parts: tuple[str, ...]
    required: tuple[str, ...]

    @property
    def key(self) -> tuple:
        """Equal for tasks that read the same files: persons and garments recur in other lists."""
        person = "" if self.parts == GARMENT_PARTS else self.pair.person
        garment = "" if self.parts == PERSON_PARTS else self.pair.garment
        order = self.order if self.parts == PAIR_PARTS else ""
        return self.split, order, self.parts, self.pair.category, person, garment


def check_folder(config: DataConfig, workers: int = 1) -> list[Problem]:
    """Everything wrong with the configured data set, and notes on what it holds.

    Problems come in the order of the lists. Covers the pairs that data.category, data.limit_train
    and data.limit_test leave. Reads every file in full, with `workers` processes for large sets.
    Nothing is printed and nothing raised for bad data.
    """
    try:
        folder = open_folder(config)
    except DataError as error:
        return [Problem(config.name, "", "", str(dataset_root(config)), "required", str(error))]
    problems: list[Problem] = []
    tasks: dict[tuple, _Task] = {}
    for split, order in PAIR_LISTS:
        try:
            pairs = TryOnDataset(folder, split, order)
        except DataError as error:
            problems.append(_about_list(folder, split, error))
            continue
        problems += _notes(pairs)
        problems += _absent_folders(pairs)
        problems += _captions(pairs)
        for task in _tasks(pairs):
            tasks.setdefault(task.key, task)
    for of_task in _run(config, folder, list(tasks.values()), workers):
        problems += of_task
    # A list that two orders share, or a folder that many files lie in, fails several times with the
    # same words.
    return list(dict.fromkeys(problems))


def require_clean(config: DataConfig, workers: int = 1) -> None:
    """Raise DataError with one line: the first broken required file and how many there are.

    A clean result is remembered by the names, sizes and times of all files, so that the next start
    takes seconds.
    """
    marker = _marker(config)
    with FileLock(marker.with_suffix(".lock")):  # one process checks, the others find its mark
        if marker.exists():
            return
        problems = check_folder(config, workers)
        broken = [problem for problem in problems if problem.severity == "required"]
        if not broken:
            marker.touch()
            return
    refusal = "Training does not start: replacing samples would falsify a comparison."
    if len(broken) == 1:
        raise DataError(f"{broken[0]} {refusal}")
    raise DataError(
        f"{broken[0]} This and {len(broken) - 1} more required files below {dataset_root(config)} "
        f"cannot be used. {images.ADVICE} {refusal}"
    )


def format_problems(problems: Sequence[Problem]) -> str:
    """Notes, then every problem on a line of its own, then the count."""
    lines = []
    for severity in ("note", "required", "optional"):
        for problem in problems:
            if problem.severity == severity:
                lines.append(f"{severity:<9} {problem}")
    count = Counter(problem.severity for problem in problems)
    if count["required"] or count["optional"]:
        lines.append(f"{count['required']} required and {count['optional']} optional problems.")
    else:
        lines.append("All files can be read.")
    return "\n".join(lines)


def _notes(pairs: TryOnDataset) -> list[Problem]:
    """Counts beside those of the official archive, sources of masks and warps, odd lines."""
    folder, split, order = pairs.folder, pairs.split, pairs.order
    notes = []
    for category, count in Counter(pair.category for pair in pairs.pairs).items():
        note = f"{order}, {category}: {count:,} pairs"
        if folder.dataset != "synthetic":
            note += f" (official: {folder.expected[split, category]:,})"
        notes.append(note)
    sources = [f"{name} from {source}" for name, source in sorted(pairs.sources.items())]
    notes.append(f"{order}: {', '.join(sources)}")
    absent = [part for part in PUBLISHED_OPTIONS if folder.place(part, split, order) is None]
    if absent:
        names = ", ".join(folder.parts[part].what for part in absent)
        notes.append(f"{order}: no folder with {names}")
    same = [pair.person for pair in pairs.pairs if pair.person == pair.garment]
    if order == "unpaired" and same:
        notes.append(f"{len(same)} unpaired lines are in fact paired: {_first(same)}")
    repeated = [pair.person for pair, times in Counter(pairs.pairs).items() if times > 1]
    if repeated:
        notes.append(
            f"{order}: {len(repeated)} pairs are listed more than once: {_first(repeated)}"
        )
    return [_note(pairs, note) for note in notes]


def _captions(pairs: TryOnDataset) -> list[Problem]:
    """A note on the garments without caption, or the problem of a broken caption file."""
    try:
        line = pairs.without_caption(where_absent=True)
    except DataError as error:
        return [_about_list(pairs.folder, pairs.split, error)]
    return [_note(pairs, f"{pairs.order}: {line}")] if line else []


def _note(pairs: TryOnDataset, note: str) -> Problem:
    folder = pairs.folder
    return Problem(folder.dataset, pairs.split, "", str(folder.root), "note", note)


def _first(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED_IDS])


def _absent_folders(pairs: TryOnDataset) -> list[Problem]:
    """Required parts without a folder."""
    folder, split = pairs.folder, pairs.split
    origin = Origin(folder.dataset, split, "")
    problems = []
    for part in REQUIRED:
        try:
            folder.locate(part, split, pairs.order, pairs.pairs[0], origin)
        except FileError:
            continue  # one missing file, reported with its pair
        except DataError as error:
            problems.append(_about_list(folder, split, error))
    return problems


def _about_list(folder: Folder, split: Split, error: DataError) -> Problem:
    """The problem of a whole list or folder.

    Its message drops the data set and split, which the problem has as fields.
    """
    message = str(error).removesuffix(images.ADVICE).strip()
    for where in (f"{folder.dataset} {split}", folder.dataset):
        message = message.removeprefix(where).removeprefix(":").strip()
    return Problem(folder.dataset, split, "", str(folder.root), "required", message)


def _tasks(pairs: TryOnDataset) -> Iterable[_Task]:
    required = [*REQUIRED, "garment_mask", "truth", "truth_parse"]
    if pairs.mask_source == "folder":
        required.append("agnostic_mask")
    if pairs.warp_source == "folder":
        required += ["warped_garment", "warped_mask"]
    if pairs.folder.config.densepose:
        required.append("densepose")
    for pair in pairs.pairs:
        for parts in (PERSON_PARTS, GARMENT_PARTS, PAIR_PARTS):
            yield _Task(pairs.split, pairs.order, pair, parts, tuple(required))


def _run(
    config: DataConfig, folder: Folder, tasks: list[_Task], workers: int
) -> Iterable[list[Problem]]:
    """The problems of each task, in order."""
    if workers <= 1 or len(tasks) < POOL_FROM:
        for task in tasks:
            yield _check(folder, task)
        return
    # Not forked: the parent may hold threads of torch and of a progress display.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _open_in_worker, (config,)) as pool:
        yield from pool.map(_check_in_worker, tasks, chunksize=CHUNK)


def _open_in_worker(config: DataConfig) -> None:
    global _folder
    _folder = open_folder(config)


def _check_in_worker(task: _Task) -> list[Problem]:
    return _check(_folder, task)


def _check(folder: Folder, task: _Task) -> list[Problem]:
    """The problems of one task's files."""
    files = folder.files(task.split, task.order, task.pair)
    problems = []
    for part in task.parts:
        # A garment mask without folder is derived, which can fail too; other absent folders are
        # reported once.
        if part != "garment_mask" and folder.place(part, task.split, task.order) is None:
            continue
        if part.startswith("truth") and task.order == "paired":
            continue  # the person is the truth
        problem = _check_part(files, part, task)
        if problem is not None:
            problems.append(problem)
    return problems


def _check_part(files: PairFiles, part: str, task: _Task) -> Problem | None:
    dataset = files.folder.dataset
    severity: Severity = "required" if part in task.required else "optional"
    try:
        content = _read(files, part)
        if part == "parse" and not np.isin(content, GARMENT_LABELS[task.pair.category]).any():
            severity = _severity_without_garment(files, task)
            problem = f"parse map shows no garment of {task.pair.category}"
            advice = "Without keypoints there is nothing to paint."
            raise files.origin(part).error(problem, files.path(part), advice)
    except FileError as error:
        path = str(error.path)
        return Problem(dataset, task.split, error.origin.id, path, severity, error.problem)
    except ShardError as error:
        path = str(files.path(part))
        return Problem(dataset, task.split, files.origin(part).id, path, "required", str(error))
    except DataError as error:
        return _about_list(files.folder, task.split, error)
    return None


def _severity_without_garment(files: PairFiles, task: _Task) -> Severity:
    """How bad a parse map without the garment is.

    A mask from a folder, or one drawn around joints, leaves something to paint.
    """
    if "agnostic_mask" in task.required:
        return "note"
    try:
        return "note" if files.joints()[:, 2].any() else "required"
    except DataError:
        return "note"  # reported as the keypoints' own problem


def _read(files: PairFiles, part: str) -> np.ndarray | None:
    """Read one part as training would; a parse map is returned.

    Sizes are compared with the header of its picture.
    """
    if part in ("person", "garment", "warped_garment", "truth"):
        files.photo(part)
    elif part == "keypoints":
        files.joints()
    elif part == "densepose":
        files.densepose(_size(files, "person"))
    elif part == "parse":
        return files.labels(part, _size(files, "person"))
    elif part == "truth_parse":
        return files.labels(part, _size(files, "truth"))
    elif part == "agnostic_mask":
        files.mask(part, _size(files, "person"))
    elif part == "warped_mask":
        files.mask(part, _size(files, "warped_garment"))
    elif files.path("garment_mask") is not None:
        files.mask(part, _size(files, "garment"))
    else:
        try:
            garment = files.photo("garment")
        except DataError:
            return None  # reported as the garment's own problem
        files.garment_mask(garment)
    return None


def _size(files: PairFiles, picture: str) -> tuple[int, int] | None:
    """(width, height) of a picture of the pair, None where it cannot be told."""
    try:
        return images.photo_size(files.path(picture))
    except DataError:
        return None  # a missing picture is reported as its own problem


def _marker(config: DataConfig) -> Path:
    """The file whose existence says that this very folder was found clean."""
    root = dataset_root(config)
    where = str(root.resolve()) if isinstance(root, Path) else str(root)
    settings = [getattr(config, name) for name in SETTINGS]
    digest = hashlib.sha256(json.dumps([where, *settings]).encode())
    for line in fingerprint(root):
        digest.update(os.fsencode(line))  # names may be in any bytes
    return _cache() / digest.hexdigest()


def _cache() -> Path:
    """Where marks of clean folders go.

    Not the data folder: it is often read-only, and so are some home folders of clusters.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for base in (home, tempfile.gettempdir()):
        folder = Path(base) / "vton" / "checked"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise DataError(
        f"no folder to remember data checks in: {home} and {base} are read-only. Set "
        "XDG_CACHE_HOME."
    )
