"""`vton data convert`: any data set that the readers know, written in the official layout.

Whatever the source calls its folders, lists and columns, and whether it is files, shards or tables,
the result has the names of the official archive. Files are copied byte for byte; only label maps
and DensePose ids of other numbering are written anew, in the official colours.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vton.config import DataConfig
from vton.data import igpair, labels
from vton.data.check import PAIR_LISTS
from vton.data.dataset import READERS, open_folder
from vton.data.densepose import draw_parts
from vton.data.dresscode import LISTS
from vton.data.folder import Folder, PairFiles, Place, Split
from vton.data.packing import write_folder
from vton.data.pairs import Pair
from vton.data.sample import CATEGORIES, DataError, Order
from vton.data.source import Source, case_differs, lexists, open_source
from vton.data.tables import pair_line
from vton.data.viton_hd import VitonHD
from vton.progress import track

# Official folders of other numbering than the files in them are copied from.
RELABELLED = {"parse-bytedance": "image-parse-v3", "densepose": "image-densepose"}
# What VITON-HD's labels lack becomes what lies there without it.
TO_VITON_HD = np.arange(labels.COUNT, dtype=np.uint8)
TO_VITON_HD[labels.BELT] = labels.PANTS
TO_VITON_HD[labels.BAG] = labels.BACKGROUND


def layout_of(source: Source) -> str:
    """The data set whose layout a folder has: dresscode with folders of categories.

    Those whose names have other capitals count, so that its reader names them.
    """
    for category in CATEGORIES:
        if (source / category).is_dir() or case_differs(source / category):
            return "dresscode"
    return "viton_hd"


def convert(config: DataConfig, out: Path, shards: bool = False) -> dict[str, int]:
    """Write the data set to the new folder `out`; returns the number of pairs by list.

    Lists that the source lacks are left out, as tables of one split lack the other's. Raises
    DataError where `out` holds anything, where there is no list at all, and for what no reader can
    use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists. Choose another folder.")
    foreign = igpair.is_igpair(Path(config.root))
    folder = None if foreign else open_folder(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        written = Path(temporary) / out.name
        if folder is None:
            counts = {"train paired": igpair.write_viton_hd(Path(config.root), written)}
        else:
            counts = _write(folder, written)
        if shards:
            layout = layout_of(written)
            plain = replace(config, name=layout, root=str(written), columns=())
            write_folder(READERS[layout](open_source(str(written)), plain, layout), out)
        else:
            if out.exists():
                out.rmdir()
            try:
                written.rename(out)
            except OSError as error:  # another process was first
                raise DataError(f"{out} cannot be written: {error.strerror}.") from None
    return counts


def _write(folder: Folder, out: Path) -> dict[str, int]:
    """Write all pairs of a folder in the official layout; returns their number by list."""
    lists: dict[tuple[Split, Order], list[Pair]] = {}
    problem: DataError | None = None
    for split, order in PAIR_LISTS:
        try:
            lists[split, order] = folder.pairs(split, order)
        except DataError as error:
            if "pair list is missing" not in str(error):
                raise
            problem = error
    if not lists:
        raise problem
    pair_files = []
    for (split, order), pairs in lists.items():
        for pair in pairs:
            pair_files.append(folder.files(split, order, pair))
    for files in track(pair_files, "Converting", len(pair_files), "pair"):
        _write_pair(files, out)
    if isinstance(folder, VitonHD):
        _write_viton_hd_lists(lists, out)
    else:
        _write_dresscode_lists(lists, out)
    for path in dict.fromkeys(_caption_files(folder, lists)):
        _write_bytes(out / _relative(path, folder.root), path.read_bytes())
    return {f"{split} {order}": len(pairs) for (split, order), pairs in lists.items()}


def _write_pair(files: PairFiles, out: Path) -> None:
    """Write every file of a pair under its official name, unless it exists already."""
    folder = files.folder
    base = out / _relative(folder.base(files.split, files.pair.category), folder.root)
    for part in folder.parts:
        if part.startswith("truth") and files.order == "paired":
            continue
        if part == "truth_parse" and folder.place("truth", files.split, files.order) is None:
            continue
        path = files.path(part)
        if path is None:
            continue
        place = _official(folder, part, files)
        content, suffix = _content(files, part, path)
        target = base / place.folder / f"{place.stem_of(files.pair)}{suffix}"
        if not target.exists():
            _write_bytes(target, content)


def _official(folder: Folder, part: str, files: PairFiles) -> Place:
    """The place of a part in the official layout."""
    used = folder.place(part, files.split, files.order)
    places = folder.places(part, files.order)
    if part == "densepose" and used.folder == "dense":  # label maps, which are official too
        return used
    if part.startswith("warped"):  # garment and mask stay together, named by person or by garment
        return used
    return places[0]


def _content(files: PairFiles, part: str, path: Source) -> tuple[bytes, str]:
    """Bytes and suffix of the official file; labels of another numbering are translated."""
    number = RELABELLED.get(path.parent.name)
    if part == "parse" and number:
        image = Image.fromarray(TO_VITON_HD[files.labels(part, None)])
        image.putpalette(labels.VITON_HD_PALETTE)
    elif part == "densepose" and number:
        image = Image.fromarray(draw_parts(files.densepose(None)))
    else:
        return path.read_bytes(), path.suffix
    stored = io.BytesIO()
    image.save(stored, "PNG")
    return stored.getvalue(), ".png"


def _write_viton_hd_lists(lists: dict[tuple[Split, Order], list[Pair]], out: Path) -> None:
    train = lists.get(("train", "paired"))
    if train:
        _write_list(out / "train_pairs.txt", [(p.person, p.garment) for p in train], " ")
    paired, unpaired = lists.get(("test", "paired")), lists.get(("test", "unpaired"))
    rows = [(pair.person, pair.garment) for pair in unpaired or ()]
    same = paired and [pair.person for pair in paired] == [person for person, _ in rows]
    if same:
        _write_list(out / "test_pairs.txt", rows, " ")
        return
    # Two lists of different persons, which one file cannot hold.
    if paired:
        own = [(pair.person, pair.garment) for pair in paired]
        _write_list(out / "test_pairs_paired.txt", own, " ")
    if rows:
        _write_list(out / "test_pairs_unpaired.txt", rows, " ")


def _write_dresscode_lists(lists: dict[tuple[Split, Order], list[Pair]], out: Path) -> None:
    for key, pairs in lists.items():
        root = []
        for number, category in enumerate(CATEGORIES):
            own = [(f"{p.person}_0", f"{p.garment}_1") for p in pairs if p.category == category]
            if own:
                _write_list(out / category / LISTS[key], own, "\t")
            root += [(*row, str(number)) for row in own]
        _write_list(out / LISTS[key], root, "\t")


def _write_list(path: Path, rows: Sequence[tuple[str, ...]], separator: str) -> None:
    lines = []
    for person, garment, *category in rows:
        columns = (f"{person}.jpg", f"{garment}.jpg", *category)
        lines.append(pair_line(*columns, separator=separator))
    _write_bytes(path, "".join(lines).encode())


def _caption_files(
    folder: Folder, lists: dict[tuple[Split, Order], list[Pair]]
) -> Iterator[Source]:
    for split, order in lists:
        for category in {pair.category for pair in lists[split, order]}:
            path = folder.caption_file(split, category)
            if lexists(path):
                yield path


def _relative(path: Source, root: Source) -> str:
    return str(path)[len(str(root)) :].strip("/")


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
