"""What is watched while training: scalars, throughput, a fixed grid of held-out pictures, and bad numbers."""

from __future__ import annotations

import math
import resource
import sys
import time
from contextlib import nullcontext
from typing import Literal

import torch
from lightning import Callback
from torch.distributed.tensor import DTensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vton.data.sample import TryOnBatch
from vton.errors import UserError
from vton.models.base import TryOnModule
from vton.report.attention import attention_grid
from vton.report.grid import try_on_grid
from vton.training.ema import EMA


class TrainingError(UserError):
    """Training cannot go on; the message names step and samples."""


class FiniteNumbers(Callback):
    """A loss or gradient that is not finite stops the run, or skips the step, before it reaches the weights.

    Processes decide together, once per optimizer step. The message names the step and those samples whose own loss is
    not finite, or all of the step where the loss has no parts. Under fp16 a gradient may overflow: its scaler skips
    such steps and lowers the scale, so only the loss is looked at. Logs the norm of the gradient before clipping.
    """

    PATIENCE = 10  # skipped steps in a row that stop a run all the same: its weights are lost

    def __init__(self, policy: Literal["stop", "skip"], log_every: int, scaled: bool = False):
        self.policy, self.log_every, self.scaled = policy, log_every, scaled
        self.skipped = self.in_a_row = 0
        self.seen: list[tuple[list[str], torch.Tensor, torch.Tensor]] = []  # pairs, losses and loss of each batch

    def on_before_backward(self, trainer, module, loss) -> None:
        loss = loss.detach()
        self.seen.append((module.current_pairs, module.last_losses.get("diffusion", loss), loss))

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        norm = gradient_norm(module)
        losses = torch.stack([loss for *_, loss in self.seen])
        finite = torch.isfinite(losses).all() & (torch.isfinite(norm) | self.scaled)
        step = trainer.global_step + 1
        if trainer.strategy.reduce_boolean_decision(bool(finite), all=True):
            self.in_a_row = 0
            if step % self.log_every == 0:
                trainer.logger.log_metrics({"train/grad_norm": norm.item()}, step=step)
        else:
            self.answer(trainer, optimizer, step, norm.item())
        self.seen.clear()

    def answer(self, trainer, optimizer, step: int, norm: float) -> None:
        losses = [loss.item() for *_, loss in self.seen]
        mine = (next((value for value in losses if not math.isfinite(value)), None), self.guilty(), self.all_pairs())
        everyones = gather(mine)
        value = next((value for value, *_ in everyones if value is not None), None)
        guilty = [pair for _, pairs, _ in everyones for pair in pairs] or [p for *_, pairs in everyones for p in pairs]
        what = f"Gradient norm is {norm}" if value is None else f"Loss is {value}"
        message = f"{what} at step {step}, samples {', '.join(guilty[:16])}{', ...' if len(guilty) > 16 else ''}."
        if self.policy == "stop":
            raise TrainingError(
                f"{message} The last checkpoint is from before; try a lower train.lr or train.precision=fp32, or leave "
                "such steps out: train.non_finite=skip."
            )
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == self.PATIENCE:
            raise TrainingError(f"{message} It is the {self.PATIENCE}th in a row to be skipped: the weights are lost.")
        optimizer.zero_grad(set_to_none=True)  # without gradients AdamW touches neither weights nor moments
        if trainer.is_global_zero:
            print(f"{message} Step skipped, the {self.skipped}. of this run.")
            trainer.logger.log_metrics({"train/skipped_steps": self.skipped}, step=step)

    def guilty(self) -> list[str]:
        """Of this process, the pairs whose own loss is not finite."""
        rows = [(pairs, losses) for pairs, losses, _ in self.seen if losses.ndim]
        return [pair for pairs, row in rows for pair, ok in zip(pairs, row.isfinite().tolist(), strict=True) if not ok]

    def all_pairs(self) -> list[str]:
        return [pair for pairs, *_ in self.seen for pair in pairs]

    def state_dict(self) -> dict:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        self.skipped = state["skipped"]


def gradient_norm(module) -> torch.Tensor:
    """Of all gradients together, over all shards."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gather(value):
    """Of every process, in the order of ranks."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


