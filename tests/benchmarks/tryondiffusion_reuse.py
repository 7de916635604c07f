"""Seconds of TryOnDiffusion's guided sampling step with exact reuse and without, and of its
training step.

    python -m tests.benchmarks.tryondiffusion_reuse
    python -m tests.benchmarks.tryondiffusion_reuse preset=tiny

The first is the full size: 1,136,019,971 parameters, 128x128, fp32. Any overrides of `vton train`
may be given, to try it out.

One process, one set of random weights, batch 1. Both ways of sampling go through the sampler's own
loop, guidance in one batch of two rows. `Recomputing` makes everything again at every step. The
module itself keeps, within a picture, conditions and the garment features of `model.garment_steps`
steps made in one pass, and between pictures the null branch's garment features. These are filled
first and timed apart; what is compared is every later picture of as many steps. Pictures of both
ways alternate; seconds are medians. The process's CPU time stands beside: where its saving is
another than that of the clock, something else was running. The training step is forward, backward
and SGD: with Adam's two moments the full size would not fit 24 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from tests.batches import random_batch
from vton import registry
from vton.config import ConfigError, ExperimentConfig, load
from vton.cost.counting import describe
from vton.data.sample import TryOnBatch
from vton.diffusion import noise
from vton.diffusion.denoiser import Conditions, Denoiser, Features, Step
from vton.diffusion.sampling import double, drawing, sample
from vton.errors import UserError
from vton.models.codecs import build_codec
from vton.models.tryondiffusion.module import TryOnDiffusion
from vton.training.telemetry import peak_memory_gib

FULL_SIZE = (
    "model=tryondiffusion",
    "preset=paper",
    "data.size=[128,128]",
    "train.precision=fp32",
    "model.base.gradient_checkpointing=false",
    "sampler.guidance=2",
    # So that pictures compare, at equal cost: epsilon at pure noise would divide rounding by
    # 0.0006, clipping hide it.
    "objective.prediction=sample",
    "sampler.clip_sample=0",
)


class Recomputing(Denoiser):
    """The module's weights behind the sampler's contract, with nothing kept from one step or
    picture to another.

    At every step it makes augmented pictures, poses and levels of both branches, and the garment
    features of both.
    """

    def __init__(self, module: TryOnDiffusion, batch: TryOnBatch):
        super().__init__()
        self.module = module
        self.batch = batch

    def unconditional(self, conditions: Conditions) -> Conditions:
        return {}

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        conditions = self.module.condition(self.batch)
        denoiser = self.module.denoiser
        both = double(denoiser.unconditional(conditions), conditions)
        return denoiser.denoise(z_t, t, both, denoiser.garment_features(both, t))


def build(config: ExperimentConfig) -> TryOnDiffusion:
    """The configured module with random values where training starts from zeros, which would hide
    differences.

    Raises ConfigError for a network without what is reused.
    """
    torch.manual_seed(config.seed)
    module = registry.module_class(config.model.name)(config, build_codec(config.codec))
    if getattr(module.network, "garment_unet", None) is None:
        raise ConfigError(
            f"model.stage={config.model.stage} has no garment UNet here, so nothing is reused."
        )
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return module.eval()


@torch.no_grad()
def sampling(module: TryOnDiffusion, batch: TryOnBatch, repeats: int) -> dict:
    """Pictures of `sampler.steps` steps: seconds a step, rows that the networks are given, how far
    results differ.
    """
    sampler, rows = module.config.sampler, Counter()
    parts = {"garment_unet": module.network.garment_unet, "person_unet": module.network.person_unet}
    parts["pose_encoder"] = module.network.embedding.person
    hooks = [part.register_forward_hook(counting(rows, name)) for name, part in parts.items()]

    def picture(model, condition: Callable[[], Conditions]) -> Tensor:
        draw = drawing(module.latent_shape(), [noise.generator(0, "benchmark")], module.device)
        return sample(model, condition(), draw, sampler, module.objective)

    ways = {
        "recomputing": lambda: picture(Recomputing(module, batch), dict),
        "reusing": lambda: picture(module.denoiser, lambda: module.condition(batch)),
    }
    null = module.denoiser.unconditional(module.condition(batch))
    fill, _, _ = timed(
        lambda: [
            module.denoiser.garment_features(null, torch.tensor([t]), Step(0, sampler.steps))
            for t in module.grid()
        ]
    )
    seconds, cpu, counts, pictures = {way: [] for way in ways}, {way: [] for way in ways}, {}, {}
    for repeat in range(repeats):
        for way in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            rows.clear()
            wall, busy, pictures[way] = timed(ways[way])
            seconds[way].append(wall / sampler.steps)
            cpu[way].append(busy / sampler.steps)
            counts[way] = {name: count / sampler.steps for name, count in rows.items()}
    for hook in hooks:
        hook.remove()
    slow, fast = (statistics.median(seconds[way]) for way in ways)
    slow_cpu, fast_cpu = (statistics.median(cpu[way]) for way in ways)
    return {
        "seconds_per_step": seconds,
        "cpu_seconds_per_step": cpu,
        "median": {"recomputing": slow, "reusing": fast},
        "median_cpu": {"recomputing": slow_cpu, "reusing": fast_cpu},
        "fill_seconds_per_step": fill / sampler.steps,
        "pictures_to_break_even": fill / sampler.steps / (slow - fast) if slow > fast else None,
        "rows_per_step": counts,
        "largest_difference": (pictures["recomputing"] - pictures["reusing"]).abs().max().item(),
        "largest_value": pictures["recomputing"].abs().max().item(),
        "peak_memory_gib": peak_memory_gib(module.device),
    }


def training(module: TryOnDiffusion, batch: TryOnBatch, repeats: int) -> dict:
    """Seconds of one training step in its parts, the last of `repeats`."""
    module.train()
    optimizer = torch.optim.SGD(module.trained_parameters(), lr=1e-6)
    for _ in range(repeats):
        optimizer.zero_grad()
        forward, _, loss = timed(lambda: module.training_step(batch, 0))
        backward, _, _ = timed(loss.backward)
        step, _, _ = timed(optimizer.step)
    parts = {"forward": forward, "backward": backward, "optimizer": step}
    return parts | {"total": sum(parts.values()), "peak_memory_gib": peak_memory_gib(module.device)}


def counting(rows: Counter, name: str) -> Callable:
    def count(network, arguments, output) -> None:
        rows[name] += len(arguments[0])

    return count


def timed(call: Callable) -> tuple[float, float, object]:
    """Seconds of the clock, seconds of this process on all cores, and what the call returns."""
    started, busy = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - started, time.process_time() - busy, result


def measure(config: ExperimentConfig, repeats: int) -> dict:
    """All of it; the model's arithmetic comes from `vton info`."""
    flops = describe(config)["flops"]
    garment, person = flops["garment_features"], flops["denoise"]
    module, batch = build(config), random_batch(1, config.data.size)
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "size": list(config.data.size),
        "steps": config.sampler.steps,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gflop_per_step": {
            "recomputing": 2e-9 * (person + garment),
            "reusing": 1e-9 * (2 * person + garment),
        },
        "sampling": sampling(module, batch, repeats),
        "training": training(module, batch, repeats=2),
    }


