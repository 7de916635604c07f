"""Scorer: pictures in, scores and features by pair out. Every pair counts once.

    scorer = Scorer(Extractors(config.eval, device))
    for batch in paired_batches:  # the reference of FID and KID, for both orders
        scorer.update_reference(targets_of(batch))
    for batch in batches:         # all methods at once: truths are read once
        scorer.update(targets_of(batch), {"gardiff": method(batch), ...})
    for (order, name), tally in scorer.measured.tallies.items():
        rows += compute_rows(tally, scorer.measured.reference, scorer.extractors, model=name, ...)

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

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vton.data.sample import DataError
from vton.metrics import pixelwise, prepare
from vton.metrics.extractors import Extractors
from vton.metrics.garment_scores import NEEDS
from vton.metrics.tally import Measurements, PictureFeatures, Tally
from vton.metrics.target import Prediction, Target
from vton.metrics.truth import (
    RegionTruth,
    comparison_size,
    edge_and_texture,
    regions_of,
    truths_of,
)

PIXELS_AT_ONCE_ON_GPU = 32 * 512 * 384  # bounds the memory of the networks' feature maps


class Scorer:
    """Measures pictures batch by batch; `measured` holds what it has found so far."""

    def __init__(self, extractors: Extractors):
        self.extractors = extractors
        self.protocol = extractors.protocol
        self.device = extractors.device
        self.measured = Measurements()

    @property
    def needs_reference(self) -> bool:
        """Whether a distance between sets is asked for: FID, KID, FD-DINOv2 or CMMD."""
        return bool(self.extractors.set_networks)

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
                size = comparison_size(target, self.protocol)
                picture = prepare.truth(picture, size, self.protocol)
            pictures.append(picture)
        for region, places in regions_of(targets):
            masks = None
            if region == "garment":
                masks = []
                for place in places:
                    size = pictures[place].shape[-2:]
                    masks.append(prepare.resize_mask(targets[place].garment_mask, size))
            shown = [pictures[place] for place in places]
            ids = [targets[place].person_id for place in places]
            for network in self.extractors.set_networks:
                features = self.extractors.set_features(network, shown, masks)
                reference.add(region, ids, features, network)

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
        (order,) = orders
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
        for truth in truths_of(targets, self.extractors):
            self._measure_region(truth, prepared, list(tallies.values()))
            if "iou" not in self.extractors.metrics:
                continue
            if truth.region != "garment" or truth.pictures is None:
                continue
            for name, prediction in predictions.items():
                if prediction.silhouettes is not None:
                    self._measure_overlap(truth, prediction.silhouettes, tallies[name])

    def _prepare(self, targets: Sequence[Target], pictures: Tensor, tally: Tally) -> Tensor:
        """A method's pictures as the protocol compares them, uint8 (B, 3, H, W).

        On the way they get their garment-driven scores, which are computed one by one.
        """
        prepared = []
        for target, picture in zip(targets, pictures, strict=True):
            tally.category[target.pair_id] = target.category
            tally.persons[target.pair_id] = target.person_id
            size = comparison_size(target, self.protocol)
            mask = target.repaint_mask if self.protocol.repaint else None
            picture = prepare.prediction(picture, size, self.protocol, target.person, mask)
            prepared.append(picture)
            scores, undefined = self.extractors.garment.measure(target, picture)
            for metric, score in scores.items():
                value = torch.tensor([score], dtype=torch.float64)
                tally.add(NEEDS[metric].region, metric, [target.pair_id], value)
            for metric, reason in undefined.items():
                tally.leave_out(NEEDS[metric].region, metric, target.pair_id, reason)
        return torch.stack(prepared).to(self.device)

    def _measure_region(
        self, truth: RegionTruth, prepared: Sequence[Tensor], tallies: Sequence[Tally]
    ) -> None:
        """Measure every method's prepared pictures (B, 3, H, W) in a region into its tally.

        The networks see the pictures of all methods together, which on a CPU takes an eighth off an
        evaluation.
        """
        extractors = self.extractors
        methods = len(prepared)
        shown = torch.cat([pictures[truth.rows] for pictures in prepared])
        masks = None
        if truth.mask is not None:
            masks = truth.mask.repeat(methods, 1, 1, 1)
        features = {}
        for network in extractors.set_networks:
            features[network] = extractors.set_features(network, shown, masks)
        lpips: list[Tensor] = []
        dists: list[Tensor] = []
        if truth.pictures is not None:
            if masks is not None:
                outside = truth.pictures.repeat(methods, 1, 1, 1)
                shown = torch.where(masks > 0, shown, outside)
            if extractors.lpips is not None:
                lpips = extractors.lpips_features(shown)
            if extractors.dists is not None:
                dists = extractors.dists_features(shown)

        pairs = len(truth.pair_ids)
        for place, tally in enumerate(tallies):
            own = slice(place * pairs, (place + 1) * pairs)
            for network, of_all in features.items():
                tally.features.add(truth.region, truth.pair_ids, of_all[own], network)
            if truth.pictures is None:
                continue
            own_lpips = [layer[own] for layer in lpips]
            own_dists = [layer[own] for layer in dists]
            scores = self._scores(truth, shown[own], own_lpips, own_dists)
            for metric, values in scores.items():
                tally.add(truth.region, metric, truth.pair_ids, values)
            if truth.mask is not None:
                self._measure_parts(truth, shown[own], own_lpips, tally)

    def _measure_parts(
        self, truth: RegionTruth, pictures: Tensor, lpips: list[Tensor], tally: Tally
    ) -> None:
        """Measure the edge of the garment and its inside, as far as that is asked for.

        A garment that is nowhere wider than two edges has no inside.
        """
        for part, mask in edge_and_texture(truth.mask, self.protocol.edge_share).items():
            asked = [name for name in self.extractors.metrics if name.endswith(f"_{part}")]
            kept = mask.flatten(1).any(1).nonzero()[:, 0]
            if not asked:
                continue
            for row in set(range(len(mask))) - set(kept.tolist()):
                for name in asked:
                    reason = f"the garment is too thin to have a {part}"
                    tally.leave_out(truth.region, name, truth.pair_ids[row], reason)
            if not len(kept):
                continue
            pair_ids = [truth.pair_ids[row] for row in kept.tolist()]
            x, y, weight = pictures[kept] / 255, truth.pictures[kept] / 255, mask[kept]
            for name in asked:
                if name.startswith("ssim"):
                    values = pixelwise.ssim(x, y, weight, self.protocol)
                elif name.startswith("psnr"):
                    values = pixelwise.psnr(x, y, weight, self.protocol)
                else:
                    layers = [layer[kept] for layer in lpips]
                    of_truth = [layer[kept] for layer in truth.lpips]
                    values = self.extractors.lpips.distance(layers, of_truth, weight)
                tally.add(truth.region, name, pair_ids, values)

    def _scores(
        self, truth: RegionTruth, pictures: Tensor, lpips: list[Tensor], dists: list[Tensor]
    ) -> dict[str, Tensor]:
        """Scores (B,) of one method's pictures for the metrics that need a truth.

        pictures:     uint8 (B, 3, H, W), the truth's outside the region
        lpips, dists: layers of these pictures
        """
        extractors = self.extractors
        x = pictures / 255
        y = truth.pictures / 255
        scores = {}
        if "ssim" in extractors.metrics:
            scores["ssim"] = pixelwise.ssim(x, y, truth.mask, self.protocol)
        if "psnr" in extractors.metrics:
            scores["psnr"] = pixelwise.psnr(x, y, truth.mask, self.protocol)
        if "lpips" in extractors.metrics:
            scores["lpips"] = extractors.lpips.distance(lpips, truth.lpips, truth.mask)
        if extractors.dists is not None:
            statistics = extractors.dists.statistics(dists, truth.mask)
            scores["dists"] = extractors.dists.distance(statistics, truth.dists)
        return scores

    def _measure_overlap(self, truth: RegionTruth, silhouettes: Tensor, tally: Tally) -> None:
        """IoU of a method's silhouettes (B, 1, h, w) with where the truth shows the garment."""
        size = truth.mask.shape[-2:]
        resized = []
        for row in truth.rows.tolist():
            resized.append(prepare.resize_mask(silhouettes[row], size))
        values = pixelwise.iou(torch.stack(resized).to(self.device), truth.mask > 0)
        tally.add(truth.region, "iou", truth.pair_ids, values)

    def _at_once(self, target: Target, methods: int) -> int:
        """How many targets like this one pass through the networks together, for all methods.

        On a GPU as many as its memory bears. On a CPU one: a convolution of one picture may sum in
        another order than of several, and with one target at a time neither batches nor processes
        show in any number. Which other methods are measured beside one may, in the last digits.
        """
        if self.device.type == "cpu":
            return 1
        height, width = comparison_size(target, self.protocol)
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
