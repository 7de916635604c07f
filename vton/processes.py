"""The processes of one run: which share is ours, where it is computed, and bringing results
together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

from vton.errors import UserError

T = TypeVar("T")


def process_share() -> tuple[int, int]:
    """Rank of this process and how many there are; (0, 1) outside distributed runs."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def joined() -> Iterator[None]:
    """Among the processes that torchrun started, where it did; results travel over gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def own_device(accelerator: str) -> torch.device:
    """What this process computes on by trainer.accelerator, for work that is done before a Trainer
    is there.
    """
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def from_every_process(value: T) -> list[T]:
    """The values of all processes by rank, on each of them. Every process must call it."""
    _, world = process_share()
    if world == 1:
        return [value]
    values = [value] * world
    distributed.all_gather_object(values, value)
    return values


def gathered(measure: Callable[[], T]) -> list[T] | None:
    """What `measure` returns on every process, by rank, on the first process; None on the others.

    Every process must call it. Where `measure` raises UserError on any of them, no other waits in
    vain: the first process raises the error of the lowest rank.
    """
    part: Any
    try:
        part = measure()
    except UserError as error:
        part = error
    rank, world = process_share()
    parts = [None] * world if rank == 0 else None
    if world == 1:
        parts = [part]
    else:
        distributed.gather_object(part, parts)
    for part in parts or ():
        if isinstance(part, UserError):
            raise part
    return parts
