"""How several processes share one training: replicas (DDP), shards (FSDP2), DeepSpeed's ZeRO."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.plugins.precision import DeepSpeedPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.utils import clip_grads_with_norm_

from vton.config import ConfigError, TrainerConfig
from vton.processes import own_device
from vton.weights.pretrained import read_checkpoint


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


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over all processes, as vton/models/sharding.py
    cuts them.

    Checkpoints are single files, equal in form to those of one process, so that a run may move
    between numbers of processes and between this strategy and the others. Lightning's own numbers
    parameters by their place in the module, where an optimizer counts those it was given, and loads
    with pickle.
    """

    def __init__(self):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer) -> dict:
        """Whole on the first process, empty on the others; every process has to ask."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        named = get_optimizer_state_dict(self.model, optimizer, options=options)
        if not named:
            return named
        numbers: dict[str, int] = {}
        groups = []
        for group in named["param_groups"]:
            for name in group["params"]:
                numbers[name] = len(numbers)
            groups.append(group | {"params": [numbers[name] for name in group["params"]]})
        state = {numbers[name]: value for name, value in named["state"].items()}
        return {"state": state, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path, weights_only=None) -> dict:
        """Each process takes its shards out of the file. Raises UserError."""
        checkpoint = read_checkpoint(Path(checkpoint_path))
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            order = []
            for group in optimizer.param_groups:
                order += [names[id(parameter)] for parameter in group["params"]]
            groups = []
            for group in state["param_groups"]:
                groups.append(group | {"params": [order[number] for number in group["params"]]})
            values = {order[number]: value for number, value in state["state"].items()}
            named = {"state": values, "param_groups": groups}
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint
