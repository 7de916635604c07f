"""Paper presets at full size on a CPU, from random weights in the published formats.

`make test-full SCRATCH=DIR` runs them, one after the other; CI does not. Each case writes its base
weights below the folder in VTON_FULL_SCRATCH (at most 40 GB at a time, removed afterwards), runs
the real commands in processes of their own and prints seconds, peak resident memory and what
`vton info` predicts.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.models.hub_folders import filled, on_meta, write_base_weights
from vton.config import load
from vton.cost.counting import describe
from vton.cost.meta import on_meta as module_on_meta
from vton.models.idm_vton.checkpoint import NETWORKS
from vton.models.unet import unet_arguments
from vton.weights.pretrained import PUBLISHED_METADATA, write_tensors

pytestmark = pytest.mark.full

GIB = 2**30
ONE_PAIR = (  # rendered data has two test pairs at least
    *("data.synthetic.train=1", "data.synthetic.test=2", "data.synthetic.workers=1"),
    "data.limit_test=1",
)
PLAIN = ("trainer=cpu", "data.workers=0", "data.check=false")


@dataclass
class Measured:
    seconds: float
    resident: int  # bytes, at most


@pytest.fixture
def scratch():
    if not os.environ.get("VTON_FULL_SCRATCH"):
        pytest.fail("VTON_FULL_SCRATCH names no folder: make test-full SCRATCH=DIR")
    folder = Path(os.environ["VTON_FULL_SCRATCH"]) / "vton-full"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


# rusage's own peak would not do: a process inherits it from the one that starts it, which has just
# written gigabytes of weights.
MEASURED = """
import re, runpy, sys
report = sys.argv.pop(1)
try:
    runpy.run_module("vton", run_name="__main__", alter_sys=True)
finally:
    with open("/proc/self/status") as status, open(report, "w") as file:
        file.write(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])
"""


# glibc otherwise keeps what was freed, up to a fifth of all: `vton info` counts what is alive.
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}


def run(*arguments: str) -> Measured:
    """The command in a process of its own."""
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile("r") as report:
        command = [sys.executable, "-c", MEASURED, report.name, *arguments]
        subprocess.run(command, check=True, env=os.environ | GIVING_BACK)
        return Measured(time.perf_counter() - started, 1024 * int(report.read()))


def apart(function, *arguments):
    """What the function returns, in a process of its own: its memory is free again afterwards."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def at_rest() -> int:
    """Resident memory of a process that has loaded vton and no weights."""
    return run("info", "model=gardiff", "preset=tiny").resident


