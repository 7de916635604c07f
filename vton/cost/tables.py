"""The tables of `vton info`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_costs(rows: dict) -> None:
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
        print_costs(stage)


def memory_table(memory: dict) -> Table:
    """GiB of the phases of sampling, and of a run that keeps every network loaded."""
    types = f"networks in {memory['dtype']}, codec in {memory['codec']}"
    table = Table(title=f"GiB to sample one picture: {types}")
    for column in ("phase", "networks", "weights", "activations", "peak"):
        table.add_column(column, justify="left" if column in ("phase", "networks") else "right")
    step = "step, both guidance branches" if memory["rows"] == 2 else "step"
    weights = sum(memory["weights"].values())
    all_loaded = {
        "networks": ["all"],
        "weights": weights,
        "activations": memory["peak"] - weights,
        "peak": memory["peak"],
    }
    for name, row in (
        ("conditions", memory["condition"]),
        (step, memory["step"]),
        ("decode", memory["decode"]),
        ("all networks loaded", all_loaded),
    ):
        sizes = (f"{row[part] / 2**30:,.3f}" for part in ("weights", "activations", "peak"))
        table.add_row(name, ", ".join(row["networks"]), *sizes)
    return table


def training_table(training: dict[str, dict]) -> Table:
    """GiB on each device, a column for each strategy, with one sample per device.

    The last two lines are activations and total with gradient checkpointing.
    """
    plain, checkpointed = training["plain"], training["checkpointed"]
    how = f"{plain['precision']}, {plain['optimizer']}"
    table = Table(title=f"GiB to train on each of {plain['gpus']} GPUs, one sample each, {how}")
    table.add_column("part")
    for strategy in plain["strategies"]:
        table.add_column(strategy, justify="right")

    def add(label: str, strategies: dict[str, dict], part: str) -> None:
        sizes = [f"{memory[part] / 2**30:,.2f}" for memory in strategies.values()]
        table.add_row(label, *sizes)

    for part in ("weights", "copies", "gradients", "optimizer", "ema", "frozen"):
        add(part, plain["strategies"], part)
    add("activations", plain["strategies"], "activations")
    held_out = f"{plain['held_out'] / 2**30:,.2f}"
    table.add_row("or held-out pictures", *[held_out] * len(plain["strategies"]))
    add("total", plain["strategies"], "total")
    table.add_section()
    add("activations, checkpointed", checkpointed["strategies"], "activations")
    add("total, checkpointed", checkpointed["strategies"], "total")
    return table
