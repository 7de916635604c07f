"""Published checkpoints in and out, full-size names and counts, and what training starts from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.batches import random_batch, tiny_module
from vton import registry
from vton.commands.exchange import export_run, import_run
from vton.config import CodecConfig, ObjectiveConfig, load
from vton.cost.counting import describe
from vton.cost.meta import on_meta
from vton.errors import UserError
from vton.models.codecs import build_codec
from vton.models.ldm import (
    FIRST_STAGE,
    UNetStructure,
    autoencoder_names,
    autoencoder_to_ldm,
    read_autoencoder,
    to_ldm,
)
from vton.models.stableviton import building
from vton.models.stableviton.building import new_networks
from vton.models.stableviton.checkpoint import (
    POSITION_IDS,
    UNUSED,
    checkpoint_names,
    read_published,
    schedule_buffers,
    sections_of,
    write_published,
)
from vton.runs.assemble import load_module
from vton.runs.folder import RunFolder
from vton.weights.pretrained import load_state, read_checkpoint, read_safetensors, write_tensors

FOLDER = Path(__file__).parents[2] / "vectors" / "stableviton"
SIZE = (128, 64)
# What the tensors of the small checkpoint cannot tell.
SMALL = (
    "model.unet.heads=[2, 2, 2, 2]",
    "model.unet.groups=3",
    "model.clip.heads=3",
    "codec.groups=3",
    f"data.size={list(SIZE)}",
    "sampler.steps=2",
)
STRUCTURE = UNetStructure(2, (True, True, True, False))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The small checkpoint, the spatial encoder in half precision."""
    state = load_file(FOLDER / "weights_checkpoint.safetensors")
    return {name: x.half() if name.startswith("control_") else x for name, x in state.items()}


@pytest.fixture
def file(state, tmp_path) -> Path:
    path = tmp_path / "VITONHD.ckpt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_import_and_export_are_byte_equal(suffix, state, file, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        file.rename(path)
    run = import_run("stableviton", path, f"runs={tmp_path}", *SMALL)
    config = run.load_config()
    assert config.model.unet.widths == (6, 12, 18, 18)
    assert (config.model.clip.layers, config.model.mapper_layers) == (2, 5)
    assert config.codec.widths == (6, 6, 12, 12)
    export_run(run, tmp_path / "again.ckpt")
    assert_same(read_checkpoint(tmp_path / "again.ckpt")["state_dict"], state)
    export_run(run, tmp_path / "again.safetensors")
    assert_same(load_file(tmp_path / "again.safetensors"), state)


def test_an_imported_run_draws_as_the_reference_networks(file, tmp_path):
    """`vton verify` holds them against the public code; here the way over a run folder."""
    run = import_run("stableviton", file, f"runs={tmp_path}", *SMALL)
    module = load_module(run, run.load_config(), "weights").float()
    assert module.frozen.keys() == {"codec", "unet", "clip"}
    batch = random_batch(2, SIZE)
    pictures = module.generate(batch)
    export_run(run, tmp_path / "again.ckpt")
    again = import_run("stableviton", tmp_path / "again.ckpt", f"runs={tmp_path}", *SMALL)
    other = load_module(again, again.load_config(), "weights").float()
    assert torch.equal(other.generate(batch), pictures)


