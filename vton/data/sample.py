"""The one record that crosses from data to models: TryOnSample, and TryOnBatch, its collated form.

Images are RGB in [-1, 1]; masks are 0 or 1 and 1 means *paint here*. Paired order: the garment is
the one the person wears, so `person` is the truth. Unpaired order: another garment; `person` still
wears the old one.

Legend: B batch, H W picture height and width, J = 18 COCO-18 joints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

from vton.errors import UserError
from vton.processes import to_device

CATEGORIES = ("upper_body", "lower_body", "dresses")
JOINTS = 18
# Fields of a sample that lie on the person's canvas. Further tensors: garment and garment_mask.
CANVAS = (
    "person",
    "agnostic",
    "agnostic_mask",
    "warped_garment",
    "warped_mask",
    "pose_map",
    "keypoints",
    "parse",
    "densepose",
    "truth",
    "truth_garment_mask",
    "person_other",
)

Category = Literal["upper_body", "lower_body", "dresses"]
Order = Literal["paired", "unpaired"]


class DataError(UserError):
    """A data set or one of its files cannot be used.

    The message names data set, id and path, and says what to do.
    """

    def __init__(self, message: str):
        if message.startswith("Caught "):
            # torch passes on an error of a loader process as the text of its traceback, which ends
            # with the message.
            message = message.rsplit("Error: ", 1)[-1].rstrip()
        super().__init__(message)


def joined_id(person_id: str, garment_id: str) -> str:
    """The id of a pair: person__garment, after the category's folder if ids have one.

    >>> joined_id("dresses/000001", "dresses/000002")
    'dresses/000001__000002'
    """
    return f"{person_id}__{garment_id.rpartition('/')[2]}"


@dataclass
class TryOnSample:
    """One person and one garment.

    `check()` enforces every shape, range and polarity stated here.
    """

    index: int  # position in the pair list; stable, so noise and results can be keyed by it
    dataset: str  # "viton_hd", "dresscode" or "synthetic"
    person_id: str  # unique in the data set; with the category in front where names may recur
    garment_id: str
    order: Order
    category: Category
    person_caption: str  # "model is wearing ..."
    garment_caption: str  # "a photo of ..."

    person: Tensor  # (3, H, W) in [-1, 1]; the person as photographed, in both orders
    agnostic: Tensor  # (3, H, W) in [-1, 1]; person with the painted region set to 0
    agnostic_mask: Tensor  # (1, H, W) 0 or 1; 1 = paint here
    garment: Tensor  # (3, H, W) in [-1, 1]; in-shop garment on white
    garment_mask: Tensor  # (1, H, W) 0 or 1; silhouette of the in-shop garment
    # (3, H, W) in [-1, 1]; the garment bent onto the person, on white; None if no model reads it
    warped_garment: Tensor | None
    warped_mask: Tensor | None  # (1, H, W) 0 or 1; where it lies, inside agnostic_mask
    pose_map: Tensor  # (3, H, W) in [-1, 1]; drawn skeleton on black
    keypoints: Tensor  # (J, 3) float: x and y in [0, 1] of width and height, and validity 0 or 1
    parse: Tensor  # (H, W) int64; labels of vton.data.labels, the same for every data set

    # Optional: present for the whole batch or absent.
    densepose: Tensor | None = None  # (3, H, W) in [-1, 1]; see data.densepose_as
    # (3, H, W) in [-1, 1]; the person in `garment`; absent only for real unpaired pairs
    truth: Tensor | None = None
    truth_garment_mask: Tensor | None = None  # (1, H, W) 0 or 1; where `truth` shows the garment
    # (3, H, W) in [-1, 1]; the person in the same pose but in other clothes than in `person`, from
    # which models without a mask learn
    person_other: Tensor | None = None
    # (3, h, w) in [-1, 1]; the smaller picture that a super-resolution stage enlarges
    lowres: Tensor | None = None
    # place in the endless training stream, from which its noise is seeded; -1 outside training
    position: int = -1
    # readings of frozen encoders by name, where data.encoded holds them
    encoded: dict[str, Tensor] | None = None

    @property
    def pair_id(self) -> str:
        """The pair's name in file names and tables.

        It names person and garment, so that the two orders never collide.
        """
        return joined_id(self.person_id, self.garment_id)

    def check(self) -> TryOnSample:
        """Return self; raise DataError naming the sample and the field that breaks the contract."""
        for name in PICTURES:
            self._check_image(name, channels=3)
        for name in MASKS:
            self._check_image(name, channels=1)
        height, width = self.person.shape[-2:]
        if tuple(self.keypoints.shape) != (JOINTS, 3):
            shape = tuple(self.keypoints.shape)
            self._reject("keypoints", f"has shape {shape}, expected {(JOINTS, 3)}")
        if self.lowres is not None and (self.lowres.ndim != 3 or len(self.lowres) != 3):
            shape = tuple(self.lowres.shape)
            self._reject("lowres", f"has shape {shape}, expected (3, h, w)")
        if tuple(self.parse.shape) != (height, width) or self.parse.dtype != torch.int64:
            kind = f"{self.parse.dtype} {tuple(self.parse.shape)}"
            self._reject("parse", f"is {kind}, expected int64 {(height, width)}")
        if self.category not in CATEGORIES:
            known = ", ".join(CATEGORIES)
            self._reject("category", f"is {self.category!r}, expected one of {known}")
        if not self.agnostic_mask.any():
            self._reject("agnostic_mask", "is empty: nothing to paint")
        if (self.agnostic * self.agnostic_mask).abs().max() > 0:
            self._reject("agnostic", "is not 0 inside agnostic_mask (inverted mask?)")
        if self.warped_mask is not None and (self.warped_mask > self.agnostic_mask).any():
            self._reject("warped_mask", "leaves agnostic_mask")
        if self.order == "paired" and self.truth is None:
            self._reject("truth", "is absent in paired order")
        return self

    def _check_image(self, name: str, channels: int) -> None:
        """Shape and range of a picture (3 channels) or a mask (1 channel)."""
        image = getattr(self, name)
        if image is None and name in OPTIONAL:
            return
        expected = (channels, *self.person.shape[-2:])
        if tuple(image.shape) != expected:
            self._reject(name, f"has shape {tuple(image.shape)}, expected {expected}")
        low, high = (bound.item() for bound in image.aminmax())
        if not image.is_floating_point() or not math.isfinite(low) or not math.isfinite(high):
            self._reject(name, "is not a finite float image")
        if channels == 1 and not ((image == 0) | (image == 1)).all():
            self._reject(name, "is not 0 or 1 everywhere")
        largest = max(-low, high)
        if channels == 3 and largest > 1 + 1e-5:
            self._reject(name, f"leaves [-1, 1]: max |x| is {largest:.3f}")

    def _reject(self, name: str, problem: str) -> None:
        raise DataError(
            f"{self.dataset} {self.order} {self.pair_id}: {name} {problem}. Run `make data-check`."
        )


PICTURES = (
    "person",
    "agnostic",
    "garment",
    "warped_garment",
    "pose_map",
    "densepose",
    "truth",
    "person_other",
)
MASKS = ("agnostic_mask", "garment_mask", "warped_mask", "truth_garment_mask")
OPTIONAL = (
    "warped_garment",
    "warped_mask",
    "densepose",
    "truth",
    "truth_garment_mask",
    "person_other",
)


@dataclass
class TryOnBatch:
    """Samples stacked.

    Every tensor of TryOnSample gains a leading B, every other field becomes a list of length B.
    """

    index: list[int]
    dataset: list[str]
    person_id: list[str]
    garment_id: list[str]
    order: list[Order]
    category: list[Category]
    person_caption: list[str]
    garment_caption: list[str]
    person: Tensor  # (B, 3, H, W)
    agnostic: Tensor  # (B, 3, H, W)
    agnostic_mask: Tensor  # (B, 1, H, W)
    garment: Tensor  # (B, 3, H, W)
    garment_mask: Tensor  # (B, 1, H, W)
    warped_garment: Tensor  # (B, 3, H, W)
    warped_mask: Tensor  # (B, 1, H, W)
    pose_map: Tensor  # (B, 3, H, W)
    keypoints: Tensor  # (B, J, 3)
    parse: Tensor  # (B, H, W)
    densepose: Tensor | None = None  # (B, 3, H, W)
    truth: Tensor | None = None  # (B, 3, H, W)
    truth_garment_mask: Tensor | None = None  # (B, 1, H, W)
    person_other: Tensor | None = None  # (B, 3, H, W)
    lowres: Tensor | None = None  # (B, 3, h, w)
    position: list[int] = field(default_factory=list)  # filled with -1 where not given
    encoded: dict[str, Tensor] | None = None  # each (B, ...)

    def __post_init__(self):
        self.position = self.position or [-1] * len(self.index)

    @classmethod
    def collate(cls, samples: Sequence[TryOnSample]) -> TryOnBatch:
        """Stack samples.

        Raises DataError when an optional field is present in some and absent in others.
        """
        columns = {}
        for column in fields(TryOnSample):
            values = [getattr(sample, column.name) for sample in samples]
            require_all_or_none(column.name, values, [vars(sample) for sample in samples])
            columns[column.name] = stacked(values)
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def pair_id(self) -> list[str]:
        """The pairs' names, as TryOnSample.pair_id."""
        return list(map(joined_id, self.person_id, self.garment_id))

    @property
    def pair_name(self) -> list[str]:
        """The pairs' ids without category, which noise is keyed by."""
        return [pair_id.rpartition("/")[2] for pair_id in self.pair_id]

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> TryOnBatch:
        """The batch with `function` applied to every tensor."""
        values = vars(self).copy()
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = function(value)
        if self.encoded is not None:
            values["encoded"] = {name: function(tensor) for name, tensor in self.encoded.items()}
        return TryOnBatch(**values)

    def to(self, *args, **kwargs) -> TryOnBatch:
        """Move tensors between devices; Lightning calls this.

        Pass devices only: a dtype would be applied to labels too.
        """
        return self.map_tensors(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> TryOnBatch:
        """Tensors in page-locked memory; torch's DataLoader calls this."""
        return self.map_tensors(Tensor.pin_memory)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> TryOnBatch:
        """The chosen rows, as a batch."""
        index = torch.arange(len(self))[rows]
        numbers = index.tolist()
        chosen = self.map_tensors(lambda tensor: tensor[to_device(index, tensor.device)])
        for name, value in vars(chosen).items():
            if isinstance(value, list):
                setattr(chosen, name, [value[row] for row in numbers])
        return chosen


def require_all_or_none(name: str, values: Sequence, samples: Sequence[dict]) -> None:
    """Raise DataError where a field is None for some samples of a batch and not for others.

    samples: their other fields, by name
    """
    absent = [value is None for value in values]
    if all(absent) or not any(absent):
        return
    without = samples[absent.index(True)]
    pair = joined_id(without["person_id"], without["garment_id"])
    raise DataError(
        f"{without['dataset']}: {name} is absent for {pair} but present for others of its batch; "
        "provide it for all samples or for none."
    )


def stacked(values: Sequence):
    """One field of all samples: tensors and dictionaries of tensors stacked, all else a list."""
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.stack(values)
    if isinstance(first, dict):
        return {name: torch.stack([value[name] for value in values]) for name in first}
    return values
