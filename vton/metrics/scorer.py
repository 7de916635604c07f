"""Scorer: pictures in, scores and features by pair out. Every pair counts once.

    scorer = Scorer(Extractors(config.eval, device))
    for batch in paired_batches:  # the reference of FID and KID, for both orders
        scorer.update_reference(targets_of(batch))
    for batch in batches:         # all methods at once: truths are read once
        scorer.update(targets_of(batch), {"gardiff": method(batch), ...})
    for (order, name), tally in scorer.measured.tallies.items():
        rows += rows_of(tally, scorer.measured.reference, scorer.extractors, model=name, ...)

Regions. `image` is the whole picture. `garment` is where the truth shows the garment: the
prediction is composed with the truth outside that mask, and SSIM map, LPIPS maps and DISTS
statistics are averaged over the mask (reduced to each layer's size by area), PSNR over its pixels.
For FID and KID the garment is cut out: grey outside the mask, cropped to the mask's bounding box;
the reference is the garments that the persons of the test split wear. Pairs whose truth does not
show the garment count for `image` only, which `n` shows.

Real unpaired pairs have no truth: they get FID and KID of `image` and nothing else.

Before anything is measured, the protocol prepares truth and prediction (prepare.py). It says
nothing about regions: masks are brought to the size of the picture at hand by nearest neighbour.
"""
# Shapes: B batch, H W height and width of the comparison

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vton.data.sample import DataError
from vton.metrics import pixelwise, prepare
from vton.metrics.extractors import Extractors
from vton.metrics.garment_scores import NEEDS
from vton.metrics.tally import Measured, PictureFeatures, Region, Tally
from vton.metrics.target import Prediction, Target
from vton.models.perceptual import Statistics

PIXELS_AT_ONCE_ON_GPU = 32 * 512 * 384  # bounds the memory of the networks' feature maps


@dataclass
class RegionTruth:
    """What all methods are compared with, for one region of some pairs."""

    region: Region
    pair_ids: list[str]  # of the pairs that count in this region
    rows: Tensor  # their places among all pairs at hand
    mask: Tensor | None = None  # float (B, 1, H, W); None for the whole picture
    truth: Tensor | None = None  # uint8 (B, 3, H, W)
    lpips: list[Tensor] | None = None
    dists: list[Statistics] | None = None


