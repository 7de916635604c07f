"""The tables of `vton info` fit a terminal of 80 columns and cut nothing off."""

import io

from rich.console import Console

from vton.cost.tables import training_table

GIB = 2**30
PARTS = ("weights", "copies", "gradients", "optimizer", "ema", "frozen", "activations", "total")


def test_memory_of_training_by_strategy():
    strategies = {}
    for size, name in enumerate(("ddp", "deepspeed", "fsdp"), 10):
        strategies[name] = dict.fromkeys(PARTS, size * GIB)
    checkpointed = {
        "strategies": {name: {**sizes, "total": GIB} for name, sizes in strategies.items()}
    }
    plain = {"gpus": 8, "precision": "bf16", "optimizer": "adamw8bit", "held_out": GIB}
    plain["strategies"] = strategies
    console = Console(file=io.StringIO(), width=80)
    console.print(training_table({"plain": plain, "checkpointed": checkpointed}))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    lines = [line.replace("│", " ").split() for line in text.splitlines() if "│" in line]
    named = [line[0] for line in lines[: len(PARTS) + 1]]
    assert named == [*PARTS[:-1], "or", PARTS[-1]]
    assert lines[len(PARTS)] == ["total", "10.00", "11.00", "12.00"]
    assert lines[-1] == ["total,", "checkpointed", "1.00", "1.00", "1.00"]