class Telemetry(Callback):
    """Scalars for TensorBoard, averaged over `log_every` steps; x-axis is optimizer steps.

    Its state is what the whole run has cost so far, restarts included. planned_steps: of how many steps the learning
    rate is drawn, where that decides its curve; the state has every number that it was, in order.
    """

    def __init__(self, log_every: int, batch_size: int, planned_steps: int | None = None):
        self.log_every, self.batch_size = log_every, batch_size
        self.planned_steps = [] if planned_steps is None else [planned_steps]
        self.spent, self.peak = 0.0, 0.0
        self.began = time.perf_counter()
        self.reset()

    def state_dict(self) -> dict[str, float | list[int]]:
        planned = {"planned_steps": self.planned_steps} if self.planned_steps else {}
        return {
            "seconds": round(self.spent + time.perf_counter() - self.began, 1),
            "peak_memory_gib": round(max(self.peak, peak_memory_gib()), 3),
            **planned,
        }

    def load_state_dict(self, state: dict[str, float | list[int]]) -> None:
        self.spent, self.peak = state["seconds"], state["peak_memory_gib"]
        before = state.get("planned_steps", [])
        self.planned_steps = before + (self.planned_steps if self.planned_steps != before[-1:] else [])

    def reset(self) -> None:
        self.losses: list[float] = []
        self.extra: dict[str, list[float]] = {}
        self.by_t: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.waited = 0.0
        self.started = self.batch_ended = time.perf_counter()

    def on_train_start(self, trainer, module) -> None:
        self.began = time.perf_counter()
        self.reset()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.waited += time.perf_counter() - self.batch_ended

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item() * trainer.accumulate_grad_batches)
        last = module.last_losses
        if "t" in last:
            self.by_t.append((last["t"].cpu(), last["diffusion"].float().cpu()))
        for name in last.keys() - {"t", "diffusion"}:
            self.extra.setdefault(name, []).append(last[name].item())
        step = trainer.global_step
        if step % self.log_every == 0 and len(self.losses) >= trainer.accumulate_grad_batches:
            trainer.logger.log_metrics(self.scalars(trainer, module), step=step)
            self.reset()
        self.batch_ended = time.perf_counter()

    def scalars(self, trainer, module) -> dict[str, float]:
        seconds, count = time.perf_counter() - self.started, len(self.losses)
        scalars = {
            "train/loss": sum(self.losses) / count,
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "perf/images_per_second": count * self.batch_size * trainer.world_size / seconds,
            "perf/step_ms": 1000 * seconds / count * trainer.accumulate_grad_batches,
            "perf/data_wait_ms": 1000 * self.waited / count,
            "perf/peak_memory_gib": peak_memory_gib(),
        }
        scalars |= {f"train/loss_{name}": sum(values) / len(values) for name, values in self.extra.items()}
        if not self.by_t:  # what learns without timesteps
            return scalars
        t, losses = (torch.cat(column) for column in zip(*self.by_t, strict=True))
        quarter = module.config.objective.train_timesteps / 4
        for i in range(4):
            inside = (t >= i * quarter) & (t < (i + 1) * quarter)
            if inside.any():
                name = f"train/loss_by_t/{int(i * quarter)}-{int((i + 1) * quarter) - 1}"
                scalars[name] = losses[inside].mean().item()
        return scalars


class HeldOut(Callback):
    """Every `every` steps: the same held-out pairs through the sampler, as pictures, attention and a few scalars."""

    def __init__(self, batches: dict[str, TryOnBatch], every: int, pictures: int, ema: EMA | None):
        self.batches, self.every, self.pictures, self.ema = batches, every, pictures, ema
        self.step, self.scores = 0, {}  # of the last look

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if not due or step == 0 or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        module.eval()
        with self.ema.applied(module) if self.ema else nullcontext():
            batches = {order: batch for order, batch in self.batches.items() if module.can_sample(batch)}
            scores = {order: self.look(trainer, module, order, batch, step) for order, batch in batches.items()}
        module.train()
        scores = {name: value for of_order in scores.values() for name, value in of_order.items()}
        # The first process's, for what is saved by them must be the same on all: their last digits may differ.
        self.step, self.scores = step, trainer.strategy.broadcast(scores)

    def look(self, trainer, module, order: str, batch: TryOnBatch, step: int) -> dict[str, float]:
        batch = batch.to(module.device)
        output = module.generate(batch).float()
        shown, drawn = batch[: self.pictures], output[: self.pictures]
        attention = attention_grid(module, shown, drawn) if isinstance(module, TryOnModule) else None
        if trainer.is_global_zero:
            writer = trainer.logger.experiment
            writer.add_image(f"images/{order}", try_on_grid(shown, drawn), step, dataformats="HWC")
            if attention is not None:
                writer.add_image(f"attention/{order}", attention, step, dataformats="HWC")
        if batch.truth is None:
            return {}
        truth = batch.truth
        mse = ((output - truth) ** 2).flatten(1).mean(1) / 4
        ssim = structural_similarity_index_measure((output + 1) / 2, (truth + 1) / 2, data_range=1.0)
        scores = {f"val/{order}/ssim": ssim.item(), f"val/{order}/psnr": (-10 * mse.log10()).mean().item()}
        inside = batch.truth_garment_mask
        if inside is not None:
            garment = (((output - truth) ** 2) * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3))).clamp(min=1) / 4
            scores[f"val/{order}/psnr_garment"] = (-10 * garment.clamp(min=1e-10).log10()).mean().item()
        trainer.logger.log_metrics(scores, step=step)
        return scores


class Console(Callback):
    """One line every so often where there is no terminal for a progress bar."""

    def __init__(self, steps: int, held_out: HeldOut | None = None):
        self.every, self.held_out = max(1, steps // 40), held_out
        self.losses: list[float] = []

    def on_train_start(self, trainer, module) -> None:
        self.started, self.first = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item() * trainer.accumulate_grad_batches)
        step = trainer.global_step
        if not trainer.is_global_zero or (step % self.every and step != trainer.max_steps):
            return
        pace = (time.perf_counter() - self.started) / max(step - self.first, 1)
        scores = self.held_out.scores if self.held_out else {}
        held_out = "".join(f"  {n.removeprefix('val/')} {value:.3f}" for n, value in scores.items() if "psnr" in n)
        left = pace * (trainer.max_steps - step)
        loss = sum(self.losses) / len(self.losses)
        print(
            f"step {step}/{trainer.max_steps}  loss {loss:.4f}{held_out}  {pace:.2f} s/step  {left / 60:.1f} min left"
        )
        sys.stdout.flush()
        self.losses.clear()


def peak_memory_gib() -> float:
    """Peak of the CUDA allocator where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
