"""The processes of one run: which share is ours, where it is computed, how results are gathered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor

from vton.errors import UserError

T = TypeVar("T")


def process_share() -> tuple[int, int]:
    """Rank of this process and how many there are; (0, 1) outside distributed runs."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_first_process() -> bool:
    """Whether this is the process that speaks for all, also before they are connected."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    if "RANK" in os.environ:  # torchrun
        return os.environ["RANK"] == "0"
    # Lightning's own launcher, on each node, or SLURM's srun, over all of them.
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0"))
    return rank == "0" and os.environ.get("NODE_RANK", "0") == "0"


@contextmanager
def process_group() -> Iterator[None]:
    """A context in which the processes that torchrun started can exchange results, over gloo.

    Without torchrun it does nothing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def own_device(accelerator: str) -> torch.device:
    """What this process computes on by trainer.accelerator, for work before there is a Trainer.

    Raises UserError where it is gpu and torch finds no CUDA device.
    """
    if accelerator == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu: torch finds no CUDA device. Use trainer=cpu, or install the "
            "build of torch for your CUDA (docs/gpus.md)."
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def is_behind(device: torch.device) -> bool:
    """Whether work on the device is queued, so that looking at a result means waiting for it."""
    return device.type != "cpu"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, behind what is queued there, without waiting for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=is_behind(device))


def from_every_process(value: T) -> list[T]:
    """The values of all processes by rank, on each of them. Every process must call it."""
    _, world = process_share()
    if world == 1:
        return [value]
    values = [value] * world
    distributed.all_gather_object(values, value)
    return values


def together(act: Callable[[], T]) -> T:
    """What `act` returns here, unless it fails on some process, such as the one that writes files.

    Every process must call it. A UserError or OSError, of the lowest rank, is raised on all of
    them, so that none waits for one that has left.
    """
    failure: Exception | None = None
    try:
        result = act()
    except (UserError, OSError) as error:
        failure = error
    for anyones in from_every_process(failure):
        if anyones is not None:
            raise anyones
    return result


def gathered(measure: Callable[[], T]) -> list[T] | None:
    """What `measure` returns on every process, by rank, on the first process; None on the others.

    Every process must call it. A UserError on one of them keeps no other waiting: the first process
    raises the error of the lowest rank.
    """
    result: T | UserError
    try:
        result = measure()
    except UserError as error:
        result = error
    rank, world = process_share()
    results: list[Any] | None = [result]
    if world > 1:
        results = [None] * world if rank == 0 else None
        distributed.gather_object(result, results)
    if results is None:
        return None
    for result in results:
        if isinstance(result, UserError):
            raise result
    return results
