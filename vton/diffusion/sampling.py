"""How pictures are drawn: one loop, one guidance formula, for every architecture.

    prediction = uncond + w (cond - uncond)          (classifier-free guidance, arXiv 2207.12598)

The model contract splits the work where the cost splits, and this loop uses it: `condition` once per sample,
`garment_features` once per timestep, `denoise` once per step over both guidance branches in one batch.
"""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from vton.config import SamplerConfig
from vton.diffusion.noise import normal
from vton.diffusion.objective import Objective

Conditions = dict[str, Tensor]  # everything that depends on neither z_t nor t; every tensor leads with B
Features = dict[str, Tensor]  # what depends on t but not on z_t; empty for most architectures


class Denoiser(Protocol):
    """The part of the TryOnModule contract that sampling needs."""

    def garment_features(self, conditions: Conditions, t: Tensor) -> Features: ...
    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor: ...
    def unconditional(self, conditions: Conditions) -> Conditions: ...


SOLVERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


def make_solver(config: SamplerConfig, objective: Objective, device: torch.device):
    """The diffusers scheduler with its timesteps set."""
    shared = {
        key: objective.scheduler_config[key]
        for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    }
    shared["rescale_betas_zero_snr"] = objective.config.zero_terminal_snr
    shared["timestep_spacing"] = config.spacing
    shared["steps_offset"] = 1 if config.spacing == "leading" else 0  # Stable Diffusion's scheduler files
    if config.solver in ("ddim", "ddpm"):
        shared |= {"clip_sample": config.clip_sample > 0, "clip_sample_range": config.clip_sample or 1.0}
    if config.solver == "ddim":
        shared["set_alpha_to_one"] = config.spacing != "leading"
    solver = SOLVERS[config.solver](**shared)
    solver.set_timesteps(config.steps, device=device)
    return solver


def double(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both guidance branches in one batch, first then second."""
    return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


@torch.no_grad()
def sample(
    model: Denoiser,
    conditions: Conditions,
    shape: tuple[int, int, int],
    config: SamplerConfig,
    objective: Objective,
    generators: list[torch.Generator],
) -> Tensor:
    """Clean latents (B, *shape).

    conditions: of B samples; generators: one per sample, so that a sample's picture does not depend on its batch.
    Guidance acts on steps whose t / T lies in `guidance_interval`; scale 1 makes one pass per step.
    """
    like = next(iter(conditions.values()))
    solver = make_solver(config, objective, like.device)
    z = normal(shape, generators, torch.empty(0, device=like.device)) * solver.init_noise_sigma
    guided = config.guidance != 1.0
    both = double(model.unconditional(conditions), conditions) if guided else conditions
    low, high = (bound * objective.config.train_timesteps for bound in config.guidance_interval)
    for t in solver.timesteps:
        z_in = solver.scale_model_input(z, t)
        if guided and low <= t <= high:
            ts = t.expand(2 * len(z))
            prediction = model.denoise(torch.cat([z_in, z_in]), ts, both, model.garment_features(both, ts))
            uncond, cond = prediction.float().chunk(2)
            prediction = uncond + config.guidance * (cond - uncond)
        else:
            ts = t.expand(len(z))
            prediction = model.denoise(z_in, ts, conditions, model.garment_features(conditions, ts)).float()
        z = _step(solver, config, prediction, t, z, generators)
    return z


def _step(solver, config: SamplerConfig, prediction: Tensor, t: Tensor, z: Tensor, generators) -> Tensor:
    if config.solver == "ddpm":  # the only solver that draws; diffusers takes one generator per sample
        return _ddpm_step(solver, prediction, t, z, generators)
    return solver.step(prediction, t, z).prev_sample


def _ddpm_step(solver, prediction: Tensor, t: Tensor, z: Tensor, generators) -> Tensor:
    rows = zip(prediction.split(1), z.split(1), generators, strict=True)
    return torch.cat([solver.step(p, t, row, generator=g).prev_sample for p, row, g in rows])
