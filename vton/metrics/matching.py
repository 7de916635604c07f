"""Which files of several folders of pictures belong together, for `vton metrics`.

Files are matched by name without suffix; a prediction `person__garment` also matches a target
`person`. They lie directly in their folder, or in folders named upper_body, lower_body and dresses
below it, which then give the category. Nothing else is searched: a stray folder of previews must
not join a sample.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vton.data import images
from vton.data.images import SUFFIXES
from vton.data.sample import CATEGORIES, DataError, Order
from vton.metrics.pictures import require_none

OPTIONAL_FOLDERS = ("mask", "repaint_mask", "garment", "garment_mask")  # the optional folders
OF_GARMENT = ("garment", "garment_mask")  # parts that are named by garment, the others by person


@dataclass(frozen=True)
class Folders:
    """What to compare.

    Files of the optional folders are named as the targets, or as the garments of predictions.
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
class MatchedFiles:
    """A prediction's name, and the files that belong to it by part of `Folders`.

    Of a reference picture of FID and KID these are the target's alone.
    """

    name: str
    files: Mapping[str, Path]
    prompt: str = ""

    @property
    def category(self) -> str:
        return self.name.split("/")[0] if "/" in self.name else "all"


def match_files(folders: Folders, order: Order) -> tuple[list[MatchedFiles], list[MatchedFiles]]:
    """Predictions with the files that belong to them, and the reference pictures, sorted by name.

    In paired order every target must have one prediction and every prediction a target. Raises
    DataError naming the files that have none.
    """
    predictions = pictures_in(folders.pred)
    targets = pictures_in(folders.target)
    parts = {}
    for part in OPTIONAL_FOLDERS:
        folder = getattr(folders, part)
        if folder is not None:
            parts[part] = pictures_in(folder)
    prompts = read_prompts(folders.prompts) if folders.prompts else None

    problems: list[str] = []
    if folders.listed:
        targets = _listed(targets, folders, problems)
    if order == "paired":
        predictions = _one_for_each_target(predictions, targets, folders, problems)

    pairs = []
    for name, path in predictions.items():
        person = name
        files = {"pred": path}
        if order == "paired":
            person = target_of(name, targets)
            files["target"] = targets[person]
        files |= _parts_of(name, person, parts)
        problems += _lacking(files, folders, parts)
        prompt = ""
        if prompts is not None:
            prompt = prompts.get(name, prompts.get(person, ""))
            if name not in prompts and person not in prompts:
                problems.append(f"{path}: no prompt for it in {folders.prompts}")
        pairs.append(MatchedFiles(name, files, prompt))

    references = []
    masks = {part: files for part, files in parts.items() if part == "mask"}
    for name, path in targets.items():
        files = {"target": path} | _parts_of(name, name, masks)
        problems += _lacking(files, folders, masks)
        references.append(MatchedFiles(name, files))
    each_once = list(dict.fromkeys(problems))
    require_none(each_once, f"the files of {folders.pred} and {folders.target}")
    return pairs, references


def target_of(prediction: str, targets: Iterable[str]) -> str:
    """The target of a prediction: of its own name, or of the part before `__`."""
    return prediction if prediction in targets else prediction.partition("__")[0]


def garment_of(prediction: str) -> str:
    """The garment in `person__garment`, with the category's folder if there is one."""
    folder, slash, stem = prediction.rpartition("/")
    return folder + slash + stem.rpartition("__")[2]


def _listed(targets: Mapping[str, Path], folders: Folders, problems: list[str]) -> dict[str, Path]:
    """The targets that `folders.listed` names, with or without their category."""
    words = read_list(folders.listed)
    listed = {}
    absent = set(words)
    for name, path in targets.items():
        bare = Path(name).name
        if name in words or bare in words:
            listed[name] = path
            absent -= {name, bare}
    for name in sorted(absent):
        problems.append(f"{folders.target / name}: missing, but in {folders.listed}")
    return listed


