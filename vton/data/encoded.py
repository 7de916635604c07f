"""What frozen encoders say of the training pairs, computed ahead by `vton data cache`: latents and
embeddings.

One safetensors file for each pair, in the tar shards of vton.data.shards. Beside each tensor stands
its key, a digest of the encoder's weights, of how it is asked, and of the very values it read: the
sample's fields after decoding, resizing, masking, padding and captioning. The key is made again
from the sample at hand whenever a tensor is read, so what another encoder, size, mask rule or file
left behind is recognised and never used.
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

KEYS = "keys"  # of the metadata in a file
STORED = re.compile(r"train/\d{7,}\.safetensors")  # paths of all that a folder of encodings holds


class EncodingError(DataError):
    """Encodings that are absent, stale or broken."""


class Asked(NamedTuple):
    """A reading as the data knows it: a digest of the encoders and of how they are asked, and the
    fields they read.
    """

    encoder: str
    of: tuple[str, ...]


class Encodings:
    """The stored readings of pairs, by their place in the training list.

    where: the folder that `vton data cache` wrote. asked: the readings wanted, by name.
    """

    def __init__(self, where: str, asked: Mapping[str, Asked]):
        self.where, self.asked = where, dict(asked)
        self.shards = Shards(where)

    @property
    def exist(self) -> bool:
        return (Path(self.where) / INDEX).is_file()

    def keys(self, fields: TryOnSample | Mapping) -> dict[str, str]:
        """The key that each reading of a sample must carry."""
        get = fields.get if isinstance(fields, Mapping) else lambda name: getattr(fields, name)
        parts = {
            name: _content(get(name))
            for name in {name for asked in self.asked.values() for name in asked.of}
        }
        return {
            name: hashlib.sha256(
                "".join([asked.encoder, *(parts[part] for part in asked.of)]).encode()
            ).hexdigest()
            for name, asked in self.asked.items()
        }

    def fresh(self, index: int, keys: Mapping[str, str]) -> dict[str, Tensor]:
        """Those of pair `index`'s stored readings whose key is the given one. Raises EncodingError,
        ShardError.
        """
        name = _file(index)
        if not self.exist or name not in self.shards.files:
            return {}
        content = self.shards.read(name)
        try:
            tensors, stored = load(content), _stored_keys(content)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise EncodingError(
                f"{self.where}: {name} is no safetensors file ({error}). Remove the folder."
            ) from None
        return {
            name: tensors[name]
            for name, key in keys.items()
            if name in tensors and stored.get(name) == key
        }

    def of(self, sample: TryOnSample) -> dict[str, Tensor]:
        """Every reading of a sample. Raises EncodingError where one is absent or stale."""
        found = self.fresh(sample.index, self.keys(sample))
        if lacking := [name for name in self.asked if name not in found]:
            raise EncodingError(
                f"{self.where} is stale: it has no {', '.join(lacking)} of {sample.pair_id} for these files, settings "
                "and encoders. Run `vton data cache` with the settings of this run, or leave data.encoded empty."
            )
        return found


def write_encodings(
    writer: ShardWriter, index: int, tensors: Mapping[str, Tensor], keys: Mapping[str, str]
) -> None:
    """One pair's readings and their keys."""
    name = _file(index)
    stored = {reading: tensor.cpu().contiguous() for reading, tensor in sorted(tensors.items())}
    # One string, for the library writes several in no order.
    content = save(
        stored, metadata={KEYS: json.dumps({reading: keys[reading] for reading in stored})}
    )
    writer.add(name.removesuffix(".safetensors"), {name: ("safetensors", content)})


def rows(batch: TryOnBatch, fields: set[str]) -> list[dict]:
    """These fields of a batch, sample by sample."""
    return [{name: getattr(batch, name)[row] for name in fields} for row in range(len(batch))]


def _file(index: int) -> str:
    return f"train/{index:07d}.safetensors"


def _content(value: Tensor | str) -> str:
    """Digest of a tensor's type, shape and values, or of a caption."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.contiguous().numpy())
    return digest.hexdigest()


def _stored_keys(content: bytes) -> dict[str, str]:
    """The keys in a safetensors file's header, which safetensors.torch.load leaves out."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEYS])
