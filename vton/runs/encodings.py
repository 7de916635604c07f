"""`vton data cache`: what a run's frozen encoders say of its training pairs, computed once and read
while it trains.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch

from vton.config import ConfigError, ExperimentConfig
from vton.data import augmentation
from vton.data.encoded import STORED, Encodings, EncodingSpec, rows, write_encodings
from vton.data.module import TryOnDataModule
from vton.data.sample import DataError, TryOnBatch
from vton.data.shards import SHARD_MB, ShardWriter
from vton.models.base import TryOnModule
from vton.processes import own_device
from vton.weights import metric_networks

log = logging.getLogger(__name__)
TOLERANCE = 1e-3  # of a reading's largest value: other sums than now, not another encoder


def frozen_readings(module: TryOnModule) -> dict[str, EncodingSpec]:
    """The readings that can be computed ahead: of frozen encoders, of what augmentation leaves
    alone.

    Says in one line which ones augmentation excludes. Raises ConfigError where nothing is left.
    """
    config: ExperimentConfig = module.config
    asked, live, settings = {}, [], {}
    for name, reading in module.readings().items() if isinstance(module, TryOnModule) else ():
        networks = [module.frozen.get(encoder) for encoder in reading.encoders]
        if any(network is None or not network.state_dict() for network in networks):
            continue  # trained, or nothing to save: the identity codec
        if changing := augmentation.changed_by(config.data.augment, reading.of):
            live.append(name)
            settings |= dict.fromkeys(changing)
            continue
        classes = [type(part).__name__ for part in (module, *networks)]
        asking = repr((classes, name, reading.settings))
        digest = hashlib.sha256("".join([asking, *map(metric_networks.digest, networks)]).encode())
        asked[name] = EncodingSpec(digest.hexdigest(), reading.of)
    changed = f"{', '.join(live)} cannot, as data.augment.{' and data.augment.'.join(settings)} change what they read"
    if not asked:
        reason = (
            changed
            if live
            else f"model={config.model.name} has no frozen encoder with weights here"
        )
        raise ConfigError(
            f"data.encoded: nothing can be computed ahead; {reason}. Leave data.encoded empty."
        )
    if live:
        log.warning("data.encoded: %s can be computed ahead; %s.", ", ".join(asked), changed)
    return asked


@torch.no_grad()
def encode(module: TryOnModule, data: TryOnDataModule) -> tuple[int, int]:
    """Bring data.encoded up to date; returns how many pairs were computed, and how many were there
    and fresh.

    A pair whose files, settings or encoders changed is computed again, the others are taken over.
    Of two processes that write the same folder the second waits and takes everything over. Raises
    ConfigError where there is nothing to do, ShardError where the folder holds anything but
    encodings.
    """
    config: ExperimentConfig = module.config
    if not config.data.encoded:
        raise ConfigError(
            "vton data cache needs data.encoded=FOLDER, which training then names too."
        )
    asked, out = frozen_readings(module), Path(config.data.encoded).expanduser()
    fields = {name for reading in asked.values() for name in reading.of}
    module.to(own_device(config.trainer.accelerator))
    computed, kept = 0, 0
    with ShardWriter(out, SHARD_MB, replaceable=STORED) as writer:
        former = Encodings(str(out), asked)
        for batch in data.listed_dataloader():
            keys = [former.keys(row) for row in rows(batch, fields)]
            found = [former.fresh(index, key) for index, key in zip(batch.index, keys, strict=True)]
            stale = [row for row, tensors in enumerate(found) if tensors.keys() != asked.keys()]
            computed, kept = computed + len(stale), kept + len(batch) - len(stale)
            for row, tensors in zip(stale, _compute(module, batch, stale, asked), strict=True):
                found[row] = tensors
            for index, tensors, key in zip(batch.index, found, keys, strict=True):
                write_encodings(writer, index, tensors, key)
    return computed, kept


def use_encodings(module: TryOnModule, data: TryOnDataModule) -> None:
    """Let training samples bring their readings along.

    The first pair's are compared with what the encoders say now, so that changed code is noticed as
    well. Raises DataError where they are absent or stale.
    """
    encodings = Encodings(
        str(Path(module.config.data.encoded).expanduser()), frozen_readings(module)
    )
    if not encodings.exist:
        raise DataError(
            f"data.encoded={encodings.where} does not exist. Write it: vton data cache, same settings."
        )
    sample = data.train_dataset().pairs[0]
    stored = encodings.of(sample)
    with torch.no_grad():
        for name, now in _compute(module, TryOnBatch.collate([sample]), [0], encodings.specs)[
            0
        ].items():
            if (now - stored[name]).abs().max() > TOLERANCE * now.abs().max():
                raise DataError(
                    f"{encodings.where}: {name} of {sample.pair_id} differs from what its encoder says now. Remove the "
                    "folder and run `vton data cache` again."
                )
    data.encodings = encodings


def _compute(
    module: TryOnModule, batch: TryOnBatch, picked: list[int], asked: dict[str, EncodingSpec]
) -> list[dict]:
    if not picked:
        return []
    batch = batch[picked].to(module.device)
    # cuDNN's default, TF32, differs by about 1e-3 from what a CPU will compare with.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        columns = {name: module.reading(name, batch).float().cpu() for name in asked}
    return [
        {name: column[row].clone() for name, column in columns.items()}
        for row in range(len(picked))
    ]
