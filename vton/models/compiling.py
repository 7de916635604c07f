"""Compiling the repeated blocks of networks (trainer.compile).

One block at a time, in place: blocks of one class whose weights and inputs have equal shapes share
what was compiled, and names of parameters, hooks, checkpointing and sharding stay as they are.

Attention layers stay as they are too. Their time goes into matrix products and the fused attention
kernel, where compiling wins nothing, and they are where architectures differ: where garments are
read, recorded, adapted by LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

BACKEND = "inductor"
# How many versions of a block's forward may be compiled. A UNet's convolution blocks alone have
# about 15 shapes, times networks, training and sampling, and sizes of batches.
VERSIONS = 256


def compile_blocks(
    networks: Iterable[nn.Module],
    blocks: tuple[type[nn.Module], ...],
    attentions: tuple[type[nn.Module], ...],
) -> None:
    """Have every module of the classes `blocks` compiled at its first call, without the layers of
    the classes `attentions` inside it. What is compiled already stays.
    """
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, VERSIONS)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, 8 * VERSIONS)
    # Blocks are small enough for DDP to overlap with them; it need not cut them further.
    settings.optimize_ddp = False
    for network in networks:
        for module in network.modules():
            if "forward" in vars(module):
                continue
            # `module.compile()` would take in hooks, and miss those that are set later.
            if isinstance(module, attentions):
                module.forward = torch.compiler.disable(module.forward)
            elif isinstance(module, blocks):
                module.forward = torch.compile(module.forward, backend=BACKEND, dynamic=False)


def is_compiled(block: nn.Module) -> bool:
    """Whether `compile_blocks` had this block."""
    return "forward" in vars(block)
