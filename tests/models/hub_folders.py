"""Hub folders as the published ones are: half precision inside and in config.json, and beside the
weights what else such folders hold.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

STEMS = ("diffusion_pytorch_model", "model")
FORMS = ("half", "variant", "sharded", "pickle")


def as_published(folder: Path, form: str = "half") -> None:
    """Make every network below `folder` what its published counterpart looks like.

    half: float16, as SDXL's encoders are; variant: `.fp16.safetensors` alone; sharded: two files
    and their index; pickle: `.bin` alone. Copies that must not be read lie beside all of them.
    """
    for weights in sorted(folder.rglob("*.safetensors")):
        if weights.stem in STEMS:
            rewrite(weights, form)
    for config in folder.rglob("config.json"):
        settings = json.loads(config.read_text())
        if "architectures" in settings:  # transformers takes the dtype over from here
            settings |= {"dtype": "float16", "torch_dtype": "float16"}
            config.write_text(json.dumps(settings))


def rewrite(weights: Path, form: str) -> None:
    state = {name: tensor.half() for name, tensor in load_file(weights).items()}
    folder, stem = weights.parent, weights.stem
    weights.unlink()
    if form == "variant":
        save_file(state, folder / f"{stem}.fp16.safetensors", {"format": "pt"})
    elif form == "sharded":
        shard(state, folder, stem)
    elif form == "pickle":
        pickled = "pytorch_model" if stem == "model" else stem
        torch.save(state, folder / f"{pickled}.bin")
    else:
        save_file(state, weights, {"format": "pt"})
    wrong = {"not.a.weight": torch.zeros(1)}
    save_file(wrong, folder / f"{stem}.non_ema.safetensors", {"format": "pt"})
    save_file(wrong, folder / f"{stem}_ema.safetensors", {"format": "pt"})
    if form == "half":
        torch.save(wrong, folder / f"{stem}.bin")
    for name in ("model.onnx", "openvino_model.bin", "openvino_model.xml", "flax_model.msgpack"):
        (folder / name).write_bytes(b"another framework's")


def shard(state: dict[str, torch.Tensor], folder: Path, stem: str) -> None:
    names = sorted(state)
    half = len(names) // 2
    places = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"{stem}-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
