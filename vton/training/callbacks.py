"""What is watched while training: scalars, throughput, a fixed grid of held-out pictures, and bad
numbers.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from contextlib import nullcontext
from typing import Literal

import torch
from lightning import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vton.data.sample import TryOnBatch
from vton.errors import UserError
from vton.metrics.pixelwise import output_psnr
from vton.models.base import TryOnModule
from vton.processes import from_every_process
from vton.report.attention import attention_grid
from vton.report.grid import try_on_grid
from vton.training.ema import EMA


class TrainingError(UserError):
    """Training cannot go on; the message names step and samples."""


def ends_step(trainer, batch_idx: int) -> bool:
    """Whether the optimizer stepped after this batch: with train.accumulate, after the last of each
    step's batches.
    """
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class FiniteNumbers(Callback):
    """A loss or gradient that is not finite stops the run, or skips the step, before it reaches the
    weights.

    Processes decide together, once per optimizer step. The message names the step and those samples
    whose own loss is not finite, or all of the step where the loss has no parts. Under fp16 a
    gradient may overflow: its scaler skips such steps and lowers the scale, so only the loss is
    looked at. Logs the norm of the gradient before clipping. DeepSpeed keeps gradients to itself:
    then too only the loss is looked at, and no norm is logged.
    """

    PATIENCE = 10  # skipped steps in a row that stop a run all the same: its weights are lost

    def __init__(self, policy: Literal["stop", "skip"], log_every: int, scaled: bool = False):
        self.policy, self.log_every, self.scaled = policy, log_every, scaled
        self.skipped = self.in_a_row = 0
        self.seen: list[
            tuple[list[str], torch.Tensor, torch.Tensor]
        ] = []  # pairs, losses and loss of each batch

    def on_before_backward(self, trainer, module, loss) -> None:
        loss = loss.detach()
        self.seen.append((module.current_pairs, module.last_losses.get("diffusion", loss), loss))

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        norm = gradient_norm(module)
        losses = torch.stack([loss for *_, loss in self.seen])
        finite = bool(torch.isfinite(losses).all()) and (
            norm is None or self.scaled or math.isfinite(norm)
        )
        step = trainer.global_step + 1
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            self.in_a_row = 0
            if step % self.log_every == 0 and norm is not None:
                trainer.logger.log_metrics({"train/grad_norm": norm}, step=step)
        else:
            self.answer(trainer, optimizer, step, norm)
        self.seen.clear()

    def answer(self, trainer, optimizer, step: int, norm: float | None) -> None:
        losses = [loss.item() for *_, loss in self.seen]
        mine = (
            next((value for value in losses if not math.isfinite(value)), None),
            self.guilty(),
            self.all_pairs(),
        )
        everyones = from_every_process(mine)
        value = next((value for value, *_ in everyones if value is not None), None)
        guilty = [pair for _, pairs, _ in everyones for pair in pairs] or [
            p for *_, pairs in everyones for p in pairs
        ]
        what = f"Gradient norm is {norm}" if value is None else f"Loss is {value}"
        message = f"{what} at step {step}, samples {', '.join(guilty[:16])}{', ...' if len(guilty) > 16 else ''}."
        if self.policy == "stop":
            raise TrainingError(
                f"{message} The last checkpoint is from before; try a lower train.lr or train.precision=fp32, or leave "
                "such steps out: train.non_finite=skip."
            )
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == self.PATIENCE:
            raise TrainingError(
                f"{message} It is the {self.PATIENCE}th in a row to be skipped: the weights are lost."
            )
        optimizer.zero_grad(
            set_to_none=True
        )  # without gradients AdamW touches neither weights nor moments
        if trainer.is_global_zero:
            print(f"{message} Step skipped, the {self.skipped}. of this run.")
            trainer.logger.log_metrics({"train/skipped_steps": self.skipped}, step=step)

    def guilty(self) -> list[str]:
        """Of this process, the pairs whose own loss is not finite."""
        rows = [(pairs, losses) for pairs, losses, _ in self.seen if losses.ndim]
        return [
            pair
            for pairs, row in rows
            for pair, ok in zip(pairs, row.isfinite().tolist(), strict=True)
            if not ok
        ]

    def all_pairs(self) -> list[str]:
        return [pair for pairs, *_ in self.seen for pair in pairs]

    def state_dict(self) -> dict:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        self.skipped = state["skipped"]


def gradient_norm(module) -> float | None:
    """Of all gradients together, over all shards; None where no parameter has one."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


