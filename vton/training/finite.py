"""Losses and gradients that are not finite."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from lightning import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from vton.errors import UserError
from vton.processes import from_every_process, is_behind

# What helps against numbers that are not finite; a run keeps its settings.
ANOTHER_RUN = "start another run (name=...) with a lower train.lr or with train.precision=fp32"


class TrainingError(UserError):
    """Training cannot go on; the message names step and samples."""


class BatchLoss(NamedTuple):
    """What one batch of an optimizer step cost."""

    pairs: list[str]
    each: Tensor  # (B,) loss of each pair, or () where the loss has no such parts
    loss: Tensor  # ()


class StepNumbers(NamedTuple):
    """What one process computed in an optimizer step."""

    step: int
    batches: list[BatchLoss]
    norm: Tensor | None  # () of all gradients; None where there are none, or they may overflow

    def are_finite(self) -> Tensor:
        """() bool, on the device."""
        numbers = [batch.loss for batch in self.batches]
        if self.norm is not None:
            numbers.append(self.norm)
        return torch.stack([number.float() for number in numbers]).isfinite().all()


class NonFiniteStep(NamedTuple):
    """What one process saw of a step that is not finite."""

    loss: float | None  # the first loss that is not finite
    non_finite_pairs: list[str]
    pairs: list[str]  # all of the step
    norm: float | None


class FiniteNumbers(Callback):
    """A loss or gradient that is not finite stops the run, or skips the step.

    Processes decide together. The message names the step and the samples whose own loss is not
    finite, or all of the step where the loss has no parts. Under fp16 a gradient may overflow: its
    scaler skips such steps and lowers the scale, so only the loss is checked. DeepSpeed keeps
    gradients to itself: there too only the loss is checked. Otherwise the norm of the gradient
    before clipping is checked and logged; clipping uses the same one.

    On CPUs every step is looked at before it reaches the weights, and on other devices too where
    steps are skipped. A run that stops looks at its numbers there every `log_every` steps, at the
    end, and before weights are saved, since every look waits for the device: what lies between is
    lost with the run anyway.
    """

    PATIENCE = 10  # skipped steps in a row that stop a run all the same: its weights are lost

    def __init__(self, policy: Literal["stop", "skip"], log_every: int, scaled: bool = False):
        self.policy = policy
        self.log_every = log_every
        self.scaled = scaled
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.batches: list[BatchLoss] = []  # of the current step
        self.steps: list[StepNumbers] = []  # that nobody has looked at

    def on_before_backward(self, trainer, module, loss) -> None:
        loss = loss.detach()
        each = module.last_losses.get("diffusion", loss)
        self.batches.append(BatchLoss(module.current_pairs, each, loss))

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        step = trainer.global_step + 1
        norm = trainer.precision_plugin.gradient_norm = gradient_norm(module, optimizer)
        self.steps.append(
            StepNumbers(step, self.batches, None if self.scaled else unsharded_norm(norm))
        )
        self.batches = []
        logs = step % self.log_every == 0
        at_once = self.policy == "skip" or not is_behind(trainer.strategy.root_device)
        if at_once or logs or step == trainer.max_steps:
            bad = self.first_bad_step(trainer)
            if bad is not None:
                self.stop_or_skip(trainer, optimizer, bad)
                return
            self.skipped_in_a_row = 0
            if logs and norm is not None:
                trainer.logger.log_metrics(
                    {"train/grad_norm": unsharded_norm(norm).item()}, step=step
                )

    def require_finite(self, trainer) -> None:
        """Raise TrainingError if a step since the last look was not finite."""
        bad = self.first_bad_step(trainer)
        if bad is not None:
            self.stop_or_skip(trainer, None, bad)

    def first_bad_step(self, trainer) -> StepNumbers | None:
        """The earliest step, since the last look, whose numbers are not finite on some process.

        Every process must ask.
        """
        steps, self.steps = self.steps, []
        if not steps:
            return None
        finite = torch.stack([step.are_finite() for step in steps])
        if trainer.strategy.reduce_boolean_decision(bool(finite.all()), all=True):
            return None
        places = from_every_process(finite.tolist())
        return steps[min(own.index(False) for own in places if False in own)]

    def stop_or_skip(self, trainer, optimizer, bad: StepNumbers) -> None:
        """Raise TrainingError, or drop the gradients of this step."""
        message = describe(bad)
        if self.policy == "stop":
            raise TrainingError(
                f"{message} The last checkpoint is from before: go on from it and skip such steps "
                f"(train.non_finite=skip), or {ANOTHER_RUN}."
            )
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == self.PATIENCE:
            raise TrainingError(
                f"{message} It is number {self.PATIENCE} in a row to be skipped: the weights "
                f"are lost. {ANOTHER_RUN.capitalize()}."
            )
        optimizer.zero_grad(set_to_none=True)  # AdamW then touches neither weights nor moments
        if trainer.is_global_zero:
            print(f"{message} Step skipped; {self.skipped} so far in this run.")
            trainer.logger.log_metrics({"train/skipped_steps": self.skipped}, step=bad.step)

    def state_dict(self) -> dict:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        self.skipped = state["skipped"]


def describe(bad: StepNumbers) -> str:
    """One line on what is not finite, from what all processes saw."""
    problems: list[NonFiniteStep] = from_every_process(own_problem(bad))
    losses = [problem.loss for problem in problems if problem.loss is not None]
    pairs = []
    for problem in problems:
        pairs += problem.non_finite_pairs
    if not pairs:
        for problem in problems:
            pairs += problem.pairs
    what = f"Loss is {losses[0]}" if losses else f"Gradient norm is {problems[0].norm}"
    shown = ", ".join(pairs[:16])
    if len(pairs) > 16:
        shown += ", ..."
    return f"{what} at step {bad.step}, samples {shown}."


def own_problem(bad: StepNumbers) -> NonFiniteStep:
    problem = NonFiniteStep(None, [], [], None if bad.norm is None else bad.norm.item())
    for batch in bad.batches:
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


def gradient_norm(module, optimizer) -> Tensor | None:
    """Norm of all gradients together, (), in pieces where they are; None where no parameter has
    one. It counts in the optimizer's order, as clipping does.
    """
    if all(parameter.grad is None for parameter in module.parameters()):
        return None
    gradients = []
    for group in optimizer.param_groups:
        gradients += [p.grad for p in group["params"] if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def unsharded_norm(norm: Tensor | None) -> Tensor | None:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
