"""How pictures are drawn: one loop, one guidance formula, for every architecture.

    prediction = uncond + w (cond - uncond)          (classifier-free guidance, arXiv 2207.12598)
    z = m z + (1 - m) noised(known)                  (latent blending outside the mask, for models that ask for it)

The model contract splits the work where the cost splits, and this loop uses it: `condition` once per sample,
`garment_features` once per timestep, `denoise` once per step over both guidance branches in one batch.
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

Conditions = dict[str, Tensor]  # everything that depends on neither z_t nor t; every tensor leads with B
Features = dict[str, Tensor]  # what depends on t but not on z_t; empty for most architectures
Draw = Callable[[], Tensor]  # standard normal latents (B, C, h, w): the start, then one per step of solvers that draw


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

    def garment_features(self, conditions: Conditions, t: Tensor, step: Step | None) -> Features: ...
    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor: ...
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
    shared = {
        key: objective.scheduler_config[key]
        for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    }
    as_trained = config.zero_terminal_snr is None
    shared["rescale_betas_zero_snr"] = objective.config.zero_terminal_snr if as_trained else config.zero_terminal_snr
    shared["timestep_spacing"] = config.spacing
    shared["steps_offset"] = 1 if config.spacing == "leading" else 0  # Stable Diffusion's scheduler files
    if config.solver in ("ddim", "ddpm"):
        shared |= {"clip_sample": config.clip_sample > 0, "clip_sample_range": config.clip_sample or 1.0}
    else:
        shared["final_sigmas_type"] = config.final_sigma
    if config.solver == "ddim":
        shared["set_alpha_to_one"] = config.spacing != "leading"
    solver = SOLVERS[config.solver](**shared)
    solver.set_timesteps(config.steps, device=device)
    return solver


def double(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both guidance branches in one batch, first then second."""
    return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


def drawing(shape: tuple[int, int, int], generators: list[torch.Generator], device: torch.device) -> Draw:
    """Draws of which row i comes from generators[i] alone, so that a sample does not depend on its batch."""
    return lambda: normal(shape, generators, torch.empty(0, device=device))


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
    for index, t in enumerate(solver.timesteps):
        step = Step(index, len(solver.timesteps))
        z_in = solver.scale_model_input(z, t)
        if guided and low <= t <= high:
            ts = t.expand(2 * len(z))
            prediction = model.denoise(torch.cat([z_in, z_in]), ts, both, model.garment_features(both, ts, step))
            uncond, cond = prediction.float().chunk(2)
            prediction = uncond + config.guidance * (cond - uncond)
        else:
            ts = t.expand(len(z))
            prediction = model.denoise(z_in, ts, conditions, model.garment_features(conditions, ts, step)).float()
        if config.solver == "ddpm":
            ancestral = {"eta": 1.0, "variance_noise": draw(), "use_clipped_model_output": True}
            z = solver.step(prediction, t, z, **ancestral).prev_sample
        else:
            z = solver.step(prediction, t, z).prev_sample
        if known is not None and (known.steps is None or index < known.steps):
            clean = not known.noised or index + 1 == len(solver.timesteps)
            outside = known.latents if clean else solver.add_noise(known.latents, start, solver.timesteps[index + 1])
            z = (1 - known.mask) * outside + known.mask * z
        if watch:
            watch(step, prediction, z)
    return z
