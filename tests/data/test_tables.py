"""Parquet tables read in place, and `vton data convert` from any layout to the official one."""

import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.folders import (
    config,
    figure,
    same_record,
    save,
    write_dresscode,
    write_json,
    write_viton_hd,
)
from vton.cli import main
from vton.data import labels
from vton.data.check import check_folder, require_clean
from vton.data.convert import convert
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.sample import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

IDS = {"train": ["00000_00", "00001_00", "00002_00"], "test": ["01000_00", "01001_00"]}
FILES = {  # column -> file of an id
    "image": "image/{}.jpg",
    "cloth": "cloth/{}.jpg",
    "cloth-mask": "cloth-mask/{}.jpg",
    "image-densepose": "image-densepose/{}.jpg",
    "image-parse-v3": "image-parse-v3/{}.png",
}
TEXT = "openpose_json/{}_keypoints.json"


def write_tables(root: Path, out: Path, names=None, bare=False, ids=True, **more) -> Path:
    """The folder's files as `datasets` stores them, two rows in a group.

    names: other columns; bare: bytes instead of structs; ids: a column of them.
    """
    out.mkdir(parents=True)
    for split, listed in IDS.items():
        columns = {}
        for column, file in FILES.items():
            cells = []
            for id_ in listed:
                content = (root / split / file.format(id_)).read_bytes()
                cell = {"bytes": content, "path": None}
                cells.append(content if bare else cell)
            columns[(names or {}).get(column, column)] = cells
        texts = [(root / split / TEXT.format(id_)).read_text() for id_ in listed]
        columns["openpose_json"] = texts
        if ids:
            columns["id"] = listed
        for name, values in more.get(split, {}).items():
            columns[name] = values
        table = pyarrow.table(columns)
        parquet.write_table(table, out / f"{split}-00000-of-00001.parquet", row_group_size=2)
    return out


