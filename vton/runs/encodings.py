"""`vton data cache`: what a run's frozen encoders say of its training pairs.

It is computed once and read while the run trains.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from vton.config import ConfigError, ExperimentConfig
from vton.data import augmentation
from vton.data.encoded import STORED, Encodings, EncodingSpec, rows, write_encodings
from vton.data.module import TryOnDataModule
from vton.data.sample import DataError, TryOnBatch
from vton.data.shards import SHARD_MB, ShardWriter
from vton.models.base import TryOnModule
from vton.processes import own_device
from vton.progress import Progress
from vton.weights import metric_networks

log = logging.getLogger(__name__)
# Of a reading's largest value: other sums than now, not another encoder. Another device may round
# otherwise at every layer of an encoder in half precision.
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 6e-2}


def frozen_readings(module: TryOnModule) -> dict[str, EncodingSpec]:
    """The readings that can be computed ahead: of frozen encoders, of what augmentation leaves
    alone.

    Warns of those that augmentation excludes. Raises ConfigError where nothing is left.
    """
    config: ExperimentConfig = module.config
    readings = module.readings() if isinstance(module, TryOnModule) else {}
    ahead: dict[str, EncodingSpec] = {}
    excluded: list[str] = []  # readings of what augmentation changes
    settings: dict[str, None] = {}  # the settings of augmentation that do, each once
    for name, reading in readings.items():
        networks = [module.frozen.get(encoder) for encoder in reading.encoders]
        if not all(is_frozen_with_weights(network) for network in networks):
            continue
        changing = augmentation.changed_by(config.data.augment, reading.fields)
        if changing:
            excluded.append(name)
            settings |= dict.fromkeys(changing)
        else:
            digest = reading_digest(module, networks, name, reading.settings)
            ahead[name] = EncodingSpec(digest, reading.fields)

    reason = f"model={config.model.name} has no frozen encoder with weights here"
    if excluded:
        keys = " and ".join(f"data.augment.{name}" for name in settings)
        reason = f"{', '.join(excluded)} cannot, as {keys} change what they read"
    if not ahead:
        raise ConfigError(
            f"data.encoded: nothing can be computed ahead; {reason}. Leave data.encoded empty."
        )
    if excluded:
        log.warning("data.encoded: %s can be computed ahead; %s.", ", ".join(ahead), reason)
    return ahead


def is_frozen_with_weights(network: nn.Module | None) -> bool:
    """Whether it pays to keep what the network says. None: it is trained; the identity codec has
    nothing to save.
    """
    return network is not None and bool(network.state_dict())


def reading_digest(
    module: TryOnModule, networks: list[nn.Module], name: str, settings: object
) -> str:
    """SHA-256 of a reading's encoders, of their weights and of how they are asked."""
    classes = [type(part).__name__ for part in (module, *networks)]
    digest = hashlib.sha256(repr((classes, name, settings)).encode())
    for network in networks:
        digest.update(metric_networks.digest(network).encode())
    return digest.hexdigest()


@torch.no_grad()
def encode(module: TryOnModule, data: TryOnDataModule) -> tuple[int, int]:
    """Bring data.encoded up to date; returns how many pairs were computed, and how many were kept.

    A pair whose files, settings or encoders changed is computed again. Of two processes that write
    the same folder the second waits and keeps everything. Raises ConfigError where there is nothing
    to do, ShardError where the folder holds anything but encodings.
    """
    config: ExperimentConfig = module.config
    if not config.data.encoded:
        raise ConfigError(
            "vton data cache needs data.encoded=FOLDER, which training then names too."
        )
    ahead = frozen_readings(module)
    fields = {field for reading in ahead.values() for field in reading.fields}
    out = Path(config.data.encoded).expanduser()
    module.to(own_device(config.trainer.accelerator))
    computed = kept = 0
    pairs = len(data.train_dataset().pairs)
    with (
        ShardWriter(out, SHARD_MB, replaceable=STORED) as writer,
        Progress("Computing encodings", pairs, "pair") as progress,
    ):
        former = Encodings(str(out), ahead)
        for batch in data.listed_dataloader():
            keys, encodings, stale = [], [], []
            for row, sample in enumerate(rows(batch, fields)):
                keys.append(former.keys(sample))
                encodings.append(former.fresh(batch.index[row], keys[row]))
                if encodings[row].keys() != ahead.keys():
                    stale.append(row)

            for row, tensors in zip(stale, _compute(module, batch, stale, ahead), strict=True):
                encodings[row] = tensors
            for row, index in enumerate(batch.index):
                write_encodings(writer, index, encodings[row], keys[row])
            computed += len(stale)
            kept += len(batch) - len(stale)
            progress.advance(len(batch))
    return computed, kept


def use_encodings(module: TryOnModule, data: TryOnDataModule) -> None:
    """Let training samples bring their readings along.

    The first pair's are compared with what the encoders say now, so that changed code is noticed as
    well. Raises DataError where they are absent or stale.
    """
    folder = Path(module.config.data.encoded).expanduser()
    encodings = Encodings(str(folder), frozen_readings(module))
    if not encodings.exist:
        raise DataError(
            f"data.encoded={encodings.where} does not exist. "
            "Write it: vton data cache, same settings."
        )
    sample = data.train_dataset().pairs[0]
    stored = encodings.read(sample)
    with torch.no_grad():
        (current,) = _compute(module, TryOnBatch.collate([sample]), [0], encodings.specs)
    tolerance = TOLERANCE[module.config.train.precision]
    for name, now in current.items():
        error = (now - stored[name]).abs().max()
        if not error <= tolerance * now.abs().max():  # NaN too
            raise DataError(
                f"{encodings.where}: {name} of {sample.pair_id} differs from what its encoder says "
                "now. Remove the folder and run `vton data cache` again."
            )
    data.encodings = encodings


def _compute(
    module: TryOnModule, batch: TryOnBatch, picked: list[int], asked: dict[str, EncodingSpec]
) -> list[dict[str, Tensor]]:
    """The readings of the picked rows of a batch, each by name, on the CPU."""
    if not picked:
        return []
    batch = batch[picked].to(module.device)
    # cuDNN's default, TF32, differs by about 1e-3 from what a CPU will compare with.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        readings = {name: module.reading(name, batch).float().cpu() for name in asked}
    computed = []
    for row in range(len(picked)):
        computed.append({name: values[row].clone() for name, values in readings.items()})
    return computed
