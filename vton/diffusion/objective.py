"""What is learned: noise schedule, prediction type, loss weight (DDPM, arXiv 2006.11239; v: arXiv
2202.00512).

    z_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps
    v   = sqrt(abar_t) eps - sqrt(1 - abar_t) x0

Discrete schedules are a table of T = train_timesteps values: t is (B,) int64 in 0 .. T-1.
Continuous ones are formulas (as Imagen has them, arXiv 2205.11487): t is (B,) real in [0, T], and
with u = t / T

    log(abar / (1 - abar)) = -2 log tan(pi/2 (u + s) / (1 + s)), s = 0.008      cosine
                             -log(expm1(0.1 u + 9.95 u^2))                      linear

Legend: B batch; latents are (B, C, H, W).
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from vton.config import ObjectiveConfig


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

    def timesteps(self, u: Tensor) -> Tensor:
        """Uniform u in [0, 1) to timesteps; `timestep_power` above 1 moves them towards noise."""
        return self.at(u ** (1 / self.config.timestep_power))

    def at(self, part: Tensor) -> Tensor:
        """(B,) in [0, 1], from clean to noise, as timesteps."""
        t = part * self.config.train_timesteps
        return t if self.continuous else t.long().clamp(max=self.config.train_timesteps - 1)

    def log_snr(self, t: Tensor) -> Tensor:
        """(B,) float64: log of signal power over noise power of a continuous schedule, clipped to
        `max_log_snr`.
        """
        u, bound = t.double() / self.config.train_timesteps, self.config.max_log_snr
        if self.config.schedule == "continuous_linear":
            return -torch.log(torch.expm1(0.1 * u + 9.95 * u**2)).clamp(-bound, bound)
        return (-2 * torch.log(torch.tan(torch.pi / 2 * (u + 0.008) / 1.008).abs())).clamp(
            -bound, bound
        )

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped (B, 1, 1, 1)."""
        if self.continuous:
            log_snr = self.log_snr(t.to(like.device)).view(-1, *[1] * (like.ndim - 1))
            return log_snr.sigmoid().sqrt().to(like.dtype), (-log_snr).sigmoid().sqrt().to(
                like.dtype
            )
        abar = (
            self.alphas_cumprod.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))
        )
        return abar.sqrt(), (1 - abar).sqrt()

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

    def clean(self, z_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """x0 as the prediction implies it (GarDiff, Eq. 7, for epsilon)."""
        if self.config.prediction == "sample":
            return prediction
        signal, noise = self.signal_and_noise(t, z_t)
        if self.config.prediction == "epsilon":
            return (z_t - noise * prediction) / signal
        return signal * z_t - noise * prediction

    def weight(self, t: Tensor) -> Tensor:
        """(B,) loss weight; min-SNR (arXiv 2303.09556) in the unit of the prediction type."""
        if self.config.loss_weight == "uniform":
            return torch.ones_like(t, dtype=torch.float32)
        snr = self.snr(t)
        clipped = snr.clamp(max=self.config.min_snr_gamma)
        if self.config.prediction == "sample":
            return clipped
        if self.config.prediction == "epsilon":
            return torch.where(
                snr > 0, clipped / snr, 1.0
            )  # its limit where zero terminal SNR would give 0 / 0
        return clipped / (snr + 1)

    def snr(self, t: Tensor) -> Tensor:
        """(B,) signal power over noise power, float32."""
        if self.continuous:
            return self.log_snr(t).exp().float()
        abar = self.alphas_cumprod.to(t.device)[t]
        return abar / (1 - abar)

    def loss(self, prediction: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """(B,) weighted mean squared error of each sample, in float32."""
        error = (prediction.float() - self.target(x0, eps, t).float()) ** 2
        return self.weight(t) * error.flatten(1).mean(1)
