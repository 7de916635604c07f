import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision import models
from torchvision.transforms.v2 import functional as transforms

from tests.metrics.dressed import (
    Remembered,
    TinyExtractor,
    dressed_batches,
    measured,
    rows_by_method,
    rows_of_one,
)
from tests.weights.classifiers import weights_file
from vton.config import ConfigError, EvalConfig
from vton.data.sample import DataError
from vton.metrics import inception
from vton.metrics.extractors import Extractors
from vton.metrics.protocol import protocol
from vton.metrics.scorer import Scorer
from vton.metrics.tally import merge
from vton.metrics.target import Prediction, targets_of
from vton.weights import metric_networks

NAMES = {"ssim", "psnr", "lpips_random", "dists_random", "fid_random", "kid_random"}
CHEAP = EvalConfig(metrics=("ssim", "psnr"))


@pytest.fixture(scope="module")
def extractors():
    return Extractors(EvalConfig(kid_subset_size=4, kid_subsets=3))


def table(rows):
    return {(row.region, row.category): row.metrics for row in rows}


def noisy(pictures):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(pictures.shape[1:], generator=generator) * 20
    return (pictures.float() + noise).clamp(0, 255).round().to(torch.uint8)


def test_identical_pictures_have_the_ideal_scores(extractors):
    batches = dressed_batches(6, size=6)
    rows = rows_of_one(extractors, batches, Remembered(batches))
    assert [(row.region, row.category, row.n) for row in rows] == [
        ("image", "all", 6),
        ("image", "upper_body", 6),
        ("garment", "all", 6),
        ("garment", "upper_body", 6),
    ]
    for row in rows:
        assert set(row.metrics) == NAMES
        assert row.metrics["ssim"] == pytest.approx(1, abs=1e-9)
        assert row.metrics["psnr"] == protocol("exact").psnr_cap
        assert abs(row.metrics["lpips_random"]) < 1e-6
        assert abs(row.metrics["dists_random"]) < 1e-6
        assert row.metrics["fid_random"] < 1e-3
        # The unbiased estimate of 0 on a set and itself is below 0.
        assert row.metrics["kid_random"] < 1e-3


# Of six dressed figures, blurred and with noise: any default that changes moves one of these.
GOLDEN = {
    "image": {
        "ssim": 0.3320411,
        "psnr": 16.81806,
        "lpips_random": 0.790355,
        "dists_random": 0.08737306,
        "fid_random": 25.66716,
        "kid_random": 0.04345364,
    },
    "garment": {
        "ssim": 0.1838249,
        "psnr": 13.32452,
        "lpips_random": 0.7956897,
        "dists_random": 0.1857419,
        "fid_random": 20.53755,
        "kid_random": 0.03758512,
    },
}


def test_no_number_moves_unnoticed(extractors):
    batches = dressed_batches(6, size=6)
    method = Remembered(batches, lambda pictures: noisy(blurred(4.0)(pictures)))
    found = table(rows_of_one(extractors, batches, method))
    for region, golden in GOLDEN.items():
        assert found[region, "all"] == pytest.approx(golden, rel=1e-4), region
    exact = protocol("exact")
    # These six pictures cannot show.
    assert (exact.kid_subsets, exact.kid_subset_size) == (100, 1000)


