"""What TensorBoard shows of all runs under one folder: the layout of its Custom Scalars tab, and
the HParams tab.

Charts take their tags by regular expression, so that one chart holds the same curve of every run
side by side.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from vton.config import ExperimentConfig, flatten
from vton.metrics.results import Row
from vton.runs.folder import RunFolder

LAYOUT = {
    "Training health": {
        "loss": ["Multiline", ["train/loss$"]],
        "further losses": ["Multiline", ["train/loss_(?!by_t)"]],
        "loss by timestep": ["Multiline", ["train/loss_by_t/"]],
        "gradient norm before clipping": ["Multiline", ["train/grad_norm"]],
        "learning rate": ["Multiline", ["train/lr"]],
    },
    "Quality of the same held-out pairs": {
        f"{title}, {order}": ["Multiline", [f"val/{order}/{metric}$"]]
        for metric, title in (
            ("psnr_garment", "PSNR of the garment (dB)"),
            ("psnr", "PSNR (dB)"),
            ("ssim", "SSIM"),
        )
        for order in ("paired", "unpaired")
    },
    "Throughput and memory": {
        "images per second": ["Multiline", ["perf/images_per_second"]],
        "milliseconds a step": ["Multiline", ["perf/step_ms"]],
        "milliseconds waiting for data": ["Multiline", ["perf/data_wait_ms"]],
        "peak memory (GiB)": ["Multiline", ["perf/peak_memory_gib"]],
    },
}
# What tells experiments apart: these keys and sections, without the sizes of networks inside
# `model`.
SECTIONS = ("model", "objective", "train", "sampler")
KEYS = ("name", "preset", "ablation", "seed", "data.name", "data.size", "codec.name")


def hyper_parameters(config: ExperimentConfig) -> dict[str, bool | int | float | str]:
    """The settings of the HParams tab by dotted key; sequences as text."""
    chosen = {}
    for key, value in flatten(asdict(config)).items():
        section, _, rest = key.partition(".")
        shown = key in KEYS or (section in SECTIONS and "." not in rest)
        if shown and value is not None:
            chosen[key] = value if isinstance(value, bool | int | float) else str(value)
    return chosen


def show_results(run: RunFolder, config: ExperimentConfig, rows: Iterable[Row]) -> Path:
    """The run's hyper-parameters with what it scored, in place of an earlier evaluation's. Returns
    the log's folder.
    """
    metrics = {}
    for row in rows:
        if row.model == config.model.label and row.category == "all":
            for name, value in row.metrics.items():
                metrics[f"{row.order}/{row.region}/{name}"] = value
    folder = run.tensorboard / "eval"
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        writer.add_hparams(hyper_parameters(config), metrics, run_name=".")
    return folder
