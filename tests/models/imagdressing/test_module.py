"""IMAGDressing-v1 behind the contract: what a batch becomes, what is dropped, what is trained."""

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file

from tests.batches import random_batch, tiny_module
from tests.models.imagdressing.small import faceid, randomised
from vton.config import ConfigError, load
from vton.errors import UserError
from vton.models.imagdressing.building import build_control
from vton.models.imagdressing.config import ControlConfig
from vton.models.imagdressing.module import painted_cells
from vton.registry import module_class


def tiny(*overrides: str):
    return randomised(tiny_module("imagdressing", *overrides), 1)


def rows_of(part):
    """How many rows each call of a network gets, as it is called."""
    calls = []
    part.register_forward_hook(lambda module, arguments, output: calls.append(len(arguments[0])))
    return calls


def test_training_drops_image_text_both_or_everything():
    model = tiny("model.dropout={image: 0.2, text: 0.2, both: 0.2}", "model.condition_dropout=0.2")
    batch = random_batch(5)
    with torch.no_grad():
        full = model.condition(batch)
        some = model.training_condition(batch, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))

    def kept(name: str) -> list[bool]:
        return [torch.allclose(some[name][row], full[name][row], atol=1e-4) for row in range(5)]

    # The first layers lie before any cross-attention, so that they see no text.
    last_keys = [name for name in full if name.startswith("k.")][-1]
    assert kept("text") == [True, False, False, False, True]
    assert kept(last_keys) == [False, True, False, True, True]
    assert some["garment_scale"].tolist() == [1, 1, 1, 0, 1]
    empty = model.read_text([""])[0]
    assert all(torch.allclose(some["text"][row], empty, atol=1e-5) for row in (1, 2, 3))


def test_the_dropped_image_is_clips_mean_colour_and_the_vae_branch_stays():
    model, batch = tiny(), random_batch(1)
    seen = []
    model.clip.tower.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    taken = []
    model.garment_unet.conv_in.register_forward_pre_hook(
        lambda module, arguments: taken.append(arguments[0])
    )
    model.training_condition(batch, torch.tensor([0.01]))
    assert not seen[0].any() and torch.equal(taken[0], model.codec.encode(batch.garment))


def test_one_garment_pass_per_garment():
    model, batch = tiny(), random_batch(4)
    batch.garment = batch.garment[[0, 1, 0, 1]]
    batch.garment_id = [batch.garment_id[row] for row in (0, 1, 0, 1)]
    calls = rows_of(model.garment_unet.conv_in)
    model.generate(batch)
    assert calls == [2]
    # Row 0 sees no CLIP picture of its garment.
    model.training_condition(batch, torch.tensor([0.01, 0.9, 0.9, 0.9]))
    assert calls == [2, 3]


def test_equal_prompts_are_read_once():
    model = tiny("model.prompt_suffix=best quality", "model.negative_prompt=bad")
    read = []
    text = model.text.forward
    model.text.forward = lambda prompts: read.append(prompts) or text(prompts)
    model.condition(random_batch(3))
    assert read == [["model is wearing a shirt, best quality", "bad"]]


def test_the_24_tensors_behind_the_last_tap_are_not_trained():
    model = module_on_meta("model=imagdressing", "preset=paper")
    trained = {id(p) for group in model.trained_parameters() for p in group["params"]}
    left_out = [name for name, p in model.named_parameters() if id(p) not in trained]
    assert len(left_out) == 24 and all(name.startswith("garment_unet.") for name in left_out)
    assert {name for name, _ in model.named_children()} == {"garment_unet", "projector", "adapter"}


def module_on_meta(*overrides: str):
    from vton.cost.meta import on_meta

    return on_meta(load(*overrides))


def test_controlnets_take_part_in_training_by_configuration():
    frozen = ("model.inpaint.trained=false", "model.inpaint.in_training=false")
    model, batch = tiny(*frozen, "model.pose.enabled=true", "sampler.steps=2"), random_batch(2)
    calls = {name: rows_of(control.net) for name, control in model.denoiser.controls.items()}
    model.training_step(batch, 0)
    assert calls == {"inpaint": [], "pose": []}
    model.generate(batch)
    assert calls == {"inpaint": [2, 2], "pose": [2, 2]}
    with pytest.raises(ConfigError, match="in_training=true"):
        load("model=imagdressing", "preset=tiny", "model.inpaint.in_training=false")


