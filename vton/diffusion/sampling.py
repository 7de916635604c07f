"""How pictures are drawn: one loop, one guidance formula, for every architecture.

    prediction = uncond + w (cond - uncond)          (classifier-free guidance, arXiv 2207.12598)
    z = m z + (1 - m) noised(known)                  (latent blending outside the mask, for models that ask for it)

The model contract splits the work where the cost splits, and this loop uses it: `condition` once
per sample, `garment_features` once per timestep, `denoise` once per step over both guidance
branches in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from vton.config import SamplerConfig
from vton.diffusion.noise import normal
from vton.diffusion.objective import Objective

Conditions = dict[
    str, Tensor
]  # everything that depends on neither z_t nor t; every tensor leads with B
Features = dict[str, Tensor]  # what depends on t but not on z_t; empty for most architectures
Draw = Callable[
    [], Tensor
]  # standard normal latents (B, C, h, w): the start, then one per step of solvers that draw


class Step(NamedTuple):
    """Place in the sampling schedule: the index-th of count steps."""

    index: int
    count: int


class Known(NamedTuple):
    """What sampling keeps: clean latents (B, C, h, w) where mask (B, 1, h, w) is 0; 1 = paint here."""

    mask: Tensor
    latents: Tensor
    noised: bool = True  # brought to the noise level of the step; False = clean at every step, as GarDiff's July script
    steps: int | None = None  # blended after so many steps from the first; None = all


class Denoiser(Protocol):
    """The part of the TryOnModule contract that sampling needs."""

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None
    ) -> Features: ...
    def denoise(
        self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features
    ) -> Tensor: ...
    def unconditional(self, conditions: Conditions) -> Conditions: ...
    def known(self, conditions: Conditions) -> Known | None: ...


SOLVERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDIMScheduler,  # with eta = 1: the ancestral sampler (arXiv 2010.02502, Eq. 16), its noise from outside
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


def make_solver(config: SamplerConfig, objective: Objective, device: torch.device):
    """The diffusers scheduler with its timesteps set."""
    if objective.continuous:
        return _on_a_grid(config, objective, device)
    shared = {
        key: objective.scheduler_config[key]
        for key in (
            "num_train_timesteps",
            "beta_start",
            "beta_end",
            "beta_schedule",
            "prediction_type",
        )
    }
    as_trained = config.zero_terminal_snr is None
    shared["rescale_betas_zero_snr"] = (
        objective.config.zero_terminal_snr if as_trained else config.zero_terminal_snr
    )
    shared["timestep_spacing"] = config.spacing
    shared["steps_offset"] = (
        1 if config.spacing == "leading" else 0
    )  # Stable Diffusion's scheduler files
    shared |= _solver_options(config)
    if config.solver == "ddim":
        shared["set_alpha_to_one"] = config.spacing != "leading"
    solver = SOLVERS[config.solver](**shared)
    solver.set_timesteps(config.steps, device=device)
    return solver


def _on_a_grid(config: SamplerConfig, objective: Objective, device: torch.device):
    """A scheduler whose own timestep k is the (k + 1)-th of `steps` even parts of a continuous
    schedule.

    A table of as many entries as steps makes diffusers' step from k to k - 1 that of the grid, for
    any number of them; the last step arrives at the clean sample.
    """
    log_snr = objective.log_snr(
        torch.arange(1, config.steps + 1) * (objective.config.train_timesteps / config.steps)
    )
    abar = log_snr.sigmoid()
    betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
    solver = SOLVERS[config.solver](
        num_train_timesteps=config.steps,
        trained_betas=betas.tolist(),
        prediction_type=objective.config.prediction,
        timestep_spacing="trailing",
        **_solver_options(config),
    )
    solver.alphas_cumprod = abar.float()  # its own is a product of factors rounded to float32
    solver.set_timesteps(config.steps, device=device)
    return solver


def _solver_options(config: SamplerConfig) -> dict:
    """How a scheduler treats the predicted clean sample, and where multistep ones end.

    Their dynamic thresholding with a bound of 1 is a clamp to 1.
    """
    ends = {} if config.solver in ("ddim", "ddpm") else {"final_sigmas_type": config.final_sigma}
    if config.dynamic_threshold:
        ratio = config.dynamic_threshold
        return ends | {
            "thresholding": True,
            "dynamic_thresholding_ratio": ratio,
            "sample_max_value": float("inf"),
        }
    if config.solver in ("ddim", "ddpm"):
        return {
            "clip_sample": config.clip_sample > 0,
            "clip_sample_range": config.clip_sample or 1.0,
        }
    return ends | ({"thresholding": True, "sample_max_value": 1.0} if config.clip_sample else {})


def model_times(solver, objective: Objective) -> Tensor:
    """(steps,) what the network is given as t at each of the solver's timesteps: these, or the
    grid's real numbers.
    """
    if not objective.continuous:
        return solver.timesteps
    return (solver.timesteps + 1) * (objective.config.train_timesteps / len(solver.timesteps))


def sampling_times(config: SamplerConfig, objective: Objective) -> Tensor:
    """(steps,) the t that the network is given in the course of sampling, on the CPU."""
    return model_times(make_solver(config, objective, torch.device("cpu")), objective)


def double(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both guidance branches in one batch, first then second."""
    return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


