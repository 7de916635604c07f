"""What makes StableVITON: what its blocks start as, where gradients go, the attention loss."""

from dataclasses import replace

import pytest
import torch

from tests.batches import random_batch, randomised, tiny_module
from vton.config import ConfigError, load
from vton.data.sample import DataError
from vton.models.attention import record_attention
from vton.models.stableviton.losses import attention_variation, garment_cells
from vton.models.stableviton.module import keep_mask
from vton.models.stableviton.network import attended_centres, without_effect

LOSS = (
    "model.attention_loss.weight=0.5",
    "model.attention_loss.blocks=[1]",
)


def test_a_fresh_module_ignores_the_garments_features():
    """All of it starts at zero: the hint, the blocks' last layers, their convolutions."""
    module, batch = tiny_module("stableviton").eval(), random_batch(2)
    other = replace(batch, garment=batch.garment.flip(0))
    conditions, others = module.condition(batch), module.condition(other)
    others["context"] = conditions["context"]
    z, t = torch.randn(2, *module.latent_shape()), torch.tensor([3, 900])
    prediction = module.denoiser.denoise(z, t, conditions, {})
    assert torch.equal(prediction, module.denoiser.denoise(z, t, others, {}))
    randomised(module)
    prediction = module.denoiser.denoise(z, t, conditions, {})
    assert not torch.equal(prediction, module.denoiser.denoise(z, t, others, {}))


def test_guidance_drops_the_token_and_keeps_the_hint():
    module, batch = tiny_module("stableviton"), random_batch(2)
    conditions = module.condition(batch)
    null = module.denoiser.unconditional(conditions)
    changed = [name for name in null if not torch.equal(null[name], conditions[name])]
    assert changed == ["context"]
    assert torch.equal(null["context"][1:], module.token.learnable_vector.detach())


def test_gradients_pass_the_unets_encoder_half_where_asked():
    """As published neither it nor what precedes it in the UNet gets one, whatever is trained."""
    for passes in (False, True):
        module = tiny_module("stableviton", f"model.encoder_gradients={str(passes).lower()}")
        randomised(module).training_step(random_batch(2), 0).backward()
        gradients = {name: p.grad is not None for name, p in module.unet.named_parameters()}
        assert gradients["conv_in.weight"] == passes
        assert gradients["mid_block.resnets.0.conv1.weight"] == passes
        assert gradients["up_blocks.0.resnets.0.conv1.weight"]


def test_one_token_leaves_queries_and_keys_nothing_to_choose():
    module = randomised(tiny_module("stableviton")).eval()
    batch, pictures = random_batch(1), []
    for amount in (0, 1):
        with torch.no_grad():
            for network in (module.unet, module.encoder):
                for name, parameter in network.named_parameters():
                    if without_effect(name):
                        parameter.add_(amount)
        pictures.append(module.generate(batch))
    torch.testing.assert_close(*pictures, atol=1e-5, rtol=0)


def test_the_spatial_encoder_may_see_the_garment_alone():
    """Then its features are computed once per timestep, and do not change with z_t."""
    module = randomised(tiny_module("stableviton", "model.encoder_input=garment"))
    conditions, t = module.condition(random_batch(2)), torch.tensor([5, 5])
    features = module.denoiser.garment_features(conditions, t)
    assert [tuple(x.shape[2:]) for x in features.values()] == [(16, 12)] * 2 + [(8, 6)] * 2
    assert tiny_module("stableviton").denoiser.garment_features(conditions, t) == {}


def test_the_mask_says_what_is_known():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :3] = 1
    keep = keep_mask(mask, (2, 2))
    # The mean of the two middle columns of each cell: 1, 2 and 5, 6.
    assert keep.tolist() == [[[[0.0, 1.0], [0.0, 1.0]]]]
    mask[..., 2] = 0
    assert keep_mask(mask, (2, 2))[0, 0, 0].tolist() == [0.5, 1.0]


def test_sampling_may_start_from_the_noised_person():
    batch = random_batch(2)
    pictures = {}
    for start in ("noise", "person", "agnostic"):
        module = randomised(tiny_module("stableviton", f"model.start={start}")).eval()
        conditions = module.condition(batch)
        latents = module.denoiser.start(conditions)
        if start == "noise":
            assert latents is None
        else:
            assert torch.equal(latents, module.codec.encode(getattr(batch, start)))
        pictures[start] = module.generate(batch)
    assert not torch.equal(pictures["noise"], pictures["person"])


# ---- attention ----


