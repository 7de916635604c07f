"""Published weights in and out, and the weights that training starts from, all on tiny random
folders.
"""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tests.batches import random_batch
from tests.models.idm_vton.published import PUBLISHED_SHAPE
from vton import registry
from vton.commands.exchange import export_run, import_run
from vton.config import CodecConfig, load
from vton.cost.meta import on_meta
from vton.errors import UserError
from vton.models.codecs import build_codec
from vton.models.encoders import text_encoder
from vton.models.hub_settings import unet_settings
from vton.models.idm_vton.building import (
    build_garment_net,
    build_tryon,
    load_image_prompt,
    widen_to_tryon,
)
from vton.models.idm_vton.checkpoint import (
    published_scheduler,
    read_published,
    write_garment_net,
    write_published,
)
from vton.models.unet import attention_names, build_unet, published_arguments
from vton.weights.pretrained import check_state


def test_full_size_keys_and_shapes():
    module = on_meta(load("model=idm_vton", "preset=paper"))
    state = module.tryon.unet.state_dict()
    with torch.device("meta"):
        stock = build_unet(module.config.model.unet, 13, 4, key="model.unet").state_dict()
    assert (len(state), len(set(state) - set(stock)), len(set(stock) - set(state))) == (
        1871,
        191,
        0,
    )
    assert sum(tensor.numel() for tensor in state.values()) == 2_991_238_468
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["conv_in.weight"] == (320, 13, 3, 3)
    image = {name: shape for name, shape in shapes.items() if ".processor." in name}
    assert all(
        name.endswith((".attn2.processor.to_k_ip.weight", ".attn2.processor.to_v_ip.weight"))
        for name in image
    )
    counted = {}
    for name, shape in image.items():
        key = (name.split(".attentions")[0], shape)
        counted[key] = counted.get(key, 0) + 1
    assert counted == {
        ("down_blocks.1", (640, 2048)): 8,
        ("down_blocks.2", (1280, 2048)): 40,
        ("mid_block", (1280, 2048)): 20,
        ("up_blocks.0", (1280, 2048)): 60,
        ("up_blocks.1", (640, 2048)): 12,
    }
    expected = {
        "latents": (1, 16, 1280),
        "proj_in.weight": (1280, 1280),
        "proj_in.bias": (1280,),
        "proj_out.weight": (2048, 1280),
        "proj_out.bias": (2048,),
        "norm_out.weight": (2048,),
        "norm_out.bias": (2048,),
    }
    for layer in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            expected |= {f"layers.{layer}.{norm}.{part}": (1280,) for part in ("weight", "bias")}
        expected |= {f"layers.{layer}.0.{part}.weight": (1280, 1280) for part in ("to_q", "to_out")}
        expected |= {
            f"layers.{layer}.0.to_kv.weight": (2560, 1280),
            f"layers.{layer}.1.1.weight": (5120, 1280),
        }
        expected |= {f"layers.{layer}.1.3.weight": (1280, 5120)}
    prefix = "encoder_hid_proj."
    assert {
        n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)
    } == expected
    garment = sum(p.numel() for p in module.frozen["garment_net"].parameters())
    assert garment == 2_562_218_244


@pytest.mark.parametrize("kind", ["safetensors", "bin", "half"])
def test_import_and_export_keep_every_byte(published_idm_vton, tmp_path, kind):
    folder, _ = published_idm_vton
    source = tmp_path / "idm"
    shutil.copytree(folder, source)
    weights = load_file(source / "unet/diffusion_pytorch_model.safetensors")
    if kind == "bin":
        (source / "unet/diffusion_pytorch_model.safetensors").unlink()
        torch.save(weights, source / "unet/diffusion_pytorch_model.bin")
    if kind == "half":
        weights = {name: tensor.half() for name, tensor in weights.items()}
        save_file(weights, source / "unet/diffusion_pytorch_model.safetensors")
    run = import_run("idm_vton", source, f"runs={tmp_path / 'runs'}", "data.size=[64,48]")
    export_run(run, tmp_path / "again")
    again = load_file(tmp_path / "again/unet/diffusion_pytorch_model.safetensors")
    assert again.keys() == weights.keys()
    for name, tensor in weights.items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor)
    for path in folder.rglob("*"):
        other = tmp_path / "again" / path.relative_to(folder)
        assert other.exists(), path
        if path.is_file() and path.parent.name != "unet":
            assert other.read_bytes() == path.read_bytes(), path


def test_an_imported_run_makes_the_same_pictures(published_idm_vton, tmp_path):
    folder, original = published_idm_vton
    run = import_run("idm_vton", folder, f"runs={tmp_path}", "data.size=[64,48]", "sampler.steps=2")
    config = run.load_config()
    assert (
        config.model.unet.widths == original.config.model.unet.widths
        and not config.model.garment_unet.trained
    )
    module = registry.module_class("idm_vton")(config, build_codec(config.codec))
    module.load_state_dict(load_file(run.weights))
    original.config.sampler = config.sampler
    original.objective = module.objective
    batch = random_batch(2)
    assert torch.equal(module.eval().generate(batch), original.eval().generate(batch))


