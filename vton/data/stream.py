"""In which order samples are drawn: the endless stream of training, and exact evaluation.

Training has no epochs. Place p of the stream (p = 0, 1, 2, ...) is pair permutation(seed, p // n)[p
mod n], changed by the augmentation of (seed, p). What a run sees is therefore a function of seed
and place alone: not of workers, of restarts, or of how many processes share a global batch.
Lightning's own samplers would undo that: the trainer needs use_distributed_sampler=False.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

from vton.data.augmentation import Changes, augment
from vton.data.compact import EVERYTHING, CompactSample, Fields
from vton.data.dataset import TryOnDataset
from vton.data.encoded import Encodings
from vton.data.sample import TryOnSample
from vton.processes import process_share


class StreamItem(NamedTuple):
    """One element of the training stream: which pair, and its place in the stream."""

    index: int
    position: int


class TrainingStream(Dataset):
    """Augmented training samples, addressed by StreamItem.

    Where `encodings` is set, samples bring the stored readings of frozen encoders along.
    """

    def __init__(self, pairs: TryOnDataset, seed: int):
        self.pairs = pairs
        self.seed = seed
        self.encodings: Encodings | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: StreamItem) -> TryOnSample:
        return self.compact(item).expanded()

    def compact(self, item: StreamItem, wanted: Fields = EVERYTHING) -> CompactSample:
        """The sample in bytes, with the wanted fields."""
        augmentation = self.pairs.folder.config.augment
        changes = Changes.draw(augmentation, self.seed, item.position)
        record = augment(self.pairs.record(item.index), changes)
        sample = self.pairs.compact_record(record, item.position, wanted)
        if self.encodings is not None:
            sample.encoded = self.encodings.read(sample.expanded())
        return sample


class EndlessBatches(Sampler[list[StreamItem]]):
    """Batches of the endless stream from `start` on, for one process of several.

    A global batch is `world * batch_size` consecutive places; each process gets the share of its
    rank. The last batch of an epoch runs on into the next permutation, so no pair is left out and
    no batch is short. `share` returns (rank, world). It is asked when iteration begins, because
    loaders are made before the trainer starts its processes.
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

    def __iter__(self) -> Iterator[list[StreamItem]]:
        rank, world = self.share()
        first = self.start + rank * self.batch_size
        while True:
            positions = range(first, first + self.batch_size)
            yield [StreamItem(self.index(position), position) for position in positions]
            first += world * self.batch_size

    def index(self, position: int) -> int:
        """The pair at a place of the stream."""
        epoch, place = divmod(position, self.pairs)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed % 2**63, epoch, self.pairs))
            self._epoch = epoch
            self._order = rng.permutation(self.pairs)
        return int(self._order[place])


class RankShare(Sampler[int]):
    """Indices rank, rank + world, ... below `count`, for exact evaluation.

    Every sample is on exactly one process, and none is repeated to fill up. `share` returns (rank,
    world).
    """

    def __init__(self, count: int, share: Callable[[], tuple[int, int]] = process_share):
        self.count = count
        self.share = share

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices())

    def __len__(self) -> int:
        return len(self._indices())

    def _indices(self) -> range:
        rank, world = self.share()
        return range(rank, self.count, world)
