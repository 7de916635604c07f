"""The data module: a stream that depends on seed and place alone, and exact evaluation."""

import itertools
import subprocess
import sys

import pytest
import torch

from tests.data.folders import config, write_dresscode, write_viton_hd
from vton.config import AugmentConfig
from vton.data.augmentation import Changes
from vton.data.module import TryOnDataModule
from vton.data.sample import DataError, TryOnBatch
from vton.data.stream import EndlessBatches, RankShare


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_viton_hd(tmp_path_factory.mktemp("data"), train=5, test=5)


def module(root, name="viton_hd", seed=0, batch_size=2, **settings):
    data = config(name, root, **settings)
    return TryOnDataModule(data, seed=seed, batch_size=batch_size, eval_batch_size=2)


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def first(loader):
    return next(iter(loader)).to("cpu")


def floats_of(loader, count):
    """Its first batches, in floats."""
    return [batch.to("cpu") for batch in take(loader, count)]


def equal(one, other):
    """Whether two batches have the same places and the same tensors."""
    if one.position != other.position:
        return False
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor) and not torch.equal(value, getattr(other, name)):
            return False
    return True


def batches_of(rank, world, count, *, pairs=11, batch_size=2, seed=0):
    """What one process of several draws."""
    return take(EndlessBatches(pairs, batch_size, seed, share=lambda: (rank, world)), count)


