"""From batches to pictures: conditions, their noise and dropout, exact reuse, all stages."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.batches import random_batch, tiny_module
from vton.config import ConfigError, load
from vton.data.sample import DataError
from vton.diffusion import noise
from vton.diffusion.denoiser import Step
from vton.models.tryondiffusion.module import COCO_17, joints
from vton.runs.folder import RunFolder

TINY = (
    "model.base.widths=[8,16,16]",
    "model.base.blocks=[1,1,1]",
    "model.base.garment_blocks=[1,1,1]",
    "model.base.attention=[false,false,true]",
    "model.base.embedding=16",
    "model.base.pose_width=8",
    "model.base.sinusoid=8",
    "model.base.heads=2",
    "model.base.positions=2.5",
    "model.base.start_awake=false",
)
SIZE = (24, 16)


def tiny(*overrides):
    """The base stage in paper's manner, randomised: epsilon, guidance 2, every image noised."""
    torch.manual_seed(0)
    settings = (
        *TINY,
        "objective.prediction=epsilon",
        "sampler.guidance=2",
        "sampler.clip_sample=1",
        "sampler.steps=5",
        "model.augmentation.levels=[0,1]",
    )
    module = tiny_module("tryondiffusion", *settings, *overrides, size=SIZE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


class Calls:
    """How often, and on how many rows, a network has run."""

    def __init__(self, network):
        self.passes = self.rows = 0
        network.register_forward_hook(self.count)

    def count(self, network, arguments, output):
        self.passes, self.rows = self.passes + 1, self.rows + len(arguments[0])


def test_what_sampling_computes_and_how_often():
    """5 guided steps of 2 pictures: garments of 3 steps in a pass, poses and levels once."""
    module = tiny("model.garment_steps=3", "model.augmentation.garment=0.2")
    batch = random_batch(2, SIZE)
    garment, person = Calls(module.network.garment_unet), Calls(module.network.person_unet)
    pose = Calls(module.network.embedding.person)
    level = Calls(module.network.embedding.levels[0])
    first = module.generate(batch)
    assert (garment.rows, garment.passes) == (2 * 5 + 5, 2 + 2)
    assert (person.rows, person.passes) == (5 * 2 * 2, 5)
    assert (pose.rows, pose.passes) == (2 + 1, 2)
    assert (level.rows, level.passes) == (1, 1)
    again = module.generate(batch)
    assert (garment.rows, garment.passes) == (15 + 10, 4 + 2)  # the null branch from the table
    assert torch.equal(first, again)
    module.train()
    module.eval()
    module.generate(batch)
    assert garment.rows == 25 + 15
    with torch.no_grad():
        module.network.garment_unet.encoder.head.bias.add_(0.1)
    module.generate(batch)
    assert garment.rows == 40 + 15


def float64(batch):
    """For exact comparisons: at pure noise epsilon divides its rounding by a signal of 0.0006."""
    return batch.map_tensors(lambda x: x.double() if x.is_floating_point() else x)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.5)])
def test_reuse_changes_no_picture(interval):
    interval = f"sampler.guidance_interval={list(interval)}"
    fast = tiny("model.garment_steps=4", interval).double()
    slow = tiny("model.garment_steps=1", "model.null_table=false", interval).double()
    batch = float64(random_batch(2, SIZE))
    torch.testing.assert_close(fast.generate(batch), slow.generate(batch), atol=1e-5, rtol=0)
    torch.testing.assert_close(fast.generate(batch), slow.generate(batch), atol=1e-5, rtol=0)