@pytest.fixture
def root(tmp_path):
    return write_viton_hd(tmp_path / "files", train=3, test=2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def records(root, split="train", order="paired", **settings):
    settings = {"densepose": True, **settings}
    pairs = TryOnDataset(open_folder(config("viton_hd", root, **settings)), split, order)
    return [pairs.record(index) for index in range(len(pairs))]


@pytest.mark.parametrize("bare", [False, True])
def test_tables_give_what_the_files_give(root, tmp_path, bare):
    tables = write_tables(root, tmp_path / "tables", bare=bare)
    shutil.copy(root / "test_pairs.txt", tables)
    for split, order in (("train", "paired"), ("test", "paired"), ("test", "unpaired")):
        pairs = zip(records(root, split, order), records(tables, split, order), strict=True)
        assert all(same_record(one, other) for one, other in pairs)
    settings = config("viton_hd", tables, densepose=True)
    assert not [str(one) for one in check_folder(settings) if one.severity != "note"]
    require_clean(settings)


def test_a_folder_in_tables_can_be_sent_to_a_process(root, tmp_path):
    tables = write_tables(root, tmp_path / "tables")
    folder = open_folder(config("viton_hd", tables))
    again = pickle.loads(pickle.dumps(TryOnDataset(folder, "train", "paired")))
    assert same_record(again.record(1), records(root, densepose=False)[1])


def test_columns_are_chosen_by_name(root, tmp_path):
    names = {"image": "photo", "cloth": "product", "image-parse-v3": "segmentation"}
    tables = write_tables(root, tmp_path / "tables", names)
    (tables / "test-00000-of-00001.parquet").rename(tables / "validation-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"no column of persons .*data\.columns"):
        records(tables)
    chosen = ("person=photo", "garment=product", "parse=segmentation", "test=validation")
    for split in ("train", "test"):
        pairs = zip(records(root, split), records(tables, split, columns=chosen), strict=True)
        assert all(same_record(one, other) for one, other in pairs)
    for wrong, words in (
        ("person=foto", "no column 'foto'; it has photo"),
        ("persn=photo", "is not part=column"),
        ("person", "is not part=column"),
    ):
        with pytest.raises(DataError, match=words):
            records(tables, columns=(wrong,))


def test_ids_captions_and_unpaired_garments_from_columns(root, tmp_path):
    more = {
        "train": {"caption": ["a", "b", None]},
        "test": {"caption": ["long sleeve", ""], "unpaired_garment": ["01001_00.jpg", "01000_00"]},
    }
    tables = write_tables(root, tmp_path / "tables", **more)
    folder = open_folder(config("viton_hd", tables))
    pairs = TryOnDataset(folder, "test", "unpaired")
    assert pairs.pair_ids == ["01000_00__01001_00", "01001_00__01000_00"]
    assert pairs[1].garment_caption == "a photo of long sleeve"
    assert pairs[0].garment_caption == "a photo of shirts"
    numbered = write_tables(root, tmp_path / "numbered", ids=False)
    assert [record.pair.person for record in records(numbered)] == IDS["train"]
    twice = write_tables(root, tmp_path / "twice", train={"name": ["x"] * 3}, ids=False)
    with pytest.raises(DataError, match=r"two rows are called x.*data\.columns=\[id="):
        records(twice)


def test_ids_with_blanks_keep_their_pairs_and_captions(root, tmp_path, capsys):
    listed = {"train": ["my photo 1", "b", "c"], "test": ["d e", "f"]}
    more = {
        split: {"id": ids, "caption": [f"top of {id_}" for id_ in ids]}
        for split, ids in listed.items()
    }
    more["test"]["unpaired_garment"] = ["f", "d e"]
    tables = write_tables(root, tmp_path / "tables", ids=False, **more)
    converted(tables, tmp_path / "out", capsys)
    for where in (tables, tmp_path / "out"):
        found = records(where)
        assert [record.pair.person for record in found] == listed["train"]
        assert [record.annotation for record in found] == more["train"]["caption"]
        found = records(where, "test", "unpaired")
        assert [(r.pair.person, r.pair.garment) for r in found] == [("d e", "f"), ("f", "d e")]
    lines = (tmp_path / "out/train_pairs.txt").read_text().splitlines()
    assert lines[:2] == ["my photo 1.jpg\tmy photo 1.jpg", "b.jpg b.jpg"]


def test_a_stray_table_does_not_hide_a_folder(root):
    expected = records(root)
    parquet.write_table(pyarrow.table({"x": [1]}), root / "train/notes.parquet")
    parquet.write_table(pyarrow.table({"x": [1]}), root / "notes.parquet")
    assert all(same_record(a, b) for a, b in zip(records(root), expected, strict=True))


def test_broken_tables_are_named(root, tmp_path):
    tables = write_tables(root, tmp_path / "tables")
    file = tables / "train-00000-of-00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:500])
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet is no readable parquet"):
        records(tables)
    table = parquet.read_table(io.BytesIO(whole))
    parquet.write_table(table.drop_columns(["image-parse-v3"]), file)
    with pytest.raises(DataError, match="lacks columns that others have: image-parse-v3"):
        records(tables)
    cells = [{"bytes": None, "path": "a.jpg"}] * 3
    position = table.schema.get_field_index("cloth")
    parquet.write_table(table.set_column(position, "cloth", pyarrow.array(cells)), file)
    with pytest.raises(DataError, match="column cloth holds NoneType"):
        records(tables)


def damaged(file: Path, column: str) -> None:
    """Overwrite the pages of a column, whose footer stays."""
    group = parquet.ParquetFile(file).metadata.row_group(0)
    (chunk,) = [
        group.column(number)
        for number in range(group.num_columns)
        if group.column(number).path_in_schema == column
    ]
    starts = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
    content = bytearray(file.read_bytes())
    content[min(starts) : min(starts) + chunk.total_compressed_size] = (
        b"\xff" * chunk.total_compressed_size
    )
    file.write_bytes(content)


@pytest.mark.parametrize("column", ["id", "caption", "image.path", "cloth.bytes"])
def test_a_damaged_column_is_one_line(root, tmp_path, column):
    more = {"train": {"caption": ["a", "b", "c"]}, "test": {"caption": ["d", "e"]}}
    tables = write_tables(root, tmp_path / "tables", ids=column != "image.path", **more)
    damaged(tables / "train-00000-of-00001.parquet", column)
    words = (
        rf"train-00000-of-00001\.parquet: column {column.removesuffix('.bytes')} cannot be read in "
        r"row group 0 \([^\n]*\)\. Copy the file again\."
    )
    with pytest.raises(DataError, match=words):
        records(tables)
    (problem, *_) = [one for one in check_folder(config("viton_hd", tables)) if one.path]
    assert "cannot be read in row group 0" in str(problem)


def test_texts_of_other_types(root, tmp_path):
    """Whole numbers, bytes and lists of captions are read; what is no text is named."""

    def tables(name, ids, captions):
        more = {
            split: {"id": ids[split], "caption": captions[split]} for split in ("train", "test")
        }
        return write_tables(root, tmp_path / name, ids=False, **more)

    names = {"train": [b"a.1", b"b.png", b"c"], "test": [b"x/d.JPG", b"e.webp"]}
    said = {"train": [["red top", "other"], [], None], "test": [[" \n"], ["a", "b"]]}
    found = records(tables("some", names, said))
    assert [record.pair.person for record in found] == ["a.1", "b", "c"]
    assert [record.annotation for record in found] == ["red top", "shirts", "shirts"]
    found = records(tmp_path / "some", "test")
    assert [(one.pair.person, one.annotation) for one in found] == [("d", "shirts"), ("e", "a")]
    numbers = {"train": [7, 8, 9], "test": [0, 1]}
    found = records(tables("numbers", numbers, {"train": [b"x"] * 3, "test": [b"y"] * 2}))
    assert [(one.pair.person, one.annotation) for one in found] == [(i, "x") for i in "789"]
    texts = {"train": ["a", "b", "c"], "test": ["d", "e"]}
    floats = {"train": [1.0, 2.0, 3.0], "test": [4.0, 5.0]}
    latin = {"train": [b"\xff", b"b", b"c"], "test": [b"d", b"e"]}
    for name, ids, captions, words in (
        ("floats", floats, texts, r"column id holds double, not text.*data\.columns=\[id=COLUMN\]"),
        ("latin", latin, texts, r"column id cannot be read in row group 0 \('utf-8'"),
        ("bools", texts, {"train": [True] * 3, "test": [True] * 2}, "column caption holds bool"),
        ("lists", {"train": [["a"]] * 3, "test": [["d"]] * 2}, texts, "column id holds list<"),
    ):
        with pytest.raises(DataError, match=words):
            records(tables(name, ids, captions))


def test_a_blank_caption_is_none(root, tmp_path):
    more = {"train": {"caption": ["red", " ", "blue"]}, "test": {"caption": ["", "\t"]}}
    tables = write_tables(root, tmp_path / "tables", **more)
    assert [one.annotation for one in records(tables)] == ["red", "shirts", "blue"]
    assert [one.annotation for one in records(tables, "test")] == ["shirts", "shirts"]


def converted(source, out, capsys, *more) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["data", "convert", str(source), "--out", str(out), *more])
    done = capsys.readouterr()
    assert not stop.value.code, done.err
    return done.out


def test_tables_become_files_or_shards(root, tmp_path, capsys):
    tables = write_tables(root, tmp_path / "tables")
    shutil.copy(root / "test_pairs.txt", tables)
    said = converted(tables, tmp_path / "out", capsys)
    assert said.startswith("3 train paired, 2 test paired, 2 test unpaired pairs")
    assert said.endswith(f"Use it: data=viton_hd data.root={tmp_path / 'out'}\n")
    converted(tables, tmp_path / "shards", capsys, "--shards")
    assert (tmp_path / "shards/shards.json").is_file()
    for where in ("out", "shards"):
        for split, order in (("train", "paired"), ("test", "unpaired")):
            new = records(tmp_path / where, split, order)
            pairs = zip(records(root, split, order), new, strict=True)
            assert all(same_record(one, other) for one, other in pairs)
    photo = "train/image/00001_00.jpg"
    assert (tmp_path / "out" / photo).read_bytes() == (root / photo).read_bytes()


def test_another_methods_package_becomes_official(root, tmp_path, capsys):
    """GP-VTON's labels, DensePose ids, lists and folder names."""
    to_29 = {int(ours): theirs for theirs, ours in reversed(list(enumerate(labels.FROM_BYTEDANCE)))}
    other = shutil.copytree(root, tmp_path / "other")
    for split, listed in IDS.items():
        for id_ in listed:
            drawn = figure(int(id_[:5]))
            theirs = np.vectorize(to_29.get)(drawn["parse"]).astype(np.uint8)
            save(other / split / f"parse-bytedance/{id_}.png", theirs)
            save(other / split / f"densepose/{id_}.png", drawn["parts"])
        shutil.rmtree(other / split / "image-parse-v3")
        shutil.rmtree(other / split / "image-densepose")
        (other / split / "cloth-mask").rename(other / split / "cloth_mask-bytedance")
    (other / "test_pairs.txt").rename(other / "test_pairs_unpaired_1018.txt")
    write_json(other / "test_gpt4o.json", {"01000_00": "a red top"})
    converted(other, tmp_path / "out", capsys)
    names = {path.name for path in (tmp_path / "out/test").iterdir()}
    assert {"image-parse-v3", "image-densepose", "cloth-mask"} < names
    assert not {"parse-bytedance", "densepose", "cloth_mask-bytedance"} & names
    stored = Image.open(tmp_path / "out/test/image-parse-v3/01000_00.png")
    assert stored.mode == "P" and stored.getpalette()[:768] == list(labels.VITON_HD_PALETTE)
    for order in ("paired", "unpaired"):
        for one, two in zip(
            records(other, "test", order), records(tmp_path / "out", "test", order), strict=True
        ):
            assert same_record(one, two)
    assert records(tmp_path / "out", "test")[0].annotation == "a red top"


def test_dresscode_keeps_its_layout(tmp_path, capsys):
    root = write_dresscode(tmp_path / "d", count=2)
    (root / "dresses/dc_caption.txt").write_text("000008_1.jpg long dress\n")
    (root / "upper_body/stray.txt").write_text("no list")
    converted(root, tmp_path / "out", capsys)
    settings = {"densepose": True}
    for split, order in (("train", "paired"), ("test", "unpaired")):
        one, two = (
            TryOnDataset(open_folder(config("dresscode", where, **settings)), split, order)
            for where in (root, tmp_path / "out")
        )
        assert one.pair_ids == two.pair_ids
        for index in range(len(one)):
            assert same_record(one.record(index), two.record(index))
    assert (tmp_path / "out/test_pairs_unpaired.txt").read_text() == (
        root / "test_pairs_unpaired.txt"
    ).read_text()


def test_what_cannot_be_converted_is_one_line(root, tmp_path, capsys):
    def refused(*arguments) -> str:
        with pytest.raises(SystemExit, match="2"):
            main(["data", "convert", *map(str, arguments)])
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "needs one source and a target" in refused(root)
    assert "needs one source and a target" in refused("--out", tmp_path / "x")
    assert "exists" in refused(root, "--out", root)
    assert "no folder" in refused(tmp_path / "nowhere", "--out", tmp_path / "x")
    (root / "train/cloth/00001_00.jpg").unlink()
    assert "garment is missing" in refused(root, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".x-*"))


