"""Scalars for TensorBoard: losses, throughput, memory, waiting for data."""

from __future__ import annotations

import resource
import sys
import time

import torch
from lightning import Callback
from torch import Tensor

from vton.processes import from_every_process


def ends_step(trainer, batch_index: int) -> bool:
    """Whether the optimizer stepped after this batch.

    With train.accumulate that is after the last of each step's batches.
    """
    return (batch_index + 1) % trainer.accumulate_grad_batches == 0


class DataWait(Callback):
    """Seconds from a batch's end until the next is on the device.

    It stands last among the callbacks, so that their time does not count.
    """

    def __init__(self):
        self.seconds = 0.0

    def on_train_start(self, trainer, module) -> None:
        self.since = time.perf_counter()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.seconds += time.perf_counter() - self.since

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.since = time.perf_counter()


class Mean:
    """A sum and how many values it is of."""

    def __init__(self, total: float = 0.0, count: int = 0):
        self.total = total
        self.count = count

    def add(self, values: Tensor) -> None:
        self.total += values.sum().item()
        self.count += values.numel()


class Telemetry(Callback):
    """Scalars every `log_every` optimizer steps, which are the x-axis, over the steps since the
    last.

    train/loss, loss_NAME, loss_by_t/FROM-TO
        mean over the samples of all processes
    train/lr
        of the last step
    perf/step_ms
        of an optimizer step: waiting for its batches, passes, update, average of the weights; not
        what comes after (pictures, checkpoints, printing), before which this callback has to stand
    perf/data_wait_ms
        the part of it in which the first process waits for its batches to be on the device
    perf/images_per_second
        that all processes train on at this pace
    perf/peak_memory_gib
        of the first process, since it began

    Its state is what the whole run has cost so far, restarts included. planned_steps: the number of
    steps that the learning rate's curve is drawn for, where it depends on that; the state has all
    such numbers of the run, in order.
    """

    def __init__(self, log_every: int, batch_size: int, planned_steps: int | None = None):
        self.log_every = log_every
        self.batch_size = batch_size
        self.planned_steps = [] if planned_steps is None else [planned_steps]
        self.data_wait = DataWait()
        self.device = torch.device("cpu")
        self.seconds_before = 0.0  # of earlier processes of this run
        self.peak_before = 0.0
        self.began = time.perf_counter()
        self.reset()

    def state_dict(self) -> dict[str, float | list[int]]:
        seconds = self.seconds_before + time.perf_counter() - self.began
        peak = max(self.peak_before, peak_memory_gib(self.device))
        state = {"seconds": round(seconds, 1), "peak_memory_gib": round(peak, 3)}
        if self.planned_steps:
            state["planned_steps"] = self.planned_steps
        return state

    def load_state_dict(self, state: dict[str, float | list[int]]) -> None:
        self.seconds_before = state["seconds"]
        self.peak_before = state["peak_memory_gib"]
        before = state.get("planned_steps", [])
        if self.planned_steps == before[-1:]:
            self.planned_steps = before
        else:
            self.planned_steps = before + self.planned_steps

    def reset(self) -> None:
        self.means: dict[str, Mean] = {}
        self.unread: list[dict[str, Tensor]] = []  # losses of each batch, on the device
        self.batches = 0
        self.computed_seconds = 0.0
        self.data_wait.seconds = 0.0

    def add(self, name: str, values: Tensor) -> None:
        self.means.setdefault(name, Mean()).add(values)

    def on_train_start(self, trainer, module) -> None:
        self.began = time.perf_counter()
        self.device = trainer.strategy.root_device
        self.reset()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.batch_began = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        logs = ends_step(trainer, batch_idx) and trainer.global_step % self.log_every == 0
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        self.unread.append({"loss": loss, **module.last_losses})
        if logs:
            self.read(module)  # waits for the device, whose time is part of these steps'
        self.computed_seconds += time.perf_counter() - self.batch_began
        self.batches += 1
        if logs:
            trainer.logger.log_metrics(self.scalars(trainer), step=trainer.global_step)
            self.reset()

    def read(self, module) -> None:
        """Count in the losses that are still on the device, brought here in one piece."""
        on_device = []
        for losses in self.unread:
            on_device += [losses[name].float().flatten() for name in losses if name != "t"]
        lengths = list(map(len, on_device))
        values = iter(torch.cat(on_device).cpu().split(lengths))

        for losses in self.unread:
            read = {name: next(values) for name in losses if name != "t"}
            for name, numbers in read.items():
                if name != "diffusion":
                    self.add(name if name == "loss" else f"loss_{name}", numbers)
            if "t" in losses:  # not for what learns without timesteps
                self.add_by_timestep(module, losses["t"], read["diffusion"])
        self.unread.clear()

    def add_by_timestep(self, module, t: Tensor, losses: Tensor) -> None:
        """The loss in each quarter of the timesteps."""
        quarter = module.config.objective.train_timesteps / 4
        for index in range(4):
            low, high = index * quarter, (index + 1) * quarter
            inside = (t >= low) & (t < high)
            self.add(f"loss_by_t/{int(low)}-{int(high) - 1}", losses[inside])

    def scalars(self, trainer) -> dict[str, float]:
        steps = self.batches / trainer.accumulate_grad_batches
        seconds = self.computed_seconds + self.data_wait.seconds
        images = self.batches * self.batch_size * trainer.world_size
        return self.means_over_processes() | {
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "perf/images_per_second": images / seconds,
            "perf/step_ms": 1000 * seconds / steps,
            "perf/data_wait_ms": 1000 * self.data_wait.seconds / steps,
            "perf/peak_memory_gib": peak_memory_gib(self.device),
        }

    def means_over_processes(self) -> dict[str, float]:
        together: dict[str, Mean] = {}
        for means in from_every_process(self.means):
            for name, mean in means.items():
                joint = together.setdefault(name, Mean())
                joint.total += mean.total
                joint.count += mean.count
        scalars = {}
        for name, mean in together.items():
            if mean.count:
                scalars[f"train/{name}"] = mean.total / mean.count
        return scalars


def peak_memory_gib(device: torch.device) -> float:
    """Peak of the CUDA allocator for what is computed there, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
