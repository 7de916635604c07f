"""Tiny IDM-VTON checkpoints in the published format."""

import pytest
import torch

from vton import registry
from vton.config import load
from vton.models.codecs import build_codec
from vton.models.idm_vton.checkpoint import write_published
from vton.runs.folder import RunFolder

CODEC = (
    "codec.name=kl",
    "codec.widths=[8,8,8]",
    "codec.groups=4",
    "codec.layers=1",
    "codec.channels=4",
)


# The published format has no place for a position code.
PUBLISHED_SHAPE = ("model.unet.positions=0", "model.garment_unet.positions=0")


@pytest.fixture(scope="session")
def published_idm_vton(tmp_path_factory):
    """A from-scratch run exported: a complete diffusers folder of tiny random networks."""
    root = tmp_path_factory.mktemp("idm")
    overrides = (
        *PUBLISHED_SHAPE,
        "data.size=[64,48]",
        *CODEC,
        f"runs={root / 'runs'}",
        "name=scratch",
    )
    config = load("model=idm_vton", "preset=tiny", *overrides)
    torch.manual_seed(0)
    codec = build_codec(config.codec)
    codec.save(RunFolder.of(config).codec)
    module = registry.module_class("idm_vton")(config, codec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    write_published(root / "published", dict(module.state_dict()), config, {})
    return root / "published", module
