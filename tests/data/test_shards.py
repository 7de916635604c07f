"""Shards: the folder's batches bit for bit; what breaks is named; nothing unpickles."""

import itertools
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import fsspec
import pytest
import torch
import webdataset

from tests.data.folders import config, save, write_dresscode, write_viton_hd
from tests.served import Answer, serving
from vton.cli import main
from vton.data.check import check_folder
from vton.data.dataset import open_folder
from vton.data.module import TryOnDataModule
from vton.data.packing import write_folder
from vton.data.shards import INDEX, ShardError, ShardPath, Shards, ShardWriter

SHARD_MB = 0.02  # several shards


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = write_viton_hd(tmp_path_factory.mktemp("data") / "plain", train=5, test=3)
    item = {"tag_name": "item", "tag_category": "shirt"}
    tags = [{"file_name": "00000_00.jpg", "tag_info": [item]}]
    (root / "train/vitonhd_train_tagged.json").write_text(json.dumps({"data": tags}))
    return root


@pytest.fixture(scope="module")
def sharded(root) -> Path:
    write_folder(open_folder(config("viton_hd", root)), root.parent / "sharded", SHARD_MB)
    return root.parent / "sharded"


def module(root, name="viton_hd", **settings) -> TryOnDataModule:
    return TryOnDataModule(config(name, root, **settings), seed=3, batch_size=2, eval_batch_size=2)


def assert_equal(one, other) -> None:
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(other, name)), name
        else:
            assert value == getattr(other, name), name


def assert_all_equal(batches, others) -> None:
    for one, other in zip(batches, others, strict=True):
        assert_equal(one, other)


def take(module, count: int) -> list:
    batches = itertools.islice(module.train_dataloader(), count)
    return [batch.to("cpu") for batch in batches]


@pytest.mark.parametrize("name", ["viton_hd", "dresscode"])
def test_batches_equal_those_of_the_folder_bit_for_bit(name, root, sharded, tmp_path):
    """Augmented training over an epoch's end, and both evaluation orders."""
    if name == "dresscode":
        root = write_dresscode(tmp_path / "plain")
        sharded = tmp_path / "sharded"
        write_folder(open_folder(config(name, root)), sharded, SHARD_MB)
    plain = module(root, name, densepose=True)
    stored = module(sharded, name, densepose=True)
    assert isinstance(stored.root, ShardPath) and len(list(sharded.glob("*.tar"))) > 2
    assert_all_equal(take(plain, 4), take(stored, 4))
    for order in ("paired", "unpaired"):
        assert_all_equal(plain.eval_dataloader(order), stored.eval_dataloader(order))


def test_the_stream_goes_on_in_the_middle_of_an_epoch(root, sharded):
    """From shards, in two loader processes, after three samples of five."""
    whole = take(module(root), 4)
    resumed = module(sharded, workers=2)
    resumed.start(4)
    assert_all_equal(whole[2:], take(resumed, 2))


def test_every_stored_file_is_the_original(root, sharded):
    stored = module(sharded).root
    for name in stored.shards.files:
        assert stored.shards.read(name) == (root / name).read_bytes()
    assert "train/vitonhd_train_tagged.json" in stored.shards.files
    assert str(stored / "train" / "image") == f"{sharded}/train/image"


def test_the_same_folder_gives_the_same_bytes(root, sharded, tmp_path):
    write_folder(open_folder(config("viton_hd", root)), tmp_path / "again", SHARD_MB)
    for path in sharded.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    with pytest.raises(ShardError, match="exists"):
        write_folder(open_folder(config("viton_hd", root)), tmp_path / "again", SHARD_MB)


def test_a_folder_of_test_pictures_only_becomes_shards(root, tmp_path):
    """As `vton prepare` writes: there is no `train` to look into."""
    prepared = shutil.copytree(root, tmp_path / "prepared")
    shutil.rmtree(prepared / "train")
    (prepared / "train_pairs.txt").unlink()
    write_folder(open_folder(config("viton_hd", prepared)), tmp_path / "sharded")
    for order in ("paired", "unpaired"):
        stored = module(tmp_path / "sharded").eval_dataloader(order)
        assert_all_equal(module(prepared).eval_dataloader(order), stored)


def test_webdataset_reads_the_records(root, sharded):
    """The library's own reader sees one sample for each id."""
    shards = [str(path) for path in sorted(sharded.glob("*.tar"))]
    samples = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
        samples[sample["__key__"]] = sample
    record = samples["train/00002_00"]
    photo = root / "train/image/00002_00.jpg"
    keypoints = root / "train/openpose_json/00002_00_keypoints.json"
    assert record["image.jpg"] == photo.read_bytes()
    assert record["openpose_json_keypoints.json"] == keypoints.read_bytes()
    assert sum(key.startswith("train/0") for key in samples) == 5


