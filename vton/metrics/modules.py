"""The metrics that people ask for besides SSIM and FID, as classes for anyone's own loop.

    distance = FrechetDinoDistance()
    for ids, truths, pictures in batches:
        distance.update(truths, ids, real=True)
        distance.update(pictures, ids, real=False)
    print(distance.name, distance.compute())

They are torchmetrics' Metric: they live in a LightningModule or a MetricCollection, move with it,
and gather over processes in `compute`. Unlike torchmetrics' own they know each picture by its id,
so that a picture which a distributed sampler repeats counts once, processes may have different
numbers of pictures or none, and no number depends on how pictures were shared out. `vton metrics`
and `vton eval` compute the same numbers by the same functions.

protocol is a name in PROTOCOLS, weights the folder of pretrained metric networks as eval.weights
takes it. `name` ends in `_random` where the network has fixed random weights. Pictures are uint8
(B, 3, H, W).
"""
# Shapes: B batch, D width of a feature

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as distributed
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from vton.config import EvalConfig, Metric
from vton.metrics import pixelwise
from vton.metrics.distributions import FrechetDistance, GaussianDistance, SetDistance
from vton.metrics.extractors import Extractors
from vton.metrics.garment_scores import GarmentScores
from vton.metrics.target import Target
from vton.metrics.truth import edge_and_texture


class KeyedMetric(TorchMetric):
    """States are rows of numbers by picture id, gathered and sorted before anything is computed."""

    full_state_update = False

    def __init__(self, metric: Metric, protocol: str, weights: str, **kwargs):
        super().__init__(**kwargs)
        config = EvalConfig(metrics=(metric,), protocol=protocol, weights=weights)
        self.extractors = Extractors(config)
        self.name = self.extractors.name(metric)
        self.protocol = self.extractors.protocol

    def _add_table(self, table: str) -> None:
        self.add_state(f"{table}_ids", [], dist_reduce_fx=None)
        self.add_state(f"{table}_rows", [], dist_reduce_fx=None)

    def _keep(self, table: str, ids: Sequence[str], rows: Tensor) -> None:
        """Store rows (B, ...) by id."""
        keys = torch.tensor([_key(name) for name in ids], dtype=torch.int64)
        getattr(self, f"{table}_ids").append(keys)
        getattr(self, f"{table}_rows").append(rows.detach().cpu())

    def _rows(self, table: str) -> Tensor:
        """Rows in the order of their ids' keys, of an id that comes again the first."""
        parts = getattr(self, f"{table}_ids")
        if not parts:
            return torch.empty(0, 0)
        # States that were moved to a GPU stand beside those of later updates.
        rows = torch.cat([part.cpu() for part in getattr(self, f"{table}_rows")])
        keys = torch.cat([part.cpu() for part in parts])
        first: dict[int, int] = {}
        for place, key in enumerate(keys.tolist()):
            first.setdefault(key, place)
        return rows[[first[key] for key in sorted(first)]]

    def _sync_dist(self, dist_sync_fn=None, process_group=None) -> None:
        """All processes' rows on each of them; torchmetrics' own gather wants equally many."""
        own = {name: getattr(self, name) for name in self._defaults}
        gathered = [None] * distributed.get_world_size(process_group)
        distributed.all_gather_object(gathered, own, group=process_group)
        for name in self._defaults:
            parts = []
            for states in gathered:
                parts += states[name]
            setattr(self, name, parts)


class _SetMetric(KeyedMetric):
    higher_is_better = False
    network: str

    def __init__(self, metric: Metric, protocol: str, weights: str, **kwargs):
        super().__init__(metric, protocol, weights, **kwargs)
        self._add_table("real")
        self._add_table("made")

    def update(self, pictures: Tensor, ids: Sequence[str], real: bool) -> None:
        """Add pictures to one of the two sets."""
        vision = getattr(self.extractors, self.network)
        vision.to(self.device)
        with torch.inference_mode():
            features = vision.features(list(pictures))
        self._keep("real" if real else "made", ids, features.clone())

    def compute(self) -> Tensor:
        """Needs two pictures in each set. Raises ValueError."""
        made, real = self._rows("made"), self._rows("real")
        if min(len(made), len(real)) < 2:
            raise ValueError(
                f"{self.name} needs two pictures in each set, got {len(made)} and {len(real)}."
            )
        return torch.tensor(self._distance(made, real).value(), dtype=torch.float64)

    def _distance(self, made_ND: Tensor, real_MD: Tensor) -> SetDistance:
        """The distance of features of pictures (N, D) and (M, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no distance of its own")


class FrechetDinoDistance(_SetMetric):
    """FD-DINOv2: Frechet distance of DINOv2's features (Stein et al. 2023, arXiv 2306.04675)."""

    network = "dinov2"

    def __init__(self, protocol: str = "exact", weights: str = "", **kwargs):
        super().__init__("fd_dinov2", protocol, weights, **kwargs)

    def _distance(self, made_ND: Tensor, real_MD: Tensor) -> SetDistance:
        return FrechetDistance(made_ND, real_MD)


class ClipDiscrepancy(_SetMetric):
    """CMMD: kernel distance of CLIP's embeddings (Jayasumana et al. 2024, arXiv 2401.09603)."""

    network = "clip"

    def __init__(self, protocol: str = "exact", weights: str = "", **kwargs):
        super().__init__("cmmd", protocol, weights, **kwargs)

    def _distance(self, made_ND: Tensor, real_MD: Tensor) -> SetDistance:
        return GaussianDistance(made_ND, real_MD)


