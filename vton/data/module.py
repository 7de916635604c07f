"""The only data module: loaders of training and of exact evaluation, for every data set."""

from __future__ import annotations

import logging

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vton.config import DataConfig
from vton.data import check
from vton.data.compact import EVERYTHING, WARP, CompactBatch, Fields, InBytes
from vton.data.dataset import Persons, TryOnDataset, dataset_root, open_folder
from vton.data.derived.warp import WarpSource
from vton.data.encoded import Encodings
from vton.data.folder import Split
from vton.data.loading import ignore_stop_signals, start_process_server
from vton.data.ranges import normalise
from vton.data.sample import DataError, Order, TryOnBatch
from vton.data.shards import ShardPath
from vton.data.source import Source
from vton.data.stream import EndlessBatches, RankShare, TrainingStream

log = logging.getLogger(__name__)
_warned: set[tuple[Source, Split]] = set()  # splits whose captions this process has looked at


class TryOnDataModule(LightningDataModule):
    """Loaders of the configured data set. `seed` fixes order and augmentation of training.

    warp: the source that data.warp_source=learned means; it goes along to loader processes.
    reads: the fields that the model reads, for the batches that it trains on and samples from;
        None: all
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        warp: WarpSource | None = None,
        reads: Fields | None = None,
    ):
        super().__init__()
        self.config = config
        self.warp = warp
        self.reads = EVERYTHING if reads is None else reads
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.encodings: Encodings | None = None  # what training samples bring along
        self._start = 0
        self._stream: TrainingStream | None = None
        self._evaluated: dict[tuple[Order, bool, bool], TryOnDataset] = {}

    @property
    def root(self) -> Source:
        """The folder, or the shards, that the data is read from."""
        return dataset_root(self.config)

    @property
    def warped(self) -> bool:
        """Whether the model reads warped garments."""
        return not self.reads.isdisjoint(WARP)

    def prepare_data(self) -> None:
        """Render synthetic data where it is absent."""
        if self.config.name != "synthetic" or isinstance(self.root, ShardPath):
            return
        from vton.data import synthetic  # real data does not need the renderer

        rendered = self.config.synthetic
        synthetic.ensure(
            self.root,
            layout=rendered.layout,
            size=self.config.picture_size,
            train=rendered.train,
            test=rendered.test,
            seed=rendered.seed,
            other_clothes=rendered.other_clothes,
            workers=rendered.workers,
        )

    def setup(self, stage: str) -> None:
        """Before training ("fit"), check the folder.

        Raises DataError naming broken required files. Evaluation needs the test split only, and a
        broken file stops it by name.
        """
        if stage == "fit" and self.config.check:
            check.require_clean(self.config, max(1, self.config.workers))

    def start(self, position: int) -> None:
        """Let the training stream begin at this place.

        It is the number of samples that all processes have trained on.
        """
        self._start = position

    def train_dataset(self) -> TrainingStream:
        """Augmented training samples, addressed by StreamItem.

        Made once, so that its cache lives as long as the module.
        """
        if self._stream is None:
            folder = open_folder(self.config)
            pairs = TryOnDataset(folder, "train", "paired", warp=self.warp, warped=self.warped)
            warn_without_caption(pairs)
            self._stream = TrainingStream(pairs, self.seed)
        self._stream.encodings = self.encodings
        return self._stream

    def listed_dataloader(self) -> DataLoader:
        """The training pairs once, un-augmented, in list order, in batches of batch_size."""
        return self._loader(self.train_dataset().pairs, batch_size=self.batch_size)

    def train_dataloader(self) -> DataLoader:
        """The endless stream of batches, from `start` on.

        It has no length; the trainer's step count ends it.
        """
        stream = self.train_dataset()
        batches = EndlessBatches(len(stream), self.batch_size, self.seed, self._start)
        return self._loader(
            InBytes(stream, self.reads), batch_sampler=batches, collate_fn=CompactBatch.collate
        )

    def eval_dataset(
        self, order: Order, shuffled: bool = False, warped: bool = True
    ) -> TryOnDataset:
        """The test split, un-augmented, in list order; item i has index i.

        shuffled: exchange the garments. warped: with warped garments
        """
        key = (order, shuffled, warped)
        if key not in self._evaluated:
            folder = open_folder(self.config)
            self._evaluated[key] = TryOnDataset(
                folder, "test", order, shuffled, warp=self.warp, warped=warped
            )
            warn_without_caption(self._evaluated[key])
        return self._evaluated[key]

    def eval_dataloader(self, order: Order, shuffled: bool = False) -> DataLoader:
        """Batches of `eval_dataset`."""
        return self.loader_of(self.eval_dataset(order, shuffled))

    def sampling_dataloader(self, pairs: Dataset) -> DataLoader:
        """Batches of what the model reads of `pairs`, each pair once over all processes.

        pairs: an `eval_dataset`, or what adds something to its compact samples
        """
        return self.loader_of(InBytes(pairs, self.reads), collate_fn=CompactBatch.collate)

    def loader_of(self, pairs: Dataset, **options) -> DataLoader:
        """Every pair exactly once over all processes; these may have unequal numbers of batches."""
        share = RankShare(len(pairs))
        return self._loader(pairs, batch_size=self.eval_batch_size, sampler=share, **options)

    def persons_dataloader(self) -> DataLoader:
        """Lists of the test split's persons, each exactly once over all processes.

        Those of the paired list; where there is none, of the unpaired one.
        """
        try:
            pairs = self.eval_dataset("paired")
        except DataError:
            pairs = self.eval_dataset("unpaired")
        return self.loader_of(Persons(pairs), collate_fn=list)

    def val_batch(self, order: Order, count: int) -> TryOnBatch:
        """`count` fixed held-out pairs, spread evenly over the test list.

        All of them when it is shorter.
        """
        pairs = self.eval_dataset(order)
        return TryOnBatch.collate([pairs[index] for index in self.val_places(order, count)])

    def val_places(self, order: Order, count: int) -> list[int]:
        """Where the pairs of `val_batch` stand in the test list."""
        return _spread(count, len(self.eval_dataset(order)))

    def training_pictures(self, count: int) -> Tensor:
        """(N, 3, H, W) in [-1, 1]: persons and garments of pairs spread over the training list.

        Un-augmented, for fitting a codec. N is `count`, or what the list has.
        """
        pairs = self.train_dataset().pairs
        pictures: list[Tensor] = []
        for index in _spread((count + 1) // 2, len(pairs)):
            pictures += map(normalise, pairs.photos(index))
        return torch.stack(pictures[:count])

    def _loader(self, dataset, **kwargs) -> DataLoader:
        """A DataLoader with the configured workers; by default it collates TryOnSamples."""
        workers = self.config.workers
        if workers:
            start_process_server()
        return DataLoader(
            dataset,
            num_workers=workers,
            worker_init_fn=ignore_stop_signals,
            persistent_workers=workers > 0,
            pin_memory=self.config.pin_memory and torch.cuda.is_available(),
            # All draws are seeded by place; this only keeps the loader from touching the global
            # random state.
            generator=torch.Generator().manual_seed(self.seed % 2**63),
            **{"collate_fn": TryOnBatch.collate, **kwargs},
        )


def warn_without_caption(pairs: TryOnDataset) -> None:
    """Warn of the garments that a caption file leaves out, once per split and process.

    Raises DataError where the file is broken.
    """
    split = (pairs.folder.root, pairs.split)
    if split in _warned:
        return
    _warned.add(split)
    line = pairs.without_caption(where_absent=False)
    if line:
        log.warning("%s %s: %s", pairs.folder.dataset, pairs.split, line)


def _spread(count: int, total: int) -> list[int]:
    """At most `count` indices below `total`, evenly spaced from 0."""
    count = min(count, total)
    return [place * total // count for place in range(count)]