def test_batches_processes_and_duplicates_do_not_move_a_number(monkeypatch):
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    extractors = Extractors(EvalConfig(kid_subset_size=4, kid_subsets=3))
    whole = dressed_batches(8, size=8, categories=2)
    method = Remembered(whole, noisy)

    def evaluate(*shares):
        results = merge([measured(extractors, share, {"m": method}, share) for share in shares])
        return rows_by_method(extractors, results)["m"]

    expected = evaluate(whole)
    assert [row.n for row in expected] == [8, 4, 4, 8, 4, 4]
    one = dressed_batches(8, size=1, categories=2)
    five = dressed_batches(8, size=5, categories=2)
    # As a sampler that repeats samples pads batches, and repeats one of them.
    padded = [batch[[0, *range(len(batch))]] for batch in five] + five[:1]
    splits = {
        "batches of 1": evaluate(one),
        "batches of 5": evaluate(five),
        "three processes, unequal": evaluate(five[:1], one[5:7], one[7:]),
        "two processes, interleaved and reversed": evaluate(one[1::2][::-1], one[::2]),
        "duplicates within and across processes": evaluate(five[1:], padded),
    }
    for name, rows in splits.items():
        for row, wanted in zip(rows, expected, strict=True):
            assert row.region == wanted.region, name
            assert row.category == wanted.category, name
            assert row.n == wanted.n, name
            assert row.provenance["pairs_sha256"] == wanted.provenance["pairs_sha256"]
            # To the bit: on a CPU pictures pass the networks one by one.
            assert row.metrics == wanted.metrics, name


def test_random_states_stay_as_they_were():
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    batches = dressed_batches(5, size=5)
    extractors = Extractors(EvalConfig(kid_subset_size=3))
    rows_of_one(extractors, batches, Remembered(batches, noisy))
    after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def blurred(strength):
    return lambda pictures: transforms.gaussian_blur(pictures, [13, 13], [strength, strength])


def shifted(pixels):
    return lambda pictures: pictures.roll(pixels, 3)


def recoloured(levels):
    change = torch.tensor([levels, -levels, 0]).view(3, 1, 1)
    return lambda pictures: (pictures.int() + change).clamp(0, 255).to(torch.uint8)


def grained(levels):
    def change(pictures):
        noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1)) * levels
        return (pictures.float() + noise).clamp(0, 255).round().to(torch.uint8)

    return change


@pytest.mark.parametrize(
    ("degrade", "strengths"),
    [
        (blurred, (0.5, 1.0, 3.0)),
        (shifted, (1, 2, 12)),
        (recoloured, (8, 24, 72)),
        (grained, (6, 18, 54)),
    ],
)
def test_every_metric_gets_worse_with_every_degradation(extractors, degrade, strengths):
    batches = dressed_batches(6, size=6)
    methods = {strength: Remembered(batches, degrade(strength)) for strength in strengths}
    results = measured(extractors, batches, methods, reference=batches)
    tables = [table(rows) for rows in rows_by_method(extractors, results).values()]
    for region in ("image", "garment"):
        weak, middle, strong = (rows[region, "all"] for rows in tables)
        for metric in NAMES:
            if metric == "kid_random":  # 6 pictures: noisy, so the ends only
                assert weak[metric] < strong[metric], (region, metric)
            elif degrade is shifted and metric not in ("fid_random", "dists_random"):
                # stripes repeat: a pixelwise comparison may recover, and must still not call it
                # equal
                assert weak[metric] != pytest.approx(0 if metric == "lpips_random" else 1, abs=1e-3)
            elif metric in ("ssim", "psnr"):
                assert weak[metric] > middle[metric] > strong[metric], (region, metric)
            else:
                assert weak[metric] < middle[metric] < strong[metric], (region, metric)


def test_the_garment_region_ignores_everything_else(extractors):
    batches = dressed_batches(4, size=4)
    masks = torch.cat([batch.truth_garment_mask for batch in batches])

    def invert_outside(pictures):
        return torch.where(masks > 0, pictures, 255 - pictures)

    def invert_inside(pictures):
        return torch.where(masks > 0, 255 - pictures, pictures)

    methods = {
        "outside": Remembered(batches, invert_outside),
        "inside": Remembered(batches, invert_inside),
    }
    results = measured(extractors, batches, methods, reference=batches)
    rows = rows_by_method(extractors, results)
    outside, inside = table(rows["outside"]), table(rows["inside"])
    kept = outside["garment", "all"]
    assert kept["ssim"] == pytest.approx(1, abs=1e-6)
    assert kept["psnr"] == protocol("exact").psnr_cap
    assert abs(kept["lpips_random"]) < 1e-3
    assert abs(kept["dists_random"]) < 1e-3
    assert kept["fid_random"] < 1e-3
    assert inside["garment", "all"]["ssim"] < 0.5
    assert inside["garment", "all"]["psnr"] < inside["image", "all"]["psnr"]
    assert outside["image", "all"]["ssim"] < 0.9


