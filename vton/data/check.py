"""The data check: names every bad or missing file before a run meets the first of them.

It also checks that the files of a sample belong together (crosscheck.py). It reads each file with
the functions that training uses, so the two cannot disagree. Real archives have known oddities
(garments without tags, keypoint files without a person, four "unpaired" lines that are paired):
these are notes, not problems.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock

from vton.config import DataConfig, MaskRule, data_root
from vton.data import crosscheck, images
from vton.data.dataset import TryOnDataset, dataset_root, open_folder
from vton.data.derived.agnostic import agnostic_mask
from vton.data.folder import REQUIRED, Folder, PairFiles, Split
from vton.data.images import FileError, Origin
from vton.data.labels import GARMENT_LABELS
from vton.data.loading import end_with_parent
from vton.data.pairs import Pair
from vton.data.sample import Category, DataError, Order
from vton.data.shards import ShardError
from vton.data.source import fingerprint
from vton.progress import track

log = logging.getLogger(__name__)
Severity = Literal["required", "optional", "note"]
Size = tuple[int, int]
_BrokenId = tuple[Split, bool, str]  # split, whether it is a garment's id, and the id

PAIR_LISTS: tuple[tuple[Split, Order], ...] = (
    ("train", "paired"),
    ("test", "paired"),
    ("test", "unpaired"),
)
# Parts that belong to the person, to the garment, and to the pair.
PERSON_PARTS = ("person", "parse", "keypoints", "agnostic_mask", "densepose", "person_other")
GARMENT_PARTS = ("garment", "garment_mask")
PAIR_PARTS = ("warped_garment", "warped_mask", "truth", "truth_parse")
# The picture whose size a part must have.
OWNERS = {
    "parse": "person",
    "agnostic_mask": "person",
    "densepose": "person",
    "person_other": "person",
    "garment_mask": "garment",
    "warped_mask": "warped_garment",
    "truth_parse": "truth",
}
# Parts that mean nothing without another.
DEPENDS_ON = {"warped_mask": "warped_garment", "truth_parse": "truth"}

# Optional parts that published sets have; a note says which are absent.
PUBLISHED_OPTIONS = ("garment_mask", "agnostic_mask", "densepose", "warped_garment")
NAMED_IDS = 8  # ids that a note names
EXAMPLES = 3  # files that are named for each kind of problem
SMALL_MAP = 128  # px of the shorter side at which a rule is tried first
POOL_FROM = 1000  # groups of files below which starting processes takes longer than reading
CHUNK = 64  # groups of files handed to a process at once

CHECKS = 4  # raise it whenever a check is added, so that clean folders are checked again
# Settings that the result of a check depends on, besides the files.
SETTINGS = (
    "name",
    "category",
    "limit_train",
    "limit_test",
    "mask_source",
    "warp_source",
    "warp_folder",
    "warp_folder_unpaired",
    "warp_key",
    "mask_rule",
    "caption_source",
    "densepose",
    "list_train",
    "list_paired",
    "list_unpaired",
    "person_other",
    "columns",
)


@dataclass(frozen=True)
class Problem:
    """One finding.

    A "required" one stops training, an "optional" one is about files that this configuration does
    not read, a "note" is not a problem.
    """

    dataset: str
    split: str
    sample_id: str  # "" when it is about a whole list or folder
    path: str
    severity: Severity
    message: str  # what is wrong and what to do
    kind: str = ""  # what is wrong, worded alike for all problems of a kind; "" for a unique one
    advice: str = ""  # what to do

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.dataset, self.split, self.sample_id)))
        return f"{where}: {self.message}"


@dataclass
class _Found:
    """What the files of one task showed."""

    problems: list[Problem] = field(default_factory=list)
    shares: tuple[float, float] | None = None  # crosscheck.joint_shares of its person


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
        return [Problem(config.name, "", "", data_root(config), "required", str(error))]
    problems: list[Problem] = []
    checked: list[TryOnDataset] = []
    for split, order in PAIR_LISTS:
        try:
            lacking = folder.lacks(split, order)
            if lacking:
                root = str(folder.root)
                problems.append(Problem(folder.dataset, split, "", root, "note", lacking))
                continue
            pairs = TryOnDataset(folder, split, order)
        except DataError as error:
            problems.append(_about_list(folder, split, error))
            continue
        checked.append(pairs)
        problems += _notes(pairs)
        problems += _absent_folders(pairs)
        problems += _captions(pairs)
    problems += _check_files(config, folder, checked, workers)
    # A list that two orders share, or a folder that many files lie in, fails several times with the
    # same words.
    return list(dict.fromkeys(problems))


def _check_files(
    config: DataConfig, folder: Folder, checked: Sequence[TryOnDataset], workers: int
) -> list[Problem]:
    """Read every file of the lists once; problems of files, then of splits, then of pairs."""
    tasks: dict[tuple, _Task] = {}
    for pairs in checked:
        for task in _tasks(pairs):
            tasks.setdefault(task.key, task)

    problems: list[Problem] = []
    shares: dict[Split, list[tuple[float, float]]] = {}
    broken: set[_BrokenId] = set()
    results = track(
        _run(config, folder, list(tasks.values()), workers), "Checking", len(tasks), "file group"
    )
    for task, found in zip(tasks.values(), results, strict=True):
        problems += found.problems
        if found.shares is not None:
            shares.setdefault(task.split, []).append(found.shares)
        for problem in found.problems:
            if problem.severity == "required":
                broken.add((task.split, task.parts == GARMENT_PARTS, problem.sample_id))

    root = str(folder.root)
    for split, split_shares in shares.items():
        doubt = crosscheck.on_average(split_shares)
        if doubt:
            problems.append(Problem(folder.dataset, split, "", root, "required", f"{doubt}."))
    problems += _completeness(checked, broken)
    return problems


def _completeness(checked: Sequence[TryOnDataset], broken: set[_BrokenId]) -> Iterator[Problem]:
    """For every list with unusable pairs, a note on how many pairs can be used."""
    for pairs in checked:
        complete = 0
        for pair in pairs.pairs:
            needed = {(pairs.split, False, pair.person_id), (pairs.split, True, pair.garment_id)}
            if not needed & broken:
                complete += 1
        if complete < len(pairs.pairs):
            note = f"{pairs.order}: {complete:,} of {len(pairs.pairs):,} listed pairs are complete"
            yield _note(pairs, note)


def require_clean(config: DataConfig, workers: int = 1) -> None:
    """Raise DataError with one line: the first broken required file, and how many there are.

    A clean result is remembered by the names, sizes and times of all files, so the next start takes
    seconds.
    """
    marker = _marker(config)
    with FileLock(marker.with_suffix(".lock")):  # one process checks, others wait for its marker
        if marker.exists():
            return
        problems = check_folder(config, workers)
        broken = [problem for problem in problems if problem.severity == "required"]
        if not broken:
            _warn_of_notes(problems)
            marker.touch()
            return
    refusal = "Training does not start: replacing samples would falsify a comparison."
    if len(broken) == 1:
        raise DataError(f"{broken[0]} {refusal}")
    raise DataError(
        f"{broken[0]} This and {len(broken) - 1} more required files below {dataset_root(config)} "
        f"cannot be used. {images.ADVICE} {refusal}"
    )


def _warn_of_notes(problems: Sequence[Problem]) -> None:
    """One line on the files that can be used but are odd: nothing else says so before training."""
    odd = [problem for problem in problems if problem.severity == "note" and problem.sample_id]
    if odd:
        more = f" {len(odd) - 1:,} more notes on single files: `make data-check`."
        log.warning("%s%s", odd[0], more if len(odd) > 1 else "")


def format_problems(problems: Sequence[Problem], where: str = "") -> str:
    """The findings for people: notes, then problems by kind with examples, then their number.

    where: the file that has the whole list, "" if there is none
    """
    lines = []
    cut = False
    for severity in ("note", "required", "optional"):
        groups: dict[tuple, list[Problem]] = {}
        for problem in problems:
            if problem.severity == severity:
                groups.setdefault(_group(problem), []).append(problem)
        for group in groups.values():
            if len(group) == 1:
                lines.append(f"{severity:<9} {group[0]}")
                continue
            first = group[0]
            examples = [f"{one.sample_id} ({one.path})" for one in group[:EXAMPLES]]
            more = ", ..." if len(group) > EXAMPLES else ""
            cut = cut or len(group) > EXAMPLES
            place = " ".join(filter(None, (first.dataset, first.split)))
            line = f"{severity:<9} {place}: {len(group):,} x {first.kind}: {', '.join(examples)}"
            lines.append(f"{line}{more}. {first.advice}".rstrip())
    count = Counter(problem.severity for problem in problems)
    if cut and where:
        lines.append(f"The whole list is in {where}.")
    elif cut:
        lines.append("--out FILE writes the whole list, --json prints it.")
    if count["required"] or count["optional"]:
        lines.append(f"{count['required']} required and {count['optional']} optional problems.")
    else:
        lines.append("All files can be read.")
    return "\n".join(lines)


def list_problems(problems: Sequence[Problem]) -> str:
    """Every note and problem on a line of its own."""
    lines = []
    for severity in ("note", "required", "optional"):
        for problem in problems:
            if problem.severity == severity:
                lines.append(f"{severity:<9} {problem}")
    return "\n".join(lines)


def _group(problem: Problem) -> tuple:
    """Equal for problems of one kind, up to numbers; problems without a kind stand alone."""
    if not problem.kind:
        return (problem,)
    return problem.split, _without_numbers(problem.kind), problem.advice


@lru_cache(maxsize=1000)
def _without_numbers(words: str) -> str:
    return re.sub(r"[0-9]+(?:[.,][0-9]+)*", "0", words)


def _notes(pairs: TryOnDataset) -> list[Problem]:
    """Notes on a list: its counts, the sources of masks and warps, odd lines."""
    folder, split, order = pairs.folder, pairs.split, pairs.order
    notes = []
    for category, count in Counter(pair.category for pair in pairs.pairs).items():
        note = f"{order}, {category}: {count:,} pairs"
        if folder.dataset != "synthetic":
            note += f" (official: {folder.expected[split, category]:,})"
        notes.append(note)
    sources = [f"{name} from {source}" for name, source in sorted(pairs.sources.items())]
    notes.append(f"{order}: {', '.join(sources)}")
    for part, owner in DEPENDS_ON.items():
        if owner == "truth" and order == "paired":
            continue  # the person is the truth
        if part not in folder.parts or folder.place(owner, split, order) is not None:
            continue
        if any(folder.has(place, split) for place in folder.places(part, order)):
            what, needed = folder.parts[part].what, folder.parts[owner].what
            notes.append(
                f"{order}: there is a folder with {what}, but none with {needed}: left out"
            )
    absent = []
    for part in folder.parts:
        if part in REQUIRED:
            continue
        partly = folder.partly_absent(part, split, order)
        if partly:
            notes.append(f"{order}: {folder.parts[part].what}: {partly}, so no category reads it")
        elif part in PUBLISHED_OPTIONS and folder.place(part, split, order) is None:
            absent.append(folder.parts[part].what)
    if absent:
        notes.append(f"{order}: no folder with {', '.join(absent)}")
    notes += _several_formats(pairs)
    same = [pair.person for pair in pairs.pairs if pair.person == pair.garment]
    if order == "unpaired" and same:
        notes.append(f"{len(same)} unpaired lines are in fact paired: {_first(same)}")
    repeated = [pair.person for pair, times in Counter(pairs.pairs).items() if times > 1]
    if repeated:
        notes.append(
            f"{order}: {len(repeated)} pairs are listed more than once: {_first(repeated)}"
        )
    return [_note(pairs, note) for note in notes]


def _several_formats(pairs: TryOnDataset) -> Iterator[str]:
    """A note for each part of which files differ in their format alone: one of them is read."""
    folder = pairs.folder
    for part, kind in folder.parts.items():
        try:
            passed_over = folder.passed_over(part, pairs.split, pairs.order)
        except DataError:
            continue  # a folder that cannot be listed, reported with its files
        if passed_over:
            path, taken = next(iter(passed_over.items()))
            yield (
                f"{kind.what}: {len(passed_over):,} files are not read, because there is one of "
                f"the same name in another format: {path} beside {taken}. Remove one of the two"
            )


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
    """An error about a whole list or folder, as a problem.

    Data set and split, which the problem has as fields, are cut from its message.
    """
    message = str(error).removesuffix(images.ADVICE).strip()
    for where in (f"{folder.dataset} {split}", folder.dataset):
        message = message.removeprefix(where).removeprefix(":").strip()
    return Problem(folder.dataset, split, "", str(folder.root), "required", message)


def _tasks(pairs: TryOnDataset) -> Iterable[_Task]:
    """The person's, the garment's and the pair's files of every pair, as a task each."""
    required = [*REQUIRED, "garment_mask", "truth", "truth_parse"]
    if pairs.mask_source == "folder":
        required.append("agnostic_mask")
    if pairs.warp_source == "folder":
        required += ["warped_garment", "warped_mask"]
    if pairs.folder.config.densepose:
        required.append("densepose")
    if pairs.folder.config.person_other:
        required.append("person_other")
    for pair in pairs.pairs:
        for parts in (PERSON_PARTS, GARMENT_PARTS, PAIR_PARTS):
            yield _Task(pairs.split, pairs.order, pair, parts, tuple(required))