def test_weights_alone_count_as_the_published_size(published_idm_vton, tmp_path):
    folder, original = published_idm_vton
    (tmp_path / "unet").mkdir()
    shutil.copy(folder / "unet/diffusion_pytorch_model.safetensors", tmp_path / "unet")
    with pytest.raises(UserError, match=r"put its config\.json there"):
        read_published(tmp_path)
    shutil.copy(folder / "unet/config.json", tmp_path / "unet")
    found = read_published(tmp_path)
    assert f"model.unet.widths={list(original.config.model.unet.widths)}" in found.settings
    assert not any(setting.startswith("model.garment_unet") for setting in found.settings)


def breaking(change):
    """A published folder after `change(folder)`."""

    def make(folder, tmp_path):
        shutil.copytree(folder, tmp_path / "broken")
        change(tmp_path / "broken")
        return tmp_path / "broken"

    return make


def garment_net_as_tryon(folder):
    shutil.copy(folder / "unet_encoder/diffusion_pytorch_model.safetensors", folder / "unet")


def truncated(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def edited(file, **changes):
    """A change of the JSON file of that name, for `breaking`."""

    def edit(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def without(file, name, **changes):
    """The same, with one field removed."""

    def remove(folder):
        edited(file, **changes)(folder)
        path = folder / file
        settings = json.loads(path.read_text())
        del settings[name]
        path.write_text(json.dumps(settings))

    return remove


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            garment_net_as_tryon,
            "holds no IDM-VTON TryonNet: its weights lack encoder_hid_proj.latents",
        ),
        (truncated, "not a readable safetensors file"),
        (edited("unet/config.json", act_fn="gelu"), "act_fn=gelu is not supported; expected silu"),
        (edited(SCHEDULER, thresholding=True), r"scheduler_config\.json: thresholding=True is not"),
        (edited(SCHEDULER, variance_type="learned"), "variance_type=learned is not"),
        (edited(SCHEDULER, trained_betas=[0.1] * 1000), "trained_betas="),
        (edited(SCHEDULER, beta_schedule="cosine"), r"scheduler_config\.json: cosine"),
        (
            without(SCHEDULER, "steps_offset", timestep_spacing="leading"),
            "steps_offset=0 is not .* steps_offset=1",
        ),
        (lambda folder: shutil.rmtree(folder / "vae"), "no config.json in vae"),
        (lambda folder: (folder / "unet/config.json").write_text("{"), "not a readable JSON file"),
        (lambda folder: shutil.rmtree(folder / "unet"), "holds no weights"),
    ],
)
def test_broken_folders_say_what_is_wrong(published_idm_vton, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_published(breaking(change)(published_idm_vton[0], tmp_path))


def test_what_changes_nothing_in_a_scheduler_is_no_error(published_idm_vton, tmp_path):
    """Fields that other schedulers read, fields of a later diffusers, and defaults left out."""

    def change(folder):
        more = {"use_karras_sigmas": True, "set_alpha_to_one": False, "of_a_later_version": 1}
        edited(SCHEDULER, clip_sample=True, clip_sample_range=2.0, **more)(folder)
        without(SCHEDULER, "rescale_betas_zero_snr")(folder)
        without("unet_encoder/config.json", "norm_eps")(folder)

    found = read_published(breaking(change)(published_idm_vton[0], tmp_path))
    assert {"sampler.clip_sample=2.0", "objective.zero_terminal_snr=false"} <= {*found.settings}


def test_an_export_holds_the_scheduler_and_the_tokenizers_that_the_run_has(
    published_idm_vton, tmp_path
):
    """All that diffusers and transformers have classes for loads as model_index.json says."""
    folder, module = published_idm_vton
    index = json.loads((folder / "model_index.json").read_text())
    for name, (library, class_name) in (item for item in index.items() if item[0][0] != "_"):
        if name != "unet":  # diffusers has no Resampler
            cls = getattr(importlib.import_module(library), class_name)
            loaded = cls.from_pretrained(folder / name)
            assert type(loaded).__name__ == class_name
    tokenizer = transformers.ByT5Tokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer("a red top").input_ids == module.part("text").tokenizer("a red top").input_ids
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler").config
    sampler = module.config.sampler
    assert scheduler.timestep_spacing == sampler.spacing
    assert (scheduler.clip_sample, scheduler.steps_offset) == (sampler.clip_sample > 0, 1)

    for name, value, match in (
        ("dynamic_threshold", 0.9, "thresholding=False is not .* thresholding=True"),
        ("ddpm_variance", 1.0, "variance_type=fixed_small"),
    ):
        other = replace(module.config, sampler=replace(sampler, **{name: value}))
        with pytest.raises(UserError, match=match):
            published_scheduler(other)


def test_a_file_of_another_model_is_refused(tmp_path):
    torch.save({"module": {}}, tmp_path / "imagdressing.pt")
    with pytest.raises(UserError, match=r"imagdressing\.pt is a file; .* diffusers folder"):
        read_published(tmp_path / "imagdressing.pt")


def test_a_codec_without_a_place_in_the_format_is_refused(published_idm_vton, tmp_path):
    config = replace(published_idm_vton[1].config, codec=CodecConfig(name="linear"))
    with pytest.raises(UserError, match=r"codec\.name=linear has no place"):
        write_published(tmp_path / "out", dict(published_idm_vton[1].state_dict()), config, {})
    assert not (tmp_path / "out").exists()


# ---- the weights that training starts from ----


@pytest.fixture(scope="module")
def settings():
    return load("model=idm_vton", "preset=tiny", *PUBLISHED_SHAPE).model


@pytest.mark.parametrize(("inputs", "kept"), [(4, 4), (9, 9), (13, 13)])
def test_the_first_layer_is_widened_with_zeros(inputs, kept):
    weight = torch.randn(8, inputs, 3, 3)
    wide = widen_to_tryon(weight, 4, "file")
    assert wide.shape == (8, 13, 3, 3)
    assert torch.equal(wide[:, :kept], weight) and not wide[:, kept:].any()


def test_a_first_layer_of_other_width_is_refused():
    with pytest.raises(
        UserError, match=r"file: conv_in\.weight has 12 input channels; expected 4 .* 9 .* or 13"
    ):
        widen_to_tryon(torch.zeros(8, 12, 3, 3), 4, "file")


def test_training_starts_from_an_inpainting_unet(settings, tmp_path):
    """Nine channels, and the seven averaging fields that the published base carries in its
    config.json.
    """
    base = build_unet(settings.unet, 9, 4, key="model.unet")
    base.save_pretrained(tmp_path / "unet")
    path = tmp_path / "unet/config.json"
    ema = (
        "decay",
        "inv_gamma",
        "min_decay",
        "optimization_step",
        "power",
        "update_after_step",
        "use_ema_warmup",
    )
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(ema, 1)))
    unet = replace(settings.unet, pretrained=str(tmp_path))
    tryon = build_tryon(replace(settings, unet=unet), channels=4, clip_width=64)
    own, given = tryon.unet.state_dict(), base.state_dict()
    assert torch.equal(own["conv_in.weight"][:, :9], given.pop("conv_in.weight"))
    assert all(torch.equal(own[name], tensor) for name, tensor in given.items())
    name = "mid_block.attentions.0.transformer_blocks.0.attn2."
    for of_image, of_text in (("to_k_ip", "to_k"), ("to_v_ip", "to_v")):
        text = own[f"{name}{of_text}.weight"]
        assert torch.equal(own[f"{name}processor.{of_image}.weight"], text)


