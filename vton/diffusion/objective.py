"""What is learned: noise schedule, prediction type, loss weight (DDPM, arXiv 2006.11239; v: arXiv
2202.00512).

    z_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps
    v   = sqrt(abar_t) eps - sqrt(1 - abar_t) x0

Discrete schedules are a table of T = train_timesteps values: t is (B,) int64 in 0 .. T-1.
Continuous ones are formulas (as Imagen has them, arXiv 2205.11487): t is (B,) real in [0, T], and
with u = t / T

    log(abar / (1 - abar)) = -2 log tan(pi/2 (u + s) / (1 + s)), s = 0.008      cosine
                             -log(expm1(0.1 u + 9.95 u^2))                      linear

Timesteps stay on the CPU, where they are drawn: code decides by them what to compute.

Legend: B batch; latents are (B, C, h, w).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from vton.config import ObjectiveConfig
from vton.processes import to_device


class Noised(NamedTuple):
    """Training examples at their timesteps."""

    z_t: Tensor  # (B, C, h, w), what the network sees
    t: Tensor  # (B,), on the CPU
    target: Tensor  # (B, C, h, w), what the network is asked for
    x0: Tensor  # (B, C, h, w), clean
    eps: Tensor  # (B, C, h, w), the noise in z_t


class Objective:
    """Everything that depends on the schedule and the prediction type, for training and for reading
    predictions.
    """

    def __init__(self, config: ObjectiveConfig):
        self.config = config
        self.continuous = config.continuous
        if self.continuous:
            return
        scheduler = DDPMScheduler(
            num_train_timesteps=config.train_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule=config.schedule,
            rescale_betas_zero_snr=config.zero_terminal_snr,
            prediction_type=config.prediction,
        )
        self.scheduler_config = dict(scheduler.config)
        self.alphas_cumprod = scheduler.alphas_cumprod  # (T,), abar_t

    # ---- timesteps and the schedule ----

    def timesteps(self, u: Tensor) -> Tensor:
        """Turn uniform u (B,) in [0, 1) into timesteps; `timestep_power` above 1 favours noise."""
        return self.at(u ** (1 / self.config.timestep_power))

    def at(self, part: Tensor) -> Tensor:
        """Turn (B,) in [0, 1], from clean to noise, into timesteps."""
        t = part * self.config.train_timesteps
        if self.continuous:
            return t
        return t.long().clamp(max=self.config.train_timesteps - 1)

    def log_snr(self, t: Tensor) -> Tensor:
        """(B,) float64: log of signal power over noise power of a continuous schedule, clipped to
        `max_log_snr`. On the device of t.
        """
        u = t.double() / self.config.train_timesteps
        if self.config.schedule == "continuous_linear":
            log_snr = -torch.log(torch.expm1(0.1 * u + 9.95 * u**2))
        else:
            log_snr = -2 * torch.log(torch.tan(torch.pi / 2 * (u + 0.008) / 1.008).abs())
        return log_snr.clamp(-self.config.max_log_snr, self.config.max_log_snr)

    def snr(self, t: Tensor) -> Tensor:
        """(B,) signal power over noise power, float32, on the device of t."""
        if self.continuous:
            return self.log_snr(t).exp().float()
        abar = self.alphas_cumprod.to(t.device)[t]
        return abar / (1 - abar)

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), (B, 1, 1, 1), with device and dtype of `like`."""
        shape = (-1, *[1] * (like.ndim - 1))
        if self.continuous:
            log_snr = to_device(self.log_snr(t), like.device).view(shape)
            signal = log_snr.sigmoid().sqrt()
            noise = (-log_snr).sigmoid().sqrt()
            return signal.to(like.dtype), noise.to(like.dtype)
        abar = self.alphas_cumprod.to(t.device)[t]
        abar = to_device(abar, like.device).to(like.dtype).view(shape)
        return abar.sqrt(), (1 - abar).sqrt()

    # ---- training ----

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Noised:
        """Training examples of clean latents x0, noise eps and timesteps t."""
        return Noised(self.add_noise(x0, eps, t), t, self.target(x0, eps, t), x0, eps)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        signal, noise = self.signal_and_noise(t, x0)
        return signal * x0 + noise * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network is asked for."""
        if self.config.prediction == "epsilon":
            return eps
        if self.config.prediction == "sample":
            return x0
        signal, noise = self.signal_and_noise(t, x0)
        return signal * eps - noise * x0

    def loss(self, prediction: Tensor, noised: Noised) -> Tensor:
        """(B,) weighted mean squared error of each sample, in float32."""
        error = (prediction.float() - noised.target.float()) ** 2
        return to_device(self.weight(noised.t), error.device) * error.flatten(1).mean(1)

    def weight(self, t: Tensor) -> Tensor:
        """(B,) loss weight; min-SNR (arXiv 2303.09556) in the unit of the prediction type."""
        if self.config.loss_weight == "uniform":
            return torch.ones_like(t, dtype=torch.float32)
        snr = self.snr(t)
        clipped = snr.clamp(max=self.config.min_snr_gamma)
        if self.config.prediction == "sample":
            return clipped
        if self.config.prediction == "epsilon":
            # 1 is the limit where zero terminal SNR would give 0 / 0.
            return torch.where(snr > 0, clipped / snr, 1.0)
        return clipped / (snr + 1)

    # ---- reading predictions ----

    def clean(self, z_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """x0 as the prediction implies it (GarDiff, Eq. 7, for epsilon)."""
        if self.config.prediction == "sample":
            return prediction
        signal, noise = self.signal_and_noise(t, z_t)
        if self.config.prediction == "epsilon":
            return (z_t - noise * prediction) / signal
        return signal * z_t - noise * prediction

    def noise(self, z_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """eps as the prediction implies it."""
        if self.config.prediction == "epsilon":
            return prediction
        signal, noise = self.signal_and_noise(t, z_t)
        if self.config.prediction == "sample":
            return (z_t - signal * prediction) / noise
        return signal * prediction + noise * z_t
