"""Weights of ImageNet classifiers as torchvision publishes them, with random values."""

import hashlib

import torch


def weights_file(folder, constructor):
    """A classifier's weights under the name that torchvision would give them, and its features'."""
    torch.manual_seed(0)
    state = constructor(weights=None).state_dict()
    file = folder / "weights.pth"
    torch.save(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file = file.rename(folder / f"{constructor.__name__}-{digest[:8]}.pth")
    features = {
        name.removeprefix("features."): value
        for name, value in state.items()
        if name.startswith("features.")
    }
    return file, features
