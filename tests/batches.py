"""Random but valid batches, and small modules, for tests that need no folder."""

from __future__ import annotations

from dataclasses import replace

import torch

from vton import registry
from vton.config import load
from vton.data.compact import EVERYTHING
from vton.data.sample import JOINTS, TryOnBatch, TryOnSample
from vton.models.base import TryOnModule
from vton.models.codecs import LinearCodec, build_codec

SIZE = (64, 48)


def smooth(
    generator: torch.Generator, channels: int = 3, size: tuple[int, int] = SIZE
) -> torch.Tensor:
    coarse = torch.rand(1, channels, 8, 6, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(-1, 1)[0]


def random_sample(index: int, size: tuple[int, int] = SIZE) -> TryOnSample:
    g = torch.Generator().manual_seed(index)
    h, w = size
    mask, warped_mask = torch.zeros(1, h, w), torch.zeros(1, h, w)
    mask[:, h // 4 : 3 * h // 4, w // 4 : 3 * w // 4] = 1
    warped_mask[:, h // 3 : 2 * h // 3, w // 3 : 2 * w // 3] = 1
    garment, background = smooth(g, size=size), smooth(g, size=size)
    worn = torch.where(
        warped_mask > 0, garment * 0.9, garment.mean((1, 2), keepdim=True).expand_as(garment)
    )
    person = torch.where(mask > 0, worn, background)
    return TryOnSample(
        index=index,
        dataset="synthetic",
        person_id=f"{index:05d}_00",
        garment_id=f"{index:05d}_00",
        order="paired",
        category="upper_body",
        person_caption="model is wearing a shirt",
        garment_caption="a photo of a shirt",
        person=person,
        agnostic=person * (1 - mask),
        agnostic_mask=mask,
        garment=garment,
        garment_mask=torch.ones(1, h, w),
        warped_garment=torch.where(warped_mask > 0, garment, torch.ones(())),
        warped_mask=warped_mask,
        pose_map=smooth(g, size=size),
        keypoints=torch.rand(JOINTS, 3, generator=g).round(decimals=2),
        parse=torch.zeros(h, w, dtype=torch.int64),
        densepose=smooth(g, size=size),
        truth=person,
        truth_garment_mask=warped_mask,
        position=index,
    )


def random_batch(count: int = 2, size: tuple[int, int] = SIZE, first: int = 0) -> TryOnBatch:
    return TryOnBatch.collate([random_sample(first + i, size).check() for i in range(count)])


def tiny_module(model: str, *overrides: str, size: tuple[int, int] = SIZE) -> TryOnModule:
    """A model's tiny preset on small pictures, its codec fitted where it is linear.

    Two steps of sampling, unless the overrides say otherwise: GarDiff's preset has 24.
    """
    few = ("preset=tiny", f"data.size={list(size)}", "sampler.steps=2")
    config = load(f"model={model}", *few, *overrides)
    torch.manual_seed(0)
    codec = build_codec(config.codec)
    if isinstance(codec, LinearCodec):
        codec.fit(random_batch(8, size).person.split(4))
    return registry.module_class(model)(config, codec)


def randomised(module: torch.nn.Module, amount: float = 0.05) -> torch.nn.Module:
    """Off its initial values, where zeros and equal copies hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return module


def as_loaded(batch: TryOnBatch, module: TryOnModule) -> TryOnBatch:
    """The batch with the fields alone that the module says it reads, as loaders make it."""
    wanted = type(module).fields_read(module.config)
    unread = EVERYTHING - (EVERYTHING if wanted is None else wanted)
    return replace(batch, **dict.fromkeys(unread))
