"""What `vton info` says about memory: exact where it can be worked out by hand, equal to PyTorch's
own count, free.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.batches import random_batch, tiny_module
from tests.models.test_every_model import module_in
from tests.sweeps import soon_and_later
from vton.config import load
from vton.cost.counting import cost, counted, describe, picture_flops, step_flops
from vton.cost.memory import Autocast, FusedAttention, LiveMemory, phase, weight_bytes
from vton.cost.meta import deciding_numbers, require_works


def two_layers(**options) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8, **options), nn.Linear(8, 2, **options))


@torch.no_grad()
def test_two_layers_by_hand():
    network, other = two_layers(device="meta", dtype=torch.float16), nn.Linear(3, 3, device="meta")
    x = torch.zeros(5, 4, device="meta", dtype=torch.float16)
    row = phase(lambda: network(x), {"network": network, "other": other}, before=100)
    weights = 2 * (4 * 8 + 8 + 8 * 2 + 2)
    activations = 100 + 2 * 5 * (8 + 2)  # the hidden layer is alive until the output is there
    assert row == {
        "networks": ["network"],
        "weights": weights,
        "activations": activations,
        "peak": weights + activations,
    }


@torch.no_grad()
def test_a_storage_lives_as_long_as_its_last_view():
    x = torch.zeros(10, device="meta")
    with LiveMemory() as memory:
        y = x + 1
        first = y[:2].add_(1)  # neither views nor in-place operators take memory
        assert memory.alive == memory.peak == 40
        del y
        assert memory.alive == 40
        del first
        assert memory.alive == 0
        x.double()
    assert memory.alive == 0 and memory.peak == 80


@torch.no_grad()
def test_agrees_with_pytorchs_profiler_on_the_cpu():
    network = nn.Sequential(
        nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 128), nn.SiLU()
    )
    x = torch.randn(32, 64)

    def call(x):
        return F.softmax(network(x) * 2, -1).chunk(2, -1)[0].cumsum(0)

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = call(x)
    del result
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak > 0 and phase(lambda: call(x), {})["activations"] == peak
    network, x = network.to("meta"), x.to("meta")
    assert phase(lambda: call(x), {})["activations"] == peak


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_attention_takes_its_output_and_one_number_per_query(masked):
    q, k, v = (
        torch.zeros(2, 3, tokens, 8, device="meta", dtype=torch.float16)
        for tokens in (1000, 500, 500)
    )
    mask = torch.ones(1, 1, 1, 500, device="meta", dtype=torch.bool) if masked else None
    with LiveMemory() as memory, FusedAttention():
        out = F.scaled_dot_product_attention(q, k, v, mask)
        merged = out.transpose(1, 2).flatten(2)  # a view: kernels write heads side by side
    assert out.shape == (2, 3, 1000, 8) and merged.shape == (2, 1000, 24)
    assert memory.alive == 2 * q.numel()
    assert memory.peak == 2 * q.numel() + 4 * 2 * 3 * 1000 + (2 * 500 if masked else 0)


def test_small_tensors_of_the_meta_device_have_numbers():
    table = torch.zeros(400, 30, device="meta")
    with deciding_numbers():
        rows = torch.tensor([0, 1], device="meta")
        assert rows.tolist() == [0, 1]
        assert torch.arange(3, device="meta").flip(0).tolist() == [2, 1, 0]
        assert torch.zeros_like(rows).tolist() == [0, 0]
        assert (table[rows] * rows[:, None]).is_meta
        assert torch.zeros(400, 30, device="meta").is_meta
        assert not torch.equal(table, table.clone())


def test_shared_weights_count_once():
    network = two_layers()
    assert (
        weight_bytes([network, network[0]])
        == weight_bytes([network])
        == 4 * (4 * 8 + 8 + 8 * 2 + 2)
    )


@pytest.mark.parametrize("model", soon_and_later())
def test_info_counts_without_allocating(model):
    """At full size."""
    rows = describe(load(f"model={model}", "preset=paper"))
    assert sum(row["trained"] for row in rows["networks"]) > 0
    assert rows["flops"]["denoise"] > 0
    assert torch.zeros(1).device.type == "cpu"  # the meta device is left when info is done


@pytest.mark.parametrize("model", soon_and_later())
def test_its_cost_is_counted(model):
    counts = cost(module_in("as published", model).config)
    assert 0 < counts["trained_parameters"] <= counts["parameters"]
    assert counts["step_flops"] > counts["picture_flops"] > 0 and counts["sampling_bytes"] > 0


@pytest.mark.parametrize("model", soon_and_later())
def test_guidance_doubles_the_step_and_nothing_else(model):
    described = describe(load(f"model={model}", "preset=tiny", "sampler.guidance=2"))
    assert described["trained"] > 0 and described["flops"]["denoise"] > 0
    guided = described["memory"]
    single = describe(load(f"model={model}", "preset=tiny", "sampler.guidance=1"))["memory"]
    assert (guided["rows"], single["rows"], guided["dtype"]) == (2, 1, "fp32")
    assert guided["decode"] == single["decode"] and guided["weights"] == single["weights"]
    assert guided["step"]["networks"] == single["step"]["networks"] != []
    decoding = ["codec"] if guided["weights"]["codec"] else []  # pixels have nothing to decode
    assert "codec" not in guided["step"]["networks"]
    # LaDI-VTON's skips end inside its codec's decoder.
    assert [name for name in guided["decode"]["networks"] if name != "emasc"] == decoding
    assert 1.3 < guided["step"]["activations"] / single["step"]["activations"] < 3
    most = max(guided[phase]["activations"] for phase in ("condition", "step", "decode"))
    assert guided["peak"] == sum(guided["weights"].values()) + most


class RealAllocations(TorchDispatchMode):
    """The sum of what operators return outside the meta device."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        real = (
            leaf
            for leaf in tree_leaves(result)
            if isinstance(leaf, torch.Tensor) and not leaf.is_meta
        )
        self.bytes += sum(leaf.nbytes for leaf in real)
        return result


