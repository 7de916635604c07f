"""Networks that a file fills, built without drawing weights that are thrown away at once.

Memory that nobody writes to takes no room, and drawing the 5.5 billion weights of IDM-VTON's UNets
takes minutes. So a network that is built inside `unfilled()` starts at no cost, and with
`load_state(..., assign=True)` its start takes the size of the file's weights once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

DRAWING = (
    *("uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "eye_", "dirac_"),
    *("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_"),
)


class Unfilled(dict[int, Tensor]):
    """What was left as it was allocated, by the place of its memory."""

    def among(self, *networks: nn.Module) -> bool:
        """Whether a parameter of these networks still is one of them: nothing has filled it."""
        places = {place_of(p) for network in networks for p in network.parameters()}
        return not places.isdisjoint(self)


def place_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def unfilled() -> Iterator[Unfilled]:
    """Inside, the functions of torch.nn.init leave tensors as they are, and note which."""
    left = Unfilled()
    originals = {name: getattr(nn.init, name) for name in DRAWING}
    try:
        for name, original in originals.items():
            setattr(nn.init, name, _leaving(original, left))
        yield left
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)


def _leaving(original: Callable, left: Unfilled) -> Callable:
    def leave(tensor: Tensor, *args, **kwargs) -> Tensor:
        if tensor.is_meta:
            return original(tensor, *args, **kwargs)
        if tensor.numel():
            left[place_of(tensor)] = tensor  # kept, so that its place stays taken
        return tensor

    return leave
