import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from tests.metrics.dressed import Remembered, TinyExtractor, dressed_batches
from vton.config import ConfigError, EvalConfig
from vton.data.sample import DataError
from vton.metrics import inception
from vton.metrics.protocol import protocol
from vton.metrics.scorer import Scorer
from vton.metrics.tally import merge, merge_features
from vton.weights import metric_networks

NAMES = {"ssim", "psnr", "lpips_random", "dists_random", "fid_random", "kid_random"}
CHEAP = EvalConfig(metrics=("ssim", "psnr"))


@pytest.fixture(scope="module")
def scorer():
    return Scorer(EvalConfig(kid_subset_size=4, kid_subsets=3))


def rows_of(scorer, tally, people):
    return scorer.rows(
        tally, people, model="m", data="synthetic", split="test", provenance={"seed": 0}
    )


def table(rows):
    return {(row.region, row.category): row.metrics for row in rows}


def noisy(pictures):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(pictures.shape[1:], generator=generator) * 20
    return (pictures.float() + noise).clamp(0, 255).round().to(torch.uint8)


def test_identical_pictures_have_the_ideal_scores(scorer):
    batches = dressed_batches(6, size=6)
    people = scorer.people(batches)
    tally = scorer.score(batches, {"truth": Remembered(batches)})["truth"]
    rows = rows_of(scorer, tally, people)
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
        assert (
            row.metrics["kid_random"] < 1e-3
        )  # the unbiased estimate of 0 on a set and itself is below 0


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


def test_no_number_moves_unnoticed(scorer):
    batches = dressed_batches(6, size=6)
    tally = scorer.score(
        batches, {"m": Remembered(batches, lambda pictures: noisy(blurred(4.0)(pictures)))}
    )["m"]
    found = table(rows_of(scorer, tally, scorer.people(batches)))
    for region, golden in GOLDEN.items():
        assert found[region, "all"] == pytest.approx(golden, rel=1e-4), region
    exact = protocol("exact")
    assert (exact.kid_subsets, exact.kid_subset_size) == (
        100,
        1000,
    )  # which six pictures cannot show


def test_batches_processes_and_duplicates_do_not_move_a_number(monkeypatch):
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    scorer = Scorer(EvalConfig(kid_subset_size=4, kid_subsets=3))
    whole = dressed_batches(8, size=8, categories=2)
    pictures = Remembered(whole, noisy)

    def evaluate(*parts):
        people = merge_features(scorer.people(part) for part in parts)
        tally = merge(scorer.score(part, {"m": pictures})["m"] for part in parts)
        return rows_of(scorer, tally, people)

    expected = evaluate(whole)
    assert [row.n for row in expected] == [8, 4, 4, 8, 4, 4]
    one, five = (dressed_batches(8, size=size, categories=2) for size in (1, 5))
    padded = [batch[[0, *range(len(batch))]] for batch in five] + five[
        :1
    ]  # as a sampler that repeats samples does
    for name, actual in {
        "batches of 1": evaluate(one),
        "batches of 5": evaluate(five),
        "three processes, unequal": evaluate(five[:1], one[5:7], one[7:]),
        "two processes, interleaved and reversed": evaluate(one[1::2][::-1], one[::2]),
        "duplicates within and across processes": evaluate(five[1:], padded),
    }.items():
        for row, wanted in zip(actual, expected, strict=True):
            assert (row.region, row.category, row.n) == (
                wanted.region,
                wanted.category,
                wanted.n,
            ), name
            assert row.provenance["pairs_sha256"] == wanted.provenance["pairs_sha256"]
            assert row.metrics == wanted.metrics, (
                name
            )  # to the bit: on a CPU pictures pass the networks one by one


def test_random_states_stay_as_they_were():
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    batches = dressed_batches(5, size=5)
    scorer = Scorer(EvalConfig(kid_subset_size=3))
    rows_of(
        scorer,
        scorer.score(batches, {"m": Remembered(batches, noisy)})["m"],
        scorer.people(batches),
    )
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
def test_every_metric_gets_worse_with_every_degradation(scorer, degrade, strengths):
    batches = dressed_batches(10, size=10)
    people = scorer.people(batches)
    methods = {strength: Remembered(batches, degrade(strength)) for strength in strengths}
    tables = [
        table(rows_of(scorer, tally, people)) for tally in scorer.score(batches, methods).values()
    ]
    for region in ("image", "garment"):
        weak, middle, strong = (rows[region, "all"] for rows in tables)
        for metric in NAMES:
            if metric == "kid_random":  # 10 pictures: noisy, so the ends only
                assert weak[metric] < strong[metric], (region, metric)
            elif degrade is shifted and metric not in ("fid_random", "dists_random"):
                # stripes repeat: a pixelwise comparison may recover, and must still not call it
                # equal
                assert weak[metric] != pytest.approx(0 if metric == "lpips_random" else 1, abs=1e-3)
            elif metric in ("ssim", "psnr"):
                assert weak[metric] > middle[metric] > strong[metric], (region, metric)
            else:
                assert weak[metric] < middle[metric] < strong[metric], (region, metric)


