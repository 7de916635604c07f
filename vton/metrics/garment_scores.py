"""The garment-driven metrics of IMAGDressing's table: which networks each takes, and what is absent
without them.

Networks are plain functions, so that anyone's can be plugged in: Scorer(config,
networks=GarmentNetworks(face=...)). Those whose weights lie in the folder of metric networks
(weights.py) are loaded from it:

    alexnet-owt-7be5be79.pth    lpips   LPIPS
    clip-vit-base-patch32/      clip    CLIP ViT-B/32 in the hub's layout
    stable-diffusion-2-1/       dift    unet, vae, text_encoder, tokenizer, scheduler in the hub's layout
    image_reward/               reward  ImageReward.pt, med_config.json and BERT's vocab.txt

Human parsers, pose estimators and face embedders come with no package used here and have to be
plugged in. Without a parser the garment is cut out of a prediction where the truth shows it; such a
number is called `<metric>_true_mask`. Nothing else stands in for a network: a metric that lacks one
is absent, and rows say why. Nor for a score: MP-LPIPS is not defined for a garment so thin in the
shop's picture that no point of its grid lies on it. Such a pair is left out of that mean for every
method alike, and rows name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vton.metrics import garment_driven, prepare
from vton.metrics.garment_driven import MetricError
from vton.metrics.tally import Region
from vton.metrics.target import Target
from vton.weights.metric_networks import CLIP, DIFT, FILES, IMAGE_REWARD

NEEDS: dict[str, tuple[Region, tuple[str, ...]]] = {
    "cami_u": ("garment", ("parser",)),
    "cami_s": ("garment", ("parser", "pose", "face", "clip")),
    "mp_lpips": ("garment", ("parser", "dift", "lpips")),
    "image_reward": ("image", ("reward",)),
}
STORED = {"lpips": FILES["alex"][0], "clip": CLIP, "dift": DIFT, "reward": IMAGE_REWARD}


@dataclass
class GarmentNetworks:
    """Functions of one picture, uint8 RGB (H, W, 3); None where a network is absent."""

    parser: Callable[[NDArray], NDArray] | None = None  # the garment's mask, bool (H, W)
    # drawn pose, uint8 (h, w, 3), black where nothing is drawn
    pose: Callable[[NDArray], NDArray] | None = None
    # embedding of the first face, None without one
    face: Callable[[NDArray], NDArray | Tensor | None] | None = None
    # with a prompt: features of prompt, picture
    clip: Callable[[NDArray, str], tuple[Tensor, Tensor]] | None = None
    dift: Callable[[NDArray], Tensor] | None = None  # of a 512 x 512 picture: (1, C, h, w)
    # two (N, 3, h, w) in [0, 1] to distances (N,)
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    reward: Callable[[NDArray, str], float] | None = None  # with a prompt: ImageReward


def with_stored(
    networks: GarmentNetworks, metrics: Sequence[str], folder: Path | None, device: torch.device
) -> GarmentNetworks:
    """`networks`, and what else the metrics need and the folder holds. Raises WeightsError naming a
    broken file.
    """
    needed = {
        part for metric in metrics for part in NEEDS[metric][1] if getattr(networks, part) is None
    }
    found = {part: folder / STORED[part] for part in needed & STORED.keys()} if folder else {}
    found = {part: path for part, path in found.items() if path.exists()}
    if not found:
        return networks
    from vton.metrics.garment_networks import LOADERS  # imports diffusers and transformers

    return replace(networks, **{part: LOADERS[part](path, device) for part, path in found.items()})


class GarmentScores:
    """The garment-driven metrics among `metrics`, of one prediction at a time.

    absent: metric -> the networks it lacks
    """

    def __init__(self, metrics: Sequence[str], networks: GarmentNetworks):
        self.networks = networks
        lacking = {
            metric: [
                part
                for part in NEEDS[metric][1]
                if part != "parser" and getattr(networks, part) is None
            ]
            for metric in metrics
        }
        self.metrics = [metric for metric, parts in lacking.items() if not parts]
        self.absent = {
            metric: f"needs {_listed(parts)}" for metric, parts in lacking.items() if parts
        }

    def name(self, metric: str) -> str:
        """How the metric is called in rows."""
        guided = "parser" in NEEDS[metric][1] and self.networks.parser is None
        return f"{metric}_true_mask" if guided else metric

    def measure(
        self, target: Target, prediction: Tensor
    ) -> dict[tuple[Region, str], float | MetricError]:
        """Scores by region and metric of a prediction, uint8 (3, H, W).

        The garment's are left out where the truth does not show it, and where neither truth nor
        parser say where it is. In the place of a score that is not defined for the pair stands the
        error that says why.
        """
        picture = _array(prediction.cpu())
        scores: dict[tuple[Region, str], float | MetricError] = {}
        shown = target.garment_mask is None or bool(target.garment_mask.any())
        for metric in self.metrics:
            region = NEEDS[metric][0]
            if region == "image":
                scores[region, metric] = self.networks.reward(picture, target.prompt)
            elif shown and (worn := self._worn(picture, target)) is not None:
                try:
                    scores[region, metric] = getattr(self, f"_{metric}")(target, picture, worn)
                except MetricError as undefined:
                    scores[region, metric] = undefined
        return scores

    def _worn(self, picture: NDArray, target: Target) -> NDArray | None:
        if self.networks.parser is not None:
            return self.networks.parser(picture)
        if target.garment_mask is None:
            return None
        return prepare.resize_mask(target.garment_mask, picture.shape[:2])[0].numpy()

    def _cami_u(self, target: Target, picture: NDArray, worn: NDArray) -> float:
        if not worn.any():
            return 0.0  # as the published code counts a picture it does not find
        return garment_driven.cami_u(_array(target.garment), cut_out(picture, worn))["cami_u"]

    def _cami_s(self, target: Target, picture: NDArray, worn: NDArray) -> float:
        if not worn.any():
            return 0.0
        faces = self.networks.face(_array(target.person)), self.networks.face(picture)
        return garment_driven.cami_s(
            _array(target.garment),
            cut_out(picture, worn),
            _array(target.pose_map),
            self.networks.pose(picture),
            None if any(face is None for face in faces) else faces,
            self.networks.clip(picture, target.prompt),
        )["cami_s"]

    def _mp_lpips(self, target: Target, picture: NDArray, worn: NDArray) -> float:
        garment, silhouette = _array(target.garment), target.silhouette[0].numpy()
        return garment_driven.mp_lpips(
            garment, silhouette, picture, worn, self.networks.dift, self.networks.lpips
        )


def cut_out(picture: NDArray, mask: NDArray) -> NDArray:
    """The mask's bounding box of a picture, white outside the mask: what an in-shop picture shows
    of a garment.

    The published code gets its garments cut out already and does not say how. A box is at least as
    large as SSIM's window, where the picture is.
    """
    box = []
    for axis, length in ((1, picture.shape[0]), (0, picture.shape[1])):
        places = mask.any(axis).nonzero()[0]
        first = max(0, min(places[0], length - garment_driven.SSIM_WINDOW))
        box.append(slice(first, max(places[-1] + 1, first + garment_driven.SSIM_WINDOW)))
    return np.where(mask[tuple(box)][..., None], picture[tuple(box)], np.uint8(255))


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(
        f"{part} ({STORED[part]} in the folder of metric weights)"
        if part in STORED
        else f"{part} (to be plugged in)"
        for part in parts
    )


def _array(picture: Tensor) -> NDArray:
    return picture.permute(1, 2, 0).contiguous().numpy()
