"""Leffa's published file in and out, and the weights that training starts from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.batches import random_batch, tiny_module
from vton import registry
from vton.commands.exchange import export_run, import_run
from vton.config import ConfigError, load
from vton.cost.meta import on_meta
from vton.errors import UserError
from vton.models.codecs import KLCodec, small_autoencoder
from vton.models.leffa.building import build_generative, build_reference, with_inputs
from vton.models.leffa.checkpoint import read_networks, read_published, write_published
from vton.models.settings import UNetConfig
from vton.models.unet import build_unet
from vton.runs.assemble import load_module

VECTORS = Path(__file__).parents[2] / "vectors" / "leffa"
PUBLISHED = VECTORS / "weights_checkpoint.safetensors"
# Heads and norm groups, which no tensor shows, and small pictures.
SHAPE = (
    *("model.unet.heads=[2,2,2,2]", "model.unet.groups=2", "model.reference_unet.groups=2"),
    *("model.reference_unet.heads=[2,2,2,2]", "codec.groups=2", "data.size=[64,48]"),
)


def imported(path, tmp_path, *overrides):
    return import_run("leffa", path, *SHAPE, f"runs={tmp_path / 'runs'}", *overrides)


def test_full_size_keys_shapes_and_counts():
    module = on_meta(load("model=leffa", "preset=paper"))
    names = {"unet": "unet", "reference_unet": "unet_encoder"}
    found = {}
    for name, tensor in module.state_dict().items():
        network, _, rest = name.partition(".")
        found[f"{names[network]}.{rest}"] = list(tensor.shape)
    with torch.device("meta"):
        codec = load("model=leffa", "preset=paper", "codec.pretrained=''").codec
        vae = small_autoencoder(codec)
    found |= {f"vae.{name}": list(tensor.shape) for name, tensor in vae.state_dict().items()}
    assert found == json.loads((VECTORS / "sd15_key_manifest.json").read_text())

    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in found_nets(module)}
    assert counts == {"unet": 859_544_004, "reference_unet": 859_520_964}
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    trained = [p for group in module.trained_parameters() for p in group["params"]]
    assert sum(p.numel() for p in trained) == 1_629_382_084
    own = {id(p) for p in module.unet.parameters()}
    of_unet = [p.numel() for p in trained if id(p) in own]
    assert (len(of_unet), sum(of_unet)) == (606, 815_581_444)
    assert len(trained) - len(of_unet) == 587


def found_nets(module):
    return [(name, module.part(name)) for name in ("unet", "reference_unet")]


@pytest.mark.parametrize("kind", ["safetensors", "pth", "half"])
def test_import_and_export_keep_every_byte(tmp_path, kind):
    weights = load_file(PUBLISHED)
    if kind == "half":
        weights = {name: tensor.half() for name, tensor in weights.items()}
    source = tmp_path / ("leffa.safetensors" if kind == "safetensors" else "leffa.pth")
    save_file(weights, source) if kind == "safetensors" else torch.save(weights, source)
    run = imported(source, tmp_path)
    export_run(run, tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again.keys() == weights.keys()
    for name, tensor in weights.items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor), name


def test_an_imported_run_has_the_files_networks_and_codec_and_draws(tmp_path):
    run = imported(PUBLISHED, tmp_path, "sampler.steps=2")
    config = run.load_config()
    module = load_module(run, config, "weights")
    weights = load_file(PUBLISHED)
    assert torch.equal(module.unet.conv_in.weight, weights["unet.conv_in.weight"])
    assert isinstance(module.codec, KLCodec)
    kept = module.codec.vae.state_dict()
    assert all(torch.equal(kept[name], weights[f"vae.{name}"]) for name in kept)
    assert module.generate(random_batch(1)).isfinite().all()

    # The format holds no scaling factor: the tensors take up what is not Stable Diffusion's.
    settings = run.codec / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"scaling_factor": 0.5}))
    export_run(run, tmp_path / "rescaled.safetensors")
    rescaled = load_file(tmp_path / "rescaled.safetensors")["vae.post_quant_conv.weight"]
    expected = weights["vae.post_quant_conv.weight"] * (0.18215 / 0.5)
    torch.testing.assert_close(rescaled, expected)


def test_what_nothing_reads_may_be_absent(tmp_path):
    whole = load_file(PUBLISHED)
    tail = ("unet_encoder.conv_out.", "unet_encoder.conv_norm_out.")
    unread = {name for name in whole if ".attn2.to_" in name or name.startswith(tail)}
    save_file({n: x for n, x in whole.items() if n not in unread}, tmp_path / "short.safetensors")
    run = imported(
        tmp_path / "short.safetensors",
        tmp_path,
    )
    found = load_file(run.weights)
    assert torch.equal(found["unet.conv_in.weight"], whole["unet.conv_in.weight"])
    assert not found["reference_unet.conv_out.weight"].any()
    del whole["unet.conv_out.bias"]
    save_file(whole, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(unet\.conv_out\.bias\)"):
        imported(tmp_path / "broken.safetensors", tmp_path, "name=broken")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"x.{name}": x for name, x in w.items()}, r"no unet\.conv_in"),
        (lambda w: {n: x for n, x in w.items() if n[:6] != "unet_e"}, r"no unet_encoder\.conv_in"),
        (lambda w: w | {"unet.conv_in.weight": w["unet.conv_in.weight"][:, :9]}, "reads 9"),
        (lambda w: {n: x for n, x in w.items() if "vae.decoder.conv_in" not in n}, r"vae\.\* is"),
    ],
)
def test_files_of_another_model_are_named(tmp_path, change, message):
    changed = {name: x.contiguous() for name, x in change(load_file(PUBLISHED)).items()}
    save_file(changed, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=message):
        read_published(tmp_path / "other.safetensors")


def test_runs_that_the_format_has_no_place_for_are_refused(tmp_path):
    config, target = load("model=leffa", "preset=tiny"), tmp_path / "leffa.pth"
    unet = {"unet.conv_in.bias": torch.zeros(1)}
    with pytest.raises(UserError, match=r"reference_unet\.trained=false"):
        write_published(target, unet, config, {})
    both = unet | {"reference_unet.conv_in.bias": torch.zeros(1)}
    with pytest.raises(UserError, match="holds an AutoencoderKL"):
        write_published(target, both, config, {})
    with pytest.raises(UserError, match="codec is not at"):
        write_published(target, both, load("model=leffa", "preset=small"), {})
    assert not target.exists()


def test_a_run_starts_from_a_published_file_or_from_the_stage_before(tmp_path):
    run = imported(PUBLISHED, tmp_path)
    for source in (PUBLISHED, run.weights):
        overrides = [s for s in read_published(PUBLISHED).settings if "pretrained" not in s]
        small = (*SHAPE, *overrides, "model.unet.positions=0", "model.reference_unet.positions=0")
        module = tiny_module("leffa", *small, "codec.name=kl", f"model.pretrained={source}")
        unet, reference_unet = read_networks(source)
        for network, state in ((module.unet, unet), (module.reference_unet, reference_unet)):
            own = network.state_dict()
            assert all(torch.equal(own[name], state[name]) for name in own)


def test_a_run_is_loaded_without_the_file_that_it_started_from(tmp_path):
    started = tmp_path / "virtual_tryon.safetensors"
    shutil.copy(PUBLISHED, started)
    run = imported(PUBLISHED, tmp_path, f"model.pretrained={started}")
    started.unlink()
    loaded = load_module(run, run.load_config(), "weights")
    unet, _ = read_networks(PUBLISHED)
    own = loaded.unet.state_dict()
    assert all(torch.equal(own[name], unet[name]) for name in own)


TINY = UNetConfig(
    widths=(8, 16),
    attention=(True, False),
    heads=(2, 2),
    depth=(1, 1),
    layers=1,
    context=8,
    groups=2,
)


def test_both_unets_start_from_an_inpainting_unet(tmp_path):
    base = build_unet(TINY, 9, 4, key="base")
    base.save_pretrained(tmp_path / "unet")
    config = UNetConfig(**{**vars(TINY), "pretrained": str(tmp_path)})
    unet, reference_unet = build_generative(config, 4), build_reference(config, 4)
    weight = base.conv_in.weight
    assert torch.equal(unet.conv_in.weight[:, :9], weight)
    assert not unet.conv_in.weight[:, 9:].any()
    assert torch.equal(reference_unet.conv_in.weight, weight[:, :4])
    assert torch.equal(unet.conv_out.weight, base.conv_out.weight)
    assert unet.conv_out.weight.data_ptr() != reference_unet.conv_out.weight.data_ptr()
    with pytest.raises(UserError, match="5 input channels"):
        with_inputs(torch.zeros(8, 5, 3, 3), 12, 4, "file")


def test_unets_of_two_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"reference_unet\.widths"):
        load("model=leffa", "preset=tiny", "model.unet.widths=[32,64,128]")
    assert registry.config_class("leffa").name == "leffa"


def test_heads_that_no_tensor_shows_have_to_be_given(tmp_path):
    with pytest.raises(UserError, match=r"model\.unet\.heads is in no tensor"):
        import_run("leffa", PUBLISHED, f"runs={tmp_path}", "codec.groups=2")
