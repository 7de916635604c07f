"""`vton bench`: seconds of a training step and of a picture on this machine, and what share of its
peak that is.

What is timed is the configured model on one device of the configured trainer, with random weights:
they change no time, and no pretrained file is needed. A training step is loading, forward and
backward pass, clipping, update and average; held-out pictures, checkpoints and other processes are
not in it. `--against` times a second setting in the same process, in turns, so that the machine's
moods fall on both.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import platform
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning import seed_everything
from torch import nn

from vton import registry
from vton.commands.choice import say_trainer
from vton.config import ExperimentConfig, load
from vton.cost.counting import describe, picture_flops, step_flops
from vton.cost.memory import training_memory
from vton.cost.meta import meta_batch, on_meta, set_everywhere
from vton.errors import UserError
from vton.models.codecs import build_codec
from vton.models.precision import DTYPES, codec_precision, for_sampling
from vton.processes import own_device
from vton.progress import Progress, quiet
from vton.report.bench import print_bench
from vton.runs.assemble import data_module
from vton.training.ema import EMA
from vton.training.strategies import precision_plugin
from vton.training.telemetry import peak_memory_gib
from vton.training.trainer import quiet_libraries

MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the product that the peak is measured with
PHASES = ("train", "sample")


def run(args: Namespace) -> None:
    if args.repeats < 1 or args.warmup < 0:
        raise UserError("--repeats is at least 1, --warmup at least 0.")
    phases = (args.only,) if args.only else PHASES
    settings = {"setting": args.overrides}
    if args.against is not None:
        settings["against"] = [*args.overrides, *args.against]
    say_trainer(args.overrides)
    results = bench(settings, phases, args.warmup, args.repeats)
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        print_bench(results)


def bench(
    settings: dict[str, Sequence[str]], phases: Sequence[str], warmup: int, repeats: int
) -> dict:
    """Facts and times of every setting, and the ratios of the second to the first."""
    quiet_libraries()
    workloads = {}
    with tempfile.TemporaryDirectory(prefix="vton-bench-") as folder:
        for name, overrides in settings.items():
            workloads[name] = Workload.prepare(load(*overrides), Path(folder) / name, phases)
        rounds = warmup + repeats
        with Progress("Timing", rounds * len(phases) * len(workloads), "round") as progress:
            for phase in phases:
                for place in range(rounds):
                    for workload in workloads.values():
                        workload.measure(phase, keep=place >= warmup)
                        progress.advance()
        results = {name: workload.facts(phases) for name, workload in workloads.items()}
    for name, overrides in settings.items():
        results[name]["overrides"] = list(overrides)
    if "against" in workloads:
        results["ratios"] = ratios(workloads["setting"], workloads["against"], phases)
    return results


def ratios(setting: Workload, against: Workload, phases: Sequence[str]) -> dict[str, dict]:
    """Seconds of `against` over those of `setting`: of each round, least, median and most."""
    found = {}
    for phase in phases:
        rounds = zip(against.seconds[phase], setting.seconds[phase], strict=True)
        found[phase] = spread([theirs / ours for theirs, ours in rounds])
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"least": min(values), "median": statistics.median(values), "most": max(values)}


@dataclass
class Workload:
    """A setting that is ready to train and to sample."""

    config: ExperimentConfig
    device: torch.device
    module: nn.Module
    batches: Iterator
    held_out: object  # a batch of test pairs
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PHASES})
    waits: list[float] = field(default_factory=list)  # for data, of training steps
    peak_gib: dict[str, float] = field(default_factory=dict)

    @classmethod
    def prepare(cls, config: ExperimentConfig, folder: Path, phases: Sequence[str]) -> Workload:
        if config.model.kind == "warp" and "sample" in phases:
            raise UserError("model=warp draws no pictures; vton bench model=warp --only train.")
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        seed_everything(config.seed, verbose=False)
        if "train" not in phases:  # as evaluation draws; beside training, weights stay float32
            config = for_sampling(config)
        config = with_few_pairs(config, folder)
        device = own_device(config.trainer.accelerator)
        data = data_module(config)
        data.prepare_data()
        module = with_random_weights(config, device)
        if "train" not in phases:
            module.compute_in(config.train.precision)
        module.make_fast(device)
        return cls(
            config=config,
            device=device,
            module=module,
            batches=iter(data.train_dataloader()) if "train" in phases else iter(()),
            held_out=data.val_batch("paired", config.eval.batch_size).to(device),
        )

    def __post_init__(self):
        train = self.config.train
        self.precision = precision_plugin(self.config.trainer, train.precision)
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        self.ema = EMA(train.ema) if train.ema else None
        self.steps = 0
        if self.ema:
            self.ema.on_train_start(self, self.module)

    @property
    def global_step(self) -> int:
        """What the average asks its trainer for."""
        return self.steps

    def measure(self, phase: str, keep: bool) -> None:
        """Time one round; only `keep` makes it count."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with self.clock() as clock:
            if phase == "train":
                wait = self.train_step()
            else:
                self.draw()
        if not keep:
            return
        self.seconds[phase].append(clock.seconds)
        self.peak_gib[phase] = max(self.peak_gib.get(phase, 0), peak_memory_gib(self.device))
        if phase == "train":
            self.waits.append(wait)

    @contextmanager
    def clock(self) -> Iterator[Namespace]:
        clock = Namespace(seconds=0.0)
        self.synchronise()
        started = time.perf_counter()
        yield clock
        self.synchronise()
        clock.seconds = time.perf_counter() - started

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def train_step(self) -> float:
        """One optimizer step; returns the seconds in which it waited for its batches."""
        train = self.config.train
        self.module.train()
        wait = 0.0
        for index in range(train.accumulate):
            started = time.perf_counter()
            batch = next(self.batches).to(self.device)
            wait += time.perf_counter() - started
            with self.precision.forward_context():
                loss = self.module.training_step(batch, index)
            (loss / train.accumulate).backward()
        if train.grad_clip:
            parameters = [p for p in self.module.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(parameters, train.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        if self.ema:
            self.ema.on_train_batch_end(self, self.module, None, None, 0)
        return wait

    @torch.no_grad()
    def draw(self) -> None:
        """The pictures of one evaluation batch."""
        self.module.eval()
        trained = next(self.module.parameters()).dtype == torch.float32
        with self.precision.forward_context() if trained else nullcontext():
            self.module.generate(self.held_out)

    def facts(self, phases: Sequence[str]) -> dict:
        """What was measured, beside what `vton info` counts and predicts."""
        train = self.config.train
        peak = peak_flops(self.device, DTYPES[train.precision])
        facts = {
            "model": self.config.model.name,
            "preset": self.config.preset,
            "size": list(self.config.data.size),
            "trainer": self.config.trainer.name,
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "precision": train.precision,
            "matmul_tflops_per_second": peak / 1e12,
        }
        if "train" in phases:
            samples = train.batch_size * train.accumulate
            facts["train"] = timed(self.seconds["train"], samples, step_flops(self.config), peak)
            facts["train"] |= {
                "samples_per_step": samples,
                "data_wait": statistics.median(self.waits),
                "peak_gib": self.peak_gib["train"],
                "predicted_gib": predicted_training_gib(self.config),
            }
        if "sample" in phases:
            pictures = len(self.held_out)
            flops = pictures * picture_flops(self.config)
            facts["sample"] = timed(self.seconds["sample"], pictures, flops, peak)
            facts["sample"] |= {
                "pictures": pictures,
                "sampler_steps": self.config.sampler.steps,
                "peak_gib": self.peak_gib["sample"],
                "predicted_gib": predicted_sampling_gib(self.config),
            }
        return facts


def timed(seconds: Sequence[float], samples: int, flops: int, peak: float) -> dict:
    """Seconds of a round, its samples per second, its FLOPs and their share of the peak."""
    median = statistics.median(seconds)
    return {
        "seconds": spread(seconds),
        "samples_per_second": samples / median,
        "tflop": flops / 1e12,
        "share_of_peak": flops / median / peak,
    }


def with_few_pairs(config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    """With rendered data of its own that is as small as the batches allow. Other data stays."""
    if config.data.name != "synthetic" or config.data.root:
        return config
    pairs = max(2 * config.train.batch_size, 8)
    few = replace(config.data.synthetic, train=pairs, test=max(config.eval.batch_size, 2))
    return replace(config, data=replace(config.data, root=str(folder), synthetic=few))


def with_random_weights(config: ExperimentConfig, device: torch.device) -> nn.Module:
    """The configured module on the device, its networks in the configured shapes."""
    config = copy.deepcopy(config)
    config.codec.precision = codec_precision(config)
    set_everywhere(config, "pretrained", "")
    with device, quiet(logging.getLogger("vton")):  # missing weights are wanted here
        module = registry.module_class(config.model.name)(config, build_codec(config.codec))
    return module.to(device)


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product: the best of ten."""
    side = MATRIX[device.type]
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def predicted_training_gib(config: ExperimentConfig) -> float:
    """GiB of a training step on one device, as `vton info` predicts it."""
    batch = meta_batch(config.data.size, config.train.batch_size)
    return training_memory(on_meta(config), batch, gpus=1)["strategies"]["ddp"]["total"] / 2**30


def predicted_sampling_gib(config: ExperimentConfig) -> float:
    """GiB to sample one picture, as `vton info` predicts it."""
    return describe(config)["memory"]["peak"] / 2**30


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def cpu_name() -> str:
    """The name of the processor from /proc/cpuinfo, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