class Scorer:
    """Measures pictures batch by batch; `measured` holds what it has found so far."""

    def __init__(self, extractors: Extractors):
        self.extractors = extractors
        self.protocol = extractors.protocol
        self.device = extractors.device
        self.measured = Measured()

    @property
    def needs_reference(self) -> bool:
        """Whether FID or KID is asked for."""
        return self.extractors.inception is not None

    # ---- the reference of FID and KID ----

    def update_reference(self, targets: Sequence[Target]) -> None:
        """Add the persons of paired targets of one size to the reference, by person id.

        In paired order the truth is the person and its garment mask that of the garment they wear.
        A person who comes twice counts once.
        """
        if not self.needs_reference or not targets:
            return
        if any(target.order != "paired" for target in targets):
            raise ValueError("the reference of FID and KID is built from pairs in paired order")
        reference = self.measured.reference
        new: dict[str, Target] = {}
        for target in targets:
            if target.person_id not in reference.category:
                new[target.person_id] = target
        persons = list(new.values())
        step = self._at_once(targets[0], methods=1)
        with self.extractors.exact():
            for start in range(0, len(persons), step):
                self._add_persons(reference, persons[start : start + step])

    def _add_persons(self, reference: PictureFeatures, targets: Sequence[Target]) -> None:
        pictures = []
        for target in targets:
            reference.category[target.person_id] = target.category
            picture = target.person
            if self.protocol.reference == "resized":
                picture = prepare.truth(picture, self._size(target), self.protocol)
            pictures.append(picture)
        for region, rows in _regions(targets):
            masks = None
            if region == "garment":
                masks = []
                for row in rows:
                    size = pictures[row].shape[-2:]
                    masks.append(prepare.resize_mask(targets[row].garment_mask, size))
            shown = [pictures[row] for row in rows]
            features = self.extractors.inception_features(shown, masks)
            reference.add(region, [targets[row].person_id for row in rows], features)

    # ---- predictions ----

    def update(self, targets: Sequence[Target], predictions: Mapping[str, Prediction]) -> None:
        """Measure every method's prediction of the targets, which are of one size and one order.

        A pair that comes twice (padding of a distributed sampler) is measured once. Raises
        DataError for pictures that are not of the targets' number and size.
        """
        if not targets or not predictions:
            return
        orders = {target.order for target in targets}
        if len(orders) > 1:
            raise ValueError(f"one call measures one order, got {' and '.join(sorted(orders))}")
        order = targets[0].order
        tallies = {}
        for name, prediction in predictions.items():
            _require_fit(name, prediction.pictures, targets)
            tallies[name] = self.measured.tallies.setdefault((order, name), Tally(order))

        rows = _unmeasured(targets, list(tallies.values()))
        step = self._at_once(targets[0], methods=len(predictions))
        with self.extractors.exact():
            for start in range(0, len(rows), step):
                some = rows[start : start + step]
                chosen = {}
                for name, prediction in predictions.items():
                    chosen[name] = _rows_of(prediction, some)
                self._measure([targets[row] for row in some], chosen, tallies)

    def _measure(
        self,
        targets: Sequence[Target],
        predictions: Mapping[str, Prediction],
        tallies: Mapping[str, Tally],
    ) -> None:
        """Measure the predictions of a few targets, which pass through the networks together."""
        prepared = []
        for name, prediction in predictions.items():
            prepared.append(self._prepare(targets, prediction.pictures, tallies[name]))
        for region in self._truths(targets):
            self._measure_region(region, prepared, list(tallies.values()))
            if "iou" not in self.extractors.metrics or region.mask is None or region.truth is None:
                continue
            for name, prediction in predictions.items():
                if prediction.silhouettes is not None:
                    self._overlap(region, prediction.silhouettes, tallies[name])

    def _prepare(self, targets: Sequence[Target], pictures: Tensor, tally: Tally) -> Tensor:
        """A method's pictures as the protocol compares them, uint8 (B, 3, H, W).

        On the way they get their garment-driven scores, which are computed one by one.
        """
        prepared = []
        for target, picture in zip(targets, pictures, strict=True):
            tally.category[target.pair_id] = target.category
            mask = target.repaint_mask if self.protocol.repaint else None
            picture = prepare.prediction(
                picture, self._size(target), self.protocol, target.person, mask
            )
            prepared.append(picture)
            scores, undefined = self.extractors.garment.measure(target, picture)
            for metric, score in scores.items():
                value = torch.tensor([score], dtype=torch.float64)
                tally.add(NEEDS[metric].region, metric, [target.pair_id], value)
            for metric, reason in undefined.items():
                tally.leave_out(NEEDS[metric].region, metric, target.pair_id, reason)
        return torch.stack(prepared).to(self.device)

    def _truths(self, targets: Sequence[Target]) -> list[RegionTruth]:
        """The regions of a few targets, with the features of the truth that all methods share."""
        extractors = self.extractors
        truths = lpips = dists = None
        if targets[0].truth is not None:
            pictures = []
            for target in targets:
                pictures.append(prepare.truth(target.truth, self._size(target), self.protocol))
            truths = torch.stack(pictures).to(self.device)
            if extractors.lpips is not None:
                lpips = extractors.lpips_features(truths)
            if extractors.dists is not None:
                dists = extractors.dists_features(truths)

        regions = []
        for name, rows in _regions(targets):
            ids = [targets[row].pair_id for row in rows]
            region = RegionTruth(name, ids, torch.tensor(rows, device=self.device))
            if name == "garment":
                masks = []
                for row in rows:
                    size = self._size(targets[row])
                    masks.append(prepare.resize_mask(targets[row].garment_mask, size))
                region.mask = torch.stack(masks).float().to(self.device)
            if truths is not None:
                region.truth = truths[region.rows]
            if lpips is not None:
                region.lpips = [layer[region.rows] for layer in lpips]
            if dists is not None:
                layers = [layer[region.rows] for layer in dists]
                region.dists = extractors.dists.statistics(layers, region.mask)
            regions.append(region)
        return regions

    def _measure_region(
        self, region: RegionTruth, prepared: Sequence[Tensor], tallies: Sequence[Tally]
    ) -> None:
        """Measure each method's prepared pictures (B, 3, H, W) in a region into its tally.

        The networks see the pictures of all methods together, which on a CPU takes an eighth off an
        evaluation.
        """
        methods, extractors = len(prepared), self.extractors
        shown = torch.cat([pictures[region.rows] for pictures in prepared])
        masks = None if region.mask is None else region.mask.repeat(methods, 1, 1, 1)
        features = None
        if extractors.inception is not None:
            features = extractors.inception_features(shown, masks)
        lpips, dists = [], []
        if region.truth is not None:
            if masks is not None:
                truth = region.truth.repeat(methods, 1, 1, 1)
                shown = torch.where(masks > 0, shown, truth)
            if extractors.lpips is not None:
                lpips = extractors.lpips_features(shown)
            if extractors.dists is not None:
                dists = extractors.dists_features(shown)

        count = len(region.pair_ids)
        for place, tally in enumerate(tallies):
            own = slice(place * count, (place + 1) * count)
            if features is not None:
                tally.features.add(region.region, region.pair_ids, features[own])
            if region.truth is None:
                continue
            scores = self._scores(
                region,
                shown[own],
                [layer[own] for layer in lpips],
                [layer[own] for layer in dists],
            )
            for metric, values in scores.items():
                tally.add(region.region, metric, region.pair_ids, values)

    def _scores(
        self, region: RegionTruth, pictures: Tensor, lpips: list[Tensor], dists: list[Tensor]
    ) -> dict[str, Tensor]:
        """Scores (B,) of one method's pictures for the metrics that need a truth.

        pictures: uint8 (B, 3, H, W), already on the truth outside the region; lpips, dists: their
        layers
        """
        extractors = self.extractors
        x, y = pictures / 255, region.truth / 255
        scores = {}
        if "ssim" in extractors.metrics:
            scores["ssim"] = pixelwise.ssim(x, y, region.mask, self.protocol)
        if "psnr" in extractors.metrics:
            scores["psnr"] = pixelwise.psnr(x, y, region.mask, self.protocol)
        if extractors.lpips is not None:
            scores["lpips"] = extractors.lpips.distance(lpips, region.lpips, region.mask)
        if extractors.dists is not None:
            statistics = extractors.dists.statistics(dists, region.mask)
            scores["dists"] = extractors.dists.distance(statistics, region.dists)
        return scores

    def _overlap(self, region: RegionTruth, silhouettes: Tensor, tally: Tally) -> None:
        """IoU of a method's silhouettes (B, 1, h, w) with where the truth shows the garment."""
        size = region.mask.shape[-2:]
        resized = []
        for row in region.rows.tolist():
            resized.append(prepare.resize_mask(silhouettes[row], size))
        values = pixelwise.iou(torch.stack(resized).to(self.device), region.mask > 0)
        tally.add(region.region, "iou", region.pair_ids, values)

    # ---- how much at once ----

    def _size(self, target: Target) -> tuple[int, int]:
        """Height and width of the comparison."""
        return self.protocol.size or target.size

    def _at_once(self, target: Target, methods: int) -> int:
        """How many targets like this one pass through the networks together, for all methods.

        On a GPU as many as its memory bears. On a CPU one: a convolution of one picture may sum in
        another order than of several, and with one target at a time neither batches nor processes
        show in any number. Which other methods are measured beside one may, in the last digits.
        """
        if self.device.type == "cpu":
            return 1
        height, width = self._size(target)
        return max(1, PIXELS_AT_ONCE_ON_GPU // (height * width * methods))


def _require_fit(method: str, pictures: Tensor, targets: Sequence[Target]) -> None:
    """Raise DataError unless there is a uint8 picture of the right size for each target."""
    expected = (len(targets), 3, *targets[0].size)
    if pictures.dtype != torch.uint8 or tuple(pictures.shape) != expected:
        raise DataError(
            f"{method}: pictures {targets[0].pair_id} to {targets[-1].pair_id} are "
            f"{pictures.dtype} {tuple(pictures.shape)}, expected uint8 {expected}; "
            "write them again at the data's size."
        )


def _unmeasured(targets: Sequence[Target], tallies: Sequence[Tally]) -> list[int]:
    """Places of the targets that some method has not been measured on yet, each pair once."""
    places: dict[str, int] = {}
    for place, target in enumerate(targets):
        if any(target.pair_id not in tally.category for tally in tallies):
            places.setdefault(target.pair_id, place)
    return list(places.values())


def _rows_of(prediction: Prediction, rows: list[int]) -> Prediction:
    """Some rows of a prediction, on the CPU."""
    pictures, silhouettes = prediction
    if silhouettes is not None:
        silhouettes = silhouettes[rows].cpu()
    return Prediction(pictures[rows].cpu(), silhouettes)


def _regions(targets: Sequence[Target]) -> Iterator[tuple[Region, list[int]]]:
    """Each region with the places of the targets that count in it."""
    yield "image", list(range(len(targets)))
    shown = []
    for place, target in enumerate(targets):
        if target.garment_mask is not None and target.garment_mask.any():
            shown.append(place)
    if shown:
        yield "garment", shown