def test_try_on_keeps_the_surroundings_and_knows_nothing_of_the_old_garment():
    model, batch = tiny().eval(), random_batch(2)
    known = model.denoiser.known(model.condition(batch))
    other = random_batch(2)
    other.person = other.person * 0
    assert torch.equal(model.generate(batch), model.generate(other))
    cells = known.mask.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert (cells >= batch.agnostic_mask).all()
    kept = (1 - known.mask).expand_as(known.latents).bool()
    assert torch.equal(known.latents[kept], model.codec.encode(batch.person)[kept])
    without = tiny("model.inpaint={enabled: false, trained: false}")
    assert model.denoiser.known(without.condition(batch)) is None


def test_a_latent_cell_with_one_masked_pixel_is_painted():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 5] = 1
    assert painted_cells(mask, (2, 2))[0, 0].tolist() == [[0, 1], [0, 0]]


def test_the_control_picture_is_as_much_larger_as_the_codec_says(tmp_path):
    assert tiny().denoiser.controls["inpaint"].factor == 4
    unet = tiny().unet
    assert build_control(ControlConfig(), unet, 1, "model.pose").factor == 1
    with pytest.raises(ConfigError, match=r"model\.pose\.embedding has 4 widths.*factor is 16"):
        build_control(ControlConfig(), unet, 16, "model.pose")
    halving_once = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    halving_once.save_pretrained(tmp_path)
    pretrained = ControlConfig(pretrained=str(tmp_path))
    with pytest.raises(ConfigError, match="takes pictures of 2 times"):
        build_control(pretrained, unet, 4, "model.pose")
    assert build_control(pretrained, unet, 2, "model.pose").factor == 2


def test_a_control_net_starts_at_zero_unless_it_is_trained_along_from_scratch():
    unet = tiny().unet
    trained = ControlConfig(enabled=True, in_training=True, trained=True)
    for fresh, config in ((True, trained), (True, ControlConfig(enabled=True)), (False, trained)):
        control = build_control(config, unet, 4, "model.pose", fresh=fresh)
        outputs = [
            *control.net.controlnet_down_blocks,
            control.net.controlnet_mid_block,
            control.embedding.conv_out,
        ]
        nonzero = [bool(layer.weight.any()) for layer in outputs]
        assert nonzero == [fresh and config.trained] * len(outputs)


def test_faces_by_configuration(tmp_path):
    plain, batch = tiny().eval(), random_batch(2)
    face = faceid(plain.unet)
    clip_width, context = plain.clip.width, plain.unet.config.cross_attention_dim
    face.image_proj = type(face.image_proj)(12, 24, 4, context, perceiver(clip_width, context))
    save_file(randomised(face, 3).state_dict(), tmp_path / "face.safetensors")
    for person in batch.person_id:
        tensors = {"id_embeds": torch.randn(12), "clip_hidden": torch.randn(5, clip_width)}
        save_file(tensors, tmp_path / f"{person}.safetensors")
    settings = (
        f"model.face.weights={tmp_path}/face.safetensors",
        f"model.face.embeddings={tmp_path}",
    )
    model = tiny(*settings).eval()
    assert (model.generate(batch) - plain.generate(batch)).abs().max() > 1e-3
    model.compute_in("bf16")
    assert model.generate(batch).isfinite().all()
    scales = ("model.face.scale=0", "model.face.self_lora=0", "model.face.cross_lora=0")
    off = tiny(*settings, *scales).eval()
    assert (off.generate(batch) - plain.generate(batch)).abs().max() < 1e-5
    (tmp_path / f"{batch.person_id[0]}.safetensors").unlink()
    with pytest.raises(UserError, match=f"No weights at .*{batch.person_id[0]}"):
        model.generate(batch)
    with pytest.raises(ConfigError, match=r"model\.face\.embeddings"):
        load("model=imagdressing", settings[0])


def perceiver(clip_width: int, context: int):
    from vton.models.resampler import Perceiver

    return Perceiver(context, 1, 1, 64, clip_width, context)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.text.width=512", r"model\.unet\.context=768 and model\.text\.width=512"),
        ("model.garment_unet.layers=1", r"model\.garment_unet\.layers=1 must equal"),
        ("model.dropout.image=0.95", "sum up to 1.05"),
        ("model.pose.start=0.9 model.pose.end=0.2", r"start=0\.9 and end=0\.2"),
    ],
)
def test_settings_that_contradict_each_other(override, expected):
    with pytest.raises(ConfigError, match=expected):
        load("model=imagdressing", "preset=paper", *override.split())


def test_the_paper_trains_with_zero_terminal_snr_and_samples_without():
    config = load("model=imagdressing", "preset=paper")
    assert config.objective.zero_terminal_snr and config.sampler.zero_terminal_snr is False
    assert config.objective.noise_offset == 0.05 and config.data.size == (640, 512)
    assert module_class("imagdressing")
