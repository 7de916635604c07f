"""Scorer: pictures in, rows out. Every pair counts once, whatever the batches, processes and padding.

    scorer = Scorer(config.eval, device)
    people = scorer.people(paired_batches)                       # reference of FID and KID, once for both orders
    tallies = scorer.score(batches, {"gardiff": PictureFolder(folder), ...})   # all methods: truths are read once
    rows = [row for name, tally in tallies.items() for row in scorer.rows(tally, people, model=name, ...)]

Regions. `image` is the whole picture. `garment` is where the truth shows the garment: the prediction is composed with
the truth outside that mask, and SSIM map, LPIPS maps and DISTS statistics are averaged over the mask (reduced to each
layer's size by area), PSNR over its pixels. For FID and KID the garment is cut out: grey outside the mask, cropped to
the mask's bounding box; the reference are the garments that the people of the test split wear. Pairs whose truth does
not show the garment count for `image` only, which `n` shows.

Real unpaired pairs have no truth: they get FID and KID of `image` and nothing else.
"""
# Shapes: B batch, H W height and width of the pictures, D width of an Inception feature

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vton.config import EvalConfig
from vton.data.sample import DataError, TryOnBatch
from vton.metrics import inception, pixelwise, weights
from vton.metrics.distributions import frechet_distance, kernel_distance
from vton.metrics.perceptual import DISTS, LPIPS, Statistics
from vton.metrics.pictures import to_uint8
from vton.metrics.protocol import protocol
from vton.metrics.results import Row, digest_of_ids
from vton.metrics.tally import REGIONS, Features, Region, Tally

# Pair ids -> uint8 (B, 3, H, W), e.g. a PictureFolder. Methods that warp have an attribute `silhouettes`, of the same
# kind: white where the garment lies. Then `iou` is measured too.
Pictures = Callable[[Sequence[str]], Tensor]
PIXELS_AT_ONCE = {"cpu": 8 * 128 * 96, "cuda": 32 * 512 * 384}  # bounds the memory of the networks' feature maps


@dataclass
class Truth:
    """What all methods are compared with, for one region of one chunk of pairs."""

    region: Region
    rows: Tensor  # indices of the chunk's pairs that count in this region
    picture: Tensor  # uint8 (B, 3, H, W), these rows only
    mask: Tensor | None  # (B, 1, H, W); None for the whole picture
    lpips: list[Tensor] | None
    dists: list[Statistics] | None


