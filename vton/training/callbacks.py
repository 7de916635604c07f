"""What is watched while training: scalars, throughput, a fixed grid of held-out pictures, and bad numbers."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import nullcontext

import torch
from lightning import Callback
from torchmetrics.functional.image import structural_similarity_index_measure

from vton.data.sample import TryOnBatch
from vton.errors import UserError
from vton.models.base import TryOnModule
from vton.report.attention import attention_grid
from vton.report.grid import try_on_grid
from vton.training.ema import EMA


class TrainingError(UserError):
    """Training cannot go on; the message names step and samples."""


class StopOnBadNumbers(Callback):
    """A non-finite loss stops the run before it reaches the weights."""

    def on_before_backward(self, trainer, module, loss) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f"Loss is {loss.item()} at step {trainer.global_step}, samples {', '.join(module.current_pairs)}. "
                f"The last checkpoint is from before; try a lower train.lr or train.precision=fp32."
            )


class Telemetry(Callback):
    """Scalars for TensorBoard, averaged over `log_every` steps; x-axis is optimizer steps.

    Its state is what the whole run has cost so far, restarts included.
    """

    def __init__(self, log_every: int, batch_size: int):
        self.log_every, self.batch_size = log_every, batch_size
        self.spent, self.peak = 0.0, 0.0
        self.began = time.perf_counter()
        self.reset()

    def state_dict(self) -> dict[str, float]:
        return {
            "seconds": round(self.spent + time.perf_counter() - self.began, 1),
            "peak_memory_gib": round(max(self.peak, peak_memory_gib()), 3),
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.spent, self.peak = state["seconds"], state["peak_memory_gib"]

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

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if (trainer.global_step + 1) % self.log_every == 0:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)  # before clipping
            trainer.logger.log_metrics({"train/grad_norm": norm.item()}, step=trainer.global_step + 1)

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
        trainer.callback_metrics.update({k: torch.tensor(v) for s in scores.values() for k, v in s.items()})

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

    def __init__(self, steps: int):
        self.every = max(1, steps // 40)
        self.losses: list[float] = []

    def on_train_start(self, trainer, module) -> None:
        self.started, self.first = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item() * trainer.accumulate_grad_batches)
        step = trainer.global_step
        if not trainer.is_global_zero or (step % self.every and step != trainer.max_steps):
            return
        pace = (time.perf_counter() - self.started) / max(step - self.first, 1)
        values = {k.removeprefix("val/"): v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        held_out = "".join(f"  {name} {value:.3f}" for name, value in values.items() if "psnr" in name)
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
