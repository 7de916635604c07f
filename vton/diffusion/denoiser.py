"""Denoiser: what the sampler needs of a network. Tensors in, prediction out.

The contract splits the work where the cost splits:

    conditions                  once per sample, by a method of the architecture's own
    garment_features            once per timestep, for networks that read t but not z_t
    denoise                     at every step

A Denoiser knows neither Lightning nor batches nor files, so it also works in a notebook and in
anyone else's loop. `vton.models.base.TryOnModule` turns a batch into its conditions.
"""
# Shapes: B batch, C h w latents

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vton.processes import to_device

# What depends on neither z_t nor t; every tensor leads with B. Numbers that decide what is
# computed, such as which rows wear which garment, are on the CPU, as t is.
Conditions = dict[str, Tensor]
Features = dict[str, Tensor]  # what depends on t but not on z_t; empty for most architectures


class Step(NamedTuple):
    """Place in the sampling schedule: the index-th of count steps."""

    index: int
    count: int


class Known(NamedTuple):
    """Latents that sampling keeps outside a mask."""

    mask: Tensor  # (B, 1, h, w), 1 = paint here
    latents: Tensor  # (B, C, h, w), clean
    # True: brought to the noise level of the step. False: clean at every step, as in GarDiff's
    # script of July 2024.
    noised: bool = True
    steps: int | None = None  # how many steps blend, counted from the first; None = all
    from_start: bool = False  # also before the first step, which else begins with noise everywhere


class Denoiser(nn.Module):
    """One or several networks behind the sampler.

    Subclasses define `denoise` and `unconditional`.
    """

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        """Compute what depends on t (B,), or on the place in the schedule, but not on z_t.

        t is on the CPU. step: None in training.
        """
        return {}

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        """Predict from z_t (B, C, h, w) and t (B,), in the objective's prediction type. t is on the
        CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} has no denoise of its own")

    def unconditional(self, conditions: Conditions) -> Conditions:
        """Return the conditions of the guidance branch, as the paper drops them."""
        raise NotImplementedError(f"{type(self).__name__} has no unconditional of its own")

    def known(self, conditions: Conditions) -> Known | None:
        """Return latents that sampling keeps outside a mask; None paints everything."""
        return None

    def start(self, conditions: Conditions) -> Tensor | None:
        """Return clean latents (B, C, h, w) that sampling starts from, noised to the last timestep.

        None starts from pure noise.
        """
        return None


def drop_rows(conditions: Conditions, null: Conditions, dropped: Tensor) -> Conditions:
    """Replace the rows of `dropped` (B,) bool, on the CPU, by those of the unconditional form
    `null`.
    """
    mixed = {}
    for name, tensor in conditions.items():
        rows = to_device(dropped, tensor.device).view(-1, *[1] * (tensor.ndim - 1))
        mixed[name] = torch.where(rows, null[name], tensor)
    return mixed