@torch.no_grad()
def test_features_of_another_step_are_wrong():
    module, batch = tiny(), random_batch(2, SIZE)
    conditions = module.condition(batch)
    z, t, other = torch.randn(2, 3, *SIZE), torch.full((2,), 600.0), torch.full((2,), 400.0)
    denoiser = module.denoiser
    right = denoiser.denoise(z, t, conditions, denoiser.garment_features(conditions, t))
    stale = denoiser.denoise(z, t, conditions, denoiser.garment_features(conditions, other))
    assert (right - stale).abs().max() > 1e-4
    mixed = module.denoiser.garment_features(conditions, torch.tensor([600.0, 400.0]), Step(0, 5))
    for name, expected in module.denoiser.garment_features(conditions, t).items():
        torch.testing.assert_close(mixed[name][0], expected[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_null_branch_knows_nothing_of_its_sample():
    module = tiny()
    z, t = torch.randn(1, 3, *SIZE).expand(2, -1, -1, -1), torch.full((2,), 500.0)
    null = module.denoiser.unconditional(module.condition(random_batch(2, SIZE)))
    out = module.denoiser.denoise(z, t, null, module.denoiser.garment_features(null, t))
    torch.testing.assert_close(out[0], out[1], atol=1e-6, rtol=0)
    dropping = tiny("model.drop_levels=true", "model.augmentation.garment=0.3")
    null = dropping.denoiser.unconditional(dropping.condition(random_batch(1, SIZE)))
    assert null["levels"].abs().max() == 0


def test_all_conditions_go_together_or_none():
    module, batch = tiny("model.condition_dropout=0.5"), random_batch(3, SIZE)
    whole = module.training_condition(batch, torch.ones(3))
    null = module.denoiser.unconditional(whole)
    dropped = module.training_condition(batch, torch.tensor([0.4, 0.6, 0.1]))
    for name, tensor in dropped.items():
        for row, expected in enumerate((null, whole, null)):
            torch.testing.assert_close(tensor[row], expected[name][row], atol=1e-6, rtol=0)
    assert null["agnostic"].abs().max() == null["garment"].abs().max() == 0
    assert whole["garment"].abs().max() > 0
    assert torch.equal(null["levels"], whole["levels"])


def test_training_noise_levels_are_uniform_and_independent(monkeypatch):
    module, batch = tiny(), random_batch(1, SIZE)
    count = 400
    batch = batch[[0] * count]
    batch.position = list(range(count))
    levels = []
    monkeypatch.setattr(
        module, "with_noise", lambda image, level, draws: levels.append(level) or image
    )
    module.training_condition(batch, torch.ones(count))
    agnostic, garment = levels
    for level in (agnostic, garment):
        counts = torch.histc(level, 4, 0, 1)
        assert (counts - count / 4).abs().max() < 4 * (count * 3 / 16) ** 0.5
    assert abs(torch.corrcoef(torch.stack([agnostic, garment]))[0, 1]) < 4 / count**0.5


def test_augmentation_noise_follows_the_curve_and_pair():
    module = tiny("model.augmentation.agnostic=0.3", "model.augmentation.curve=cosine")
    batch = random_batch(2, SIZE)
    conditions, alone = module.condition(batch), module.condition(batch[[1]])
    assert torch.equal(conditions["garment"], batch.garment)  # level 0
    # The noise is the pair's, wherever it stands in a batch.
    assert torch.equal(conditions["agnostic"][1], alone["agnostic"][0])
    signal = torch.cos(torch.tensor(torch.pi / 2 * (0.3 + 0.008) / 1.008))
    eps = (conditions["agnostic"] - signal * batch.agnostic) / (1 - signal**2).sqrt()
    assert abs(eps.std() - 1) < 0.1 and abs(eps.mean()) < 0.1


def test_garments_are_segmented_and_blanks_filled():
    module, batch = tiny("model.garment_fill=1", "model.agnostic_fill=-1"), random_batch(1, SIZE)
    batch.garment_mask[..., :5] = 0
    conditions = module.condition(batch)
    assert (conditions["garment"][..., :5] == 1).all()
    assert torch.equal(conditions["garment"][..., 5:], batch.garment[..., 5:])
    painted = (batch.agnostic_mask > 0).expand_as(batch.agnostic)
    assert (conditions["agnostic"][painted] == -1).all()
    assert torch.equal(conditions["agnostic"][~painted], batch.agnostic[~painted])


def test_poses():
    keypoints = torch.rand(1, 18, 3)
    keypoints[..., 2] = (torch.arange(18) != 4).float()
    found = joints(keypoints, 17, visibility=True)
    assert found.shape == (1, 17, 3) and sorted([*COCO_17, 1]) == list(range(18))
    assert torch.equal(found[0, 10], torch.zeros(3))  # the right wrist, invalid in the data
    assert torch.equal(found[0, 9], keypoints[0, 7])  # the left one

    batch = random_batch(1, SIZE)
    assert tiny().garment_pose(batch).abs().max() == 0
    assert (tiny("model.garment_pose=constant").garment_pose(batch) == 0.5).all()


SR = (
    "model.sr256.widths=[8,16]",
    "model.sr256.blocks=[1,1]",
    "model.sr256.garment_blocks=[1,1]",
    "model.sr256.attention=[false,true]",
    "model.sr1024.widths=[8,16]",
    "model.sr1024.blocks=[1,1]",
    "model.crop_px=8",
)


@pytest.mark.parametrize(("stage", "factor"), [("sr256", 2), ("sr1024", 4)])
def test_stages_above_the_base_train_and_sample(stage, factor):
    module, batch = tiny(f"model.stage={stage}", *SR), random_batch(2, SIZE)
    module.train()
    loss = module.training_step(batch, 0)
    loss.backward()
    assert torch.isfinite(loss) and module.training_step(batch, 1) == loss
    module.eval()
    assert module.generate(batch).shape == (2, 3, *SIZE)
    lowres = torch.rand(2, 3, *(side // factor for side in SIZE)) * 2 - 1
    given = module.condition(replace(batch, lowres=lowres))["lowres"]
    torch.testing.assert_close(given, F.interpolate(lowres, SIZE, mode="bilinear"))
    with pytest.raises(ValueError, match="enlarges"):
        module.condition(replace(batch, lowres=batch.person))
    without = replace(batch, truth=None)
    with pytest.raises(DataError, match=f"model.stage={stage}"):
        module.condition(without)
    assert module.can_sample(batch) and not module.can_sample(without)
    assert module.can_sample(replace(without, lowres=lowres))


def test_the_low_resolution_picture_is_the_same_in_training_and_sampling():
    clean = ("model.augmentation.levels=[0,0]", "model.augmentation.lowres_levels=[0,0]")
    module, batch = tiny("model.stage=sr256", *SR, *clean), random_batch(2, SIZE)
    trained, sampled = module.training_condition(batch, torch.ones(2)), module.condition(batch)
    assert torch.equal(trained["lowres"], sampled["lowres"])
    assert not module.denoiser.unconditional(sampled)["lowres"].any()
    reduced = F.avg_pool2d(batch.person, 2)
    torch.testing.assert_close(sampled["lowres"], F.interpolate(reduced, SIZE, mode="bilinear"))


def test_noise_falls_on_the_low_resolution_picture_once_and_before_it_is_enlarged(monkeypatch):
    module = tiny("model.stage=sr256", *SR, "model.augmentation.lowres=0.4")
    batch = random_batch(2, SIZE)
    lowres = torch.rand(2, 3, *(side // 2 for side in SIZE)) * 2 - 1
    draws = [noise.generator(0, "augmentation", "lowres", "paired", pair) for pair in batch.pair_id]
    signal, sigma = module.objective.signal_and_noise(torch.tensor([400.0]), lowres)
    noisy = signal * lowres + sigma * noise.normal(lowres.shape[1:], draws, lowres)
    given = module.condition(replace(batch, lowres=lowres))
    torch.testing.assert_close(given["lowres"], F.interpolate(noisy, SIZE, mode="bilinear"))
    assert torch.equal(given["agnostic"], module.condition(batch)["agnostic"])
    shapes, noised = [], module.with_noise
    monkeypatch.setattr(
        module,
        "with_noise",
        lambda image, *rest: shapes.append(image.shape[-2:]) or noised(image, *rest),
    )
    module.generate(replace(batch, lowres=lowres))
    # Agnostic picture, garment and low-resolution picture, once for five guided steps.
    assert shapes == [SIZE, SIZE, lowres.shape[-2:]]


def test_the_low_resolution_picture_may_have_its_own_training_levels(monkeypatch):
    own = ("model.augmentation.levels=[0,0]", "model.augmentation.lowres_levels=[0.2,0.3]")
    module, batch, levels = tiny("model.stage=sr256", *SR, *own), random_batch(3, SIZE), []
    monkeypatch.setattr(
        module, "with_noise", lambda image, level, draws: levels.append(level) or image
    )
    module.training_condition(batch, torch.ones(3))
    agnostic, garment, lowres = levels
    assert not agnostic.any() and not garment.any() and lowres.min() >= 0.2 and lowres.max() <= 0.3
    assert len(lowres.unique()) == 3


@pytest.mark.parametrize(
    "choice", ["model.stage=base", "model.stage=sr1024", "model.warp_first=true"]
)
def test_what_modulates_learns_at_its_own_rate(choice):
    module = tiny_module(
        "tryondiffusion", *TINY, choice, "model.modulation_lr=0.25", "train.lr=0.01", size=(64, 48)
    )
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        modulates = any(part in name for part in (".film.", ".embedding.", ".time.", ".level."))
        if parameter.requires_grad:
            assert rates[id(parameter)] == (0.0025 if modulates else 0.01), name
    assert set(rates.values()) == {0.0025, 0.01}


def test_crops_are_parts_of_the_person_and_depend_on_position():
    module, batch = tiny("model.stage=sr1024", *SR), random_batch(2, SIZE)
    crop = module.training_view(batch).person
    assert crop.shape == (2, 3, 8, 8)
    windows = batch.person[1].unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert any(torch.equal(window, crop[1]) for window in windows)
    batch.position = [100, 101]
    assert not torch.equal(module.training_view(batch).person, crop)


def test_each_stage_has_its_own_settings_and_folder():
    stages = [
        load("model=tryondiffusion", "preset=paper", f"model.stage={stage}")
        for stage in ("base", "sr256", "sr1024")
    ]
    assert [stage.data.size for stage in stages] == [(128, 96), (256, 192), (1024, 768)]
    assert [stage.sampler.steps for stage in stages] == [256, 128, 32]
    schedules = [stage.objective.schedule for stage in stages]
    assert schedules == ["continuous_cosine", "continuous_cosine", "continuous_linear"]
    base, sr256, sr1024 = (str(RunFolder.of(stage).path) for stage in stages)
    assert base == "runs/tryondiffusion-synthetic-paper"
    assert (sr256, sr1024) == (f"{base}/sr256", f"{base}/sr1024")
    labels = [stage.model.label for stage in stages[:2]]
    assert labels == ["tryondiffusion", "tryondiffusion-sr256"]
    small = load("model=tryondiffusion", "model.stage=sr256", "data.size=[64,48]")
    assert small.data.size == (64, 48)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("codec.name=linear", "codec.name"),
        ("data.size=[20,20]", "data.size"),
        ("model.keypoints=25", "model.keypoints"),
        ("model.base.heads=5", "heads=5"),
        ("model.base.garment_map=block", "garment_map=block"),
        ("model.augmentation.levels=[0.5,0.1]", "model.augmentation.levels"),
        ("model.augmentation.lowres_levels=[0.5,2]", "model.augmentation.lowres_levels"),
        ("sampler.spacing=leading", "sampler.spacing"),
        ("objective.zero_terminal_snr=true", "objective.zero_terminal_snr"),
    ],
)
def test_bad_settings_are_one_clear_error(override, names):
    broken = (*TINY, "model.base.blocks=[1,1,3]") if "block" in override else ()
    size = (20, 20) if "size" in override else (64, 48)
    with pytest.raises(ConfigError, match=names.replace(".", r"\.")):
        tiny_module("tryondiffusion", *broken, override, size=size)