class _PairMetric(KeyedMetric):
    """The mean of scores, one for each pair."""

    higher_is_better = True

    def __init__(self, metric: Metric, protocol: str, weights: str, **kwargs):
        super().__init__(metric, protocol, weights, **kwargs)
        self._add_table("pair")

    def compute(self) -> Tensor:
        """Raises ValueError where there is no pair."""
        scores = self._rows("pair")
        if not len(scores):
            raise ValueError(f"{self.name} has no pair to be the mean of.")
        return scores.double().mean()


class GarmentSimilarity(_PairMetric):
    """M-DINO or M-CLIP-I: the cosine of features of two garment crops (arXiv 2508.13632)."""

    def __init__(
        self,
        network: Literal["dino", "clip_i"] = "dino",
        protocol: str = "exact",
        weights: str = "",
        **kwargs,
    ):
        super().__init__(f"m_{network}", protocol, weights, **kwargs)
        self.metric = f"m_{network}"
        # Masks are given, so the name needs no mark of whose they are.
        self.scores = GarmentScores([self.metric], self.extractors.garment.networks, True)
        random = self.name.endswith("_random")
        self.name = f"{self.metric}_random" if random else self.metric

    def update(
        self,
        pictures: Tensor,
        masks: Tensor,
        garments: Tensor,
        ids: Sequence[str],
        silhouettes: Tensor | None = None,
    ) -> None:
        """masks: where pictures show the garment, silhouettes: where in-shop pictures do, bool

        Both are (B, 1, h, w).
        """
        scores = []
        for row, name in enumerate(ids):
            target = Target(name, name, "all", "unpaired", tuple(pictures.shape[-2:]))
            target.worn_mask = masks[row].cpu() > 0
            target.garment = garments[row].cpu()
            if silhouettes is not None:
                target.silhouette = silhouettes[row].cpu() > 0
            found, _ = self.scores.measure(target, pictures[row])
            scores.append(found[self.metric])
        self._keep("pair", ids, torch.tensor(scores, dtype=torch.float64))


class GarmentParts(KeyedMetric):
    """SSIM, PSNR or LPIPS of a garment's edge and of its inside: {edge, texture}.

    OpenVTON-Bench separates the two by erosion, too (arXiv 2601.22725). Garments without an inside
    count for the edge alone; a part that no garment has is absent.
    """

    def __init__(
        self,
        score: Literal["ssim", "psnr", "lpips"] = "ssim",
        protocol: str = "exact",
        weights: str = "",
        **kwargs,
    ):
        super().__init__(f"{score}_edge", protocol, weights, **kwargs)
        self.score = score
        self._add_table("edge")
        self._add_table("texture")

    def update(self, pictures: Tensor, truths: Tensor, masks: Tensor, ids: Sequence[str]) -> None:
        """masks: bool (B, 1, H, W), where the truths show the garment; at least a pixel of it

        Outside the mask a picture is composed with its truth.
        """
        masks = masks.cpu().float()
        truths = truths.cpu()
        shown = torch.where(masks > 0, pictures.cpu(), truths)
        parts = edge_and_texture(masks, self.protocol.edge_share)
        with self.extractors.exact():
            for row, name in enumerate(ids):
                for part, weight in parts.items():
                    weight = weight[row : row + 1]
                    if weight.any():
                        one = slice(row, row + 1)
                        value = self._measure(shown[one], truths[one], weight)
                        self._keep(part, [name], value)

    def _measure(self, picture: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
        x, y = picture / 255, truth / 255
        if self.score == "ssim":
            return pixelwise.ssim(x, y, weight, self.protocol).clone()
        if self.score == "psnr":
            return pixelwise.psnr(x, y, weight, self.protocol).clone()
        features = self.extractors.lpips_features
        return self.extractors.lpips.distance(features(picture), features(truth), weight).clone()

    def compute(self) -> dict[str, Tensor]:
        means = {}
        for part in ("edge", "texture"):
            scores = self._rows(part)
            if len(scores):
                means[part] = scores.double().mean()
        return means


class TryOnQuality(_PairMetric):
    """VTON-IQA (arXiv 2603.13057), from its published files.

    weights: the folder of metric networks, which holds vton_iqa/. Raises ValueError without it:
    there is no random form.
    """

    def __init__(self, protocol: str = "exact", weights: str = "", **kwargs):
        super().__init__("vton_iqa", protocol, weights, **kwargs)
        if self.extractors.garment.absent:
            raise ValueError(f"vton_iqa {self.extractors.garment.absent['vton_iqa']}.")

    def update(
        self, pictures: Tensor, persons: Tensor, garments: Tensor, ids: Sequence[str]
    ) -> None:
        scores = []
        for picture, person, garment in zip(pictures, persons, garments, strict=True):
            arrays = [x.cpu().permute(1, 2, 0).numpy() for x in (person, garment, picture)]
            scores.append(self.extractors.garment.networks.iqa(*arrays))
        self._keep("pair", ids, torch.tensor(scores, dtype=torch.float64))


def _key(name: str) -> int:
    """63 bits of an id's digest: states of torchmetrics are tensors."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
