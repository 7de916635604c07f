"""How pictures are drawn: one loop and one guidance formula for every architecture.

prediction = uncond + w (cond - uncond)          (classifier-free guidance, arXiv 2207.12598)
prediction = prediction (1 + r (s / s' - 1))     (guidance rescale, for models that ask for it)
z = m z + (1 - m) noised(known)                  (latent blending, for models that ask for it)
"""
# Shapes: B batch, C h w latents

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vton.config import SamplerConfig
from vton.diffusion.denoiser import Conditions, Denoiser, Known, Step
from vton.diffusion.noise import normal
from vton.diffusion.objective import Objective
from vton.diffusion.solvers import make_solver, model_times, variance_ratio

# Standard normal latents (B, C, h, w): the start, then one for each step of solvers that draw.
Draw = Callable[[], Tensor]


def drawing(
    shape: tuple[int, int, int], generators: list[torch.Generator], device: torch.device
) -> Draw:
    """Draws whose row i comes from generators[i] alone, so no sample depends on its batch."""
    return lambda: normal(shape, generators, torch.empty(0, device=device))


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    conditions: Conditions,
    draw: Draw,
    config: SamplerConfig,
    objective: Objective,
    watch: Callable[[Step, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Draw clean latents (B, C, h, w) of B samples.

    Guidance acts on steps whose t / T lies in `guidance_interval`; scale 1 makes one pass per step.
    watch: is shown every step with its (guided) prediction and the latents after it.
    """
    noise = draw()
    solver = make_solver(config, objective)
    times = model_times(solver, config, objective)
    known = denoiser.known(conditions)
    guidance = Guidance(denoiser, conditions, config, objective)

    z = noise * solver.init_noise_sigma
    start = denoiser.start(conditions)
    if start is not None:
        z = objective.add_noise(start, noise, objective.at(torch.ones(len(start))))
    if known is not None and known.from_start:
        z = _keep_known(known, z, noise, solver, 0)
    for index, (t, time) in enumerate(zip(solver.timesteps, times, strict=True)):
        step = Step(index, len(times))
        prediction = guidance.predict(solver.scale_model_input(z, t), time, step)
        z = _solver_step(solver, prediction, index, z, draw, config)
        if known is not None and (known.steps is None or index < known.steps):
            z = _keep_known(known, z, noise, solver, index + 1)
        if watch:
            watch(step, prediction, z)
    return z


class Guidance:
    """Predictions of a denoiser, guided where the configuration asks for it.

    Both branches go through the network in one batch: unconditional rows first, then the others.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: Conditions,
        config: SamplerConfig,
        objective: Objective,
    ):
        self.denoiser = denoiser
        self.conditions = conditions
        self.scale = config.guidance
        self.rescale = config.guidance_rescale
        low, high = config.guidance_interval
        self.low = low * objective.config.train_timesteps
        self.high = high * objective.config.train_timesteps
        self.both = conditions
        if self.scale != 1.0:
            self.both = double(denoiser.unconditional(conditions), conditions)

    def acts(self, time: Tensor) -> bool:
        """Whether guidance acts at this t."""
        return self.scale != 1.0 and bool(self.low <= time <= self.high)

    def predict(self, z: Tensor, time: Tensor, step: Step) -> Tensor:
        """(B, C, h, w) float32 for z (B, C, h, w) and a scalar t."""
        if not self.acts(time):
            t = time.expand(len(z))
            features = self.denoiser.garment_features(self.conditions, t, step)
            return self.denoiser.denoise(z, t, self.conditions, features).float()
        t = time.expand(2 * len(z))
        features = self.denoiser.garment_features(self.both, t, step)
        prediction = self.denoiser.denoise(torch.cat([z, z]), t, self.both, features)
        uncond, cond = prediction.float().chunk(2)
        guided = uncond + self.scale * (cond - uncond)
        return rescaled(guided, cond, self.rescale) if self.rescale else guided


def rescaled(guided: Tensor, cond: Tensor, strength: float) -> Tensor:
    """A guided prediction with its spread moved towards that of the conditional one.

        g (1 + r (s_cond / s_g - 1))        arXiv 2305.08891, Eq. 15 and 16

    s: standard deviation over C, h and w of each sample. Strengths r above 1 extrapolate.
    """
    dims = tuple(range(1, guided.ndim))
    ratio = cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return guided * (1 + strength * (ratio - 1))


def double(first: Conditions, second: Conditions) -> Conditions:
    """Both guidance branches in one batch, first then second."""
    return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


def _solver_step(
    solver, prediction: Tensor, index: int, z: Tensor, draw: Draw, config: SamplerConfig
) -> Tensor:
    """The solver's step number `index`, with noise of ours where it draws any."""
    options = {}
    if config.solver == "ddpm":
        noise = draw()
        if config.ddpm_variance and index + 1 < len(solver.timesteps):
            noise = noise * variance_ratio(solver, index) ** (config.ddpm_variance / 2)
        options = {"eta": 1.0, "variance_noise": noise, "use_clipped_model_output": True}
    elif config.solver == "ddim":
        if config.eta:
            options = {"eta": config.eta, "variance_noise": draw()}
        if config.clip_sample or config.dynamic_threshold:
            options["use_clipped_model_output"] = True
    return solver.step(prediction, solver.timesteps[index], z, **options).prev_sample


def _keep_known(known: Known, z: Tensor, noise: Tensor, solver, coming: int) -> Tensor:
    """Put the known latents back outside the mask, at the noise level of z.

    coming: the number of the step that z goes into; after the last one z is clean.
    """
    outside = known.latents
    if known.noised and coming < len(solver.timesteps):
        outside = solver.add_noise(known.latents, noise, solver.timesteps[coming])
    return (1 - known.mask) * outside + known.mask * z
