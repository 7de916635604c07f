"""The data check of files: those of one person, garment or pair, each alone and all together.

Each file is read with the functions that training uses, so the two cannot disagree. Whether files
belong together is crosscheck.py's to say.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from vton.config import DataConfig, MaskRule
from vton.data import crosscheck
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.derived.agnostic import agnostic_mask
from vton.data.folder import REQUIRED, Folder, PairFiles, Split
from vton.data.images import FileError
from vton.data.labels import GARMENT_LABELS
from vton.data.loading import end_with_parent
from vton.data.pairs import Pair
from vton.data.problems import Problem, Severity, about_list
from vton.data.sample import Category, DataError, Order
from vton.data.shards import ShardError

Size = tuple[int, int]

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
SMALL_MAP = 128  # px of the shorter side at which a rule is tried first
POOL_FROM = 1000  # groups of files below which starting processes takes longer than reading
CHUNK = 64  # groups of files handed to a process at once


@dataclass
class Findings:
    """What the files of one group showed."""

    problems: list[Problem] = field(default_factory=list)
    shares: tuple[float, float] | None = None  # crosscheck.joint_shares of its person


@dataclass(frozen=True)
class FileGroup:
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
        """Equal for groups that read the same files: persons and garments recur in other lists."""
        person = "" if self.parts == GARMENT_PARTS else self.pair.person
        garment = "" if self.parts == PERSON_PARTS else self.pair.garment
        order = self.order if self.parts == PAIR_PARTS else ""
        return self.split, order, self.parts, self.pair.category, person, garment


def file_groups(pairs: TryOnDataset) -> Iterable[FileGroup]:
    """The person's, the garment's and the pair's files of every pair, as a group each."""
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
            yield FileGroup(pairs.split, pairs.order, pair, parts, tuple(required))


def check_groups(
    config: DataConfig, folder: Folder, groups: list[FileGroup], workers: int
) -> Iterable[Findings]:
    """What each group found, in order."""
    if workers <= 1 or len(groups) < POOL_FROM:
        for group in groups:
            yield _check_group(folder, group)
        return
    # Not forked: the parent may hold threads of torch and of a progress display.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _open_in_worker, (config,)) as pool:
        yield from pool.map(_check_in_worker, groups, chunksize=CHUNK)


def _open_in_worker(config: DataConfig) -> None:
    global _folder
    end_with_parent()
    _folder = open_folder(config)


def _check_in_worker(group: FileGroup) -> Findings:
    return _check_group(_folder, group)


def _check_group(folder: Folder, group: FileGroup) -> Findings:
    """The problems of one group's files, each alone and compared with the others."""
    files = folder.files(group.split, group.order, group.pair)
    found = Findings()
    contents: dict[str, np.ndarray] = {}
    sizes: dict[str, Size] = {}
    for part in group.parts:
        # Without a folder the garment mask is derived, which can fail too. Absent folders of other
        # parts are reported once, not for every pair.
        if part != "garment_mask" and folder.place(part, group.split, group.order) is None:
            continue
        owner = DEPENDS_ON.get(part)
        if owner and folder.place(owner, group.split, group.order) is None:
            continue  # a note says so
        if part.startswith("truth") and group.order == "paired":
            continue  # the person is the truth
        try:
            content = _read(files, part, sizes)
            if content is not None:
                contents[part] = content
        except DataError as error:
            found.problems.append(_problem(error, files, part, group))
    found.problems += _doubts(files, contents, group)
    if "parse" in contents and "keypoints" in contents:
        found.shares = crosscheck.joint_shares(contents["keypoints"], contents["parse"])
    return found


def _problem(error: DataError, files: PairFiles, part: str, group: FileGroup) -> Problem:
    """An error that a reader raised, as a problem of the part's file."""
    dataset = files.folder.dataset
    severity: Severity = "required" if part in group.required else "optional"
    if isinstance(error, FileError):
        path, id_ = str(error.path), error.origin.id
        where = (dataset, group.split, id_, path)
        return Problem(*where, severity, error.problem, error.kind, error.advice)
    if isinstance(error, ShardError):
        path = str(files.path(part))
        return Problem(dataset, group.split, files.origin(part).id, path, "required", str(error))
    return about_list(files.folder, group.split, error)


def _doubts(
    files: PairFiles, contents: dict[str, np.ndarray], group: FileGroup
) -> Iterator[Problem]:
    """Signs that the files of one person, garment or pair do not belong together."""
    compared = dict(contents)
    if "warped_garment" in compared:
        compared |= _garment_of(files)
    for part, words, certain in crosscheck.doubts(files, compared):
        if part == "garment_mask" and group.parts != GARMENT_PARTS:
            continue  # reported with the garment's own files
        error = files.origin(part).error(words, files.path(part))
        problem = _problem(error, files, part, group)
        yield problem if certain else replace(problem, severity="note")
    parse, joints = contents.get("parse"), contents.get("keypoints")
    if joints is not None and not joints[:, 2].any():
        words = "keypoints show nobody"
        advice = "The pose map stays black; masks and warps come from the parse map alone."
        error = files.origin("keypoints").error(words, files.path("keypoints"), advice)
        yield replace(_problem(error, files, "keypoints", group), severity="note")
    if parse is None:
        return
    category, rule = group.pair.category, files.folder.config.mask_rule
    derived = "agnostic_mask" not in group.required
    if derived and joints is not None and not _paints(parse, joints, category, rule):
        words = f"parse map and keypoints leave data.mask_rule={rule} nothing to paint"
        advice = f"It finds no garment of {category}. Choose another rule, or drop the pair."
        error = files.origin("parse").error(words, files.path("parse"), advice)
        yield _problem(error, files, "parse", group)
    elif not np.isin(parse, GARMENT_LABELS[category]).any():
        words = f"parse map shows no garment of {category}"
        error = files.origin("parse").error(words, files.path("parse"))
        yield replace(_problem(error, files, "parse", group), severity="note")


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