def test_unpaired_pairs_without_truth_have_fid_and_kid_only(extractors):
    persons = dressed_batches(5, size=5)
    with_truth = dressed_batches(5, size=5, order="unpaired")
    method = Remembered(with_truth, noisy)
    without = [replace(batch, truth=None, truth_garment_mask=None) for batch in with_truth]
    row, same = rows_of_one(extractors, without, method, reference=persons)
    assert (row.region, row.order) == ("image", "unpaired")
    assert set(row.metrics) == {"fid_random", "kid_random"}
    assert same.metrics == row.metrics
    full = table(rows_of_one(extractors, with_truth, method, reference=persons))
    assert set(full["garment", "all"]) == set(full["image", "all"]) == NAMES
    assert full["image", "all"]["fid_random"] == pytest.approx(row.metrics["fid_random"])


def test_pairs_that_do_not_show_the_garment_count_for_the_image_only(extractors):
    whole = dressed_batches(4, size=4)[0]
    hidden = replace(whole, truth_garment_mask=whole.truth_garment_mask.clone())
    hidden.truth_garment_mask[1] = 0
    method = Remembered([whole], noisy)
    rows = rows_of_one(extractors, [hidden], method, reference=[whole])
    assert [(row.region, row.n) for row in rows if row.category == "all"] == [
        ("image", 4),
        ("garment", 3),
    ]
    others = rows_of_one(extractors, [whole[[0, 2, 3]]], method, reference=[whole])
    assert table(rows)["garment", "all"] == pytest.approx(
        table(others)["garment", "all"], rel=1e-4, abs=1e-6
    )


def test_a_pair_is_measured_once_for_each_method(monkeypatch):
    """Also where it comes twice in a batch; a method that joins later is still measured."""
    batches = dressed_batches(5, size=2)
    method = Remembered(batches)
    scorer = Scorer(Extractors(CHEAP))
    compared = []
    prepare = scorer._prepare

    def watched(targets, pictures, tally):
        compared.extend(target.pair_id for target in targets)
        return prepare(targets, pictures, tally)

    monkeypatch.setattr(scorer, "_prepare", watched)
    for batch in [*batches, batches[0], batches[1][[0, 0, 1]]]:
        scorer.update(targets_of(batch), {"m": method(batch)})
    assert sorted(compared) == sorted(method.pictures)
    scorer.update(targets_of(batches[0]), {"late": method(batches[0])})
    assert scorer.measured.tallies["paired", "late"].pair_ids("image") == batches[0].pair_id


def test_methods_measured_together_keep_their_own_scores(extractors):
    """The networks see all methods' pictures at once; each score is as good as that alone."""
    batches = dressed_batches(3, size=3)
    methods = {"sharp": Remembered(batches), "noisy": Remembered(batches, noisy)}
    together = measured(extractors, batches, methods, reference=batches)
    for name, method in methods.items():
        alone = measured(extractors, batches, {name: method}, reference=batches)
        for region, scores in together.tallies["paired", name].scores.items():
            for metric, by_pair in scores.items():
                expected = alone.tallies["paired", name].scores[region][metric]
                assert by_pair == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_pairs_that_pass_the_networks_together_keep_their_own_scores(extractors, monkeypatch):
    """As on a GPU: three at a time, of which one does not show the garment."""
    (batch,) = dressed_batches(5, size=5)
    batch.truth_garment_mask[1] = 0
    methods = {"sharp": Remembered([batch]), "noisy": Remembered([batch], noisy)}
    one_by_one = measured(extractors, [batch], methods, reference=[batch])
    monkeypatch.setattr(Scorer, "_at_once", lambda *arguments, **options: 3)
    together = measured(extractors, [batch], methods, reference=[batch])
    for region in ("image", "garment"):
        for name in methods:
            expected = one_by_one.tallies["paired", name]
            tally = together.tallies["paired", name]
            assert tally.pair_ids(region) == expected.pair_ids(region)
            for metric, scores in expected.scores[region].items():
                assert tally.scores[region][metric] == pytest.approx(scores, rel=1e-4, abs=1e-5)
            features = tally.features.stack(region)
            torch.testing.assert_close(
                features, expected.features.stack(region), rtol=1e-4, atol=1e-4
            )
        persons = one_by_one.reference.stack(region)
        torch.testing.assert_close(together.reference.stack(region), persons, rtol=1e-4, atol=1e-4)