def _run(config: DataConfig, folder: Folder, tasks: list[_Task], workers: int) -> Iterable[_Found]:
    """What each task found, in order."""
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
    end_with_parent()
    _folder = open_folder(config)


def _check_in_worker(task: _Task) -> _Found:
    return _check(_folder, task)


def _check(folder: Folder, task: _Task) -> _Found:
    """The problems of one task's files, each alone and compared with the others."""
    files = folder.files(task.split, task.order, task.pair)
    found = _Found()
    contents: dict[str, np.ndarray] = {}
    sizes: dict[str, Size] = {}
    for part in task.parts:
        # Without a folder the garment mask is derived, which can fail too. Absent folders of other
        # parts are reported once, not for every pair.
        if part != "garment_mask" and folder.place(part, task.split, task.order) is None:
            continue
        owner = DEPENDS_ON.get(part)
        if owner and folder.place(owner, task.split, task.order) is None:
            continue  # a note says so
        if part.startswith("truth") and task.order == "paired":
            continue  # the person is the truth
        try:
            content = _read(files, part, sizes)
            if content is not None:
                contents[part] = content
        except DataError as error:
            found.problems.append(_problem(error, files, part, task))
    found.problems += _doubts(files, contents, task)
    if "parse" in contents and "keypoints" in contents:
        found.shares = crosscheck.joint_shares(contents["keypoints"], contents["parse"])
    return found


