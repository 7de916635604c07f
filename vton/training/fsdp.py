"""FSDP2 behind `trainer.strategy=fsdp`, and its checkpoints in pieces."""

from __future__ import annotations

import copy
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as distributed
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint import async_save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from vton.errors import UserError, one_line
from vton.files import sync
from vton.weights.pieces import (
    AVERAGE,
    MOMENTS,
    PIECES,
    WEIGHTS,
    folder_of,
    read_pieces,
    remove_unnamed,
)
from vton.weights.pretrained import read_checkpoint

IN_PIECES = StateDictOptions(full_state_dict=False)
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over all processes, as vton/models/sharding.py
    cuts them.

    A checkpoint is a file with all but tensors, and a folder beside it with a file of every
    process's shards. Training goes on while they are written. The file takes its predecessor's
    place when all shards are there and synced, so a process that dies leaves the former checkpoint
    or this one, whole. Every number of processes reads it, and so do the other strategies
    (`read_checkpoint`); this one reads theirs. Lightning's own numbers parameters by their place in
    the module, where an optimizer counts those it was given, and loads with pickle.
    """

    def __init__(self):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=True)
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future | None = None
        self.cpu_group: distributed.ProcessGroup | None = None

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ---- what Lightning asks for when it makes a checkpoint ----

    def lightning_module_state_dict(self) -> dict:
        """Nothing: save_checkpoint takes the shards itself."""
        return {}

    def optimizer_state(self, optimizer) -> dict:
        return {}

    def whole_weights(self) -> dict[str, Tensor]:
        """Whole on the first process, empty on the others; every process has to ask."""
        return get_model_state_dict(self.model, options=WHOLE)

    # ---- saving ----

    def save_checkpoint(self, checkpoint, filepath, storage_options=None) -> None:
        """Begin to write a checkpoint, after the former one is done. Raises UserError."""
        path = Path(self.broadcast(filepath))
        self.finish_writing()
        tensors, groups = self.pieces()
        average = checkpoint["callbacks"].get("EMA", {}).pop("average", {})
        tensors |= {AVERAGE + name: value for name, value in average.items()}
        folder = path.with_name(f"{path.stem}_{checkpoint['global_step']:08d}.pieces")
        if self.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
            path.parent.mkdir(parents=True, exist_ok=True)
        self.barrier()
        if self.cpu_group is None:  # of its own, since it is used while training goes on
            self.cpu_group = distributed.new_group(backend="gloo")
        written = async_save(
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            process_group=self.cpu_group,
        )
        rest = copy.deepcopy(checkpoint | {"optimizer_states": groups})
        self.writing = self.writer.submit(self.publish, written, rest, path, folder)

    def pieces(self) -> tuple[dict[str, Tensor], list[dict]]:
        """Weights and moments by name, in this process's memory; the groups of each optimizer,
        whose parameters are named.
        """
        weights = get_model_state_dict(self.model, options=IN_PIECES)
        tensors = {WEIGHTS + name: value for name, value in weights.items()}
        groups = []
        for number, optimizer in enumerate(self.optimizers):
            state = get_optimizer_state_dict(self.model, optimizer, options=IN_PIECES)
            groups.append({"param_groups": state["param_groups"]})
            for name, moments in state["state"].items():
                for key, value in moments.items():
                    tensors[f"{MOMENTS}{number}/{name}/{key}"] = value
        return tensors, groups

    def publish(self, written: Future, rest: dict, path: Path, folder: Path) -> None:
        """Let the checkpoint take its place once every process has written its shards."""
        written.result()
        if self.is_global_zero:
            files = sorted(file.name for file in folder.iterdir())
            for file in (*(folder / name for name in files), folder):
                sync(file)
            rest[PIECES] = {"folder": folder.name, "files": files}
            self.checkpoint_io.save_checkpoint(rest, path)
            remove_unnamed(path.parent)

    def finish_writing(self) -> None:
        """Wait for the checkpoint that is being written. Raises UserError where it failed."""
        writing, self.writing = self.writing, None
        if writing is None:
            return
        try:
            writing.result()
        except (CheckpointException, OSError, RuntimeError) as error:
            raise UserError(
                f"A checkpoint could not be written ({one_line(error)}). The former one is intact."
            ) from None

    def teardown(self) -> None:
        try:
            self.finish_writing()
        finally:
            self.writer.shutdown()
            super().teardown()

    # ---- loading ----

    def load_checkpoint(self, checkpoint_path, weights_only=None) -> dict:
        """Each process takes its shards. Raises UserError."""
        path = Path(checkpoint_path)
        checkpoint = read_checkpoint(path, "callbacks", "optimizer_states")
        if PIECES not in checkpoint:
            return self.load_whole(path)
        folder = folder_of(checkpoint, path)
        tensors, _ = self.pieces()
        average = {}
        if "EMA" in checkpoint["callbacks"]:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    average[name] = torch.empty_like(parameter.detach())
        tensors |= {AVERAGE + name: value for name, value in average.items()}
        read_pieces(folder, tensors, alone=False)
        self.load_pieces(tensors, checkpoint["optimizer_states"], IN_PIECES)
        if average:
            checkpoint["callbacks"]["EMA"]["average"] = average
        return checkpoint

    def load_pieces(self, tensors: dict[str, Tensor], states: list[dict], options) -> None:
        """Put tensors, named as in `pieces`, into the module and the optimizers."""
        weights: dict[str, Tensor] = {}
        moments: list[dict] = [{} for _ in states]
        for name, tensor in tensors.items():
            if name.startswith(WEIGHTS):
                weights[name.removeprefix(WEIGHTS)] = tensor
            elif name.startswith(MOMENTS):
                number, parameter, moment = name.removeprefix(MOMENTS).split("/")
                moments[int(number)].setdefault(parameter, {})[moment] = tensor
        set_model_state_dict(self.model, weights, options=options)
        for optimizer, state, named in zip(self.optimizers, states, moments, strict=True):
            of_names = {"state": named, "param_groups": state["param_groups"]}
            set_optimizer_state_dict(self.model, optimizer, of_names, options=options)

    def load_whole(self, path: Path) -> dict:
        """From a checkpoint of another strategy."""
        checkpoint = read_checkpoint(path)
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