def test_a_run_from_scratch_is_exported_whole(tmp_path):
    """Every tensor that the public code loads; imported, it draws the same pictures."""
    overrides = (
        "preset=tiny",
        f"runs={tmp_path}",
        "name=mine",
        "codec={name: kl, widths: [16, 16, 16], channels: 4, layers: 1, groups: 8}",
        "objective.prediction=epsilon",
        "model.unet.positions=0",
        "model.levels=[true,true,false]",
        "model.unet.heads=[8,8,8]",
        "model.clip.heads=1",
        "data.size=[64,48]",
    )
    config = load("model=stableviton", *overrides)
    run = RunFolder.of(config)
    run.start(config)
    torch.manual_seed(0)
    codec = build_codec(config.codec)
    codec.vae.register_to_config(scaling_factor=0.6)  # as fitting sets it; the format holds none
    codec.save(run.codec)
    module = registry.module_class("stableviton")(config, codec).eval()
    write_tensors(run.weights, module.state_dict())
    export_run(run, tmp_path / "mine.ckpt")

    exported = read_checkpoint(tmp_path / "mine.ckpt")["state_dict"]
    assert set(exported) >= UNUSED
    groups = ("model.unet.groups=8", "model.unet.heads=[8,8,8]", "codec.groups=8")
    imported = import_run(
        "stableviton",
        tmp_path / "mine.ckpt",
        f"runs={tmp_path}",
        *groups,
        *("data.size=[64,48]", "data.densepose=true", "model.encoder_gradients=true"),
        *("sampler.solver=ddim", "sampler.steps=1", "sampler.spacing=trailing"),
    )
    other = load_module(imported, imported.load_config(), "weights")
    batch = random_batch(2)
    torch.testing.assert_close(other.generate(batch), module.generate(batch), atol=1e-5, rtol=0)


def test_what_the_format_cannot_say_is_refused(tmp_path):
    for override, match in (
        ("codec.name=linear", "codec.name=linear has no place"),
        ("objective.prediction=v_prediction", "objective.prediction=v_prediction has no place"),
        ("model.garment=added", "model.garment=added has no place"),
        ("model.levels=[true,false,true,false]", r"model\.levels=\[True, False, True, False\] has"),
    ):
        codec = ("codec={name: kl, pretrained: ''}", "model.pretrained=''")
        config = load("model=stableviton", "preset=paper", *codec, override, LOSSLESS)
        with pytest.raises(UserError, match=match):
            write_published(tmp_path / "x.ckpt", {}, config, {})
    assert not (tmp_path / "x.ckpt").exists()


LOSSLESS = "model.attention_loss.weight=0"


# ---- full size ----


def test_full_size_names_shapes_and_counts():
    """Of every tensor of a published checkpoint, against the networks on the meta device."""
    config = load("model=stableviton", "preset=paper")
    module = on_meta(config)
    parts = dict(module.state_dict())
    for name in ("unet", "clip"):
        for key, tensor in module.frozen[name].state_dict().items():
            parts[f"{name}.{key}"] = tensor
    own = to_ldm(parts, checkpoint_names(STRUCTURE))
    vae = module.codec.vae.state_dict()
    with torch.device("meta"):
        for name, tensor in autoencoder_to_ldm(vae, autoencoder_names(4, 2)).items():
            own[FIRST_STAGE + name] = tensor
    own |= schedule_buffers(config.objective)
    own |= {"lastzc.weight": torch.zeros(4, 4, 1, 1), "lastzc.bias": torch.zeros(4)}
    own[POSITION_IDS] = torch.zeros(1, 257)
    shapes = json.loads((FOLDER / "full_size.json").read_text())
    assert len(shapes) == 1958
    assert {name: list(tensor.shape) for name, tensor in own.items()} == shapes

    rows = {row["name"]: row for row in describe(config)["networks"]}
    assert {name: row["parameters"] for name, row in rows.items()} == {
        "unet": 859_546_884,
        "encoder": 348_750_720,
        "garment_blocks": 171_783_680 + 7_994_880,
        "token": 787_968,
        "clip": 303_179_776 + 62_983_168,
        "codec": 83_653_863,
    }
    # Without what nothing reads, and queries and keys of attention to one token.
    idle = 6 * (320 * 768) + 0
    assert rows["unet"]["trained"] == rows["clip"]["trained"] == 0
    assert 0 < rows["encoder"]["trained"] <= 348_750_720 - 174_062_080 - idle
    assert rows["garment_blocks"]["trained"] == rows["garment_blocks"]["parameters"]


def test_settings_follow_from_the_full_size_tensors(tmp_path, monkeypatch):
    """They are those of the paper's preset, but for the file itself."""
    shapes = json.loads((FOLDER / "full_size.json").read_text())
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    module = "vton.models.stableviton.checkpoint"
    monkeypatch.setattr(f"{module}.read_ldm_checkpoint", lambda path: meta)
    path = tmp_path / "VITONHD.ckpt"
    published = read_published(path)
    own = (f"model.pretrained={path}", f"codec.pretrained={path}")
    plain = load("model=stableviton", "preset=paper", *own)
    assert load("model=stableviton", "preset=paper", *published.settings) == plain
    assert published.extra.keys() == UNUSED


