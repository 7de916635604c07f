"""Cutting a module into shards for FSDP2 (trainer.strategy=fsdp)."""

from __future__ import annotations

import torch
from lightning import LightningModule
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method


def shard_module(
    module: LightningModule,
    blocks: list[nn.Module],
    forwards: tuple[str, ...],
    mesh: DeviceMesh,
    half: bool,
) -> None:
    """Share the weights of `module` out over the processes of `mesh`.

    blocks: repeated parts, gathered one at a time; each is called by its own forward only. What is
        in none of them is gathered with the module.
    forwards: methods of the module that count as one forward pass each, since architectures call
        parts of their networks at will.
    half: weights are gathered in bf16. Under autocast the half-precision copies of all weights
        would stay for the backward pass; here they go with their block. Gradients are summed in
        float32.
    """
    for parameter in module.parameters():  # FSDP2 knows no channels-last weights
        parameter.data = parameter.data.contiguous()
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    if half and mesh.device_type == "cpu":
        _bring_norms_to_one_type(module)
    for method in forwards:
        register_fsdp_forward_method(module, method)


def _bring_norms_to_one_type(module: nn.Module) -> None:
    """Cast the input of every norm to the type of its weights.

    CUDA's autocast does this; the CPU's refuses float32 beside bf16.
    """

    def cast(norm: nn.Module, inputs: tuple):
        return (inputs[0].to(norm.weight.dtype),)

    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm | nn.GroupNorm) and norm.weight is not None:
            norm.register_forward_pre_hook(cast)
