"""The networks of the metrics: LPIPS, DISTS, Inception and those of the garment-driven metrics.

They are built once, from files that are there or with fixed random weights, and never downloaded.
"""
# Shapes: B batch, H W height and width of the pictures, D width of an Inception feature

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vton.config import EvalConfig
from vton.metrics import inception, prepare
from vton.metrics.garment_scores import (
    NEEDS,
    GarmentNetworks,
    GarmentScores,
    crop_features,
    with_stored,
)
from vton.metrics.protocol import changes, configured
from vton.models.perceptual import DISTS, LPIPS
from vton.weights import metric_networks

if TYPE_CHECKING:
    from vton.metrics.vision import Vision


# Distances between sets, and the networks whose features they compare.
SET_METRICS = {"fid": "inception", "kid": "inception", "fd_dinov2": "dinov2", "cmmd": "clip"}
VISION_OF_GARMENTS = {"m_dino": "dinov2", "m_clip_i": "clip"}
VISION_METRICS = {"dinov2": ("fd_dinov2", "m_dino"), "clip": ("cmmd", "m_clip_i")}
PARTS = ("edge", "texture")  # of a garment: `ssim_edge` and so on


class Extractors:
    """The networks that the metrics of `eval` in the configuration need.

    Each is None where no metric needs it. Pictures go in as uint8.
    """

    def __init__(
        self,
        config: EvalConfig,
        device: str | torch.device = "cpu",
        garment_networks: GarmentNetworks | None = None,
        worn_masks: bool = False,
    ):
        """garment_networks: those of the garment-driven metrics that no file brings.

        worn_masks: whether targets say where the predictions show the garment
        """
        self.metrics = config.metrics
        self.protocol = configured(config)
        self.device = torch.device(device)
        self._folder = config.weights
        # lpips, dists, inception -> file of its weights; None = random
        self.files: dict[str, Path | None] = {}

        net, seed = self.protocol.lpips_net, self.protocol.weights_seed
        self.lpips: LPIPS | None = None
        if any(metric.partition("_")[0] == "lpips" for metric in self.metrics):
            self.lpips = self._ready(LPIPS(net, self._find("lpips", net), seed))

        self.dists: DISTS | None = None
        if "dists" in self.metrics:
            path = self._find("dists", "vgg")
            self.dists = self._ready(DISTS(path, seed, self.protocol.dists_side))

        self.inception: inception.Inception | None = None
        self.inception_side = self.protocol.random_inception_side
        if "fid" in self.metrics or "kid" in self.metrics:
            path = self._find("inception", "inception")
            network = metric_networks.build(inception.Inception, path, seed)
            self.inception = self._ready(network)
            if path is not None:
                self.inception_side = self.protocol.inception_side

        networks = garment_networks or GarmentNetworks()
        plugged_in = [name for name in VISION_OF_GARMENTS if getattr(networks, name) is not None]
        self.dinov2 = self._vision("dinov2", plugged_in)
        self.clip = self._vision("clip", plugged_in)

        asked = [metric for metric in self.metrics if metric in NEEDS]
        folder = metric_networks.folder(config.weights) if asked else None
        networks = with_stored(networks, asked, folder, self.device)
        for metric, network in VISION_OF_GARMENTS.items():
            if metric in asked and metric not in plugged_in:
                networks = replace(networks, **{metric: crop_features(getattr(self, network))})
        self.garment = GarmentScores(asked, networks, worn_masks)

    def _vision(self, network: str, plugged_in: Sequence[str]) -> Vision | None:
        """DINOv2 or CLIP, if a metric needs it that has no network of its own."""
        needing = set(VISION_METRICS[network]) - set(plugged_in)
        if not set(self.metrics) & needing:
            return None
        from vton.metrics.vision import Vision  # imports transformers

        path = metric_networks.find_folder(network, self._folder)
        self.files[network] = path
        return self._ready(Vision(network, path, self.protocol.weights_seed))

    def _find(self, user: str, network: str) -> Path | None:
        path = metric_networks.find(network, self._folder)
        self.files[user] = path
        return path

    def _ready(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, memory_format=torch.channels_last).eval()

    # ---- what rows say about them ----

    def name(self, metric: str) -> str:
        """The metric's name in rows.

        A metric on other weights than the published ones, or on another backbone than LPIPS'
        AlexNet, has another name.
        """
        base, _, part = metric.partition("_")
        if metric in NEEDS:
            network = VISION_OF_GARMENTS.get(metric, "")
            metric = self.garment.name(metric)
        elif metric in SET_METRICS:
            network = SET_METRICS[metric]
        elif part in PARTS:
            network = base
            metric = f"{self._with_backbone(base)}_{part}"
        else:
            network = metric
            metric = self._with_backbone(metric)
        random = network in self.files and self.files[network] is None
        return f"{metric}_random" if random else metric

    def _with_backbone(self, metric: str) -> str:
        if metric == "lpips" and self.protocol.lpips_net != "alex":
            return f"lpips_{self.protocol.lpips_net}"
        return metric

    def settings(self) -> dict[str, Any]:
        """For provenance: the protocol's numbers, what is changed in it, each network's weights."""
        return {
            "protocol": asdict(self.protocol),
            "changes": changes(self.protocol),
            "networks": self._described,
        }

    @property
    def set_networks(self) -> list[str]:
        """Networks of the asked distances between sets, as SET_METRICS names them."""
        networks = [SET_METRICS[metric] for metric in self.metrics if metric in SET_METRICS]
        return list(dict.fromkeys(networks))

    @cached_property
    def _described(self) -> dict[str, str]:
        """lpips, dists, inception -> "<file or random>, sha256 <16 digits, over its weights>"."""
        described = {}
        for user, path in self.files.items():
            name = path.name if path else "random"
            digest = metric_networks.digest(getattr(self, user))
            described[user] = f"{name}, sha256 {digest[:16]}"
        return described

    # ---- what they make of pictures ----

    @contextmanager
    def exact(self) -> Iterator[None]:
        """No gradients, no autocast, no TF32: numbers in tables are computed in float32."""
        cudnn = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        products = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False), cudnn:
                yield
        finally:
            torch.set_float32_matmul_precision(products)

    def lpips_features(self, pictures: Tensor) -> list[Tensor]:
        """LPIPS' layers of pictures (B, 3, H, W)."""
        side = self.protocol.lpips_side
        if side:
            squares = []
            for picture in pictures:
                squares.append(prepare.resize(picture.cpu(), (side, side), "bilinear"))
            pictures = torch.stack(squares).to(self.device)
        return self.lpips.features(_channels_last(pictures / 255))

    def dists_features(self, pictures: Tensor) -> list[Tensor]:
        """DISTS' layers of pictures (B, 3, H, W)."""
        return self.dists.features(_channels_last(pictures / 255))

    def set_features(
        self, network: str, pictures: Sequence[Tensor], masks: Sequence[Tensor] | None
    ) -> Tensor:
        """Features (B, D) by one of SET_METRICS' networks, as `inception_features` takes pictures.

        Garments are grey outside their masks and cropped to them.
        """
        if network == "inception":
            return self.inception_features(pictures, masks)
        shown = list(pictures)
        if masks is not None:
            crops = zip(pictures, masks, strict=True)
            shown = [inception.garment_crop(picture, mask) for picture, mask in crops]
        return getattr(self, network).features(shown, garments=masks is not None)

    def inception_features(
        self, pictures: Sequence[Tensor], masks: Sequence[Tensor] | None
    ) -> Tensor:
        """Features (B, D) of pictures (3, h, w) of any sizes.

        masks: (1, h, w) each, for features of the garments alone; None = of the whole pictures
        """
        side, style = self.inception_side, self.protocol.inception_resize
        squares = []
        for row, picture in enumerate(pictures):
            picture = picture[None].to(self.device)
            if masks is None:
                squares.append(inception.resize_to_square(picture, side, style))
            else:
                mask = masks[row][None].to(self.device)
                squares.append(inception.garment_crops(picture, mask, side, style))
        return self.inception(_channels_last(torch.cat(squares)))


def _channels_last(pictures: Tensor) -> Tensor:
    return pictures.contiguous(memory_format=torch.channels_last)