def test_schedule_buffers_are_those_of_the_public_code(state):
    for name, buffer in schedule_buffers(ObjectiveConfig()).items():
        torch.testing.assert_close(buffer, state[name], atol=0, rtol=2e-6)


# ---- what training starts from ----


def paint_by_example(state) -> dict[str, torch.Tensor]:
    """A checkpoint of the model before: without spatial encoder and blocks, 9 input channels."""
    first = "model.diffusion_model.input_blocks.0.0.weight"
    kept = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith("control_model.") and ".warp_" not in name
    }
    return kept | {first: state[first][:, :9].contiguous()}


def test_a_run_takes_from_its_start_what_it_does_not_train(file, tmp_path, monkeypatch):
    """The networks are built once: weights that the run holds are neither drawn nor read."""
    run = import_run("stableviton", file, f"runs={tmp_path}", *SMALL)
    built, read = [], []

    def build(*arguments):
        built.append(arguments)
        return new_networks(*arguments)

    def load(network, state, source, dtype):
        read.append(source)
        load_state(network, state, source, dtype)

    monkeypatch.setattr(building, "new_networks", build)
    monkeypatch.setattr(building, "load_state", load)
    load_module(run, run.load_config(), "weights")
    assert len(built) == 1
    assert read == [f"{file} (unet)", f"{file} (clip)"]


def small_config(path: Path):
    sizes = [x for x in read_published(path).settings if "pretrained" not in x]
    return load("model=stableviton", "preset=paper", *sizes, *SMALL, f"model.pretrained={path}")


def test_training_starts_from_paint_by_example(state, file, tmp_path):
    config = small_config(file)
    path = tmp_path / "pbe.ckpt"
    torch.save({"state_dict": paint_by_example(state)}, path)
    config.model.pretrained = config.codec.pretrained = str(path)
    module = registry.module_class("stableviton")(config, build_codec(config.codec))
    first = module.part("unet").conv_in.weight
    theirs = sections_of(state, file).networks
    assert torch.equal(first[:, :9], theirs["unet.conv_in.weight"][:, :9])
    assert not first[:, 9:].any()
    assert torch.equal(module.encoder.conv_in.weight, first)
    assert module.encoder.conv_in.weight.data_ptr() != first.data_ptr()
    mid = "mid_block.resnets.1.conv2.weight"
    assert torch.equal(module.encoder.state_dict()[mid], theirs[f"unet.{mid}"])
    assert not module.encoder.conv_hint.weight.any()
    assert not module.garment_blocks["8"].zero.weight.any()
    assert torch.equal(module.token.learnable_vector, state["learnable_vector"])
    with pytest.raises(UserError, match="a checkpoint to start from"):
        read_published(path)


