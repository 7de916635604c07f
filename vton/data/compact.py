"""Samples as loader processes hand them over: in bytes instead of floats, with the needed fields.

A picture in bytes has a quarter of the size of one in float32, and what follows from other parts
(the agnostic picture, the truth of paired order, a change of colour) need not be sent.
`CompactBatch.to(device)` moves the bytes and makes the TryOnBatch there. The same function,
`floats`, makes a single sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vton.data.boxes import Size, margins
from vton.data.ranges import from_unit, normalise
from vton.data.sample import CANVAS, TryOnBatch, TryOnSample, require_all_or_none, stacked

Fields = frozenset[str]

# The fields of a sample that hold tensors. `lowres` comes from the stage before, `encoded` from
# another folder.
EVERYTHING: Fields = frozenset((*CANVAS, "garment", "garment_mask"))
WARP: Fields = frozenset({"warped_garment", "warped_mask"})
# The other parts that a field is made of.
MADE_OF = {
    "agnostic": ("person", "agnostic_mask"),
    "garment": ("garment_mask",),  # outside it the colour does not change
    "warped_garment": ("warped_mask",),
    "truth": ("person",),  # in paired order they are the same
}
COLOURED = ("person", "garment", "warped_garment", "truth", "person_other")


def parts_of(wanted: Fields) -> Fields:
    """The parts that the wanted fields are made of."""
    parts = set(wanted) - {"agnostic"}
    for name in wanted:
        parts.update(MADE_OF.get(name, ()))
    return frozenset(parts)


@dataclass
class CompactSample:
    """A TryOnSample before its floats are made.

    values: its fields that are no tensors
    tensors: the wanted parts by name, pictures and labels uint8, masks bool, without those that
        follow from others
    wanted: the tensor fields of the TryOnSample to make
    colour: the change of colour that is still to be made, (3, 4) as in `recoloured`, or None
    inner: height and width of the photographs inside their margins, None without margins
    encoded: as in TryOnSample
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]
    wanted: Fields
    colour: Tensor | None = None
    inner: Size | None = None
    encoded: dict[str, Tensor] | None = None

    def expanded(self) -> TryOnSample:
        """The sample in floats."""
        order = self.values["order"]
        columns = floats(self.tensors, self.wanted, order, self.colour, self.inner)
        return TryOnSample(**self.values, **columns, encoded=self.encoded)


@dataclass
class CompactBatch:
    """Compact samples stacked; `to` makes the TryOnBatch."""

    values: dict[str, list]
    tensors: dict[str, Tensor]  # (B, ...)
    wanted: Fields
    colours: list[Tensor | None]
    inner: Size | None
    encoded: dict[str, Tensor] | None

    @classmethod
    def collate(cls, samples: Sequence[CompactSample]) -> CompactBatch:
        """Stack samples.

        Raises DataError when an optional part is present in some and absent in others.
        """
        names: set[str] = set()
        for sample in samples:
            names.update(sample.tensors)
        tensors = {}
        for name in sorted(names):
            parts = [sample.tensors.get(name) for sample in samples]
            require_all_or_none(name, parts, [sample.values for sample in samples])
            tensors[name] = stacked(parts)
        first = samples[0]
        values = {}
        for name in first.values:
            values[name] = [sample.values[name] for sample in samples]
        return cls(
            values=values,
            tensors=tensors,
            wanted=first.wanted,
            colours=[sample.colour for sample in samples],
            inner=first.inner,
            encoded=stacked([sample.encoded for sample in samples]),
        )

    def __len__(self) -> int:
        return len(self.values["index"])

    @property
    def nbytes(self) -> int:
        """Bytes of what passes between processes and to the device."""
        tensors = [*self.tensors.values(), *(self.encoded or {}).values()]
        return sum(tensor.nbytes for tensor in tensors)

    def pin_memory(self) -> CompactBatch:
        """Tensors in page-locked memory; torch's DataLoader calls this."""
        return self._mapped(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> TryOnBatch:
        """The batch in floats on the device; Lightning calls this."""
        # Operations on the device wait for copies from pinned memory by themselves.
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True)).expanded()

    def expanded(self) -> TryOnBatch:
        """The batch in floats, on the device of its bytes.

        It is made row by row: only some rows change their colour, and the others must keep exactly
        the values of their bytes.
        """
        rows = []
        for row, colour in enumerate(self.colours):
            parts = {name: tensor[row] for name, tensor in self.tensors.items()}
            order = self.values["order"][row]
            rows.append(floats(parts, self.wanted, order, colour, self.inner))
        columns = {}
        for name in rows[0]:
            columns[name] = stacked([row[name] for row in rows])
        return TryOnBatch(**self.values, **columns, encoded=self.encoded)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> CompactBatch:
        encoded = self.encoded
        if encoded is not None:
            encoded = {name: function(tensor) for name, tensor in encoded.items()}
        return replace(
            self,
            tensors={name: function(tensor) for name, tensor in self.tensors.items()},
            colours=[None if colour is None else function(colour) for colour in self.colours],
            encoded=encoded,
        )


