"""The data check: names every bad or missing file before a run meets the first of them.

Lists and folders are looked at here, the files of each pair in check_files.py. Real archives have
known oddities (garments without tags, keypoint files without a person, four "unpaired" lines that
are paired): these are notes, not problems.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from vton.config import DataConfig, data_root
from vton.data import crosscheck, images
from vton.data.check_files import DEPENDS_ON, GARMENT_PARTS, FileGroup, check_groups, file_groups
from vton.data.dataset import TryOnDataset, dataset_root, open_folder
from vton.data.folder import REQUIRED, Folder, Split
from vton.data.images import FileError, Origin
from vton.data.problems import Problem, about_list
from vton.data.sample import DataError, Order
from vton.data.source import fingerprint
from vton.progress import track

log = logging.getLogger(__name__)
_BrokenId = tuple[Split, bool, str]  # split, whether it is a garment's id, and the id

PAIR_LISTS: tuple[tuple[Split, Order], ...] = (
    ("train", "paired"),
    ("test", "paired"),
    ("test", "unpaired"),
)
# Optional parts that published sets have; a note says which are absent.
PUBLISHED_OPTIONS = ("garment_mask", "agnostic_mask", "densepose", "warped_garment")
NAMED_IDS = 8  # ids that a note names
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
            problems += _notes(pairs)
        except DataError as error:
            problems.append(about_list(folder, split, error))
            continue
        checked.append(pairs)
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
    groups: dict[tuple, FileGroup] = {}
    for pairs in checked:
        for group in file_groups(pairs):
            groups.setdefault(group.key, group)

    problems: list[Problem] = []
    shares: dict[Split, list[tuple[float, float]]] = {}
    broken: set[_BrokenId] = set()
    findings = check_groups(config, folder, list(groups.values()), workers)
    results = track(findings, "Checking", len(groups), "file group")
    for group, found in zip(groups.values(), results, strict=True):
        problems += found.problems
        if found.shares is not None:
            shares.setdefault(group.split, []).append(found.shares)
        for problem in found.problems:
            if problem.severity == "required":
                broken.add((group.split, group.parts == GARMENT_PARTS, problem.sample_id))

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
        return [about_list(pairs.folder, pairs.split, error)]
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
            problems.append(about_list(folder, split, error))
    return problems


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
