"""Published weights in and out: the numbered attention file, and whole UNets."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tests.batches import random_batch
from vton import registry
from vton.commands.exchange import export_run, import_run
from vton.config import load
from vton.cost.meta import on_meta
from vton.errors import UserError
from vton.models import unet as unets
from vton.models.catvton.checkpoint import (
    attention_shape,
    first_name,
    names_of,
    numbered,
    read_published,
    write_published,
)
from vton.models.codecs import build_codec
from vton.models.precision import DTYPES, for_sampling
from vton.models.unet import attention_names
from vton.runs.assemble import load_module
from vton.runs.folder import RunFolder
from vton.weights.pretrained import from_pretrained

VECTORS = Path(__file__).parents[2] / "vectors" / "catvton"
PUBLISHED = {  # CatVTON's specification of the file, Section 4
    0: "down_blocks.0.attentions.0",
    8: "down_blocks.0.attentions.1",
    16: "down_blocks.1.attentions.0",
    24: "down_blocks.1.attentions.1",
    32: "down_blocks.2.attentions.0",
    40: "down_blocks.2.attentions.1",
    48: "up_blocks.1.attentions.0",
    56: "up_blocks.1.attentions.1",
    64: "up_blocks.1.attentions.2",
    72: "up_blocks.2.attentions.0",
    80: "up_blocks.2.attentions.1",
    88: "up_blocks.2.attentions.2",
    96: "up_blocks.3.attentions.0",
    104: "up_blocks.3.attentions.1",
    112: "up_blocks.3.attentions.2",
    120: "mid_block.attentions.0",
}
WIDTHS = [320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280]


@pytest.fixture
def attention_file(tmp_path) -> Path:
    """As the hub's repository holds it: <variant>/attention/model.safetensors."""
    path = tmp_path / "vitonhd-16k-512" / "attention" / "model.safetensors"
    path.parent.mkdir(parents=True)
    shutil.copy(VECTORS / "weights_attention.safetensors", path)
    return path


def test_the_unet_around_a_runs_attention_is_read_in_the_precision_of_drawing(
    attention_file, base, monkeypatch
):
    run = import_run("catvton", attention_file, *base)
    read = []

    def recorded(*arguments, dtype, **more):
        read.append(dtype)
        return from_pretrained(*arguments, dtype=dtype, **more)

    monkeypatch.setattr(unets, "from_pretrained", recorded)
    config = run.load_config()
    for precision in ("fp32", "bf16"):
        config.eval.precision = precision
        module = load_module(run, for_sampling(config), "weights")
        assert {p.dtype for p in module.unet.parameters()} == {DTYPES[precision]}
    assert read == [torch.float32, torch.bfloat16]


@pytest.fixture
def base(tmp_path) -> list[str]:
    """An inpainting UNet and its VAE as a hub folder, and the settings of a run on them."""
    config = json.loads((VECTORS / "config.json").read_text())
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        network = kind(**config[name])
        network.load_state_dict(load_file(VECTORS / f"weights_{name}.safetensors"))
        network.save_pretrained(tmp_path / "base" / name)
    return [
        f"model.unet.pretrained={tmp_path / 'base'}",
        f"codec.pretrained={tmp_path / 'base'}",
        "codec.subfolder=vae",
        "model.unet.context=12",
        "model.unet.groups=4",
        f"runs={tmp_path / 'runs'}",
        "data.size=[128,96]",
        "sampler.steps=2",
    ]


def module_of(run):
    config = run.load_config()
    module = registry.module_class("catvton")(config, build_codec(config.codec))
    module.load_state_dict(load_file(run.weights))
    return module.eval()


def test_the_published_table_of_names():
    module = on_meta(load("model=catvton", "preset=paper"))
    assert attention_shape(WIDTHS) == {
        "widths": [320, 640, 1280, 1280],
        "attention": [True, True, True, False],
        "heads": [8, 8, 8, 8],
        "depth": [1, 1, 1, 1],
        "layers": 2,
    }
    layers = names_of(attention_shape(WIDTHS))
    of_modules = [name for name in attention_names(module.unet) if name.endswith("attn1")]
    assert layers == of_modules
    names = numbered(layers)
    assert len(names) == 80
    for number, block in PUBLISHED.items():
        expected = f"{block}.transformer_blocks.0.attn1.to_out.0.bias"
        assert names[f"{number}.to_out.0.bias"] == expected
    assert {f"unet.{name}" for name in names.values()} == set(module.state_dict())