def igpair(root: Path) -> list[dict]:
    entries = []
    for number in range(3):
        save(root / f"images/{number:04d}.jpg", figure(number)["photo"])
        save(root / f"clothes/{number // 2:03d}.jpg", figure(number + 9)["photo"])
        save(root / f"densepose/{number:04d}.png", figure(number)["parts"])
        entry = {"image_file": f"/home/them/images/{number:04d}.jpg"}
        entry |= {"cloth_file": f"clothes/{number // 2:03d}.jpg", "text": ["a  red top", "other"]}
        entries.append(entry)
    write_json(root / "IGPair.json", entries)
    return entries


def test_igpair_becomes_viton_hds_layout(tmp_path, capsys):
    entries = igpair(tmp_path / "igpair")
    entries[2]["image_file"] = "images/0002 b.jpg"
    (tmp_path / "igpair/images/0002.jpg").rename(tmp_path / "igpair/images/0002 b.jpg")
    write_json(tmp_path / "igpair/IGPair.json", entries)
    converted(tmp_path / "igpair", tmp_path / "blank", capsys)
    (line,) = (tmp_path / "blank/train_pairs.txt").read_text().splitlines()[2:]
    assert line == "0002 b.jpg\t0002 b.jpg"
    captions = (tmp_path / "blank/train/image_descriptions.txt").read_text().splitlines()
    assert captions[1:] == ["0001.jpg: a red top", "0002 b.jpg\ta red top"]
    (tmp_path / "igpair/images/0002 b.jpg").rename(tmp_path / "igpair/images/0002.jpg")
    entries = igpair(tmp_path / "igpair")
    said = converted(tmp_path / "igpair", tmp_path / "out", capsys)
    assert said.startswith("3 train paired pairs") and "no parse maps" in said
    out = tmp_path / "out"
    lines = [f"{number:04d}.jpg {number:04d}.jpg" for number in range(3)]
    assert (out / "train_pairs.txt").read_text().splitlines() == lines
    for folder, place, count in (("image", "images/0002.jpg", 3), ("cloth", "clothes/001.jpg", 3)):
        copied = (out / f"train/{folder}/0002.jpg").read_bytes()
        assert copied == (tmp_path / "igpair" / place).read_bytes()
        assert len(list((out / "train" / folder).iterdir())) == count
    pair = open_folder(config("viton_hd", out)).pairs("train", "paired")[0]
    files = open_folder(config("viton_hd", out)).files("train", "paired", pair)
    assert files.annotation() == "a red top"
    assert np.array_equal(files.densepose(None), figure(0)["parts"])

    text = (tmp_path / "igpair/IGPair.json").read_text()
    (tmp_path / "igpair/IGPair.json").write_text(text, encoding="utf-8-sig")
    converted(tmp_path / "igpair", tmp_path / "marked", capsys)

    save(tmp_path / "secret.jpg", figure(0)["photo"])
    first, second, _ = entries
    for listed, words in (
        ([first | {"image_file": "images/9999.jpg"}], "entry 1 of .* images/9999.jpg is missing"),
        ([first | {"image_file": None}], "entry 1 of .* has no image_file"),
        ([first | {"image_file": "../secret.jpg"}], "lies outside"),
        ([first, second, second, second], "entry 4 of .* repeats 0001 with 000"),
        ({}, "expected a list of entries"),
    ):
        write_json(tmp_path / "igpair/IGPair.json", listed)
        with pytest.raises(DataError, match=words):
            convert(config("viton_hd", tmp_path / "igpair"), tmp_path / "again")
        assert not (tmp_path / "again").exists()