def drawing(
    shape: tuple[int, int, int], generators: list[torch.Generator], device: torch.device
) -> Draw:
    """Draws of which row i comes from generators[i] alone, so that a sample does not depend on its
    batch.
    """
    return lambda: normal(shape, generators, torch.empty(0, device=device))


def _variance_ratio(solver, index: int) -> Tensor:
    """Upper over lower bound of an ancestral step's variance: sigma_t^2 / sigma_s^2 (DDPM, Section
    3.2).
    """
    t, s = solver.timesteps[index], solver.timesteps[index + 1]
    return (1 - solver.alphas_cumprod[t]) / (1 - solver.alphas_cumprod[s])


@torch.no_grad()
def sample(
    model: Denoiser,
    conditions: Conditions,
    draw: Draw,
    config: SamplerConfig,
    objective: Objective,
    watch: Callable[[Step, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Clean latents (B, C, h, w) of B samples.

    Guidance acts on steps whose t / T lies in `guidance_interval`; scale 1 makes one pass per step.
    watch: is shown every step with its (guided) prediction and the latents after it.
    """
    start = draw()
    solver = make_solver(config, objective, start.device)
    z = start * solver.init_noise_sigma
    known = model.known(conditions)
    guided = config.guidance != 1.0
    both = double(model.unconditional(conditions), conditions) if guided else conditions
    low, high = (bound * objective.config.train_timesteps for bound in config.guidance_interval)
    for index, (t, time) in enumerate(
        zip(solver.timesteps, model_times(solver, objective), strict=True)
    ):
        step = Step(index, len(solver.timesteps))
        z_in = solver.scale_model_input(z, t)
        if guided and low <= time <= high:
            ts = time.expand(2 * len(z))
            prediction = model.denoise(
                torch.cat([z_in, z_in]), ts, both, model.garment_features(both, ts, step)
            )
            uncond, cond = prediction.float().chunk(2)
            prediction = uncond + config.guidance * (cond - uncond)
        else:
            ts = time.expand(len(z))
            prediction = model.denoise(
                z_in, ts, conditions, model.garment_features(conditions, ts, step)
            ).float()
        if config.solver == "ddpm":
            noise = draw()
            if config.ddpm_variance and index + 1 < len(solver.timesteps):
                noise = noise * _variance_ratio(solver, index) ** (config.ddpm_variance / 2)
            ancestral = {"eta": 1.0, "variance_noise": noise, "use_clipped_model_output": True}
            z = solver.step(prediction, t, z, **ancestral).prev_sample
        elif config.solver == "ddim" and (config.clip_sample or config.dynamic_threshold):
            z = solver.step(prediction, t, z, use_clipped_model_output=True).prev_sample
        else:
            z = solver.step(prediction, t, z).prev_sample
        if known is not None and (known.steps is None or index < known.steps):
            clean = not known.noised or index + 1 == len(solver.timesteps)
            outside = (
                known.latents
                if clean
                else solver.add_noise(known.latents, start, solver.timesteps[index + 1])
            )
            z = (1 - known.mask) * outside + known.mask * z
        if watch:
            watch(step, prediction, z)
    return z
