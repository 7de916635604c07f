"""Latents and embeddings computed ahead: the same loss, and never those of other files, sizes or
encoders.
"""

import itertools
import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch

from tests.data.folders import write_viton_hd
from tests.running import SMALL, assert_equal
from vton import registry
from vton.commands.data import cache
from vton.commands.train import train
from vton.config import ConfigError, load
from vton.data.dataset import open_folder
from vton.data.packing import write_folder
from vton.data.sample import DataError
from vton.data.shards import SHARD_MB, ShardError, ShardWriter
from vton.errors import UserError
from vton.models.codecs import LinearCodec
from vton.runs.assemble import data_module, prepare_run
from vton.runs.encodings import encode, frozen_readings, use_encodings
from vton.runs.folder import RunFolder
from vton.weights.pretrained import read_checkpoint

PLAIN = ("data.augment.flip=0", "data.augment.colour=0")  # tiny's other changes are off already
FROZEN = {
    "catvton": ("model.cross_attention=text", "model.text.trained=false"),
    "gardiff": ("model.clip.trained=false",),
    "idm_vton": (
        "model.clip.trained=false",
        "model.text.trained=false",
        "model.text_2.trained=false",
    ),
    # Half of the samples lose an input: the stored readings are those of the other half.
    "imagdressing": (
        "model.clip.trained=false",
        "model.text.trained=false",
        "model.dropout.image=0.3",
        "model.dropout.text=0.3",
    ),
    "stableviton": ("model.clip.trained=false",),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_viton_hd(tmp_path_factory.mktemp("data"), train=5, test=2)


def build(model: str, root: Path, where: Path, *more: str):
    """A tiny module with frozen encoders, its codec fitted on fixed noise, and its data."""
    overrides = (
        f"model={model}",
        "data=viton_hd",
        f"data.root={root}",
        f"data.encoded={where}",
        *SMALL,
        *PLAIN,
    )
    config = load(*overrides, "train.batch_size=2", *FROZEN[model], *more)
    codec = LinearCodec(config.codec.patch, config.codec.channels)
    codec.fit([torch.rand(8, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1])
    torch.manual_seed(0)
    return registry.module_class(model)(config, codec), data_module(config)


def batches(data, count: int = 2) -> list:
    batches = itertools.islice(data.train_dataloader(), count)
    return [batch.to("cpu") for batch in batches]


def losses(module, data, half: bool) -> list[float]:
    """Of one batch in half precision, of two in full."""
    count = 1 if half else 2
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return [module.training_step(batch, 0).item() for batch in batches(data, count)]


@pytest.mark.parametrize(
    ("model", "more"),
    [*((model, ()) for model in FROZEN), ("gardiff", ("model.mode=decoupled",))],
)
def test_stored_and_live_loss_are_equal(model, more, root, tmp_path):
    module, data = build(model, root, tmp_path / "encoded", *more)
    if more:  # a frozen text encoder is a pretrained one there: freeze the fresh one
        module.config.model.text.trained = False
        module.add("text", module._modules.pop("text"), trained=False)
        assert {"text", "composite", "clip"} < frozen_readings(module).keys()
    live, live_half = (losses(module, data, half) for half in (False, True))
    assert encode(module, data) == (5, 0)
    use_encodings(module, data)
    module.codec.encode = None  # whoever still asked it would fail
    stored, stored_half = (losses(module, data, half) for half in (False, True))
    assert live == pytest.approx(stored, abs=1e-6) and len(set(live)) == 2
    # A live encoder rounds to bf16.
    assert live_half == pytest.approx(stored_half, abs=2e-3) and live_half != live[:1]


def encode_with_others(root, where, together, found) -> None:
    torch.set_num_threads(1)
    pair = build("gardiff", root, where)
    together.wait()
    found.put(encode(*pair))


def in_processes(count: int, root, where) -> tuple[list, dict[str, bytes]]:
    """What `count` processes, started at once, say of a folder, and what files it then holds."""
    fork = multiprocessing.get_context("fork")
    together, found = fork.Barrier(count), fork.SimpleQueue()
    processes = [
        fork.Process(target=encode_with_others, args=(root, where, together, found))
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    return sorted(found.get() for _ in processes), {
        path.name: path.read_bytes() for path in where.iterdir()
    }


def test_built_twice_and_by_two_processes_at_once_gives_the_same_bytes(root, tmp_path):
    said, first = in_processes(1, root, tmp_path / "one")
    assert said == [(5, 0)] and len(first) > 1
    assert in_processes(1, root, tmp_path / "one") == ([(0, 5)], first)
    assert in_processes(2, root, tmp_path / "two") == ([(0, 5), (5, 0)], first)


def test_a_folder_of_anything_else_is_never_replaced(root, tmp_path):
    """data.encoded names the data set itself, its shards, or a folder of encodings with a file
    more.
    """
    write_folder(open_folder(build("gardiff", root, root)[0].config.data), tmp_path / "sharded")
    encode(*build("gardiff", root, tmp_path / "encoded"))
    (tmp_path / "encoded" / "notes.txt").write_text("mine")
    for where in (root, tmp_path / "sharded", tmp_path / "encoded"):
        before = sorted(where.rglob("*"))
        with pytest.raises(ShardError, match="which nothing here may delete"):
            encode(*build("gardiff", root, where))
        assert sorted(where.rglob("*")) == before


def test_nothing_is_prepared_in_a_folder_where_somebody_trains(root, tmp_path):
    config = build("gardiff", root, tmp_path / "encoded", f"runs={tmp_path}", "name=one")[0].config
    run = RunFolder.of(config)
    with run.training_lock():
        with pytest.raises(UserError, match=r"Another process is training in .*/one, or prepares"):
            cache(config)
        assert not run.config.exists() and not (tmp_path / "encoded").exists()


def test_encoders_run_without_tf32(root, tmp_path, monkeypatch):
    found, encode_before = [], LinearCodec.encode

    def encode_and_look(self, image):
        found.append(torch.backends.cudnn.allow_tf32)
        return encode_before(self, image)

    monkeypatch.setattr(LinearCodec, "encode", encode_and_look)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    encode(*build("gardiff", root, tmp_path / "encoded"))
    assert found and not any(found) and torch.backends.cudnn.allow_tf32


def test_stale_entries_are_refused_and_rebuilt(root, tmp_path):
    """Another encoder, size, mask rule or file: training stops with one line, and only what changed
    is computed.
    """
    where = tmp_path / "encoded"
    root = write_viton_hd(tmp_path / "data", train=5, test=2)
    encode(*build("gardiff", root, where))
    changes = {
        "a size": lambda: build("gardiff", root, where, "data.size=[96,72]"),
        "a mask rule": lambda: build("gardiff", root, where, "data.mask_rule=box"),
        "the manner of reading": lambda: build("gardiff", root, where, "model.clip_tokens=pooled"),
    }
    for change, changed in changes.items():
        with pytest.raises(DataError, match=r"is stale: it has no .* Run `vton data cache`"):
            use_encodings(*changed())
            pytest.fail(f"{change} went unnoticed")
    module, data = build("gardiff", root, where)
    module.codec.scale.mul_(1.01)
    with pytest.raises(DataError, match="no person, warped_garment, agnostic of"):
        use_encodings(module, data)
    use_encodings(*(same := build("gardiff", root, where)))
    swapped, other = (root / "train/cloth" / f"{name}_00.jpg" for name in ("00003", "00004"))
    swapped.write_bytes(other.read_bytes())  # one file changes while a run has its data open
    with pytest.raises(DataError, match="00003_00__00003_00"):
        batches(same[1])
    assert encode(*build("gardiff", root, where)) == (1, 4)
    use_encodings(*(again := build("gardiff", root, where)))
    batches(again[1])


def test_changed_code_is_noticed(root, tmp_path, monkeypatch):
    module, data = build("gardiff", root, tmp_path / "encoded")
    encode(module, data)
    encode_before = LinearCodec.encode
    monkeypatch.setattr(LinearCodec, "encode", lambda self, image: encode_before(self, image) + 0.1)
    with pytest.raises(DataError, match="differs from what its encoder says now"):
        use_encodings(module, data)


def test_half_precision_rounds_otherwise_elsewhere_and_nan_is_never_equal(
    root, tmp_path, monkeypatch
):
    module, data = build("gardiff", root, tmp_path / "encoded")
    encode(module, data)
    encode_before = LinearCodec.encode
    monkeypatch.setattr(
        LinearCodec, "encode", lambda self, image: encode_before(self, image) * 1.02
    )
    with pytest.raises(DataError, match="differs from what its encoder says now"):
        use_encodings(module, data)
    train = module.config.train
    monkeypatch.setattr(train, "precision", "bf16")
    use_encodings(module, data)
    monkeypatch.setattr(
        LinearCodec, "encode", lambda self, image: encode_before(self, image) * float("nan")
    )
    with pytest.raises(DataError, match="differs from what its encoder says now"):
        use_encodings(module, data)


def test_augmentation_excludes_what_it_changes(root, tmp_path, caplog):
    module, _ = build("gardiff", root, tmp_path / "encoded", "data.augment.garment_affine=0.5")
    assert list(frozen_readings(module)) == ["person", "warped_garment", "agnostic"]
    assert "clip cannot, as data.augment.garment_affine change what they read" in caplog.text
    module, _ = build(
        "idm_vton", root, tmp_path / "encoded", "data.augment.flip=0.5", "data.augment.colour=0.5"
    )
    assert list(frozen_readings(module)) == ["text", "pooled", "garment_text"]
    module, data = build("gardiff", root, tmp_path / "encoded", "data.augment.flip=0.5")
    with pytest.raises(ConfigError, match=r"nothing can be computed ahead; .* data\.augment\.flip"):
        encode(module, data)
    with pytest.raises(DataError, match="does not exist"):
        use_encodings(*build("gardiff", root, tmp_path / "nowhere"))


def test_a_pickle_among_the_encodings_runs_nothing(root, tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "marker",))

    module, data = build("gardiff", root, tmp_path / "encoded")
    with ShardWriter(tmp_path / "encoded", SHARD_MB) as writer:
        writer.add(
            "train/0000000", {"train/0000000.safetensors": ("safetensors", pickle.dumps(Attack()))}
        )
    with pytest.raises(DataError, match=r"0000000\.safetensors is no safetensors file"):
        use_encodings(module, data)
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
def test_a_run_goes_on_from_shards_in_the_middle_of_an_epoch(tmp_path):
    """Six rendered pairs with encodings: two steps from the folder, then two from its shards, equal
    four.
    """
    folder, where = tmp_path / "rendered", tmp_path / "encoded"
    common = (
        "model=gardiff",
        f"runs={tmp_path}",
        f"data.root={folder}",
        *SMALL,
        *PLAIN,
        "train.picture_every=0",
    )
    config = load(*common, "name=whole", "train.steps=4", f"data.encoded={where}")
    _, data, module = prepare_run(config)
    assert encode(module, data) == (6, 0)
    whole = train(config)
    train(load(*common, "name=parts", "train.steps=2", f"data.encoded={where}"))
    write_folder(open_folder(config.data), tmp_path / "sharded" / data.root.name)
    stored = (f"data.root={tmp_path / 'sharded'}", f"data.encoded={where}")
    parts = train(load(*common, "name=parts", "train.steps=4", *stored))
    expected, found = (read_checkpoint(run.last) for run in (whole, parts))
    assert_equal(expected["state_dict"], found["state_dict"])
