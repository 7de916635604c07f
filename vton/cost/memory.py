"""Memory of sampling one picture and of training, computed on the meta device, so that nothing is
allocated.

    peak = weights of the networks that are read + the most bytes of storages that are alive at once

A storage lives from the operator that makes it to the last reference to it or a view of it, as in
PyTorch's allocators. Attention is counted as CUDA's fused kernels compute it, without the matrix of
queries times keys. Left out, because they depend on the device: workspaces of convolutions and
matrix products, the allocator's rounding and gaps, the CUDA context.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vton.cost.meta import deciding_numbers, training_loss
from vton.data.sample import TryOnBatch
from vton.diffusion.denoiser import Conditions, Step
from vton.diffusion.sampling import Guidance
from vton.models.base import TrainedModule, TryOnModule

# Bytes of optimizer state per parameter. AdamW has two moments of 4 bytes each; in 8 bits, of one
# byte each, with two float32 scales for every 256 parameters. Muon has one moment for the weights
# of hidden layers, which are nearly all.
STATE_BYTES = {"adamw": 8, "adamw8bit": 2 + 8 / 256, "muon": 4}


@torch.no_grad()
def sampling_memory(module: TryOnModule, batch: TryOnBatch, precision: str) -> dict:
    """Bytes of sampling a batch, with the networks in a precision (fp32, bf16, fp16) and the codec
    in its own.

    module and batch are on the meta device; the module is cast. Returns

        dtype, codec  precision of the networks, and of the codec
        rows          of the batch in a step; guidance doubles them
        weights       bytes by network
        condition     {networks, weights, activations, peak} of what is computed once per picture:
                      the networks that are read, their weights, the most that is alive besides
        step          the same for one step, garment features included
        decode        the same from latents to pictures
        peak          of all phases, if every network stays loaded
    """
    module.compute_in(precision)
    networks = module.networks()
    sampler = module.config.sampler
    kept: dict[str, Conditions] = {}

    def condition() -> None:
        with module.reading_once():
            kept["conditions"] = module.condition(batch)

    conditioning = phase(condition, networks)
    with LiveMemory() as preparing, FusedAttention():
        z = torch.zeros(len(batch), *module.latent_shape(), device="meta")
        guidance = Guidance(module.denoiser, kept["conditions"], sampler, module.objective)
    conditions = storages_bytes(kept["conditions"].values())
    time = module.objective.at(torch.tensor(sum(sampler.guidance_interval) / 2))
    step = phase(
        lambda: guidance.predict(z, time, Step(0, sampler.steps)),
        networks,
        conditions + preparing.alive,
    )
    decode = phase(lambda: module.picture(z, batch), networks)
    activations = max(part["activations"] for part in (conditioning, step, decode))
    return {
        "dtype": precision,
        "codec": module.config.codec.precision,
        "rows": (2 if guidance.acts(time) else 1) * len(batch),
        "weights": {name: weight_bytes([network]) for name, network in networks.items()},
        "condition": conditioning,
        "step": step,
        "decode": decode,
        "peak": weight_bytes(networks.values()) + activations,
    }


def training_memory(module: TrainedModule, batch: TryOnBatch, gpus: int, held_out: int = 0) -> dict:
    """Bytes of a training step on each of `gpus` devices, by strategy, for the given batch.

    module and batch are on the meta device; the module is cast. Weights, gradients and the average
    are in float32, as Lightning's mixed precision keeps them; the optimizer's state is that of
    train.optimizer. held_out: further bytes alive while held-out pictures are drawn. Returns

        parameters       trained, and frozen (codec and encoders included)
        activations      the most that is alive in forward and backward pass, apart from weights and
                         their gradients; under bf16 autocast, or in float32 with
                         train.precision=fp32
        held_out         as given
        strategies       by name: {weights, copies, gradients, optimizer, ema, frozen, activations,
                         total}; copies are the half-precision weights that a step computes with,
                         frozen networks are in their own precision, and the total holds the larger
                         one of activations and held_out

    ddp replicates all; deepspeed (ZeRO stage 2) shards gradients and moments; fsdp shards
    everything trained and gathers the blocks one by one (two at a time, for the next is fetched
    early) besides what is in no block.
    """
    train = module.config.train
    half = train.precision != "fp32"
    parameters = list(module.parameters())
    trained = count(p for p in parameters if p.requires_grad)
    kept = count(p for p in parameters if not p.requires_grad)
    frozen = sum(count(network.parameters()) for network in module.frozen.values())
    frozen_bytes = weight_bytes(module.frozen.values())
    every = trained + kept
    stored = sum(p.nbytes for p in parameters)  # LoRA's base weights are in half precision
    copies = 2 * count(p for p in parameters if p.dtype == torch.float32) if half else 0
    in_blocks = sorted(count(block.parameters()) for block in module.blocks())
    gathered = every - sum(in_blocks) + sum(in_blocks[-2:])
    activations = step_activations(module, batch, half)

    def per_gpu(
        weights: float, copies: float, gradients: float, moments: float, average: float
    ) -> dict:
        """Bytes of these numbers of parameters; weights and copies: bytes already."""
        parts = {
            "weights": weights,
            "copies": copies,
            "gradients": 4 * gradients,
            "optimizer": STATE_BYTES[train.optimizer] * moments,
            "ema": 4 * average if train.ema else 0,
            "frozen": frozen_bytes,
            "activations": activations,
        }
        parts["total"] = sum(parts.values()) + max(0, held_out - activations)
        return {name: round(value) for name, value in parts.items()}

    share = trained / gpus
    return {
        "gpus": gpus,
        "precision": train.precision,
        "optimizer": train.optimizer,
        "parameters": {"trained": trained, "frozen": kept + frozen},
        "activations": activations,
        "held_out": held_out,
        "strategies": {
            "ddp": per_gpu(stored, copies, trained, trained, trained),
            "deepspeed": per_gpu(stored, copies, share, share, trained),
            "fsdp": per_gpu(stored / gpus, gathered * (2 if half else 4), share, share, share),
        },
    }


def held_out_memory(module: TryOnModule, batch: TryOnBatch) -> int:
    """Bytes alive while a batch of held-out pictures is drawn in training, apart from weights."""
    precision = "fp32" if module.config.train.precision == "fp32" else "bf16"
    memory = sampling_memory(module, batch, precision)
    return memory["peak"] - sum(memory["weights"].values())


def count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def step_activations(module: TrainedModule, batch: TryOnBatch, half: bool) -> int:
    """The most bytes alive in a forward and backward pass, without weights and their gradients."""
    module.train()
    if half:
        module.compute_in("bf16")  # autocast's copies of weights are counted apart
    hooks = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            hooks.append(parameter.register_post_accumulate_grad_hook(forget_gradient))
    autocast = Autocast() if half else nullcontext()
    with deciding_numbers(), LiveMemory() as memory, FusedAttention(), autocast:
        loss = training_loss(module, batch)
        # Tensor.backward would suspend the modes, which recomputation under checkpointing has to
        # see.
        torch.autograd.Variable._execution_engine.run_backward(
            (loss,),
            (torch.ones_like(loss),),
            False,
            False,
            (),
            allow_unreachable=True,
            accumulate_grad=True,
        )
    for hook in hooks:
        hook.remove()
    return memory.peak


def forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def phase(call: Callable[[], object], networks: Mapping[str, nn.Module], before: int = 0) -> dict:
    """Memory of a call during which `before` further bytes are alive."""
    # Held during the call, so that no other storage gets one of their ids.
    owned = {name: storages([network]) for name, network in networks.items()}
    with LiveMemory() as memory, FusedAttention():
        call()
    read = [name for name in networks if memory.arguments & owned[name].keys()]
    weights = weight_bytes(networks[name] for name in read)
    activations = before + memory.peak
    return {
        "networks": read,
        "weights": weights,
        "activations": activations,
        "peak": weights + activations,
    }


def storages(networks: Iterable[nn.Module]) -> dict[int, torch.UntypedStorage]:
    """The storages of parameters and buffers by id, so that shared ones are there once."""
    by_identity = {}
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            storage = tensor.untyped_storage()
            by_identity[id(storage)] = storage
    return by_identity


def storages_bytes(tensors: Iterable[Tensor]) -> int:
    by_identity = {}
    for tensor in tensors:
        by_identity[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
    return sum(by_identity.values())


def weight_bytes(networks: Iterable[nn.Module]) -> int:
    return sum(storage.nbytes() for storage in storages(networks).values())


class LiveMemory(TorchDispatchMode):
    """Watches the storages that operators make while it is active.

    alive, peak: bytes now, and the most at once
    arguments: ids of the storages that operators were given

    A CPU tensor may be combined with meta tensors, so that some tensors can have values; the result
    is on the meta device.
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
    """scaled_dot_product_attention of meta tensors as fused kernels allocate: the output, and a
    log-sum per query.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention or not args[0].is_meta:
            return func(*args, **(kwargs or {}))
        return fused_attention(*args, **(kwargs or {}))


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_, **__
) -> Tensor:
    """query (B, N, L, d), value (B, N, M, d) -> (B, N, L, d), in memory as (B, L, N, d)."""
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)  # truth values become numbers
    return FusedKernel.apply(query, key, value, attn_mask)


class FusedKernel(torch.autograd.Function):
    """Keeps inputs, output and log-sums for the backward pass, which makes three gradients."""

    @staticmethod
    def forward(ctx, query, key, value, attn_mask):
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        output = query.new_empty(
            *query.shape[:-3], query.shape[-2], query.shape[-3], value.shape[-1]
        )
        output = output.transpose(-3, -2)
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return *(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None


class Autocast(TorchFunctionMode):
    """CUDA's autocast to bf16 on the meta device, which has none: what runs in half precision and
    what in float32.

    The lists of https://docs.pytorch.org/docs/stable/amp.html, as far as the networks here use
    them.
    """

    HALF = (
        "linear",
        "conv1d",
        "conv2d",
        "matmul",
        "__matmul__",
        "bmm",
        "baddbmm",
        "addmm",
        "einsum",
        "scaled_dot_product_attention",
    )
    FULL = (
        "layer_norm",
        "group_norm",
        "softmax",
        "norm",
        "pow",
        "__pow__",
        "exp",
        "log",
        "sum",
        "prod",
        "cumsum",
        "softplus",
        "mse_loss",
        "l1_loss",
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in self.HALF or name in self.FULL:
            dtype = torch.bfloat16 if name in self.HALF else torch.float32
            args, kwargs = tree_map_only(
                Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (args, kwargs)
            )
        return func(*args, **kwargs)
