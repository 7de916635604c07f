"""Weights of the metric networks: verified files from a folder, or fixed random ones.

Nothing is downloaded here. The folder is eval.weights, else $VTON_METRIC_WEIGHTS (set but empty:
none), else where `vton weights` put them. It holds the files under the names their authors publish
them with; each name ends in the first eight digits of the file's SHA-256, which is checked:

    pt_inception-2015-12-05-6726825d.pth    FID and KID
    alexnet-owt-7be5be79.pth                LPIPS with AlexNet
    vgg16-397923af.pth                      LPIPS with VGG, DISTS, GarDiff's appearance loss
    squeezenet1_1-b8a52dc0.pth              LPIPS with SqueezeNet
    vgg19-dcbb9e9d.pth                      the learned warp's perceptual loss

The first is pytorch-fid's (weights-inception-... in torch-fidelity), the others are torchvision's.
DINOv2 (FD-DINOv2, M-DINO) and CLIP ViT-L/14 at 336 px (CMMD, M-CLIP-I) are folders in the hub's
layout, `dinov2-large/` and `clip-vit-large-patch14-336/`.

A metric whose file is absent runs with random weights and is named `<metric>_random`. The
garment-driven metrics have no such form: they are skipped if one of their networks is missing
(garment_scores.py).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vton.config import ConfigError
from vton.files import file_digest

VARIABLE = "VTON_METRIC_WEIGHTS"
FILES = {
    "inception": (
        "pt_inception-2015-12-05-6726825d.pth",
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    "alex": ("alexnet-owt-7be5be79.pth",),
    "vgg": ("vgg16-397923af.pth",),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth",),
    "vgg19": ("vgg19-dcbb9e9d.pth",),
}
# Folders with the networks of the garment-driven metrics.
CLIP, IMAGE_REWARD, DIFT = "clip-vit-base-patch32", "image_reward", "stable-diffusion-2-1"
VTON_IQA = "vton_iqa"
# Folders in the hub's layout with networks that have a random form, too.
VISION = {"dinov2": "dinov2-large", "clip": "clip-vit-large-patch14-336"}


def fetched_folder() -> Path:
    """Where `vton weights` puts files: $VTON_METRIC_WEIGHTS, else the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or f"{cache}/vton/metric_weights").expanduser()


def folder(given: str, key: str = "eval.weights") -> Path | None:
    """The folder of pretrained metric networks; None where none is given and none was fetched.

    given: the setting `key`. Raises ConfigError when a given folder does not exist.
    """
    if given:
        asked_by, name = key, given
    elif VARIABLE in os.environ:
        asked_by, name = f"${VARIABLE}", os.environ[VARIABLE]
        if not name:
            return None
    else:
        return fetched_folder() if fetched_folder().is_dir() else None
    path = Path(name).expanduser()
    if not path.is_dir():
        expected = ", ".join(names[0] for names in FILES.values())
        raise ConfigError(f"{asked_by}={name}: no such folder; it should hold some of {expected}.")
    return path


def find(network: str, given: str, key: str = "eval.weights") -> Path | None:
    """The file with a network's pretrained weights, or None. Raises ConfigError like `folder`."""
    place = folder(given, key)
    if place is None:
        return None
    for name in FILES[network]:
        if (place / name).is_file():
            return place / name
    return None


def find_folder(network: str, given: str, key: str = "eval.weights") -> Path | None:
    """The folder of a network of VISION, or None. Raises ConfigError like `folder`."""
    place = folder(given, key)
    if place is None or not (place / VISION[network]).is_dir():
        return None
    return place / VISION[network]


def for_loss(network: str, given: str, key: str) -> Path | None:
    """The file with a network's pretrained weights for a training loss, or None.

    given: the setting `key`, a folder. Raises ConfigError if it lacks the file.
    """
    path = find(network, given, key)
    if path is None and given:
        raise ConfigError(f"{key}={given}: no {FILES[network][0]} in this folder.")
    return path


def build(network: Callable[[], nn.Module], path: Path | None, seed: int) -> nn.Module:
    """The network in evaluation mode, with the weights of `path`, or fixed random ones for None.

    It is made on the meta device: constructors would draw from the global random state. It stays
    there, without weights, where that is torch's default device. Raises ConfigError when the file
    is not what its name says.
    """
    with torch.device("meta"):
        module = network()
    device = torch.get_default_device()
    module = module.to_empty(device=device)
    if device.type != "meta":
        if path is None:
            randomise(module, seed)
        else:
            load_verified(module, path)
    return module.eval().requires_grad_(False)


def load_verified(module: nn.Module, path: Path) -> None:
    """Fill the module from a verified file, which may hold layers that the module does not have."""
    state = read_verified(path)
    own = module.state_dict()
    state = {name: value for name, value in state.items() if name in own}
    for name, buffer in module.named_buffers():
        if name.endswith("num_batches_tracked"):  # absent from files of 2015; used in training only
            state.setdefault(name, torch.zeros_like(buffer))
    module.load_state_dict(state)


def read_verified(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises ConfigError unless its SHA-256 begins with the digits that end
    its name.
    """
    digest = file_digest(path)
    expected = digits_in_name(path)
    if not expected or not digest.startswith(expected):
        expected = expected or "eight digits of it at the end of the name"
        raise ConfigError(
            f"{path}: SHA-256 begins with {digest[:8]}, expected {expected}; fetch the file again."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def digits_in_name(path: Path) -> str:
    """The eight digits of its SHA-256 that end a published file's name, else "".

    6726825d of pt_inception-2015-12-05-6726825d.pth.
    """
    match = re.search(r"-([0-9a-f]{8})$", path.stem)
    return match[1] if match else ""


def randomise(module: nn.Module, seed: int) -> None:
    """He-uniform filters, zero biases, identity normalisation: every layer keeps the scale of its
    input.

    Drawn with `torch.rand` from a generator of its own: uniform numbers are the same bits on every
    machine, and the global random state stays as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            bound = (6 / fan_in) ** 0.5
            uniform = torch.rand(layer.weight.shape, generator=generator)
            layer.weight.data.copy_((2 * uniform - 1) * bound)
            if layer.bias is not None:
                layer.bias.data.zero_()
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.weight.data.fill_(1)
            layer.bias.data.zero_()


def digest(module: nn.Module) -> str:
    """SHA-256 over the names and bytes of a network's state, for provenance and encodings' keys."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()
