"""Scorer: pictures in, rows out. Every pair counts once, whatever the batches, processes and
padding.

    scorer = Scorer(config.eval, device)
    people = scorer.people(paired_batches)                       # reference of FID and KID, once for both orders
    tallies = scorer.score(batches, {"gardiff": PictureFolder(folder), ...})   # all methods: truths are read once
    rows = [row for name, tally in tallies.items() for row in scorer.rows(tally, people, model=name, ...)]

Regions. `image` is the whole picture. `garment` is where the truth shows the garment: the
prediction is composed with the truth outside that mask, and SSIM map, LPIPS maps and DISTS
statistics are averaged over the mask (reduced to each layer's size by area), PSNR over its pixels.
For FID and KID the garment is cut out: grey outside the mask, cropped to the mask's bounding box;
the reference are the garments that the people of the test split wear. Pairs whose truth does not
show the garment count for `image` only, which `n` shows.

Real unpaired pairs have no truth: they get FID and KID of `image` and nothing else.

Before anything is measured, the protocol prepares truth and prediction (prepare.py). For regions it
says nothing: masks are brought to the size of the picture at hand by nearest neighbour.
"""
# Shapes: B batch, H W height and width of the comparison, D width of an Inception feature

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vton.config import EvalConfig
from vton.data.sample import DataError, TryOnBatch
from vton.metrics import inception, pixelwise, prepare
from vton.metrics.distributions import frechet_distance, kernel_distance
from vton.metrics.garment_driven import MetricError
from vton.metrics.garment_scores import NEEDS, GarmentNetworks, GarmentScores, with_stored
from vton.metrics.pictures import to_uint8
from vton.metrics.protocol import changes, configured
from vton.metrics.results import Row, digest_of_ids
from vton.metrics.tally import REGIONS, Features, Region, Tally
from vton.metrics.target import Target
from vton.models.perceptual import DISTS, LPIPS, Statistics
from vton.weights import metric_networks

# Pair ids -> uint8 (B, 3, H, W), e.g. a PictureFolder. Methods that warp have an attribute
# `silhouettes`, of the same kind: white where the garment lies. Then `iou` is measured too.
Pictures = Callable[[Sequence[str]], Tensor]
Originals = Callable[
    [int], tuple[Tensor, Tensor | None]
]  # pair's index -> person, truth as stored, uint8 (3, h, w)
PIXELS_AT_ONCE_ON_GPU = 32 * 512 * 384  # bounds the memory of the networks' feature maps


@dataclass
class Part:
    """What all methods are compared with, for one region of one chunk of pairs."""

    region: Region
    rows: Tensor  # indices of the chunk's pairs that count in this region
    mask: Tensor | None  # float (B, 1, H, W), these rows only; None for the whole picture
    truth: Tensor | None = None  # uint8 (B, 3, H, W), these rows only
    lpips: list[Tensor] | None = None
    dists: list[Statistics] | None = None


