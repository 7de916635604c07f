"""`vton info`: parameters, FLOPs and memory of the configured model, on the meta device, so nothing is allocated.

A multiply-add counts as 2 FLOP; attention products are included.
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
from vton.data.sample import JOINTS, TryOnBatch
from vton.diffusion.sampling import Conditions
from vton.memory import sampling_memory, training_memory
from vton.models.base import TryOnModule
from vton.models.codecs import build_codec


def describe(config: ExperimentConfig, gpus: int = 0) -> dict:
    """Networks and phases of the configured model for one sample at data.size, batch 1.

    gpus: also the memory of training on so many, an architecture's.
    """
    set_everywhere(config, "pretrained", "")  # shapes come from the configuration alone
    with torch.device("meta"), quiet(logging.getLogger("vton")):  # which weights a real run would use is no news here
        module = registry.module_class(config.model.name)(config, build_codec(config.codec))
        batch = meta_batch(config.data.size)
    trained = {id(p) for group in module.trained_parameters() for p in group["params"]}
    module.eval().requires_grad_(False)  # torch's counter refuses views of parameters that want gradients
    rows = [network_row(name, network, trained) for name, network in module.networks().items()]
    facts = {
        "model": config.model.name,
        "preset": config.preset,
        "size": list(config.data.size),
        "networks": rows,
    }
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
        with torch.device("meta"), quiet(logging.getLogger("vton")):
            module = registry.module_class(config.model.name)(config, build_codec(config.codec))
            found[name] = training_memory(module, meta_batch(config.data.size), gpus)
    return found


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
    """FLOPs of the contract's calls for one sample: what happens per timestep, per step, and once at the end."""
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


def meta_batch(size: tuple[int, int]) -> TryOnBatch:
    """A batch of one without values, every optional part present."""
    image, mask = torch.zeros(1, 3, *size), torch.zeros(1, 1, *size)
    text = {"index": 0, "dataset": "", "person_id": "", "garment_id": "", "order": "paired", "category": "upper_body",
            "person_caption": "", "garment_caption": "", "position": 0}  # fmt: skip
    tensors = {
        name: image for name in ("person", "agnostic", "garment", "warped_garment", "pose_map", "densepose", "truth")
    } | {name: mask for name in ("agnostic_mask", "garment_mask", "warped_mask", "truth_garment_mask")}
    joints = torch.zeros(1, JOINTS, 3)
    tensors |= {"keypoints": joints, "garment_keypoints": joints, "parse": torch.zeros(1, *size, dtype=torch.int64)}
    return TryOnBatch(**{name: [value] for name, value in text.items()}, **tensors)


def print_table(rows: dict) -> None:
    console = Console()
    height, width = rows["size"]
    table = Table(title=f"{rows['model']}, {rows['preset']} preset, {height}x{width}")
    for column in ("network", "class", "parameters", "trained"):
        table.add_column(column, justify="left" if column in ("network", "class") else "right")
    for row in rows["networks"]:
        table.add_row(row["name"], row["class"], f"{row['parameters']:,}", f"{row['trained']:,}")
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


def memory_table(memory: dict) -> Table:
    """GiB of the phases of sampling, and of a run that keeps every network loaded."""
    table = Table(title=f"GiB to sample one picture: networks in {memory['dtype']}, codec in float32")
    for column in ("phase", "networks", "weights", "activations", "peak"):
        table.add_column(column, justify="left" if column in ("phase", "networks") else "right")
    step = "step, both guidance branches" if memory["rows"] == 2 else "step"
    weights = sum(memory["weights"].values())
    whole = {"networks": ["all"], "weights": weights, "activations": memory["peak"] - weights, "peak": memory["peak"]}
    for name, row in ((step, memory["step"]), ("decode", memory["decode"]), ("all networks loaded", whole)):
        sizes = (f"{row[part] / 2**30:,.3f}" for part in ("weights", "activations", "peak"))
        table.add_row(name, ", ".join(row["networks"]), *sizes)
    return table


def training_table(training: dict[str, dict]) -> Table:
    """GiB on each device by strategy, one sample per device; activations and totals without and with checkpointing."""
    plain, checkpointed = training["plain"], training["checkpointed"]
    table = Table(title=f"GiB to train on each of {plain['gpus']} GPUs, one sample each, {plain['precision']}")
    parts = ("weights", "copies", "gradients", "optimizer", "ema", "frozen")
    for column in ("strategy", *parts, "activations", "total", "activations, checkpointed", "total"):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for name, row in plain["strategies"].items():
        other = checkpointed["strategies"][name]
        values = [*(row[part] for part in (*parts, "activations", "total")), other["activations"], other["total"]]
        table.add_row(name, *(f"{value / 2**30:,.2f}" for value in values))
    return table