def _problem(error: DataError, files: PairFiles, part: str, task: _Task) -> Problem:
    """An error that a reader raised, as a problem of the part's file."""
    dataset = files.folder.dataset
    severity: Severity = "required" if part in task.required else "optional"
    if isinstance(error, FileError):
        path, id_ = str(error.path), error.origin.id
        where = (dataset, task.split, id_, path)
        return Problem(*where, severity, error.problem, error.kind, error.advice)
    if isinstance(error, ShardError):
        path = str(files.path(part))
        return Problem(dataset, task.split, files.origin(part).id, path, "required", str(error))
    return _about_list(files.folder, task.split, error)


def _doubts(files: PairFiles, contents: dict[str, np.ndarray], task: _Task) -> Iterator[Problem]:
    """Signs that the files of one person, garment or pair do not belong together."""
    compared = dict(contents)
    if "warped_garment" in compared:
        compared |= _garment_of(files)
    for part, words, certain in crosscheck.doubts(files, compared):
        if part == "garment_mask" and task.parts != GARMENT_PARTS:
            continue  # reported with the garment's own files
        error = files.origin(part).error(words, files.path(part))
        problem = _problem(error, files, part, task)
        yield problem if certain else replace(problem, severity="note")
    parse, joints = contents.get("parse"), contents.get("keypoints")
    if joints is not None and not joints[:, 2].any():
        words = "keypoints show nobody"
        advice = "The pose map stays black; masks and warps come from the parse map alone."
        error = files.origin("keypoints").error(words, files.path("keypoints"), advice)
        yield replace(_problem(error, files, "keypoints", task), severity="note")
    if parse is None:
        return
    category, rule = task.pair.category, files.folder.config.mask_rule
    derived = "agnostic_mask" not in task.required
    if derived and joints is not None and not _paints(parse, joints, category, rule):
        words = f"parse map and keypoints leave data.mask_rule={rule} nothing to paint"
        advice = f"It finds no garment of {category}. Choose another rule, or drop the pair."
        error = files.origin("parse").error(words, files.path("parse"), advice)
        yield _problem(error, files, "parse", task)
    elif not np.isin(parse, GARMENT_LABELS[category]).any():
        words = f"parse map shows no garment of {category}"
        error = files.origin("parse").error(words, files.path("parse"))
        yield replace(_problem(error, files, "parse", task), severity="note")


