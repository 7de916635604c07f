"""DeepSpeed's ZeRO stage 2 behind `trainer.strategy=deepspeed`. Imported only then: DeepSpeed is an extra."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy

from vton.models.pretrained import read_checkpoint


class Autocast(DeepSpeedPrecision):
    """Weights in float32 and bf16 arithmetic, as without DeepSpeed, which would turn codec and average to bf16 too."""

    def __init__(self):
        super().__init__("32-true")

    def forward_context(self) -> AbstractContextManager:
        return torch.autocast("cuda", dtype=torch.bfloat16)
