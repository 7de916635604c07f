"""The stages of the cascade behind the sampler's contract, from tensors to predictions.

`TryOnStage` is the 128 and 256 networks, `UpscaleStage` the 1024 one. Guidance drops all conditions
together: pictures and poses become zeros, noise levels stay (arXiv 2306.08276, Section 3.3; the
reading is ours, see README.md).

Legend: B batch, H W picture size, K keypoints, P pose width, E width of the conditioning vector, L
conditional images. Pictures are (B, 3, H, W) in [-1, 1], already with their augmentation noise;
levels are in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from vton.diffusion.denoiser import Conditions, Denoiser, Features, Step
from vton.models.tryondiffusion.config import TryOnDiffusionConfig
from vton.models.tryondiffusion.network import EfficientUNet, ParallelUNet
from vton.models.tryondiffusion.reuse import GarmentReuse


class TryOnStage(Denoiser):
    """A Parallel-UNet.

    timesteps: the t of pure noise. reuse: makes the garment features of sampling.
    """

    def __init__(
        self,
        network: ParallelUNet,
        config: TryOnDiffusionConfig,
        timesteps: int,
        reuse: GarmentReuse,
    ):
        super().__init__()
        self.network = network
        self.config = config
        self.timesteps = timesteps
        self.reuse = reuse

    def condition(
        self, images: dict[str, Tensor], levels: Tensor, person_pose: Tensor, garment_pose: Tensor
    ) -> Conditions:
        """What depends on neither z_t nor t, poses and levels already embedded.

        images: those of `network.images` by name, each (B, 3, H, W); levels (B or 1, L) in their
        order; poses (B, K, 2 or 3). Returns the images, levels (B, E), poses (B, E), pose_tokens
        (B, 2K, P) and null (B,) int64, on the CPU, 1 where `unconditional` made the row.
        """
        tokens, pooled = self.network.embedding.embed_poses(person_pose, garment_pose)
        embedded = self.network.embedding.embed_levels(levels).expand(len(tokens), -1)
        null = torch.zeros(len(tokens), dtype=torch.int64)
        return images | {"levels": embedded, "poses": pooled, "pose_tokens": tokens, "null": null}

    def unconditional(self, conditions: Conditions) -> Conditions:
        """Zeros for pictures and poses."""
        null = dict(conditions)
        for name in self.network.images:
            if name != "lowres" or self.config.drop_lowres:
                null[name] = torch.zeros_like(conditions[name])
        if self.config.drop_levels:
            null["levels"] = torch.zeros_like(conditions["levels"])
        pose = conditions["poses"].new_zeros(1, *self.network.embedding.pose_shape)
        tokens, pooled = self.network.embedding.embed_poses(pose, pose)
        null["poses"] = pooled.expand_as(conditions["poses"])
        null["pose_tokens"] = tokens.expand_as(conditions["pose_tokens"])
        null["null"] = torch.ones_like(conditions["null"])
        return null

    def embed(self, t: Tensor, conditions: Conditions) -> Tensor:
        """(B, E): the vector that FiLM reads in both UNets."""
        time = self.network.embedding.time(t / self.timesteps)
        return time + conditions["levels"] + conditions["poses"]

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        """In sampling, where all rows have one t, each distinct one once (see reuse.py); else those
        of each row.
        """
        sampling = step is not None and not bool((t != t[0]).any())
        if sampling and self.network.garment_unet is not None:
            return self.reuse(conditions, t)
        return self.network.encode_garment(conditions["garment"], self.embed(t, conditions))

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        aligned = [conditions[name] for name in self.network.aligned]
        e = self.embed(t, conditions)
        return self.network.denoise(z_t, aligned, e, conditions["pose_tokens"], features)


class UpscaleStage(Denoiser):
    """The Efficient-UNet, whose only condition is the low-resolution result."""

    def __init__(self, network: EfficientUNet, config: TryOnDiffusionConfig, timesteps: int):
        super().__init__()
        self.network = network
        self.config = config
        self.timesteps = timesteps

    def condition(self, images: dict[str, Tensor], levels: Tensor) -> Conditions:
        """images: lowres (B, 3, H, W), enlarged; levels (B or 1, 1) -> lowres and levels (B, E)."""
        embedded = self.network.level(levels[:, 0])
        return images | {"levels": embedded.expand(len(images["lowres"]), -1)}

    def unconditional(self, conditions: Conditions) -> Conditions:
        null = dict(conditions)
        if self.config.drop_lowres:
            null["lowres"] = torch.zeros_like(conditions["lowres"])
        if self.config.drop_levels:
            null["levels"] = torch.zeros_like(conditions["levels"])
        return null

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        e = self.network.time(t / self.timesteps) + conditions["levels"]
        return self.network.denoise(z_t, conditions["lowres"], e)