def print_tables(found: dict) -> None:
    drawn, trained, console = found["sampling"], found["training"], Console()
    height, width = found["size"]
    title = (
        f"{found['parameters']:,} parameters, {height}x{width}, batch 1, fp32, "
        f"{found['threads']} threads"
    )
    table = Table(title=title)
    for column in ("guided step", "seconds", "CPU seconds", "GFLOP", "garment rows", "person rows"):
        table.add_column(column, justify="left" if column == "guided step" else "right")
    for way, rows in drawn["rows_per_step"].items():
        table.add_row(
            way,
            f"{drawn['median'][way]:.3f}",
            f"{drawn['median_cpu'][way]:.3f}",
            f"{found['gflop_per_step'][way]:,.1f}",
            f"{rows['garment_unet']:g}",
            f"{rows['person_unet']:g}",
        )
    console.print(table)
    even = drawn["pictures_to_break_even"]
    for time_of, slow, fast in (
        ("clock", *drawn["median"].values()),
        ("CPU", *drawn["median_cpu"].values()),
    ):
        print(
            f"By the {time_of}'s seconds reuse is {slow / fast:.3f} times as fast: "
            f"{1 - fast / slow:.1%} less."
        )
    print(
        f"Filling the null table takes {drawn['fill_seconds_per_step']:.3f} s a step, once per "
        "checkpoint: "
        + ("never made up for here." if even is None else f"made up for after {even:.2f} pictures.")
    )
    print(
        f"Pictures differ by {drawn['largest_difference']:.1e} at most, of "
        f"{drawn['largest_value']:.2f}."
    )
    parts = ", ".join(
        f"{name} {trained[name]:.2f}" for name in ("forward", "backward", "optimizer")
    )
    print(f"Training step {trained['total']:.2f} s: {parts}.")
    memory = {name: found[name]["peak_memory_gib"] for name in ("sampling", "training")}
    print(
        f"Peak resident memory: sampling {memory['sampling']:.1f} GiB, training "
        f"{memory['training']:.1f} GiB."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "overrides", nargs="*", help="as of `vton train`, on top of: " + " ".join(FULL_SIZE)
    )
    parser.add_argument("--steps", type=int, default=2, help="sampling steps of a picture")
    parser.add_argument("--repeats", type=int, default=3, help="pictures of each way")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        found = measure(
            load(*FULL_SIZE, f"sampler.steps={given.steps}", *given.overrides), given.repeats
        )
    except UserError as error:
        parser.error(str(error))
    print(json.dumps(found, indent=2)) if given.json else print_tables(found)


if __name__ == "__main__":
    main()