def test_repeated_names_are_those_of_the_authors_list():
    """Those of a list of submodules, by which the release names its tensors."""
    layer = torch.nn.Module()
    for name in ("to_q", "to_k", "to_v"):
        setattr(layer, name, torch.nn.Linear(4, 4, bias=False))
    layer.to_out = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Dropout(0.0)])
    layer.processor = torch.nn.Identity()
    entries = [layer, layer.to_q, layer.to_k, layer.to_v, layer.to_out, *layer.to_out]
    listed = torch.nn.ModuleList([*entries, layer.processor] * 2)
    tensors = dict(listed.named_parameters(remove_duplicate=False))
    assert len(tensors) == 2 * 12
    for name, parameter in tensors.items():
        first = first_name(name)
        number = 8 * (int(name.split(".")[0]) // 8)
        assert first.startswith(f"{number}.") and tensors[first] is parameter
    assert len({first_name(name) for name in tensors}) == 2 * 5
    assert first_name("6.weight") is None and first_name("7.to_q.weight") is None


@pytest.mark.parametrize("given", ["file", "folder", "repeated", "only repeated"])
def test_import_and_export_keep_every_byte(attention_file, base, tmp_path, given):
    stored = load_file(attention_file)
    if given == "repeated":
        stored |= {"1.weight": stored["0.to_q.weight"], "12.0.bias": stored["8.to_out.0.bias"]}
    if given == "only repeated":
        stored["3.weight"] = stored.pop("0.to_v.weight")
    save_file({name: tensor.clone() for name, tensor in stored.items()}, attention_file)
    source = attention_file.parent.parent if given == "folder" else attention_file
    run = import_run("catvton", source, *base)
    if given == "folder":
        export_run(run, tmp_path / "again")
        again = load_file(tmp_path / "again" / "attention" / "model.safetensors")
    else:
        export_run(run, tmp_path / "again.safetensors")
        again = load_file(tmp_path / "again.safetensors")
    for name, tensor in stored.items():
        assert torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype
    added = set(again) - set(stored)
    assert added == ({"0.to_v.weight"} if given == "only repeated" else set())


def test_an_imported_run_has_the_files_attention_and_the_bases_rest(attention_file, base):
    module = module_of(import_run("catvton", attention_file, *base))
    stored, unet = load_file(attention_file), load_file(VECTORS / "weights_unet.safetensors")
    state = dict(module.unet.named_parameters())
    mapped = json.loads((VECTORS / "config.json").read_text())["attention_index"]
    for number, layer in mapped.items():
        assert torch.equal(state[f"{layer}.to_q.weight"], stored[f"{number}.to_q.weight"])
        assert torch.equal(state[f"{layer}.to_out.0.bias"], stored[f"{number}.to_out.0.bias"])
    for name, tensor in unet.items():
        assert ".attn1." in name or torch.equal(state[name], tensor)
    picture = module.generate(random_batch(1, (128, 96)))
    assert picture.shape == (1, 3, 128, 96) and picture.isfinite().all()


def whole_unet(base):
    """A run that trained all of the UNet, its weights beside its settings."""
    config = load("model=catvton", "preset=paper", *base, "name=whole", "model.trained=unet")
    run = RunFolder.of(config)
    run.start(config)
    module = registry.module_class("catvton")(config, build_codec(config.codec))
    with torch.no_grad():
        for parameter in module.unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_file(dict(module.state_dict()), run.weights)
    return run, module.eval()


def test_whole_unets_go_out_as_a_diffusers_folder_and_come_back(base, tmp_path):
    run, original = whole_unet(base)
    export_run(run, tmp_path / "deco")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "deco", subfolder="unet")
    for name, tensor in original.unet.state_dict().items():
        assert torch.equal(unet.state_dict()[name], tensor), name
    settings = [setting for setting in base if not setting.startswith("model.unet")]
    again = import_run("catvton", tmp_path / "deco", *settings, "name=again")
    config = again.load_config()
    assert config.model.trained == "unet" and config.model.unet.pretrained == ""
    batch = random_batch(1, (128, 96))
    assert torch.equal(module_of(again).generate(batch), original.generate(batch))


