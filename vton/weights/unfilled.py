"""Networks that a file fills, built without drawing weights that are thrown away at once.

Memory that nobody writes to takes no room, and drawing the 5.5 billion weights of IDM-VTON's UNets
takes minutes. So a network that is built inside `unfilled()` starts at no cost, and with
`load_state(..., assign=True)` its start takes the size of the file's weights once. A run's file
holds all that was trained: the weights that training started from are then not even read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, UntypedStorage, nn

DRAWING = (
    "uniform_",
    "normal_",
    "trunc_normal_",
    "constant_",
    "ones_",
    "zeros_",
    "eye_",
    "dirac_",
    "xavier_uniform_",
    "xavier_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "orthogonal_",
)


class Unfilled(dict[int, UntypedStorage]):
    """Memory that was left as it was allocated, by its place.

    It is kept, and not the tensors alone: a parameter may be given other memory (`weight.data =`),
    and its former place would be taken again by one that is filled.
    """

    by_run = False

    def among(self, *networks: nn.Module) -> bool:
        """Whether a parameter of these networks still is one of them: nothing has filled it."""
        places = {place_of(p) for network in networks for p in network.parameters()}
        return not places.isdisjoint(self)


def place_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


ACTIVE: list[Unfilled] = []  # of all `unfilled` that are entered, the outermost first


@contextmanager
def unfilled(by_run: bool = False) -> Iterator[Unfilled]:
    """Inside, the functions of torch.nn.init leave tensors as they are, and note which.

    by_run: a run's file fills what was trained: see `read_later`.
    """
    left = Unfilled()
    left.by_run = by_run
    ACTIVE.append(left)
    try:
        with drawing_as_before():
            for name in DRAWING:
                setattr(nn.init, name, _leaving(getattr(nn.init, name)))
            yield left
    finally:
        ACTIVE.pop()


@contextmanager
def drawing_as_before() -> Iterator[None]:
    """Afterwards the functions of torch.nn.init are what they were before.

    Around every load by diffusers, which replaces them too, and then puts torch's own back, not
    those that it found.
    """
    before = {name: getattr(nn.init, name) for name in DRAWING}
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(nn.init, name, function)


def read_later(trained: bool) -> bool:
    """Whether a network that is trained gets its weights from a run's file in a moment, so that
    those it started from need not be read.
    """
    return trained and any(left.by_run for left in ACTIVE)


def lay_out_channels_last(network: nn.Module) -> None:
    """As `network.to(memory_format=torch.channels_last)`, but weights that nothing has filled get
    other memory that is left as it was allocated, instead of a copy that would take room.
    """
    for parameter in network.parameters():
        if parameter.dim() != 4:
            continue
        leaving = [left for left in ACTIVE if place_of(parameter) in left]
        laid_out = torch.empty_like(parameter, memory_format=torch.channels_last)
        if not leaving:
            with torch.no_grad():
                laid_out.copy_(parameter)
        for left in leaving:
            left[place_of(laid_out)] = laid_out.untyped_storage()
        parameter.data = laid_out


def _leaving(original: Callable) -> Callable:
    def leave(tensor: Tensor, *args, **kwargs) -> Tensor:
        if tensor.is_meta:
            return original(tensor, *args, **kwargs)
        if tensor.numel():
            for left in ACTIVE:
                left[place_of(tensor)] = tensor.untyped_storage()
        return tensor

    return leave
