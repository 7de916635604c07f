"""Compiling the repeated blocks of networks (trainer.compile).

Blocks are compiled one at a time, in place. Blocks of one class whose weights and inputs have equal
shapes share the compiled code. Parameters' names, hooks, checkpointing and sharding do not change.

Attention layers are not compiled. They spend their time in matrix products and the fused attention
kernel, where compiling gains nothing, and they are where architectures differ: where garments are
read and recorded, and where LoRA is added.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

BACKEND = "inductor"
# The most versions of a block's forward that may be compiled. The convolution blocks of a single
# UNet have about 15 shapes, multiplied by networks, training and sampling, and batch sizes.
VERSIONS = 256


def compile_blocks(
    networks: Iterable[nn.Module],
    blocks: tuple[type[nn.Module], ...],
    attentions: tuple[type[nn.Module], ...],
) -> None:
    """Let every module of the classes `blocks` be compiled at its first call, without the layers of
    the classes `attentions` inside it. Modules that are compiled already are left alone.
    """
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, VERSIONS)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, 8 * VERSIONS)
    # Blocks are small enough for DDP to overlap communication with them without cutting them.
    settings.optimize_ddp = False
    for network in networks:
        for module in network.modules():
            if "forward" in vars(module):
                continue
            # `module.compile()` would compile hooks too, and miss those that are set later.
            if isinstance(module, attentions):
                module.forward = torch.compiler.disable(module.forward)
            elif isinstance(module, blocks):
                module.forward = torch.compile(module.forward, backend=BACKEND, dynamic=False)


def is_compiled(block: nn.Module) -> bool:
    """Whether `compile_blocks` has set this block up."""
    return "forward" in vars(block)
