"""Readings of frozen encoders (latents and embeddings), computed ahead by `vton data cache`.

There is one safetensors file for each training pair, in the tar shards of vton.data.shards. Each
tensor is stored with its key: a digest of the encoder's weights, of its settings, and of the exact
values that it read, the sample's fields after decoding, resizing, masking, padding and captioning.
The key is computed again from the current sample whenever a tensor is read, so tensors of another
encoder, size, mask rule or file are recognised and never used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vton.data.sample import DataError, TryOnBatch, TryOnSample
from vton.data.shards import INDEX, Shards, ShardWriter

METADATA = "keys"  # where a file's metadata has the keys
STORED = re.compile(r"train/\d{7,}\.safetensors")  # paths of all that a folder of encodings holds


class EncodingSpec(NamedTuple):
    """What the data knows of a reading."""

    encoder: str  # digest of its encoders and their settings
    fields: tuple[str, ...]  # of a sample, which they read


class Encodings:
    """The stored readings of pairs, by their place in the training list.

    where: the folder that `vton data cache` wrote. specs: the readings wanted, by name.
    """

    def __init__(self, where: str, specs: Mapping[str, EncodingSpec]):
        self.where = where
        self.specs = dict(specs)
        self.shards = Shards(where)

    @property
    def exist(self) -> bool:
        return (Path(self.where) / INDEX).is_file()

    def keys(self, sample: TryOnSample | Mapping) -> dict[str, str]:
        """The key that each reading of a sample, or of its fields by name, must carry."""
        fields = sample if isinstance(sample, Mapping) else vars(sample)
        digests: dict[str, str] = {}
        keys = {}
        for name, spec in self.specs.items():
            for field in spec.fields:
                if field not in digests:
                    digests[field] = _content_digest(fields[field])
            read = [digests[field] for field in spec.fields]
            keys[name] = hashlib.sha256("".join([spec.encoder, *read]).encode()).hexdigest()
        return keys

    def fresh(self, index: int, keys: Mapping[str, str]) -> dict[str, Tensor]:
        """The stored readings of pair `index` that carry the given key. Raises DataError."""
        path = _path(index)
        if not self.exist or path not in self.shards.files:
            return {}
        content = self.shards.read(path)
        try:
            tensors = load(content)
            stored = _stored_keys(content)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.where}: {path} is no safetensors file ({error}). Remove the folder."
            ) from None
        readings = {}
        for name, key in keys.items():
            if name in tensors and stored.get(name) == key:
                readings[name] = tensors[name]
        return readings

    def read(self, sample: TryOnSample) -> dict[str, Tensor]:
        """Every reading of a sample. Raises DataError where one is absent or stale."""
        readings = self.fresh(sample.index, self.keys(sample))
        lacking = [name for name in self.specs if name not in readings]
        if lacking:
            raise DataError(
                f"{self.where} is stale: it has no {', '.join(lacking)} of {sample.pair_id} for "
                "these files, settings and encoders. Run `vton data cache` with the settings of "
                "this run, or leave data.encoded empty."
            )
        return readings


def write_encodings(
    writer: ShardWriter, index: int, tensors: Mapping[str, Tensor], keys: Mapping[str, str]
) -> None:
    """Write one pair's readings and their keys."""
    stored = {}
    stored_keys = {}
    for name, tensor in sorted(tensors.items()):
        stored[name] = tensor.cpu().contiguous()
        stored_keys[name] = keys[name]
    # One string: the library writes several metadata entries in no fixed order.
    content = save(stored, metadata={METADATA: json.dumps(stored_keys)})
    path = _path(index)
    writer.add(path.removesuffix(".safetensors"), {path: ("safetensors", content)})


def rows(batch: TryOnBatch, fields: set[str]) -> list[dict]:
    """These fields of a batch, as a dictionary for each sample."""
    samples = []
    for row in range(len(batch)):
        samples.append({name: getattr(batch, name)[row] for name in fields})
    return samples


def _path(index: int) -> str:
    return f"train/{index:07d}.safetensors"


def _content_digest(value: Tensor | str) -> str:
    """Digest of a tensor's type, shape and values, or of a caption."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.contiguous().numpy())
    return digest.hexdigest()


def _stored_keys(content: bytes) -> dict[str, str]:
    """The keys in a safetensors file's header, which safetensors.torch.load leaves out."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return json.loads(header["__metadata__"][METADATA])