def test_sdxls_configuration_has_null_for_switches_that_are_off(settings):
    """Those of stabilityai/stable-diffusion-xl-base-1.0/unet/config.json that are null there."""
    arguments = dict(build_unet(settings.unet, 13, 4, key="model.unet").config)
    of_sdxl = dict.fromkeys(("upcast_attention", "mid_block_only_cross_attention"))
    of_sdxl |= dict.fromkeys(("num_attention_heads", "class_embed_type", "cross_attention_norm"))
    published = published_arguments(arguments | of_sdxl | {"decay": 0.9999, "power": 0.6666667})
    assert unet_settings("model.unet", published, Path("unet"))
    with pytest.raises(UserError, match="upcast_attention=True is not supported"):
        unet_settings("model.unet", published | {"upcast_attention": True}, Path("unet"))


def test_without_an_image_prompt_a_published_ones_weights_are_left_aside(
    published_idm_vton, settings
):
    unet = replace(settings.unet, pretrained=str(published_idm_vton[0]))
    prompt = replace(settings.image_prompt, enabled=False)
    tryon = build_tryon(
        replace(settings, unet=unet, image_prompt=prompt), channels=4, clip_width=64
    )
    wanted = published_idm_vton[1].tryon.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tryon.state_dict().items())


def test_training_continues_from_a_published_tryon_net(published_idm_vton, settings):
    unet = replace(settings.unet, pretrained=str(published_idm_vton[0]))
    tryon = build_tryon(replace(settings, unet=unet), channels=4, clip_width=64)
    wanted = published_idm_vton[1].tryon.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tryon.state_dict().items())


