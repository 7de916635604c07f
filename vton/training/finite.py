"""Losses and gradients that are not finite."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from lightning import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from vton.errors import UserError
from vton.processes import from_every_process


class TrainingError(UserError):
    """Training cannot go on; the message names step and samples."""


class BatchLoss(NamedTuple):
    """What one batch of an optimizer step cost."""

    pairs: list[str]
    each: Tensor  # (B,) loss of each pair, or () where the loss has no such parts
    loss: Tensor  # ()


class NonFiniteStep(NamedTuple):
    """What one process saw of a step that is not finite."""

    loss: float | None  # the first loss that is not finite
    non_finite_pairs: list[str]
    pairs: list[str]  # all of the step


class FiniteNumbers(Callback):
    """A loss or gradient that is not finite stops the run, or skips the step, before it reaches the
    weights.

    Processes decide together, once per optimizer step. The message names the step and the samples
    whose own loss is not finite, or all of the step where the loss has no parts. Under fp16 a
    gradient may overflow: its scaler skips such steps and lowers the scale, so only the loss is
    checked. DeepSpeed keeps gradients to itself: there too only the loss is checked. Otherwise the
    norm of the gradient before clipping is checked and logged.
    """

    PATIENCE = 10  # skipped steps in a row that stop a run all the same: its weights are lost

    def __init__(self, policy: Literal["stop", "skip"], log_every: int, scaled: bool = False):
        self.policy = policy
        self.log_every = log_every
        self.scaled = scaled
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.batches: list[BatchLoss] = []  # of the current step

    def on_before_backward(self, trainer, module, loss) -> None:
        loss = loss.detach()
        each = module.last_losses.get("diffusion", loss)
        self.batches.append(BatchLoss(module.current_pairs, each, loss))

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        norm = gradient_norm(module)
        losses = torch.stack([batch.loss for batch in self.batches])
        finite = bool(torch.isfinite(losses).all())
        if norm is not None and not self.scaled:
            finite = finite and math.isfinite(norm)
        step = trainer.global_step + 1
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            self.skipped_in_a_row = 0
            if step % self.log_every == 0 and norm is not None:
                trainer.logger.log_metrics({"train/grad_norm": norm}, step=step)
        else:
            self.stop_or_skip(trainer, optimizer, step, norm)
        self.batches.clear()

    def stop_or_skip(self, trainer, optimizer, step: int, norm: float | None) -> None:
        """Raise TrainingError, or drop the gradients of this step."""
        message = self.describe(step, norm)
        if self.policy == "stop":
            raise TrainingError(
                f"{message} The last checkpoint is from before; try a lower train.lr or "
                "train.precision=fp32, or skip such steps: train.non_finite=skip."
            )
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == self.PATIENCE:
            raise TrainingError(
                f"{message} It is the {self.PATIENCE}th in a row to be skipped: the weights are "
                "lost."
            )
        optimizer.zero_grad(set_to_none=True)  # AdamW then touches neither weights nor moments
        if trainer.is_global_zero:
            print(f"{message} Step skipped; {self.skipped} so far in this run.")
            trainer.logger.log_metrics({"train/skipped_steps": self.skipped}, step=step)

    def describe(self, step: int, norm: float | None) -> str:
        """One line on what is not finite, from what all processes saw."""
        problems: list[NonFiniteStep] = from_every_process(self.own_problem())
        losses = [problem.loss for problem in problems if problem.loss is not None]
        pairs = []
        for problem in problems:
            pairs += problem.non_finite_pairs
        if not pairs:
            for problem in problems:
                pairs += problem.pairs
        what = f"Loss is {losses[0]}" if losses else f"Gradient norm is {norm}"
        shown = ", ".join(pairs[:16])
        if len(pairs) > 16:
            shown += ", ..."
        return f"{what} at step {step}, samples {shown}."

    def own_problem(self) -> NonFiniteStep:
        problem = NonFiniteStep(None, [], [])
        for batch in self.batches:
            loss = batch.loss.item()
            if problem.loss is None and not math.isfinite(loss):
                problem = problem._replace(loss=loss)
            problem.pairs.extend(batch.pairs)
            if batch.each.ndim:
                finite = batch.each.isfinite().tolist()
                for pair, is_finite in zip(batch.pairs, finite, strict=True):
                    if not is_finite:
                        problem.non_finite_pairs.append(pair)
        return problem

    def state_dict(self) -> dict:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        self.skipped = state["skipped"]


def gradient_norm(module) -> float | None:
    """Norm of all gradients together, over all shards; None where no parameter has one."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    return norm.item()