def test_a_whole_unet_without_its_configuration_shows_its_shape(base, tmp_path):
    run, _ = whole_unet(base)
    save_file(
        {name.removeprefix("unet."): x for name, x in load_file(run.weights).items()},
        tmp_path / "unet.safetensors",
    )
    found = read_published(tmp_path / "unet.safetensors")
    assert "model.unet.widths=[8, 16, 16]" in found.settings
    assert 'model.trained="unet"' in found.settings


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x: {k: v for k, v in x.items() if k != "8.to_k.weight"}, "Lacking: 8.to_k.weight"),
        (
            lambda x: {k: v for k, v in x.items() if not k.startswith("8.")},
            "five of every eighth number",
        ),
        (lambda x: x | {"1.weight": x["0.to_q.weight"] + 1}, "are one tensor, but differ"),
        (lambda x: x | {"6.weight": x["0.to_q.weight"]}, "6.weight is no tensor of theirs"),
        (lambda x: {"to_q.weight": x["0.to_q.weight"]}, "to_q.weight is no tensor of theirs"),
        (
            lambda x: {k: v for k, v in x.items() if not k.startswith("48.")},
            "no UNet has self-attention layers of widths",
        ),
    ],
)
def test_attention_files_of_another_kind_say_what_is_wrong(tmp_path, broken, message):
    tensors = broken(load_file(VECTORS / "weights_attention.safetensors"))
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "x.safetensors"
    )
    with pytest.raises(UserError, match=message) as caught:
        read_published(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)


def test_of_the_whole_repository_a_variant_has_to_be_named(attention_file):
    repository = attention_file.parents[2]
    with pytest.raises(UserError, match=r"import the folder of one: vitonhd-16k-512\."):
        read_published(repository)


def test_unets_of_another_kind_say_what_is_wrong(tmp_path):
    unet = load_file(VECTORS / "weights_unet.safetensors")
    path = tmp_path / "x.safetensors"
    save_file(unet | {"conv_in.weight": unet["conv_in.weight"][:, :8].contiguous()}, path)
    assert "model.mask=false" in read_published(path).settings
    save_file(unet | {"conv_in.weight": unet["conv_in.weight"][:, :7].contiguous()}, path)
    with pytest.raises(UserError, match=r"has 7 input channels; expected 9"):
        read_published(path)
    with pytest.raises(UserError, match="holds no weights"):
        read_published(tmp_path)
    save_file({name: x for name, x in unet.items() if "mid_block" not in name}, path)
    with pytest.raises(UserError, match="not a whole UNet"):
        read_published(path)
    save_file({name: x for name, x in unet.items() if "conv_out" not in name}, path)
    with pytest.raises(UserError, match=r"weights lack conv_out\.bias"):  # a ControlNet's
        read_published(path)
    save_file(unet, path)
    for config in ({"_class_name": "AutoencoderKL"}, {"block_out_channels": None}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"config\.json describes .*, not a UNet2DCondition"):
            read_published(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.trained=transformer",), "publishes its attention layers alone, or a whole UNet"),
        (("model.trained=attention",), "attention in every level but the last"),
        (("model.cross_attention=text",), "trained its text encoder"),
    ],
)
def test_runs_that_the_formats_have_no_place_for(tmp_path, settings, message):
    config = load("model=catvton", "preset=tiny", "model.unet.positions=0", *settings)
    state = on_meta(config).state_dict()
    state = {name: torch.zeros(x.shape) for name, x in state.items()}
    with pytest.raises(UserError, match=message):
        write_published(tmp_path / "out.safetensors", state, config, {})
    assert not (tmp_path / "out.safetensors").exists()
