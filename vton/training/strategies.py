"""How several processes share one training: replicas (DDP), shards (FSDP2), DeepSpeed's ZeRO."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from vton.config import ConfigError, TrainerConfig
from vton.weights.pretrained import read_checkpoint


def strategy(trainer: TrainerConfig) -> str | Strategy:
    """What lightning.Trainer takes. Raises ConfigError where DeepSpeed is not installed."""
    if trainer.strategy == "deepspeed" and not find_spec("deepspeed"):
        raise ConfigError(
            "trainer.strategy=deepspeed: DeepSpeed is not installed. Use trainer.strategy=fsdp, or "
            '.venv/bin/pip install --constraint constraints.txt --editable ".[deepspeed]".'
        )
    if trainer.strategy == "ddp":
        return DDPStrategy(
            gradient_as_bucket_view=True
        )  # else the buckets are a second copy of all gradients
    if trainer.strategy == "deepspeed":
        from vton.training.zero import ZeRO2

        return ZeRO2()
    return FSDP2() if trainer.strategy == "fsdp" else trainer.strategy


def precision(strategy: str, wanted: str, plugins: list) -> dict:
    """Lightning's arguments for train.precision, with the plugins."""
    if strategy == "deepspeed" and wanted == "bf16":
        from vton.training.zero import Autocast

        return {"plugins": [*plugins, Autocast()]}
    return {
        "plugins": plugins,
        "precision": {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[wanted],
    }


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over all processes, as
    TrainedModule.configure_model cuts them.

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
        numbers = {
            name: i
            for i, name in enumerate(n for group in named["param_groups"] for n in group["params"])
        }
        groups = [
            group | {"params": [numbers[n] for n in group["params"]]}
            for group in named["param_groups"]
        ]
        return {
            "state": {numbers[name]: state for name, state in named["state"].items()},
            "param_groups": groups,
        }

    def load_checkpoint(self, checkpoint_path, weights_only=None) -> dict:
        """Each process takes its shards out of the file. Raises WeightsError."""
        checkpoint = read_checkpoint(Path(checkpoint_path))
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
            groups = [
                group | {"params": [order[i] for i in group["params"]]}
                for group in state["param_groups"]
            ]
            named = {
                "state": {order[i]: s for i, s in state["state"].items()},
                "param_groups": groups,
            }
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint
