"""How several processes share one training: replicas (DDP), shards (FSDP2), DeepSpeed's ZeRO."""

from __future__ import annotations

from importlib.util import find_spec

from lightning.pytorch.plugins.precision import DeepSpeedPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from vton.config import ConfigError, TrainerConfig
from vton.processes import own_device
from vton.training.fsdp import FSDP2


def strategy(trainer: TrainerConfig) -> str | Strategy:
    """What lightning.Trainer takes. Raises ConfigError where DeepSpeed is not installed."""
    if trainer.strategy == "deepspeed" and not find_spec("deepspeed"):
        raise ConfigError(
            "trainer.strategy=deepspeed: DeepSpeed is not installed. Use trainer.strategy=fsdp, or "
            '.venv/bin/pip install --constraint constraints.txt --editable ".[deepspeed]".'
        )
    if trainer.strategy == "ddp":
        # Otherwise the buckets are a second copy of all gradients.
        return DDPStrategy(gradient_as_bucket_view=True)
    if trainer.strategy == "deepspeed":
        from vton.training.zero import ZeRO2

        return ZeRO2()
    return FSDP2() if trainer.strategy == "fsdp" else trainer.strategy


def precision_plugin(trainer: TrainerConfig, wanted: str) -> Precision:
    """Lightning's plugin for train.precision: autocast where it is a half precision."""
    if trainer.strategy == "deepspeed":
        return deepspeed_precision(wanted)
    if wanted == "fp32":
        return Full()
    device = own_device(trainer.accelerator).type
    return Float16(device) if wanted == "fp16" else BFloat16(device)


def deepspeed_precision(wanted: str) -> Precision:
    """DeepSpeed's plugin, for fp32 or bf16."""
    if wanted == "fp32":
        return DeepSpeedPrecision("32-true")
    from vton.training.zero import DeepSpeedAutocast

    return DeepSpeedAutocast()


class ClipsOnce:
    """Clips gradients by their norm, which is not computed again where FiniteNumbers says it."""

    gradient_norm: Tensor | None = None  # of the step under way

    def clip_grad_by_norm(self, optimizer, clip_val) -> None:
        norm, self.gradient_norm = self.gradient_norm, None
        if norm is None:
            super().clip_grad_by_norm(optimizer, clip_val)
        else:
            clip_grads_with_norm_(list(self.main_params(optimizer)), clip_val, norm)


class Full(ClipsOnce, Precision):
    """float32."""


class Float16(ClipsOnce, MixedPrecision):
    """float16, with a scaled loss."""

    def __init__(self, device: str):
        super().__init__("16-mixed", device)


class BFloat16(ClipsOnce, MixedPrecision):
    """bfloat16, which scales nothing, so fused optimizers can have their gradients clipped.

    Lightning refuses that for every mixed precision, because under float16 a fused optimizer scales
    gradients back itself, after the clipping.
    """

    def __init__(self, device: str):
        super().__init__("bf16-mixed", device)

    def clip_gradients(self, optimizer, clip_val=0.0, gradient_clip_algorithm=None) -> None:
        if clip_val:
            self.clip_grad_by_norm(optimizer, clip_val)
