"""Which files of several folders of pictures belong together, for `vton metrics`.

Files are matched by what their names say (naming.py), without suffix. They lie directly in their
folder, or in folders named upper_body, lower_body and dresses below it, which then give the
category. The root of VITON-HD or DressCode stands for the pictures of its test split: persons as
targets, garments as garments. Nothing else is searched: a stray folder of previews must not join a
sample.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vton.data import images
from vton.data.images import SUFFIXES
from vton.data.pairs import columns_of
from vton.data.sample import CATEGORIES, DataError, Order
from vton.data.source import case_differs
from vton.metrics.naming import Named, Names, garment_in, other_garment, read_name
from vton.metrics.pictures import require_none

UNREAD = (".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif", ".avif")  # pictures too
# The optional folders.
OPTIONAL_FOLDERS = ("mask", "repaint_mask", "pred_mask", "garment", "garment_mask")
OF_GARMENT = ("garment", "garment_mask")  # parts that are named by garment, the others by person
# Where the roots of data sets hold the parts of their test split.
VITON_HD_TEST = {
    "target": "test/image",
    "garment": "test/cloth",
    "garment_mask": "test/cloth-mask",
    "repaint_mask": "test/agnostic-mask",
}
IMAGES = "images"  # DressCode's, of persons (ID_0) and garments (ID_1)
DRESSCODE_ENDINGS = {"target": "_0", "garment": "_1"}


@dataclass(frozen=True)
class Folders:
    """What to compare.

    Files of the optional folders are named as the targets, or as the garments of predictions.
    """

    pred: Path
    target: Path
    mask: Path | None = None  # where the targets show the garment: rows for the garment region
    repaint_mask: Path | None = None  # where the method painted; outside, the target is pasted
    pred_mask: Path | None = None  # where the predictions show the garment; named as these
    garment: Path | None = None  # in-shop pictures, for garment-driven metrics
    garment_mask: Path | None = None  # their silhouettes
    prompts: Path | None = None  # JSON: name -> prompt
    listed: Path | None = None  # text: only these targets, the first word of each line


@dataclass(frozen=True)
class MatchedFiles:
    """A pair's name, and the files that belong to it by part of `Folders`.

    Of a reference picture of FID and KID these are the target's alone.
    """

    # Of the target in paired order. In unpaired order person__garment, as far as the file's name
    # says them, so that methods which name their files otherwise have the same pairs.
    name: str
    files: Mapping[str, Path]
    person: str  # the target's name; the pair's where there is none
    prompt: str = ""

    @property
    def category(self) -> str:
        named = self.person if "/" in self.person else self.name
        return named.split("/")[0] if "/" in named else "all"


def match_files(folders: Folders, order: Order) -> tuple[list[MatchedFiles], list[MatchedFiles]]:
    """Predictions with the files that belong to them, and the reference pictures, sorted by name.

    In paired order every target must have one prediction and every prediction a target. Raises
    DataError naming the files that have none.
    """
    predictions = pictures_in(folders.pred)
    problems: list[str] = []
    targets, listed = _targets(folders, order, problems)
    parts = {}
    for part in OPTIONAL_FOLDERS:
        folder = getattr(folders, part)
        if folder is not None:
            parts[part] = pictures_in(folder, part)
    prompts = read_prompts(folders.prompts) if folders.prompts else {}

    of_targets = Names(targets)
    named = {name: read_name(name, targets, of_targets) for name in predictions}
    if order == "paired":
        matched = _one_for_each_target(predictions, named, targets, folders, problems)
    else:
        matched = _each_once(predictions, named, listed, problems)

    of_parts = {part: Names(stored) for part, stored in parts.items()}
    pairs = []
    for pair, name in sorted(matched.items()):
        person = named[name].person
        garment = named[name].garment
        if order == "unpaired" and not garment:
            garment = next(iter(listed.get(person, ())), "")  # several are a problem already
            if person and not garment and any(part in parts for part in OF_GARMENT):
                problems.append(
                    f"{predictions[name]}: its name says no garment; give --list a file that "
                    "names person and garment on each line"
                )
                continue
        files = {"pred": predictions[name]}
        if order == "paired":
            files["target"] = targets[person]
        elif person:
            files["person"] = targets[person]
        files |= _parts_of(name, person, garment, parts, of_parts)
        problems += _lacking(files, folders, parts)
        prompt = ""
        if folders.prompts:
            known = [key for key in (name, pair, person) if key in prompts]
            if known:
                prompt = prompts[known[0]]
            else:
                problems.append(f"{predictions[name]}: no prompt for it in {folders.prompts}")
        pairs.append(MatchedFiles(pair, files, person or pair, prompt))

    references = []
    masks = {"mask": parts["mask"]} if "mask" in parts else {}
    for name, path in targets.items():
        files = {"target": path} | _parts_of(name, name, "", masks, of_parts)
        problems += _lacking(files, folders, masks)
        references.append(MatchedFiles(name, files, name))
    each_once = list(dict.fromkeys(problems))
    require_none(each_once, f"the files of {folders.pred} and {folders.target}")
    return pairs, references


def _targets(
    folders: Folders, order: Order, problems: list[str]
) -> tuple[dict[str, Path], dict[str, tuple[str, ...]]]:
    """The targets to compare, and for listed ones the garments that the list puts beside them.

    DressCode's folders of pictures hold the training split too: its own test lists choose.
    """
    targets = pictures_in(folders.target, "target")
    if folders.listed:
        return _listed(targets, {"": folders.listed}, folders, problems)
    lists = {}
    for category in CATEGORIES:
        path = folders.target / category / f"test_pairs_{order}.txt"
        if path.is_file():
            lists[category] = path
    if lists:
        return _listed(targets, lists, folders, problems)
    if any((folders.target / category / IMAGES).is_dir() for category in CATEGORIES):
        raise DataError(
            f"{folders.target}: DressCode's pictures of both splits, without its "
            f"test_pairs_{order}.txt; name the targets with --list."
        )
    return targets, {}


def _listed(
    targets: Mapping[str, Path],
    lists: Mapping[str, Path],
    folders: Folders,
    problems: list[str],
) -> tuple[dict[str, Path], dict[str, tuple[str, ...]]]:
    """The targets that lists name, with or without their category, and garments beside them.

    lists: by the category whose targets they name, "" for all
    """
    listed = {}
    garments: dict[str, tuple[str, ...]] = {}
    for category, path in lists.items():
        words = read_list(path)
        absent = set(words)
        for name, picture in targets.items():
            bare = Path(name).name
            if category and not name.startswith(f"{category}/"):
                continue
            for word in (name, bare):
                if word in words:
                    listed[name] = picture
                    beside = (*garments.get(name, ()), *words[word])
                    garments[name] = tuple(dict.fromkeys(beside))
                    absent.discard(word)
        for name in sorted(absent):
            where = folders.target / category / name
            problems.append(f"{where}: missing, but in {path}")
    return dict(sorted(listed.items())), garments


def _one_for_each_target(
    predictions: Mapping[str, Path],
    named: Mapping[str, Named],
    targets: Mapping[str, Path],
    folders: Folders,
    problems: list[str],
) -> dict[str, str]:
    """The name of each target's prediction, by target.

    Predictions without a target, second ones, those in another garment, and targets without a
    prediction are problems. Where targets are listed, predictions of others are left out.
    """
    names: dict[str, str] = {}
    for name, path in predictions.items():
        target = named[name].person
        other = other_garment(target, named[name].garment) if target else ""
        if target in names:
            first = predictions[names[target]]
            problems.append(f"{path}: beside {first} a second prediction for {targets[target]}")
        elif other:
            problems.append(
                f"{path}: its name says garment {other}, not the one that {target} wears; "
                "score such predictions with --order unpaired"
            )
            names[target] = name
        elif target:
            names[target] = name
        elif not folders.listed:
            problems.append(f"{path}: no picture of that name in {folders.target}")
    for target, path in targets.items():
        if target not in names:
            missing = folders.pred / f"{target}{path.suffix}"
            problems.append(f"{missing}: missing, its target has no prediction")
    return names


def _each_once(
    predictions: Mapping[str, Path],
    named: Mapping[str, Named],
    listed: Mapping[str, Sequence[str]],
    problems: list[str],
) -> dict[str, str]:
    """The predictions' names by pair. A second one of a pair is a problem, and so is a name that
    does not say which of several listed garments it is.

    Where targets are listed, predictions of other persons are left out, unless no name says whose
    it is.
    """
    names: dict[str, str] = {}
    only_listed = bool(listed) and any(name.person for name in named.values())
    for name, path in predictions.items():
        person, garment = named[name]
        if only_listed and not person:
            continue
        beside = listed.get(person, ())
        if not garment and len(beside) > 1:
            problems.append(
                f"{path}: its name does not say which of the listed garments it shows: "
                f"{', '.join(beside)}; name it PERSON__GARMENT"
            )
            continue
        garment = garment or next(iter(beside), "")
        pair = f"{person}__{garment}" if person and garment else person or name
        if pair in names:
            problems.append(f"{path}: a second prediction beside {predictions[names[pair]]}")
        names[pair] = name
    return names


def _parts_of(
    name: str,
    person: str,
    garment: str,
    parts: Mapping[str, Mapping[str, Path]],
    of_parts: Mapping[str, Names],
) -> dict[str, Path]:
    """The files of the optional folders, by part, that belong to a picture of a person.

    garment: what the picture's name says of it; "" for the person's own
    """
    category = person.rpartition("/")[0] or name.rpartition("/")[0]
    files = {}
    for part, stored in parts.items():
        found = ""
        if part == "pred_mask" and (name in stored or f"{name}_mask" in stored):
            found = name if name in stored else f"{name}_mask"
        elif part in OF_GARMENT:
            words = garment or Path(name).name
            found = garment_in(words, of_parts[part], category)
            if not found:
                found = _of_person(person or name, stored, of_parts[part], category)
        else:
            found = _of_person(person or name, stored, of_parts[part], category)
        if found:
            files[part] = stored[found]
    return files


def _of_person(person: str, stored: Mapping[str, Path], names: Names, category: str) -> str:
    """The name of a person's file: their own, with `_mask`, or DressCode's of their garment."""
    bare = person.rpartition("/")[2]
    own, _, last = bare.rpartition("_")
    for candidate in (person, f"{person}_mask"):
        if candidate in stored:
            return candidate
    for candidate in (bare, f"{bare}_mask", f"{own}_1" if last == "0" else ""):
        found = names.find(candidate, category) if candidate else ""
        if found:
            return found
    return ""


def _lacking(files: Mapping[str, Path], folders: Folders, parts: Iterable[str]) -> Iterator[str]:
    """A line for each part that a picture lacks."""
    for part in parts:
        if part in files:
            continue
        owner = "target"
        if part in (*OF_GARMENT, "pred_mask") or "target" not in files:
            owner = "pred"
        yield f"{files[owner]}: no file for it in {getattr(folders, part)}"


# ---- reading folders and lists ----


def pictures_in(folder: Path, part: str = "pred") -> dict[str, Path]:
    """Files by name without suffix, sorted; `<category>/<name>` below folders of categories.

    part: of `Folders`; it decides which pictures of a data set's root are meant. Raises DataError
    for a folder without pictures, for two pictures of one name, and for pictures that would be left
    out: of other formats, and beside folders of categories.
    """
    if not folder.is_dir():
        problem = case_differs(folder) or "no such folder. Give one with pictures."
        raise DataError(f"{folder}: {problem}")
    pictures: dict[str, Path] = {}
    unread = []
    for category, place, ending in _places(folder, part):
        for path in _pictures_at(place):
            if not path.stem.endswith(ending):
                continue
            if path.suffix.lower() not in SUFFIXES:
                unread.append(path)
                continue
            name = f"{category}/{path.stem}" if category else path.stem
            if name in pictures:
                raise DataError(f"{path} and {pictures[name]} have one name; keep one of them.")
            pictures[name] = path
    if unread:
        raise DataError(
            f"{unread[0]}: {len(unread)} of the pictures of {folder} are none of "
            f"{', '.join(SUFFIXES)}, the formats that are read; convert them, or take them out."
        )
    if not pictures:
        raise DataError(
            f"{folder}: no pictures ({', '.join(SUFFIXES)}) in it, "
            "nor in folders of categories below it."
        )
    return dict(sorted(pictures.items()))


def _places(folder: Path, part: str) -> Iterator[tuple[str, Path, str]]:
    """Category, folder, and how the names there end, of every place that pictures lie in."""
    subfolder = VITON_HD_TEST.get(part)
    if subfolder and (folder / subfolder).is_dir():
        yield "", folder / subfolder, ""
        return
    found = [category for category in CATEGORIES if (folder / category).is_dir()]
    if not found:
        yield "", folder, ""
        return
    of_dataset = part in DRESSCODE_ENDINGS
    of_dataset &= any((folder / category / IMAGES).is_dir() for category in found)
    loose = [] if of_dataset else _pictures_at(folder)
    if loose:
        raise DataError(
            f"{loose[0]}: {len(loose)} pictures lie beside the folders {', '.join(found)} of "
            f"{folder}, which say the category; move them into one of these, or out of the way."
        )
    for category in found:
        place = folder / category
        if part in DRESSCODE_ENDINGS and (place / IMAGES).is_dir():
            yield category, place / IMAGES, DRESSCODE_ENDINGS[part]
        else:
            yield category, place, ""


def _pictures_at(place: Path) -> list[Path]:
    """The pictures directly in a folder, those that cannot be read too, sorted."""
    try:
        paths = sorted(place.iterdir())
    except OSError as error:
        raise DataError(f"{place}: cannot be listed: {error.strerror}.") from None
    known = (*SUFFIXES, *UNREAD)
    return [p for p in paths if p.suffix.lower() in known and not p.name.startswith(".")]


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


def read_list(path: Path) -> dict[str, tuple[str, ...]]:
    """The first words of lines and all second words beside them, without pictures' suffixes.

    Words are columns as in pair lists. Raises DataError for an empty list.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as a list of names: {error}.") from None
    names: dict[str, tuple[str, ...]] = {}
    for line in lines:
        columns = columns_of(line)
        if columns:
            name, *garment = map(_without_suffix, columns[:2])
            names[name] = tuple(dict.fromkeys((*names.get(name, ()), *garment)))
    if not names:
        raise DataError(f"{path}: an empty list; it must name the targets to compare.")
    return names


def _without_suffix(word: str) -> str:
    path = Path(word)
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by name from a JSON file. Raises DataError for any other content."""
    try:
        prompts = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}.") from None
    named = isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values())
    if not named:
        raise DataError(f'{path}: expected prompts by name, {{"00001_00": "a photo of ..."}}.')
    return prompts
