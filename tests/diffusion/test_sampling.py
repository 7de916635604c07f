"""The sampling loop: guidance, what is computed how often, independence of batch and restart."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler

from vton.config import ConfigError, ObjectiveConfig, SamplerConfig, load
from vton.diffusion import noise
from vton.diffusion.denoiser import Known, Step
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import drawing, sample
from vton.diffusion.solvers import check_scheduler, make_solver, sampling_times
from vton.errors import UserError

CPU = torch.device("cpu")


class Oracle:
    """Knows the clean sample: predicts it exactly, or zero for the unconditional branch. Counts its
    calls.
    """

    def __init__(self):
        self.passes = self.feature_calls = 0

    def garment_features(self, conditions, t, step):
        self.feature_calls += 1
        return {}

    def denoise(self, z_t, t, conditions, features):
        self.passes += len(z_t)
        return conditions["truth"]

    def unconditional(self, conditions):
        return {"truth": torch.zeros_like(conditions["truth"])}

    def known(self, conditions):
        return None

    def start(self, conditions):
        return None


def run(count=3, conditions=None, **settings):
    objective = Objective(ObjectiveConfig(prediction="sample"))
    truth = torch.randn(count, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    draws = [noise.generator(0, "sample", i) for i in range(count)]
    model = Oracle()
    z = sample(
        model,
        {"truth": truth},
        drawing((4, 6, 5), draws, CPU),
        SamplerConfig(**settings),
        objective,
    )
    return model, truth, z


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_solver_arrives_at_what_a_perfect_model_predicts(solver, spacing):
    _, truth, z = run(solver=solver, spacing=spacing, steps=8)
    # "leading" stops at t = 1 with alpha_bar below 1; the solvers of higher order extrapolate the
    # last step
    torch.testing.assert_close(z, truth, atol=0.15 if spacing == "leading" else 2e-2, rtol=0)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("schedule", ["scaled_linear", "continuous_cosine"])
def test_the_timesteps_of_training_arrive_too(solver, schedule):
    objective = Objective(
        ObjectiveConfig(schedule=schedule, prediction="sample", timestep_power=4.0)
    )
    truth = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    draws = [noise.generator(0, "sample", i) for i in range(2)]
    config = SamplerConfig(solver=solver, spacing="trained", steps=8)
    z = sample(Oracle(), {"truth": truth}, drawing((4, 6, 5), draws, CPU), config, objective)
    torch.testing.assert_close(z, truth, atol=2e-2, rtol=0)


def test_trained_spacing_goes_through_quantiles_of_the_trained_timesteps():
    """As many training examples lie between two steps as between any other two."""
    objective = Objective(ObjectiveConfig(timestep_power=4.0))
    times = sampling_times(SamplerConfig(spacing="trained", steps=4), objective)
    assert times.tolist() == [999, 930, 840, 706]  # 1000 (k / 4)^(1/4) - 1
    drawn = objective.timesteps(torch.arange(1000) / 1000)
    for later, earlier in itertools.pairwise(times.tolist()):
        between = (drawn > earlier) & (drawn <= later)
        assert between.sum().item() == pytest.approx(250, abs=5)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_trained_spacing_of_uniform_timesteps_is_trailing(solver):
    even, trained = [
        run(solver=solver, spacing=spacing, steps=8, guidance=1.5)[2]
        for spacing in ("trailing", "trained")
    ]
    torch.testing.assert_close(trained, even, atol=1e-4, rtol=1e-4)


def test_a_step_between_trained_timesteps_is_ddims():
    """DDIM, arXiv 2010.02502, Eq. 12 without noise, from t = 999 to 930 and on to 0."""
    objective = Objective(ObjectiveConfig(prediction="sample", timestep_power=4.0))
    z = noise.normal((4, 6, 5), [noise.generator(0, "sample", 0)], torch.empty(0))

    class Half(Oracle):
        def denoise(self, z_t, t, conditions, features):
            return 0.5 * z_t * (t / 1000).view(-1, 1, 1, 1)

    config = SamplerConfig(spacing="trained", steps=4)
    conditions = {"truth": torch.zeros(1, 4, 6, 5)}
    found = sample(Half(), conditions, lambda: z, config, objective)
    times = [999, 930, 840, 706]
    abar = [objective.alphas_cumprod[t].item() for t in times] + [1.0]
    for index, t in enumerate(times):
        x = 0.5 * z * (t / 1000)
        eps = (z - abar[index] ** 0.5 * x) / (1 - abar[index]) ** 0.5
        z = abar[index + 1] ** 0.5 * x + (1 - abar[index + 1]) ** 0.5 * eps
    torch.testing.assert_close(found, z, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("sampler.steps=100", "objective.timestep_power=16"), "too many"),
        (("sampler.zero_terminal_snr=true",), "zero_terminal_snr null"),
        (("sampler.solver=plms", "objective.prediction=epsilon"), "even steps"),
    ],
)
def test_what_trained_spacing_cannot_do_is_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        load("model=gardiff", "preset=tiny", "sampler.spacing=trained", *settings)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m", "unipc"])
def test_leading_steps_that_visit_the_last_timestep_are_those_of_the_solver(solver):
    """Of all numbers of steps: 500 of 1,000 start at t = 999, 30 at 958."""
    plain = load("preset=paper", f"sampler.solver={solver}", "sampler.spacing=leading")
    objective = Objective(plain.objective)
    for steps in (1, 2, 3, 30, 332, 333, 499, 500, 998):
        plain.sampler.steps = steps
        starts_at = int(make_solver(plain.sampler, objective).timesteps.max())
        assert plain.starts_at_last_timestep() == (starts_at == 999), steps
    rescaled = ("preset=paper", "objective.zero_terminal_snr=true", "sampler.steps=500")
    with pytest.raises(ConfigError, match=r"steps=500 starts where .* leaves pure noise"):
        load(*rescaled, "sampler.solver=ddim")


@pytest.mark.parametrize(
    ("solver", "published", "refused"),
    [
        ("ddim", {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}, ""),
        ("ddim", {"set_alpha_to_one": True}, "x: set_alpha_to_one=True is not what .*=False"),
        ("ddim", {"steps_offset": 0}, "steps_offset=0"),
        ("ddim", {"clip_sample": True}, "clip_sample=True"),
        ("ddim", {"thresholding": True}, "thresholding=True"),
        ("ddim", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
        ("ddim", {"prediction_type": "v_prediction"}, "prediction_type=v_prediction"),
        ("ddim", {"beta_end": 0.02}, "beta_end"),
        ("ddim", {"trained_betas": [0.1]}, "trained_betas"),
        # Read by other schedulers only, or without what makes them act.
        ("ddim", {"skip_prk_steps": False, "variance_type": "learned", "clip_sample_range": 3}, ""),
        ("ddpm", {"set_alpha_to_one": False, "sample_max_value": 3.0}, ""),
        ("ddpm", {"variance_type": "fixed_large"}, "variance_type"),
        ("plms", {"skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": True}, ""),
        ("plms", {"skip_prk_steps": False}, "skip_prk_steps"),
        ("dpmpp_2m", {"solver_order": 3}, "solver_order"),
        ("dpmpp_2m", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("unipc", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
    ],
)
def test_what_a_published_scheduler_does_otherwise_is_named(solver, published, refused):
    sampler, objective = SamplerConfig(solver=solver), Objective(ObjectiveConfig())
    if not refused:
        check_scheduler(published, sampler, objective, "x: ")
        return
    with pytest.raises(UserError, match=refused):
        check_scheduler(published, sampler, objective, "x: ")


def test_guidance_one_makes_one_pass_per_step_and_more_makes_two():
    assert run(steps=5)[0].passes == 3 * 5
    assert run(steps=5, guidance=2.0)[0].passes == 2 * 3 * 5


def test_guidance_interval_limits_the_second_pass():
    model, _, _ = run(steps=10, guidance=2.0, guidance_interval=(0.0, 0.5), spacing="trailing")
    assert 3 * 10 < model.passes < 2 * 3 * 10


def test_guidance_formula():
    """The null branch predicts 0, so w cond + (1 - w) uncond = w truth."""
    _, truth, z = run(steps=4, guidance=3.0, spacing="trailing")
    torch.testing.assert_close(z, 3 * truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_a_sample_does_not_depend_on_its_batch(solver):
    objective, settings = (
        Objective(ObjectiveConfig(prediction="epsilon")),
        SamplerConfig(solver=solver, steps=4),
    )

    class Blind(Oracle):
        def denoise(self, z_t, t, conditions, features):
            return 0.3 * z_t + conditions["truth"]

    truth = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(2))

    def draw(rows):
        draws = [noise.generator(7, "sample", i) for i in rows]
        return sample(
            Blind(), {"truth": truth[rows]}, drawing((2, 4, 4), draws, CPU), settings, objective
        )

    torch.testing.assert_close(draw([0, 1, 2])[1], draw([1])[0], atol=1e-6, rtol=0)


def test_ancestral_steps_equal_the_ddpm_scheduler():
    """The same noise through diffusers' DDPMScheduler, with clipping, which re-derives the
    direction.
    """
    from diffusers import DDPMScheduler

    objective = Objective(ObjectiveConfig())
    noises = iter(torch.randn(6, 2, 4, 6, 5, generator=torch.Generator().manual_seed(3)))
    seen = []
    config = SamplerConfig(solver="ddpm", steps=5, clip_sample=1.5)

    class Blind(Oracle):
        def denoise(self, z_t, t, conditions, features):
            return 0.9 * z_t

    sample(
        Blind(), {}, lambda: next(noises), config, objective, lambda step, eps, z: seen.append(z)
    )
    reference = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        clip_sample=True,
        clip_sample_range=1.5,
    )
    reference.set_timesteps(5)
    z, *steps = torch.randn(6, 2, 4, 6, 5, generator=torch.Generator().manual_seed(3))
    for t, noise_of_step, found in zip(reference.timesteps, steps, seen, strict=True):
        mean = reference.step(0.9 * z, t, z, generator=torch.Generator().manual_seed(0)).prev_sample
        drawn = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        z = mean + reference._get_variance(t) ** 0.5 * (noise_of_step - drawn)
        torch.testing.assert_close(found, z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_with_noise_equals_the_scheduler_of_stable_diffusions_files(eta):
    """Leading timesteps, which end at t = 1 and not at the clean sample."""
    config = SamplerConfig(solver="ddim", spacing="leading", steps=10, eta=eta)
    objective = Objective(ObjectiveConfig(prediction="epsilon"))
    scheduler = DDIMScheduler(
        beta_start=objective.config.beta_start,
        beta_end=objective.config.beta_end,
        beta_schedule=objective.config.schedule,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(config.steps)

    class Half(Oracle):
        def denoise(self, z_t, t, conditions, features):
            return 0.5 * z_t

    shape = (4, 6, 5)
    expected_draws = drawing(shape, [noise.generator(0, "eta")], CPU)
    z = expected_draws()
    for t in scheduler.timesteps:
        options = {"eta": eta, "variance_noise": expected_draws()} if eta else {}
        z = scheduler.step(0.5 * z, t, z, **options).prev_sample
    draws = drawing(shape, [noise.generator(0, "eta")], CPU)
    conditions = {"truth": torch.zeros(1, *shape)}
    torch.testing.assert_close(sample(Half(), conditions, draws, config, objective), z)


@pytest.mark.parametrize("settings", [{"solver": "ddpm"}, {"solver": "ddim", "eta": 1.0}])
def test_ancestral_steps_from_pure_noise_are_finite(settings):
    """Whatever the noise level they go to, 1 - abar_s - sigma^2 does not round to below zero."""
    objective = Objective(ObjectiveConfig(prediction="sample", zero_terminal_snr=True))
    config = SamplerConfig(steps=2, spacing="trailing", **settings)
    solver = make_solver(config, objective)
    start, coming = solver.timesteps
    assert solver.alphas_cumprod[start] == 0
    options = {"eta": 1.0, "variance_noise": torch.ones(1), "use_clipped_model_output": True}
    for abar in torch.rand(2000, generator=torch.Generator().manual_seed(0)):
        solver.alphas_cumprod[coming] = abar
        step = solver.step(torch.full((1,), 0.5), start, torch.ones(1), **options)
        expected = 0.5 * abar.sqrt() + (1 - abar).sqrt()
        torch.testing.assert_close(step.prev_sample, expected[None], atol=1e-3, rtol=0)


@pytest.mark.parametrize("schedule", ["scaled_linear", "continuous_cosine"])
def test_ancestral_steps_of_any_number_arrive(schedule):
    objective = Objective(
        ObjectiveConfig(
            schedule=schedule, prediction="sample", zero_terminal_snr=schedule == "scaled_linear"
        )
    )
    truth = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    for steps in range(1, 65):
        draws = drawing((4, 2, 2), [noise.generator(0, "steps", steps)], CPU)
        config = SamplerConfig(solver="ddpm", spacing="trailing", steps=steps)
        z = sample(Oracle(), {"truth": truth}, draws, config, objective)
        # diffusers ends at t = 0 instead of the clean sample where 1000 / steps rounds up.
        assert torch.allclose(z, truth, atol=0.15), steps


def test_noise_of_ddim_is_refused_for_other_solvers():
    with pytest.raises(ConfigError, match=r"sampler\.eta=0\.5.*solver=ddim"):
        SamplerConfig(solver="unipc", eta=0.5)


def test_known_latents_stay_outside_the_mask():
    """At the end exactly; on the way, noised by the start noise to the coming timestep."""
    objective = Objective(ObjectiveConfig(prediction="sample"))
    latents, mask = torch.full((1, 4, 6, 5), 2.0), torch.zeros(1, 1, 6, 5)
    mask[..., :3] = 1
    start = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(4))
    seen: list[tuple[Step, torch.Tensor]] = []

    class Inpainting(Oracle):
        def known(self, conditions):
            return Known(mask, latents)

    truth = {"truth": torch.zeros(1, 4, 6, 5)}
    config = SamplerConfig(steps=4, spacing="trailing")
    z = sample(
        Inpainting(),
        truth,
        lambda: start,
        config,
        objective,
        lambda step, x0, z: seen.append((step, z)),
    )
    outside = (mask == 0).expand_as(z)
    assert torch.equal(z[outside], latents[outside]) and z[~outside].abs().max() < 0.1
    expected = objective.add_noise(
        latents, start, torch.tensor([749])
    )  # after the first step of 999, 749, 499, 249
    torch.testing.assert_close(seen[0][1][outside], expected[outside])
    assert seen[-1][0] == Step(3, 4)


def test_plms_evaluates_the_second_timestep_twice_and_arrives():
    """Prediction epsilon: with the true noise every combination of predictions is the true one."""
    objective = Objective(ObjectiveConfig())
    truth = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    visited = []

    class Exact(Oracle):
        def denoise(self, z_t, t, conditions, features):
            visited.append(t[0].item())
            signal, sigma = objective.signal_and_noise(t, z_t)
            return (z_t - signal * conditions["truth"]) / sigma

    draws = [noise.generator(0, "plms", i) for i in range(2)]
    config = SamplerConfig(solver="plms", steps=5)
    z = sample(Exact(), {"truth": truth}, drawing((4, 6, 5), draws, CPU), config, objective)
    assert visited == [801, 601, 601, 401, 201, 1]
    torch.testing.assert_close(z, truth, atol=0.15, rtol=0)
    # Where the steps do not divide 1,000, StableVITON's README says how the public code differs.
    uneven = make_solver(SamplerConfig(solver="plms", steps=30), objective).timesteps.tolist()
    assert (len(uneven), uneven[0], uneven[-1]) == (31, 958, 1)


@pytest.mark.parametrize(
    "settings",
    [
        ("objective.prediction=sample",),
        ("objective.prediction=v_prediction", "objective.zero_terminal_snr=true"),
        ("objective.prediction=v_prediction", "sampler.zero_terminal_snr=true"),
        ("objective.prediction=epsilon", "sampler.clip_sample=1"),
        ("objective.prediction=epsilon", "sampler.dynamic_threshold=0.9"),
    ],
)
def test_what_plms_cannot_do_is_refused(settings):
    with pytest.raises(ConfigError, match="plms"):
        load("model=gardiff", "preset=tiny", "sampler.solver=plms", *settings)


def test_sampling_starts_from_noised_latents_where_a_model_asks_for_it():
    objective = Objective(ObjectiveConfig(prediction="sample"))
    latents = torch.full((1, 4, 6, 5), 3.0)
    eps = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(4))
    seen = []

    class Started(Oracle):
        def start(self, conditions):
            return latents

        def denoise(self, z_t, t, conditions, features):
            seen.append(z_t)
            return conditions["truth"]

    sample(Started(), {"truth": eps}, lambda: eps, SamplerConfig(steps=2), objective)
    assert torch.equal(seen[0], objective.add_noise(latents, eps, torch.tensor([999])))


def test_generators_are_functions_of_their_key():
    first, again, other = (
        noise.normal((4,), [noise.generator(0, "train", p)], torch.empty(0)) for p in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_no_two_of_10_000_streams_collide():
    """Of two seeds and two purposes, told apart by the first 62 bits of each."""
    keys = itertools.product((0, 1), ("train", "sample"), range(2_500))
    draws = [torch.randint(2**62, (), generator=noise.generator(*key)).item() for key in keys]
    assert len(set(draws)) == len(draws) == 10_000


def test_known_latents_from_the_start_meet_the_first_step_at_its_noise_level():
    objective, mask = Objective(ObjectiveConfig()), torch.zeros(1, 1, 6, 5)
    mask[..., :2] = 1
    latents, start = torch.randn(1, 4, 6, 5), torch.randn(1, 4, 6, 5)
    seen = {}
    for from_start in (False, True):

        class Fixed(Oracle):
            def denoise(self, z_t, t, conditions, features, from_start=from_start):
                seen.setdefault(from_start, []).append((z_t, t))
                return super().denoise(z_t, t, conditions, features)

            def known(self, conditions, from_start=from_start):
                return Known(mask, latents, from_start=from_start)

        sampler = SamplerConfig(solver="ddim", steps=4)
        sample(Fixed(), {"truth": latents}, lambda: start, sampler, objective)
    first, t = seen[True][0]
    expected = objective.add_noise(latents, start, t)
    torch.testing.assert_close(first, torch.where(mask > 0, start, expected))
    assert torch.equal(seen[False][0][0], start)
    torch.testing.assert_close(seen[True][1][0][..., 2:], seen[False][1][0][..., 2:])
