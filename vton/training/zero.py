"""DeepSpeed's ZeRO stage 2 behind `trainer.strategy=deepspeed`. Imported only then: DeepSpeed is an
extra.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy

from vton.weights.pretrained import read_checkpoint


class DeepSpeedAutocast(DeepSpeedPrecision):
    """Weights in float32 and bf16 arithmetic, as without DeepSpeed, whose own bf16 would convert
    codec and average.
    """

    def __init__(self):
        super().__init__("32-true")

    def forward_context(self) -> AbstractContextManager:
        return torch.autocast("cuda", dtype=torch.bfloat16)


class ZeRO2(DeepSpeedStrategy):
    """Every process has the weights, and its share of gradients and optimizer state.

    A checkpoint is a folder of DeepSpeed's own files for one number of processes. Each step goes
    into a subfolder that `latest` names once it is whole, and only then the former one is removed.
    """

    def __init__(self, **options):
        super().__init__(stage=2, **options)

    def save_checkpoint(self, checkpoint, filepath, storage_options=None) -> None:
        folder, tag = Path(self.broadcast(filepath)), f"step_{checkpoint['global_step']:08d}"
        state = {
            name: value
            for name, value in checkpoint.items()
            if name not in ("state_dict", "optimizer_states")
        }
        self.deepspeed_engine.save_checkpoint(str(folder), client_state=state, tag=tag)
        self.barrier()
        if self.is_global_zero:
            for former in folder.glob("step_*"):
                if former.name != tag:
                    shutil.rmtree(former)

    def load_checkpoint(self, checkpoint_path, weights_only=None) -> dict:
        """DeepSpeed unpickles its files, so each is first read as plain tensors. Raises
        UserError.
        """
        with torch.serialization.safe_globals(
            [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
        ):
            for path in Path(checkpoint_path).rglob("*.pt"):
                read_checkpoint(path)
        _, state = self.deepspeed_engine.load_checkpoint(
            str(checkpoint_path), load_lr_scheduler_states=False
        )
        return state
