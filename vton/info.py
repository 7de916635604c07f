"""`vton info`: parameters of each network and FLOPs of each phase, on the meta device, so nothing is allocated.

A multiply-add counts as 2 FLOP; attention products are included.
"""

from __future__ import annotations

import logging
from dataclasses import fields, is_dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vton import registry
from vton.config import ExperimentConfig
from vton.data.sample import JOINTS, TryOnBatch
from vton.models.codecs import build_codec


def describe(config: ExperimentConfig) -> dict:
    """Networks and phases of the configured model for one sample at data.size, batch 1."""
    logging.getLogger("vton").setLevel(logging.ERROR)  # which weights a real run would use is no news here
    forget_pretrained(config)
    with torch.device("meta"):
        module = registry.module_class(config.model.name)(config, build_codec(config.codec))
        batch = meta_batch(config.data.size)
    trained = {id(p) for group in module.trained_parameters() for p in group["params"]}
    module.eval().requires_grad_(False)  # torch's counter refuses views of parameters that want gradients
    return {
        "model": config.model.name,
        "preset": config.preset,
        "size": list(config.data.size),
        "networks": [network_row(name, network, trained) for name, network in module.networks().items()],
        "flops": phase_flops(module, batch),
    }


def forget_pretrained(config) -> None:
    """Empty every `pretrained` field below a dataclass: shapes come from the configuration alone."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "pretrained":
            setattr(config, field.name, "")
        elif is_dataclass(value):
            forget_pretrained(value)


def network_row(name: str, network: nn.Module, trained: set[int]) -> dict:
    parameters = list(network.parameters())
    return {
        "name": name,
        "class": type(network).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if id(p) in trained),
    }


def phase_flops(module, batch: TryOnBatch) -> dict[str, int]:
    """FLOPs of the contract's calls for one sample: what happens once, per timestep, and per step."""
    with torch.no_grad(), torch.device("meta"):
        t = torch.zeros(1, dtype=torch.int64)
        z = torch.zeros(1, *module.latent_shape())
        conditions, condition = counted(lambda: module.condition(batch))
        features, garment = counted(lambda: module.garment_features(conditions, t))
        _, denoise = counted(lambda: module.denoise(z, t, conditions, features))
        _, decode = counted(lambda: module.codec.decode(z))
    return {"condition": condition, "garment_features": garment, "denoise": denoise, "decode": decode}


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
    tensors |= {"keypoints": torch.zeros(1, JOINTS, 3), "parse": torch.zeros(1, *size, dtype=torch.int64)}
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
    when = {"condition": "once", "garment_features": "each timestep", "denoise": "each step", "decode": "once"}
    for name, flops in rows["flops"].items():
        calls.add_row(name, when[name], f"{flops / 1e9:,.2f}")
    console.print(calls)
