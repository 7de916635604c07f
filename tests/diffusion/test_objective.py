"""Objective against diffusers' schedulers (all timesteps) and against its own algebra."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from vton.config import ObjectiveConfig
from vton.diffusion.objective import Objective

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def latents(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        count, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_and_velocity_equal_diffusers_at_every_timestep(schedule, zero_snr):
    config = ObjectiveConfig(
        schedule=schedule, zero_terminal_snr=zero_snr, prediction="v_prediction"
    )
    reference = DDPMScheduler(
        beta_schedule=schedule, beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=zero_snr
    )
    objective, t = Objective(config), torch.arange(1000)
    x0, eps = latents(1000), latents(1000, 1)
    torch.testing.assert_close(
        objective.add_noise(x0, eps, t), reference.add_noise(x0, eps, t), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        objective.target(x0, eps, t), reference.get_velocity(x0, eps, t), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_snr_weights_equal_diffusers_at_every_timestep(schedule, prediction):
    """To 1e-6 of each value: float32's rounding in two formulas over one table."""
    config = ObjectiveConfig(schedule=schedule, prediction=prediction, loss_weight="min_snr")
    reference = DDPMScheduler(beta_schedule=schedule, beta_start=0.00085, beta_end=0.012)
    objective, t = Objective(config), torch.arange(1000)
    snr = compute_snr(reference, t).double()
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[
        prediction
    ]  # as diffusers' training scripts
    torch.testing.assert_close(objective.snr(t).double(), snr, rtol=1e-6, atol=0)
    expected = snr.clamp(max=config.min_snr_gamma) / divisor
    torch.testing.assert_close(objective.weight(t).double(), expected, rtol=1e-6, atol=0)


def test_snr_weights_at_a_terminal_snr_of_zero():
    """Nothing is left to learn of the clean sample; all of the noise."""
    last = torch.tensor([999])
    for prediction, weight in (("epsilon", 1.0), ("v_prediction", 0.0), ("sample", 0.0)):
        config = ObjectiveConfig(
            prediction=prediction, loss_weight="min_snr", zero_terminal_snr=True
        )
        assert Objective(config).weight(last).tolist() == [weight]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_gives_the_clean_sample_and_no_loss(prediction):
    objective = Objective(ObjectiveConfig(prediction=prediction))
    x0, eps, t = latents(4), latents(4, 1), torch.tensor([0, 10, 500, 999])
    z_t, target = objective.add_noise(x0, eps, t), objective.target(x0, eps, t)
    torch.testing.assert_close(objective.clean(z_t, t, target), x0, atol=1e-4, rtol=0)
    torch.testing.assert_close(objective.noise(z_t, t, target), eps, atol=1e-4, rtol=0)
    assert objective.loss(target, objective.noised(x0, eps, t)).abs().max() == 0
    assert (
        objective.loss(target + 1, objective.noised(x0, eps, t)) - objective.weight(t)
    ).abs().max() < 1e-5


def test_clean_equals_the_prediction_inside_ddim():
    objective = Objective(ObjectiveConfig())
    solver = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    solver.set_timesteps(1000)
    z_t, eps = latents(1).float(), latents(1, 1).float()
    expected = solver.step(eps, 700, z_t).pred_original_sample
    torch.testing.assert_close(
        objective.clean(z_t, torch.tensor([700]), eps), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_means_the_same_in_every_prediction_type(prediction):
    """min(SNR, 5) on the clean sample's error, whatever the network predicts (arXiv 2303.09556,
    Section 3.4).
    """
    objective = Objective(ObjectiveConfig(prediction=prediction, loss_weight="min_snr"))
    x0, eps, t = latents(5), latents(5, 1), torch.tensor([1, 100, 400, 700, 990])
    z_t = objective.add_noise(x0, eps, t)
    wrong = objective.target(x0, eps, t) + 0.1
    clean_error = ((objective.clean(z_t, t, wrong) - x0) ** 2).flatten(1).mean(1)
    abar = objective.alphas_cumprod[t].double()
    expected = (abar / (1 - abar)).clamp(max=5) * clean_error
    torch.testing.assert_close(
        objective.loss(wrong, objective.noised(x0, eps, t)).double(), expected, rtol=2e-3, atol=0
    )


def test_timestep_power_moves_draws_towards_noise():
    u = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    uniform = Objective(ObjectiveConfig()).timesteps(u)
    noisy = Objective(ObjectiveConfig(timestep_power=2.0)).timesteps(u)
    assert uniform.min() >= 0 and noisy.max() <= 999
    assert abs(uniform.float().mean() - 499.5) < 15 and abs(noisy.float().mean() - 666) < 15


@pytest.mark.parametrize("schedule", ["scaled_linear", "continuous_cosine"])
def test_a_network_of_rectified_flow_fits_in_as_the_documentation_says(schedule):
    """What docs/architectures.md makes of its velocity is v."""
    page = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
    found = {}
    exec(re.search(r"```python\n(def denoise.*?)```", page.read_text(), re.DOTALL)[1], found)
    objective = Objective(ObjectiveConfig(schedule=schedule, prediction="v_prediction"))
    t, x0, eps = objective.at(torch.linspace(0, 1, 9)), latents(9), latents(9, 1)

    def transformer(z, sigma, _):
        sigma = sigma[:, None, None, None]
        torch.testing.assert_close(z, (1 - sigma) * x0 + sigma * eps)
        return eps - x0

    module = SimpleNamespace(objective=objective, transformer=transformer)
    prediction = found["denoise"](module, objective.add_noise(x0, eps, t), t, {}, {})
    torch.testing.assert_close(prediction, objective.target(x0, eps, t))
