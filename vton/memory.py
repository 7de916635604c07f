"""Peak memory of sampling one picture, computed on the meta device, so that nothing is allocated.

    peak = weights of the networks that are read + the most bytes of storages that are alive at once

A storage lives from the operator that makes it to the last reference to it or a view of it, as in PyTorch's allocators.
Attention counts as CUDA's fused kernels do it, without the matrix of queries times keys. Left out, because the device
decides: workspaces of convolutions and matrix products, the allocator's rounding and gaps, the CUDA context.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vton.diffusion.sampling import Conditions, Step, double
from vton.models.base import TryOnModule


@torch.no_grad()
def sampling_memory(module: TryOnModule, conditions: Conditions, dtype: torch.dtype = torch.float16) -> dict:
    """Bytes of sampling with the networks in dtype and the codec in float32, in which it always computes.

    module and conditions, those of one sample, are on the meta device; the module is cast. Guidance doubles the batch
    as in vton/diffusion/sampling.py. Returns

        dtype, rows  of the networks; of the batch in a step
        weights      bytes by network
        step         {networks, weights, activations, peak} of one step, garment features included: the networks it
                     reads, all of their weights, and what else is alive at most
        decode       the same from latents to picture
        peak         of both when every network stays loaded, the encoders too
    """
    module.to(dtype)
    module.codec.float()
    networks, sampler = module.networks(), module.config.sampler
    rows = 1 if sampler.guidance == 1 else 2
    with LiveMemory() as preparing, FusedAttention():
        conditions = {name: with_values(tensor, dtype) for name, tensor in conditions.items()}
        batch = double(module.unconditional(conditions), conditions) if rows == 2 else conditions
        z = torch.zeros(1, *module.latent_shape(), dtype=dtype, device="meta")

    def step() -> Tensor:
        t = torch.zeros(rows, dtype=torch.int64, device="cpu")
        z_in = torch.cat([z] * rows)
        prediction = module.denoise(z_in, t, batch, module.garment_features(batch, t, Step(0, sampler.steps))).float()
        if rows == 1:
            return prediction
        uncond, cond = prediction.chunk(2)
        return uncond + sampler.guidance * (cond - uncond)

    phases = {
        "step": phase(step, networks, preparing.alive),
        "decode": phase(lambda: module.codec.decode(z.float()), networks),
    }
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "weights": {name: weight_bytes([network]) for name, network in networks.items()},
        **phases,
        "peak": weight_bytes(networks.values()) + max(row["activations"] for row in phases.values()),
    }


def phase(call: Callable[[], object], networks: Mapping[str, nn.Module], held: int = 0) -> dict:
    """Memory of a call that starts with `held` bytes which outlive it."""
    owned = {name: storages([network]) for name, network in networks.items()}
    with LiveMemory() as memory, FusedAttention():
        call()
    read = [name for name in networks if memory.arguments & owned[name].keys()]
    weights, activations = weight_bytes(networks[name] for name in read), held + memory.peak
    return {"networks": read, "weights": weights, "activations": activations, "peak": weights + activations}


def storages(networks: Iterable[nn.Module]) -> dict[int, torch.UntypedStorage]:
    """What is behind parameters and buffers, by identity: what two networks share is there once."""
    tensors = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
    return {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}


def weight_bytes(networks: Iterable[nn.Module]) -> int:
    return sum(storage.nbytes() for storage in storages(networks).values())


def with_values(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating-point conditions in dtype. Integers get values, on the CPU: models decide by them what they compute.

    They are indices of rows, and in a batch of one these are 0.
    """
    return tensor.to(dtype) if tensor.is_floating_point() else torch.zeros_like(tensor, device="cpu")


class LiveMemory(TorchDispatchMode):
    """Watches the storages that operators make while it is active.

    alive, peak: bytes now, and the most at once. arguments: identities of the storages that operators were given.
    A CPU tensor may meet meta tensors, so that some tensors can have values; the result is on the meta device.
    """

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.arguments: set[int] = set()
        self._made: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.arguments |= {id(tensor.untyped_storage()) for tensor in given}
        if len({tensor.is_meta for tensor in given}) == 2:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        result = func(*args, **kwargs)
        known = {id(tensor.untyped_storage()) for tensor in given}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in known:
                self._watch(leaf.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        identity, size = id(storage), storage.nbytes()
        if identity in self._made:
            return

        def release(_: weakref.ref) -> None:
            del self._made[identity]
            self.alive -= size

        self._made[identity] = weakref.ref(storage, release)
        self.alive += size
        self.peak = max(self.peak, self.alive)


class FusedAttention(TorchFunctionMode):
    """scaled_dot_product_attention of meta tensors as fused kernels allocate: the output, and a log-sum per query."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention or not args[0].is_meta:
            return func(*args, **(kwargs or {}))
        return fused_attention(*args, **(kwargs or {}))


def fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_, **__) -> Tensor:
    """query (B, N, L, d), value (B, N, M, d) -> (B, N, L, d), in memory as (B, L, N, d)."""
    beside = [query.new_empty(query.shape[:-1], dtype=torch.float32)]
    if attn_mask is not None:
        beside.append(attn_mask.to(query.dtype))  # truth values become numbers
    output = query.new_empty(*query.shape[:-3], query.shape[-2], query.shape[-3], value.shape[-1])
    return output.transpose(-3, -2)