class InBytes(Dataset):
    """A data set as loaders see it: compact samples with the wanted fields only.

    samples: a data set with a method `compact(item, wanted)`
    """

    def __init__(self, samples: Dataset, wanted: Fields = EVERYTHING):
        self.samples = samples
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item) -> CompactSample:
        return self.samples.compact(item, self.wanted)


def floats(
    parts: Mapping[str, Tensor],
    wanted: Fields,
    order: str,
    colour: Tensor | None,
    inner: Size | None,
) -> dict[str, Tensor | None]:
    """The tensors of a TryOnSample by field, None for those that are not wanted or absent.

    parts: CompactSample.tensors; colour, inner: as there
    """
    pictures = {}
    for name in (*COLOURED, "pose_map", "densepose"):
        if name not in parts:
            continue
        if colour is None or name not in COLOURED:
            pictures[name] = normalise(parts[name])
        else:
            # The white around the in-shop garment stays white.
            where = parts["garment_mask"] if name == "garment" else None
            pictures[name] = from_unit(recoloured(parts[name], colour, inner, where))

    columns: dict[str, Tensor | None] = dict.fromkeys(EVERYTHING)
    columns["lowres"] = parts.get("lowres")
    columns |= pictures
    if "agnostic" in wanted:
        columns["agnostic"] = pictures["person"] * ~parts["agnostic_mask"]
    if "warped_garment" in pictures:
        warped = pictures["warped_garment"]
        columns["warped_garment"] = torch.where(parts["warped_mask"], warped, 1.0)
    if "truth" in wanted and order == "paired":
        columns["truth"] = pictures["person"]
    for name in ("agnostic_mask", "garment_mask", "warped_mask", "truth_garment_mask"):
        if name in parts:
            columns[name] = parts[name].float()
    if "parse" in parts:
        columns["parse"] = parts["parse"].long()
    columns["keypoints"] = parts.get("keypoints")
    for name in EVERYTHING - wanted:
        columns[name] = None
    return columns


def recoloured(
    picture: Tensor, colour: Tensor, inner: Size | None = None, where: Tensor | None = None
) -> Tensor:
    """A picture (3, H, W) uint8 with its colours changed linearly, as float in [0, 1].

    colour: (3, 4): a matrix for RGB in [0, 1], and the offset as its last column
    inner: height and width of the picture inside its margins, which keep their colour
    where: (1, H, W) bool: the pixels to change; None for all
    """
    unit = picture / 255
    pixels = torch.addmm(colour[:, 3:], colour[:, :3], unit.view(3, -1))
    changed = pixels.clamp_(0, 1).view_as(unit)
    if where is not None:
        changed = torch.where(where, changed, unit)
    if inner is None:
        return changed
    left, _, top, _ = margins(inner, tuple(unit.shape[-2:]))
    middle = (..., slice(top, top + inner[0]), slice(left, left + inner[1]))
    unit[middle] = changed[middle]
    return unit