# one decodes for its loss, one reads a null garment for free
@pytest.mark.parametrize("model", ["gardiff", "idm_vton"])
def test_flops_are_those_of_a_real_step_and_a_real_picture(model):
    settings = (
        "model.condition_dropout=0",
        "train.batch_size=2",
        "sampler.guidance=2",
        "sampler.steps=3",
    )
    module = tiny_module(model, *settings)
    batch = random_batch(2)
    batch.person_caption, batch.garment_caption = ["a", "b"], ["c", "d"]
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's fused attention
        _, step = counted(lambda: module.train().training_step(batch, 0).backward())
        module.eval().requires_grad_(False)
        _, picture = counted(lambda: module.generate(batch[:1]))
    assert step_flops(module.config) == pytest.approx(step, rel=1e-3)
    assert picture_flops(module.config) == picture


def test_a_network_counts_in_the_steps_in_which_it_acts():
    """A ControlNet in four, two and one of four steps."""
    settings = ("model=imagdressing", "preset=tiny", "sampler.steps=4")
    all_, half, one = (
        picture_flops(load(*settings, f"model.inpaint.end={end}")) for end in (1, 0.5, 0.25)
    )
    assert all_ - half == 2 * (half - one) > 0


def test_rows_of_an_ablation_cost_what_they_consist_of():
    """Two networks in sequence take twice of one, and no garment network takes less."""
    rows = [
        load("model=tryondiffusion", f"ablation=tryondiffusion/{row}")
        for row in ("concatenation", "full")
    ]
    both = load("model=tryondiffusion", "ablation=tryondiffusion/warp_then_blend")
    less, full, twice = ((step_flops(config), picture_flops(config)) for config in (*rows, both))
    assert less[0] < 0.8 * full[0] and less[1] < 0.8 * full[1]
    assert twice == pytest.approx((2 * full[0], 2 * full[1]), rel=0.01)


