"""Weights of ImageNet classifiers as torchvision publishes them, with random values."""

import hashlib
from contextlib import contextmanager

import pytest
import torch
from torch import nn


@contextmanager
def undrawn_classifiers():
    """Inside, layers behind the features stay as they are allocated: VGG has 124 million such
    weights, and no metric reads them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "reset_parameters", lambda self: None)
        patch.setattr(nn.init, "normal_", lambda tensor, *_, **__: tensor)
        yield


def weights_file(folder, constructor):
    """A classifier's weights under the name that torchvision would give them, and its features'.

    Of other layers the file has names alone.
    """
    torch.manual_seed(0)
    with undrawn_classifiers():
        state = constructor(weights=None).state_dict()
    for name in state:
        if not name.startswith("features."):
            state[name] = torch.zeros(1)
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
