"""`vton info`: parameters, FLOPs and memory of the configured model, on the meta device, so nothing
is allocated.

A multiply-add counts as 2 FLOP; attention products are included. `cost` sums up what one picture
and one training step take, for comparisons.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vton import registry
from vton.config import ExperimentConfig
from vton.cost.memory import LiveMemory, sampling_memory, training_memory, with_values
from vton.data.sample import JOINTS, TryOnBatch
from vton.diffusion.sampling import Conditions, Step, double, sampling_times
from vton.models.base import TrainedModule, TryOnModule
from vton.models.codecs import build_codec


def describe(config: ExperimentConfig, gpus: int = 0) -> dict:
    """Networks and phases of the configured model, of a cascade's configured stage, for one sample
    at data.size.

    gpus: also the memory of training on so many, an architecture's.
    """
    module, batch = on_meta(config), meta_batch(config.data.size)
    trained = {id(p) for group in module.trained_parameters() for p in group["params"]}
    module.eval().requires_grad_(
        False
    )  # torch's counter refuses views of parameters that want gradients
    rows = [network_row(name, network, trained) for name, network in module.networks().items()]
    facts = {
        "model": config.model.name,
        "preset": config.preset,
        "size": list(config.data.size),
        "networks": rows,
        "parameters": sum(row["parameters"] for row in rows),
        "trained": sum(row["trained"] for row in rows),
    }
    if config.model.CASCADE:
        facts = {"stage": config.model.stage} | facts
    if config.model.kind == "warp":
        with torch.no_grad(), torch.device("meta"):
            _, flops = counted(lambda: module.put_on(batch))
        return facts | {"flops": {"warp": flops}}
    with torch.no_grad(), torch.device("meta"):
        conditions, condition = counted(lambda: module.condition(batch))
        flops = {"condition": condition} | phase_flops(module, conditions)
    facts |= {"flops": flops, "memory": sampling_memory(module, conditions)}
    return facts | ({"training": training(config, gpus)} if gpus else {})


def training(config: ExperimentConfig, gpus: int) -> dict[str, dict]:
    """`training_memory` of one sample per device, without and with gradient checkpointing."""
    found = {}
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        config = copy.deepcopy(config)
        set_everywhere(config.model, "gradient_checkpointing", checkpointing)
        module = on_meta(config)
        with torch.device("meta"):
            found[name] = training_memory(module, meta_batch(config.data.size), gpus)
    return found


def cost(config: ExperimentConfig) -> dict[str, int]:
    """What the configured model is and takes, as numbers that stand in a row of a comparison:

    parameters, trained_parameters
    picture_flops    of one picture, as the configured sampler draws it
    step_flops       of one training step, see `step_flops`
    sampling_bytes   at most, networks in half precision and all of them loaded
    """
    found = describe(config)
    return {
        "parameters": sum(row["parameters"] for row in found["networks"]),
        "trained_parameters": sum(row["trained"] for row in found["networks"]),
        "picture_flops": picture_flops(config),
        "step_flops": step_flops(config),
        "sampling_bytes": found["memory"]["peak"],
    }


@torch.no_grad()
def picture_flops(config: ExperimentConfig) -> int:
    """FLOPs of drawing one picture: conditions, every step of the sampler with its guidance,
    decoding.

    Without what a model keeps from one picture to the next.
    """
    module = on_meta(config).eval().requires_grad_(False)
    sampler, batch = config.sampler, meta_batch(config.data.size)
    times = sampling_times(sampler, module.objective)
    low, high = (
        bound * module.objective.config.train_timesteps for bound in sampler.guidance_interval
    )
    alike: dict[
        tuple, list[Step]
    ] = {}  # steps of one cost: with guidance or without, and what acts
    for index, t in enumerate(times.tolist()):
        place, guided = Step(index, len(times)), sampler.guidance != 1 and low <= t <= high
        alike.setdefault((guided, module.acting(place)), []).append(place)
    with LiveMemory():
        found, total = counted(lambda: module.condition(batch))
        found = {name: with_values(tensor, torch.float32) for name, tensor in found.items()}
        z = torch.zeros(1, *module.latent_shape(), device="meta")

        def step(conditions: Conditions, rows: int, place: Step) -> int:
            t, z_in = times[:1].expand(rows), torch.cat([z] * rows)

            def draw() -> torch.Tensor:
                return module.denoise(
                    z_in, t, conditions, module.garment_features(conditions, t, place)
                )

            return counted(draw)[1]

        if any(guided for guided, _ in alike):
            null, flops = counted(lambda: module.unconditional(found))
            both, total = double(null, found), total + flops
        for (guided, _), places in alike.items():
            total += len(places) * (
                step(both, 2, places[0]) if guided else step(found, 1, places[0])
            )
        return total + counted(lambda: module.codec.decode(z))[1]


def step_flops(config: ExperimentConfig) -> int:
    """FLOPs of one training step on one device, forward and backward: `train.accumulate` batches of
    `train.batch_size`.

    All garments and captions of a batch count as different ones, and no condition is dropped.
    """
    count = config.train.batch_size
    module, batch = on_meta(config).train(), meta_batch(config.data.size, count)
    spread = (torch.arange(count) + 0.5) / count
    t = module.objective.timesteps(spread)

    def step() -> None:
        view = module.training_view(batch)
        with torch.no_grad():
            z = module.codec.encode(view.person)
        conditions = module.training_condition(view, torch.ones(count))
        prediction = module.denoise(z, t, conditions, module.garment_features(conditions, t))
        (prediction.mean() + sum(module.extra_losses(view, z, t, prediction).values())).backward()

    with LiveMemory():
        return config.train.accumulate * counted(step)[1]


def on_meta(config: ExperimentConfig) -> TrainedModule:
    """The configured model without any weights: its keys and shapes."""
    config = copy.deepcopy(config)
    set_everywhere(config, "pretrained", "")  # shapes come from the configuration alone
    with (
        torch.device("meta"),
        quiet(logging.getLogger("vton")),
    ):  # which weights a real run would use is no news here
        return registry.module_class(config.model.name)(config, build_codec(config.codec))


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Without warnings."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def set_everywhere(config, name: str, value) -> None:
    """Give every field of this name below a dataclass the value."""
    for field in fields(config):
        own = getattr(config, field.name)
        if field.name == name:
            setattr(config, name, value)
        elif is_dataclass(own):
            set_everywhere(own, name, value)


def network_row(name: str, network: nn.Module, trained: set[int]) -> dict:
    parameters = list(network.parameters())
    return {
        "name": name,
        "class": type(network).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if id(p) in trained),
    }


def phase_flops(module: TryOnModule, conditions: Conditions) -> dict[str, int]:
    """FLOPs of the contract's calls for one sample: what happens per timestep, per step, and once
    at the end.
    """
    t = torch.zeros(1, dtype=torch.int64)
    z = torch.zeros(1, *module.latent_shape())
    features, garment = counted(lambda: module.garment_features(conditions, t))
    _, denoise = counted(lambda: module.denoise(z, t, conditions, features))
    _, decode = counted(lambda: module.codec.decode(z))
    return {"garment_features": garment, "denoise": denoise, "decode": decode}


def counted(call) -> tuple[object, int]:
    with FlopCounterMode(display=False) as counter:
        result = call()
    return result, counter.get_total_flops()


def meta_batch(size: tuple[int, int], count: int = 1) -> TryOnBatch:
    """A batch without values, every optional part present, every caption another."""
    image, mask = (torch.zeros(count, channels, *size, device="meta") for channels in (3, 1))
    numbers = range(count)
    text = {
        "index": 0,
        "dataset": "",
        "person_id": "",
        "garment_id": "",
        "order": "paired",
        "category": "upper_body",
    }
    texts = {name: [value] * count for name, value in text.items()} | {"position": list(numbers)}
    texts |= {
        name: [f"{name} {number}" for number in numbers]
        for name in ("person_caption", "garment_caption")
    }
    tensors = {
        name: image
        for name in (
            "person",
            "agnostic",
            "garment",
            "warped_garment",
            "pose_map",
            "densepose",
            "truth",
        )
    } | {
        name: mask
        for name in ("agnostic_mask", "garment_mask", "warped_mask", "truth_garment_mask")
    }
    joints = torch.zeros(count, JOINTS, 3, device="meta")
    parse = torch.zeros(count, *size, dtype=torch.int64, device="meta")
    return TryOnBatch(**texts, **tensors, keypoints=joints, garment_keypoints=joints, parse=parse)


def print_table(rows: dict) -> None:
    console = Console()
    height, width = rows["size"]
    stage = f", stage {rows['stage']}" if "stage" in rows else ""
    table = Table(title=f"{rows['model']}{stage}, {rows['preset']} preset, {height}x{width}")
    for column in ("network", "class", "parameters", "trained"):
        table.add_column(column, justify="left" if column in ("network", "class") else "right")
    for row in rows["networks"]:
        table.add_row(row["name"], row["class"], f"{row['parameters']:,}", f"{row['trained']:,}")
    if len(rows["networks"]) > 1:
        table.add_section()
        table.add_row("all", "", f"{rows['parameters']:,}", f"{rows['trained']:,}")
    console.print(table)
    calls = Table(title="FLOP for one sample (a multiply-add is 2)")
    for column, justify in (("call", "left"), ("when", "left"), ("GFLOP", "right")):
        calls.add_column(column, justify=justify)
    when = {
        "condition": "once",
        "garment_features": "each timestep",
        "denoise": "each step",
        "decode": "once",
        "warp": "once",
    }
    for name, flops in rows["flops"].items():
        calls.add_row(name, when[name], f"{flops / 1e9:,.2f}")
    console.print(calls)
    if "memory" in rows:
        console.print(memory_table(rows["memory"]))
    if "training" in rows:
        console.print(training_table(rows["training"]))
    for stage in rows.get("upper_stages", ()):
        print_table(stage)


def memory_table(memory: dict) -> Table:
    """GiB of the phases of sampling, and of a run that keeps every network loaded."""
    table = Table(
        title=f"GiB to sample one picture: networks in {memory['dtype']}, codec in float32"
    )
    for column in ("phase", "networks", "weights", "activations", "peak"):
        table.add_column(column, justify="left" if column in ("phase", "networks") else "right")
    step = "step, both guidance branches" if memory["rows"] == 2 else "step"
    weights = sum(memory["weights"].values())
    whole = {
        "networks": ["all"],
        "weights": weights,
        "activations": memory["peak"] - weights,
        "peak": memory["peak"],
    }
    for name, row in (
        (step, memory["step"]),
        ("decode", memory["decode"]),
        ("all networks loaded", whole),
    ):
        sizes = (f"{row[part] / 2**30:,.3f}" for part in ("weights", "activations", "peak"))
        table.add_row(name, ", ".join(row["networks"]), *sizes)
    return table


def training_table(training: dict[str, dict]) -> Table:
    """GiB on each device, a column for each strategy, with one sample per device.

    The last two lines are activations and total with gradient checkpointing.
    """
    plain, checkpointed = training["plain"], training["checkpointed"]
    table = Table(
        title=f"GiB to train on each of {plain['gpus']} GPUs, one sample each, {plain['precision']}"
    )
    table.add_column("part")
    for strategy in plain["strategies"]:
        table.add_column(strategy, justify="right")

    def add(label: str, strategies: dict[str, dict], part: str) -> None:
        sizes = [f"{memory[part] / 2**30:,.2f}" for memory in strategies.values()]
        table.add_row(label, *sizes)

    for part in ("weights", "copies", "gradients", "optimizer", "ema", "frozen"):
        add(part, plain["strategies"], part)
    add("activations", plain["strategies"], "activations")
    add("total", plain["strategies"], "total")
    table.add_section()
    add("activations, checkpointed", checkpointed["strategies"], "activations")
    add("total, checkpointed", checkpointed["strategies"], "total")
    return table