def test_a_codec_from_a_checkpoint_of_latent_diffusion(state, tmp_path):
    """Whole, or the autoencoder alone as it is fine-tuned, with its loss's tensors and the count of
    its average, as Stable Diffusion's own fine-tuned files have it.
    """
    shape = {"widths": (6, 6, 12, 12), "layers": 1, "groups": 3}
    whole, alone = tmp_path / "whole.safetensors", tmp_path / "alone.ckpt"
    save_file(state, whole)
    own = {n.removeprefix(FIRST_STAGE): x for n, x in state.items() if n.startswith(FIRST_STAGE)}
    extra = {"loss.logvar": torch.zeros(()), "model_ema.num_updates": torch.tensor(3)}
    torch.save({"state_dict": own | extra}, alone)
    assert read_autoencoder(whole).keys() == read_autoencoder(alone).keys() == own.keys()
    image = torch.rand(1, 3, 64, 48) * 2 - 1
    first, second = (
        build_codec(CodecConfig(pretrained=str(path), scaling=0.18215, **shape)).encode(image)
        for path in (whole, alone)
    )
    assert torch.equal(first, second) and first.shape == (1, 4, 8, 6)
    del own["quant_conv.bias"]
    torch.save(own, alone)
    with pytest.raises(UserError, match=r"alone\.ckpt does not fit the codec: 1 missing"):
        build_codec(CodecConfig(pretrained=str(alone), **shape))


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize(
    ("beside", "architecture", "given", "expected"),
    [
        ("cond_stage_model.x", "", None, 0.18215),
        ("conditioner.embedders.0.x", "", None, 0.13025),
        ("conditioner.embedders.0.x", "", 0.18215, r"scaling=0\.18215, but .* has 0\.13025"),
        ("edm_mean", "", None, "mean and spread of their own"),
        ("", "stable-diffusion-xl-v1-base/vae", None, 0.13025),
        ("", "stable-diffusion-v1", None, 0.18215),
        ("", "flux-1-dev", None, r"set codec\.scaling=0\.18215 if .* 0\.13025 if it is SDXL's"),
        ("", "flux-1-dev", 0.13025, 0.13025),
    ],
)
def test_the_scaling_of_a_files_latents_is_never_guessed(
    suffix, beside, architecture, given, expected, state, tmp_path
):
    """The names and shapes of Stable Diffusion's and SDXL's autoencoders are the same."""
    if suffix == "ckpt" and not beside:
        architecture, expected = "", expected if given else "set codec.scaling="
    path = tmp_path / f"vae.{suffix}"
    own = {name: x for name, x in state.items() if name.startswith(FIRST_STAGE)}
    if not beside:
        own = {name.removeprefix(FIRST_STAGE): x for name, x in own.items()}
    own |= {beside: torch.zeros(1)} if beside else {}
    if suffix == "ckpt":
        torch.save({"state_dict": own}, path)
    else:
        save_file(own, path, {"modelspec.architecture": architecture} if architecture else None)
    config = CodecConfig(
        pretrained=str(path), scaling=given, widths=(6, 6, 12, 12), layers=1, groups=3
    )
    if isinstance(expected, float):
        assert build_codec(config).scaling == expected
    else:
        with pytest.raises(UserError, match=expected):
            build_codec(config)


def test_of_a_whole_safetensors_file_the_autoencoder_alone_is_read(state, tmp_path):
    save_file(state, tmp_path / "whole.safetensors")
    read = read_safetensors(tmp_path / "whole.safetensors", prefix=FIRST_STAGE)
    assert read and all(name.startswith(FIRST_STAGE) for name in read)


def test_a_file_of_the_hubs_cache_is_a_link_without_whose_suffix_it_cannot_be_read(state, tmp_path):
    save_file(state, tmp_path / "0123abcd")
    link = tmp_path / "VITONHD.safetensors"
    link.symlink_to("0123abcd")
    run = import_run("stableviton", link, *SMALL, f"runs={tmp_path / 'runs'}")
    assert run.path.name == "stableviton-VITONHD"
    config = run.load_config()
    assert config.model.pretrained == config.codec.pretrained == str(link)


def test_files_that_are_not_the_checkpoint(state, tmp_path):
    def refused(match: str, content):
        path = tmp_path / "x.ckpt"
        torch.save(content, path)
        with pytest.raises(UserError, match=match) as error:
            read_published(path)
        assert "\n" not in str(error.value)

    refused(r"x\.ckpt: not StableVITON's checkpoint: it has no model\.diff", {"a": torch.zeros(1)})
    refused("the file is empty", {"state_dict": {}})
    refused("expected a mapping from names to tensors", {"state_dict": {"a": 3}})
    refused("it has sd_model.x", state | {"sd_model.x": torch.zeros(1)})
    lacking = {n: x for n, x in state.items() if "class_embedding" not in n}
    refused("incomplete: no embeddings.class_embedding", lacking)
    with pytest.raises(UserError, match="is a folder; StableVITON is published as one"):
        read_published(tmp_path)
    with pytest.raises(UserError, match=r"model\.pretrained=.*absent\.ckpt"):
        tiny_module(
            "stableviton", f"model.pretrained={tmp_path / 'absent.ckpt'}", "model.unet.positions=0"
        )