@pytest.mark.parametrize("form", ["nested.bin", "flat.safetensors"])
def test_ip_adapter_files_count_attention_layers_in_module_order(settings, tmp_path, form):
    tryon = build_tryon(settings, channels=4, clip_width=64)
    names = attention_names(tryon.unet)
    projection = {
        n: torch.randn_like(p) for n, p in tryon.unet.encoder_hid_proj.state_dict().items()
    }
    layers = {}
    for k in range(1, len(names), 2):
        shape = tryon.unet.get_submodule(names[k]).to_k.weight.shape
        layers |= {
            f"{k}.to_k_ip.weight": torch.full(shape, float(k)),
            f"{k}.to_v_ip.weight": torch.full(shape, -1.0 * k),
        }
    flat = {f"image_proj.{n}": t for n, t in projection.items()} | {
        f"ip_adapter.{n}": t for n, t in layers.items()
    }
    path = tmp_path / form
    if path.suffix == ".bin":
        torch.save({"image_proj": projection, "ip_adapter": layers}, path)
    else:
        save_file(flat, path)
    load_image_prompt(tryon, path)
    assert torch.equal(tryon.unet.encoder_hid_proj.latents, projection["latents"])
    last = names.index("mid_block.attentions.0.transformer_blocks.0.attn2")
    assert last == len(names) - 1  # the middle comes last here, although it runs before the way up
    assert (tryon.unet.get_submodule(names[last]).processor.to_k_ip.weight == last).all()
    assert (tryon.unet.get_submodule(names[1]).processor.to_v_ip.weight == -1).all()

    flat.pop(f"ip_adapter.{last}.to_k_ip.weight")
    save_file(flat, tmp_path / "less.safetensors")
    with pytest.raises(
        UserError, match=rf"less.safetensors .* 1 missing \({last}.to_k_ip.weight\)"
    ):
        load_image_prompt(tryon, tmp_path / "less.safetensors")
    save_file(projection, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not an IP-Adapter file"):
        load_image_prompt(tryon, tmp_path / "other.safetensors")


def test_the_garment_net_ignores_the_base_unets_added_embedding(settings, tmp_path):
    shape = replace(settings.garment_unet, pooled=64, size_id_width=16)
    base = build_unet(shape, 4, 4, key="base")
    base.save_pretrained(tmp_path / "unet")
    garment = build_garment_net(
        replace(settings.garment_unet, pretrained=str(tmp_path)), channels=4
    )
    given = {n: t for n, t in base.state_dict().items() if not n.startswith("add_embedding")}
    check_state(garment.state_dict(), given, "base")
    assert all(torch.equal(tensor, given[name]) for name, tensor in garment.state_dict().items())

    # The authors' code builds it from its configuration and gives it no text to embed.
    source = replace(settings.garment_unet, pretrained=str(tmp_path))
    write_garment_net({}, source, 4, tmp_path / "out" / "unet_encoder")
    out = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet_encoder")
    assert out.config.addition_embed_type is None
    assert list(out.config.block_out_channels) == list(base.config.block_out_channels)


def test_a_folder_of_another_network_is_named(settings, tmp_path):
    build_codec(CodecConfig(widths=(8, 8), groups=4)).save(tmp_path / "vae")
    source = {"pretrained": str(tmp_path), "subfolder": "vae"}
    with pytest.raises(UserError, match=r"vae/config\.json describes AutoencoderKL, not a UNet2D"):
        build_garment_net(replace(settings.garment_unet, **source), channels=4)


def test_text_encoders_go_out_under_the_names_that_every_transformers_reads(
    published_idm_vton, tmp_path
):
    """Which versions before 5 look for, and draw at random what they do not find."""
    folder, module = published_idm_vton
    for name in ("text", "text_2"):
        place = folder / ("text_encoder" + name.removeprefix("text"))
        stored = load_file(place / "model.safetensors")
        assert {key.split(".")[0] for key in stored} <= {"text_model", "text_projection"}
        settings = replace(
            getattr(module.config.model, name),
            pretrained=str(folder),
            subfolder=place.name,
            tokenizer_subfolder=place.name.replace("text_encoder", "tokenizer"),
        )
        own = getattr(module, name).model.state_dict()
        for key, tensor in text_encoder(settings).model.state_dict().items():
            assert torch.equal(tensor, own[key]), key


def test_sources_that_are_not_there(settings, tmp_path):
    unet = replace(settings.unet, pretrained=str(tmp_path))
    with pytest.raises(UserError, match=r"model\.unet\.pretrained=.* has no folder unet"):
        build_tryon(replace(settings, unet=unet), channels=4, clip_width=64)
    garment = replace(settings.garment_unet, pretrained="nobody/nothing")
    with pytest.raises(
        UserError, match=r"model\.garment_unet\.pretrained=nobody/nothing: .*VTON_DOWNLOAD=1"
    ):
        build_garment_net(garment, channels=4)
