"""What is special about Leffa's module: dropout, exact reuse, the one reference pass."""

from dataclasses import replace

import pytest
import torch

from tests.batches import random_batch, randomised, tiny_module
from vton.data.sample import DataError
from vton.diffusion.solvers import sampling_times
from vton.models.unet import execution_order


def test_the_generative_unet_reads_mask_person_and_the_densepose_picture_itself():
    module, batch = tiny_module("leffa"), random_batch(2)
    conditions = module.condition(batch)
    x = module.denoiser.unet_input(torch.zeros(2, *module.latent_shape()), conditions)
    channels = module.codec.channels
    assert x.shape[1] == 2 * channels + 4
    factor = module.codec.factor
    assert torch.equal(x[:, -3:], batch.densepose[..., ::factor, ::factor])
    assert torch.equal(x[:, channels], batch.agnostic_mask[:, 0, ::factor, ::factor])


def test_without_densepose_the_error_says_what_to_set():
    module = tiny_module("leffa")
    with pytest.raises(DataError, match=r"data\.densepose=true"):
        module.condition(replace(random_batch(1), densepose=None))


def test_rows_without_garment_share_one_reference_pass_and_read_its_features():
    module = randomised(tiny_module("leffa"))
    conditions = module.condition(random_batch(3))
    null = module.denoiser.unconditional(conditions)
    t = torch.full((3,), 400)
    features = module.denoiser.garment_features(null, t)
    assert features["row"].tolist() == [0, 0, 0] and len(features["0"]) == 1
    assert features["0"].abs().max() > 0
    assert module.wearing(conditions).all() and not module.wearing(null).any()
    each_t = module.denoiser.garment_features(null, torch.tensor([1, 2, 1]))
    assert each_t["row"].tolist() == [0, 1, 0]


def test_garments_are_read_once_however_many_wear_them():
    module, batch = randomised(tiny_module("leffa")), random_batch(3)
    batch.garment[2] = batch.garment[0]
    batch.garment_id[2] = batch.garment_id[0]
    conditions = module.condition(batch)
    t = torch.full((3,), 400)
    features = module.denoiser.garment_features(conditions, t)
    assert features["row"].tolist() == [0, 1, 0] and len(features["0"]) == 2
    z = torch.randn(3, *module.latent_shape(), generator=torch.Generator().manual_seed(0))
    together = module.denoiser.denoise(z, t, conditions, features)
    for row in range(3):
        alone = {name: tensor[row : row + 1] for name, tensor in conditions.items()}
        features = module.denoiser.garment_features(alone, t[:1])
        single = module.denoiser.denoise(z[row : row + 1], t[:1], alone, features)
        torch.testing.assert_close(single[0], together[row], atol=1e-5, rtol=0)


def test_one_reference_pass_serves_all_steps_where_asked_and_only_in_sampling(monkeypatch):
    steps = ("sampler.steps=3", "sampler.guidance=2.0")
    module = randomised(tiny_module("leffa", *steps, "model.reference_once=true"))
    times = []
    read = module.denoiser.read_garments
    monkeypatch.setattr(
        module.denoiser, "read_garments", lambda c, t: times.append(t.tolist()) or read(c, t)
    )
    batch = random_batch(2)
    middle = sampling_times(module.config.sampler, module.objective)[1].item()
    picture = module.eval().generate(batch)
    assert times == [[middle] * 2] * 2  # with the garments, and without
    times.clear()
    module.train().training_step(batch, 0)
    assert len(times) == 1 and times[0] != [middle] * 2
    module.config.model.reference_once = False
    assert (module.eval().generate(batch) - picture).abs().max() > 1e-4  # an approximation


def test_cross_attention_is_the_normalised_stream():
    """Its weights change nothing; dropping the branch altogether does."""
    module, batch = randomised(tiny_module("leffa")).eval(), random_batch(1)
    before = module.generate(batch)
    for unet in (module.unet, module.reference_unet):
        for name in execution_order(unet):
            for parameter in unet.get_submodule(f"{name}.attn2").parameters():
                parameter.data.fill_(float("nan"))
    assert torch.equal(module.generate(batch), before)
    for name in execution_order(module.unet):
        norm = module.unet.get_submodule(f"{name}.norm2")
        norm.weight.data.zero_()
        norm.bias.data.zero_()
    assert (module.generate(batch) - before).abs().max() > 1e-3