def test_each_epoch_is_a_permutation_of_its_own():
    items = flat(take(EndlessBatches(7, 3, seed=0), 14))
    assert [item.position for item in items] == list(range(42))
    epochs = [[item.index for item in items[start : start + 7]] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert items != flat(take(EndlessBatches(7, 3, seed=1), 14))


def test_stream_starts_anywhere():
    whole = flat(take(EndlessBatches(7, 3, seed=0), 10))
    assert flat(take(EndlessBatches(7, 3, seed=0, start=11), 5)) == whole[11:26]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_global_batch(world):
    alone = take(EndlessBatches(11, 2 * world, seed=4), 6)
    ranks = [batches_of(rank, world, 6, seed=4) for rank in range(world)]
    assert [flat(shares) for shares in zip(*ranks, strict=True)] == alone


def test_streams_of_seeds_ranks_and_workers_share_nothing():
    """10,000 places by 2 ranks with 2 workers each, which take turns at batches: none twice.

    And no two of 10,000 augmentations are alike, those of another seed included.
    """
    places = []
    for rank in (0, 1):
        batches = batches_of(rank, 2, 1000, batch_size=5)
        for worker in (0, 1):
            items = flat(batches[worker::2])
            places.append({item.position for item in items})
    assert [len(own) for own in places] == [2_500] * 4
    assert set.union(*places) == set(range(10_000))
    always = AugmentConfig(affine=1)
    moves = set()
    for seed, place in itertools.product((0, 1), range(5_000)):
        moves.add(Changes.draw(always, seed, place).person)
    assert len(moves) == 10_000


def test_evaluation_takes_every_sample_once_on_any_number_of_processes():
    for count, world in itertools.product((1, 5, 21), (1, 2, 3)):
        shares = [RankShare(count, lambda r=rank, w=world: (r, w)) for rank in range(world)]
        assert sorted(flat(shares)) == list(range(count))
        assert [len(share) for share in shares] == [len(list(share)) for share in shares]


def test_training_batches_do_not_depend_on_workers_restarts_or_cache(root):
    batches = floats_of(module(root).train_dataloader(), 7)
    assert [batch.position for batch in batches] == [[2 * i, 2 * i + 1] for i in range(7)]
    for other in (module(root, workers=2), module(root, cache="memory")):
        assert all(map(equal, floats_of(other.train_dataloader(), 7), batches))
    resumed = module(root)
    resumed.start(6)
    assert all(map(equal, floats_of(resumed.train_dataloader(), 4), batches[3:]))
    assert not equal(first(module(root, seed=1).train_dataloader()), batches[0])


def test_training_is_augmented_and_evaluation_is_not(root):
    every = AugmentConfig(flip=1, affine=0, garment_affine=0, colour=0)
    none = AugmentConfig(flip=0, affine=0, garment_affine=0, colour=0)
    batch = first(module(root, augment=every).train_dataloader())
    plain = first(module(root, augment=none).train_dataloader())
    assert batch.person_id == plain.person_id and torch.equal(batch.person, plain.person.flip(-1))
    evaluated = module(root, augment=every)
    held_out = first(evaluated.eval_dataloader("paired"))
    assert torch.equal(held_out.person[0], evaluated.eval_dataset("paired")[0].person)
    assert torch.equal(held_out.person, first(module(root).eval_dataloader("paired")).person)


def test_loading_leaves_the_global_random_state(root):
    before = torch.get_rng_state()
    floats_of(module(root).train_dataloader(), 2)
    list(module(root).eval_dataloader("paired"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("order", ["paired", "unpaired"])
def test_evaluation_is_sequential_and_complete(root, order):
    batches = list(module(root).eval_dataloader(order))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert flat(batch.index for batch in batches) == list(range(5))
    assert {name for batch in batches for name in batch.order} == {order}
    assert all(batch.position == [-1] * len(batch) for batch in batches)
    assert (batches[0].truth is None) == (order == "unpaired")
    assert sum(len(batch) for batch in module(root, limit_test=3).eval_dataloader(order)) == 3


def test_validation_pairs_are_fixed_and_spread(root, tmp_path):
    assert module(root).val_batch("paired", 2).index == [0, 2]
    assert module(root).val_batch("unpaired", 50).index == [0, 1, 2, 3, 4]
    dresscode = module(write_dresscode(tmp_path), name="dresscode")
    assert dresscode.val_batch("paired", 3).category == ["upper_body", "lower_body", "dresses"]


def test_training_pictures_are_plain_persons_and_garments(root):
    pictures = module(root).training_pictures(4)
    assert pictures.shape == (4, 3, 96, 72) and pictures.abs().max() <= 1
    sample = module(root).train_dataset().pairs[0]
    assert torch.equal(pictures[0], sample.person) and torch.equal(pictures[1], sample.garment)
    assert len(module(root).training_pictures(1000)) == 10


def test_memory_cache_reads_files_once(tmp_path):
    write_viton_hd(tmp_path, train=2, test=1)
    loader = iter(module(tmp_path, cache="memory").train_dataloader())
    before = next(loader).to("cpu")
    for path in (tmp_path / "train").rglob("*.*"):
        path.unlink()
    after = next(loader).to("cpu")
    assert sorted(before.index) == sorted(after.index) and before.position != after.position
    root = write_viton_hd(tmp_path / "b", train=1, test=1)
    record = module(root, cache="memory").train_dataset().pairs.record(0)
    assert record.person.dtype == record.parse.dtype == torch.uint8
    assert record.agnostic_mask.dtype == torch.bool


def test_fit_checks_the_folder_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_viton_hd(tmp_path / "data", train=2, test=1)
    (tmp_path / "data/test/image/01000_00.jpg").write_bytes(b"")
    for checked in (module(tmp_path / "data"), module(tmp_path / "data", check=False)):
        checked.prepare_data()
    module(tmp_path / "data").setup("test")
    module(tmp_path / "data", check=False).setup("fit")
    refusal = r"test 01000_00: image is an empty file .* Training does not start"
    with pytest.raises(DataError, match=refusal):
        module(tmp_path / "data").setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_file_stops_a_loader_with_one_line(tmp_path, workers):
    write_viton_hd(tmp_path, train=1, test=1)
    path = tmp_path / "test/image/01000_00.jpg"
    path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        first(module(tmp_path, workers=workers).eval_dataloader("paired"))
    assert str(error.value) == (
        f"viton_hd test 01000_00: image is an empty file (0 bytes) ({path}). Restore it from the "
        "archive. Run `make data-check` for the full list."
    )


def test_trainer_sees_an_endless_loader(root):
    """Lightning must stop by steps, not by a length, and move our batches as one object."""
    from lightning import LightningModule, Trainer

    class Seen(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.positions = []

        def training_step(self, batch):
            assert isinstance(batch, TryOnBatch)
            self.positions += batch.position
            return self.weight.sum() * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    seen = Seen()
    trainer = Trainer(
        max_steps=6,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(seen, train_dataloaders=module(root).train_dataloader())
    assert seen.positions == list(range(12))


def test_padded_squares_hold_the_rectangular_pictures(root):
    square = module(root, size=(96, 96), pad=True)
    assert square.config.picture_size == (96, 72)
    plain = module(root).eval_dataset("paired")[0]
    padded = square.eval_dataset("paired")[0]
    assert padded.person.shape == (3, 96, 96)
    assert torch.equal(padded.person[..., 12:-12], plain.person)
    assert torch.equal(padded.agnostic[..., 12:-12], plain.agnostic)
    assert (padded.agnostic[..., :12] == 1).all()
    assert first(square.train_dataloader()).person[..., :12].eq(1).all()
    assert square.config.unpadded() == config("viton_hd", root)
    for size, inner in (((128, 64), (85, 64)), ((64, 128), (64, 48)), ((1024, 1024), (1024, 768))):
        assert config("viton_hd", root, size=size, pad=True).picture_size == inner


def test_an_error_while_loaders_are_at_work_ends_the_process():
    """Loaders ignore SIGTERM, by which multiprocessing ends what is left at exit."""
    code = """
from torch.utils.data import DataLoader
from vton.data.loading import ignore_stop_signals

options = {"num_workers": 1, "persistent_workers": True, "worker_init_fn": ignore_stop_signals}
stream = iter(DataLoader(range(9), **options))
next(stream)
raise SystemExit(2)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