def _one_for_each_target(
    predictions: Mapping[str, Path],
    targets: Mapping[str, Path],
    folders: Folders,
    problems: list[str],
) -> dict[str, Path]:
    """The prediction of each target, in the targets' order.

    Predictions without a target, second ones, and targets without a prediction are problems. Where
    targets are listed, predictions of others are left out.
    """
    names: dict[str, str] = {}  # of predictions, by target
    for name, path in predictions.items():
        target = target_of(name, targets)
        if target in names:
            first = predictions[names[target]]
            problems.append(f"{path}: beside {first} a second prediction for {targets[target]}")
        elif target in targets:
            names[target] = name
        elif not folders.listed:
            problems.append(f"{path}: no picture of that name in {folders.target}")
    for target, path in targets.items():
        if target not in names:
            missing = folders.pred / f"{target}{path.suffix}"
            problems.append(f"{missing}: missing, its target has no prediction")
    return {names[target]: predictions[names[target]] for target in sorted(names)}


def _parts_of(name: str, person: str, parts: Mapping[str, Mapping[str, Path]]) -> dict[str, Path]:
    """The files of the optional folders, by part, that belong to a picture of a person."""
    files = {}
    for part, stored in parts.items():
        names = (person, f"{person}_mask")
        if part in OF_GARMENT:
            names = (garment_of(name), person)
        for candidate in names:
            if candidate in stored:
                files[part] = stored[candidate]
                break
    return files


def _lacking(files: Mapping[str, Path], folders: Folders, parts: Iterable[str]) -> Iterator[str]:
    """A line for each part that a picture lacks."""
    for part in parts:
        if part in files:
            continue
        owner = "target"
        if part in OF_GARMENT or "target" not in files:
            owner = "pred"
        yield f"{files[owner]}: no file for it in {getattr(folders, part)}"


# ---- reading folders and lists ----


def pictures_in(folder: Path) -> dict[str, Path]:
    """Files by name without suffix, sorted; `<category>/<name>` below folders of categories.

    Raises DataError for a folder without pictures, and for two pictures of one name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    places = [folder / category for category in CATEGORIES if (folder / category).is_dir()]
    paths: list[Path] = []
    try:
        for place in places or [folder]:
            paths += place.iterdir()
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}.") from None

    pictures: dict[str, Path] = {}
    for path in sorted(paths):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        name = str(path.relative_to(folder).with_suffix(""))
        if name in pictures:
            raise DataError(f"{path} and {pictures[name]} have one name; keep one of them.")
        pictures[name] = path
    if not pictures:
        raise DataError(
            f"{folder}: no pictures ({', '.join(SUFFIXES)}) in it, "
            "nor in folders of categories below it."
        )
    return dict(sorted(pictures.items()))


def common_size(paths: Sequence[Path], any_size: bool) -> tuple[int, int]:
    """Height and width of most of the pictures, read from their headers.

    Raises DataError naming those that cannot be read or, unless any size will do, differ from most.
    """
    sizes = {path: images.photo_size(path) for path in paths}
    counts = Counter(size for size in sizes.values() if size is not None)
    problems = [f"{path}: not readable as a picture" for path in paths if sizes[path] is None]
    width, height = 0, 0
    if counts:
        (width, height), count = counts.most_common(1)[0]
        for path, size in sizes.items():
            if not any_size and size is not None and size != (width, height):
                problems.append(
                    f"{path}: {size[0]}x{size[1]} (width x height), "
                    f"but {count} of {len(paths)} are {width}x{height}"
                )
    where = f"the pictures of {paths[0].parent} (--size brings them all to one size)"
    require_none(problems, where)
    return height, width


def read_list(path: Path) -> set[str]:
    """The first word of each line, without a picture's suffix. Raises DataError without any."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as a list of names: {error}.") from None
    names = set()
    for line in lines:
        if line.strip():
            word = Path(line.split()[0])
            picture = word.suffix.lower() in SUFFIXES
            names.add(str(word.with_suffix("") if picture else word))
    if not names:
        raise DataError(f"{path}: an empty list; it must name the targets to compare.")
    return names


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by name from a JSON file. Raises DataError for any other content."""
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}.") from None
    named = isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values())
    if not named:
        raise DataError(f'{path}: expected prompts by name, {{"00001_00": "a photo of ..."}}.')
    return prompts
