"""Continuous-time schedules: their formulas, and the solvers on their grid against closed forms."""

import math

import pytest
import torch

from tests.diffusion.test_sampling import CPU, Oracle
from vton.config import ObjectiveConfig, SamplerConfig
from vton.diffusion import noise
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import drawing, sample
from vton.diffusion.solvers import sampling_times

SCHEDULES = ("continuous_cosine", "continuous_linear")


def log_snr(schedule: str, u: float) -> float:
    if schedule == "continuous_linear":
        return min(15.0, max(-15.0, -math.log(math.expm1(0.1 * u + 9.95 * u * u) or 1e-9)))
    return min(15.0, max(-15.0, -2 * math.log(math.tan(math.pi / 2 * (u + 0.008) / 1.008))))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_follow_their_formulas_and_fall(schedule):
    objective = Objective(ObjectiveConfig(schedule=schedule))
    t = torch.linspace(0, 1000, 41)
    found = objective.log_snr(t)
    assert (found.diff() <= 0).all() and found[-1] < -9 and torch.isfinite(found).all()
    for place in (0, 7, 20, 39):
        assert found[place].item() == pytest.approx(log_snr(schedule, place / 40), abs=1e-9)
    signal, sigma = objective.signal_and_noise(t, torch.zeros(41, 1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(signal**2 + sigma**2, torch.ones_like(signal))
    x0, eps = torch.randn(2, 41, 3, 2, 2, dtype=torch.float64)
    z_t = objective.add_noise(x0, eps, t)
    torch.testing.assert_close(objective.clean(z_t, t, eps), x0, atol=1e-6, rtol=0)
    assert torch.equal(objective.timesteps(torch.tensor([0.0, 0.25])), torch.tensor([0.0, 250.0]))


def run(schedule, oracle=None, prediction="sample", seed=1, watch=None, **settings):
    objective = Objective(ObjectiveConfig(schedule=schedule, prediction=prediction))
    truth = torch.rand(2, 3, 6, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    draw = drawing((3, 6, 4), [noise.generator(0, i) for i in range(2)], CPU)
    config = SamplerConfig(spacing="trailing", **settings)
    return truth, sample(oracle or Oracle(), {"truth": truth}, draw, config, objective, watch)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("solver", "steps"), [("ddim", 1), ("ddim", 7), ("ddpm", 7), ("dpmpp_2m", 7), ("unipc", 7)]
)
def test_every_solver_recovers_what_a_perfect_model_predicts(schedule, solver, steps):
    """From epsilon too, which has to be exact where almost no signal is left."""

    class Epsilon(Oracle):
        def denoise(self, z_t, t, conditions, features):
            objective = Objective(ObjectiveConfig(schedule=schedule))
            signal, sigma = objective.signal_and_noise(t, z_t)
            return (z_t - signal * conditions["truth"]) / sigma

    for clip in (0.0, 1.0):
        truth, z = run(schedule, solver=solver, steps=steps, clip_sample=clip)
        torch.testing.assert_close(z, truth, atol=2e-2, rtol=0)
    truth, z = run(schedule, Epsilon(), "epsilon", solver=solver, steps=steps, clip_sample=1.0)
    torch.testing.assert_close(z, truth, atol=2e-2, rtol=0)


@pytest.mark.parametrize(("variance", "clip"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.4)])
def test_ancestral_steps_equal_the_closed_form(variance, clip):
    """Imagen's step from t to s with c = 1 - exp(l_t - l_s), at times that no table of 1000 has."""
    seen = []
    draw = drawing((3, 6, 4), [noise.generator(0, i) for i in range(2)], CPU)
    settings = {"solver": "ddpm", "steps": 7, "ddpm_variance": variance, "clip_sample": clip}
    truth, _ = run("continuous_cosine", watch=lambda step, x, z: seen.append(z), **settings)
    z = draw()
    x = truth.clamp(-clip, clip) if clip else truth
    for index, found in enumerate(seen[:-1]):
        l_t, l_s = (log_snr("continuous_cosine", (7 - index - after) / 7) for after in (0, 1))
        a_t, a_s = (math.sqrt(1 / (1 + math.exp(-value))) for value in (l_t, l_s))
        c = -math.expm1(l_t - l_s)
        lower, upper = c / (1 + math.exp(l_s)), c / (1 + math.exp(l_t))
        mean = a_s * (z * (1 - c) / a_t + c * x)
        z = mean + math.sqrt(lower ** (1 - variance) * upper**variance) * draw()
        torch.testing.assert_close(found, z, atol=2e-4, rtol=1e-3)
        z = found
    torch.testing.assert_close(seen[-1], x, atol=1e-5, rtol=0)


def test_the_network_is_told_the_grid():
    config = SamplerConfig(spacing="trailing", steps=256)
    times = sampling_times(config, Objective(ObjectiveConfig(schedule="continuous_cosine")))
    torch.testing.assert_close(times, torch.arange(256, 0, -1) * 1000 / 256)
    assert sampling_times(config, Objective(ObjectiveConfig())).dtype == torch.int64


def test_dynamic_thresholding_pushes_saturated_samples_inwards():
    """Imagen, Section 2.3: the quantile becomes 1, and smaller values move with it."""

    class Loud(Oracle):
        def denoise(self, z_t, t, conditions, features):
            return 3 * conditions["truth"]

    truth, z = run("continuous_cosine", Loud(), solver="ddim", steps=3, dynamic_threshold=1.0)
    torch.testing.assert_close(
        z, truth / truth.abs().amax((1, 2, 3), keepdim=True), atol=1e-5, rtol=0
    )
    _, clipped = run("continuous_cosine", Loud(), solver="ddim", steps=3, clip_sample=1.0)
    torch.testing.assert_close(clipped, (3 * truth).clamp(-1, 1), atol=1e-5, rtol=0)
