"""Writes a rendered data set in parallel, and makes sure that a folder holds the right one."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from vton.data.loading import end_with_parent
from vton.data.sample import DataError
from vton.data.synthetic import write_dresscode, write_viton_hd
from vton.data.synthetic.catalogue import Catalogue, Defects, Entry, Layout
from vton.data.synthetic.files import Writer
from vton.progress import Progress

RENDERER_VERSION = 2  # raise it whenever any file comes out different
STAMP = "synthetic.json"  # written last: a folder without it is not complete
_WRITERS: dict[str, ModuleType] = {"viton_hd": write_viton_hd, "dresscode": write_dresscode}
_CHUNK = 16  # entries per task
_SMALLEST = 16  # px, of height and width
_LARGEST = {"viton_hd": 100_000, "dresscode": 1_000_000}  # ids have five or six digits


def write(
    root: Path | str,
    *,
    layout: Layout,
    size: tuple[int, int],
    train: int,
    test: int,
    seed: int,
    workers: int = 2,
    defects: Defects | None = None,
    other_clothes: bool = False,
) -> None:
    """Render a data set into the folder `root`.

    size: height, width. train, test: pairs, for dresscode in each category. The files depend on
    nothing but these arguments; `workers` processes share the work. other_clothes: also every
    person in the garment of the unpaired order. Raises DataError for arguments
    that make no data set.
    """
    root = Path(root)
    catalogue = _catalogue(layout, size, train, test, seed, defects, other_clothes)
    writer = Writer(root, catalogue)
    root.mkdir(parents=True, exist_ok=True)
    entries = catalogue.entries
    chunks = [entries[start : start + _CHUNK] for start in range(0, len(entries), _CHUNK)]
    records = []
    with Progress(f"Rendering {layout}", len(entries), "sample") as progress:
        for written in _run(partial(_write_chunk, writer), chunks, workers):
            records += written
            progress.advance(len(written))
    _WRITERS[layout].write_lists(writer, records)
    (root / STAMP).write_text(json.dumps(_stamp(catalogue), indent=2) + "\n", encoding="utf-8")


def ensure(
    root: Path | str,
    *,
    layout: Layout,
    size: tuple[int, int],
    train: int,
    test: int,
    seed: int,
    workers: int = 2,
    defects: Defects | None = None,
    other_clothes: bool = False,
) -> None:
    """The same as `write`, but does nothing if `root` already holds this data set.

    Rendering happens in a temporary folder beside `root`, which is renamed when complete, so `root`
    is never half written. Of several processes one renders and the others wait; what a killed one
    left behind is removed. Raises DataError if `root` holds something else.
    """
    root = Path(root).resolve()  # a link to an empty folder elsewhere stays one
    catalogue = _catalogue(layout, size, train, test, seed, defects, other_clothes)
    if _holds(root, catalogue):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if _holds(root, catalogue):
            return
        partial_root = root.with_name(f".{root.name}.partial")
        shutil.rmtree(partial_root, ignore_errors=True)
        try:
            write(
                partial_root,
                layout=layout,
                size=size,
                train=train,
                test=test,
                seed=seed,
                workers=workers,
                defects=defects,
                other_clothes=other_clothes,
            )
            try:
                partial_root.rename(root)
            except OSError:
                # Somebody else finished first, on a disk whose locks do not reach as far as it
                # does: theirs is as good if it is the same data set.
                if not _holds(root, catalogue):
                    raise
        finally:
            shutil.rmtree(partial_root, ignore_errors=True)


def _catalogue(
    layout: Layout,
    size: tuple[int, int],
    train: int,
    test: int,
    seed: int,
    defects: Defects | None,
    other_clothes: bool,
) -> Catalogue:
    """The catalogue of these arguments. Raises DataError for those that make no data set."""
    if layout not in _WRITERS:
        raise DataError(f"synthetic: layout is {layout!r}, expected one of {', '.join(_WRITERS)}.")
    height, width = (int(side) for side in size)
    if min(height, width) < _SMALLEST:
        raise DataError(
            f"synthetic: size {tuple(size)} is too small; height and width need {_SMALLEST} pixels "
            "at least."
        )
    if train < 1 or test < 2:
        raise DataError(
            f"synthetic: train={train}, test={test}; needs 1 training pair and 2 test pairs to "
            "exchange."
        )
    if other_clothes and train < 2:
        raise DataError("synthetic: other_clothes needs 2 training pairs to exchange.")
    catalogue = Catalogue(
        layout, (height, width), train, test, seed, defects or Defects(), other_clothes
    )
    if (train + test) * len(catalogue.categories) > _LARGEST[layout]:
        raise DataError(
            f"synthetic: {layout} numbers at most {_LARGEST[layout]} pairs; lower train or test."
        )
    return catalogue


def _write_chunk(writer: Writer, entries: tuple[Entry, ...]) -> list:
    layout = _WRITERS[writer.catalogue.layout]
    return [layout.write_entry(writer, entry) for entry in entries]


def _run(
    function: Callable[[tuple[Entry, ...]], list], chunks: list[tuple[Entry, ...]], workers: int
) -> Iterator[list]:
    """Results of `function` over the chunks, in order."""
    if workers <= 1 or len(chunks) == 1:
        yield from map(function, chunks)
        return
    # A fork of a process that already runs torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    processes = min(workers, len(chunks))
    with ProcessPoolExecutor(processes, context, end_with_parent) as pool:
        yield from pool.map(function, chunks)


def _stamp(catalogue: Catalogue) -> dict:
    stamp = {
        "renderer": RENDERER_VERSION,
        "layout": catalogue.layout,
        "size": list(catalogue.size),
        "train": catalogue.train,
        "test": catalogue.test,
        "seed": catalogue.seed,
        "defects": asdict(catalogue.defects),
    }
    if catalogue.other_clothes:  # folders from before know nothing of it
        stamp["other_clothes"] = True
    return stamp


def _holds(root: Path, catalogue: Catalogue) -> bool:
    """Whether `root` is this complete data set; False when there is nothing yet.

    Raises DataError for anything else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        stamp = json.loads((root / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(
            f"synthetic: {root} exists but has no readable {STAMP}: not a complete rendered data "
            "set. Choose another data.root, or remove the folder if you no longer need it."
        ) from None
    if not isinstance(stamp, dict):
        stamp = {}
    differences = []
    for key, wanted in _stamp(catalogue).items():
        if stamp.get(key) != wanted:
            differences.append(f"{key} is {stamp.get(key)}, wanted {wanted}")
    if differences:
        raise DataError(
            f"synthetic: {root} holds another rendered data set: {', '.join(differences)}. Choose "
            "another data.root, remove the folder to render it anew, or ask for the settings it "
            "has."
        )
    return True
