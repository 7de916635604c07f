"""The tables of `vton bench`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

ROWS = {
    "seconds, median": lambda phase: f"{phase['seconds']['median']:.3f}",
    "least": lambda phase: f"{phase['seconds']['least']:.3f}",
    "most": lambda phase: f"{phase['seconds']['most']:.3f}",
    "median wait for data": lambda phase: (
        f"{phase['data_wait']:.3f}" if "data_wait" in phase else ""
    ),
    "samples": lambda phase: f"{phase.get('samples_per_step', phase.get('pictures'))}",
    "samples per second": lambda phase: f"{phase['samples_per_second']:.3g}",
    "TFLOP": lambda phase: f"{phase['tflop']:.4g}",
    "share of peak": lambda phase: f"{phase['share_of_peak']:.1%}",
    "peak memory, GiB": lambda phase: f"{phase['peak_gib']:.2f}",
    "predicted, GiB": lambda phase: f"{phase['predicted_gib']:.2f}",
}
TITLES = {"train": "training step", "sample": "drawing a batch"}


def print_bench(results: dict) -> None:
    """results: as `vton.commands.bench.bench` returns them"""
    console = Console()
    for name in ("setting", "against"):
        if name in results:
            console.print(setting_table(results[name], name))
    for phase, ratio in results.get("ratios", {}).items():
        console.print(
            f"{TITLES[phase]}, against / setting: {ratio['median']:.3f} "
            f"(rounds {ratio['least']:.3f} to {ratio['most']:.3f})"
        )


def setting_table(facts: dict, name: str) -> Table:
    height, width = facts["size"]
    title = f"{facts['model']}, {facts['preset']} preset, {height}x{width}, {facts['precision']}"
    if name == "against":
        title = f"against: {title}"
    phases = [phase for phase in TITLES if phase in facts]
    caption = (
        f"trainer={facts['trainer']}, {facts['device']}, {facts['threads']} threads\n"
        f"matrix products: {facts['matmul_tflops_per_second']:.3g} TFLOP/s"
    )
    table = Table(title=title, caption=caption)
    table.add_column("")
    for phase in phases:
        table.add_column(TITLES[phase], justify="right")
    for label, text in ROWS.items():
        table.add_row(label, *(text(facts[phase]) for phase in phases))
    return table
