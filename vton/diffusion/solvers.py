"""Solvers of the sampling equation: diffusers' schedulers, set up as an objective needs them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from vton.config import SamplerConfig
from vton.diffusion.objective import Objective
from vton.errors import UserError


class NoisyDDIMScheduler(DDIMScheduler):
    """DDIM (arXiv 2010.02502, Eq. 12) for steps that draw noise from pure noise too.

    The direction to z_t has the length sqrt(1 - abar_s - sigma^2). With eta = 1 it is 0 where
    abar_t is 0, and rounding can take the difference below 0, whose root is NaN. Here sigma^2 stays
    below 1 - abar_s by four units in the last place; steps where it does so anyhow are unchanged.
    """

    def _get_variance(self, timestep: int, prev_timestep: int) -> Tensor:
        variance = super()._get_variance(timestep, prev_timestep)
        signal = self.final_alpha_cumprod
        if prev_timestep >= 0:
            signal = self.alphas_cumprod[prev_timestep]
        return torch.minimum(variance, (1 - signal) * (1 - 2.0**-22))


SOLVERS = {
    "ddim": NoisyDDIMScheduler,
    # With eta = 1: the ancestral sampler (arXiv 2010.02502, Eq. 16), its noise from outside.
    "ddpm": NoisyDDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "plms": PNDMScheduler,
}
# The scheduler that a solver computes the same as, where it is another one.
EQUIVALENT = {"ddpm": DDPMScheduler}
# Fields of schedulers that do nothing unless another field has this value.
IDLE = {
    "steps_offset": ("timestep_spacing", "leading"),
    "clip_sample_range": ("clip_sample", True),
    "dynamic_thresholding_ratio": ("thresholding", True),
    "sample_max_value": ("thresholding", True),
}
MULTISTEP = ("dpmpp_2m", "unipc")
SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
)


def make_solver(config: SamplerConfig, objective: Objective):
    """Return the diffusers scheduler with its timesteps set, on the CPU."""
    if _has_grid(config, objective):
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


def _has_grid(config: SamplerConfig, objective: Objective) -> bool:
    """Whether the times come from here: diffusers knows even steps through a table alone."""
    return objective.continuous or config.spacing == "trained"


def _grid(config: SamplerConfig, objective: Objective) -> Tensor:
    """(steps,) t, ascending up to pure noise: even, or at even quantiles of the t of training."""
    total = objective.config.train_timesteps
    times = torch.arange(1, config.steps + 1) * (total / config.steps)
    if config.spacing == "trained":
        times = total * (times / total) ** (1 / objective.config.timestep_power)
    return times if objective.continuous else times.round().long() - 1


def _on_a_grid(config: SamplerConfig, objective: Objective):
    """A scheduler whose own timestep k is the (k + 1)-th of `_grid`.

    A table of as many entries as steps makes diffusers' step from k to k - 1 that of the grid, for
    any times. The last step arrives at the clean sample.
    """
    times = _grid(config, objective)
    if objective.continuous:
        abar = objective.log_snr(times).sigmoid()
    else:
        abar = objective.alphas_cumprod[times].double()
    if config.solver in MULTISTEP:  # they compute with logarithms of it
        abar = abar.clamp(min=2.0**-24)
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
    multistep = config.solver in MULTISTEP
    options = {"final_sigmas_type": config.final_sigma} if multistep else {}
    if config.dynamic_threshold:
        options["thresholding"] = True
        if not multistep:
            options["clip_sample"] = False  # it would have no effect beside thresholding
        options["dynamic_thresholding_ratio"] = config.dynamic_threshold
        options["sample_max_value"] = float("inf")
    elif not multistep:
        options["clip_sample"] = config.clip_sample > 0
        options["clip_sample_range"] = config.clip_sample or 1.0
    elif config.clip_sample:  # their dynamic thresholding with a bound of 1 is a clamp to 1
        options["thresholding"] = True
        options["sample_max_value"] = 1.0
    return options


def model_times(solver, config: SamplerConfig, objective: Objective) -> Tensor:
    """(steps,) t as the network is given it: those of the grid, or the solver's own timesteps."""
    if _has_grid(config, objective):
        return _grid(config, objective).flip(0)
    return solver.timesteps


def sampling_times(config: SamplerConfig, objective: Objective) -> Tensor:
    """(steps,) t that the network is given in the course of sampling."""
    return model_times(make_solver(config, objective), config, objective)


def check_scheduler(
    scheduler: Mapping, config: SamplerConfig, objective: Objective, where: str
) -> None:
    """Raise UserError for the first field of a diffusers scheduler that our solver does otherwise.

    scheduler: its fields; one that is absent is not compared. where: what precedes a field's name
    in the message. Fields that only other schedulers read do nothing, as published files hold them.
    """
    ours = dict(make_solver(config, objective).config)
    if config.solver == "ddpm":
        # diffusers' fixed_large also acts in the last step.
        variance = config.ddpm_variance
        ours["variance_type"] = f"ddpm_variance {variance:g}" if variance else "fixed_small"
    theirs = EQUIVALENT.get(config.solver, SOLVERS[config.solver])
    for name in inspect.signature(theirs.__init__).parameters:
        if name not in scheduler or name not in ours or scheduler[name] == ours[name]:
            continue
        deciding, value = IDLE.get(name, ("", ""))
        if deciding and scheduler.get(deciding, ours[deciding]) != value:
            continue
        raise UserError(
            f"{where}{name}={scheduler[name]} is not what sampler.solver={config.solver} does: "
            f"{name}={ours[name]}."
        )


def variance_ratio(solver, index: int) -> Tensor:
    """Upper over lower bound of an ancestral step's variance: sigma_t^2 / sigma_s^2.

    DDPM, arXiv 2006.11239, Section 3.2.
    """
    t = solver.timesteps[index]
    s = solver.timesteps[index + 1]
    return (1 - solver.alphas_cumprod[t]) / (1 - solver.alphas_cumprod[s])