def test_full_size_memory_without_allocating():
    with RealAllocations() as real:
        rows = describe(load("model=gardiff", "preset=paper", "eval.precision=bf16"))
    parameters = {row["name"]: row["parameters"] for row in rows["networks"]}
    memory = rows["memory"]
    assert memory["step"]["networks"] == ["network"]
    assert memory["weights"]["network"] == 2 * parameters["network"] == memory["step"]["weights"]
    assert memory["weights"]["codec"] == 2 * parameters["codec"]
    assert (memory["dtype"], memory["codec"]) == ("bf16", "bf16")
    # Widest at the first level: 2 x 3072 tokens; its feed-forward holds 2 x 4 x 320 channels of
    # them, and 4 x 320 more.
    assert memory["step"]["activations"] > 2 * 2 * 3072 * (8 + 4) * 320
    assert memory["step"]["peak"] < 2 * 2**30 and real.bytes < 2**20


def test_training_memory_by_strategy():
    """States by hand: 4 bytes a weight, a gradient and an average, 8 of moments; shared out by
    strategy.
    """
    config = load("model=gardiff", "train.optimizer=adamw", "train.precision=bf16")
    described = describe(config, gpus=8)
    plain, checkpointed = described["training"]["plain"], described["training"]["checkpointed"]
    trained, rows = plain["parameters"]["trained"], plain["strategies"]
    whole = sum(row["parameters"] for row in described["networks"] if row["trained"])
    assert rows["ddp"]["weights"] == 4 * whole and rows["ddp"]["copies"] == 2 * whole
    assert (
        rows["ddp"]["gradients"] == rows["ddp"]["ema"] == 4 * trained
        and rows["ddp"]["optimizer"] == 8 * trained
    )
    assert rows["deepspeed"]["optimizer"] == trained and rows["deepspeed"]["weights"] == 4 * whole
    assert (
        rows["fsdp"]["weights"] == whole // 2
        and rows["fsdp"]["gradients"] == rows["fsdp"]["ema"] == trained // 2
    )
    assert rows["fsdp"]["copies"] < rows["ddp"]["copies"]
    held_out = max(0, plain["held_out"] - plain["activations"])  # whichever is more at a time
    assert plain["held_out"] > 0
    for row in rows.values():
        parts = sum(value for name, value in row.items() if name != "total")
        assert abs(row["total"] - parts - held_out) < 8
    assert 0 < checkpointed["activations"] < plain["activations"]


def test_a_training_step_keeps_what_its_backward_pass_reads():
    """By hand, under autocast: bf16 products keep their inputs, norms work in float32."""
    network = nn.Sequential(
        nn.Linear(64, 256, bias=False), nn.LayerNorm(256, elementwise_affine=False)
    )
    x = torch.randn(32, 64, device="meta")
    network.to("meta", torch.bfloat16)
    with LiveMemory() as memory, Autocast():
        loss = network(x)
        kept = memory.alive
    half, full = 2 * 32 * 256, 4 * 32 * 256
    # x in bf16, the product's result upcast for the normalisation, its output, and its mean and
    # deviation per row.
    assert (
        kept == 2 * 32 * 64 + full + full + 2 * 4 * 32
        and loss.dtype == torch.float32
        and half < kept
    )


def test_fused_attention_has_gradients():
    query, key, value = (
        torch.randn(2, 3, 5, 4, device="meta", requires_grad=True) for _ in range(3)
    )
    with LiveMemory() as memory, FusedAttention():
        out = F.scaled_dot_product_attention(query, key, value)
    assert out.shape == query.shape and memory.alive == 4 * (2 * 3 * 5 * 4 + 2 * 3 * 5)
    out.sum().backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in (query, key, value))


@pytest.mark.parametrize("model", soon_and_later())
def test_training_in_half_precision_passes_the_check_before_it(model):
    """Networks in bf16 that stay as they are meet float32 ones that learn."""
    require_works(load(f"model={model}", "preset=paper", "train.precision=bf16"))