def test_too_few_pictures_have_no_distribution(extractors):
    batches = dressed_batches(1, size=1)
    rows = rows_of_one(extractors, batches, Remembered(batches))
    assert len(rows) == 4
    for row in rows:
        assert set(row.metrics) == {"ssim", "psnr", "lpips_random", "dists_random"}


def test_names_say_which_weights_and_which_backbone(tmp_path, monkeypatch):
    squeeze = Extractors(EvalConfig(metrics=("lpips",), lpips_net="squeeze"))
    assert squeeze.name("lpips") == "lpips_squeeze_random"
    extractors = Extractors(EvalConfig(metrics=("ssim", "lpips")))
    assert extractors.name("ssim") == "ssim"
    assert extractors.name("lpips") == "lpips_random"
    assert extractors.settings()["networks"]["lpips"].startswith("random, sha256 ")

    path, _ = weights_file(tmp_path, models.alexnet)
    monkeypatch.setitem(metric_networks.FILES, "alex", (path.name,))
    extractors = Extractors(EvalConfig(metrics=("lpips", "fid"), weights=str(tmp_path)))
    assert extractors.name("lpips") == "lpips"
    assert extractors.name("fid") == "fid_random"  # no Inception in that folder
    assert extractors.settings()["networks"]["lpips"].startswith(path.name)
    with pytest.raises(ConfigError, match=r"eval.protocol=exakt.*Did you mean: 'exact'"):
        protocol("exakt")


def test_wrong_pictures_and_wrong_order_are_named():
    scorer = Scorer(Extractors(CHEAP))
    targets = targets_of(dressed_batches(3, size=3)[0])
    expected = r"m: pictures .*expected uint8 \(3, 3, 64, 48\)"
    for wrong in (
        torch.zeros(3, 3, 64, 48),
        torch.zeros(3, 3, 32, 24, dtype=torch.uint8),
        torch.zeros(2, 3, 64, 48, dtype=torch.uint8),
    ):
        with pytest.raises(DataError, match=expected):
            scorer.update(targets, {"m": Prediction(wrong)})
    unpaired = targets_of(dressed_batches(3, size=3, order="unpaired")[0])
    zeros = torch.zeros(6, 3, 64, 48, dtype=torch.uint8)
    with pytest.raises(ValueError, match="one order"):
        scorer.update(targets + unpaired, {"m": Prediction(zeros)})


def test_orders_are_measured_apart():
    paired, unpaired = dressed_batches(2, size=2), dressed_batches(3, size=3, order="unpaired")
    method = Remembered([*paired, *unpaired])
    results = measured(Extractors(CHEAP), [*paired, *unpaired], {"m": method})
    assert list(results.tallies) == [("paired", "m"), ("unpaired", "m")]
    assert len(results.tallies["paired", "m"].pair_ids("image")) == 2
    assert len(results.tallies["unpaired", "m"].pair_ids("image")) == 3


def test_the_reference_is_built_from_paired_batches(extractors):
    targets = targets_of(dressed_batches(2, size=2, order="unpaired")[0])
    with pytest.raises(ValueError, match="paired order"):
        Scorer(extractors).update_reference(targets)