def test_shards_behind_a_url_are_fetched_once_and_kept(root, sharded, tmp_path):
    url = "memory://bucket/viton_hd"
    memory = fsspec.filesystem("memory")
    memory.put(str(sharded), "/bucket/viton_hd", recursive=True)
    try:
        kept = {"shards_kept": str(tmp_path / "kept")}
        assert_all_equal(take(module(root), 1), take(module(url, **kept), 1))
        whole = take(module(url, **kept), 3)
        for shard in sharded.glob("*.tar"):
            memory.rm(f"/bucket/viton_hd/{shard.name}")
        assert_all_equal(whole, take(module(url, **kept), 3))
        with pytest.raises(ShardError, match=rf"{url}/shard-0000\d\.tar cannot be fetched"):
            take(module(url, shards_kept=str(tmp_path / "other")), 1)
    finally:
        memory.rm("/bucket", recursive=True)
    with pytest.raises(ShardError, match=rf"{url}/shards\.json cannot be read"):
        module(url).train_dataset()


def test_a_shard_that_arrives_short_is_not_kept(root, sharded, tmp_path):
    memory = fsspec.filesystem("memory")
    kept = {"shards_kept": str(tmp_path / "kept")}
    memory.put(str(sharded), "/short/viton_hd", recursive=True)
    try:
        for shard in sharded.glob("*.tar"):
            memory.pipe(f"/short/viton_hd/{shard.name}", shard.read_bytes()[:-512])
        with pytest.raises(ShardError, match=r"shard-0000\d\.tar has [\d,]+ bytes, the index says"):
            take(module("memory://short/viton_hd", **kept), 1)
        for shard in sharded.glob("*.tar"):
            memory.pipe(f"/short/viton_hd/{shard.name}", shard.read_bytes())
        fetched = module("memory://short/viton_hd", **kept)
        assert_all_equal(take(module(root), 1), take(fetched, 1))
    finally:
        memory.rm("/short", recursive=True)


@pytest.mark.parametrize("failing", ["forbidden", "cut"])
def test_what_a_file_system_raises_is_one_line(failing, sharded, tmp_path):
    """aiohttp's errors for a status and for a connection that ends early are no OSError."""

    def answer(path):
        content = (sharded / path).read_bytes()
        broken = path.endswith(".tar")
        if broken and failing == "forbidden":
            return Answer(status=403)
        return Answer(content[:-1000] if broken else content, {"Content-Length": len(content)})

    with serving(answer) as address:
        shards = Shards(address, str(tmp_path))
        with pytest.raises(ShardError, match=r"shard-00000\.tar cannot be fetched \(") as caught:
            shards.read(next(iter(shards.files)))
    assert "\n" not in str(caught.value)
    with (
        serving(lambda path: Answer(status=500)) as address,
        pytest.raises(ShardError, match=r"json cannot be read"),
    ):
        _ = Shards(address).files


ANYTHING = re.compile(".*")


def write(out: Path, content: bytes) -> None:
    with ShardWriter(out, replaceable=ANYTHING) as writer:
        writer.add("a", {"a.txt": ("txt", content)})


def killed_while_writing(out: Path) -> None:
    with ShardWriter(out, replaceable=ANYTHING) as writer:
        writer.add("a", {"a.txt": ("txt", b"new")})
        os.kill(os.getpid(), signal.SIGKILL)


def killed_between_the_renames(out: Path) -> None:
    rename = Path.rename

    def second_kills(self, target):
        if target == out:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = second_kills
    write(out, b"new")