def test_the_garment_region_ignores_everything_else(scorer):
    batches = dressed_batches(4, size=4)
    masks = torch.cat([batch.truth_garment_mask for batch in batches])
    people = scorer.people(batches)
    methods = {
        "outside": Remembered(
            batches, lambda pictures: torch.where(masks > 0, pictures, 255 - pictures)
        ),
        "inside": Remembered(
            batches, lambda pictures: torch.where(masks > 0, 255 - pictures, pictures)
        ),
    }
    found = {
        name: table(rows_of(scorer, tally, people))
        for name, tally in scorer.score(batches, methods).items()
    }
    outside, inside = found["outside"]["garment", "all"], found["inside"]["garment", "all"]
    assert outside["ssim"] == pytest.approx(1, abs=1e-6)
    assert outside["psnr"] == protocol("exact").psnr_cap
    assert (
        max(abs(outside["lpips_random"]), abs(outside["dists_random"]), outside["fid_random"])
        < 1e-3
    )
    assert inside["ssim"] < 0.5
    assert inside["psnr"] < found["inside"]["image", "all"]["psnr"]
    assert found["outside"]["image", "all"]["ssim"] < 0.9


def test_unpaired_pairs_without_truth_have_fid_and_kid_only(scorer):
    people = scorer.people(dressed_batches(5, size=5))
    with_truth = dressed_batches(5, size=5, order="unpaired")
    pictures = Remembered(with_truth, noisy)
    without = [replace(batch, truth=None, truth_garment_mask=None) for batch in with_truth]
    (row, same) = rows_of(scorer, scorer.score(without, {"m": pictures})["m"], people)
    assert (row.region, row.order, set(row.metrics)) == (
        "image",
        "unpaired",
        {"fid_random", "kid_random"},
    )
    assert same.metrics == row.metrics
    full = table(rows_of(scorer, scorer.score(with_truth, {"m": pictures})["m"], people))
    assert set(full["garment", "all"]) == set(full["image", "all"]) == NAMES
    assert full["image", "all"]["fid_random"] == pytest.approx(row.metrics["fid_random"])


def test_pairs_that_do_not_show_the_garment_count_for_the_image_only(scorer):
    whole = dressed_batches(4, size=4)[0]
    hidden = replace(whole, truth_garment_mask=whole.truth_garment_mask.clone())
    hidden.truth_garment_mask[1] = 0
    pictures, people = Remembered([whole], noisy), scorer.people([whole])
    rows = rows_of(scorer, scorer.score([hidden], {"m": pictures})["m"], people)
    assert [(row.region, row.n) for row in rows if row.category == "all"] == [
        ("image", 4),
        ("garment", 3),
    ]
    others = rows_of(scorer, scorer.score([whole[[0, 2, 3]]], {"m": pictures})["m"], people)
    assert table(rows)["garment", "all"] == pytest.approx(
        table(others)["garment", "all"], rel=1e-4, abs=1e-6
    )


def test_a_pair_is_read_and_measured_once():
    batches = dressed_batches(5, size=2)
    remembered, asked = Remembered(batches), []

    def pictures(pair_ids):
        asked.extend(pair_ids)
        return remembered(pair_ids)

    Scorer(CHEAP).score([*batches, *batches[:1]], {"m": pictures})
    assert sorted(asked) == sorted(remembered.pictures)


def test_too_few_pictures_have_no_distribution(scorer):
    batches = dressed_batches(1, size=1)
    rows = rows_of(
        scorer, scorer.score(batches, {"m": Remembered(batches)})["m"], scorer.people(batches)
    )
    assert all(set(row.metrics) == {"ssim", "psnr", "lpips_random", "dists_random"} for row in rows)


def test_names_say_which_weights_and_which_backbone(tmp_path, monkeypatch):
    assert (
        Scorer(EvalConfig(metrics=("lpips",), lpips_net="squeeze")).name("lpips")
        == "lpips_squeeze_random"
    )
    scorer = Scorer(EvalConfig(metrics=("ssim", "lpips")))
    assert [scorer.name(metric) for metric in ("ssim", "lpips")] == ["ssim", "lpips_random"]
    assert scorer.settings()["networks"]["lpips"].startswith("random, sha256 ")

    from tests.models.test_perceptual import backbone_file

    path, _ = backbone_file(tmp_path, "alex")
    monkeypatch.setitem(metric_networks.FILES, "alex", (path.name,))
    scorer = Scorer(EvalConfig(metrics=("lpips", "fid"), weights=str(tmp_path)))
    assert scorer.name("lpips") == "lpips"
    assert scorer.name("fid") == "fid_random"  # no Inception in that folder
    assert scorer.settings()["networks"]["lpips"].startswith(path.name)
    with pytest.raises(ConfigError, match=r"eval.protocol=exakt.*Did you mean: 'exact'"):
        protocol("exakt")


def test_wrong_pictures_and_wrong_order_are_named():
    scorer = Scorer(CHEAP)
    batches = dressed_batches(3, size=3)
    with pytest.raises(DataError, match=r"m: pictures .*expected uint8 \(3, 3, 64, 48\)"):
        scorer.score(batches, {"m": lambda ids: torch.zeros(len(ids), 3, 64, 48)})
    with pytest.raises(DataError, match=r"expected uint8 \(3, 3, 64, 48\)"):
        scorer.score(
            batches, {"m": lambda ids: torch.zeros(len(ids), 3, 32, 24, dtype=torch.uint8)}
        )
    mixed = [*batches, *dressed_batches(3, size=3, order="unpaired")]
    zeros = Remembered(mixed)
    with pytest.raises(ValueError, match="one order"):
        scorer.score(mixed, {"m": zeros})


def test_the_reference_is_built_from_paired_batches(scorer):
    with pytest.raises(ValueError, match="paired order"):
        scorer.people(dressed_batches(2, size=2, order="unpaired"))
