"""Solvers of the sampling equation: diffusers' schedulers, set up as an objective needs them."""

from __future__ import annotations

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from vton.config import SamplerConfig
from vton.diffusion.objective import Objective

SOLVERS = {
    "ddim": DDIMScheduler,
    # With eta = 1: the ancestral sampler (arXiv 2010.02502, Eq. 16), its noise from outside.
    "ddpm": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "plms": PNDMScheduler,
}
SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
)


def make_solver(config: SamplerConfig, objective: Objective):
    """Return the diffusers scheduler with its timesteps set, on the CPU."""
    if objective.continuous:
        return _on_a_grid(config, objective)
    options = {key: objective.scheduler_config[key] for key in SCHEDULE_KEYS}
    options["timestep_spacing"] = config.spacing
    options["steps_offset"] = 1 if config.spacing == "leading" else 0  # as in SD's scheduler files
    if config.solver == "plms":
        options["skip_prk_steps"] = True  # without the Runge-Kutta steps of PNDM
    else:
        options["rescale_betas_zero_snr"] = config.zero_terminal_snr
        if config.zero_terminal_snr is None:  # as trained
            options["rescale_betas_zero_snr"] = objective.config.zero_terminal_snr
        options |= _clean_sample_options(config)
    if config.solver in ("ddim", "plms"):
        options["set_alpha_to_one"] = config.spacing != "leading"
    solver = SOLVERS[config.solver](**options)
    solver.set_timesteps(config.steps)
    return solver


def _on_a_grid(config: SamplerConfig, objective: Objective):
    """A scheduler whose own timestep k is the (k + 1)-th of `steps` even parts of a continuous
    schedule.

    A table of as many entries as steps makes diffusers' step from k to k - 1 that of the grid, for
    any number of steps. The last step arrives at the clean sample.
    """
    part = objective.config.train_timesteps / config.steps
    log_snr = objective.log_snr(torch.arange(1, config.steps + 1) * part)
    abar = log_snr.sigmoid()
    betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
    solver = SOLVERS[config.solver](
        num_train_timesteps=config.steps,
        trained_betas=betas.tolist(),
        prediction_type=objective.config.prediction,
        timestep_spacing="trailing",
        **_clean_sample_options(config),
    )
    solver.alphas_cumprod = abar.float()  # its own is a product of factors rounded to float32
    solver.set_timesteps(config.steps)
    return solver


def _clean_sample_options(config: SamplerConfig) -> dict:
    """How a scheduler treats the predicted clean sample, and where multistep ones end."""
    multistep = config.solver in ("dpmpp_2m", "unipc")
    options = {"final_sigmas_type": config.final_sigma} if multistep else {}
    if config.dynamic_threshold:
        options["thresholding"] = True
        options["dynamic_thresholding_ratio"] = config.dynamic_threshold
        options["sample_max_value"] = float("inf")
    elif not multistep:
        options["clip_sample"] = config.clip_sample > 0
        options["clip_sample_range"] = config.clip_sample or 1.0
    elif config.clip_sample:  # their dynamic thresholding with a bound of 1 is a clamp to 1
        options["thresholding"] = True
        options["sample_max_value"] = 1.0
    return options


def model_times(solver, objective: Objective) -> Tensor:
    """(steps,) t as the network is given it: the solver's timesteps, or the grid's real numbers."""
    if not objective.continuous:
        return solver.timesteps
    return (solver.timesteps + 1) * (objective.config.train_timesteps / len(solver.timesteps))


def sampling_times(config: SamplerConfig, objective: Objective) -> Tensor:
    """(steps,) t that the network is given in the course of sampling."""
    return model_times(make_solver(config, objective), objective)


def variance_ratio(solver, index: int) -> Tensor:
    """Upper over lower bound of an ancestral step's variance: sigma_t^2 / sigma_s^2.

    DDPM, arXiv 2006.11239, Section 3.2.
    """
    t = solver.timesteps[index]
    s = solver.timesteps[index + 1]
    return (1 - solver.alphas_cumprod[t]) / (1 - solver.alphas_cumprod[s])