class DataWait(Callback):
    """Seconds from a batch's end until the next is on the device. Last of the callbacks: theirs do
    not count.
    """

    def __init__(self):
        self.seconds = 0.0

    def on_train_start(self, trainer, module) -> None:
        self.since = time.perf_counter()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.seconds += time.perf_counter() - self.since

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.since = time.perf_counter()


class Telemetry(Callback):
    """Scalars for TensorBoard every `log_every` optimizer steps, which are the x-axis, over the
    steps since the last.

    train/loss, loss_NAME, loss_by_t/FROM-TO   mean over the samples of all processes
    train/lr                of the last step
    perf/step_ms            of an optimizer step: waiting for its batches, passes, update, average of the weights; not
                            what comes after (pictures, checkpoints, printing), before which this callback has to stand
    perf/data_wait_ms       the part of it in which the first process waits for its batches to be on the device
    perf/images_per_second  that all processes train on at this pace
    perf/peak_memory_gib    of the first process, since it began

    Its state is what the whole run has cost so far, restarts included. planned_steps: of how many
    steps the learning rate is drawn, where that decides its curve; the state has every number that
    it was, in order.
    """

    def __init__(self, log_every: int, batch_size: int, planned_steps: int | None = None):
        self.log_every, self.batch_size = log_every, batch_size
        self.planned_steps = [] if planned_steps is None else [planned_steps]
        self.data_wait = DataWait()
        self.device = torch.device("cpu")
        self.spent, self.peak = 0.0, 0.0
        self.began = time.perf_counter()
        self.reset()

    def state_dict(self) -> dict[str, float | list[int]]:
        planned = {"planned_steps": self.planned_steps} if self.planned_steps else {}
        return {
            "seconds": round(self.spent + time.perf_counter() - self.began, 1),
            "peak_memory_gib": round(max(self.peak, peak_memory_gib(self.device)), 3),
            **planned,
        }

    def load_state_dict(self, state: dict[str, float | list[int]]) -> None:
        self.spent, self.peak = state["seconds"], state["peak_memory_gib"]
        before = state.get("planned_steps", [])
        self.planned_steps = before + (
            self.planned_steps if self.planned_steps != before[-1:] else []
        )

    def reset(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}  # by name: of how many values the sum is
        self.batches, self.computed = 0, 0.0  # s
        self.data_wait.seconds = 0.0

    def add(self, name: str, values: Tensor) -> None:
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = total + values.sum().item(), count + values.numel()

    def on_train_start(self, trainer, module) -> None:
        self.began, self.device = time.perf_counter(), trainer.strategy.root_device
        self.reset()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.batch_began = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.add("loss", outputs["loss"] * trainer.accumulate_grad_batches)  # waits for the device
        self.computed += time.perf_counter() - self.batch_began
        self.batches += 1
        last = module.last_losses
        for name in last.keys() - {"t", "diffusion"}:
            self.add(f"loss_{name}", last[name])
        if "t" in last:  # not for what learns without timesteps
            t, losses = last["t"].cpu(), last["diffusion"].float().cpu()
            quarter = module.config.objective.train_timesteps / 4
            for i in range(4):
                inside = (t >= i * quarter) & (t < (i + 1) * quarter)
                self.add(
                    f"loss_by_t/{int(i * quarter)}-{int((i + 1) * quarter) - 1}", losses[inside]
                )
        if ends_step(trainer, batch_idx) and trainer.global_step % self.log_every == 0:
            trainer.logger.log_metrics(self.scalars(trainer), step=trainer.global_step)
            self.reset()

    def scalars(self, trainer) -> dict[str, float]:
        steps, seconds = (
            self.batches / trainer.accumulate_grad_batches,
            self.computed + self.data_wait.seconds,
        )
        everyones = from_every_process(self.sums)
        means = {}
        for name in dict.fromkeys(name for sums in everyones for name in sums):
            totals, counts = zip(*(sums.get(name, (0.0, 0)) for sums in everyones), strict=True)
            if sum(counts):
                means[f"train/{name}"] = sum(totals) / sum(counts)
        return means | {
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "perf/images_per_second": self.batches * self.batch_size * trainer.world_size / seconds,
            "perf/step_ms": 1000 * seconds / steps,
            "perf/data_wait_ms": 1000 * self.data_wait.seconds / steps,
            "perf/peak_memory_gib": peak_memory_gib(self.device),
        }


