"""The only data module: one endless training stream and exact evaluation loaders for every data
set.

Training has no epochs. Place p of the stream (p = 0, 1, 2, ...) is pair permutation(seed, p // n)[p
mod n], changed by the augmentation of (seed, p). What a run sees is therefore a function of seed
and place alone: not of workers, of restarts, or of how many processes share a global batch.
Lightning's own samplers would undo that: the trainer needs use_distributed_sampler=False.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vton.config import DataConfig
from vton.data import check, transforms
from vton.data.dataset import Draw, TrainingStream, TryOnDataset, dataset_root, open_folder
from vton.data.derived.warp import WarpSource
from vton.data.encoded import Encodings
from vton.data.folder import Split
from vton.data.sample import Order, TryOnBatch
from vton.data.shards import ShardPath, Source
from vton.processes import process_share

log = logging.getLogger(__name__)
_spoken_of: set[tuple[Source, Split]] = set()  # splits whose captions this process has looked at


class EndlessBatches(Sampler[list[Draw]]):
    """Batches of the endless stream from `start` on, for one process of several.

    A global batch is `world * batch_size` consecutive places; each process gets the share of its
    rank. The last batch of an epoch runs on into the next permutation, so no pair is left out and
    no batch is short. `share` is asked when iteration begins, for loaders are made before the
    trainer starts its processes.
    """

    def __init__(
        self,
        pairs: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        share: Callable[[], tuple[int, int]] = process_share,
    ):
        self.pairs = pairs
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.share = share
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[list[Draw]]:
        rank, world = self.share()
        first = self.start + rank * self.batch_size
        while True:
            yield [
                Draw(self.index(position), position)
                for position in range(first, first + self.batch_size)
            ]
            first += world * self.batch_size

    def index(self, position: int) -> int:
        """The pair at a place of the stream."""
        epoch, place = divmod(position, self.pairs)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed % 2**63, epoch, self.pairs)).permutation(
                self.pairs
            )
        return int(self._order[place])


class RankShare(Sampler[int]):
    """Indices rank, rank + world, ... below `count`: every sample on exactly one process, none
    repeated to fill up.
    """

    def __init__(self, count: int, share: Callable[[], tuple[int, int]] = process_share):
        self.count = count
        self.share = share

    def __iter__(self) -> Iterator[int]:
        rank, world = self.share()
        return iter(range(rank, self.count, world))

    def __len__(self) -> int:
        rank, world = self.share()
        return len(range(rank, self.count, world))


class TryOnDataModule(LightningDataModule):
    """Loaders of the configured data set. `seed` fixes order and augmentation of training.

    warp: the source that data.warp_source=learned means; it goes along to loader processes.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        warp: WarpSource | None = None,
    ):
        super().__init__()
        self.config = config
        self.warp = warp
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.encodings: Encodings | None = None  # what training samples bring along
        self._start = 0
        self._stream: TrainingStream | None = None
        self._evaluated: dict[tuple[Order, bool], TryOnDataset] = {}

    @property
    def root(self) -> Source:
        """The folder, or the shards, that the data is read from."""
        return dataset_root(self.config)

    def prepare_data(self) -> None:
        """Render synthetic data where it is absent."""
        if self.config.name != "synthetic" or isinstance(self.root, ShardPath):
            return
        from vton.data import synthetic  # the renderer, which real data does not need

        rendered = self.config.synthetic
        synthetic.ensure(
            self.root,
            layout=rendered.layout,
            size=self.config.picture_size,
            train=rendered.train,
            test=rendered.test,
            seed=rendered.seed,
            workers=rendered.workers,
        )

    def setup(self, stage: str) -> None:
        """Before training ("fit"), check the folder. Raises DataError naming broken required files.

        Evaluation needs the test split only, and a broken file stops it by name.
        """
        if stage == "fit" and self.config.check:
            check.require_clean(self.config, max(1, self.config.workers))

    def start(self, position: int) -> None:
        """Let the training stream begin at this global place: the number of samples all processes
        have trained on.
        """
        self._start = position

    def train_dataset(self) -> TrainingStream:
        """Augmented training samples, addressed by Draw; made once, so that its cache lives as long
        as the module.
        """
        if self._stream is None:
            pairs = TryOnDataset(open_folder(self.config), "train", "paired", warp=self.warp)
            warn_without_caption(pairs)
            self._stream = TrainingStream(pairs, self.seed)
        self._stream.encodings = self.encodings
        return self._stream

    def listed_dataloader(self) -> DataLoader:
        """The training pairs once, un-augmented, in list order, in batches of the training's size."""
        return self._loader(self.train_dataset().pairs, batch_size=self.batch_size)

    def train_dataloader(self) -> DataLoader:
        """The endless stream of batches, from `start` on. It has no length; the trainer's step
        count ends it.
        """
        stream = self.train_dataset()
        batches = EndlessBatches(len(stream), self.batch_size, self.seed, self._start)
        return self._loader(stream, batch_sampler=batches)

    def eval_dataset(self, order: Order, shuffled: bool = False) -> TryOnDataset:
        """The test split, un-augmented, in list order; item i has index i. `shuffled` exchanges the
        garments.
        """
        key = (order, shuffled)
        if key not in self._evaluated:
            pairs = self._evaluated[key] = TryOnDataset(
                open_folder(self.config), "test", order, shuffled, warp=self.warp
            )
            warn_without_caption(pairs)
        return self._evaluated[key]

    def eval_dataloader(self, order: Order, shuffled: bool = False) -> DataLoader:
        """Batches of `eval_dataset`."""
        return self.loader_of(self.eval_dataset(order, shuffled))

    def loader_of(self, pairs: Dataset) -> DataLoader:
        """Every pair once over all processes, which may have different numbers of batches."""
        return self._loader(pairs, batch_size=self.eval_batch_size, sampler=RankShare(len(pairs)))

    def val_batch(self, order: Order, count: int) -> TryOnBatch:
        """`count` fixed held-out pairs, spread evenly over the test list; all of them when it is
        shorter.
        """
        pairs = self.eval_dataset(order)
        return TryOnBatch.collate([pairs[index] for index in _spread(count, len(pairs))])

    def training_pictures(self, count: int) -> Tensor:
        """(N, 3, H, W) in [-1, 1]: un-augmented persons and garments of pairs spread over the
        training list.

        N is `count`, or what the list has. For fitting a codec.
        """
        stream = self.train_dataset()
        pairs = (stream.pairs.photos(index) for index in _spread((count + 1) // 2, len(stream)))
        return torch.stack(
            [transforms.normalise(photo) for pair in pairs for photo in pair][:count]
        )

    def _loader(self, dataset, **kwargs) -> DataLoader:
        workers = self.config.workers
        return DataLoader(
            dataset,
            collate_fn=TryOnBatch.collate,
            num_workers=workers,
            worker_init_fn=leave_signals_to_the_parent,
            persistent_workers=workers > 0,
            pin_memory=self.config.pin_memory and torch.cuda.is_available(),
            # All draws are seeded by place; this only keeps the loader from touching the global
            # random state.
            generator=torch.Generator().manual_seed(self.seed % 2**63),
            **kwargs,
        )


def warn_without_caption(pairs: TryOnDataset) -> None:
    """Say once per split and process which garments a caption file leaves out. Raises DataError
    where it is broken.
    """
    split = (pairs.folder.root, pairs.split)
    if split not in _spoken_of:
        _spoken_of.add(split)
        if line := pairs.without_caption(where_absent=False):
            log.warning("%s %s: %s", pairs.folder.dataset, pairs.split, line)


def leave_signals_to_the_parent(worker: int) -> None:
    """Where a whole process group is told to stop, the trainer still needs batches to finish its
    step.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def kill_loaders() -> None:
    """End what an error has left at work: loaders ignore the SIGTERM of multiprocessing, which
    would wait for ever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler calls a killed loader an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _spread(count: int, total: int) -> list[int]:
    """At most `count` indices below `total`, evenly spaced from 0."""
    count = min(count, total)
    return [place * total // count for place in range(count)]
