"""Every architecture from published folders, whose encoders are float16, in every precision."""

import functools
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.batches import SIZE, random_batch, randomised, tiny_module
from tests.models.hub_folders import FORMS, as_published, write_base_weights
from tests.sweeps import LATER, soon_and_later
from vton import registry
from vton.config import as_override, flatten, load
from vton.models.codecs import run_codec
from vton.models.idm_vton import building
from vton.models.lora import base_name, is_lora
from vton.models.precision import DTYPES, codec_precision, for_sampling
from vton.models.settings import UNetConfig
from vton.runs.assemble import load_module
from vton.runs.folder import RunFolder
from vton.weights.pretrained import read_weights_folder, write_tensors

CODEC = (
    "codec.name=kl",
    "codec.widths=[8,8,8]",
    "codec.groups=4",
    "codec.layers=1",
    "codec.channels=4",
)
PRECISIONS = ("fp32", "bf16", "fp16")


def starts_from_base_weights(model: str) -> bool:
    """Whether its paper preset starts from folders. StableVITON's starts from one file, which its
    own tests write.
    """
    config = load(f"model={model}", "preset=paper")
    from_one_file = bool(getattr(config.model, "pretrained", ""))
    return bool(config.codec.pretrained) and not from_one_file


LATENT = [model for model in registry.names() if starts_from_base_weights(model)]


def frozen_as_published(model: str) -> tuple[str, ...]:
    """What the paper's preset trains and freezes, for the tiny preset."""
    overrides = []
    for key, value in flatten(asdict(load(f"model={model}", "preset=paper").model)).items():
        if key.rpartition(".")[2] == "trained":
            overrides.append(as_override(f"model.{key}", value))
    return tuple(overrides)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Overrides that let a tiny module start from published folders, by model and form."""

    @functools.cache
    def drawn(model: str) -> tuple[Path, tuple[str, ...]]:
        root = tmp_path_factory.mktemp(model)
        basis = (*CODEC, *frozen_as_published(model))
        config = load(f"model={model}", "preset=tiny", f"data.size={list(SIZE)}", *basis)
        return root, (*basis, *write_base_weights(config, root))

    @functools.cache
    def overrides(model: str, form: str = "half") -> tuple[str, ...]:
        first, given = drawn(model)
        root = shutil.copytree(first, tmp_path_factory.mktemp(model) / form)
        as_published(root, form)
        return tuple(override.replace(str(first), str(root)) for override in given)

    return overrides


def built(model: str, *overrides: str) -> nn.Module:
    few = ("preset=tiny", f"data.size={list(SIZE)}", "sampler.steps=2")
    config = load(f"model={model}", *few, *overrides)
    torch.manual_seed(0)
    codec = run_codec(config.codec, "nowhere", DTYPES[codec_precision(config)])
    return registry.module_class(model)(config, codec)


def in_precisions() -> list:
    """Soon: one model in all precisions, and one more in fp16, whose range is the smallest."""
    chosen = []
    for model in LATENT:
        for precision in PRECISIONS:
            soon = model not in LATER or (model, precision) == ("idm_vton", "fp16")
            chosen.append(pytest.param(model, precision, marks=() if soon else pytest.mark.slow))
    return chosen


@pytest.mark.parametrize(("model", "precision"), in_precisions())
def test_published_folders_train_and_sample(published, model, precision):
    module = built(model, *published(model), f"train.precision={precision}", "sampler.guidance=2")
    dtype = DTYPES[precision]
    for name, network in module.frozen.items():
        # A loss is no network that conditions, and its gradient overflows in float16.
        in_loss = name == "dists" or (model, precision, name) == ("gardiff", "fp16", "codec")
        expected = torch.float32 if in_loss else dtype
        assert {p.dtype for p in network.parameters()} == {expected}, name
    assert {p.dtype for p in module.parameters()} == {torch.float32}

    batch = random_batch(2)
    with torch.autocast("cpu", dtype, enabled=precision != "fp32"):
        loss = module.train().training_step(batch, 0)
        drawn = module.eval().generate(batch)  # as the held-out look does
    loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    assert drawn.isfinite().all()
    module.compute_in(precision)
    pictures = module.generate(batch)
    assert pictures.dtype == torch.float32 and pictures.isfinite().all()


def test_weights_that_lora_leaves_alone_are_read_in_half_precision(published, monkeypatch):
    """In float32 IDM-VTON's 2.6 billion would take twice their room at the start."""
    read = []

    def recorded(folder, dtype):
        read.append(dtype)
        return read_weights_folder(folder, dtype)

    monkeypatch.setattr(building, "read_weights_folder", recorded)
    given = published("idm_vton")
    whole = dict(built("idm_vton", *given).named_parameters())
    assert set(read) == {torch.float32}

    read.clear()
    tuned = built("idm_vton", *given, "train.precision=bf16", "model.lora.rank=2")
    assert set(read) == {torch.bfloat16}
    for name, parameter in tuned.named_parameters():
        if not is_lora(name) and name.startswith("tryon.unet."):
            assert torch.equal(parameter, whole[base_name(name)].bfloat16()), name