class Scorer:
    """Measures pictures as `eval` of the configuration says. Networks are built once and never downloaded."""

    def __init__(self, config: EvalConfig, device: str | torch.device = "cpu"):
        self.config = config
        self.protocol = protocol(config.protocol)
        self.device = torch.device(device)
        self.files: dict[str, Path | None] = {}  # lpips, dists, inception -> file of its weights; None = random
        self.lpips = self.dists = self.inception = None
        seed = self.protocol.weights_seed
        if "lpips" in config.metrics:
            self.lpips = LPIPS(config.lpips_net, self._find("lpips", config.lpips_net), seed)
        if "dists" in config.metrics:
            self.dists = DISTS(self._find("dists", "vgg"), seed, self.protocol.dists_side)
        if {"fid", "kid"} & set(config.metrics):
            self.inception = weights.build(inception.Inception, self._find("inception", "inception"), seed)
        for network in (self.lpips, self.dists, self.inception):
            if network is not None:
                network.to(self.device, memory_format=torch.channels_last).eval()
        pretrained = self.files.get("inception") is not None
        self.side = self.protocol.inception_side if pretrained else self.protocol.random_inception_side

    def _find(self, user: str, network: str) -> Path | None:
        self.files[user] = weights.find(network, self.config.weights)
        return self.files[user]

    def name(self, metric: str) -> str:
        """How a metric is called in rows: other weights or another backbone than LPIPS' AlexNet, another name."""
        user = "inception" if metric in ("fid", "kid") else metric
        if metric == "lpips" and self.config.lpips_net != "alex":
            metric = f"lpips_{self.config.lpips_net}"
        return f"{metric}_random" if user in self.files and self.files[user] is None else metric

    # ---- measuring ----

    def people(self, batches: Iterable[TryOnBatch]) -> Features:
        """Features of the test split's person pictures, by person id: the reference of FID and KID in both orders.

        Takes batches in paired order, where the truth is the person and its garment mask the worn garment's.
        """
        people = Features()
        if self.inception is None:
            return people
        with _exact(self.device):
            for batch in self._chunks(batches, lambda batch: batch.person_id):
                if set(batch.order) != {"paired"}:
                    raise ValueError("the reference of FID and KID is built from batches in paired order")
                people.category.update(zip(batch.person_id, batch.category, strict=True))
                for region, rows, mask in self._regions(batch):
                    ids = [batch.person_id[row] for row in rows.tolist()]
                    people.add(region, ids, self._inception(to_uint8(batch.person[rows]), mask))
        return people

    def score(self, batches: Iterable[TryOnBatch], methods: Mapping[str, Pictures]) -> dict[str, Tally]:
        """Measure the pictures of every method against the batches of one order.

        Pairs that come twice (padding of a distributed sampler) are measured once. Raises DataError naming a picture
        that is missing, broken or not of the truth's size.
        """
        tallies: dict[str, Tally] = {}
        with _exact(self.device):
            for batch in self._chunks(batches, lambda batch: batch.pair_id):
                truths = self._truths(batch)
                for name, pictures in methods.items():
                    tally = tallies.setdefault(name, Tally(batch.order[0]))
                    if set(batch.order) != {tally.order}:
                        raise ValueError(f"one call measures one order, got {tally.order} and {batch.order}")
                    self._measure(tally, batch, self._pictures(name, pictures, batch), truths)
                    if "iou" in self.config.metrics and getattr(pictures, "silhouettes", None):
                        self._overlap(tally, batch, self._pictures(name, pictures.silhouettes, batch)[:, :1] > 127)
        return tallies

    def _measure(self, tally: Tally, batch: TryOnBatch, predictions: Tensor, truths: list[Truth]) -> None:
        tally.category.update(zip(batch.pair_id, batch.category, strict=True))
        for truth in truths:
            ids = [batch.pair_id[row] for row in truth.rows.tolist()]
            for metric, values in self._compare(predictions[truth.rows], truth).items():
                tally.add(truth.region, metric, ids, values)
        if self.inception is not None:
            for region, rows, mask in self._regions(batch):
                ids = [batch.pair_id[row] for row in rows.tolist()]
                tally.features.add(region, ids, self._inception(predictions[rows], mask))

    def _overlap(self, tally: Tally, batch: TryOnBatch, silhouettes: Tensor) -> None:
        """IoU of (B, 1, H, W) bool with where the truth shows the garment, for pairs whose truth does."""
        if batch.truth is None:
            return
        for region, rows, mask in self._regions(batch):
            if mask is not None:
                ids = [batch.pair_id[row] for row in rows.tolist()]
                tally.add(region, "iou", ids, pixelwise.iou(silhouettes[rows], mask > 0))

    def _compare(self, prediction: Tensor, truth: Truth) -> dict[str, Tensor]:
        """Scores (B,) of uint8 predictions for the metrics that need a truth."""
        if truth.mask is not None:
            prediction = torch.where(truth.mask > 0, prediction, truth.picture)
        x, y = prediction / 255, truth.picture / 255
        scores = {}
        for metric, function in (("ssim", pixelwise.ssim), ("psnr", pixelwise.psnr)):
            if metric in self.config.metrics:
                scores[metric] = function(x, y, truth.mask, self.protocol)
        x = x.contiguous(memory_format=torch.channels_last)
        if self.lpips is not None:
            scores["lpips"] = self.lpips.distance(self.lpips.features(x), truth.lpips, truth.mask)
        if self.dists is not None:
            scores["dists"] = self.dists.distance(
                self.dists.statistics(self.dists.features(x), truth.mask), truth.dists
            )
        return scores

    def _truths(self, batch: TryOnBatch) -> list[Truth]:
        """Truths of each region, with the features that all methods share."""
        if batch.truth is None:
            return []
        truths = []
        pictures = to_uint8(batch.truth)
        y = (pictures / 255).contiguous(memory_format=torch.channels_last)
        lpips = self.lpips.features(y) if self.lpips is not None else None
        dists = self.dists.features(y) if self.dists is not None else None
        for region, rows, mask in self._regions(batch):
            truth = Truth(region, rows, pictures[rows], mask, None, None)
            if lpips is not None:
                truth.lpips = [layer[rows] for layer in lpips]
            if dists is not None:
                truth.dists = self.dists.statistics([layer[rows] for layer in dists], mask)
            truths.append(truth)
        return truths

    def _regions(self, batch: TryOnBatch) -> Iterator[tuple[Region, Tensor, Tensor | None]]:
        """Each region with the rows that count in it and their masks."""
        yield "image", torch.arange(len(batch), device=self.device), None
        if batch.truth_garment_mask is not None:
            rows = batch.truth_garment_mask.flatten(1).any(1).nonzero()[:, 0]
            if len(rows):
                yield "garment", rows, batch.truth_garment_mask[rows].float()

    def _inception(self, pictures: Tensor, mask: Tensor | None) -> Tensor:
        """Features (B, D) of uint8 pictures, of the whole ones or of the garments in them."""
        resize, cut_out = inception.resize, inception.cut_out
        x = resize(pictures, self.side) if mask is None else cut_out(pictures, mask, self.side)
        return self.inception(x.contiguous(memory_format=torch.channels_last))

    def _pictures(self, method: str, pictures: Pictures, batch: TryOnBatch) -> Tensor:
        found = pictures(batch.pair_id)
        expected = tuple(batch.person.shape)
        if found.dtype != torch.uint8 or tuple(found.shape) != expected:
            where = getattr(pictures, "folder", "memory")
            raise DataError(
                f"{method}: pictures {batch.pair_id[0]} to {batch.pair_id[-1]} ({where}) are {found.dtype} "
                f"{tuple(found.shape)}, expected uint8 {expected}; write them again at the data's size."
            )
        return found.to(self.device)

    def _chunks(self, batches: Iterable[TryOnBatch], ids: Callable[[TryOnBatch], list[str]]) -> Iterator[TryOnBatch]:
        """Small batches on the device, without what was seen before."""
        seen: set[str] = set()
        for batch in batches:
            new = [row for row, name in enumerate(ids(batch)) if not (name in seen or seen.add(name))]
            height, width = batch.person.shape[-2:]
            size = max(1, PIXELS_AT_ONCE.get(self.device.type, PIXELS_AT_ONCE["cpu"]) // (height * width))
            for start in range(0, len(new), size):
                yield batch[new[start : start + size]].to(self.device)

    # ---- reporting ----

    def rows(
        self, tally: Tally, people: Features, *, model: str, data: str, split: str, provenance: Mapping[str, Any]
    ) -> list[Row]:
        """One row per region and category ("all" first); metrics that cannot be computed are absent, never NaN.

        FID and KID need two pictures on each side; KID's subsets are no larger than either set.
        """
        rows = []
        for region in REGIONS:
            categories = sorted({tally.category[name] for name in tally.pair_ids(region)})
            for category in ("all", *categories):
                ids = tally.pair_ids(region, category)
                if not ids:
                    continue
                metrics = {}
                for metric in self.config.metrics:
                    if metric in tally.scores[region]:
                        metrics[self.name(metric)] = tally.mean(region, metric, ids)
                metrics |= self._distances(tally.features.stack(region, category), people.stack(region, category))
                details = {**provenance, "metrics": self.settings(), "pairs_sha256": digest_of_ids(ids)}
                rows.append(
                    Row(
                        model,
                        data,
                        split,
                        tally.order,
                        region,
                        category,
                        self.protocol.name,
                        len(ids),
                        metrics,
                        details,
                    )
                )
        return rows

    def _distances(self, predicted_ND: Tensor, people_MD: Tensor) -> dict[str, float]:
        if min(len(predicted_ND), len(people_MD)) < 2:
            return {}
        distances = {}
        if "fid" in self.config.metrics:
            distances[self.name("fid")] = frechet_distance(predicted_ND, people_MD)
        if "kid" in self.config.metrics:
            distances[self.name("kid")] = kernel_distance(
                predicted_ND,
                people_MD,
                self.config.kid_subsets,
                self.config.kid_subset_size,
                self.protocol.kid_degree,
                self.protocol.kid_seed,
            )
        return distances

    def settings(self) -> dict[str, Any]:
        """The protocol's numbers and each network's weights, for provenance."""
        return {
            "protocol": asdict(self.protocol),
            "networks": self._networks,
            "kid_subsets": self.config.kid_subsets,
            "kid_subset_size": self.config.kid_subset_size,
        }

    @cached_property
    def _networks(self) -> dict[str, str]:
        """lpips, dists, inception -> "<file or random>, sha256 <first digits, over its weights>"."""
        return {
            user: f"{path.name if path else 'random'}, sha256 {weights.digest(getattr(self, user))[:16]}"
            for user, path in self.files.items()
        }


@contextmanager
def _exact(device: torch.device):
    """No gradients, no autocast, no TF32: numbers in tables are computed in float32."""
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), cudnn:
        yield