class Scorer:
    """Measures pictures as `eval` of the configuration says. Networks are built once and never
    downloaded.
    """

    def __init__(
        self,
        config: EvalConfig,
        device: str | torch.device = "cpu",
        networks: GarmentNetworks | None = None,
    ):
        """networks: those of the garment-driven metrics that no file brings."""
        self.config = config
        self.protocol = configured(config)
        self.device = torch.device(device)
        self.files: dict[
            str, Path | None
        ] = {}  # lpips, dists, inception -> file of its weights; None = random
        self.lpips = self.dists = self.inception = None
        net, seed = self.protocol.lpips_net, self.protocol.weights_seed
        if "lpips" in config.metrics:
            self.lpips = LPIPS(net, self._find("lpips", net), seed)
        if "dists" in config.metrics:
            self.dists = DISTS(self._find("dists", "vgg"), seed, self.protocol.dists_side)
        if {"fid", "kid"} & set(config.metrics):
            self.inception = metric_networks.build(
                inception.Inception, self._find("inception", "inception"), seed
            )
        for network in (self.lpips, self.dists, self.inception):
            if network is not None:
                network.to(self.device, memory_format=torch.channels_last).eval()
        asked = [metric for metric in config.metrics if metric in NEEDS]
        folder = metric_networks.folder(config.weights) if asked else None
        self.garment = GarmentScores(
            asked, with_stored(networks or GarmentNetworks(), asked, folder, self.device)
        )
        pretrained = self.files.get("inception") is not None
        self.side = (
            self.protocol.inception_side if pretrained else self.protocol.random_inception_side
        )

    def _find(self, user: str, network: str) -> Path | None:
        self.files[user] = metric_networks.find(network, self.config.weights)
        return self.files[user]

    def name(self, metric: str) -> str:
        """How a metric is called in rows: other weights or another backbone than LPIPS' AlexNet,
        another name.
        """
        if metric in NEEDS:
            return self.garment.name(metric)
        user = "inception" if metric in ("fid", "kid") else metric
        if metric == "lpips" and self.protocol.lpips_net != "alex":
            metric = f"lpips_{self.protocol.lpips_net}"
        return f"{metric}_random" if user in self.files and self.files[user] is None else metric

    # ---- measuring ----

    def people(self, batches: Iterable[TryOnBatch], originals: Originals | None = None) -> Features:
        """Features of the test split's person pictures, by person id: the reference of FID and KID
        in both orders.

        Takes batches in paired order, where the truth is the person and its garment mask the worn
        garment's.
        originals: as in `score`.
        """
        return self.reference(self._targets(batch, originals) for batch in batches)

    def score(
        self,
        batches: Iterable[TryOnBatch],
        methods: Mapping[str, Pictures],
        originals: Originals | None = None,
    ) -> dict[str, Tally]:
        """Measure the pictures of every method against the batches of one order.

        originals: the stored pictures of a pair, which protocols with a filter of their own start
        from; without it they start from the batch's. Raises as `compare`.
        """
        return self.compare((self._targets(batch, originals) for batch in batches), methods)

    def reference(self, groups: Iterable[Sequence[Target]]) -> Features:
        """Features of the persons of paired targets, by person id. A person who comes twice counts
        once.
        """
        people = Features()
        if self.inception is None:
            return people
        with _exact(self.device):
            for chunk in self._chunks(
                _unseen(group, "person_id", people.category) for group in groups
            ):
                if any(target.order != "paired" for target in chunk):
                    raise ValueError(
                        "the reference of FID and KID is built from pairs in paired order"
                    )
                people.category.update((target.person_id, target.category) for target in chunk)
                pictures = [target.person for target in chunk]
                if self.protocol.reference == "resized":
                    pictures = [
                        prepare.truth(t.person, self._size(t), self.protocol) for t in chunk
                    ]
                for region, rows in _regions(chunk):
                    masks = None
                    if region == "garment":
                        masks = [
                            prepare.resize_mask(chunk[r].garment_mask, pictures[r].shape[-2:])
                            for r in rows
                        ]
                    features = self._inception([pictures[row] for row in rows], masks)
                    people.add(region, [chunk[row].person_id for row in rows], features)
        return people

    def compare(
        self, groups: Iterable[Sequence[Target]], methods: Mapping[str, Pictures]
    ) -> dict[str, Tally]:
        """Measure every method's pictures of the targets, which come in groups of one size and are
        of one order.

        A method is asked for a whole group before the next one is drawn. Pairs that come twice
        (padding of a distributed sampler) are measured once. Raises DataError naming a picture that
        is missing, broken or not of the target's size.
        """
        tallies: dict[str, Tally] = {}
        seen: set[str] = set()
        with _exact(self.device):
            for group in groups:
                group = _unseen(group, "pair_id", seen)
                if group and methods:
                    seen.update(target.pair_id for target in group)
                    self._compare_group(group, methods, tallies)
        return tallies

    def _compare_group(
        self, group: Sequence[Target], methods: Mapping[str, Pictures], tallies: dict[str, Tally]
    ) -> None:
        """Ask every method for its pictures of a group, and measure them into its tally, which the
        first one makes.
        """
        found = {name: self._pictures(name, pictures, group) for name, pictures in methods.items()}
        silhouettes = {
            name: self._pictures(name, pictures.silhouettes, group)[:, :1] > 127
            for name, pictures in methods.items()
            if "iou" in self.config.metrics and getattr(pictures, "silhouettes", None)
        }
        orders = {target.order for target in group} | {tally.order for tally in tallies.values()}
        if len(orders) > 1:
            raise ValueError(f"one call measures one order, got {' and '.join(sorted(orders))}")
        for name in found:
            tallies.setdefault(name, Tally(group[0].order))
        first = 0
        for chunk in self._chunks([group], len(found)):
            parts = self._parts(chunk)
            these = slice(first, first + len(chunk))
            self._measure(
                tallies, chunk, {name: pictures[these] for name, pictures in found.items()}, parts
            )
            for name, pictures in silhouettes.items():
                self._overlap(tallies[name], chunk, pictures[these], parts)
            first = these.stop

    def _measure(
        self,
        tallies: dict[str, Tally],
        chunk: Sequence[Target],
        found: Mapping[str, Tensor],
        parts: Sequence[Part],
    ) -> None:
        """Measure every method's pictures of a chunk into its tally.

        The networks see the pictures of all methods together, which on a CPU takes an eighth off an
        evaluation.
        """
        predictions = [
            self._prepare(tallies[name], chunk, pictures) for name, pictures in found.items()
        ]
        for part in parts:
            ids = [chunk[row].pair_id for row in part.rows.tolist()]
            shown = torch.cat([pictures[part.rows] for pictures in predictions])
            masks = None if part.mask is None else part.mask.repeat(len(found), 1, 1, 1)
            features = self._inception(shown, masks) if self.inception is not None else None
            if part.truth is not None:
                if masks is not None:
                    shown = torch.where(masks > 0, shown, part.truth.repeat(len(found), 1, 1, 1))
                lpips = self._lpips(shown) if self.lpips is not None else []
                dists = self._dists(shown) if self.dists is not None else []
            for place, name in enumerate(found):
                rows = slice(place * len(ids), (place + 1) * len(ids))
                if features is not None:
                    tallies[name].features.add(part.region, ids, features[rows])
                if part.truth is not None:
                    layers = ([layer[rows] for layer in network] for network in (lpips, dists))
                    for metric, values in self._compare(shown[rows], *layers, part).items():
                        tallies[name].add(part.region, metric, ids, values)

    def _prepare(self, tally: Tally, chunk: Sequence[Target], pictures: Tensor) -> Tensor:
        """A method's pictures as the protocol compares them, uint8 (B, 3, H, W). Garment-driven
        scores on the way.
        """
        tally.category.update((target.pair_id, target.category) for target in chunk)
        prepared = []
        for target, picture in zip(chunk, pictures, strict=True):
            mask = target.repaint_mask if self.protocol.repaint else None
            prepared.append(
                prepare.prediction(picture, self._size(target), self.protocol, target.person, mask)
            )
            for (region, metric), value in self.garment.measure(target, prepared[-1]).items():
                if isinstance(value, MetricError):
                    tally.leave_out(region, metric, target.pair_id, str(value))
                else:
                    tally.add(
                        region, metric, [target.pair_id], torch.tensor([value], dtype=torch.float64)
                    )
        return torch.stack(prepared).to(self.device)

    def _overlap(
        self, tally: Tally, chunk: Sequence[Target], silhouettes: Tensor, parts: Sequence[Part]
    ) -> None:
        """IoU of (B, 1, h, w) bool with where the truth shows the garment, for pairs whose truth
        does.
        """
        for part in parts:
            if part.mask is not None and part.truth is not None:
                rows = part.rows.tolist()
                warped = [
                    prepare.resize_mask(silhouettes[row], part.mask.shape[-2:]) for row in rows
                ]
                values = pixelwise.iou(torch.stack(warped).to(self.device), part.mask > 0)
                tally.add(part.region, "iou", [chunk[row].pair_id for row in rows], values)

    def _compare(
        self, prediction: Tensor, lpips: list[Tensor], dists: list[Tensor], part: Part
    ) -> dict[str, Tensor]:
        """Scores (B,) of uint8 predictions, already on the truth outside the region, for metrics
        that need a truth.

        lpips, dists: the predictions' features.
        """
        x, y = prediction / 255, part.truth / 255
        scores = {}
        for metric, function in (("ssim", pixelwise.ssim), ("psnr", pixelwise.psnr)):
            if metric in self.config.metrics:
                scores[metric] = function(x, y, part.mask, self.protocol)
        if self.lpips is not None:
            scores["lpips"] = self.lpips.distance(lpips, part.lpips, part.mask)
        if self.dists is not None:
            scores["dists"] = self.dists.distance(
                self.dists.statistics(dists, part.mask), part.dists
            )
        return scores

    def _parts(self, chunk: Sequence[Target]) -> list[Part]:
        """The regions of a chunk, with the features of the truth that all methods share."""
        truths = lpips = dists = None
        if chunk[0].truth is not None:
            truths = torch.stack(
                [prepare.truth(t.truth, self._size(t), self.protocol) for t in chunk]
            ).to(self.device)
            lpips = self._lpips(truths) if self.lpips is not None else None
            dists = self._dists(truths) if self.dists is not None else None
        parts = []
        for region, rows in _regions(chunk):
            mask = None
            if region == "garment":
                masks = [
                    prepare.resize_mask(chunk[row].garment_mask, self._size(chunk[row]))
                    for row in rows
                ]
                mask = torch.stack(masks).float().to(self.device)
            part = Part(region, torch.tensor(rows, device=self.device), mask)
            if truths is not None:
                part.truth = truths[part.rows]
            if lpips is not None:
                part.lpips = [layer[part.rows] for layer in lpips]
            if dists is not None:
                part.dists = self.dists.statistics([layer[part.rows] for layer in dists], mask)
            parts.append(part)
        return parts

    # ---- networks on uint8 pictures ----

    def _lpips(self, pictures: Tensor) -> list[Tensor]:
        side = self.protocol.lpips_side
        if side:
            small = [
                prepare.resize(picture.cpu(), (side, side), "bilinear") for picture in pictures
            ]
            pictures = torch.stack(small).to(self.device)
        return self.lpips.features((pictures / 255).contiguous(memory_format=torch.channels_last))

    def _dists(self, pictures: Tensor) -> list[Tensor]:
        return self.dists.features((pictures / 255).contiguous(memory_format=torch.channels_last))

    def _inception(self, pictures: Sequence[Tensor], masks: Sequence[Tensor] | None) -> Tensor:
        """Features (B, D) of pictures (3, h, w) of any sizes, of the whole ones or of the garments
        in them.
        """
        side, style = self.side, self.protocol.inception_resize
        pictures = [picture[None].to(self.device) for picture in pictures]
        if masks is None:
            squares = [inception.resize(picture, side, style) for picture in pictures]
        else:
            masks = [mask[None].to(self.device) for mask in masks]
            squares = [
                inception.cut_out(p, mask, side, style)
                for p, mask in zip(pictures, masks, strict=True)
            ]
        return self.inception(torch.cat(squares).contiguous(memory_format=torch.channels_last))

    # ---- targets ----

    def _targets(self, batch: TryOnBatch, originals: Originals | None) -> list[Target]:
        size = tuple(batch.person.shape[-2:])
        people = to_uint8(batch.person.cpu())
        truths = [None] * len(batch) if batch.truth is None else to_uint8(batch.truth.cpu())
        worn, painted = (
            None if mask is None else mask.cpu() > 0
            for mask in (batch.truth_garment_mask, batch.agnostic_mask)
        )
        targets = []
        for row, pair_id in enumerate(batch.pair_id):
            person, truth = people[row], truths[row]
            if originals is not None and self.protocol.from_originals:
                person, truth = originals(batch.index[row])
            target = Target(
                pair_id,
                batch.person_id[row],
                batch.category[row],
                batch.order[row],
                size,
                person,
                truth,
                None if worn is None else worn[row],
                painted[row],
            )
            if self.garment.metrics:
                target.garment, target.pose_map = (
                    to_uint8(p[row].cpu()) for p in (batch.garment, batch.pose_map)
                )
                target.silhouette, target.prompt = (
                    batch.garment_mask[row].cpu() > 0,
                    batch.person_caption[row],
                )
            targets.append(target)
        return targets

    def _size(self, target: Target) -> tuple[int, int]:
        """Height and width of the comparison."""
        return self.protocol.size or target.size

    def _pictures(self, method: str, pictures: Pictures, group: Sequence[Target]) -> Tensor:
        ids = [target.pair_id for target in group]
        found = pictures(ids)
        expected = (len(group), 3, *group[0].size)
        if found.dtype != torch.uint8 or tuple(found.shape) != expected:
            where = getattr(pictures, "folder", "memory")
            raise DataError(
                f"{method}: pictures {ids[0]} to {ids[-1]} ({where}) are {found.dtype} "
                f"{tuple(found.shape)}, expected uint8 {expected}; write them again at the data's size."
            )
        return found.cpu()

    def _chunks(
        self, groups: Iterable[Sequence[Target]], methods: int = 1
    ) -> Iterator[Sequence[Target]]:
        """The targets whose pictures of all methods pass through the networks together.

        Within a group, as many as a GPU's memory bears; 1 on a CPU: a convolution of one picture
        may sum in another order than of several, and with chunks of one target neither batches nor
        processes show in any number. Which other methods are measured beside one may, in the last
        digits.
        """
        for group in groups:
            size = 1
            if group and self.device.type != "cpu":
                height, width = self._size(group[0])
                size = max(1, PIXELS_AT_ONCE_ON_GPU // (height * width * methods))
            for start in range(0, len(group), size):
                yield group[start : start + size]

    # ---- reporting ----

    def rows(
        self,
        tally: Tally,
        people: Features,
        *,
        model: str,
        data: str,
        split: str,
        provenance: Mapping[str, Any],
    ) -> list[Row]:
        """One row per region and category ("all" first); metrics that cannot be computed are
        absent, never NaN.

        FID and KID need two pictures on each side; KID's subsets are no larger than either set. A
        metric that is not defined for some of the pairs is the mean of the others:
        provenance.left_out names these pairs and says why. No row stands for nothing, unless it
        says which metric lacks its network or its pairs.
        """
        rows = []
        for region in REGIONS:
            categories = sorted({tally.category[name] for name in tally.pair_ids(region)} - {"all"})
            for category in ("all", *categories):
                ids = tally.pair_ids(region, category)
                if not ids:
                    continue
                metrics, left_out = {}, {}
                for metric in self.config.metrics:
                    without = tally.without(region, metric, ids)
                    if without:
                        left_out[self.name(metric)] = without
                    if metric in tally.scores[region] and len(without) < len(ids):
                        counted = [name for name in ids if name not in without]
                        metrics[self.name(metric)] = tally.mean(region, metric, counted)
                metrics |= self._distances(
                    tally.features.stack(region, category), people.stack(region, category)
                )
                gaps = {
                    name: gap
                    for name, gap in (("absent", self.garment.absent), ("left_out", left_out))
                    if gap
                }
                if not metrics and not gaps:
                    continue
                details = {
                    **provenance,
                    "metrics": self.settings(),
                    "pairs_sha256": digest_of_ids(ids),
                    **gaps,
                }
                protocol = self.protocol.name
                rows.append(
                    Row(
                        model,
                        data,
                        split,
                        tally.order,
                        region,
                        category,
                        protocol,
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
            used = self.protocol
            settings = used.kid_subsets, used.kid_subset_size, used.kid_degree, used.kid_seed
            distances[self.name("kid")] = kernel_distance(predicted_ND, people_MD, *settings)
        return distances

    def settings(self) -> dict[str, Any]:
        """The protocol's numbers, what was changed in it, and each network's weights, for
        provenance.
        """
        return {
            "protocol": asdict(self.protocol),
            "changes": changes(self.protocol),
            "networks": self._networks,
        }

    @cached_property
    def _networks(self) -> dict[str, str]:
        """lpips, dists, inception -> "<file or random>, sha256 <first digits, over its weights>"."""
        return {
            user: f"{path.name if path else 'random'}, sha256 {metric_networks.digest(getattr(self, user))[:16]}"
            for user, path in self.files.items()
        }


def _unseen(group: Sequence[Target], key: str, seen: Container[str]) -> list[Target]:
    """The targets whose `key` is not in `seen`, each once."""
    return list(
        {
            getattr(target, key): target for target in group if getattr(target, key) not in seen
        }.values()
    )


def _regions(chunk: Sequence[Target]) -> Iterator[tuple[Region, list[int]]]:
    """Each region with the places of the targets that count in it."""
    yield "image", list(range(len(chunk)))
    rows = [
        row for row, t in enumerate(chunk) if t.garment_mask is not None and t.garment_mask.any()
    ]
    if rows:
        yield "garment", rows


@contextmanager
def _exact(device: torch.device):
    """No gradients, no autocast, no TF32: numbers in tables are computed in float32."""
    cudnn = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), cudnn:
        yield