class HeldOut(Callback):
    """Every `every` steps: the same held-out pairs through the sampler, as pictures, attention and
    a few scalars.

    val/ORDER/{ssim, psnr, psnr_garment}: means over the pairs, the last over those whose picture
    shows the garment.
    """

    def __init__(self, batches: dict[str, TryOnBatch], every: int, pictures: int, ema: EMA | None):
        self.batches, self.every, self.pictures, self.ema = batches, every, pictures, ema
        self.step, self.scores = 0, {}  # of the last look

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if not ends_step(trainer, batch_idx) or (step % self.every and step != trainer.max_steps):
            return
        module.eval()
        with self.ema.applied(module) if self.ema else nullcontext():
            batches = {
                order: batch for order, batch in self.batches.items() if module.can_sample(batch)
            }
            scores = {
                order: self.look(trainer, module, order, batch, step)
                for order, batch in batches.items()
            }
        module.train()
        scores = {name: value for of_order in scores.values() for name, value in of_order.items()}
        # The first process's, for what is saved by them must be the same on all: their last digits
        # may differ.
        self.step, self.scores = step, trainer.strategy.broadcast(scores)

    def look(self, trainer, module, order: str, batch: TryOnBatch, step: int) -> dict[str, float]:
        batch = batch.to(module.device)
        with (
            trainer.precision_plugin.forward_context()
        ):  # as predicting draws; hooks run outside of it
            output = module.generate(batch).float()
            shown, drawn = batch[: self.pictures], output[: self.pictures]
            looks = module.looks(shown, drawn) if isinstance(module, TryOnModule) else None
        if trainer.is_global_zero:
            writer = trainer.logger.experiment
            writer.add_image(f"images/{order}", try_on_grid(shown, drawn), step, dataformats="HWC")
            attention = None if looks is None else attention_grid(module, shown, drawn, looks)
            if attention is not None:
                writer.add_image(f"attention/{order}", attention, step, dataformats="HWC")
        if batch.truth is None:
            return {}
        ssim = structural_similarity_index_measure(
            (output + 1) / 2, (batch.truth + 1) / 2, data_range=1.0
        )
        psnr = {"psnr": output_psnr(output, batch.truth)}
        if batch.truth_garment_mask is not None:
            psnr["psnr_garment"] = output_psnr(output, batch.truth, batch.truth_garment_mask)
        scores = {f"val/{order}/ssim": ssim.item()}
        scores |= {
            f"val/{order}/{name}": values.mean().item()
            for name, values in psnr.items()
            if len(values)
        }
        trainer.logger.log_metrics(scores, step=step)
        return scores


class Console(Callback):
    """One line every so often where there is no terminal for a progress bar; its loss is the first
    process's share.
    """

    def __init__(self, steps: int, held_out: HeldOut | None = None):
        self.every, self.held_out = max(1, steps // 40), held_out
        self.losses: list[float] = []

    def on_train_start(self, trainer, module) -> None:
        self.started, self.first = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not trainer.is_global_zero:
            return
        self.losses.append(outputs["loss"].item() * trainer.accumulate_grad_batches)
        step = trainer.global_step
        if not ends_step(trainer, batch_idx) or (step % self.every and step != trainer.max_steps):
            return
        pace = (time.perf_counter() - self.started) / max(step - self.first, 1)
        scores = self.held_out.scores if self.held_out else {}
        held_out = "".join(
            f"  {n.removeprefix('val/')} {value:.3f}" for n, value in scores.items() if "psnr" in n
        )
        left = pace * (trainer.max_steps - step)
        loss = sum(self.losses) / len(self.losses)
        print(
            f"step {step}/{trainer.max_steps}  loss {loss:.4f}{held_out}  {pace:.2f} s/step  {left / 60:.1f} min left"
        )
        sys.stdout.flush()
        self.losses.clear()


def peak_memory_gib(device: torch.device) -> float:
    """Peak of the CUDA allocator for what is computed there, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