def _paints(parse: np.ndarray, joints: np.ndarray, category: Category, rule: MaskRule) -> bool:
    """Whether a rule derives a mask that is not empty.

    parse: (H, W) in vton.data.labels; joints: (18, 3) in [0, 1]. A small copy of the map answers
    for nearly all people at a fraction of the cost; where it says no, the map itself is asked.
    """
    step = max(1, min(parse.shape) // SMALL_MAP)
    for labels in (np.ascontiguousarray(parse[::step, ::step]), parse):
        height, width = labels.shape
        if agnostic_mask(labels, joints * np.float32([width, height, 1]), category, rule).any():
            return True
    return False


def _garment_of(files: PairFiles) -> dict[str, np.ndarray]:
    """Picture and silhouette of a pair's garment, {} if one of them cannot be read."""
    try:
        garment = files.photo("garment")
        return {"garment": np.asarray(garment), "garment_mask": files.garment_mask(garment)}
    except DataError:
        return {}


def _read(files: PairFiles, part: str, sizes: dict[str, Size]) -> np.ndarray | None:
    """Read one part as training would; returns its content if crosscheck.py compares it.

    sizes: (width, height) of the pictures of the pair that have been read, by part. Broken and
        missing pictures are not among them; they are problems of their own.
    """
    if part in ("person", "garment", "warped_garment", "truth"):
        photo = files.photo(part)
        sizes[part] = photo.size
        return np.asarray(photo) if part in ("garment", "warped_garment") else None
    if part == "keypoints":
        return files.joints()
    size = sizes.get(OWNERS[part])
    if part == "person_other":
        files.photo(part, size)
        return None
    if part == "densepose":
        return files.densepose(size)
    if part in ("parse", "truth_parse"):
        return files.labels(part, size)
    if part != "garment_mask" or files.path("garment_mask") is not None:
        return files.mask(part, size)
    if "garment" in sizes:
        files.garment_mask(files.photo("garment"))
    return None


def _marker(config: DataConfig) -> Path:
    """The file that exists if this folder, in its present state, was found clean."""
    root = dataset_root(config)
    where = str(root.resolve()) if isinstance(root, Path) else str(root)
    settings = [getattr(config, name) for name in SETTINGS]
    digest = hashlib.sha256(json.dumps([CHECKS, where, *settings]).encode())
    for line in fingerprint(root):
        digest.update(os.fsencode(line))  # names may be in any bytes
    return _cache() / digest.hexdigest()


def _cache() -> Path:
    """The folder of the markers of clean data folders.

    It is not the data folder, which is often read-only, as are some home folders of clusters.
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