@pytest.fixture(scope="module")
def from_half(published):
    """The module of each model from the common form of its folders."""
    return functools.cache(lambda model: built(model, *published(model)))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "half"])
@pytest.mark.parametrize("model", soon_and_later(LATENT))
def test_every_form_of_a_folder_holds_the_same_weights(published, from_half, model, form):
    """In float32, whatever is stored."""
    expected, found = from_half(model), built(model, *published(model, form))
    for name, network in expected.networks().items():
        other = dict(found.networks()[name].named_parameters())
        for key, parameter in network.named_parameters():
            assert torch.equal(parameter, other[key]), (name, key)
            assert other[key].dtype == torch.float32


@pytest.mark.parametrize("model", LATENT)
def test_a_run_is_loaded_without_the_weights_that_it_started_from(published, tmp_path, model):
    """Those of UNets that are trained whole: CatVTON's run holds attention layers alone."""
    given = published(model)
    root = next(line for line in given if line.startswith("codec.pretrained="))
    root = Path(root.partition("=")[2]).parent
    shutil.copytree(root, tmp_path / "base")
    given = [line.replace(str(root), str(tmp_path / "base")) for line in given]
    given += [f"runs={tmp_path / 'runs'}", "name=run"]
    trained = built(model, *given)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1 if parameter.requires_grad else 1)
    config = trained.config
    run = RunFolder.of(config)
    run.start(config)
    write_tensors(run.weights, trained.state_dict())
    for settings in vars(config.model).values():
        if isinstance(settings, UNetConfig) and settings.trained and model != "catvton":
            for weights in Path(settings.pretrained, "unet").glob("*.safetensors"):
                weights.unlink()
    loaded = load_module(run, config, "weights")
    for name, network in trained.networks().items():
        other = dict(loaded.networks()[name].named_parameters())
        for key, parameter in network.named_parameters():
            assert torch.equal(parameter, other[key]), (name, key)
    batch = random_batch(2)
    assert torch.equal(trained.eval().generate(batch), loaded.generate(batch))


@pytest.mark.parametrize("model", soon_and_later())
def test_sampling_in_half_precision_is_near_that_in_float32(model):
    """Without autocast: weights, conditions and latents in the networks are bfloat16."""
    exact, half = randomised(tiny_module(model)), tiny_module(model)
    half.load_state_dict(exact.state_dict())
    half.compute_in("bf16")
    batch = random_batch(2)
    expected, found = exact.eval().generate(batch), half.eval().generate(batch)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in half.codec.state_dict().values())
    assert not torch.equal(expected, found)
    assert (expected - found).abs().mean() < 0.05


def test_a_codec_is_float32_where_its_folder_asks_for_it(published, tmp_path):
    half = load("model=gardiff", "preset=tiny", *published("gardiff"), "train.precision=fp16")
    assert codec_precision(half) == "fp16"
    vae = built("gardiff", *published("gardiff")).codec.vae
    vae.register_to_config(force_upcast=True)
    vae.save_pretrained(tmp_path / "vae")
    asking = (*published("gardiff"), f"codec.pretrained={tmp_path}", "train.precision=fp16")
    assert codec_precision(load("model=gardiff", "preset=tiny", *asking)) == "fp32"
    said = load("model=gardiff", "preset=tiny", *asking, "codec.precision=bf16")
    assert codec_precision(said) == "bf16"


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [("stable-diffusion-xl-v1-base/vae", "fp32"), ("stable-diffusion-v1", "fp16")],
)
def test_sdxls_codec_from_a_file_is_float32_as_from_its_folder(architecture, precision, tmp_path):
    path = tmp_path / "vae.safetensors"
    write_tensors(path, {"x": torch.zeros(1)}, {"modelspec.architecture": architecture})
    codec = ("codec.name=kl", f"codec.pretrained={path}", "train.precision=fp16")
    assert codec_precision(load("model=gardiff", "preset=tiny", *codec)) == precision


def test_a_codec_that_the_run_fits_is_float32():
    assert codec_precision(load("model=gardiff", "preset=tiny", "train.precision=bf16")) == "fp32"
    fresh = load("model=gardiff", "preset=small", "train.precision=bf16")
    assert codec_precision(fresh) == "fp32"


def test_sampling_has_its_own_precision():
    config = load("model=gardiff", "train.precision=bf16", "eval.precision=fp32")
    assert for_sampling(config).train.precision == "fp32"
    assert for_sampling(load("model=gardiff", "train.precision=bf16")).train.precision == "bf16"