@pytest.mark.parametrize("killed", [killed_while_writing, killed_between_the_renames])
def test_what_a_killed_writer_leaves_is_restored_or_removed(killed, tmp_path):
    out = tmp_path / "out"
    write(out, b"former")
    process = multiprocessing.get_context("fork").Process(target=killed, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and (tmp_path / ".out.partial").exists()
    assert out.exists() == (killed is killed_while_writing)
    with pytest.raises(InterruptedError), ShardWriter(out, replaceable=ANYTHING):
        raise InterruptedError  # the next one does not finish either
    assert Shards(str(out)).read("a.txt") == b"former"
    assert {path.name for path in tmp_path.iterdir()} <= {"out", ".out.lock"}
    write(out, b"new")
    assert Shards(str(out)).read("a.txt") == b"new"


def test_nothing_but_what_may_be_replaced_ever_is(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    # An empty folder is taken, but not once something lies in it.
    with pytest.raises(ShardError, match="exists"), ShardWriter(out) as writer:
        writer.add("a", {"a.txt": ("txt", b"a")})
        (out / "mine.txt").write_text("came while shards were written")
    write(tmp_path / "shards", b"a")
    (tmp_path / "shards" / "mine.txt").write_text("beside them")
    (tmp_path / "file").write_text("no folder")
    for place in (out, tmp_path / "shards", tmp_path / "file"):
        with pytest.raises(ShardError, match="which nothing here may delete"):
            write(place, b"b")
    write(tmp_path / "others", b"a")
    others = ShardWriter(tmp_path / "others", replaceable=re.compile("b"))
    with pytest.raises(ShardError, match="may delete"), others:
        pass
    assert (out / "mine.txt").exists() and (tmp_path / "shards" / "mine.txt").exists()
    assert Shards(str(tmp_path / "others")).read("a.txt") == b"a" and (tmp_path / "file").exists()


def test_an_id_with_a_dot_is_named(tmp_path):
    refusal = r"image/00.1\.jpg: its id has a dot"
    with pytest.raises(ShardError, match=refusal), ShardWriter(tmp_path / "out") as writer:
        writer.add("train/00.1", {"train/image/00.1.jpg": ("image.jpg", b"")})
    assert not (tmp_path / "out").exists()


def missing(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2000:] = bytes(len(content) - 2000)
    path.write_bytes(content)


def required(problems):
    return [problem for problem in problems if problem.severity == "required"]


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (missing, "is missing"),
        (cut, "bytes, the index says"),
        (changed, "as it was written: its digest differs"),
    ],
)
def test_a_broken_shard_is_one_line_that_names_it(harm, problem, sharded, tmp_path, capsys):
    broken = shutil.copytree(sharded, tmp_path / "broken")
    harm(broken / "shard-00001.tar")
    problems = required(check_folder(config("viton_hd", broken)))
    assert problems
    for line in map(str, problems):
        assert f"shard {broken}/shard-00001.tar" in line and problem in line
    with pytest.raises(SystemExit, match="1"):
        main(["data", "check", "data=viton_hd", f"data.root={broken}"])
    assert f"shard {broken}/shard-00001.tar" in capsys.readouterr().out


OUTSIDE = '{"format": "vton-shards-1", "shards": [["../evil", 1]], "folders": [], "files": {}}'
BEYOND = (
    '{"format": "vton-shards-1", "shards": [["a.tar", 9]], "folders": [],'
    ' "files": {"a": [0, 8, 2, ""]}}'
)
BROKEN = ("", "[]", '{"format": "other"}', '{"format": "vton-shards-1"}', OUTSIDE, BEYOND)


@pytest.mark.parametrize("index", BROKEN)
def test_a_broken_index_is_one_line(index, tmp_path):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ShardError, match=r"shards\.json is no index of shards") as caught:
        module(tmp_path).train_dataset()
    assert "\n" not in str(caught.value)


def test_a_pickle_in_a_shard_runs_nothing(tmp_path):
    """Whatever the name of a stored file, its bytes meet the decoder of its kind and no other."""

    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "marker",))

    root = write_viton_hd(tmp_path / "plain", train=2, test=2)
    attack = pickle.dumps(Attack())
    for name in ("image/00000_00.jpg", "image-parse-v3/00001_00.png"):
        (root / "train" / name).write_bytes(attack)
    (root / "test/openpose_json/01000_00_keypoints.json").write_bytes(attack)
    write_folder(open_folder(config("viton_hd", root)), tmp_path / "sharded")
    problems = required(check_folder(config("viton_hd", tmp_path / "sharded")))
    assert len(problems) == 3 and not (tmp_path / "marker").exists()
    (tmp_path / "sharded" / INDEX).write_bytes(attack)
    with pytest.raises(ShardError, match="no index"):
        module(tmp_path / "sharded").train_dataset()
    assert not (tmp_path / "marker").exists()


def test_the_command_writes_shards_that_training_reads(root, tmp_path, capsys):
    save(root / "train" / "unknown" / "00000_00.png", torch.zeros(2, 2, dtype=torch.uint8).numpy())
    command = ["data", "shard", "data=viton_hd", f"data.root={root}"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--out", str(tmp_path / "out")])
    assert "in 1 shards" in capsys.readouterr().out
    sharded = module(tmp_path / "out")
    assert_all_equal(take(module(root), 1), take(sharded, 1))
    assert not any("unknown" in name for name in sharded.root.shards.files)
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "--out" in capsys.readouterr().err