def test_centres_are_the_mean_place_of_what_is_attended_to():
    """One head sees cell (2, 1) of a grid of 3 x 4 alone, the other all cells alike."""
    q = torch.zeros(1, 2, 1, 12)
    q[0, 0, 0, 2 * 4 + 1] = 1e4
    k = torch.eye(12).expand(1, 2, 12, 12)
    centres = attended_centres(q, k, (3, 4))
    torch.testing.assert_close(centres, torch.tensor([[[(2 + 1) / 2, (1 + 1.5) / 2]]]))


def test_variation_counts_pairs_inside_the_garment():
    centres = torch.arange(12.0).view(1, 3, 4, 1).expand(1, 3, 4, 2)  # 4 a row down, 1 to the right
    inside = torch.zeros(1, 3, 4, dtype=torch.bool)
    assert attention_variation(centres, inside) == 0  # not 0 / 0
    inside[0, 0, :2] = True
    assert attention_variation(centres, inside) == 2  # one horizontal pair, |1| + |1|
    inside[0, 1, :2] = True
    assert attention_variation(centres, inside) == 8 + 2
    two = torch.cat([centres, 2 * centres]), torch.cat([inside, torch.zeros_like(inside)])
    assert attention_variation(*two) == 8 + 2  # counts and sums over the whole batch


def test_the_worn_garment_on_the_queries_grid():
    worn = torch.zeros(1, 1, 128, 96)
    worn[..., 64:, :48] = 1
    cells = garment_cells(worn, (16, 12))
    assert cells[0, 8:, :6].all() and cells.sum() == 8 * 6


def test_the_attention_loss_acts_from_its_step_on():
    batch = random_batch(2)
    module = randomised(tiny_module("stableviton", *LOSS))
    module.training_step(batch, 0)
    assert module.last_losses["attention"] > 0
    attention = module.garment_blocks["1"].transformer.transformer_blocks[0].attn2
    with_loss = gradient_of(module, attention.to_q.weight, batch)
    late = randomised(tiny_module("stableviton", *LOSS, "model.attention_loss.start_step=1"))
    late.training_step(batch, 0)
    assert "attention" not in late.last_losses
    attention = late.garment_blocks["1"].transformer.transformer_blocks[0].attn2
    assert not torch.equal(gradient_of(late, attention.to_q.weight, batch), with_loss)


def gradient_of(module, parameter, batch):
    module.zero_grad()
    module.training_step(batch, 0).backward()
    return parameter.grad.clone()


def test_the_attention_loss_is_the_same_under_gradient_checkpointing():
    losses, gradients = [], []
    for overrides in ((), ("model.unet.gradient_checkpointing=true",)):
        module = randomised(tiny_module("stableviton", *LOSS, *overrides)).train()
        losses.append(module.training_step(random_batch(2), 0))
        losses[-1].backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    torch.testing.assert_close(*gradients, atol=5e-5, rtol=0)


def test_the_attention_loss_without_its_blocks_or_its_mask_is_an_error():
    module = tiny_module("stableviton", *LOSS, "model.attention_loss.above_tokens=700")
    with pytest.raises(ConfigError, match=r"none of its blocks=\[1\].*found \{1: 48\}"):
        module.training_step(random_batch(1), 0)
    module = tiny_module("stableviton", *LOSS)
    with pytest.raises(DataError, match=r"set model\.attention_loss\.weight=0"):
        module.training_step(replace(random_batch(1), truth_garment_mask=None), 0)


def test_attention_over_the_garment_is_recorded():
    module, batch = tiny_module("stableviton"), random_batch(1)
    with record_attention() as maps, torch.no_grad():
        t = torch.tensor([500])
        z = torch.randn(1, *module.latent_shape())
        module.denoiser.denoise(z, t, module.condition(batch), {})
    ((size, weights),) = maps.means().items()
    assert size == (48, 48) and module.garment_places(48) == (8, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 48))
    # With a position code reading starts at a token's own place.
    assert weights[0].diagonal().mean() > 4 / 48


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["model.clip.pretrained=x"], r"model\.clip\.pretrained=x: .*use model\.pretrained"),
        (["model.pretrained=x"], r"model\.unet\.positions=0, not 2\.5"),
        (["model.levels=[true,false]"], r"model\.levels=\[True, False\]"),
        (["model.levels=[false,false,true]"], "false for the last"),
        (["model.garment=token", "model.attention_loss.weight=1"], "needs model.garment=cross"),
        (
            ["model.attention_loss.start_step=-1"],
            r"attention_loss\.start_step=-1 must be at least 0",
        ),
    ],
)
def test_settings_that_do_not_fit(overrides, match):
    with pytest.raises(ConfigError, match=match):
        load("model=stableviton", "preset=tiny", *overrides)