def report(case: str, measured: Measured, predicted: int, rest: int) -> float:
    """Print a line; returns measured over predicted, both without what Python itself takes."""
    ratio = (measured.resident - rest) / predicted
    line = {
        "case": case,
        "seconds": round(measured.seconds, 1),
        "peak_resident_gib": round(measured.resident / GIB, 2),
        "of_it_python_gib": round(rest / GIB, 2),
        "predicted_gib": round(predicted / GIB, 2),
        "measured_over_predicted": round(ratio, 3),
    }
    print(json.dumps(line), flush=True)
    with (Path(os.environ["VTON_FULL_SCRATCH"]) / "full.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    return ratio


# ---- published formats ----


def publish_gardiff(folder: Path, config) -> tuple[Path, list[str]]:
    """unet.pth of the December release, and SD 1.5, CLIP ViT-L/14 beside it."""
    given = write_base_weights(config, folder / "base")
    channels = config.codec.channels
    unet = on_meta(
        lambda: UNet2DConditionModel(**unet_arguments(config.model.unet, 2 * channels, channels))
    )
    torch.save(filled(unet, 3).state_dict(), folder / "unet.pth")
    return folder / "unet.pth", [line for line in given if not line.startswith("model.unet.")]


def publish_idm_vton(folder: Path, config) -> tuple[Path, list[str]]:
    """The authors' folder: nine subfolders and model_index.json."""
    write_base_weights(config, folder / "base")
    base, published = folder / "base", folder / "idm"
    published.mkdir()
    places = {
        "vae/vae": "vae",
        "garment_unet/unet": "unet_encoder",
        "clip": "image_encoder",
        "text/text_encoder": "text_encoder",
        "text/tokenizer": "tokenizer",
        "text_2/text_encoder": "text_encoder_2",
        "text_2/tokenizer": "tokenizer_2",
        "unet/unet": "unet",
    }
    for source, target in places.items():
        (base / source).rename(published / target)
    for weights in (published / "unet").glob("*.safetensors"):
        weights.unlink()
    tryon = module_on_meta(config).tryon.unet
    state = filled(tryon, 5).state_dict()
    write_tensors(
        published / "unet" / "diffusion_pytorch_model.safetensors", state, PUBLISHED_METADATA
    )
    arguments = unet_arguments(config.model.unet, 13, 4)
    (published / "unet" / "config.json").write_text(json.dumps(arguments))
    (published / "model_index.json").write_text(json.dumps(dict(NETWORKS)))
    shutil.rmtree(base)
    return published, []


def publish_imagdressing(folder: Path, config) -> tuple[Path, list[str]]:
    """The DeepSpeed file, and SD 1.5, ViT-H/14 and the inpainting ControlNet beside it."""
    given = write_base_weights(config, folder / "base")
    module = module_on_meta(config)
    names = {"garment_unet": "ref_unet", "projector": "proj", "adapter": "adapter_modules"}
    content = {}
    for ours, theirs in names.items():
        for name, tensor in filled(getattr(module, ours), 4).state_dict().items():
            content[f"{theirs}.{name}"] = tensor
    torch.save({"module": content}, folder / "IMAGDressing-v1_512.pt")
    return folder / "IMAGDressing-v1_512.pt", given


PUBLISHED = {
    "gardiff": (publish_gardiff, ["model.mode=release"], 8),
    "imagdressing": (publish_imagdressing, [], 8),
    "idm_vton": (publish_idm_vton, [], 20),
}


@pytest.mark.parametrize("model", list(PUBLISHED))
def test_a_published_checkpoint_samples(scratch, model):
    """Import, then two steps at the paper's size in bf16."""
    publish, mode, most = PUBLISHED[model]
    config = load(f"model={model}", "preset=paper", *mode)
    path, given = apart(publish, scratch, config)
    runs = scratch / "runs"
    sampling = ("sampler.steps=2", "eval.precision=bf16", "eval.batch_size=1", *PLAIN, *ONE_PAIR)
    data = f"data.root={scratch / 'data'}"
    run("import", model, str(path), f"runs={runs}", "name=full", *given, data)
    out = scratch / "pictures"
    rest = at_rest()
    drawn = run("predict", "--run", str(runs / "full"), "--out", str(out), data, *sampling)
    assert len(list(out.glob("*.png"))) == 1
    described = load(f"model={model}", "preset=paper", *mode, "eval.precision=bf16")
    predicted = describe(described)["memory"]["peak"]
    ratio = report(f"{model}: sampling", drawn, predicted, rest)
    assert drawn.resident < most * GIB
    assert 0.85 < ratio < 1.15


TRAINED = {  # settings with which one step fits 24 GiB
    "gardiff": ("data.size=[256,192]", "train.ema=0"),
    "imagdressing": ("data.size=[320,256]", "train.ema=0"),
    "tryondiffusion": ("train.optimizer=adamw8bit", "train.ema=0"),
    "idm_vton": ("data.size=[256,192]", "model.lora.rank=8"),  # its UNet whole asks for 65 GiB
}
ONE_STEP = (
    *(
        "train.steps=1",
        "train.batch_size=1",
        "train.global_batch=0",
        "train.picture_every=0",
        "train.warmup_steps=0",
    ),
    *("train.precision=bf16", "train.checkpoint_every=1"),
)


@pytest.mark.parametrize("model", list(TRAINED))
def test_a_paper_preset_trains(scratch, model):
    """One step at a reduced size, from base weights where the paper has any."""
    if "train.optimizer=adamw8bit" in TRAINED[model]:
        pytest.importorskip("bitsandbytes", reason="needs .venv/bin/pip install -e .[eightbit]")
    settings = [*TRAINED[model], *ONE_STEP, *PLAIN, *ONE_PAIR, f"data.root={scratch / 'data'}"]
    config = load(f"model={model}", "preset=paper", *settings)
    if config.codec.pretrained:
        settings += apart(write_base_weights, config, scratch / "base")
    runs = f"runs={scratch / 'runs'}"
    rest = at_rest()
    trained = run("train", f"model={model}", "preset=paper", *settings, runs, "name=full")
    memory = describe(config, gpus=1)["training"]["checkpointed"]["strategies"]["ddp"]
    report(f"{model}: training step", trained, memory["total"], rest)
    if model != "tryondiffusion":
        return
    out = scratch / "pictures"  # there are no published weights: from the run itself
    run_folder = str(scratch / "runs" / "full")
    sampling = ("sampler.steps=2", "eval.precision=bf16", "eval.batch_size=1")
    drawn = run("predict", "--run", run_folder, "--out", str(out), *sampling)
    predicted = describe(load(f"model={model}", "preset=paper", "eval.precision=bf16"))
    ratio = report(f"{model}: sampling", drawn, predicted["memory"]["peak"], rest)
    assert 0.85 < ratio < 1.15
