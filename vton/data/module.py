"""The only data module: one endless training stream and exact evaluation loaders for every data set.

Training has no epochs. Place p of the stream (p = 0, 1, 2, ...) is pair permutation(seed, p // n)[p mod n], changed by
the augmentation of (seed, p). What a run sees is therefore a function of seed and place alone: not of workers, of
restarts, or of how many processes share a global batch. Lightning's own samplers would undo that: the trainer needs
use_distributed_sampler=False.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Sampler

from vton.config import DataConfig
from vton.data import check
from vton.data.dataset import Draw, TrainingStream, TryOnDataset, dataset_root, open_folder
from vton.data.sample import Order, TryOnBatch, TryOnSample


class EndlessBatches(Sampler[list[Draw]]):
    """Batches of the endless stream from `start` on, for one of `world` processes.

    A global batch is `world * batch_size` consecutive places; process `rank` gets the rank-th share of each. The last
    batch of an epoch runs on into the next permutation, so no pair is left out and no batch is short.
    """

    def __init__(self, pairs: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1):
        self.pairs = pairs
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world = world
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield [Draw(self.index(position), position) for position in range(first, first + self.batch_size)]
            first += self.world * self.batch_size

    def index(self, position: int) -> int:
        """The pair at a place of the stream."""
        epoch, place = divmod(position, self.pairs)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed % 2**63, epoch, self.pairs)).permutation(self.pairs)
        return int(self._order[place])


class RankShare(Sampler[int]):
    """Indices rank, rank + world, ... below `count`: every sample on exactly one process, none repeated to fill up."""

    def __init__(self, count: int, rank: int, world: int):
        self.indices = range(rank, count, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class TryOnDataModule(LightningDataModule):
    """Loaders of the configured data set. `seed` fixes order and augmentation of training."""

    def __init__(self, config: DataConfig, *, seed: int, batch_size: int, eval_batch_size: int):
        super().__init__()
        self.config = config
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self._start = 0
        self._stream: TrainingStream | None = None
        self._evaluated: dict[Order, TryOnDataset] = {}

    def prepare_data(self) -> None:
        """Render synthetic data where absent; before training, check the folder. Raises DataError.

        Evaluation does not check: it needs the test split only, and a broken file stops it by name.
        """
        rendered = self.config.synthetic
        if self.config.name == "synthetic":
            from vton.data import synthetic  # not needed for real data

            synthetic.ensure(
                dataset_root(self.config), layout=rendered.layout, size=self.config.size, train=rendered.train,
                test=rendered.test, seed=rendered.seed, workers=rendered.workers,
            )  # fmt: skip
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if self.config.check and fitting:
            check.require_clean(self.config, max(1, self.config.workers))

    def start(self, position: int) -> None:
        """Let the training stream begin at this global place: the number of samples all processes have trained on."""
        self._start = position

    def train_dataset(self) -> TrainingStream:
        """Augmented training samples, addressed by Draw; made once, so that its cache lives as long as the module."""
        if self._stream is None:
            self._stream = TrainingStream(TryOnDataset(open_folder(self.config), "train", "paired"), self.seed)
        return self._stream

    def train_dataloader(self) -> DataLoader:
        """The endless stream of batches, from `start` on. It has no length; the trainer's step count ends it."""
        stream = self.train_dataset()
        rank, world = _rank_and_world()
        batches = EndlessBatches(len(stream), self.batch_size, self.seed, self._start, rank, world)
        return self._loader(stream, batch_sampler=batches)

    def eval_dataset(self, order: Order) -> TryOnDataset:
        """The test split, un-augmented, in list order; item i has index i."""
        if order not in self._evaluated:
            self._evaluated[order] = TryOnDataset(open_folder(self.config), "test", order)
        return self._evaluated[order]

    def eval_dataloader(self, order: Order) -> DataLoader:
        """Every test pair exactly once over all processes, which may therefore have different numbers of batches."""
        pairs = self.eval_dataset(order)
        share = RankShare(len(pairs), *_rank_and_world())
        return self._loader(pairs, batch_size=self.eval_batch_size, sampler=share)

    def val_samples(self, count: int, order: Order = "paired") -> list[TryOnSample]:
        """`count` fixed held-out samples, spread evenly over the test list (all of them when it is shorter)."""
        pairs = self.eval_dataset(order)
        count = min(count, len(pairs))
        return [pairs[place * len(pairs) // count] for place in range(count)]

    def _loader(self, dataset, **kwargs) -> DataLoader:
        workers = self.config.workers
        return DataLoader(
            dataset,
            collate_fn=TryOnBatch.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.config.pin_memory and torch.cuda.is_available(),
            # All draws are seeded by place; this only keeps the loader from touching the global random state.
            generator=torch.Generator().manual_seed(self.seed % 2**63),
            **kwargs,
        )


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
