"""Training part of a network: attention layers alone, LoRA's matrices, a new input layer.

The network stays one ordinary submodule. The parameters of the trained part have gradients, stand
in checkpoints and averages, and are imported and exported. All others stay as they were loaded.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def train_only(network: nn.Module, accepts: Callable[[str], bool], none: bool = False) -> None:
    """Let only the parameters whose names within the network `accepts` takes be trained, saved and
    loaded.

    Buffers are not trained and stay out as well. none: a network of which no parameter is taken is
    no mistake. Raises ValueError where it is one.
    """
    trained = set()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(accepts(name))
        if accepts(name):
            trained.add(name)
    if not trained and not none:
        raise ValueError(f"no parameter of {type(network).__name__} belongs to the trained part")

    saved = set(network.state_dict())  # without the buffers that stand in no checkpoint

    def leave_out(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
        for key in list(state):
            if key.startswith(prefix) and key.removeprefix(prefix) not in trained:
                del state[key]

    def fill_in(module: nn.Module, state: dict, prefix: str, *rest) -> None:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in saved and name not in trained:
                state.setdefault(prefix + name, tensor.detach())

    network.register_state_dict_post_hook(leave_out)
    network.register_load_state_dict_pre_hook(fill_in)
